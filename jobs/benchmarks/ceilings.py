"""What the machine can do at most, measured: copying, multiplying, random numbers; and the clock all benchmarks share.

Imports torch, numba and the standard library only, so that it runs wherever the numerical core does.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}  # far above any cache
_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices multiplied
_NUMBERS = {"cpu": 1 << 24, "cuda": 1 << 29}  # drawn at a time
_TAKES = 7


def timed(call: Callable[[], object], device: torch.device | str, repeats: int, warmup: int = 1) -> list[float]:
    """Seconds of each of the repeats, after warmup calls that do not count; by CUDA events on a GPU."""
    for _ in range(warmup):
        call()
    on_gpu = torch.device(device).type == "cuda"
    return [_by_events(call, torch.device(device)) if on_gpu else _by_clock(call) for _ in range(repeats)]


def _by_clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _by_events(call: Callable[[], object], device: torch.device) -> float:
    """Seconds on the device, from an idle device to an idle device."""
    with torch.cuda.device(device):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def copy_bandwidth(device: torch.device | str) -> float:
    """Bytes per second of a large copy, counting the bytes read and the bytes written. Median of 7."""
    count = _COPY_BYTES[torch.device(device).type]
    source = torch.ones(count // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    return 2 * count / statistics.median(timed(lambda: target.copy_(source), device, _TAKES, warmup=2))


def matmul_rate(device: torch.device | str, dtype: torch.dtype = torch.float32) -> float:
    """FLOP per second of a large square matrix product in dtype, as PyTorch is set up. Median of 7."""
    side = _SIDE[torch.device(device).type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    target = torch.empty_like(a)
    return 2 * side**3 / statistics.median(timed(lambda: torch.mm(a, b, out=target), device, _TAKES, warmup=2))


def random_rate(device: torch.device | str) -> float:
    """Float32 normals per second from torch's own generator (``normal_``, what ``torch.randn`` calls). Median of 7."""
    target = torch.zeros(_NUMBERS[torch.device(device).type], device=device)
    return target.numel() / statistics.median(timed(lambda: target.normal_(), device, _TAKES, warmup=2))


def random_bits_rate(device: torch.device | str) -> float:
    """Random bytes per second from torch's own generator (``random_`` on int32, 31 bits counted as 4 bytes)."""
    target = torch.zeros(_NUMBERS[torch.device(device).type], dtype=torch.int32, device=device)
    return 4 * target.numel() / statistics.median(timed(lambda: target.random_(), device, _TAKES, warmup=2))


def philox_rate(device: torch.device | str) -> float:
    """Philox4x32-10 calls per second of torch's own CUDA generator, drawing four bytes a call so that it computes more
    than it writes: what a well-written kernel reaches, not the card's limit."""
    target = torch.zeros(_NUMBERS["cuda"], dtype=torch.uint8, device=device)
    return target.numel() / 4 / statistics.median(timed(lambda: target.random_(), device, _TAKES, warmup=2))


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Processor, cores and threads in use, memory, GPU, versions, date: what a figure is worth nothing without."""
    facts: dict[str, Any] = {
        "date": date.today().isoformat(),
        "cpu": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "gpu": None,
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        facts |= {"gpu": card.name, "gpu_memory_gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return facts


def _processor() -> str:
    """The processor's model name, from Linux where there is one, and how many it says it has."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_machine(facts: Mapping[str, Any]) -> None:
    """The machine on two lines."""
    gpu = f", {facts['gpu']} with {facts['gpu_memory_gib']} GiB" if facts["gpu"] else ", no GPU"
    print(
        f"{facts['date']}: {facts['cpu']} ({facts['instructions']}), {facts['cores']} cores, {facts['threads']} "
        f"threads, {facts['memory_gib']} GiB{gpu}"
    )
    print(f"python {facts['python']}, torch {facts['torch']}, numba {facts['numba']}, numpy {facts['numpy']}\n")


def measured(device: torch.device | str) -> dict[str, float]:
    """All ceilings of a device: bytes/s, FLOP/s (fp32, on a GPU also bf16), normals/s, random bytes/s."""
    rates = {
        "copy_bytes_per_s": copy_bandwidth(device),
        "matmul_fp32_flop_per_s": matmul_rate(device, torch.float32),
        "normals_per_s": random_rate(device),
        "random_bytes_per_s": random_bits_rate(device),
    }
    if torch.device(device).type == "cuda":
        rates["matmul_bf16_flop_per_s"] = matmul_rate(device, torch.bfloat16)
    return rates


def print_ceilings(rates: Mapping[str, float], device: torch.device | str) -> None:
    """The ceilings in the units people use."""
    print(f"ceilings, measured on {device}:")
    print(f"  copy, bytes read and written {rates['copy_bytes_per_s'] / 1e9:10.1f} GB/s")
    print(f"  matrix product, fp32         {rates['matmul_fp32_flop_per_s'] / 1e9:10.0f} GFLOP/s")
    if "matmul_bf16_flop_per_s" in rates:
        print(f"  matrix product, bf16         {rates['matmul_bf16_flop_per_s'] / 1e12:10.1f} TFLOP/s")
    print(f"  torch.randn                  {rates['normals_per_s'] / 1e9:10.3f} Gnumbers/s")
    print(f"  torch random bits            {rates['random_bytes_per_s'] / 1e9:10.2f} GB/s\n")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their longest cell; the first is aligned left, the others right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())
    print()


def print_json(figures: Mapping[str, Any]) -> None:
    """Every figure on one line: always the last that a benchmark prints."""
    print(json.dumps(figures, allow_nan=False))
