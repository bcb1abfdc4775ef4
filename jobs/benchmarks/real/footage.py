"""Segments of the videos, decoded, encoded and masked once with the product's own pieces, RAFT included."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import Tensor

from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.real import spoiling
from jobs.benchmarks.real.layouts import Video
from jobs.benchmarks.real.options import Real
from pipeline import models, motion
from pipeline.config import Run, VideoModelConfig
from pipeline.errors import ClipError
from pipeline.models import VideoModel, open_model
from pipeline.motion import judge, load_raft
from pipeline.motion.movement import movement
from pipeline.storage import stores
from pipeline.video import looks
from pipeline.video.decoder import Decoder
from pipeline.video.decoders import decoder_for

Words = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Segment:
    """A stretch of a labelled video. `way` says how it is spoiled, with the stretch `other` where that takes one;
    `twin` and `look` make it another version of the clip `source` (`video.looks`)."""

    clip_id: str
    uri: str
    version: str
    start_frame: int
    action: str  # what the data say: of a wrong caption the wrong one
    person: str
    scene: str
    caption: str
    way: str = ""
    other: tuple[str, int] | None = None
    twin: str = ""
    look: int = 0
    source: str = ""


@dataclass(frozen=True)
class Footage:
    """Encoded segments; row n of everything is one of them. `clips.motions` are the actions."""

    clips: Clips
    people: Words
    scenes: Words
    captions: Words
    ways: Words  # how a clip is spoiled, "" of one that is not
    twins: Words  # in which order its frames are, "" as they were
    sources: Words  # the clip that it is a version of, itself where it is none

    def __len__(self) -> int:
        return len(self.clips)


# --- which segments there are -----------------------------------------------------------------------------------------


def segments(run: Run, videos: Sequence[Video], settings: Real) -> tuple[list[Segment], list[str]]:
    """The segments of the videos, at most `settings.segments` of each, and a sentence for each video of which something
    is left out: it cannot be decoded, is too short, or has cuts. They are kept in the run's folder."""
    name = digest(run.data.model_dump(mode="json"), settings.segments, [asdict(video) for video in videos])
    path = f"{run.root}/segments/{name}.json"
    if not stores.exists(path):
        rows, left_out = _indexed(run, videos, settings)
        listing = {"segments": [asdict(row) for row in rows], "left_out": left_out}
        stores.write_bytes(path, json.dumps(listing).encode())
    listing = json.loads(stores.read_bytes(path))
    return [Segment(**row) for row in listing["segments"]], listing["left_out"]


def _indexed(run: Run, videos: Sequence[Video], settings: Real) -> tuple[list[Segment], list[str]]:
    rows: list[Segment] = []
    left_out: list[str] = []
    with decoder_for(run) as decoder:
        for video in videos:
            try:
                starts, cut = _starts(decoder, run, video)
            except ClipError as error:
                left_out.append(f"{video.relative}: {error}")
                continue
            if cut:
                left_out.append(f"{video.relative}: {cut} segments with a cut in them or damaged")
            rows += [_segment(video, start) for start in _spread(starts, settings.segments)]
    return rows, left_out


def _starts(decoder: Decoder, run: Run, video: Video) -> tuple[list[int], int]:
    """First frames of the segments of a video, and how many are left out. Raises ClipError."""
    frames, fps, _, _ = run.geometry
    if video.spans:
        length = round((frames - 1) * float(decoder.look(video.uri)["fps"]) / fps) + 1
        starts = [start for first, end in video.spans for start in range(first, end - length + 1, length)]
        if not starts:
            raise ClipError("too_short", f"no marked range of it has the {length} frames that a segment takes")
        return starts, 0
    stretches = decoder.index(video.uri, frames, fps, run.data.stride)
    whole = [int(row["start_frame"]) for row in stretches if row["error"] is None and not row["cuts"]]
    return whole, len(stretches) - len(whole)


def _spread(starts: Sequence[int], count: int) -> list[int]:
    """At most `count` of the starts, evenly over all of them."""
    if len(starts) <= count:
        return list(starts)
    return [starts[place] for place in np.unique(np.linspace(0, len(starts) - 1, count).round().astype(int)).tolist()]


def _segment(video: Video, start: int) -> Segment:
    clip_id = f"{video.relative}:{start}"
    return Segment(clip_id, video.uri, video.version, start, video.action, video.person, video.scene, video.caption)


def spoil(corpus: Sequence[Segment], share: float, seed: int = 0) -> list[Segment]:
    """Spoiled versions of a share of the corpus. A wrong caption is one of another action, and the action that the data
    then say is that one; without a clip of another action there is no wrong caption."""
    by_id = {segment.clip_id: segment for segment in corpus}
    spoiled = []
    for clip_id, way in spoiling.chosen(list(by_id), share, seed).items():
        segment = by_id[clip_id]
        others = [s for s in corpus if s.action != segment.action] or [s for s in corpus if s is not segment]
        other = min(others, key=lambda s: hashlib.blake2b(f"{clip_id} {s.clip_id}".encode()).digest())
        spliced = other.uri, other.start_frame
        version = replace(segment, clip_id=f"{clip_id}:{way}", way=way, other=spliced, source=clip_id)
        if way == spoiling.CAPTION:
            version = replace(version, caption=other.caption, action=other.action)
        spoiled.append(version)
    return spoiled


