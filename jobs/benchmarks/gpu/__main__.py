"""Everything that only a GPU can show, in ten minutes on one card, with nothing to download:
``python -m jobs.benchmarks.gpu``.

Part after part, each in a process of its own, for as long as the minutes last: tests that need a GPU, the benchmarks
of stages and projection, attribution with and without a second stream, steps of fine-tuning, a whole curation of 40
clips of 81x480x832 by Wan 1.3B with random weights, then the benchmark of families. What ran is printed as tables and
written to --json; ``--tables FILE`` prints those of an earlier run. --quick is a short form on a small model, which
runs on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jobs.benchmarks import ceilings

ROOT = Path(__file__).parents[3]
OWN = ("curation", "overlap", "training")
LEAST = 20.0  # seconds left below which no part is begun
GRACE = 15.0  # seconds of them in which an interrupted part says what it has
GOALS = {"seconds a clip, all in": 3.6, "seconds of a gradient": 2.0, "share of the time that the card is busy": 0.95}


@dataclass(frozen=True)
class Part:
    """A command; its short form; whether it says nothing without a GPU, and whether the last line is JSON."""

    name: str
    command: tuple[str, ...]
    quick: tuple[str, ...] = ()
    needs_gpu: bool = False
    figures: bool = True


PARTS = (
    Part("tests", ("pytest", "-q", "-m", "gpu", "tests"), needs_gpu=True, figures=False),
    Part("stages", ("jobs.benchmarks.stages", "--only"), ("decode",)),
    Part("projection", ("jobs.benchmarks.projection", "--gpu"), ("--quick",), needs_gpu=True),
    Part("overlap", ("jobs.benchmarks.gpu", "--part", "overlap"), ("--quick",)),
    Part("training", ("jobs.benchmarks.gpu", "--part", "training"), ("--quick",)),
    Part("curation", ("jobs.benchmarks.gpu", "--part", "curation"), ("--quick",)),
    Part("families", ("jobs.benchmarks.families",), ("--quick", "--families", "wan2.1-t2v-1.3b")),
)
STAGES = "decode,raft,mask,vae,text,gradient,attention"


def command(part: Part, quick: bool) -> list[str]:
    words = [*part.command, *(part.quick if quick else ())]
    if part.name == "stages" and not quick:
        words.append(STAGES)
    return [sys.executable, "-m", *words]


def _with_model(part: Part, folder: Path) -> Part:
    """The model of random weights is written once for all parts that take it."""
    return replace(part, command=(*part.command, "--model", str(folder))) if part.name in OWN else part


def measured(part: Part, quick: bool, seconds: float) -> dict[str, Any]:
    """What a part said, or why it did not: its seconds, `figures` and `failure`. One that takes too long is interrupted
    first, for figures that it may have by then."""
    begun = time.monotonic()
    with subprocess.Popen(command(part, quick), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        text, in_time = _outcome_of(process, seconds)
    print(text, end="", flush=True)
    lines = text.strip().splitlines() or [""]
    spent = {"seconds": time.monotonic() - begun}
    if process.returncode and not in_time:
        return {**spent, "failure": f"it took more than the {seconds:.0f} s that were left"}
    if process.returncode:
        return {**spent, "failure": f"exit status {process.returncode}: {lines[-1][:200]}"}
    if not part.figures:
        return {**spent, "figures": {"summary": lines[-1]}}
    try:
        return {**spent, "figures": json.loads(lines[-1])}
    except ValueError:
        return {**spent, "failure": f"its last line is no JSON: {lines[-1][:200]}"}


def _outcome_of(process: subprocess.Popen[str], seconds: float) -> tuple[str, bool]:
    """What a process printed, and whether it ended in time."""
    try:
        return process.communicate(timeout=max(0.0, seconds - GRACE))[0], True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=min(seconds, GRACE))[0], False
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0], False


def own(name: str, quick: bool, model: Path | None) -> None:
    """A part of this benchmark's own, in this process."""
    from jobs.benchmarks.gpu import parts, wan

    size = wan.QUICK if quick else wan.Size()
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        ceilings.print_json(getattr(parts, name)(Path(folder), model or Path(folder, "model"), size))


# --- tables ----------------------------------------------------------------------------------------------------------


