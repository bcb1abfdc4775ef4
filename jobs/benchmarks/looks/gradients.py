"""The projected gradients of a corpus of the synthetic world, under every setting that the rules ask for."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jobs.benchmarks.quality import problem
from jobs.benchmarks.untrained import with_random_weights
from pipeline import config, models, motion
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.config import Run
from pipeline.config.attribution import Setting
from pipeline.models import Conditioning, VideoModel, open_model
from pipeline.models.conditioning import Captions, split
from pipeline.motion import movement
from pipeline.projection import Projection
from pipeline.storage import stores
from pipeline.synthetic import shifted, world
from pipeline.synthetic.world import Scene
from pipeline.video import looks

Array = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]

TIMES = (751.0, 501.0)
CAPTIONS = ("own", "empty")
LOOKS = 8
TWINS = ("backwards", "slow_start")
MASKS = ("motion", "none")
DIM = 512

Base = Literal["demo", "slide"]


@dataclass(frozen=True)
class Cell:
    """A corpus and a base: the demo's model, or that of the benchmark of quality, which has seen things slide alone."""

    seed: int
    clips: int
    queries: int  # of a motion
    shifted: bool = False
    base: Base = "demo"

    @property
    def name(self) -> str:
        unusual = "-shifted" * self.shifted + f"-{self.base}" * (self.base != "demo")
        return f"{self.seed}-{self.clips}-{self.queries}{unusual}"

    def scenes(self) -> tuple[list[Scene], list[Scene]]:
        """Of the clips and of the queries."""
        if self.shifted:
            return shifted.corpus(self.seed + 1, self.clips), shifted.queries(self.seed + 2, self.queries)
        return world.corpus(self.seed + 1, self.clips), world.queries(self.seed + 2, self.queries)

    def model(self, run: Run) -> VideoModel:
        return open_model(run.model, torch.device("cpu")) if self.base == "demo" else problem.load_base()


@dataclass(frozen=True)
class Video:
    scene: Scene
    frames: Frames
    mask: Tensor  # [f, h, w]
    description: Array  # of its movement
    colours: Array  # of what moves


@dataclass(frozen=True)
class Corpus:
    """Moving clips and queries, and their projected gradients.

    `clips` are [captions, times, masks, N, k]; `queries` those of the queries as they are, [captions, times, Q, k], and
    `looks` under empty captions, the motion mask and the last of TIMES: themselves and each twin,
    [1 + twins, looks, Q, k].
    """

    clips: Sequence[Video]
    queries: Sequence[Video]
    of_clips: Array
    of_queries: Array
    of_looks: Array


class Taker:
    """A model with its projection: videos -> projected gradients."""

    def __init__(self, run: Run, model: VideoModel) -> None:
        self.run, self.model, self.text = run, model, Captions(model.text)
        self.gradients = ProjectedGradients(model.trained, Projection("gaussian", DIM, 0), hold=32)

    def take(self, videos: Sequence[tuple[Frames, Tensor, str]], settings: Sequence[Setting]) -> Array:
        """[videos, settings, k]"""
        return self.measured(videos, settings)[0]

    def measured(
        self, videos: Sequence[tuple[Frames, Tensor, str]], settings: Sequence[Setting]
    ) -> tuple[Array, Array, Array]:
        """Projected gradients [videos, settings, k], their lengths before, and the losses: [videos, settings]."""
        losses = []
        for frames, mask, caption in videos:
            latent, of_clip = split(encoded(frames))
            conditioning = {**of_clip, **self.text(caption)}
            losses.append(
                list(
                    take_clip(self.gradients, self.model, settings, latent, conditioning, mask, self.run.seed).values()
                )
            )
        projected, lengths = (part.numpy() for part in self.gradients.collect())
        shape = (len(videos), len(settings))
        return projected.reshape(*shape, -1), lengths.reshape(shape), np.array(losses, np.float32)


def encoded(frames: Frames) -> Conditioning:
    """What the demo's autoencoder makes of a video. All models here share it, it takes most of the time, and the same
    videos are asked for under several models, captions and times."""
    return _encoded(frames.tobytes(), frames.shape)


@functools.cache
def _encoded(pixels: bytes, shape: tuple[int, ...]) -> Conditioning:
    return _autoencoder().encode(np.frombuffer(pixels, np.uint8).reshape(shape).copy(), config.load("demo").data.fps)