def digest(*values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def name_of(run: Run, rows: Sequence[Segment]) -> str:
    """What encoded segments depend on, as a name."""
    settings = [run.data.model_dump(mode="json"), run.motion.model_dump(mode="json"), run.model.model_dump(mode="json")]
    return digest(settings, judge.VERSION, [asdict(row) for row in rows])


# --- encoding ---------------------------------------------------------------------------------------------------------


@functools.cache  # once a process: Ray's tasks of one worker share it
def opened(model: VideoModelConfig) -> VideoModel:
    return open_model(model, torch.device("cpu"))


def encode(run: Run, rows: Sequence[Segment], folder: str) -> None:
    """Decode, encode, mask and describe segments: two files in `folder`, clips.parquet last.

    A segment that cannot be decoded after all is left out.
    """
    model, raft = opened(run.model), load_raft(run.motion, torch.device("cpu"))
    tensors: dict[str, list[Tensor]] = {"latent": [], "mask": [], "text": [], "description": []}
    columns: list[dict[str, Any]] = []
    measured: tuple[tuple[str, str] | None, Tensor] = (None, torch.empty(0))
    for row, frames in _decoded(run, rows):
        if (row.source, row.twin) != measured[0] or not row.source:  # a look has the flow of the clip as it was
            measured = (row.source, row.twin), motion.estimate(frames, raft, run.motion, torch.device("cpu"))
        flow = measured[1]
        latent = model.encode(looks.recoloured(frames, row.source, row.look), run.geometry[1])["latent"]
        grid = models.grid(run)
        mask = motion.motion_mask(flow, run.motion, grid)
        numbers = movement(frames, flow - motion.camera_motion(flow))["description"]
        tensors["latent"].append(latent)
        tensors["mask"].append(torch.zeros(grid.shape) if mask is None else mask)
        tensors["text"].append(model.text(row.caption)["text"])
        tensors["description"].append(torch.tensor(numbers, dtype=torch.float64))
        columns.append({**asdict(row), "other": None, "magnitude": motion.statistics(flow)[0]})
    if not columns:
        raise ClipError("decode", f"not one of {len(rows)} segments can be decoded, the first is {rows[0].clip_id}")
    stacked = {name: torch.stack(values).contiguous() for name, values in tensors.items()}
    stores.write_bytes(f"{folder}/tensors.safetensors", safetensors.torch.save(stacked))
    with stores.writing(f"{folder}/clips.parquet") as file:
        pq.write_table(pa.Table.from_pylist(columns), file)


def _decoded(run: Run, rows: Sequence[Segment]) -> Iterator[tuple[Segment, spoiling.Frames]]:
    count, fps, height, width = run.geometry
    with decoder_for(run) as decoder:
        for row in rows:
            try:
                frames = decoder.frames(row.uri, row.start_frame, count, fps, height, width)
                if row.twin:
                    frames = looks.twin(frames, row.twin, row.source)
                if row.way:
                    assert row.other is not None, "a spoiled clip has another beside it"
                    other = decoder.frames(*row.other, count, fps, height, width)
                    frames = spoiling.spoiled(frames, row.way, row.clip_id, other)
            except ClipError as error:
                print(f"{row.clip_id} is left out: {error}", flush=True)
                continue
            yield row, frames


def encoded(folder: str) -> bool:
    return Path(folder, "clips.parquet").exists()  # it is written last


@functools.cache
def load(folders: tuple[str, ...]) -> Footage:
    """The segments of these folders, one after the other."""
    table = pa.concat_tables([pq.read_table(f"{folder}/clips.parquet") for folder in folders])
    parts = [safetensors.torch.load_file(f"{folder}/tensors.safetensors") for folder in folders]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def words(name: str) -> Words:
        return np.array(table.column(name).to_pylist(), np.str_)

    mask, latent = tensors["mask"], tensors["latent"]
    clips = Clips(
        clip_ids=tuple(table.column("clip_id").to_pylist()),
        motions=words("action"),
        kinds=np.full(table.num_rows, "real"),
        magnitude=table.column("magnitude").to_numpy().astype(np.float32),
        movement=tensors["description"].numpy(),
        latent=latent,
        text=tensors["text"],
        mask=mask,
        robust=mask,  # kernels' variants, which this benchmark does not ask for
        steady=mask,
        small=latent,
        frames=np.full(table.num_rows, latent.shape[2]),
    )
    ids, sources = words("clip_id"), words("source")
    return Footage(
        clips,
        words("person"),
        words("scene"),
        words("caption"),
        words("way"),
        words("twin"),
        np.where(sources == "", ids, sources),
    )


def rows_of(footage: Footage, rows: npt.NDArray[np.int64]) -> Footage:
    """Some of the rows, in this order."""
    clips, places = footage.clips, torch.from_numpy(rows)
    fields: Mapping[str, Any] = {
        name: getattr(clips, name)[places] for name in ("latent", "text", "mask", "robust", "steady", "small")
    } | {name: getattr(clips, name)[rows] for name in ("motions", "kinds", "magnitude", "movement", "frames")}
    of_rows = Clips(clip_ids=tuple(clips.clip_ids[row] for row in rows.tolist()), **fields)
    return Footage(
        of_rows,
        footage.people[rows],
        footage.scenes[rows],
        footage.captions[rows],
        footage.ways[rows],
        footage.twins[rows],
        footage.sources[rows],
    )
