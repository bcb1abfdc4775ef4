"""What is asked: one frozen pydantic model per stage, recipes, and messages that say what is wrong."""

from __future__ import annotations

from pipeline.config.loading import RECIPES, load, load_line, load_record, override, parse, recipes
from pipeline.config.run import (
    LITTLE_NOISE,
    NUMERICS,
    PACKAGE,
    TIMED,
    Arm,
    Data,
    Evaluate,
    Finetune,
    Motion,
    Ranking,
    Run,
    VideoModelConfig,
)

__all__ = [
    "LITTLE_NOISE",
    "NUMERICS",
    "PACKAGE",
    "RECIPES",
    "TIMED",
    "Arm",
    "Data",
    "Evaluate",
    "Finetune",
    "Motion",
    "Ranking",
    "Run",
    "VideoModelConfig",
    "load",
    "load_line",
    "load_record",
    "override",
    "parse",
    "recipes",
]