@functools.cache
def _autoencoder() -> VideoModel:
    return open_model(config.load("demo").model, torch.device("cpu"))


def measured(run: Run, scenes: Sequence[Scene]) -> Iterator[Video]:
    """The scenes that move, with what RAFT says of them."""
    device = torch.device("cpu")
    raft = motion.load_raft(run.motion, device)
    for scene in scenes:
        frames = world.render(scene, run.data.height, run.data.width)
        flow = motion.estimate(frames, raft, run.motion, device)
        mask = motion.motion_mask(flow, run.motion, models.grid(run))
        if mask is not None and scene.motion:
            of = movement.movement(frames, flow - motion.camera_motion(flow))
            yield Video(scene, frames, mask, np.array(of["description"]), np.array(of["colours"]))


def corpus(cell: Cell, folder: Path) -> Corpus:
    """A cell's corpus with its gradients; from the folder where they are there."""
    run = config.load("demo", {})
    of_clips, of_queries = (list(measured(run, scenes)) for scenes in cell.scenes())
    path = folder / f"{cell.name}.npz"
    if not path.is_file():
        taker = Taker(run, cell.model(run))
        _write(path, _gradients(taker, of_clips, of_queries, CAPTIONS, TIMES))
    return Corpus(of_clips, of_queries, *_read(path))


def untrained(trained: Corpus, cell: Cell, folder: Path) -> Corpus:
    """The same videos under a model that has learnt nothing: under empty captions and the last of TIMES alone."""
    path = folder / f"{cell.name}-untrained.npz"
    if not path.is_file():
        run = config.load("demo", {})
        taker = Taker(run, with_random_weights(cell.model(run)))
        _write(path, _gradients(taker, trained.clips, trained.queries, CAPTIONS[-1:], TIMES[-1:]))
    return Corpus(trained.clips, trained.queries, *_read(path))


def _write(path: Path, arrays: tuple[Array, Array, Array]) -> None:
    with stores.writing(str(path)) as file:
        np.savez(file, clips=arrays[0], queries=arrays[1], looks=arrays[2])


def _read(path: Path) -> tuple[Array, Array, Array]:
    with np.load(path) as arrays:
        return arrays["clips"], arrays["queries"], arrays["looks"]


def _gradients(
    taker: Taker, clips: Sequence[Video], queries: Sequence[Video], captions: Sequence[str], times: Sequence[float]
) -> tuple[Array, Array, Array]:
    """`of_clips`, `of_queries` and `of_looks` of a Corpus."""
    both = [[Setting(timestep=t, mask=mask) for mask in MASKS] for t in times]
    masked = [[Setting(timestep=t, mask="motion")] for t in times]
    last = masked[-1]

    def of(videos: Sequence[Video], caption: str, settings: Sequence[Setting]) -> Array:
        named = [(v.frames, v.mask, v.scene.caption if caption == "own" else "") for v in videos]
        return taker.take(named, settings)

    of_clips = [[of(clips, caption, settings).transpose(1, 0, 2) for settings in both] for caption in captions]
    of_queries = [[of(queries, caption, settings)[:, 0] for settings in masked] for caption in captions]
    of_looks = [_in_looks(taker, queries, name, last) for name in (None, *TWINS)]
    return np.array(of_clips), np.array(of_queries), np.array(of_looks)


def _in_looks(taker: Taker, queries: Sequence[Video], name: str | None, settings: Sequence[Setting]) -> Array:
    """The queries, or a twin of each, in every look: [looks, Q, k]."""
    scenes, run = {video.scene.name: video for video in queries}, taker.run
    if name is not None:
        device = torch.device("cpu")
        raft = motion.load_raft(run.motion, device)
    videos = []
    for key, video in scenes.items():
        frames, mask = video.frames, video.mask
        if name is not None:
            frames = looks.twin(frames, name, key)
            twin_mask = motion.motion_mask(
                motion.estimate(frames, raft, run.motion, device), run.motion, models.grid(run)
            )
            assert twin_mask is not None, "the frames of what moves move in every order"
            mask = twin_mask
        videos += [(looks.recoloured(frames, key, look), mask, "") for look in range(LOOKS)]
    return taker.take(videos, settings)[:, 0].reshape(len(scenes), LOOKS, -1).transpose(1, 0, 2)
