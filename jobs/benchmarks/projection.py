"""Benchmark of the projection: ``python -m jobs.benchmarks.projection [--quick | --gpu]``.

Prints the machine and its ceilings, then this project's kinds and the peers' projectors beside the reference (seeded
``torch.randn`` blocks of 8,192 columns, 2 threads), measured alternately in one process, so that a ratio means
something on a machine that others use too. Then the error of the cosines, on a GPU the kinds at the size of
Wan2.1-1.3B, and last one line of JSON. About 15 minutes on two idle cores; --quick takes small sizes and no peers, for
the tests; --gpu is the GPU's part alone.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.benchmarks import ceilings
from jobs.benchmarks.ceilings import timed
from jobs.benchmarks.projectors import (
    ENTRIES,
    KINDS,
    NOT_ON_A_CPU,
    PEERS,
    REFERENCE,
    SUBJECTS,
    Call,
    Subject,
    reference,
    versions,
)
from pipeline.projection import Projection
from pipeline.statistics.intervals import standard_error

Row = dict[str, Any]
TRUTH = "true Gaussian"
NOT_INSTALLED = "not installed; pip install -e '.[bench]' brings it"
DIM = 512
_ROOT = Path(__file__).resolve().parents[2]
_WARM = 4096  # coordinates of the call that loads and compiles
_SHARE = 0.6  # of the memory that is free when a case starts
VECTORS = 32  # whose cosines are compared

WAN = 1_418_996_800  # coordinates of Wan2.1-1.3B
QUICK_GPU = 1 << 24
_TINY = 1 << 22  # coordinates of the call that compiles on a GPU
_ROWS = 8  # entries of a column that one Philox call gives


@dataclass(frozen=True)
class Plan:
    """Sizes (coordinates) and how often."""

    short: int = 1_000_000
    long: int = 10_000_000
    longest: int = 100_000_000
    accuracy: int = 100_000
    seeds: int = 128  # of our kinds
    peer_seeds: int = 12  # of the peers and of ``torch.randn`` at full size
    repeats: int = 5
    quick: bool = False


QUICK = Plan(20_000, 50_000, 100_000, 5_000, 16, 2, 2, quick=True)


# --- one measurement --------------------------------------------------------------------------------------------------


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
    def projector(self) -> Subject:
        return SUBJECTS[self.subject]


def measured_alone(case: Case) -> dict[str, Any]:
    """Measure it in a fresh process, so that no case inherits another's memory, threads or compiled code, with a time
    limit and a memory cap: the dictionaries of `speed_of` and `errors_of`, or ``{"not_run": reason}``."""
    free = _free_bytes()
    cap = int(free * _SHARE)
    needed = case.projector.bytes_needed(case.coordinates, case.vectors, DIM)
    if needed > cap:
        return {"not_run": f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"}
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    words = ["--case", json.dumps(asdict(case)), "--cap", str(cap)]
    command = [sys.executable, "-m", "jobs.benchmarks.projection", *words]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=case.timeout)
    except subprocess.TimeoutExpired:
        return {"not_run": f"over {case.timeout:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"not_run": lines[-1][:160]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def speed_of(case: Case) -> dict[str, Any]:
    """Seconds of each repeat and of the references between them, and the peak memory above that before the call.

    Values and libraries are in memory beforehand; what `prepare` holds counts. The first call at full size is the one
    whose memory is measured; it counts for the time only if it is the only one.
    """
    torch.set_num_threads(case.threads)
    values = torch.randn(case.vectors, case.coordinates, generator=torch.Generator().manual_seed(1))
    tiny = values[:, :_WARM].contiguous()
    case.projector.prepare(tiny.shape[1], DIM, 0)(tiny)
    reference(tiny, DIM, 0)
    reference_rows = values[:, : case.reference]

    def references(count: int) -> list[float]:
        return timed(lambda: reference(reference_rows, DIM, 0), "cpu", count if case.reference else 0, warmup=0)

    once = case.repeats == 1  # then the first call is the one timed, and the reference lies around it
    references_once = references(1) if once else []
    call, first, extra = _first(case, values)
    seconds = [first] if once else []
    for turn in range(max(case.repeats, case.reference_repeats)):
        references_once += references(int(turn < case.reference_repeats))
        if not once and turn < case.repeats:
            seconds += timed(lambda: call(values), "cpu", 1, warmup=0)
    figures = {"seconds": statistics.median(seconds), "repeats": len(seconds), "extra_bytes": extra}
    if references_once:
        scale = case.coordinates / case.reference
        figures |= {
            "reference_seconds": statistics.median(references_once) * scale,
            "reference_repeats": len(references_once),
        }
        figures["ratio"] = figures["reference_seconds"] / figures["seconds"]
    return figures


def _first(case: Case, values: torch.Tensor) -> tuple[Call, float, int]:
    """The prepared call, the seconds of calling it for the first time, the bytes that both added at their peak."""
    before = _reset_peak()
    call = case.projector.prepare(case.coordinates, DIM, 0)
    (first,) = timed(lambda: call(values), "cpu", 1, warmup=0)
    return call, first, _status("VmHWM") - before


def errors_of(case: Case) -> dict[str, Any]:
    """The error of the cosines: `rms_errors`."""
    torch.set_num_threads(case.threads)
    prepare: Callable[[int], Call] = partial(case.projector.prepare, case.coordinates, DIM)
    return dict(rms_errors(prepare, range(case.accuracy_seeds), case.coordinates, DIM))


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


def print_case(case_text: str, cap: int) -> None:
    """Measure the case within so many bytes; the result is the last line."""
    case = Case(**json.loads(case_text))
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    print("\n" + json.dumps(errors_of(case) if case.accuracy_seeds else speed_of(case)))


# --- seconds and memory -----------------------------------------------------------------------------------------------


def own_cases(plan: Plan) -> Iterator[Case]:
    """Ours: 1 and 8 vectors with 2 threads and with 1, and the largest size alone; the reference beside most.

    At the long size it is run in full beside one dense kind and the sketch, and a part of it beside the others.
    """
    if not plan.quick:
        yield Case(ENTRIES, plan.short, threads=1, repeats=plan.repeats)
    for kind in KINDS:
        often = plan.repeats if kind == "gaussian" else 2
        one = Case(kind, plan.short, repeats=plan.repeats, reference=plan.short, reference_repeats=often)
        yield one
        yield replace(one, vectors=8, reference_repeats=2)
        if not plan.quick:
            yield replace(one, threads=1, reference=0)
            yield replace(one, threads=1, vectors=8, reference=0)
        in_full = kind in ("gaussian", "sketched_gaussian")
        vectors = plan.long if in_full else plan.short
        long = Case(kind, plan.long, repeats=min(3, plan.repeats), reference=vectors)
        yield long
        yield replace(long, vectors=8, reference=plan.short)
        yield Case(kind, plan.longest)


def reference_cases(plan: Plan) -> Iterator[Case]:
    """The reference's own memory, and how linear its time is."""
    yield Case(REFERENCE, plan.short)
    if not plan.quick:
        yield Case(REFERENCE, plan.short, vectors=8)
        yield Case(REFERENCE, plan.long, reference=plan.short, reference_repeats=2)


