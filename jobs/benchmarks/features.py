"""What a feature costs above the bare forward and backward of the same model: ``python -m jobs.benchmarks.features``.

Every case runs in a process of its own, plain and with features turn by turn: time and peak memory are its own.
About 12 minutes on two idle cores; --quick for the tests.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from jobs.benchmarks.ceilings import machine, matmul_rate, print_json, print_machine, print_table
from pipeline.attribution.gradients import ProjectedGradients
from pipeline.config.attribution import Kind
from pipeline.projection import Projection


@dataclass(frozen=True)
class Case:
    """A random-weight Wan transformer, its latent [frames, side, side], and how the projection is fed."""

    name: str
    heads: int
    layers: int
    feed_forward: int
    latent: tuple[int, int]
    clips: int  # of a block: their last stage is shared
    blocks: int
    kind: Kind | None  # None: bare forward and backward
    hold: int = 1
    threads: int = 2


LARGE = Case("100 M, 1,000 tokens", 8, 6, 4096, (10, 20), 4, 1, None)
SMALL = Case("0.6 M, 80 tokens, blocks of 256", 4, 3, 128, (5, 8), 256, 1, None, threads=1)
LONGER = replace(SMALL, name="0.6 M, 320 tokens, blocks of 256", latent=(5, 16))


def transformer(case: Case) -> nn.Module:
    torch.manual_seed(0)
    size = 128 if case.heads == 8 else 32
    module: nn.Module = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=case.heads, attention_head_dim=size, in_channels=16, out_channels=16,
        text_dim=64, freq_dim=64, ffn_dim=case.feed_forward, num_layers=case.layers, rope_max_seq_len=128,
    )  # fmt: skip
    return module


def loss(model: nn.Module, latent: Tensor, text: Tensor) -> Tensor:
    mean: Tensor = model(latent, torch.full((1,), 751.0), text, return_dict=False)[0].square().mean()
    return mean


def measure(case: Case) -> dict[str, float]:
    """Seconds a clip and peak resident bytes."""
    torch.set_num_threads(case.threads)
    model = transformer(case)
    latent, text = torch.randn(1, 16, case.latent[0], case.latent[1], case.latent[1]), torch.randn(1, 32, 64)
    gradients = ProjectedGradients(model, Projection(case.kind), case.hold) if case.kind else None

    def block(clips: int) -> None:
        for _ in range(clips):
            if gradients:
                gradients.take(loss(model, latent, text))
            else:
                loss(model, latent, text).backward()
                model.zero_grad(set_to_none=True)
        if gradients:
            gradients.collect()

    block(2)
    start = time.perf_counter()
    for _ in range(case.blocks):
        block(case.clips)
    seconds = (time.perf_counter() - start) / (case.blocks * case.clips)
    count = sum(p.numel() for p in model.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "parameters": count}


def in_a_process(case: Case) -> dict[str, float]:
    command = [sys.executable, "-m", "jobs.benchmarks.features", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the case {case} failed: {done.stderr.strip().splitlines()[-1]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(case: Case, rounds: int) -> list[dict[str, object]]:
    """Every way to make features beside the bare model, turn by turn; ratios of medians."""
    ways: list[tuple[Kind | None, int]] = [(None, 1), ("sketched_gaussian", 1), ("gaussian", min(32, case.clips))]
    runs: dict[tuple[Kind | None, int], list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for kind, hold in ways:
            runs[kind, hold].append(in_a_process(replace(case, kind=kind, hold=hold)))
    median = {
        way: {key: statistics.median(run[key] for run in repeats) for key in repeats[0]}
        for way, repeats in runs.items()
    }
    bare = median[None, 1]
    return [
        {
            "case": case.name,
            "kind": kind or "bare forward and backward",
            "hold": hold,
            "parameters": int(bare["parameters"]),
            "seconds_per_clip": repeats["seconds"],
            "time_ratio": repeats["seconds"] / bare["seconds"],
            "peak_ratio": repeats["peak_bytes"] / bare["peak_bytes"],
        }
        for (kind, hold), repeats in median.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small case alone, with small blocks, once")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        values = json.loads(given.case)
        print(json.dumps(measure(Case(**{**values, "latent": tuple(values["latent"])}))))
        return
    hardware = machine()
    print_machine(hardware)
    rate = matmul_rate("cpu", torch.float32)
    print(f"ceiling: {rate / 1e9:.0f} GFLOP/s of fp32 matrix products, {hardware['threads']} threads\n")
    quick = replace(SMALL, clips=8)
    rows = compare(quick, 1) if given.quick else [row for case in (LARGE, SMALL, LONGER) for row in compare(case, 3)]
    print_table(
        ["model", "features", "hold", "parameters", "s a clip", "time / bare", "memory / bare"],
        [
            [
                str(row["case"]), str(row["kind"]), str(row["hold"]), f"{row['parameters']:,}",
                f"{row['seconds_per_clip']:.4f}", f"{row['time_ratio']:.3f}", f"{row['peak_ratio']:.3f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    print_json({"benchmark": "features", "machine": hardware, "matmul_flop_per_s": rate, "rows": rows})


if __name__ == "__main__":
    main()
