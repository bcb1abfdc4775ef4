"""A pilot of index_clips, on a process as light as its actors: no torch. Also the peak memory of a process."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.config import Run
from pipeline.operations.pools import Measure
from pipeline.video.decoders import decoder_for
from pipeline.video.indexing import index

Row = dict[str, Any]

PART_SECONDS = 120.0  # a part of a pilot that took as long measures no further clip or video
FEWEST = 3  # ... once it has as many


@dataclass(frozen=True)
class Report:
    """What a pilot brings back: measures of stages, the rows of its clips, and why others could not be measured."""

    measures: dict[str, Measure]
    seconds: float  # that it took, once its process was there
    clips: list[Row] = field(default_factory=list)
    segments: float = 0.0  # of a video, on average
    problems: list[str] = field(default_factory=list)


def index_videos(run: Run, videos: list[Row]) -> Report:
    """Index videos as an actor of index_clips does; the first segment of each that could be is a clip."""
    start = time.perf_counter()
    seconds, clips, problems, count = list[float](), list[Row](), list[str](), 0
    with decoder_for(run) as decoder:
        for video in videos:
            if sum(seconds) > PART_SECONDS and len(seconds) >= FEWEST:
                break
            begun = time.perf_counter()
            rows = index(video, run.data, decoder, run.seed)
            seconds.append(time.perf_counter() - begun)
            usable = [row for row in rows if row["error"] is None]
            clips += usable[:1]
            count += len(usable)
            problems += [row["error"] for row in rows[:1] if not usable]
        child = 0 if decoder.pid is None else peak_memory(decoder.pid)
    measure = Measure(
        rows=len(seconds),
        compute=max(fmean(seconds[1:] or seconds), 1e-4),  # the first waits for the decoder to start
        load=seconds[0],
        memory=peak_memory(os.getpid()),
        decoder_memory=child,
    )
    return Report({"index_clips": measure}, time.perf_counter() - start, clips, count / len(seconds), problems)


def peak_memory(pid: int) -> int:
    """The most main memory that a process had, in bytes. OSError where the process is not there.

    Where the system keeps no peak of others' processes (no /proc), it is zero for a child: its share is in the margin.
    """
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        match = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        return 0 if match is None else int(match[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if pid == os.getpid() else 0
