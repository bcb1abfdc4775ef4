"""What Ray costs on this machine, and how a cluster of up to a thousand nodes would do by that:
``python -m jobs.benchmarks.cluster``.

First a stage of the demo by a plain loop, by one actor and by two, and its fine-tuning by a plain loop and by Ray
Train on one worker. Then stages whose actors do nothing: processor
seconds of a batch at the driver and in the journal, which do not depend on what else the machine does. Last a
simulation of clusters with these costs and with batches as long as those of a large model, where nodes are lost.
--quick is a short form, for the tests.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.cluster import here, tuning
from jobs.benchmarks.cluster.here import Spent
from jobs.benchmarks.cluster.simulation import CALLS, Batch, Cluster, Costs, simulate
from pipeline.config import Run


@dataclass(frozen=True)
class Sizes:
    """Clips of the stage and rounds; steps of a short fine-tuning and of a long one; actors that do nothing, and
    batches for them; nodes that are simulated, and hours of so many nodes in all."""

    clips: int = 96
    rounds: int = 3
    steps: tuple[int, int] = (20, 620)
    idle: tuple[int, ...] = (1, 4, 16)
    batches: int = 1500
    nodes: tuple[int, ...] = (16, 64, 125, 250, 500, 1000)
    node_hours: float = 250.0


QUICK = Sizes(8, 1, (2, 6), (1, 2), 100, (2, 4), 4.0)


def loops(run: Run, rows: pa.Table, folder: Path, sizes: Sizes) -> dict[str, float]:
    """Median seconds a clip: `loop`, and `1` and `2` actors; and the medians over rounds of Ray's overhead, and of the
    gain of a second actor."""
    rounds = []
    for number in range(sizes.rounds):
        ways = {"loop": 0, "1": 1, "2": 2}
        rounds.append(
            {name: here.seconds_a_clip(run, rows, folder / f"{number}", actors) for name, actors in ways.items()}
        )
    seconds = {name: median(each[name] for each in rounds) for name in rounds[0]}
    overhead = median(each["1"] / each["loop"] - 1 for each in rounds)
    return {**seconds, "overhead": overhead, "gain": median(each["1"] / each["2"] for each in rounds)}


def tunings(run: Run, rows: pa.Table, folder: Path, sizes: Sizes) -> dict[str, float]:
    """Median seconds a step: `loop`, and `ray`; and the median over rounds of how many times as long Ray's is."""
    tuning.seconds_a_step(run, rows, folder / "imports", 1, 2, with_ray=False)  # which the first plain loop would pay
    rounds = []
    for number in range(sizes.rounds):
        ways = {"loop": False, "ray": True}
        home = folder / f"tuning-{number}"
        rounds.append(
            {name: tuning.seconds_a_step(run, rows, home / name, *sizes.steps, way) for name, way in ways.items()}
        )
    seconds = {name: median(each[name] for each in rounds) for name in rounds[0]}
    return {**seconds, "times": median(each["ray"] / each["loop"] for each in rounds)}


def costs(measured: Sequence[Spent]) -> Costs:
    """A line through the driver's seconds over the number of actors, where it rises; the journal's median call."""
    actors, driver = [one.actors for one in measured], [one.driver for one in measured]
    slope, at_none = np.polyfit(actors, driver, 1).tolist() if len(set(actors)) > 1 else (0.0, driver[0])
    if slope <= 0:
        slope, at_none = 0.0, median(driver)
    return Costs(max(0.0, at_none), slope, median(one.journal for one in measured) / CALLS)


def clusters(nodes: Sequence[int]) -> list[tuple[str, Cluster, Batch]]:
    """What is simulated. A batch of eight clips of the largest recipe on an H200 took 40 s, everything in all; of a
    tenth of that, which no model at hand needs, the driver is asked ten times as often."""
    whole = [("", Cluster(n), Batch()) for n in nodes]
    short = Batch(seconds=4.0)
    most = nodes[-1]
    return [
        *whole,
        ("no node is lost", Cluster(most, lost=0.0), Batch()),
        ("batches of 4 s", Cluster(most), short),
        (f"batches of 4 s, {min(8, most)} roots", Cluster(most, roots=min(8, most)), short),
        ("batches of 4 s made of 80 clips", Cluster(most), replace(short, rows=80, seconds=40.0)),
    ]


