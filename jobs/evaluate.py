"""Hold the fine-tuned arms against the base: held-out losses and generated videos, table evaluation/."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":
    command.main("pipeline.stages.evaluation:evaluate", __doc__, of_roots=True, completes=True)
