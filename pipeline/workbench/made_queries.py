"""Queries that people make: out of a clip, or of a part of it, or of a video of their own, or of a caption.

``ROOT/made_queries`` holds an mp4 file and a record for each (of a caption the record alone, until a job has made the
video), and ``manifest.jsonl``, to be named as `queries.videos`:
the run's own queries and the made ones. The run's own keep their ids there, so that only new ones cost a gradient.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from pipeline.config import Run
from pipeline.errors import InputError
from pipeline.inputs.manifests.mask_boxes import MaskBox
from pipeline.storage import stores
from pipeline.storage.stores import join
from pipeline.tables import throughput
from pipeline.video.cut_clips import encode_clip
from pipeline.video.decoder import Decoder
from pipeline.video.orientation import Frames
from pipeline.workbench.people import Words

FOLDER, MANIFEST = "made_queries", "manifest.jsonl"
CRF = 10  # near to the frames: gradients are taken of it
LONGEST = 512 << 20  # bytes of a video that somebody brings

Name = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[\w .-]{1,60}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Second = Annotated[float, Field(ge=0)]
_OF_QUERY = ("caption", "group", "source", "mask_box")  # columns of queries/ that a manifest repeats


class Prompted(Words):
    """A query to be made by the base model, of a caption."""

    group: Name
    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0


class Made(Words):
    """A query to be made: its motion, its caption, and, of a clip, the part whose motion counts: a rectangle of the
    picture, and a stretch of seconds from the clip's first frame."""

    group: Name
    caption: Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000)] = ""
    clip: str | None = None
    rectangle: tuple[Share, Share, Share, Share] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom
    seconds: tuple[Second, Second] | None = None  # all of the clip's time

    @model_validator(mode="after")
    def _has_a_part(self) -> Made:
        self.box()
        return self

    def box(self) -> MaskBox:
        """Raises ValueError for a part that is none."""
        return MaskBox(*self.rectangle, *(self.seconds or ()))


def check_part(run: Run, asked: Made) -> None:
    """Raise ValueError where the part of a clip holds fewer than two of the frames at which gradients are taken."""
    frames, fps, *_ = run.geometry
    count = sum(asked.box().frames(frames, fps))
    if count < 2:
        raise ValueError(
            f"from {asked.box().first:g} s to {asked.box().last:g} s there are {count} of the {frames} frames at "
            f"{fps:g} a second that attribution sees (the clip's first {frames / fps:g} s); choose a longer part"
        )


def of_clip(run: Run, row: Mapping[str, Any], asked: Made, decoder: Decoder) -> dict[str, Any]:
    """Make a query of a row of clips/. Raises ClipError where its video cannot be decoded, ValueError for a part of
    the clip that attribution does not see."""
    check_part(run, asked)
    high, wide = _even(row["height"], row["width"])
    frames = decoder.frames(row["uri"], row["start_frame"], row["num_frames"], row["fps"], high, wide)
    return _write(run, frames, row["fps"], asked)


def of_file(run: Run, path: str, asked: Made, decoder: Decoder) -> dict[str, Any]:
    """Make a query of the first segment of a local video. Raises ClipError where it has none."""
    first = decoder.index(path, run.data.frames, run.data.fps)[0]
    high, wide = _even(first["height"], first["width"])
    frames = decoder.frames(path, first["start_frame"], run.data.frames, run.data.fps, high, wide)
    return _write(run, frames, run.data.fps, asked)


