"""The part of a configuration that is about handing clips on: in whose layout, which of them, and where to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.operations import Model

Format = Literal[
    "videofolder",
    "webdataset",
    "musubi",
    "diffusion-pipe",
    "diffsynth",
    "finetrainers",
    "ai-toolkit",
    "simpletuner",
    "ltx-2",
    "fastvideo",
    "data-juicer",
    "ids",
    "table",
    "vbench2",
    "videophy2",
    "vmbench",
    "phyground",
    "physics-iq",
]
TrainedModel = Literal["wan", "wan2.2-5b", "hunyuan", "framepack", "ltx-video", "ltx-2", "cosmos-predict2"]


class Export(Model):
    """For jobs.export: clips of an arm as a trainer reads them, or generated videos as an evaluation suite does."""

    format: Format | None = Field(None, description="the layout; exports.md lists what each one is")
    arm: str = Field("selected", min_length=1, description="the arm whose clips, or whose generated videos, go out")
    group: str = Field("all", min_length=1, description="`all`, or the group of queries whose selection goes out")
    name: str | None = Field(
        None, pattern=r"^\w[\w.-]{0,99}$", description="the name below ROOT/exports; null: FORMAT-ARM-GROUP"
    )
    to: str | None = Field(
        None, min_length=1, description="the folder that is written, local or s3://; null: ROOT/exports/NAME/files"
    )
    path: str | None = Field(
        None, min_length=1, description="where the folder will lie for the trainer; null: where it is written"
    )
    model: TrainedModel | None = Field(
        None, description="the model that is trained on it, which fixes its rate; null: one that reads data.fps"
    )
    other_frames: Literal["refuse", "warn"] = Field(
        "refuse", description="what to do where the trainer would read other frames, or at another speed"
    )
    datasets: int = Field(
        4, ge=1, le=64, description="weights become at most so many data sets, where a trainer repeats whole ones"
    )
    video: Literal["encode", "copy"] = Field(
        "encode",
        description="copy: the bytes of a video that already is the clip, frame for frame, are taken as they are; the "
        "others are encoded",
    )
    crf: int = Field(14, ge=1, le=30, description="x264's constant rate factor: the lower, the nearer to the frames")
    suite: str | None = Field(
        None, min_length=1, description="the evaluation suite's own list of prompts (.json, .csv, .txt)"
    )
    results: tuple[str, ...] = Field(
        (), description="a suite's result files, read into evaluation/ instead of exporting; local or s3://"
    )