def peer_cases(plan: Plan) -> Iterator[Case]:
    """Theirs: 1 and 8 vectors at the short size, one at the long; a slow one is run once."""
    for peer in PEERS:
        yield Case(peer.name, plan.short, repeats=2, reference=plan.short, reference_repeats=2)
        yield Case(peer.name, plan.short, vectors=8, reference=plan.short)
        yield Case(peer.name, plan.long, reference=plan.short)


def measure(cases: Iterator[Case]) -> list[Row]:
    """Run each case whose subject is installed, and print a line of it."""
    rows = []
    for each in cases:
        row: Row = {
            "name": each.subject,
            "coordinates": each.coordinates,
            "vectors": each.vectors,
            "threads": each.threads,
            **run(each),
        }
        print(line(row), flush=True)
        rows.append(row)
    return rows


def run(each: Case) -> Row:
    """The case's figures, or why there are none."""
    distribution = each.projector.distribution
    if distribution is not None:
        if each.projector.short_only and each.coordinates == Plan.long:
            return {"not_run": each.projector.short_only}
        if distribution not in versions():
            return {"not_run": NOT_INSTALLED}
    return measured_alone(each)


def line(row: Row) -> str:
    """Name, coordinates, vectors, threads, seconds (times it was run), the reference beside it, ratio, memory."""
    what = f"{row['name']:23} {row['coordinates']:>11,} {row['vectors']:>2} {row['threads']:>2}"
    if "not_run" in row:
        return f"{what}  not run: {row['not_run']}"
    own = f"{row['seconds']:>9.4f} ({row['repeats']})"
    reference = f"{row['reference_seconds']:>9.3f} ({row['reference_repeats']})" if "ratio" in row else " " * 13
    ratio = f"{row['ratio']:>8.2f}" if "ratio" in row else " " * 8
    return f"{what} {own} {reference} {ratio} {row['extra_bytes'] / 2**20:>9.1f}"


