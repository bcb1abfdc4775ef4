"""Fine-tune the base model on one arm's clips (`finetune.arm`) with Ray Train: finetuned/ARM/."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":
    command.main("pipeline.stages.finetuning:finetune", __doc__, of_roots=True, completes=True)
