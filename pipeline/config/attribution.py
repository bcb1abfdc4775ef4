"""The part of a configuration that is about attribution: what a feature is the gradient of, and of how many clips."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.operations import Model

Kind = Literal["gaussian", "rademacher", "sketched_gaussian", "fastfood"]


class Setting(Model):
    """One gradient of a clip: at `timestep` of 1000, with the shared noise of index `noise`, under a mask."""

    timestep: float = Field(751, gt=0, lt=1000, description="of 1000; high is noisy")
    noise: int = Field(0, ge=0, description="index of a noise that all clips and queries share")
    mask: Literal["motion", "none"] = Field("motion", description="what weighs the loss; none: every place alike")
    of: Literal["both", "clips", "queries"] = Field("both", description="whose gradient is taken")

    def record(self) -> dict[str, Any]:
        """As fingerprints and tables have it; a table is of clips or of queries, and does not say so again."""
        return self.model_dump(exclude={"of"} if self.of == "both" else None)


Storage = Literal["float32", "float16", "int8"]
RankingMask = Literal["motion", "none", "queries"]


def mask_of(mask: RankingMask | str, name: str) -> str:
    """The mask of the features that a ranking compares, of `clips` or of `queries`: the same, or with "queries" the
    queries' motion and all of a clip. That is what training does: it lowers a clip's plain loss, and what is asked is
    what this does to the query's motion."""
    return mask if mask != "queries" else {"clips": "none", "queries": "motion", "liked": "motion"}[name]


def compared(mask: RankingMask | str, settings: tuple[Setting, ...]) -> dict[str, tuple[Setting, ...]]:
    """The settings that a ranking compares, of `clips` and of `queries`.

    Raises ValueError where one side has none, or the sides differ in more than the mask.
    """
    sides = {
        name: tuple(s for s in settings if s.of in ("both", name) and s.mask == mask_of(mask, name))
        for name in ("clips", "queries")
    }
    for name, side in sides.items():
        if not side:
            raise ValueError(f"there is no setting of {name} with mask: {mask_of(mask, name)}; add one")
    pairs = {name: [(s.timestep, s.noise) for s in side] for name, side in sides.items()}
    if pairs["clips"] != pairs["queries"]:
        raise ValueError(
            f"clips and queries are compared at one timestep and noise, but these settings have {pairs}; give both the "
            "same, in the same order"
        )
    return sides


class ProjectionConfig(Model):
    kind: Kind = Field("gaussian", description="how entries are made; benchmarks.md compares them")
    dim: int = Field(512, ge=8, multiple_of=8, description="numbers of a feature for each setting")
    seed: int = Field(0, ge=0, lt=1 << 64, description="of the matrix")

    @model_validator(mode="after")
    def _possible(self) -> ProjectionConfig:
        if self.kind == "fastfood" and self.dim > 1 << 14:
            raise ValueError(f"dim={self.dim}: fastfood has at most {1 << 14} rows")
        return self


class Shortlist(Model):
    """Two stages: every clip gets a cheaper variant of the attribution, and those that it chooses the full one as well.

    Chosen are the first and the last by the cheaper variant, and an audit: clips drawn at random from all. A key of the
    variant that is null is that of the full attribution.
    """

    top: float = Field(0.2, gt=0, lt=1, description="share of the clips: the first by the cheaper variant")
    bottom: float = Field(0.05, ge=0, lt=1, description="... and the last")
    audit: float = Field(0.02, gt=0, le=1, description="... and at random, also among those two")
    settings: tuple[Setting, ...] | None = Field(None, min_length=1, description="the variant's own")
    parameters: str | None = Field(None, description="the variant's own")
    frames: int | None = Field(None, ge=2, description="the variant's own")
    fps: float | None = Field(None, gt=0, description="the variant's own")
    height: int | None = Field(None, ge=8, description="the variant's own")
    width: int | None = Field(None, ge=8, description="the variant's own")

    @model_validator(mode="after")
    def _sensible(self) -> Shortlist:
        if self.top + self.bottom > 1:
            raise ValueError(f"top={self.top:g} and bottom={self.bottom:g} are more than all clips; take less of one")
        if self.parameters is not None:
            _check_expression(self.parameters)
        _check_distinct(self.settings or ())
        return self

    @property
    def share(self) -> float:
        """Of all clips, those that get the full attribution as well."""
        ranked = self.top + self.bottom
        return ranked + self.audit * (1 - ranked)

    @property
    def changes(self) -> dict[str, Any]:
        """What the variant has of its own."""
        names = ("settings", "parameters", "frames", "fps", "height", "width")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class Attribution(Model):
    settings: tuple[Setting, ...] = Field(
        (Setting(),), min_length=1, description="the gradients of a clip; each is a part of its feature"
    )
    parameters: str = Field(".*", description="regular expression; parameters whose name it finds count")
    projection: ProjectionConfig = ProjectionConfig()
    captions: Literal["own", "empty", "group"] = Field(
        "own",
        description="under which clips and queries are attributed; empty: what words say has no part; group: a query "
        "under the name of its group, a clip under its own",
    )
    blocks: Literal["device", "host"] = Field(
        "device",
        description="host: for a model larger than the GPU; the transformer's blocks wait in main memory and come one "
        "at a time",
    )
    storage: Storage = Field(
        "float32",
        description="how a feature's numbers are stored; float16 and int8 take a half and a quarter of the bytes",
    )
    hold: int = Field(1, ge=1, description="gradients that share one generation of a dense projection; 1: streamed")
    weights: str | None = Field(None, description="a promoted model (ROOT/nights/DATE/model); null: model.id as it is")
    lora: str | None = Field(
        None,
        description="a folder of trained LoRA adapters (ROOT/finetuned/ARM): they count and no other parameters; null: "
        "the model's own",
    )
    frames: int | None = Field(None, ge=2, description="geometry of attribution; null: that of data")
    fps: float | None = Field(None, gt=0, description="the same")
    height: int | None = Field(None, ge=8, description="the same")
    width: int | None = Field(None, ge=8, description="the same")
    shortlist: Shortlist | None = Field(None, description="this attribution for some clips only; null: for every clip")

    @model_validator(mode="after")
    def _sensible(self) -> Attribution:
        _check_expression(self.parameters)
        _check_distinct(self.settings)
        if self.hold > 1 and self.projection.kind in ("sketched_gaussian", "fastfood"):
            raise ValueError(f"hold={self.hold} is for dense projections; {self.projection.kind} is streamed: use 1")
        return self

    def alone(self, name: str) -> Attribution:
        """What is left of it for `clips` or for `queries`."""
        settings = tuple(s.model_copy(update={"of": "both"}) for s in self.settings if s.of in ("both", name))
        captions = "own" if self.captions == "group" and name == "clips" else self.captions
        return self.model_copy(update={"settings": settings, "captions": captions})

    @property
    def cheaper(self) -> Attribution | None:
        """What every clip gets first, where this is for a shortlist only."""
        if self.shortlist is None:
            return None
        return self.model_copy(update={**self.shortlist.changes, "shortlist": None})


def _check_expression(parameters: str) -> None:
    try:
        re.compile(parameters)
    except re.error as error:
        raise ValueError(f"parameters={parameters!r} is no regular expression: {error}") from error


def _check_distinct(settings: tuple[Setting, ...]) -> None:
    for name in ("clips", "queries"):
        keys = [(s.timestep, s.noise, s.mask) for s in settings if s.of in ("both", name)]
        if len(set(keys)) != len(keys):
            raise ValueError(f"settings: two settings of {name} are the same")
