"""Hold the fine-tuned arms against the base: held-out losses and generated videos, table evaluation/."""

from __future__ import annotations

from jobs import command
from pipeline.stages.evaluation import evaluate

if __name__ == "__main__":
    command.main(evaluate, __doc__)
