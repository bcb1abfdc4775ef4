"""Several decoders for one actor, and the frames of its rows while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.video.decoder import Decoder

Row = dict[str, Any]
Frames = npt.NDArray[np.uint8]
Geometry = tuple[int, float, int, int]  # frames, fps, height, width


class Decoders:
    """Several decoders that take clips in turn, so that as many decode at once; which of them does, changes no bit.

    Each keeps its own copy of the last remote file.
    """

    def __init__(self, count: int, timeout: float, scaler: str = "pillow") -> None:
        self._all = [Decoder(timeout, scaler=scaler) for _ in range(count)]
        self._turns = cycle(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def submit_frames(
        self, uri: str, start_frame: int, count: int, fps: float, height: int, width: int
    ) -> Future[Frames]:
        return next(self._turns).submit_frames(uri, start_frame, count, fps, height, width)

    @property
    def pids(self) -> list[int]:
        """The processes that decode."""
        return [decoder.pid for decoder in self._all if decoder.pid is not None]

    def clip_bytes(self, uri: str, frames: int, fps: float, height: int, width: int) -> bytes | None:
        return next(self._turns).clip_bytes(uri, frames, fps, height, width)

    def close(self) -> None:
        for decoder in self._all:
            decoder.close()


def decoder_for(run: Run) -> Decoder:
    """A decoder with the time limit and the scaler of a run."""
    return Decoder(run.data.decode_timeout, scaler=run.data.scaler)


def decoders_for(run: Run, cpus: float) -> Decoders:
    """As many decoders as an actor of so many CPUs has beside the one it computes on, and at least one."""
    return Decoders(max(1, int(cpus) - 1), run.data.decode_timeout, run.data.scaler)


def decoded(
    decoder: Decoder | Decoders, run: Run, rows: list[Row], geometry: Geometry | None = None
) -> Iterator[tuple[Row, Frames | ClipError]]:
    """Each row with its frames, by default at the attribution geometry; the next clips, one for each decoder, decode
    while the caller computes."""
    frames, fps, height, width = geometry or run.geometry
    ahead = len(decoder) if isinstance(decoder, Decoders) else 1

    def start(row: Row) -> Future[Frames]:
        return decoder.submit_frames(row["uri"], row["start_frame"], frames, fps, height, width)

    waiting = deque(start(row) for row in rows[:ahead])
    for i, row in enumerate(rows):
        waiting.extend(start(later) for later in rows[i + ahead : i + ahead + 1])
        try:
            yield row, waiting.popleft().result()
        except ClipError as error:
            yield row, error