def _even(height: int, width: int) -> tuple[int, int]:
    """Even sides, at most 1280: larger than any geometry of attribution."""
    scale = min(1.0, 1280 / max(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _write(run: Run, frames: Frames, fps: float, asked: Made) -> dict[str, Any]:
    """The video first, then its record, then the manifest: what a killed server leaves is a video that nobody names."""
    stores.write_bytes(join(run.root, FOLDER, f"{_name(asked)}.mp4"), encode_clip(frames, fps, CRF))
    box = asked.box()
    part = {} if box.is_whole else {"mask_box": str(box)}
    return _write_record(run.root, asked, {**asked.model_dump(exclude={"batch"}), **part})


def _name(asked: Words) -> str:
    return f"made-{asked.batch[:24]}"


def _write_record(root: str, asked: Words, about: Mapping[str, Any]) -> dict[str, Any]:
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"id": _name(asked), "at": at, **about}
    stores.write_bytes(join(root, FOLDER, f"{record['id']}.json"), json.dumps(record, ensure_ascii=False).encode())
    return record


def of_prompt(root: str, asked: Prompted) -> dict[str, Any]:
    """Write down that the base model is to make a query of a caption."""
    return _write_record(root, asked, {**asked.model_dump(exclude={"batch"}), "caption": asked.prompt})


def has_video(root: str, record: Mapping[str, Any]) -> bool:
    """Whether a made query has its video: one of a prompt has none until a job has made it."""
    return "prompt" not in record or stores.exists(join(root, FOLDER, f"{record['id']}.mp4"))


def prompted(root: str) -> list[dict[str, Any]]:
    """The records that wait for their videos, each with `file_name`."""
    waiting = [record for record in records(root) if not has_video(root, record)]
    return [{**record, "file_name": f"{record['id']}.mp4"} for record in waiting]


def records(root: str) -> list[dict[str, Any]]:
    """The queries that people made, the first one first."""
    paths = [path for path in stores.files(join(root, FOLDER)) if path.endswith(".json")]
    listed = [json.loads(stores.read_bytes(join(root, FOLDER, os.path.basename(path)))) for path in paths]
    return sorted(listed, key=lambda record: (record["at"], record["id"]))


def write_manifest(run: Run, queries: Sequence[Mapping[str, Any]]) -> str:
    """Write the manifest of the run's own queries and the made ones; its place. Raises InputError where the run's own
    cannot be listed as they are."""
    first: dict[str, int] = {}  # of each video its first segment, whose id is the video's
    for query in queries:
        start = query["start_frame"] or 0
        first[query["uri"]] = min(start, first.get(query["uri"], start))
    own = [query for query in queries if (query["start_frame"] or 0) == first[query["uri"]]]
    made = records(run.root)
    made_ids = {record["id"] for record in made}
    lines = [
        {"file_name": q["uri"], "id": q["clip_id"], **{name: q[name] for name in _OF_QUERY if q.get(name) is not None}}
        for q in sorted(own, key=lambda query: str(query["clip_id"]))
        if q["clip_id"] not in made_ids
    ]
    for record in made:
        if not has_video(run.root, record):
            continue
        place = join(run.root, FOLDER, f"{record['id']}.mp4")
        place = place if "://" in place else os.path.abspath(place)
        about = {"caption": record["caption"], "group": record["group"], "source": f"made by {record['by']}"}
        # Of older records with a rectangle the film itself stands still outside it.
        part = {"mask_box": record["mask_box"]} if "mask_box" in record else {}
        lines.append({"file_name": place, "id": record["id"], **about, **part})
    if not all(line["file_name"] for line in lines):
        raise InputError("a query of the run has no address, so no manifest can name it")
    path = join(run.root, FOLDER, MANIFEST)
    stores.write_bytes(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode())
    return path


def cost(run: Run) -> str:
    """What one more query costs, by what this run itself took for its queries."""
    seconds = seconds_of_query(run.root)
    if seconds is None:
        return "one query more: a gradient for each setting and look; this run has not measured its own pace"
    return f"one query more: about {seconds:.1f} s of an actor by this run's own pace, and a new ranking"


def seconds_of_query(root: str) -> float | None:
    """Seconds that an actor took for a query of this run, decoding and motion included; None where it has done none."""
    return _seconds_of(root, "attribute queries")


def seconds_of_video(root: str) -> float | None:
    """Seconds that an actor took for a video of a prompt; None where this run has made none."""
    return _seconds_of(root, "generate queries")


def _seconds_of(root: str, stage: str) -> float | None:
    figures = throughput.by_stage(root).get(stage, {})
    seconds = figures.get("busy_seconds") or figures.get("seconds")
    return seconds / figures["rows"] if seconds and figures["rows"] else None
