"""What a configuration is to fit: the videos of a place, and the machine that is at hand."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from statistics import median

import numpy as np
import pyarrow.compute as pc

from pipeline.errors import ClipError, ConfigError
from pipeline.inputs import videos
from pipeline.storage.parallel import cores
from pipeline.video.decoder import Decoder

OPENED = 8  # videos that are opened: so many shapes and lengths tell those of the rest
TIMEOUT = 60.0  # seconds without a packet after which a video is given up


@dataclass(frozen=True)
class Look:
    """One video as it was opened: pixels on the screen, frames a second, length."""

    height: int
    width: int
    fps: float
    seconds: float


@dataclass(frozen=True)
class Survey:
    """The videos of a place: how many, their bytes together, how many have a caption, and a few that were opened."""

    count: int
    size: int
    captioned: int
    looks: tuple[Look, ...]

    @property
    def shape(self) -> float:
        """Height over width."""
        return float(median(look.height / look.width for look in self.looks))

    @property
    def area(self) -> float:
        """Pixels of a frame."""
        return float(median(look.height * look.width for look in self.looks))

    def seconds(self, share: float) -> float:
        """The length that this share of the opened videos do not reach."""
        return float(np.quantile([look.seconds for look in self.looks], share, method="lower"))

    def sentence(self) -> str:
        heights, widths = [look.height for look in self.looks], [look.width for look in self.looks]
        rates, lengths = [look.fps for look in self.looks], [look.seconds for look in self.looks]
        return (
            f"{self.count:,} videos, {self.size / 1e6:,.1f} MB, {self.captioned:,} with a caption; {len(self.looks)} "
            f"opened: {_range(widths)} x {_range(heights)} pixels, {_range(rates)} frames a second, "
            f"{_range(lengths)} s long"
        )


@dataclass(frozen=True)
class Machine:
    """What this machine has: CPUs that this process may use, bytes of memory, bytes of each GPU."""

    cpus: int
    memory: int
    gpus: tuple[int, ...] = ()

    def sentence(self) -> str:
        gpus = ", ".join(f"{size / 2**30:.0f} GiB" for size in self.gpus)
        shown = f"{len(self.gpus)} GPUs ({gpus})" if self.gpus else "no GPU"
        return f"{self.cpus} CPUs, {self.memory / 2**30:.0f} GiB of memory, {shown}"


def survey(where: str, key: str) -> Survey:
    """Look at the videos of a folder, glob or manifest. Which are opened depends on their paths alone.

    Raises ConfigError, naming `key`, where there are none or none of those that were tried can be opened.
    """
    table = videos.videos(where, key)
    rows = table.select(["uri", "relative", "error"]).to_pylist()
    rows.sort(key=lambda row: hashlib.blake2b(str(row["relative"]).encode(), digest_size=8).digest())
    looks: list[Look] = []
    faults: list[str] = []
    with Decoder(TIMEOUT) as decoder:
        for row in rows:
            if len(looks) == OPENED or len(faults) == OPENED:
                break
            try:
                if row["error"] is not None:
                    raise ClipError.of_row(row["error"])
                looks.append(Look(**decoder.look(row["uri"])))
            except ClipError as error:
                faults.append(f"{row['relative']}: {error}")
    if not looks:
        raise ConfigError(
            f"{key}={where!r}: none of the {len(faults)} videos that were tried can be opened, such as {faults[0]}. "
            "Name a folder of videos that play."
        )
    captioned = pc.sum(pc.not_equal(table.column("caption"), "")).as_py()
    return Survey(table.num_rows, pc.sum(table.column("size")).as_py() or 0, captioned, tuple(looks))


def machine() -> Machine:
    import torch  # takes seconds, and is needed for the GPUs alone

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = tuple(int(torch.cuda.get_device_properties(i).total_memory) for i in range(torch.cuda.device_count()))
    return Machine(cores(), memory, gpus)


def _range(values: list[int] | list[float]) -> str:
    low, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
