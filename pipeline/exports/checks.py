"""What can be known to be wrong before a clip is cut: the layout, the sides, and the frames that a trainer reads."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa

from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.exports import clip_rows, frame_rules, weights
from pipeline.exports.formats import FORMATS, Format
from pipeline.exports.suites import SUITES
from pipeline.exports.trainers import ExportedSet
from pipeline.storage import stores


def layout(run: Run) -> Format:
    """The layout that is asked for. Raises ConfigError where there is none, or H.264 cannot have the clips' sides."""
    if run.export.format is None:
        raise ConfigError(f"export.format is not set: name one of {', '.join((*FORMATS, *SUITES))}.")
    one = FORMATS[run.export.format]
    for key, side in (("data.height", run.data.height), ("data.width", run.data.width)):
        if side % 2 and one.clips != "none":
            raise ConfigError(f"{key}={side}: H.264 in yuv420p needs an even height and width.")
    return one


def frames(run: Run, one: Format) -> list[str]:
    """What the trainer does to the clips that this run's user may not expect, a sentence each.

    Raises ConfigError where it reads other frames than those that were ranked, or at another speed, unless
    `export.other_frames` is `warn`.
    """
    d, e = run.data, run.export
    sentences = list[str]()
    rate = frame_rules.MODEL_RATES[e.model] if e.model is not None else d.fps
    reading = frame_rules.read_clip(one.rule, one.knows_rate, d.frames, d.fps, rate)
    difference = frame_rules.difference(reading, d.frames)
    if difference is not None:
        of = f"the rate of export.model={e.model}" if e.model is not None else "data.fps"
        sentence = (
            f"{one.trainer} at {rate:g} frames a second ({of}) {difference}. The clips were ranked by data.frames="
            f"{d.frames} at data.fps={d.fps:g}"
        )
        if e.other_frames == "refuse":
            raise ConfigError(
                f"export.format={one.name}: {sentence}. Rank clips of the rate and number of frames that this model "
                "is trained on, take another trainer, or accept it with export.other_frames=warn."
            )
        sentences.append(f"{sentence}.")
    if d.height % one.step or d.width % one.step:
        sentences.append(
            f"{one.trainer} takes sides that are multiples of {one.step}, so it changes the size of data.width x "
            f"data.height = {d.width} x {d.height}."
        )
    return sentences


def exported_set(run: Run, rows: pa.Table, folder: str) -> ExportedSet:
    """The clips as the layout's function takes them. They lie, for the reader, at `export.path`; without it where they
    are written, or on s3:// in the folder in which the trainer is started."""
    d = run.data
    return ExportedSet(rows.to_pylist(), d.frames, d.fps, d.height, d.width, base(run, folder))


def base(run: Run, folder: str) -> str:
    """Where a reader will find the folder."""
    fs, bare = stores.place(folder)
    return run.export.path or (os.path.abspath(bare) if "file" in fs.protocol else ".")


def deviation(rows: pa.Table, one: Format) -> float:
    """The largest relative difference between the share that a clip gets of training and its weight."""
    shares = rows.column("weight").to_numpy().astype(np.float64)
    columns = rows.select(["dataset", "repeats", "weight"]).to_pylist()
    return weights.deviation(shares, np.array(clip_rows.draws(columns, one), np.float64))
