"""The projection on a GPU: seconds per vector of each kind at the size of Wan2.1-1.3B, beside what the card allows.

A part of ``python -m jobs.benchmarks.projection``; ``python -m jobs.benchmarks.projection_gpu`` is this part alone.
"""

from __future__ import annotations

import math
import statistics
from importlib import import_module
from typing import Any

import torch

from jobs.benchmarks import ceilings
from jobs.benchmarks.projectors import KINDS

WAN = 1_418_996_800  # coordinates of Wan2.1-1.3B
QUICK = 1 << 24
_TINY = 1 << 22  # coordinates of the call that compiles
_ROWS = 8  # entries of a column that one Philox call gives
ASKS = {("gaussian", 8): 0.125, ("sketched_gaussian", 8): 0.005}  # seconds a vector


def bounds(coordinates: int, vectors: int, dim: int, found: dict[str, float]) -> dict[str, float]:
    """Seconds of a pass that no kernel on this card goes below, from its measured ceilings.

    ``read``: bf16 values once, at the rate of a copy. ``philox``: a dense Gaussian's coordinates x dim / 8 calls at the
    rate of torch's own generator (a kernel of fewer rounds or more lanes can beat it). ``matmul``: its products.
    """
    return {
        "read": 2 * coordinates * vectors / found["copy_bytes_per_s"],
        "philox": coordinates * (dim / _ROWS) / found["philox_calls_per_s"],
        "matmul": 2.0 * coordinates * dim * vectors / found["matmul_bf16_flop_per_s"],
    }


def measure(coordinates: int = WAN, dim: int = 512, repeats: int = 3) -> dict[str, Any]:
    """Every kind at 1 and 8 bf16 vectors on the first GPU; prints as it goes, and returns the figures."""
    device = torch.device("cuda", 0)
    found = {**ceilings.measured(device), "philox_calls_per_s": ceilings.philox_rate(device)}
    ceilings.print_ceilings(found, device)
    print(f"  torch's Philox, 10 rounds    {found['philox_calls_per_s'] / 1e9:10.1f} Gcalls/s\n")
    rows = []
    for vectors in (1, 8):
        limit = bounds(coordinates, vectors, dim, found)
        print(f"{vectors} bf16 vectors of {coordinates:,} coordinates to {dim}: a pass takes at least")
        print(
            f"  {limit['read']:.4f} s to read them; a dense Gaussian {limit['philox']:.3f} s of Philox calls at torch's"
        )
        print(f"  rate, {limit['matmul']:.4f} s of tensor cores\n")
        values = torch.empty(vectors, coordinates, dtype=torch.bfloat16, device=device).normal_()
        rows += [{**_kind(kind, values, dim, repeats), "bounds": limit} for kind in KINDS]
        del values
        torch.cuda.empty_cache()
    _table(rows, coordinates)
    return {"ceilings": found, "coordinates": coordinates, "dim": dim, "rows": rows}


def _kind(kind: str, values: torch.Tensor, dim: int, repeats: int) -> dict[str, Any]:
    """Seconds by CUDA events, and the allocator's peak above what was held before the call."""
    row: dict[str, Any] = {"name": kind, "vectors": len(values)}
    made: Any = import_module("pipeline.projection").Projection
    try:
        project = made(kind=kind, dim=dim, seed=0)
        project(values[:, :_TINY].contiguous())
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(ceilings.timed(lambda: project(values), values.device, repeats))
        finite = bool(torch.isfinite(project(values)).all())
    except (ValueError, torch.OutOfMemoryError) as error:
        print(f"  {kind}: not run: {error}")
        return {**row, "not_run": str(error)[:160]}
    if not finite:
        raise FloatingPointError(f"projection.kind={kind!r} gave features that are not finite from normal values")
    extra = torch.cuda.max_memory_allocated() - before
    print(f"  {kind}: {seconds:.4f} s")
    return {**row, "seconds": seconds, "repeats": repeats, "extra_bytes": extra}


def _table(rows: list[dict[str, Any]], coordinates: int) -> None:
    """Seconds a vector, the share of the bound that holds, memory, and the ask where there is one."""
    lines = []
    for row in rows:
        name, vectors = row["name"], row["vectors"]
        if "not_run" in row:
            lines.append([name, str(vectors), "not run", "", "", "", "", ""])
            continue
        each, limit = row["seconds"] / vectors, row["bounds"]
        least = max(limit.values()) if name == "gaussian" else limit["read"]
        ask = ASKS.get((name, vectors), math.nan)
        verdict = "" if math.isnan(ask) else f"<= {ask * 1e3:.0f} ms: " + ("yes" if each <= ask else "NO")
        bytes_per_second = 2 * coordinates / each / 1e9
        figures = [
            f"{row['seconds']:.4f}",
            f"{each * 1e3:.2f}",
            f"{bytes_per_second:.0f}",
            f"{least / row['seconds']:.2f}",
        ]
        lines.append([name, str(vectors), *figures, f"{row['extra_bytes'] / 2**20:.0f}", verdict])
    print()
    header = ["kind", "vectors", "s a pass", "ms a vector", "GB/s read", "bound / time", "extra MiB", "ask"]
    ceilings.print_table(header, lines)


def main() -> None:
    """The GPU's part alone; the JSON line last."""
    if not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU here; python -m jobs.benchmarks.projection measures the CPU")
    machine = ceilings.machine()
    ceilings.print_machine(machine)
    ceilings.print_json({"machine": machine, "gpu": measure()})


if __name__ == "__main__":
    main()
