"""Whether a checkpoint is computed as diffusers' own pipeline computes it: the first thing to run with new weights.

`python -m jobs.check_model --config RECIPE --set model.id=FOLDER` prints a table of checks at a small geometry, on the
device of `resources.extract_features`: the arguments of the pipeline's own call, a perfect model in the transformer's
place, gradients, features, adapters and full weights as diffusers loads them. Exit status 1 if one fails.
"""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.check_model:check_model", __doc__, default="tiny", of_roots=True)

from math import lcm

import torch

from pipeline import models
from pipeline.config import Run
from pipeline.errors import ConfigError, StageError
from pipeline.models import Family
from pipeline.models.device import device_for
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.operations import model_checks
from pipeline.operations.model_checks import CHECKS, Subject

EXACT = {"float32": 1e-4, "bfloat16": 5e-2}  # what the order of sums changes, relative
LARGE = 4_000_000_000  # numbers, above which full weights are not written to this machine's disk


def check_model(run: Run) -> None:
    family = models.family(run.model)
    auto = "extract_features" in run.resources.auto
    device = device_for(int(torch.cuda.is_available()) if auto else run.resources.extract_features.gpus)
    geometry, timesteps = small(family), times(run, family)
    print(f"{family.name}, {run.model.id}: {run.model.dtype} on {device.type}, {geometry} at {run.data.fps:g} a second")
    for timestep in timesteps:
        level, expert = family.schedule.level(timestep), next(e for e in family.experts if e.has(timestep))
        print(f"  t = {timestep:g} has a share of noise of {level:.2f}, and asks {expert.part}")
    model = family.open(run.model, device)
    if not isinstance(model, DiffusersModel):
        raise ConfigError(
            f"model.adapter={run.model.adapter!r}: its model is no DiffusersModel, so there is no pipeline to hold it "
            "against. Test it as tests/models/test_adapter.py does."
        )
    names = [name for name in CHECKS if name != "full weights" or size(model) < LARGE]
    failed = 0
    subject = Subject(model, geometry, run.data.fps, timesteps, EXACT[run.model.dtype])
    for check in model_checks.run(subject, names):
        failed += not check.passed
        print(f"  {'passed' if check.passed else 'FAILED'}  {check.name.ljust(26)}  {check.detail}", flush=True)
    if failed:
        raise StageError("check_model", f"{failed} of {len(names)} checks failed; its features would be wrong")
    print(f"{len(names)} checks passed")


def small(family: Family) -> tuple[int, int, int]:
    """The fewest frames that give three latent ones, and small sides that differ."""
    side = lcm(*family.sides, family.generates)
    return next(count for count in range(1, 1000) if possible(family, count)), 2 * side, 3 * side


def possible(family: Family, frames: int) -> bool:
    try:
        return len(family.folds(frames)) >= 3
    except ConfigError:
        return False


def times(run: Run, family: Family) -> list[float]:
    """Those of the recipe's settings, and one for each expert that they leave out."""
    asked = list(dict.fromkeys(s.timestep for s in run.attribution.settings))
    for expert in family.experts:
        if not any(expert.has(t) for t in asked):
            asked.append(float(int((expert.first + expert.last) / 2)))
    for timestep in asked:
        family.schedule.check(timestep, "attribution.settings.timestep")
    return asked


def size(model: DiffusersModel) -> int:
    return sum(p.numel() for p in model.trained.parameters())