def speeds(plan: Plan) -> list[Row]:
    """The table of seconds and memory."""
    print(
        "seconds: median (runs); reference: measured between the runs, in the same process, scaled to the coordinates"
    )
    print(f"{'projection to 512':23} {'coordinates':>11} {'B':>2} {'th':>2} {'seconds':>13} ", end="")
    print(f"{'reference':>13} {'ratio':>8} {'extra MiB':>9}")
    rows = measure(own_cases(plan)) + measure(reference_cases(plan))
    if not plan.quick:
        rows += measure(peer_cases(plan))
        for name, reason in NOT_ON_A_CPU.items():
            rows.append({"name": name, "not_run": reason})
            print(f"{name:23}  not run: {reason}")
        print(*(f"  {peer.name}: {peer.note}" for peer in PEERS if peer.note), sep="\n")
    else:
        print("peers: not run: --quick")
    print()
    return rows


# --- the error of the cosines -----------------------------------------------------------------------------------------


# For a Gaussian P the cosine of Pg and Ph has, to first order in 1/k, the standard deviation (1 - rho^2) / sqrt(k),
# where rho is the cosine of g and h (Fisher 1915). So one number a set of vectors: the root mean square over all pairs.


def sets(coordinates: int) -> dict[str, Tensor]:
    """Two sets of 32 vectors [32, n]: nearly orthogonal ones, and some that share a part (cosines from 0 to 0.97)."""
    generator = torch.Generator().manual_seed(20_26)
    noise = torch.randn(2, VECTORS, coordinates, generator=generator)
    shared = torch.randn(coordinates, generator=generator)
    weight = torch.linspace(0, 0.98, VECTORS)[:, None]
    return {"orthogonal": noise[0], "correlated": weight.sqrt() * shared + (1 - weight).sqrt() * noise[1]}


