"""What else can be asked of queries than their gradients in other colours: each change of their looks by itself, more
twins, the name of their motion as their caption, and the same looks under other motions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from jobs.benchmarks.looks.gradients import LOOKS, TIMES, Array, Cell, Corpus, Frames, Taker, Video, encoded
from pipeline import config, models, motion
from pipeline.config.attribution import Change, Setting
from pipeline.storage import stores
from pipeline.synthetic import shifted, world
from pipeline.video import looks

MORE_TWINS = ("shuffled", "frozen", "stuttering")
FEW = 4  # looks of these twins
OTHERS = 3  # motions of the same looks
CPU = torch.device("cpu")

MASKED = (Setting(timestep=TIMES[-1], mask="motion"),)
PLAIN = (Setting(timestep=TIMES[-1], mask="none"),)


@dataclass(frozen=True)
class Changes:
    """Projected gradients of a corpus' queries, masked, at the last of TIMES, under empty captions unless said."""

    background: Array  # before other backgrounds, [looks, Q, k]
    mirrored: Array  # as they are and mirrored, [2, Q, k]
    all: Array  # other colours before other backgrounds, every second one mirrored, [looks, Q, k]
    twins: Array  # MORE_TWINS in other colours, [twins, FEW, Q, k]
    words: Array  # under the name of their motion, [Q, k]
    others: Array  # other motions with their looks, [OTHERS, Q, k]
    lengths: Array  # of the clips' gradients, unmasked, under their own captions, [N]
    losses: Array  # of the clips in the same way, [N]
    latents: Array  # cosines of the latents themselves, [N, Q]


def changes(corpus: Corpus, cell: Cell, folder: Path) -> Changes:
    """From the folder where they are there."""
    path = folder / f"{cell.name}-changes.npz"
    if not path.is_file():
        run = config.load("demo", {})
        computed = _computed(Taker(run, cell.model(run)), corpus, cell)
        with stores.writing(str(path)) as file:
            np.savez(file, **{field.name: getattr(computed, field.name) for field in fields(Changes)})
    with np.load(path) as arrays:
        return Changes(**{field.name: arrays[field.name] for field in fields(Changes)})


def _computed(taker: Taker, corpus: Corpus, cell: Cell) -> Changes:
    queries = Versions(taker, corpus.queries)
    own = [(video.frames, video.mask, video.scene.caption) for video in corpus.clips]
    _, lengths, losses = taker.measured(own, PLAIN)
    words = [(video.frames, video.mask, world.VERBS[video.scene.motion]) for video in corpus.queries]
    return Changes(
        queries.in_looks(("background",), LOOKS),
        queries.in_looks(("mirrored",), 2),
        queries.in_looks(("colours", "background", "mirrored"), LOOKS),
        np.stack([queries.twins(name) for name in MORE_TWINS]),
        taker.take(words, MASKED)[:, 0],
        queries.with_other_motions(cell),
        lengths[:, 0],
        losses[:, 0],
        _cosines(corpus),
    )


class Versions:
    """Queries, or clips, in versions that a rule asks for."""

    def __init__(self, taker: Taker, videos: Sequence[Video]) -> None:
        self.taker, self.videos = taker, videos
        self.raft = motion.load_raft(taker.run.motion, CPU)

    def flow(self, frames: Frames) -> torch.Tensor:
        return motion.estimate(frames, self.raft, self.taker.run.motion, CPU)

    def mask(self, frames: Frames) -> torch.Tensor | None:
        return motion.motion_mask(self.flow(frames), self.taker.run.motion, models.grid(self.taker.run))

    def in_looks(self, of: Sequence[Change], count: int) -> Array:
        """[looks, Q, k]"""
        videos = []
        for video in self.videos:
            flow = self.flow(video.frames)
            moving = motion.moving_region(flow - motion.camera_motion(flow), *video.frames.shape[1:3]).numpy()
            for look in range(count):
                frames, is_mirrored = looks.in_look(video.frames, video.scene.name, look, of, moving)
                videos.append((frames, video.mask.flip(-1) if is_mirrored else video.mask, ""))
        return self._by_look(self.taker.take(videos, MASKED), count)

    def twins(self, name: str) -> Array:
        """A twin of each in FEW other colours: [FEW, Q, k]."""
        videos = []
        for video in self.videos:
            frames = looks.twin(video.frames, name, video.scene.name)
            mask = self.mask(frames)
            assert mask is not None, "the frames of what moves move in every order"
            videos += [(looks.recoloured(frames, video.scene.name, look), mask, "") for look in range(FEW)]
        return self._by_look(self.taker.take(videos, MASKED), FEW)

    def with_other_motions(self, cell: Cell) -> Array:
        """What has each query's looks and moves otherwise: [OTHERS, Q, k]."""
        videos = [(frames, mask, "") for video in self.videos for frames, mask in self._others(video, cell)]
        return self._by_look(self.taker.take(videos, MASKED), OTHERS)

    def _others(self, video: Video, cell: Cell) -> Iterator[tuple[Frames, torch.Tensor]]:
        """OTHERS of the same looks, of motions that the query's name determines; one that stands still is passed
        over."""
        scene_of = shifted.scene if cell.shifted else world.scene
        scene, data = video.scene, self.taker.run.data
        motions = [name for name in world.MOTIONS if name != scene.motion]
        order = np.random.default_rng([cell.seed, *scene.name.encode()]).permutation(len(motions))
        left = OTHERS
        for name in (motions[n] for n in order.tolist()):
            if left:
                other = scene_of(cell.seed, f"other-{scene.name}", "real", name)
                same = replace(
                    other, background=scene.background, bodies=shifted.dressed(other.bodies, scene.bodies[0])
                )
                frames = world.render(same, data.height, data.width)
                mask = self.mask(frames)
                if mask is not None:
                    left -= 1
                    yield frames, mask
        assert not left, f"of nine motions fewer than {OTHERS} move"

    def _by_look(self, projected: Array, count: int) -> Array:
        """[Q x looks, 1, k] -> [looks, Q, k]"""
        return projected[:, 0].reshape(len(self.videos), count, -1).transpose(1, 0, 2)


def _cosines(corpus: Corpus) -> Array:
    sides = []
    for videos in (corpus.clips, corpus.queries):
        rows = np.stack([encoded(video.frames)["latent"].numpy().ravel() for video in videos])
        sides.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    cosines: Array = sides[0] @ sides[1].T
    return cosines
