"""What ranking costs above reading the features and multiplying them: ``python -m jobs.benchmarks.ranking``.

Ceilings first: reading the table's parts and multiplying them with the queries, in a plain loop and over all cores.
Then the ranking, with and without whitening, turn by turn with the ceiling in processes of their own: influence, exact
cutoffs, votes, the order and every query's nearest and farthest. Then the job itself, tables written. JSON last.

`--roots 4` ranks the same clips in four roots as well (`ranking.roots`), and says whether the selection is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmarks.ceilings import machine, matmul_rate, print_json, print_machine, print_table
from pipeline import config, tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.ranking import influence, placed, select, selection, votes
from pipeline.stages.ranking import rank_clips
from pipeline.storage.parallel import in_order
from pipeline.storage.stores import join
from pipeline.tables import scanning, schemas

DIM, QUERIES = 512, 50
SMALL = 10_000
COMPARED = ["clip_id", "group", "votes", "mean_influence", "rank", "decision", "weight", "reason"]


def run_of(root: str, whiten: float | None, roots: Sequence[str] = ()) -> Run:
    changes = {
        "root": root,
        "ranking.roots": list(roots),
        "motion.of": "all",
        "ranking.mask": "motion",
        "ranking.whiten": whiten,
        "attribution.projection": {"kind": "gaussian", "dim": DIM, "seed": 0},
        "attribution.settings": [{"timestep": 751, "noise": 0, "mask": "motion"}],
    }
    return config.load("demo", changes)


# --- the table --------------------------------------------------------------------------------------------------------


def make(root: str, clips: int, part: int, first: int = 0) -> None:
    """A features table of random clips that share a direction, and of queries; each clip's numbers belong to its id.
    The clips are those from the `first` on, a multiple of `part`."""
    run = run_of(root, None)
    fingerprint = fingerprints.features(run)
    settings = [s.record() for s in run.attribution.settings]
    common = np.random.default_rng(1).standard_normal(DIM, np.float32)

    def write(name: str, start: int, count: int) -> None:
        values = np.random.default_rng([len(name), start]).standard_normal((count, DIM), np.float32) + common
        ids = pa.array([f"{name}{(start + i) * 0x9E3779B97F4A7C15 % (1 << 64):016x}" for i in range(count)])
        one = tables.vectors(np.ones((count, 1), np.float32))
        frames, version = pa.array(np.full(count, 9, np.int32)), pa.array(["v"] * count)
        columns = [ids, version, tables.vectors(values), one, one, frames, pa.nulls(count, pa.string())]
        table = pa.table(columns, schema=schemas.features_schema(1, DIM))
        tables.append(join(root, "features", name), table, fingerprint, settings=settings)

    write("queries", 0, QUERIES)
    ends, starts = first + clips, range(first, first + clips, part)
    for _ in in_order(lambda start: write("clips", start, min(part, ends - start)), starts):
        pass


def share_out(root: str, count: int) -> None:
    """Put the clips of a root into several as well, every so many parts into one: root-0, root-1, ... The files are
    linked, so that they take no more of the disk."""
    paths = tables.parts(join(root, "features/clips"))
    for n, home in enumerate(partition_roots(root, count)):
        shutil.copytree(join(root, "features/queries"), join(home, "features/queries"))
        os.makedirs(join(home, "features/clips"))
        for path in paths[n::count]:
            os.link(path, join(home, "features/clips", os.path.basename(path)))


def partition_roots(root: str, count: int) -> list[str]:
    return [f"{root}-{n}" for n in range(count)]


# --- what is timed, each in a process of its own ----------------------------------------------------------------------


def multiply(path: str, queries: npt.NDArray[np.float32]) -> int:
    values = tables.matrix(pq.ParquetFile(path).read(["clip_id", "feature"]), "feature")
    return len(values @ queries)


def ceiling(root: str) -> None:
    """Reading and multiplying over all cores, nothing kept."""
    queries = np.ones((DIM, QUERIES), np.float32)
    for _ in in_order(lambda path: multiply(path, queries), tables.parts(join(root, "features/clips"))):
        pass


def loop(root: str) -> None:
    """Reading and multiplying as one writes it first: one part after the other, with the libraries' own threads."""
    queries = np.ones((DIM, QUERIES), np.float32)
    for path in tables.parts(join(root, "features/clips")):
        multiply(path, queries)


