"""The parts of a configuration that are about attribution: what a feature is the gradient of, of how many clips, and
the queries that clips are compared with."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

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
    looks: int = Field(
        1,
        ge=1,
        description="looks in which a clip is attributed: its own, then other colours before other backgrounds; their "
        "mean counts, and each costs as much as the first",
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
        changes: dict[str, Any] = {"settings": settings}
        if name == "queries":
            changes["looks"] = 1  # queries have looks of their own
        elif self.captions == "group":
            changes["captions"] = "own"
        return self.model_copy(update=changes)

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


# --- what clips are compared with -------------------------------------------------------------------------------------

Twin = Literal["backwards", "slow_start", "shuffled", "frozen", "stuttering"]
Change = Literal["colours", "background", "mirrored"]  # in which looks of a query differ
CLIP_CHANGES: tuple[Change, ...] = ("colours", "background")  # in which looks of a clip differ (attribution.looks)
Functional = Literal["loss", "preference", "both"]


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("each is named once")
    return names


Twins = Annotated[tuple[Twin, ...], AfterValidator(_each_once)]


class Prompt(Model):
    """A caption that becomes a query video."""

    prompt: str = Field(description="the caption")
    group: str = Field("all", description="the motion that it stands for")
    seed: int = Field(0, ge=0, description="of the video's noise")


class Queries(Model):
    videos: str | None = Field(
        None, min_length=1, description="as data.videos; the group is the manifest's `group` or the folder"
    )
    files: str | None = Field(None, min_length=1, description="as data.files, for queries.videos")
    embeddings: str | None = Field(None, min_length=1, description="as data.embeddings, for queries.videos")
    prompts: tuple[Prompt, ...] = Field((), description="captions that the base model turns into query videos")
    sample: int | None = Field(
        None,
        ge=1,
        description="without videos and prompts: so many moving clips of data.videos are provisional queries",
    )
    looks: int = Field(
        1,
        ge=1,
        description="looks in which a query is attributed, its own first; their mean counts: its nearest clips share "
        "its colours less, and its motion no more",
    )
    changes: Annotated[tuple[Change, ...], AfterValidator(_each_once)] = Field(
        ("colours",),
        min_length=1,
        description="in what looks differ: in their colours, in the background of what moves, in that every second one "
        "is mirrored; name mirrored only where left and right do not matter to the motion",
    )
    twins: Twins = Field(
        (),
        description="spoiled versions of a query that it is to be preferred to; its nearest clips share its colours "
        "less, and its motion no more",
    )
    functional: Functional = Field(
        "loss",
        description="what a query asks for: a lower loss, to be preferred to its twins, or both; under each, "
        "nearest clips follow looks more than motion",
    )
    unwanted: tuple[str, ...] = Field(
        (), description="groups of queries that show what is not wanted: the others less them"
    )

    @model_validator(mode="after")
    def _changed_looks(self) -> Queries:
        if self.looks == 1 and self.changes != ("colours",):
            raise ValueError(
                f"changes={list(self.changes)} are of other looks, and looks=1 is the query as it is; use looks: 8, or "
                "no changes"
            )
        return self

    @model_validator(mode="after")
    def _fits_functional(self) -> Queries:
        if self.functional == "loss" and self.twins:
            raise ValueError(
                f"twins={list(self.twins)} have no part in functional: loss; use functional: preference or both, or no "
                "twins"
            )
        if self.functional != "loss" and not self.twins:
            raise ValueError(
                f"functional={self.functional!r} holds a query against its twins, and there are none; name some, for "
                "example twins: [backwards, slow_start]"
            )
        return self

    @model_validator(mode="after")
    def _one(self) -> Queries:
        if self.videos is not None and self.prompts:
            raise ValueError("name either query videos (queries.videos) or prompts (queries.prompts), one of the two")
        if self.source is None:
            raise ValueError(
                "nothing says which motions to look for. Give videos of them (queries.videos=FOLDER, one folder a "
                "motion), or captions that the model turns into such videos (queries.prompts), or start with "
                "queries.sample=20, so many moving clips of data.videos"
            )
        return self

    @property
    def source(self) -> Literal["videos", "prompts", "sample"] | None:
        """Where the queries come from: the first of these that is given."""
        if self.videos is not None:
            return "videos"
        if self.prompts:
            return "prompts"
        return None if self.sample is None else "sample"
