"""Checks of a model against diffusers' own pipeline and against itself: the first thing to run with new weights.

An adapter says what a transformer takes and what it is trained to predict. Each check holds a part of that against
something that does not trust the adapter: the arguments that the pipeline's own call passes, a perfect model put in
the transformer's place, autograd without hooks, diffusers' own loaders. `jobs.check_model` prints them for a
checkpoint, and tests/models runs them on a tiny pipeline of every family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pipeline.operations.model_checks.gradients import (
    check_blocks,
    check_checkpointing,
    check_features,
    check_gradients,
    check_skeleton,
)
from pipeline.operations.model_checks.losses import check_batch, check_captions, check_grid, check_loss
from pipeline.operations.model_checks.pipeline_call import check_arguments, check_oracle
from pipeline.operations.model_checks.subject import Check, CheckError, Subject
from pipeline.operations.model_checks.weights import check_full, check_generation, check_lora

__all__ = ["CHECKS", "Check", "CheckError", "Subject", "check_arguments", "run"]

CHECKS: Mapping[str, Callable[[Subject], str]] = {
    "latent grid": check_grid,
    "captions differ": check_captions,
    "batch equals singles": check_batch,
    "loss": check_loss,
    "arguments of the pipeline": check_arguments,
    "perfect model": check_oracle,
    "gradients": check_gradients,
    "checkpointing": check_checkpointing,
    "features": check_features,
    "skeleton": check_skeleton,
    "blocks": check_blocks,
    "lora": check_lora,
    "full weights": check_full,
    "generation": check_generation,
}


def run(subject: Subject, names: Sequence[str] = tuple(CHECKS)) -> Iterator[Check]:
    """The checks one after the other; one that fails says why, and the others go on."""
    for name in names:
        try:
            yield Check(name, True, CHECKS[name](subject))
        except CheckError as error:
            yield Check(name, False, str(error))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            yield Check(name, False, f"{type(error).__name__}: {error}")
