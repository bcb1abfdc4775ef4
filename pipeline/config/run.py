"""The configuration of a run: one frozen pydantic model per stage. `loading` reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.config.attribution import CLIP_CHANGES, Attribution, Change, Queries, RankingMask, Twins, compared
from pipeline.config.export import Export
from pipeline.config.operations import (
    Budget,
    Explain,
    Model,
    Nightly,
    Plan,
    Prices,
    Purge,
    Report,
    Resources,
    Tracking,
    Webhook,
)
from pipeline.config.study import Study
from pipeline.config.workbench import Workbench

PACKAGE = Path(__file__).parents[1]
DEMO_VIDEOS = {  # what jobs.demo writes; as recipes/demo.yaml has it
    "data.videos": "runs/world/clips",
    "queries.videos": "runs/world/queries",
    "evaluate.videos": "runs/world/held_out",
}
NUMERICS = 3  # raise by hand whenever a change of ours changes features or masks; part of every fingerprint

Arm = Literal[
    "base",
    "all",
    "all_minus_harmful",
    "weighted",
    "random",
    "magnitude",
    "mask_overlap",
    "lawful",
    "caption",
    "own_loss",
    "embedding",
    "no_mask",
    "motive",
    "motive_whitened",
    "selected",
    "timed",
    "timed_random",
    "little_noise",
    "little_noise_random",
    "curated",
    "oracle",
]


Scaler = Literal["pillow", "ffmpeg"]
MOVING = ("magnitude", "mask_overlap", "lawful")  # arms that pick clips by their motion
LITTLE_NOISE = ("little_noise", "little_noise_random")  # arms whose tenth has the times of little noise for itself
# Arms that draw each clip at times of its own, and the arm whose clips they have, or have at little noise.
TIMED: Mapping[str, Literal["selected", "random"]] = {
    "timed": "selected",
    "timed_random": "random",
    **dict(zip(LITTLE_NOISE, ("selected", "random"), strict=True)),
}


class Data(Model):
    videos: str = Field(
        min_length=1,
        description="folder, glob, manifest (.jsonl, .json, .csv, .tsv, .parquet), a trainer's configuration, or "
        "shards; local or s3://",
    )
    files: str | None = Field(
        None, min_length=1, description="the folder of a manifest's relative paths; null: that of the manifest"
    )
    camera: str | None = Field(
        None, min_length=1, description="of a robot's cameras (LeRobot), the one whose videos are used"
    )
    empty_captions: float = Field(
        0.5, ge=0, le=1, description="videos are refused if a larger share of them than this has no caption"
    )
    base: str | None = Field(None, description="videos outside this folder or prefix, links followed, are refused")
    frames: int = Field(81, ge=2, description="frames of a segment")
    fps: float = Field(16.0, gt=0, description="frames a second after resampling")
    height: int = Field(480, ge=8, description="pixels; frames are scaled to cover the size and cropped")
    width: int = Field(832, ge=8, description="pixels")
    stride: int | None = Field(None, ge=1, description="frames from one segment's start to the next; null: `frames`")
    stretch: int | None = Field(
        5000,
        ge=100,
        description="frames: videos of at least twice so many are indexed in stretches of about so many, which actors "
        "share; null: each by one actor",
    )
    decode_timeout: float = Field(120.0, gt=0, description="seconds without a frame or packet in which a decoder ends")
    scaler: Scaler = Field(
        "pillow",
        description="what scales frames: Pillow, or FFmpeg's own scaler, which takes a fifth of the time and reads HD "
        "that names no matrix of colours as BT.709; features depend on it, so a root keeps its own",
    )
    oracle: str | None = Field(None, description="a manifest column that holds the true group, for the arm oracle")
    embeddings: str | None = Field(
        None,
        min_length=1,
        description="Parquet of the videos' ids and embeddings, for the arm embedding; null: a curator's, beside them",
    )


class VideoModelConfig(Model):
    id: str = Field(min_length=1, description="a diffusers folder, local or s3://, or a model id of the hub")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="of the transformer's forward and backward pass"
    )
    vae_dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the autoencoder's convolutions")
    text_tokens: int = Field(512, ge=1, description="captions are padded to this many tokens")
    guidance: float = Field(
        1.0, ge=1, description="what a transformer with an embedding of it (HunyuanVideo) is told in training"
    )
    adapter: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="an in-house family, `package.module:Family`; null: the one that the folder needs",
    )
    gradient_checkpointing: bool = Field(True, description="less memory, more time: backward computes blocks again")
    compile: bool = Field(
        False, description="compile the transformer's blocks: less time for each clip, seconds to minutes for a process"
    )


class Motion(Model):
    flow: Literal["raft_large", "raft_small"] = Field("raft_large", description="the optical flow network")
    weights: str = Field(
        "default", description="`default` (torchvision's), `C_T_V1`, or a .safetensors/.pth file, local or s3://"
    )
    height: int = Field(240, ge=128, multiple_of=8, description="working size of the flow")
    width: int = Field(416, ge=128, multiple_of=8, description="working size of the flow")
    batch: int = Field(16, ge=1, description="pairs of frames at a time")
    updates: int = Field(12, ge=1, description="refinements of the flow")
    camera: Literal["keep", "subtract"] = Field("keep", description="subtract: a global affine motion is removed first")
    normalise: Literal["min_max", "quantile"] = Field("min_max", description="what becomes 1 in the mask")
    quantile: float = Field(0.99, gt=0, le=1, description="upper end of the mask for normalise: quantile")
    still: float = Field(0.5, ge=0, description="a clip whose flow spans less (pixels a frame) has no motion")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the flow's convolutions")
    of: Literal["all", "queries"] = Field(
        "all", description="`queries`: where the ranking masks queries alone, of clips only a `sample` is measured"
    )
    sample: int = Field(200, ge=0, description="clips whose motion is measured for the page where `of` is `queries`")


class Duplicates(Model):
    """Clips that are nearly the same. The best ranked one stands for the others in the selection."""

    feature: float | None = Field(
        0.98, ge=0.9, le=1, description="least cosine of two features; null: features do not count"
    )
    picture: float | None = Field(
        0.9, ge=0.8, le=1, description="least cosine of two signatures in pictures/; null: pictures do not count"
    )

    @model_validator(mode="after")
    def _by_something(self) -> Duplicates:
        if self.feature is None and self.picture is None:
            raise ValueError("feature and picture are both null, so nothing says which clips are nearly the same")
        return self


class Ranking(Model):
    mask: RankingMask = Field(
        "motion",
        description="features under which mask are compared; `queries`: of queries masked, of clips plain. That "
        "predicted best on one corpus; in several worlds the three did not differ",
    )
    whiten: float | None = Field(0.01, gt=0, description="lambda of the TRAK preconditioner; null: plain cosine")
    by: Literal["mean", "votes"] = Field(
        "mean", description="mean influence, or the number of queries that vote for it"
    )
    fraction: float = Field(0.1, gt=0, le=1, description="share of the clips that is selected")
    unlawful: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="a clip is harmful if at most this share of lawful ones moves as far from its motion's queries",
    )
    harmful: float = Field(0.1, ge=0, lt=1, description="share of the clips that may be called so, the farthest first")
    group_column: str | None = Field(
        None, min_length=1, description="a manifest column that names each clip's motion; null: its caption does"
    )
    vote_fraction: float = Field(0.1, gt=0, le=1, description="a query votes for this share of the clips")
    spare: float = Field(
        0.0,
        ge=0,
        le=1,
        description="so much of a clip's mean influence on the other groups' queries is taken from that on a group's",
    )
    above: float | None = Field(None, description="select by mean influence above this, instead of `fraction`")
    duplicates: Duplicates | None = Field(
        None, description="of near-duplicates the best ranked alone is selected; {}: at the thresholds below; null: all"
    )
    caps: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="at most so many selected clips of each value of these columns of clips/: {source: 20}"
    )
    interval: float | None = Field(
        0.9,
        gt=0.5,
        lt=1,
        description="confidence of the intervals of ranks over draws of queries and settings; null: none",
    )
    neighbors: int = Field(20, ge=1, description="nearest and farthest clips listed for each query")
    roots: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="roots of finished runs of one fingerprint, whose clips are ranked together; none: the run's own",
    )

    @property
    def rule(self) -> dict[str, Any]:
        """What makes one ranking of the same clips differ from another: all but the places where they lie. Keys that
        came later are there where they are set, so that older tables stay what they are."""
        later = ("duplicates", "caps", "interval")
        unset = {name for name in later if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude={"roots"} | unset)

    @model_validator(mode="after")
    def _spares_a_mean(self) -> Ranking:
        if self.spare and self.by == "votes":
            raise ValueError("spare is taken from mean influence, and by='votes' ranks by votes; set by: mean")
        return self


class Finetune(Model):
    arm: Arm = Field(
        "motive_whitened",
        description="what is trained on; concepts.md lists the arms, results.md what is shown of them",
    )
    group: str = Field("all", description="`all`, or the group of queries whose selection is trained on")
    steps: int = Field(1000, ge=1, description="steps of the optimiser (AdamW)")
    batch: int = Field(1, ge=1, description="clips a step and worker")
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    learning_rate: float = Field(1e-5, gt=0, description="of AdamW")
    schedule: Literal["constant", "linear"] = Field("constant", description="linear: it falls to 0 over the steps")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    expert: Literal["high", "low", "both"] = Field(
        "both", description="of a model with two experts by noise level, which is trained; others have one"
    )
    motion_weight: float = Field(
        0.0, ge=0, description="0: the plain loss; else places that change in time weigh up to so many times more"
    )
    lora_rank: int | None = Field(None, ge=1, description="null: every parameter is trained")
    frozen_weights: Literal["full", "fp8"] = Field(
        "full", description="of a model with adapters; fp8: linear layers of its blocks take a byte a number"
    )
    caption_dropout: float = Field(0.1, ge=0, le=1, description="share of the clips that train with an empty caption")
    sharding: Literal["none", "fsdp"] = Field("none", description="fsdp: each worker holds its rows of the parameters")
    workers: int = Field(1, ge=1, description="processes of Ray Train")
    min_workers: int | None = Field(None, ge=1, description="go on with as few when nodes are lost; null: `workers`")
    checkpoint_every: int = Field(100, ge=1, description="a lost worker costs at most so many steps")
    checkpoint_seconds: float = Field(600.0, gt=0, description="... and at most so long, and what an upload takes")

    @model_validator(mode="after")
    def _sensible(self) -> Finetune:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} must be at most workers={self.workers}")
        if self.frozen_weights == "fp8" and self.lora_rank is None:
            raise ValueError(
                "frozen_weights='fp8' needs a lora_rank: without adapters every parameter is trained, and none is "
                "frozen"
            )
        if self.frozen_weights == "fp8" and self.sharding == "fsdp":
            raise ValueError(
                "frozen_weights='fp8' and sharding='fsdp' exclude each other: sharded workers hold rows of floating "
                "numbers. Take sharding='none', with which each worker holds all frozen weights, a byte a number, or "
                "frozen_weights='full'"
            )
        return self


class Evaluate(Model):
    videos: str | None = Field(
        None, min_length=1, description="held-out videos, disjoint from data and queries; null: none"
    )
    files: str | None = Field(None, min_length=1, description="as data.files, for evaluate.videos")
    arms: tuple[Arm, ...] = Field(
        ("base", "random", "motive_whitened"),
        description="the arms that are held together; caption and random tell whether a selection is worth something",
    )
    timesteps: Literal["drawn"] | tuple[Annotated[float, Field(gt=0, lt=1000)], ...] = Field(
        "drawn",
        min_length=1,
        description="of held-out losses; drawn: as training draws them, others for each clip and noise",
    )
    noises: int = Field(6, ge=1, description="noises per clip and timestep, the same for every arm")
    twins: Twins = Field(
        (),
        description="spoiled versions of a held-out clip, its frames in another order: does an arm prefer the clip to "
        "them, and by how much; each costs as many passes as the clip",
    )
    generate: int = Field(10, ge=0, description="query captions that every arm turns into a video")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), description="of generated videos: one each a caption")
    steps: int = Field(50, ge=1, description="denoising steps")
    guidance: float = Field(5.0, ge=1, description="classifier-free guidance of generated videos")

    @model_validator(mode="after")
    def _has_clips_of_twins(self) -> Evaluate:
        if self.twins and self.videos is None:
            raise ValueError(
                f"twins={list(self.twins)} are of held-out clips, and there are none; name some (evaluate.videos), or "
                "no twins"
            )
        return self

    @property
    def passes(self) -> int:
        """Forward passes for the held-out losses of a clip, or of a twin of it, and an arm."""
        return self.noises if self.timesteps == "drawn" else self.noises * len(self.timesteps)


class Run(Model):
    """A complete configuration."""

    root: str = Field(min_length=1, description="the folder of the run, local or s3://")
    seed: int = Field(0, ge=0, description="of shared noise, of training and of every draw")
    data: Data
    queries: Queries
    model: VideoModelConfig
    motion: Motion = Motion()
    attribution: Attribution = Attribution()
    ranking: Ranking = Ranking()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()
    nightly: Nightly = Nightly()
    report: Report = Report()
    purge: Purge = Purge()
    explain: Explain = Explain()
    export: Export = Export()
    study: Study = Study()
    workbench: Workbench = Workbench()
    plan: Plan = Plan()
    prices: Prices = Prices()
    budget: Budget = Budget()
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    webhook: Webhook = Webhook()

    @field_validator("root")
    @classmethod
    def _folder(cls, value: str) -> str:
        if value == "null":
            raise ValueError("a run needs a folder; name one, for example runs/mine, or ./null for one of this name")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Run:
        faults = [
            *(*self._unfit_attribution(), *self._unfit_motion()),
            *(*self._unfit_shortlist(), *self._unfit_roots(), *self._unfit_export()),
        ]
        if faults:
            raise ValueError(". ".join(faults))
        return self

    def _unfit_attribution(self) -> Iterator[str]:
        """What the settings and frames of an attribution have against the ranking and the clips, as clauses."""
        a, d, r = self.attribution, self.data, self.ranking
        for key, one in (("attribution", a), ("attribution.shortlist", a.cheaper)):
            if one is None:
                continue
            try:
                compared(r.mask, one.settings)
            except ValueError as error:
                yield f"ranking.mask={r.mask!r}, {key}.settings: {error}"
            if one.blocks == "host" and not self.model.gradient_checkpointing:
                yield (
                    f"{key}.blocks='host' needs model.gradient_checkpointing: true; without it the copies of all "
                    "blocks would stay on the device until the backward pass"
                )
            if one.blocks == "host" and self.model.compile:
                yield (
                    f"{key}.blocks='host' calls every block with parameters of another place, for which it cannot be "
                    "compiled; use model.compile: false"
                )
            frames, fps = one.frames or d.frames, one.fps or d.fps
            if (frames - 1) / fps > (d.frames - 1) / d.fps + 1e-6:
                yield (
                    f"{key}.frames={frames} at {key}.fps={fps} last longer than a segment of data.frames={d.frames} at "
                    f"data.fps={d.fps}; take fewer frames or a higher rate"
                )

    def _unfit_shortlist(self) -> Iterator[str]:
        a, r = self.attribution, self.ranking
        if a.shortlist is None:
            return
        if a.cheaper == a.model_copy(update={"shortlist": None}):
            yield (
                "attribution.shortlist changes nothing of attribution, so it would be no cheaper; give it fewer "
                "settings, frames, a smaller height and width, or a part of the parameters"
            )
        if r.above is None and r.fraction > a.shortlist.top:
            yield (
                f"ranking.fraction={r.fraction:g} selects more clips than attribution.shortlist.top="
                f"{a.shortlist.top:g} lets have features; raise top, to twice the fraction or more, or lower the "
                "fraction"
            )

    def _unfit_roots(self) -> Iterator[str]:
        if self.ranking.roots and self.attribution.shortlist is not None:
            yield (
                "ranking.roots ranks the clips of several roots together, and attribution.shortlist lets the clips of "
                "each root compete among themselves; leave one of the two out"
            )

    def _unfit_motion(self) -> Iterator[str]:
        """What needs the motion of every clip where only that of queries is asked for."""
        if self.motion.of != "queries":
            return
        masked = [s for s in self.attribution.alone("clips").settings if s.mask == "motion"]
        arms = [arm for arm in (self.finetune.arm, *self.evaluate.arms) if arm in MOVING]
        needs = None
        if masked:
            needs = "attribution.settings take clips' gradients under mask: motion (give them `of: queries`)"
        elif arms:
            needs = f"the arm {arms[0]!r} picks clips by their motion"
        elif self.attribution.shortlist is not None:
            needs = "attribution.shortlist works on the motion table of the clips"
        if needs is not None:
            yield f"motion.of='queries', but {needs}; use motion.of: all, or leave that out"

    def _unfit_export(self) -> Iterator[str]:
        if self.export.arm not in get_args(Arm):
            yield f"export.arm={self.export.arm!r} is no arm; it must be one of {', '.join(get_args(Arm))}"

    def of(self, name: str) -> Run:
        """This run as the features of `clips`, or of `queries`, have it; `liked` clips are taken as queries are."""
        name = "queries" if name == "liked" else name
        changes: dict[str, Any] = {"attribution": self.attribution.alone(name)}
        if name != "queries":  # looks and twins are of queries alone
            plain: dict[str, Any] = {"looks": 1, "changes": ("colours",), "twins": (), "functional": "loss"}
            changes["queries"] = self.queries.model_copy(update=plain)
        return self.model_copy(update=changes)

    @property
    def looks(self) -> tuple[int, tuple[Change, ...]]:
        """In how many looks a video is attributed, and in what they differ, where this run is `of` clips or queries."""
        a, q = self.attribution, self.queries
        return (a.looks, CLIP_CHANGES) if a.looks > 1 else (q.looks, q.changes)

    @property
    def clip_roots(self) -> tuple[str, ...]:
        """The roots whose clips are ranked and trained on: the run's own, unless `ranking.roots` names others."""
        return self.ranking.roots or (self.root,)

    @property
    def geometry(self) -> tuple[int, float, int, int]:
        """Frames, fps, height and width at which gradients are taken."""
        a, d = self.attribution, self.data
        return a.frames or d.frames, a.fps or d.fps, a.height or d.height, a.width or d.width
