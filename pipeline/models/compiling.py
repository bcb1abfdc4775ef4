"""A transformer's blocks as compiled code, by torch.compile: `model.compile`.

Blocks of one class share their code. It is made at the first step of a process, in seconds to minutes, and kept in a
folder of the machine, where the next process finds the greater part of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from torch import nn

from pipeline.errors import ConfigError

COMPILERS = ("g++", "clang++")


def compile_blocks(transformer: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Let a transformer's blocks be compiled when they are first called. Raises ConfigError where there are none, or no
    compiler."""
    if not blocks:
        raise ConfigError(
            f"model.compile: {type(transformer).__name__} has no list of blocks. Use model.compile: false."
        )
    names = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    if not any(map(shutil.which, names)):
        raise ConfigError(
            f"model.compile: this machine has none of the compilers that PyTorch asks for ({', '.join(names)}). "
            "Install one on every node, for example by `apt-get install g++`, or use model.compile: false."
        )
    for block in blocks:
        block.compile()
