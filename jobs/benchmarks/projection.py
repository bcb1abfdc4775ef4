"""Benchmark of the projection: ``python -m jobs.benchmarks.projection [--quick]``.

Prints the machine and its ceilings, then this project's kinds and the peers' projectors beside the reference (seeded
``torch.randn`` blocks of 8,192 columns, 2 threads), measured alternately in one process, so that a ratio means
something on a machine that others use too. Then the error of the cosines, the asks, and last one line of JSON. Each
case is a fresh process (`case`). About 15 minutes on two idle cores; --quick takes small sizes and no peers, for the
tests.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from jobs.benchmarks import accuracy, case, ceilings, peers, projection_gpu
from jobs.benchmarks.case import Case
from jobs.benchmarks.projection_asks import asks
from jobs.benchmarks.projectors import ENTRIES, KINDS, NOT_ON_A_CPU, PEERS, REFERENCE

Row = dict[str, Any]
TRUTH = "true Gaussian"


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
        beside = plan.long if in_full else plan.short
        long = Case(kind, plan.long, repeats=min(3, plan.repeats), reference=beside)
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


def measure(cases: Iterator[Case], pythons: dict[str, tuple[str, str]]) -> list[Row]:
    """Run each case where its subject is installed, and print a line of it."""
    rows = []
    for each in cases:
        row: Row = {
            "name": each.subject,
            "coordinates": each.coordinates,
            "vectors": each.vectors,
            "threads": each.threads,
            **run(each, pythons),
        }
        print(line(row), flush=True)
        rows.append(row)
    return rows


def run(each: Case, pythons: dict[str, tuple[str, str]]) -> Row:
    """The case's figures, or why there are none."""
    if each.found.distribution is None:
        return case.run(each)
    if each.found.short_only and each.coordinates == Plan.long:
        return {"not_run": each.found.short_only}
    python, told = pythons[each.found.distribution]
    return case.run(each, python) if python else {"not_run": told}


def line(row: Row) -> str:
    """Name, coordinates, vectors, threads, seconds (times it was run), the reference beside it, ratio, memory."""
    what = f"{row['name']:23} {row['coordinates']:>11,} {row['vectors']:>2} {row['threads']:>2}"
    if "not_run" in row:
        return f"{what}  not run: {row['not_run']}"
    taken = f"{row['seconds']:>9.4f} ({row['repeats']})"
    beside = f"{row['reference_seconds']:>9.3f} ({row['reference_repeats']})" if "ratio" in row else " " * 13
    ratio = f"{row['ratio']:>8.2f}" if "ratio" in row else " " * 8
    return f"{what} {taken} {beside} {ratio} {row['extra_bytes'] / 2**20:>9.1f}"


def speeds(plan: Plan, pythons: dict[str, tuple[str, str]]) -> list[Row]:
    """The table of seconds and memory."""
    print(
        "seconds: median (runs); reference: measured between the runs, in the same process, scaled to the coordinates"
    )
    print(f"{'projection to 512':23} {'coordinates':>11} {'B':>2} {'th':>2} {'seconds':>13} ", end="")
    print(f"{'reference':>13} {'ratio':>8} {'extra MiB':>9}")
    rows = measure(own_cases(plan), pythons) + measure(reference_cases(plan), pythons)
    if not plan.quick:
        rows += measure(peer_cases(plan), pythons)
        for name, reason in NOT_ON_A_CPU.items():
            rows.append({"name": name, "not_run": reason})
            print(f"{name:23}  not run: {reason}")
        print(*(f"  {peer.name}: {peer.note}" for peer in PEERS if peer.note), sep="\n")
    else:
        print("peers: not run: --quick")
    print()
    return rows


def fidelity(plan: Plan, pythons: dict[str, tuple[str, str]]) -> list[Row]:
    """The table of RMS errors of the cosines, over all pairs of 32 vectors, and their ratio to a true Gaussian's."""
    own = [Case(name, plan.accuracy, accuracy_seeds=plan.seeds) for name in KINDS]
    others = [REFERENCE, *(peer.name for peer in PEERS if not plan.quick and not peer.kept)]
    own += [Case(name, plan.accuracy, accuracy_seeds=plan.peer_seeds) for name in others]
    truth = accuracy.gaussian_errors(plan.accuracy, case.DIM)
    rows: list[Row] = [{"name": TRUTH, **truth}, *({"name": each.subject, **run(each, pythons)} for each in own)]
    for row in rows:
        for name in truth:
            if "not_run" not in row:
                row[name] = row[name] | against(row[name], truth[name])
    print(
        f"RMS error of the cosines of {accuracy.VECTORS} vectors of {plan.accuracy:,} coordinates, all pairs, k = 512;"
    )
    print(f"{TRUTH}: torch.randn in the vectors' span, which has the same distribution; +- is one standard error")
    header = ["projection", "seeds"]
    for name in truth:
        header += [name, "theory", "/ theory", "/ true Gaussian"]
    ceilings.print_table(header, [_accuracy_cells(row) for row in rows])
    return rows


def against(found: Row, truth: Row) -> Row:
    """Ratios to theory and to the true Gaussian, and the standard error of the latter."""
    ratio = found["rms"] / truth["rms"]
    relative = [each["uncertainty"] / each["rms"] for each in (found, truth)]
    return {
        "over_theory": found["rms"] / found["theory"],
        "over_gaussian": ratio,
        "over_gaussian_error": 0.0 if found is truth else ratio * (relative[0] ** 2 + relative[1] ** 2) ** 0.5,
    }


def _accuracy_cells(row: Row) -> list[str]:
    if "not_run" in row:
        return [row["name"], "not run: " + row["not_run"][:60], *[""] * 8]
    cells = [row["name"], str(row["orthogonal"]["seeds"])]
    for found in (row["orthogonal"], row["correlated"]):
        cells += [f"{found['rms']:.5f} +- {found['uncertainty']:.5f}", f"{found['theory']:.5f}"]
        cells += [f"{found['over_theory']:.3f}", f"{found['over_gaussian']:.3f} +- {found['over_gaussian_error']:.3f}"]
    return cells


def main() -> None:
    """Everything, in order; the JSON line last. Exit status 1 if a kind of our own failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and no peers")
    plan = QUICK if parser.parse_args().quick else Plan()
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    machine, found = ceilings.machine(), ceilings.measured("cpu")
    ceilings.print_machine(machine)
    ceilings.print_ceilings(found, "cpu")
    pythons = {} if plan.quick else peers.interpreters()
    for name, (_, told) in sorted(pythons.items()):
        print(f"  {name} {told}")
    rows = speeds(plan, pythons)
    errors = fidelity(plan, pythons)
    judged = asks(rows, errors, plan.short, plan.long, plan.longest)
    ceilings.print_table(["ask", "figure", "met"], [[each["ask"], each["figure"], each["met"]] for each in judged])
    gpu = None
    if torch.cuda.is_available():
        gpu = projection_gpu.measure(projection_gpu.QUICK if plan.quick else projection_gpu.WAN)
    else:
        print("on a GPU: not run: torch sees none\n")
    versions = {name: told for name, (_, told) in pythons.items()}
    figures = {"machine": machine, "ceilings": found, "peers": versions, "speed": rows, "cosines": errors}
    ceilings.print_json({**figures, "asks": judged, "gpu": gpu})
    failed = sorted({row["name"] for row in rows + errors if row["name"] in KINDS and "not_run" in row})
    if failed:
        sys.exit(f"error: {', '.join(failed)}: a case of our own did not run; its row says why")


if __name__ == "__main__":
    main()
