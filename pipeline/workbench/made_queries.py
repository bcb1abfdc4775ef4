"""Queries that people make: out of a clip, or of a part of its picture, or of a video of their own.

``ROOT/made_queries`` holds an mp4 file and a record for each, and ``manifest.jsonl``, to be named as `queries.videos`:
the run's own queries and the made ones. The run's own keep their ids there, so that only new ones cost a gradient.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StringConstraints, model_validator

from pipeline.config import Run
from pipeline.errors import InputError
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


class Made(Words):
    """A query to be made: its motion, its caption, and, of a clip, the part of the picture whose motion counts."""

    group: Name
    caption: Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000)] = ""
    clip: str | None = None
    rectangle: tuple[Share, Share, Share, Share] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom

    @model_validator(mode="after")
    def _has_an_area(self) -> Made:
        left, top, right, bottom = self.rectangle
        if right - left < 0.05 or bottom - top < 0.05:
            raise ValueError("the rectangle: it must be a twentieth of the picture wide and high, or more")
        return self


def frozen_outside(frames: Frames, rectangle: Sequence[float]) -> Frames:
    """Frames [F, H, W, 3] that stand still outside a rectangle: nothing moves there, so the motion mask leaves it out,
    and what is inside keeps its size and place."""
    high, wide = frames.shape[1:3]
    left, top, right, bottom = rectangle
    still = np.broadcast_to(frames[:1], frames.shape).copy()
    rows = slice(round(top * high), round(bottom * high))
    columns = slice(round(left * wide), round(right * wide))
    still[:, rows, columns] = frames[:, rows, columns]
    return still


def of_clip(run: Run, row: Mapping[str, Any], asked: Made, decoder: Decoder) -> dict[str, Any]:
    """Make a query of a row of clips/. Raises ClipError where its video cannot be decoded."""
    high, wide = _even(row["height"], row["width"])
    frames = decoder.frames(row["uri"], row["start_frame"], row["num_frames"], row["fps"], high, wide)
    return _write(run, frozen_outside(frames, asked.rectangle), row["fps"], asked)


def of_file(run: Run, path: str, asked: Made, decoder: Decoder) -> dict[str, Any]:
    """Make a query of the first segment of a local video. Raises ClipError where it has none."""
    first = decoder.index(path, run.data.frames, run.data.fps)[0]
    high, wide = _even(first["height"], first["width"])
    frames = decoder.frames(path, first["start_frame"], run.data.frames, run.data.fps, high, wide)
    return _write(run, frozen_outside(frames, asked.rectangle), run.data.fps, asked)


def _even(height: int, width: int) -> tuple[int, int]:
    """Even sides, at most 1280: larger than any geometry of attribution."""
    scale = min(1.0, 1280 / max(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _write(run: Run, frames: Frames, fps: float, asked: Made) -> dict[str, Any]:
    """The video first, then its record, then the manifest: what a killed server leaves is a video that nobody names."""
    name = f"made-{asked.batch[:24]}"
    stores.write_bytes(join(run.root, FOLDER, f"{name}.mp4"), encode_clip(frames, fps, CRF))
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"id": name, "at": at, **asked.model_dump(exclude={"batch"})}
    stores.write_bytes(join(run.root, FOLDER, f"{name}.json"), json.dumps(record, ensure_ascii=False).encode())
    return record


def records(root: str) -> list[dict[str, Any]]:
    """The queries that people made, the first one first."""
    paths = [path for path in stores.files(join(root, FOLDER)) if path.endswith(".json")]
    listed = [json.loads(stores.read_bytes(join(root, FOLDER, os.path.basename(path)))) for path in paths]
    return sorted(listed, key=lambda record: (record["at"], record["id"]))


def write_manifest(run: Run, queries: Sequence[Mapping[str, Any]]) -> str:
    """Write the manifest of the run's own queries and the made ones; its place. Raises InputError where the run's own
    cannot be listed as they are."""
    own: dict[str, Mapping[str, Any]] = {}
    for query in sorted(queries, key=lambda query: query["start_frame"] or 0):
        own.setdefault(str(query["uri"]), query)  # its first segment, whose id is the video's
    made = records(run.root)
    made_ids = {record["id"] for record in made}
    lines = [
        {"file_name": uri, "id": q["clip_id"], **{name: q[name] for name in ("caption", "group", "source")}}
        for uri, q in own.items()
        if q["clip_id"] not in made_ids
    ]
    for record in made:
        place = join(run.root, FOLDER, f"{record['id']}.mp4")
        place = place if "://" in place else os.path.abspath(place)
        about = {"caption": record["caption"], "group": record["group"], "source": f"made by {record['by']}"}
        lines.append({"file_name": place, "id": record["id"], **about})
    if not all(line["file_name"] for line in lines):
        raise InputError("a query of the run has no address, so no manifest can name it")
    path = join(run.root, FOLDER, MANIFEST)
    stores.write_bytes(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode())
    return path


def cost(run: Run) -> str:
    """What one more query costs, by what this run itself took for its queries."""
    rate = throughput.by_stage(run.root).get("attribute queries", {}).get("rows_per_second")
    if not rate:
        return "one query more: a gradient for each setting and look; this run has not measured its own pace"
    return f"one query more: about {1 / rate:.1f} s by this run's own pace, and a new ranking"
