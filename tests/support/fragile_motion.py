"""The motion stage's own worker, which some files end. Actors import this module, and no test with it."""

from __future__ import annotations

import signal
from typing import Any

from pipeline import models
from pipeline.attribution.workers import MotionWorker
from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.video.decoder import Decoder

# What stands in a module `deadly_codec` where actors can import it.
CODEC = """
import os, signal  # noqa: E402
from pipeline.video.frames import decode as plain, segments  # noqa: E402

def decode(path, **wanted):
    if "deadly" in os.path.basename(path):
        signal.raise_signal(signal.SIGSEGV)
    return plain(path, **wanted)
"""


class FragileMotion(MotionWorker):
    """Its decoder child dies of some files and it itself of others."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, models.grid(run), 0)
        self.decoder = Decoder(30, functions="deadly_codec")

    def measure(self, row: dict[str, Any], frames: Any) -> dict[str, Any]:
        if "fatal" in row["uri"] and not isinstance(frames, ClipError):
            signal.raise_signal(signal.SIGSEGV)
        return super().measure(row, frames)