def cosines(vectors: Tensor) -> Tensor:
    """Of all pairs, in float64: [B, n] -> [B (B - 1) / 2]."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1)
    return (unit @ unit.T)[first, second]


def theory(true: Tensor, dim: int) -> float:
    """The RMS error that a true Gaussian projection to dim numbers has over pairs of those cosines."""
    return float(((1 - true**2) ** 2).mean().sqrt()) / math.sqrt(dim)


def rms_errors(
    prepare: Callable[[int], Callable[[Tensor], Tensor]], seeds: Iterable[int], coordinates: int, dim: int
) -> dict[str, dict[str, float]]:
    """For each set: ``rms`` over all pairs and seeds, its standard error ``uncertainty``, and ``theory``.

    The pairs of one matrix hang together, so the uncertainty comes from the spread over seeds: one seed is good for 3 %
    with orthogonal vectors and for 13 % with correlated ones; 128 seeds for 0.3 % and 1.1 %.
    """
    vectors = sets(coordinates)
    true = {name: cosines(rows) for name, rows in vectors.items()}
    both = torch.cat(list(vectors.values()))
    squares: dict[str, list[float]] = {name: [] for name in vectors}
    for seed in seeds:
        parts = prepare(seed)(both).split(VECTORS)
        for name, part in zip(vectors, parts, strict=True):
            squares[name].append(float(((cosines(part) - true[name]) ** 2).mean()))
    return {name: {**_root(squares[name]), "theory": theory(true[name], dim)} for name in vectors}


def gaussian_errors(coordinates: int, dim: int, seeds: int = 1024) -> dict[str, dict[str, float]]:
    """`rms_errors` of a true Gaussian projection of the same vectors, from many matrices of ``torch.randn``.

    The entries of a Gaussian matrix are as Gaussian and independent along any orthonormal basis; along one of the 32
    vectors' span it has 32 columns instead of ``coordinates``, so a thousand seeds cost seconds.
    """
    errors = {}
    for name, vectors in sets(coordinates).items():
        unit = torch.nn.functional.normalize(vectors.double(), dim=1)
        inside, true = torch.linalg.cholesky(unit @ unit.T), cosines(vectors)
        generator = torch.Generator().manual_seed(1)
        squares = []
        for _ in range(seeds):
            drawn = torch.randn(VECTORS, dim, generator=generator, dtype=torch.float64)
            squares.append(float(((cosines(inside @ drawn) - true) ** 2).mean()))
        errors[name] = {**_root(squares), "theory": theory(true, dim)}
    return errors


def _root(squares: list[float]) -> dict[str, float]:
    """The root of the mean, and its standard error."""
    root = math.sqrt(statistics.fmean(squares))
    error = standard_error(squares) if len(squares) > 1 else math.nan
    return {"rms": root, "uncertainty": error / (2 * root), "seeds": len(squares)}


def cosine_errors(plan: Plan) -> list[Row]:
    """The table of RMS errors of the cosines, over all pairs of 32 vectors, and their ratio to a true Gaussian's."""
    own = [Case(name, plan.accuracy, accuracy_seeds=plan.seeds) for name in KINDS]
    others = [REFERENCE, *(peer.name for peer in PEERS if not plan.quick and not peer.prepared)]
    own += [Case(name, plan.accuracy, accuracy_seeds=plan.peer_seeds) for name in others]
    truth = gaussian_errors(plan.accuracy, DIM)
    rows: list[Row] = [{"name": TRUTH, **truth}, *({"name": each.subject, **run(each)} for each in own)]
    for row in rows:
        for name in truth:
            if "not_run" not in row:
                row[name] = row[name] | against(row[name], truth[name])
    print(f"RMS error of the cosines of {VECTORS} vectors of {plan.accuracy:,} coordinates, all pairs, k = 512;")
    print(f"{TRUTH}: torch.randn in the vectors' span, which has the same distribution; +- is one standard error")
    header = ["projection", "seeds"]
    for name in truth:
        header += [name, "theory", "/ theory", "/ true Gaussian"]
    ceilings.print_table(header, [_accuracy_cells(row) for row in rows])
    return rows


def against(ours: Row, truth: Row) -> Row:
    """Ratios to theory and to the true Gaussian, and the standard error of the latter."""
    ratio = ours["rms"] / truth["rms"]
    relative = [each["uncertainty"] / each["rms"] for each in (ours, truth)]
    return {
        "over_theory": ours["rms"] / ours["theory"],
        "over_gaussian": ratio,
        "over_gaussian_error": 0.0 if ours is truth else ratio * (relative[0] ** 2 + relative[1] ** 2) ** 0.5,
    }


def _accuracy_cells(row: Row) -> list[str]:
    if "not_run" in row:
        return [row["name"], "not run: " + row["not_run"][:60], *[""] * 8]
    cells = [row["name"], str(row["orthogonal"]["seeds"])]
    for errors in (row["orthogonal"], row["correlated"]):
        cells += [f"{errors['rms']:.5f} +- {errors['uncertainty']:.5f}", f"{errors['theory']:.5f}"]
        cells += [
            f"{errors['over_theory']:.3f}",
            f"{errors['over_gaussian']:.3f} +- {errors['over_gaussian_error']:.3f}",
        ]
    return cells


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def bounds(coordinates: int, vectors: int, dim: int, rates: dict[str, float]) -> dict[str, float]:
    """Seconds of a pass that no kernel on this card goes below, from its measured ceilings.

    ``read``: bf16 values once, at the rate of a copy. ``philox``: a dense Gaussian's coordinates x dim / 8 calls at the
    rate of torch's own generator (a kernel of fewer rounds or more lanes can beat it). ``matmul``: its products.
    """
    return {
        "read": 2 * coordinates * vectors / rates["copy_bytes_per_s"],
        "philox": coordinates * (dim / _ROWS) / rates["philox_calls_per_s"],
        "matmul": 2.0 * coordinates * dim * vectors / rates["matmul_bf16_flop_per_s"],
    }