def simulated(sizes: Sizes, prices: Costs) -> list[dict[str, Any]]:
    figures = []
    for words, cluster, batch in clusters(sizes.nodes):
        per_root = max(1, cluster.nodes // cluster.roots)
        hours = max(0.25, sizes.node_hours / per_root) * batch.seconds / Batch().seconds
        outcome = simulate(cluster, batch, prices, hours)
        figures.append({"what": words, **asdict(cluster), **asdict(batch), "hours": hours, **asdict(outcome)})
    return figures


def limit(prices: Costs, batch: Batch) -> int:
    """Actors that keep the driver, or the journal, all of the time busy: more of them wait."""
    for actors in range(1, 1_000_000):
        a_second = actors / batch.seconds
        if max(prices.driver(actors), CALLS * prices.call) * a_second >= 1:
            return actors
    return 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form, for the tests")
    sizes = QUICK if parser.parse_args().quick else Sizes()
    facts = machine()
    print_machine(facts)
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        here.started()
        run, rows = here.segments(Path(folder), sizes.clips)
        stage = loops(run, rows, Path(folder), sizes)
        print_stage(stage)
        tuned = tunings(run, rows, Path(folder), sizes)
        print_tuning(tuned)
        measured = [here.spent(Path(folder), actors, sizes.batches) for actors in sizes.idle]
    print_spent(measured)
    prices = costs(measured)
    most = {f"{seconds:g} s": limit(prices, Batch(seconds=seconds)) for seconds in (40.0, 4.0)}
    print("actors that keep the driver or the journal busy, by the length of a batch: ", end="")
    print(", ".join(f"{n:,} at {seconds}" for seconds, n in most.items()) + "\n")
    figures = simulated(sizes, prices)
    print_simulated(figures)
    figures_here = {"stage": stage, "finetune": tuned, "idle": [asdict(one) for one in measured]}
    figures_here |= {"costs": asdict(prices), "limits": most}
    print_json({"benchmark": "cluster", "machine": facts, **figures_here, "simulated": figures})


def print_stage(stage: dict[str, float]) -> None:
    print_table(
        ("estimating motion", "seconds a clip"),
        [
            (words, f"{stage[name]:.4f}")
            for name, words in (("loop", "plain loop"), ("1", "1 actor"), ("2", "2 actors"))
        ],
    )
    print(f"Ray's overhead {stage['overhead']:+.1%} (asked: under 10 %), a second actor x {stage['gain']:.2f} (1.8)\n")


def print_tuning(tuned: dict[str, float]) -> None:
    ways = (("loop", "plain loop"), ("ray", "Ray Train, one worker"))
    print_table(("fine-tuning", "seconds a step"), [(words, f"{tuned[name]:.4f}") for name, words in ways])
    print(f"Ray Train takes {tuned['times']:.3f} times as long (asked: 1.05)\n")


def print_spent(measured: Sequence[Spent]) -> None:
    print_table(
        (
            "actors that do nothing",
            "driver, ms a batch",
            "journal",
            "control service",
            "driver, B a batch",
            "batches/s",
        ),
        [
            (
                f"{one.actors}",
                *(f"{1000 * seconds:.2f}" for seconds in (one.driver, one.journal, one.control)),
                *(f"{one.driver_bytes:,.0f}", f"{one.batches_per_second:.0f}"),
            )
            for one in measured
        ],
    )


def print_simulated(figures: Sequence[dict[str, Any]]) -> None:
    header = ("nodes of 8", "clips/s", "of the ideal", "driver", "journal", "idle", "again", "objects/s", "recovery, s")
    print_table((*header, "what"), [_line(figure) for figure in figures])


def _line(figure: dict[str, Any]) -> tuple[str, ...]:
    shares = [f"{figure[name]:.1%}" for name in ("share", "driver", "journal", "idle")] + [f"{figure['again']:.2%}"]
    recovery = "" if figure["recovery"] is None else f"{figure['recovery']:.0f}"
    rates = (f"{figure['rows_per_second']:,.1f}", f"{figure['objects_per_second']:,.1f}")
    return (f"{figure['nodes']:,}", rates[0], *shares, rates[1], recovery, figure["what"])


if __name__ == "__main__":
    main()
