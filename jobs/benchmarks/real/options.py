"""How much of everything: the keys ``real.NAME`` of ``--set``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.benchmarks.quality.retraining import Recipe
from pipeline import config
from pipeline.config import Run, overrides
from pipeline.config.faults import explained
from pipeline.errors import ConfigError

OWN = "real."
# RESEARCH: 48 x 48, nine frames at 8.33 a second, a third of KTH's rate. The flow is taken of 128 x 128.
GEOMETRY = {
    "root": "runs/real",
    "data.frames": 9,
    "data.fps": 8.33,
    "data.height": 48,
    "data.width": 48,
    "motion.height": 128,
    "motion.width": 128,
}

Layout = Literal["auto", "columns", "kth", "weizmann", "folders", "pattern"]


class Real(BaseModel):
    """The benchmark's own settings. Defaults fit two cores and a data set of KTH's size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Layout = Field("auto", description="how a clip's action and person are said")
    action: str = Field("action", description="the manifest's column of actions")
    person: str = Field("person", description="the manifest's column of persons")
    scene: str = Field("scene", description="the manifest's column of scenes; it need not be there")
    folders: str = Field("action/person", description="what the folders above a video are, the nearest last")
    pattern: str | None = Field(
        None, description="a regular expression for paths, with groups named action and person, perhaps scene"
    )
    segments: int = Field(4, ge=1, description="segments of a video at most, spread over its length")
    bases: int = Field(1, ge=1, le=2, description="base models; the second knows the actions that the first does not")
    base_actions: tuple[str, ...] = Field((), description="actions that the first base knows; none: the first half")
    base_steps: int = Field(600, ge=1, description="steps of 32 clips in which a base is trained")
    subsets: int = Field(24, ge=4, description="of each design of the LDS")
    draws: int = Field(2, ge=2, description="fine-tunings on each subset, under different seeds")
    seeds: int = Field(2, ge=1, description="of the other fine-tunings")
    steps: int = Field(60, ge=1, description="of a fine-tuning")
    batch: int = Field(16, ge=1, description="of a fine-tuning")
    learning_rate: float = Field(3e-4, gt=0, description="of a fine-tuning, falling to zero")
    timesteps: tuple[float, ...] = Field((251.0, 501.0, 751.0), min_length=1, description="of the best rule")
    strata: int = Field(8, ge=1, description="times of training at which each held-out loss is taken")
    spoiled: float = Field(0.15, gt=0, le=0.5, description="share of the corpus that is spoiled on purpose")

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.steps, self.batch, self.learning_rate)


class _Line(BaseModel):
    """What `--set` may name with `real.` before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    real: Real = Real()


SHORT: dict[str, Any] = {
    "segments": 3,
    "base_steps": 120,
    "subsets": 6,
    "seeds": 1,
    "steps": 12,
    "batch": 8,
    "timesteps": (751.0,),
    "strata": 4,
}


def read(recipe: str, pairs: Sequence[str], short: bool) -> tuple[Run, Real]:
    """The configuration and the benchmark's settings by the pairs of `--set`. Raises ConfigError."""
    own = [pair for pair in pairs if pair.startswith(OWN)]
    values = dict(SHORT) if short else {}
    for pair in own:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair!r}: write key=value, for example --set real.segments=3.")
        try:
            values[key.removeprefix(OWN)] = overrides.read(_Line, key, text)
        except ValueError as error:
            raise ConfigError(f"--set {pair!r}: {error}") from None
    try:
        settings = _Line.model_validate({"real": values}).real
    except ValidationError as error:
        raise ConfigError(" ".join(explained(dict(e), _Line) for e in error.errors())) from error
    defaults = [f"{key}={value}" for key, value in GEOMETRY.items()]
    return config.load_line(recipe, [*defaults, *(pair for pair in pairs if pair not in own)]), settings
