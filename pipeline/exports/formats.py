"""The layouts that an export may have: for each trainer what it reads, how it chooses frames, how it has weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.exports import frame_rules, trainers
from pipeline.exports.frame_rules import FrameRule
from pipeline.exports.trainers import ExportedSet

Weighting = Literal["column", "rows", "data sets", "none"]


@dataclass(frozen=True)
class Format:
    """A layout. `write` gives its files but for the clips: texts by their paths in the export.

    `weighting`: weights are a column for the reader, repeated rows, repeats (or with `probability` the probability) of
    whole data sets, or cannot be had. `knows_rate`: the model is told a file's rate. `step`: sides are multiples of it,
    or the trainer changes their size.
    """

    name: str
    trainer: str
    write: Callable[[ExportedSet], dict[str, str]]
    rule: FrameRule = frame_rules.whole_file
    knows_rate: bool = False
    weighting: Weighting = "column"
    probability: bool = False
    folder: str = "clips"
    folder_a_dataset: bool = False  # the trainer reads folders, so each data set has one of its own
    captions: bool = True  # a text file beside each clip
    clips: Literal["files", "tars", "none"] = "files"
    step: int = 2


FORMATS = {
    layout.name: layout
    for layout in (
        Format("videofolder", "Hugging Face VideoFolder", trainers.videofolder, knows_rate=True, captions=False),
        Format("webdataset", "WebDataset", trainers.webdataset, knows_rate=True, clips="tars"),
        Format(
            *("musubi", "musubi-tuner", trainers.musubi, frame_rules.musubi),
            weighting="data sets",
            step=16,
        ),
        Format(
            *("diffusion-pipe", "diffusion-pipe", trainers.diffusion_pipe, frame_rules.diffusion_pipe),
            weighting="data sets",
            folder_a_dataset=True,
            step=16,
        ),
        Format("diffsynth", "DiffSynth", trainers.diffsynth, frame_rules.diffsynth, weighting="rows", step=16),
        Format("finetrainers", "finetrainers", trainers.finetrainers, frame_rules.evenly, weighting="rows", step=16),
        Format(
            *("ai-toolkit", "ai-toolkit", trainers.ai_toolkit, frame_rules.evenly),
            weighting="data sets",
            folder_a_dataset=True,
            step=16,
        ),
        Format(
            *("simpletuner", "SimpleTuner", trainers.simpletuner, frame_rules.simpletuner),
            weighting="data sets",
            probability=True,
            folder_a_dataset=True,
            step=16,
        ),
        Format("ltx-2", "the LTX-2 trainer", trainers.ltx_2, frame_rules.ltx_2, True, weighting="none", step=32),
        Format(
            *("fastvideo", "FastVideo", trainers.fastvideo, frame_rules.fastvideo),
            weighting="rows",
            folder="videos",
            step=16,
        ),
        Format("data-juicer", "data-juicer", trainers.data_juicer, knows_rate=True, captions=False),
        Format("ids", "a list of ids", trainers.ids, knows_rate=True, clips="none"),
        Format("table", "a table", trainers.table, knows_rate=True, clips="none"),
    )
}
