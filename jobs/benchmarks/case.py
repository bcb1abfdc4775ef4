"""One measurement in a fresh process, so that no case inherits another's memory, threads or compiled code.

``run(Case(...), python)`` starts ``python -m jobs.benchmarks.case``, with a time limit and a memory cap, and returns
what it measured or ``{"not_run": reason}``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jobs.benchmarks import accuracy
from jobs.benchmarks.ceilings import timed
from jobs.benchmarks.projectors import SUBJECTS, Call, Subject, reference

DIM = 512
_ROOT = Path(__file__).resolve().parents[2]
_TINY = 4096  # coordinates of the call that loads and compiles
_SHARE = 0.6  # of the memory that is free when a case starts


@dataclass(frozen=True)
class Case:
    """What to measure. ``reference`` coordinates are projected the reference's way between the repeats."""

    subject: str
    coordinates: int
    vectors: int = 1
    threads: int = 2
    repeats: int = 1
    reference: int = 0  # coordinates of the reference that is measured between the repeats; 0: none
    reference_repeats: int = 1
    accuracy_seeds: int = 0  # above 0: the error of the cosines, and no speed
    timeout: float = 240.0  # seconds

    @property
    def found(self) -> Subject:
        return SUBJECTS[self.subject]


def run(case: Case, python: str = sys.executable) -> dict[str, Any]:
    """Measure it in a process of that interpreter: the dictionaries of `speed` and `errors`, or ``not_run``."""
    free = _free_bytes()
    cap = int(free * _SHARE)
    needed = case.found.bytes_needed(case.coordinates, case.vectors, DIM)
    if needed > cap:
        return {"not_run": f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"}
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "jobs.benchmarks.case", json.dumps(asdict(case)), str(cap)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=case.timeout)
    except subprocess.TimeoutExpired:
        return {"not_run": f"over {case.timeout:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"not_run": lines[-1][:160]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def speed(case: Case) -> dict[str, Any]:
    """Seconds of each repeat and of the references between them, and the peak memory above that before the call.

    Values and libraries are in memory beforehand; what `prepare` holds counts. The first call at full size is the one
    whose memory is measured; it counts for the time only if it is the only one.
    """
    torch.set_num_threads(case.threads)
    values = torch.randn(case.vectors, case.coordinates, generator=torch.Generator().manual_seed(1))
    tiny = values[:, :_TINY].contiguous()
    case.found.prepare(tiny.shape[1], DIM, 0)(tiny)
    reference(tiny, DIM, 0)
    beside = values[:, : case.reference]

    def references(count: int) -> list[float]:
        return timed(lambda: reference(beside, DIM, 0), "cpu", count if case.reference else 0, warmup=0)

    once = case.repeats == 1  # then the first call is the one timed, and the reference lies around it
    taken = references(1) if once else []
    call, first, extra = _first(case, values)
    seconds = [first] if once else []
    for turn in range(max(case.repeats, case.reference_repeats)):
        taken += references(int(turn < case.reference_repeats))
        if not once and turn < case.repeats:
            seconds += timed(lambda: call(values), "cpu", 1, warmup=0)
    found = {"seconds": statistics.median(seconds), "repeats": len(seconds), "extra_bytes": extra}
    if taken:
        scale = case.coordinates / case.reference
        found |= {"reference_seconds": statistics.median(taken) * scale, "reference_repeats": len(taken)}
        found["ratio"] = found["reference_seconds"] / found["seconds"]
    return found


def _first(case: Case, values: torch.Tensor) -> tuple[Call, float, int]:
    """The prepared call, the seconds of calling it for the first time, the bytes that both added at their peak."""
    before = _reset_peak()
    call = case.found.prepare(case.coordinates, DIM, 0)
    (first,) = timed(lambda: call(values), "cpu", 1, warmup=0)
    return call, first, _status("VmHWM") - before


def errors(case: Case) -> dict[str, Any]:
    """The error of the cosines: `accuracy.rms_errors`."""
    torch.set_num_threads(case.threads)
    prepare: Callable[[int], Call] = partial(case.found.prepare, case.coordinates, DIM)
    return dict(accuracy.rms_errors(prepare, range(case.accuracy_seeds), case.coordinates, DIM))


def _reset_peak() -> int:
    """Give freed memory back, set the kernel's high-water mark to what is resident now, and return that: bytes.

    Without it the mark may still stand where importing and compiling left it. Linux and glibc only.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    """Bytes, from the kernel's figures of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def main() -> None:
    """Measure the case of the first argument within the bytes of the second; the result is the last line."""
    case, cap = Case(**json.loads(sys.argv[1])), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    print("\n" + json.dumps(errors(case) if case.accuracy_seeds else speed(case)))


if __name__ == "__main__":
    main()
