"""The part of a configuration that is about running: resources and prices, nights, pages, plans, and who is told.

None of it changes what a table holds.
"""

from __future__ import annotations

import datetime
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

AUTO = "auto"  # in the place of a pool: a pilot chooses it
Measurable = Literal["index_clips", "estimate_motion", "extract_features", "finetune", "evaluate"]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Promote(Model):
    """When a night's model takes the place of the one in use: its mean loss on held-out clips is lower, relatively by
    more than `improvement`, with this confidence (one-sided t interval on differences paired by clip), and the rest of
    the picture has not paid for it: its mean plain loss is higher by `plain_loss_at_most` at most."""

    metric: Literal["masked_loss", "plain_loss"] = Field("masked_loss", description="the held-out loss that decides")
    confidence: float = Field(0.95, ge=0.5, lt=1, description="of the one-sided interval")
    improvement: float = Field(0.0, ge=0, lt=1, description="relative, which the interval must exceed")
    plain_loss_at_most: float | None = Field(
        0.01, ge=0, description="relative rise of the mean plain loss that a promoted model may have; null: any"
    )


class Nightly(Model):
    date: datetime.date | None = Field(None, description="the night, YYYY-MM-DD; null: today in UTC")
    keep: int = Field(30, ge=1, description="nights whose results are kept; the model in use is never deleted")
    drift_clips: int = Field(200, ge=0, description="clips whose features are taken with the model in use as well")
    reattribute: bool = Field(False, description="let features of other attribution.weights give way, at their price")
    promote: Promote = Promote()


class Report(Model):
    """What the page shows of the videos."""

    pictures: bool = Field(True, description="frames of clips stand on the page")
    captions: bool = Field(True, description="captions of clips stand on the page")


class Purge(Model):
    """For jobs.purge: the clips that go."""

    clips: tuple[str, ...] = Field((), description="ids of the clips that go")
    file: str | None = Field(None, description="a text file of clip ids, one a line; local or s3://")


class Explain(Model):
    """For jobs.explain: the clip whose influence is taken apart."""

    clip: str | None = Field(None, description="the clip's id")
    layers: bool = Field(False, description="split the influence over the transformer's layers as well")

    @field_validator("clip", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        if value is not None and not isinstance(value, str):
            raise ValueError(
                "an id is text, and YAML takes this one for something else; quote it: explain.clip='\"ID\"'"
            )
        return value


class Plan(Model):
    clips: int = Field(50, ge=2, description="videos of the pilot that jobs.plan runs, one clip of each")


class Prices(Model):
    """What an hour and a gigabyte cost where the recipe runs; zero: not known."""

    gpu_hour: float = Field(0.0, ge=0, description="of one GPU")
    cpu_hour: float = Field(0.0, ge=0, description="of one CPU core")
    gb_month: float = Field(0.0, ge=0, description="of storage, for a gigabyte and month")
    currency: str = Field("USD", description="the word after every sum")

    @property
    def known(self) -> bool:
        return self.gpu_hour > 0 or self.cpu_hour > 0


class Budget(Model):
    """What a job may hold of the cluster before it stops between two batches; null: no cap."""

    gpu_hours: float | None = Field(None, gt=0, description="GPU-hours that actors may hold; null: no cap")
    cpu_hours: float | None = Field(None, gt=0, description="CPU-hours that actors may hold; null: no cap")


class Pool(Model):
    """One stage's share of the cluster: `actors` of `cpus` and `gpus` each, handed `batch` clips at a time."""

    actors: int = Field(1, ge=1, description="processes of the stage")
    cpus: float = Field(1.0, gt=0, description="cores of each actor")
    gpus: float = Field(0.0, ge=0, description="GPUs of each actor")
    memory: float | None = Field(
        None, gt=0, description="GB of main memory of each actor, by which nodes are chosen for it; null: any node"
    )
    batch: int = Field(8, ge=1, description="clips that an actor is handed at a time")


class Resources(Model):
    """The pools of the stages, by hand or by a pilot: `resources.STAGE: auto` lets a pilot choose a stage's pool, and
    `resources: auto` those of all stages but export. For extract_features it chooses attribution.hold as well."""

    index_clips: Pool = Pool(batch=16)
    estimate_motion: Pool = Pool()
    extract_features: Pool = Pool()
    finetune: Pool = Pool()
    evaluate: Pool = Pool()
    export: Pool = Pool(batch=32)
    auto: tuple[Measurable, ...] = Field(
        (), description="stages whose pool a pilot chooses: `resources.STAGE: auto` puts a stage here"
    )
    pilot: int = Field(20, ge=2, description="videos of that pilot, one clip of each")
    wait: float = Field(600.0, ge=0, description="seconds to wait for the autoscaler")

    @model_validator(mode="before")
    @classmethod
    def _with_auto(cls, values: object) -> object:
        """The word `auto` in a pool's place, as a name in the list."""
        if values == AUTO:
            return {AUTO: get_args(Measurable)}
        if not isinstance(values, dict):
            return values
        named = [stage for stage in get_args(Measurable) if values.get(stage) == AUTO]
        if not named:
            return values
        rest = {key: value for key, value in values.items() if key not in named}
        listed = [stage for stage in rest.get(AUTO, ()) if stage not in named]
        return {**rest, AUTO: (*named, *listed)}

    @field_validator("export", mode="before")
    @classmethod
    def _by_hand(cls, value: object) -> object:
        if value == AUTO:
            raise ValueError("no pilot measures exports; give a pool, for example {actors: 2, cpus: 1}")
        return value


class Tracking(Model):
    """Where fine-tuning is followed. Keys and addresses come from the environment, never from here."""

    kind: Literal["none", "mlflow", "wandb"] = Field("none", description="MLflow, Weights & Biases, or neither")
    project: str = Field("motion-curation", min_length=1, description="MLflow's experiment, W&B's project")


class Webhook(Model):
    variable: str | None = Field(
        None, pattern="^[A-Za-z_][A-Za-z0-9_]*$", description="the environment variable that holds the URL; null: none"
    )