def print_tables(everything: Mapping[str, Any]) -> None:
    """Markdown, as docs/results.md has it."""
    machine = everything["machine"]
    print(f"{machine['gpu'] or machine['cpu']}, torch {machine['torch']}, {machine['date']}\n")
    _table(("part", "seconds", "outcome"), [_outcome(name, part) for name, part in everything["parts"].items()])
    figures = {name: part["figures"] for name, part in everything["parts"].items() if "figures" in part}
    if "curation" in figures:
        _print_curation(figures["curation"])
    if "overlap" in figures:
        _print_overlap(figures["overlap"])
    if "training" in figures:
        ways = figures["training"].items()
        rows = [(way, f"{one['step_s']:.3f}", _gib(one["peak_gib"])) for way, one in ways]
        _table(("a step of fine-tuning", "seconds", "GiB at most"), rows)
    reached = goals(figures)
    if reached:
        _table(("goal", "asked", "measured"), [(goal, f"{GOALS[goal]:g}", f"{value:.3g}") for goal, value in reached])


def _outcome(name: str, part: Mapping[str, Any]) -> tuple[str, str, str]:
    return name, f"{part['seconds']:.0f}", part.get("failure") or part["figures"].get("summary", "measured")


def _print_curation(figures: Mapping[str, Any]) -> None:
    size = "x".join(map(str, figures["geometry"]))
    rows = [
        (
            stage,
            f"{one['rows']}",
            f"{one['seconds']:.1f}",
            "" if one["busy_share"] is None else f"{one['busy_share']:.0%}",
        )
        for stage, one in figures["stages"].items()
    ]
    _table((f"curation of {figures['clips']} clips of {size}", "rows", "seconds", "actors busy"), rows)
    busy = "not known" if figures["card_busy"] is None else f"{figures['card_busy']:.0%}"
    until = "in all" if figures["whole"] else "until it was interrupted"
    print(
        f"{figures['seconds']:.0f} s {until}, after {figures['writing_s']:.0f} s for videos and model. While clips "
        f"were attributed the card was busy: {busy}. GiB of it taken: {_gib(figures['card_gib']) or 'not known'}\n"
    )


def _print_overlap(figures: Mapping[str, Any]) -> None:
    rows = [
        (
            way,
            f"{one['s_a_clip']:.2f}",
            "" if one["card_busy"] is None else f"{one['card_busy']:.0%}",
            _gib(one["peak_gib"]),
        )
        for way, one in figures["ways"].items()
    ]
    _table(("attribution of a clip", "seconds", "card busy", "GiB at most"), rows)
    print(f"The features of both ways have a cosine of {figures['lowest_cosine']:.6f} or more.\n")


def goals(figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The goals that these figures say something of, with what was measured."""
    clip, gradient, busy = GOALS
    reached = []
    if "curation" in figures:
        reached.append((clip, figures["curation"]["actor_busy_s_a_clip"]))
        if figures["curation"]["card_busy"] is not None:
            reached.append((busy, figures["curation"]["card_busy"]))
    if "gradient" in figures.get("stages", {}).get("bill_s", {}):
        reached.append((gradient, figures["stages"]["bill_s"]["gradient"]))
    return reached


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for line in (header, tuple("---" for _ in header), *rows):
        print(f"| {' | '.join(line)} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model and few clips, on any machine")
    parser.add_argument("--minutes", type=float, default=10.0, help="what all parts may take; 10 by default")
    parser.add_argument("--only", help="parts, separated by commas; all by default")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where everything is written")
    parser.add_argument("--tables", type=Path, help="print the tables of such a file, and measure nothing")
    parser.add_argument("--part", choices=OWN, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        own(arguments.part, arguments.quick, arguments.model)
        return
    if arguments.tables:
        print_tables(json.loads(arguments.tables.read_text()))
        return
    gpu, names = torch.cuda.is_available(), [part.name for part in PARTS]
    if not gpu and not arguments.quick:
        parser.error("no GPU is seen here; --quick runs anywhere")
    only = arguments.only.split(",") if arguments.only else names
    if unknown := set(only) - set(names):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; known are {names}")
    everything: dict[str, Any] = {
        "benchmark": "gpu",
        "quick": arguments.quick,
        "machine": ceilings.machine(),
        "parts": {},
    }
    over = time.monotonic() + 60 * arguments.minutes
    asked = [part for part in PARTS if part.name in only and (gpu or not part.needs_gpu)]
    with tempfile.TemporaryDirectory(prefix="gpu-model-") as folder:
        for part in asked:
            left = over - time.monotonic()
            everything["parts"][part.name] = (
                measured(_with_model(part, Path(folder, "model")), arguments.quick, left)
                if left > LEAST
                else {"seconds": 0.0, "failure": "no time was left"}
            )
            arguments.json.write_text(json.dumps(everything))  # after each: a machine may be taken away
    print_tables(everything)
    ceilings.print_json(everything)


if __name__ == "__main__":
    main()
