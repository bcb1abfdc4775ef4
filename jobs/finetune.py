"""Fine-tune the base model on one arm's clips (`finetune.arm`) with Ray Train: finetuned/ARM/."""

from __future__ import annotations

from jobs import command, stages
from pipeline import arms, ray_data, ray_resources, ray_train, stores
from pipeline.config import Arm, Run


def with_arm(run: Run, arm: Arm) -> Run:
    return run.model_copy(update={"finetune": run.finetune.model_copy(update={"arm": arm})})


def finetune(run: Run) -> None:
    arm = run.finetune.arm
    rows = arms.training_set(run)
    if rows is None:
        print("finetuned/base: the base model as it is, nothing to train")
        return
    stages.check(run, "finetune")
    command.record(run)
    ray_data.connect()
    ray_resources.check(run, ["finetune"])
    folder = ray_train.finetune(run, rows, report=command.Progress(f"finetune {arm}"))
    arms.write_video_folder(stores.join(folder, "curated"), rows)
    print(f"finetuned/{arm}: {run.finetune.steps} steps on {rows.num_rows} clips, in {folder}")


if __name__ == "__main__":
    command.main(finetune, __doc__)
