"""Train the benchmark's base model: ``python -m jobs.benchmarks.quality.base_model``.

The demo's model has seen so much of its world that no short fine-tuning teaches it anything. This one is smaller,
shares the demo's autoencoder and text encoder, and knows what the world looks like but hardly how it moves: it has
seen things that lie still, a moving camera, and of the ten motions sliding alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from jobs.benchmarks.quality.lessons import SLIDING, train
from jobs.benchmarks.quality.problem import OUT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=SLIDING.steps)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(replace(SLIDING, steps=arguments.steps), arguments.out)


if __name__ == "__main__":
    main()
