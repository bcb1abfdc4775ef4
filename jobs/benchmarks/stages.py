"""What every stage of a clip costs: ``python -m jobs.benchmarks.stages [--only raft,vae] [--videos FOLDER]``.

Ceilings first, then a table, one line of JSON last. Without a GPU the demo's recipe and model are measured on one core;
with one, Wan2.1-T2V-1.3B's architecture with random weights at the recipe's 81x480x832. A floor is what a stage's
arithmetic (or bytes) would take at the measured rate of matrix products (or copies). A part that cannot run is a row
that says why.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jobs.benchmarks import ceilings, stage_agreement, stage_gradients, stage_measures, stage_subjects
from jobs.benchmarks.stage_measures import Figure, Rates
from jobs.benchmarks.stage_subjects import Subject
from pipeline.motion import load_raft
from pipeline.synthetic import world

STAGES = ("decode", "raft", "mask", "vae", "text", "gradient", "projection")
PARTS: Mapping[str, Callable[[Subject, Rates], list[Figure]]] = {
    "decode": stage_measures.decoding,
    "raft": stage_measures.flows,
    "mask": stage_measures.masks,
    "vae": stage_measures.autoencoders,
    "text": stage_measures.texts,
    "gradient": stage_gradients.gradients,
    "attention": stage_gradients.attentions,
}


def run(subject: Subject, rates: Rates, only: Sequence[str]) -> list[Figure]:
    """Every part that is wanted; one that raises is a row with its reason, and the others still run."""
    found: list[Figure] = []
    for name in only:
        if name not in PARTS:
            continue
        start = time.monotonic()
        try:
            new = PARTS[name](subject, rates)
        except Exception as error:  # whatever this machine lacks, the other parts are still worth their figures
            new = [stage_measures.failed(name, "", error)]
        found += new
        gc.collect()
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()
        taken = ", ".join(f"{f.what} {f.failure or format(f.seconds or 0, '.4f') + ' s'}" for f in new)
        print(f"({name} within {time.monotonic() - start:.0f} s: {taken})", file=sys.stderr, flush=True)
    return found


def bill(figures: Sequence[Figure]) -> dict[str, float]:
    """Seconds of each stage that a clip passes, from the figures that count."""
    return {f.stage: f.seconds for f in figures if f.counts and f.seconds is not None}


def print_figures(figures: Sequence[Figure]) -> None:
    costs = bill(figures)
    total = sum(costs.values())
    rows = []
    for f in figures:
        title = f"{'*' if f.counts else ' '} {f.stage}: {f.what}"
        if f.failure:
            rows.append([title, "failed", "", "", "", f.failure])
            continue
        assert f.seconds is not None
        share = f"{f.seconds / total:.1%}" if f.counts else ""
        floor = "" if f.floor is None else f"{f.floor:.4f}"
        times = "" if not f.floor else f"{f.seconds / f.floor:.1f}x"
        notes = ", ".join(f"{name} {value:.4g}" for name, value in f.details.items())
        rows.append([title, f"{f.seconds:.4f}", share, floor, times, notes])
    ceilings.print_table(["stage", "s a clip", "share", "floor, s", "of floor", "details"], rows)
    decode = costs.get("decode", 0.0)
    print(f"a clip's bill (rows with *): {total:.3f} s; without decoding, which runs beside: {total - decode:.3f} s\n")


def agreements(device: torch.device, videos: Path | None) -> dict[str, Any]:
    """Masks by working size and dtype with the shipped RAFT small, and the demo autoencoder's latents in bfloat16."""
    from pipeline import config

    recipe = config.load("demo").motion
    raft = load_raft(recipe, device)
    exact = None
    if videos is None:
        tried, grid = [(128, 128), (192, 192), (256, 256)], (32, 32)
        clips = [world.render(scene, 256, 256) for scene in _scenes()]
        exact = stage_agreement.exact_masks(_scenes(), recipe, 256, grid, 4)
    else:
        tried, grid = [(128, 224), (160, 280), (192, 336), (240, 416), (320, 552), (480, 832)], (60, 104)
        clips = stage_measures.decoded_folder(videos, 9, 16.0, *tried[-1])
    found = stage_agreement.sizes(clips, raft, recipe, tried, grid, 4, device, exact)
    whose = "world's" if videos is None else "given"
    print(f"agreement of motion masks on {len(clips)} {whose} clips of 9 frames, on a grid of {grid[0]}x{grid[1]},")
    print("with the shipped RAFT small, whose weights were trained on the synthetic world alone:")
    rows = [
        [name, f"{a.difference:.2%}", f"{a.pearson:.4f}", f"{a.cosine:.4f}", f"{a.clips}", f"{a.lost}"]
        for name, a in found.items()
    ]
    ceilings.print_table(["masks", "|a-b|/mean", "pearson", "cosine", "clips", "lost"], rows)
    latents = stage_agreement.latents([world.render(s, 32, 32) for s in _scenes()], stage_subjects.demo(device).model)
    print(
        f"latents of the demo's autoencoder, bfloat16 against float32: relative difference "
        f"{latents['relative_difference']:.2%}, cosine {latents['cosine']:.6f}\n"
    )
    return {"masks": {name: asdict(a) for name, a in found.items()}, "latents_bfloat16": latents}


def _scenes() -> list[world.Scene]:
    """One clip of each motion that no weights have seen, every other one under a panning camera."""
    return [world.scene(1_000_003, f"agreement-{m}", "real", m, pan=float(i % 2)) for i, m in enumerate(world.MOTIONS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join([*PARTS, "agreement"]), help="parts, separated by commas")
    parser.add_argument("--videos", type=Path, help="a folder of videos for the agreement, instead of the world's")
    parser.add_argument("--kinds", default="sketched_gaussian,gaussian", help="kinds of projection, by commas")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - {*PARTS, "agreement"}:
        parser.error(f"--only: {', '.join(sorted(unknown))}; choose from {', '.join([*PARTS, 'agreement'])}")
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = ceilings.machine()
    ceilings.print_machine(machine)
    limits = ceilings.measured(device)
    if "matmul_bf16_flop_per_s" not in limits:  # minutes on a CPU without bfloat16
        limits["matmul_bf16_flop_per_s"] = ceilings.matmul_rate(device, torch.bfloat16)
    ceilings.print_ceilings(limits, device)
    start = time.monotonic()
    subject = stage_subjects.wan(device) if device.type == "cuda" else stage_subjects.demo(device)
    print(f"({subject.name}: made within {time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    figures = run(subject, Rates(limits, tuple(arguments.kinds.split(","))), only)
    if figures:
        print_figures(figures)
    found = agreements(device, arguments.videos) if "agreement" in only else None
    ceilings.print_json(
        {
            "benchmark": "stages",
            "subject": subject.name,
            "machine": machine,
            "ceilings": limits,
            "figures": [asdict(f) for f in figures],
            "bill_s": bill(figures),
            "agreement": found,
        }
    )


if __name__ == "__main__":
    main()
