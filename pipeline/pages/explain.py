"""The page of one clip, ``ROOT/explain/CLIP/index.html``: its influence, and where in the clip that comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.attribution.decomposition import Sums
from pipeline.config import Run
from pipeline.errors import CODES, code_of
from pipeline.pages import explain_links, gallery, pictures
from pipeline.pages.gallery import FramesOf, Studio
from pipeline.pages.pictures import Mask, Picture, latent_frames
from pipeline.pages.report import REASONS, environment
from pipeline.storage import stores
from pipeline.tables import figures

Row = Mapping[str, Any]

SHOWN = 5  # queries with pictures at either end
GROUPS = 12  # columns of a split
LARGEST = 400_000  # bytes of the clip's own picture
DUPLICATE = 0.95  # cosine of two features from which on clips are near-duplicates: docs/results.md has the rates
MOST = 0.6  # of a clip's influence: more of it from one latent frame is a look

NOT_SHORTLISTED = (
    "The cheaper attribution placed it between those that the full setting looks at; a larger attribution.shortlist "
    "has it attributed in full."
)
TRIED_TWICE = "It was tried twice. Delete its rows, and the next run tries it anew."


@dataclass(frozen=True)
class Problem:
    """Why a clip has no influence: the table whose row says so, and the row's error."""

    stage: str
    error: str

    @property
    def remedy(self) -> str:
        code = code_of(self.error)
        if code == "not_shortlisted":
            return NOT_SHORTLISTED
        return CODES[code].remedy if code in CODES else TRIED_TWICE

    def __str__(self) -> str:
        code, _, sentence = self.error.partition(": ")
        return f"{REASONS.get(code, code)} ({self.stage}/): {sentence or self.error}"


@dataclass(frozen=True)
class Part:
    """A latent frame or a layer: its share in the mean influence on all queries, and on each group's."""

    name: str
    note: str
    share: float
    groups: dict[str, float]


@dataclass(frozen=True)
class Lawfulness:
    """A clip's row of lawfulness/, and what it says in words; without a row, why there is none."""

    row: Row | None
    words: str


@dataclass(frozen=True)
class Explanation:
    """All that is known of a clip. Without a `problem` it has a place in the ranking."""

    clip: Row
    motion: Row | None
    problem: Problem | None
    decisions: Sequence[Row] = ()  # of selection/, "all" first
    queries: Sequence[Row] = ()  # of standing.STANDING, highest influence first
    ranked: int = 0  # clips that have a place in the ranking
    motion_percentile: float | None = None
    near: Sequence[tuple[str, float]] = ()
    frames: Sequence[Part] = ()
    layers: Sequence[Part] = ()
    undivided: str | None = None  # why there are no shares of frames and layers
    lawfulness: Lawfulness | None = None

    def split(self, run: Run, shares: Sums, layers: Sequence[str], groups: Sequence[str]) -> Explanation:
        """The same with the shares [settings, frames, layers, Q] of `decomposition.shares`."""
        latents = shares.shape[1]
        names = [str(latent) for latent in range(latents)]
        frames = parts(shares.sum((0, 2)), names, pixel_frames(run.geometry[0], latents), groups)
        named = parts(shares.sum((0, 1)), layers, [""] * len(layers), groups) if len(layers) > 1 else []
        return replace(self, frames=frames, layers=named)

    @property
    def influence(self) -> float | None:
        return float(np.mean([q["influence"] for q in self.queries])) if self.queries else None


def parts(shares: Sums, names: Sequence[str], notes: Sequence[str], groups: Sequence[str]) -> list[Part]:
    """Shares [parts, Q] as means over all queries and over each group's."""
    members = {g: [i for i, other in enumerate(groups) if other == g] for g in sorted(set(groups))}
    return [
        Part(name, note, float(row.mean()), {g: float(row[of].mean()) for g, of in members.items()})
        for name, note, row in zip(names, notes, shares, strict=True)
    ]


def group_sums(parts: Sequence[Part], groups: Sequence[str]) -> list[float]:
    """The parts' shares in each group's influence, summed. A group is any text: a template would take it for a path."""
    return [sum(part.groups[group] for part in parts) for group in groups]