def reading(root: str) -> None:
    """Reading alone over all cores."""
    for _ in in_order(
        lambda path: pq.ParquetFile(path).read(["feature"]).num_rows, tables.parts(join(root, "features/clips"))
    ):
        pass


def ranking(root: str, whiten: float | None) -> None:
    """Influence, exact cutoffs and votes, the order, and every query's nearest and farthest."""
    ranked = selection.rank(run_of(root, whiten), "motion", whiten)
    marks = ranked.marks(0.1, 20)
    placed(*ranked.score("all", marks), ranked.clip_ids)
    selection.neighbors_table(ranked, 20, marks)


def joint(root: str) -> None:
    """The whole job on the clips in several roots, its tables written to one beside them."""
    count = 0
    while os.path.exists(partition_roots(root, count + 1)[-1]):
        count += 1
    rank_clips(run_of(f"{root}.joint", 0.01, partition_roots(root, count)))


def same_selection(root: str) -> bool:
    """Whether the ranking of several roots is that of one, row by row."""
    of_one, of_roots = (scanning.blocks(join(one, "selection"), COMPARED) for one in (root, f"{root}.joint"))
    return all(one.equals(other) for one, other in zip(of_one, of_roots, strict=True))


WAYS: dict[str, Callable[[str], None]] = {
    "reading": reading,
    "ceiling": ceiling,
    "loop": loop,
    "plain": lambda root: ranking(root, None),
    "whitened": lambda root: ranking(root, 0.01),
    "job": lambda root: rank_clips(run_of(root, None)),
    "job_whitened": lambda root: rank_clips(run_of(root, 0.01)),
    "job_of_roots": joint,
}


