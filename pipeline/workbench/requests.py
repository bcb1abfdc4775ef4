"""What people asked for that takes a model: videos of prompts, gradients of made queries and of clips that they like.

``python -m jobs.attribute_requests`` works them off. What is asked for is a function of the rows and files that are
there: a job that was killed finds what is left.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import code_of
from pipeline.storage.stores import join
from pipeline.tables import registry
from pipeline.tables.registry import LIKED
from pipeline.workbench import made_queries

ASKED = "asked"  # state of a like that is to be exact


@dataclass(frozen=True)
class Requests:
    """What is left to do: made queries without a video, made queries without a feature (the former among them), and
    liked clips without one."""

    prompts: list[str]
    queries: list[str]
    likes: list[str]

    def __bool__(self) -> bool:
        return bool(self.prompts or self.queries or self.likes)


ONE_PROMPT = Requests(prompts=[""], queries=[""], likes=[])


def exact_likes(rows: pa.Table) -> list[str]:
    """The clips of likes/ that somebody wants an exact likeness to, and has not taken back since; by id."""
    latest: dict[tuple[str, str, str], dict[str, Any]] = {}
    asked = set[tuple[str, str, str]]()
    for row in rows.sort_by([("at", "ascending"), ("batch", "ascending")]).to_pylist():
        key = (row["by"], row["group"], row["clip_id"])
        latest[key] = row
        if row["state"] == ASKED:
            asked.add(key)
    return sorted({key[2] for key in asked if latest[key]["sign"]})


def pending(root: str, likes: pa.Table | None = None) -> Requests:
    """What is left to do in a run; `likes` are the rows of likes/, by default those on disk."""
    if likes is None:
        rows = tables.read(join(root, "likes"))
        likes = registry.LIKES.schema.empty_table() if rows is None else rows
    made = made_queries.records(root)
    finished, liked = _finished(root, "queries"), _finished(root, LIKED)
    return Requests(
        prompts=[record["id"] for record in made if not made_queries.has_video(root, record)],
        queries=[record["id"] for record in made if record["id"] not in finished],
        likes=[clip_id for clip_id in exact_likes(likes) if clip_id not in liked],
    )


def _finished(root: str, name: str) -> set[str]:
    """The ids of a set that have a feature, or an error in its place: of the index, of motion or of its own."""
    ids = set[str]()
    for stage in ("features", "motion", ""):
        rows = tables.read(join(root, stage, name) if stage else join(root, name), ["clip_id", "error"])
        for row in [] if rows is None else rows.to_pylist():
            goes_on = row["error"] is None or code_of(row["error"]) == "no_motion"
            if stage == "features" or not goes_on:
                ids.add(row["clip_id"])
    return ids


def cost(root: str, requests: Requests) -> str:
    """What requests cost, by this run's own pace, as a sentence without a full stop."""
    gradients = len(requests.queries) + len(requests.likes)
    parts = []
    if requests.prompts:
        parts.append(_priced(len(requests.prompts), "video", "videos", made_queries.seconds_of_video(root)))
    if gradients:
        seconds = made_queries.seconds_of_query(root)
        parts.append(_priced(gradients, "gradient of a query", "gradients of queries", seconds))
    return " and ".join(parts) + ", loading the model, and a new ranking" if parts else "nothing"


def _priced(count: int, one: str, several: str, seconds: float | None) -> str:
    many = f"{count} {one if count == 1 else several}"
    if seconds is None:
        return f"{many} (this run has not measured its pace)"
    return f"{many} (about {count * seconds:.0f} s of an actor)"


def command(root: str) -> str:
    return f"python -m jobs.attribute_requests --set {shlex.quote(f'root={root}')}"


def listed(root: str, likes: pa.Table) -> dict[str, Any]:
    """Requests for the page: counts, cost and the command that works them off."""
    left = pending(root, likes)
    counts = {name: len(getattr(left, name)) for name in ("prompts", "queries", "likes")}
    waits = {
        **dict.fromkeys(left.queries, "waits for its gradient"),
        **dict.fromkeys(left.prompts, "waits for its video"),
    }
    return {**counts, "any": bool(left), "cost": cost(root, left), "command": command(root), "waits": waits}


def with_all_queries(run: Run, queries: Sequence[Mapping[str, Any]]) -> Run:
    """The run whose queries are its own and the made ones; the run itself where nobody made any. Writes the manifest.

    Raises InputError where the run's own queries cannot be listed as they are.
    """
    if not any(made_queries.has_video(run.root, record) for record in made_queries.records(run.root)):
        return run
    manifest = made_queries.write_manifest(run, queries)
    changes = {"videos": manifest, "files": None, "prompts": ()}
    return run.model_copy(update={"queries": run.queries.model_copy(update=changes)})


def liked_rows(root: str) -> pa.Table | None:
    """The rows of the clips that an exact likeness is wanted to, as a table of queries; None where there are none."""
    rows = tables.read(join(root, "likes"))
    ids = [] if rows is None else exact_likes(rows)
    if not ids or not tables.parts(join(root, "clips")):
        return None
    clips = tables.of_clips(join(root, "clips"), ids)
    if clips is None or not clips.num_rows:
        return None
    names = registry.QUERIES.schema.names
    for name, value in (("group", LIKED), ("mask_box", None)):
        if name in clips.column_names:
            clips = clips.drop_columns([name])
        clips = clips.append_column(name, pa.array([value] * clips.num_rows, pa.string()))
    return clips.select(names).cast(registry.QUERIES.schema)