def pixel_frames(frames: int, latents: int) -> list[str]:
    """Which frames of the clip each latent frame holds, in words."""
    latent_of_frame = np.asarray(latent_frames(frames, latents))
    ends = [np.flatnonzero(latent_of_frame == latent) for latent in range(latents)]
    words = [f"{e[0]}" if len(e) == 1 else f"{e[0]} to {e[-1]}" for e in ends]
    return [f"{'frame' if len(e) == 1 else 'frames'} {w}" for e, w in zip(ends, words, strict=True)]


# --- the page --------------------------------------------------------------------------------------------------------


def write(run: Run, explanation: Explanation, frames_of: FramesOf) -> str:
    """Write the page; returns its place. `frames_of` is that of `report.write`."""
    clip_id = explanation.clip["clip_id"]
    ends = _ends(explanation.queries)
    queries = figures.by_id(run.root, "queries", [q["query_id"] for q in ends])
    near = figures.by_id(run.root, "clips", [i for i, _ in explanation.near])
    studio = Studio(run, frames_of, {}, 4 + len(ends) + len(near))
    shown = [(q, queries.get(q["query_id"], {}), _clip_picture(studio, queries.get(q["query_id"]))) for q in ends]
    picture, film = _pictures(run, explanation, frames_of)
    pages = environment()
    pages.filters["group_sums"] = group_sums
    page = pages.get_template("explain.html").render(
        run=run,
        e=explanation,
        title=clip_id,
        overall=next((d for d in explanation.decisions if d["group"] == "all"), None),
        picture=picture,
        film=film,
        high=shown[: len(shown) - len(shown) // 2],
        low=shown[len(shown) - len(shown) // 2 :][::-1],
        studio=studio,
        near=[(near.get(i, _gone(i)), cosine, _clip_picture(studio, near.get(i))) for i, cosine in explanation.near],
        links=explain_links.links(run.root, [i for i, _ in explanation.near]),
        groups=_groups(explanation),
        duplicate=DUPLICATE,
        still=_carried_by_one(explanation),
    )
    place = stores.join(explain_links.folder(run.root, clip_id), "index.html")
    stores.write_bytes(place, page.encode())
    return place


def _gone(clip_id: str) -> Row:
    """What is left of a clip that was purged since it was ranked."""
    return {"clip_id": clip_id, "caption": None, "source": None}


def _carried_by_one(explanation: Explanation) -> str:
    """A warning where one latent frame carries most of a clip's influence, else nothing: a single moment is a look, and
    no motion."""
    shares = [part.share for part in explanation.frames]
    total = sum(shares)
    if len(shares) < 3 or total <= 0 or max(shares) < MOST * total:
        return ""
    part = explanation.frames[shares.index(max(shares))]
    return (
        f"{max(shares) / total:.0%} of its influence comes from {part.note} alone. One moment has no motion: the clip "
        "may teach how the query looks, and not how it moves."
    )


def _ends(queries: Sequence[Row]) -> list[Row]:
    """The queries with the highest and the lowest influence, in their order."""
    return list(queries) if len(queries) <= 2 * SHOWN else [*queries[:SHOWN], *queries[-SHOWN:]]


def _clip_picture(studio: Studio, row: Row | None) -> Picture | None:
    return None if row is None or row["error"] is not None else studio.clip(row)


def _groups(explanation: Explanation) -> list[str]:
    """The groups that a split shows: those that the clip matters to most, either way."""
    if not explanation.frames or len(explanation.frames[0].groups) < 2:
        return []
    total = {g: abs(sum(part.groups[g] for part in explanation.frames)) for g in explanation.frames[0].groups}
    return sorted(sorted(total, key=lambda g: (-total[g], g))[:GROUPS])


def _pictures(run: Run, explanation: Explanation, frames_of: FramesOf) -> tuple[Picture | None, Picture | None]:
    """The clip with its mask, looping and as a film strip."""
    frames = frames_of(dict(explanation.clip)) if run.report.pictures and explanation.clip["error"] is None else None
    if frames is None:
        return None, None
    mask = _mask(explanation.motion)
    seconds = len(frames) / run.geometry[1]
    return (
        pictures.picture(frames, gallery.QUERY, LARGEST, seconds, mask, film=True),
        pictures.picture(frames, gallery.FILM, LARGEST, seconds, mask, 12),
    )


def _mask(row: Row | None) -> Mask | None:
    if row is None or row["mask"] is None:
        return None
    values: npt.NDArray[np.uint8] = np.frombuffer(row["mask"], np.uint8).reshape(row["mask_shape"])
    return values