def measure(way: str, root: str) -> dict[str, float]:
    """Seconds, processor seconds and peak resident bytes of one way."""
    wall, spent = time.perf_counter(), time.process_time()
    WAYS[way](root)
    wall, spent = time.perf_counter() - wall, time.process_time() - spent
    return {"seconds": wall, "cpu_s": spent, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def in_a_process(way: str, root: str) -> dict[str, float]:
    command = [sys.executable, "-m", "jobs.benchmarks.ranking", "--way", way, "--root", root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} failed: {done.stderr.strip().splitlines()[-1]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {way}: {figures['seconds']:.2f} s", file=sys.stderr, flush=True)
    return figures


def large(root: str, rounds: int, roots: int) -> dict[str, dict[str, float]]:
    """Every way turn by turn; medians of the seconds, the largest peak."""
    ways = ["reading", "loop", "ceiling", "plain", "whitened"]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(in_a_process(way, root))
    for way in ("job", "job_whitened", *(["job_of_roots"] if roots else [])):
        runs[way].append(in_a_process(way, root))
    return {
        way: {
            "seconds": statistics.median(run["seconds"] for run in repeats),
            "cpu_s": statistics.median(run["cpu_s"] for run in repeats),
            "peak_bytes": max(run["peak_bytes"] for run in repeats),
        }
        for way, repeats in runs.items()
        if repeats
    }


def small(root: str) -> dict[str, dict[str, float]]:
    """10,000 clips x 50 queries, whitened, with votes and a selection, from arrays and from Parquet: the median of the
    seconds, and of the processor seconds, which other work on the machine hardly changes."""
    rng = np.random.default_rng(0)
    clips, queries = (rng.standard_normal((n, DIM), np.float32) for n in (SMALL, QUERIES))
    ids = [f"{i:016x}" for i in range(SMALL)]

    def arrays() -> None:
        scores = influence(clips, queries, whiten=0.01)
        votes(scores, 0.1)

    def selected() -> None:
        select(influence(clips, queries, whiten=0.01), ids, by="votes")

    calls: dict[str, Callable[[], None]] = {
        "arrays": arrays,
        "arrays_selected": selected,
        "parquet": lambda: ranking(root, 0.01),
        "job_whitened": lambda: rank_clips(run_of(root, 0.01)),
    }
    repeats = {name: [_seconds(call) for _ in range(6)] for name, call in calls.items()}
    return {
        what: {name: statistics.median(one[i] for one in seconds) for name, seconds in repeats.items()}
        for i, what in enumerate(("small_s", "small_cpu_s"))
    }


def _seconds(call: Callable[[], None]) -> tuple[float, float]:
    start, spent = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - spent


# --- the page ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 clips, once")
    parser.add_argument("--clips", type=int, default=2_000_000, help="clips of the large table; 10 million take 20 GB")
    parser.add_argument("--part", type=int, default=10_000, help="rows of a part")
    parser.add_argument("--roots", type=int, default=0, help="rank the same clips in so many roots as well")
    parser.add_argument("--folder", default=None, help="where the tables are made for the time being")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print("\n" + json.dumps(measure(given.way, given.root)))
        return
    clips, rounds = (100_000, 1) if given.quick else (given.clips, 3 if given.clips <= 2_000_000 else 1)
    hardware = machine()
    print_machine(hardware)
    rate = matmul_rate("cpu")
    print(f"ceiling: {rate / 1e9:.0f} GFLOP/s of fp32 matrix products, {hardware['threads']} threads\n")
    root = tempfile.mkdtemp(prefix="ranking-", dir=given.folder)
    try:
        make(join(root, "large"), clips, given.part)
        size = sum(os.path.getsize(p) for p in tables.parts(join(root, "large", "features/clips")))
        if given.roots:
            share_out(join(root, "large"), given.roots)
        figures = large(join(root, "large"), rounds, given.roots)
        report(figures, clips, size)
        same = same_selection(join(root, "large")) if given.roots else None
        if same is not None:
            print(f"the ranking of {given.roots} roots is {'' if same else 'NOT '}that of one, row by row\n")
        make(join(root, "small"), SMALL, 1000)
        smaller = small(join(root, "small"))
    finally:
        shutil.rmtree(root)
    print(f"{SMALL:,} clips x {QUERIES} queries, whitened, with votes:")
    for name, value in smaller["small_s"].items():
        print(f"  {name:<16} {value:.3f} s, {smaller['small_cpu_s'][name]:.3f} CPU s")
    print()
    print_json(
        {"benchmark": "ranking", "machine": hardware, "matmul_flop_per_s": rate, "clips": clips, "queries": QUERIES,
         "dim": DIM, "part_rows": given.part, "roots": given.roots, "same": same, "table_bytes": size, "ways": figures,
         **smaller}
    )  # fmt: skip


def report(figures: dict[str, dict[str, float]], clips: int, size: int) -> None:
    print(f"{clips:,} clips x {QUERIES} queries, k = {DIM}: {size / 1e9:.2f} GB of Parquet")
    by = {name: figures[name]["seconds"] for name in ("ceiling", "loop")}
    print_table(
        ["what", "s", "CPU s", "MB/s", "peak GiB", "speed / all cores", "speed / plain loop"],
        [
            [
                name, f"{f['seconds']:.2f}", f"{f['cpu_s']:.2f}", f"{size / 1e6 / f['seconds']:.0f}",
                f"{f['peak_bytes'] / 2**30:.2f}", f"{by['ceiling'] / f['seconds']:.2f}",
                f"{by['loop'] / f['seconds']:.2f}",
            ]
            for name, f in figures.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
