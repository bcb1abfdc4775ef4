"""What is asked: one frozen pydantic model per stage, recipes, and messages that say what is wrong."""

from __future__ import annotations

from pipeline.config.run import (
    NUMERICS,
    PACKAGE,
    RECIPES,
    Arm,
    Data,
    Evaluate,
    Finetune,
    Motion,
    Ranking,
    Run,
    VideoModelConfig,
    load,
    load_line,
    override,
    parse,
    recipes,
)

__all__ = [
    "NUMERICS",
    "PACKAGE",
    "RECIPES",
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
    "override",
    "parse",
    "recipes",
]
