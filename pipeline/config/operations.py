"""The part of a configuration that is about running: resources and prices, nights, pages, plans, and who is told.

None of it changes what a table holds.
"""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Promote(Model):
    """When a night's model takes the place of the one in use: its mean loss on held-out clips is lower, relatively by
    more than `improvement`, with this confidence (one-sided t interval on differences paired by clip)."""

    metric: Literal["masked_loss", "plain_loss"] = "masked_loss"
    confidence: float = Field(0.95, ge=0.5, lt=1)
    improvement: float = Field(0.0, ge=0, lt=1)


class Nightly(Model):
    date: datetime.date | None = Field(None, description="the night, YYYY-MM-DD; null: today in UTC")
    keep: int = Field(30, ge=1, description="nights whose results are kept; the model in use is never deleted")
    drift_clips: int = Field(200, ge=0, description="clips whose features are taken with the model in use as well")
    reattribute: bool = Field(False, description="let features of other attribution.weights give way, at their price")
    promote: Promote = Promote()


class Report(Model):
    """What the page shows of the videos."""

    pictures: bool = True
    captions: bool = True


class Purge(Model):
    """For jobs.purge: the clips that go."""

    clips: tuple[str, ...] = ()
    file: str | None = Field(None, description="a text file of clip ids, one a line; local or s3://")


class Explain(Model):
    """For jobs.explain: the clip whose influence is taken apart."""

    clip: str | None = None
    layers: bool = Field(False, description="split the influence over the transformer's layers as well")

    @field_validator("clip", mode="before")
    @classmethod
    def _text(cls, given: object) -> object:
        if given is not None and not isinstance(given, str):
            raise ValueError(
                "an id is text, and YAML takes this one for something else; quote it: explain.clip='\"ID\"'"
            )
        return given


class Plan(Model):
    clips: int = Field(50, ge=2, description="videos of the pilot that jobs.plan runs, one clip of each")


class Prices(Model):
    """What an hour and a gigabyte cost where the recipe runs; zero: not known."""

    gpu_hour: float = Field(0.0, ge=0)
    cpu_hour: float = Field(0.0, ge=0)
    gb_month: float = Field(0.0, ge=0, description="of storage, for a gigabyte and month")
    currency: str = "USD"

    @property
    def known(self) -> bool:
        return self.gpu_hour > 0 or self.cpu_hour > 0


class Budget(Model):
    """What a job may hold of the cluster before it stops between two batches; null: no cap."""

    gpu_hours: float | None = Field(None, gt=0)
    cpu_hours: float | None = Field(None, gt=0)


class Pool(Model):
    """One stage's share of the cluster: `actors` of `cpus` and `gpus` each, handed `batch` clips at a time."""

    actors: int = Field(1, ge=1)
    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)
    batch: int = Field(8, ge=1)


class Resources(Model):
    index_clips: Pool = Pool(batch=16)
    estimate_motion: Pool = Pool()
    extract_features: Pool = Pool()
    finetune: Pool = Pool()
    evaluate: Pool = Pool()
    wait: float = Field(600.0, ge=0, description="seconds to wait for the autoscaler")


class Tracking(Model):
    """Where fine-tuning is followed. Keys and addresses come from the environment, never from here."""

    kind: Literal["none", "mlflow", "wandb"] = "none"
    project: str = Field("motion-curation", min_length=1, description="MLflow's experiment, W&B's project")


class Webhook(Model):
    variable: str | None = Field(
        None, pattern="^[A-Za-z_][A-Za-z0-9_]*$", description="the environment variable that holds the URL; null: none"
    )
