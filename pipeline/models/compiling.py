"""A transformer's blocks as compiled code, by torch.compile: `model.compile`.

Blocks of one class share their code. It is made at the first step of a process, in seconds to minutes, and kept in a
folder of the machine, where the next process finds the greater part of it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.contract import VideoModel

COMPILER = "clang++" if sys.platform == "darwin" else "g++"


def check_compiler() -> None:
    """Raise ConfigError where PyTorch would find no compiler on this machine."""
    compiler = os.environ.get("CXX") or COMPILER
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"model.compile: this machine has no {compiler}, the compiler that PyTorch asks for. Install one on every "
            "node, for example by `apt-get install g++`, or use model.compile: false."
        )


def compile_blocks(transformer: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Let a transformer's blocks be compiled when they are first called. Raises ConfigError where there are none, or no
    compiler."""
    if not blocks:
        raise ConfigError(
            f"model.compile: {type(transformer).__name__} has no list of blocks. Use model.compile: false."
        )
    check_compiler()
    for block in blocks:
        block.compile()


def keeps_graph(model: VideoModel) -> bool:
    """Whether a second loss may go back through the graph of one forward pass.

    Under checkpointing a graph that is kept for it keeps all that was computed again with it: the very memory that
    checkpointing saves. Compiled code gives its buffers away. A second forward pass is a quarter of a loss's time.
    """
    return not (model.checkpointing or is_compiled(model))


def is_compiled(model: VideoModel) -> bool:
    """Whether its blocks are compiled code. A model of an in-house adapter may not know of it."""
    return bool(getattr(model, "compiled", False))