def measure_gpu(coordinates: int = WAN, dim: int = 512, repeats: int = 3) -> dict[str, Any]:
    """Every kind at 1 and 8 bf16 vectors on the first GPU; prints as it goes, and returns the figures."""
    device = torch.device("cuda", 0)
    rates = {**ceilings.measured(device), "philox_calls_per_s": ceilings.philox_rate(device)}
    ceilings.print_ceilings(rates, device)
    print(f"  torch's Philox, 10 rounds    {rates['philox_calls_per_s'] / 1e9:10.1f} Gcalls/s\n")
    rows = []
    for vectors in (1, 8):
        limit = bounds(coordinates, vectors, dim, rates)
        print(f"{vectors} bf16 vectors of {coordinates:,} coordinates to {dim}: a pass takes at least")
        print(
            f"  {limit['read']:.4f} s to read them; a dense Gaussian {limit['philox']:.3f} s of Philox calls at torch's"
        )
        print(f"  rate, {limit['matmul']:.4f} s of tensor cores\n")
        values = torch.empty(vectors, coordinates, dtype=torch.bfloat16, device=device).normal_()
        rows += [{**_kind(kind, values, dim, repeats), "bounds": limit} for kind in KINDS]
        del values
        torch.cuda.empty_cache()
    _gpu_table(rows, coordinates)
    return {"ceilings": rates, "coordinates": coordinates, "dim": dim, "rows": rows}


def _kind(kind: str, values: torch.Tensor, dim: int, repeats: int) -> dict[str, Any]:
    """Seconds by CUDA events, and the allocator's peak above what was held before the call."""
    row: dict[str, Any] = {"name": kind, "vectors": len(values)}
    try:
        project = Projection(kind=kind, dim=dim, seed=0)  # type: ignore[arg-type]
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


def _gpu_table(rows: list[dict[str, Any]], coordinates: int) -> None:
    """Seconds a vector, the share of the bound that holds, and memory."""
    lines = []
    for row in rows:
        name, vectors = row["name"], row["vectors"]
        if "not_run" in row:
            lines.append([name, str(vectors), "not run", "", "", "", "", ""])
            continue
        each, limit = row["seconds"] / vectors, row["bounds"]
        least = max(limit.values()) if name == "gaussian" else limit["read"]
        bytes_per_second = 2 * coordinates / each / 1e9
        figures = [
            f"{row['seconds']:.4f}",
            f"{each * 1e3:.2f}",
            f"{bytes_per_second:.0f}",
            f"{least / row['seconds']:.2f}",
        ]
        lines.append([name, str(vectors), *figures, f"{row['extra_bytes'] / 2**20:.0f}"])
    print()
    header = ["kind", "vectors", "s a pass", "ms a vector", "GB/s read", "bound / time", "extra MiB"]
    ceilings.print_table(header, lines)


# --- the command ------------------------------------------------------------------------------------------------------


def measure_cpu(plan: Plan) -> Row:
    """The tables of a CPU, printed as they are measured."""
    rates = ceilings.measured("cpu")
    ceilings.print_ceilings(rates, "cpu")
    peers = {} if plan.quick else versions()
    print("peers: " + (", ".join(f"{name} {version}" for name, version in peers.items()) or "none") + "\n")
    return {"ceilings": rates, "peers": peers, "speed": speeds(plan), "cosines": cosine_errors(plan)}


def main() -> None:
    """Everything, in order; the JSON line last. Exit status 1 if a kind of our own failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and no peers")
    parser.add_argument("--gpu", action="store_true", help="the GPU's part alone")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--cap", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print_case(arguments.case, arguments.cap)
        return
    if arguments.gpu and not torch.cuda.is_available():
        sys.exit("error: torch sees no GPU here; without --gpu the CPU is measured")
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    figures: Row = {"benchmark": "projection", "machine": ceilings.machine(), "gpu": None}
    ceilings.print_machine(figures["machine"])
    if not arguments.gpu:
        figures |= measure_cpu(QUICK if arguments.quick else Plan())
    if torch.cuda.is_available():
        figures["gpu"] = measure_gpu(QUICK_GPU if arguments.quick else WAN)
    else:
        print("on a GPU: not run: torch sees none\n")
    ceilings.print_json(figures)
    rows = [*figures.get("speed", []), *figures.get("cosines", [])]
    failed = sorted({row["name"] for row in rows if row["name"] in KINDS and "not_run" in row})
    if failed:
        sys.exit(f"error: {', '.join(failed)}: a case of our own did not run; its row says why")


if __name__ == "__main__":
    main()
