"""Every way to score a clip for a motion: the product's, its variants, and the controls that a claim must beat.

A score is the mean influence on the motion's queries: [N, T]. Rows that a method cannot score (no motion) are NaN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jobs.benchmarks.quality.kernels import Grams
from jobs.benchmarks.quality.problem import Clips
from pipeline.motion import judge
from pipeline.ranking import votes

Floats = npt.NDArray[np.float64]
Place = tuple[float, int]  # timestep and noise


@dataclass(frozen=True)
class Method:
    """How gradients become influence. `pair` names the masks of a kernel (`kernels.PAIRS`)."""

    places: tuple[Place, ...]
    pair: str = "motion"
    whiten: float | None = 0.01
    by_part: bool = False  # each part of the model normalised by itself
    whitened_by_part: bool = False  # each part whitened by itself, and the mean of what they say
    parts: tuple[int, ...] | None = None  # those parts alone
    lengths: bool = False  # products of gradients as long as they are, instead of cosines

    @property
    def masked(self) -> bool:
        """Whether a clip without motion has no score."""
        return self.pair not in ("none", "crossed")


def kernel(grams: Mapping[Place, Grams], method: Method) -> Floats:
    """Cosines (or products) of whole gradients, mean over the settings: [M, M]."""
    cosines = [
        _cosines(grams[place][method.pair], _lengths(grams[place], method.pair), method) for place in method.places
    ]
    total: Floats = np.mean(cosines, axis=0)
    return total


def _lengths(grams: Grams, pair: str) -> tuple[Floats, Floats]:
    """The squared lengths of each part of every row's and column's gradient: [parts, M], [parts, M]."""
    sides = ("motion", "none") if pair == "crossed" else (pair, pair)
    a, b = (np.einsum("pii->pi", grams[side]).astype(np.float64) for side in sides)
    return a, b


def _cosines(gram: npt.NDArray[np.float32], lengths: tuple[Floats, Floats], method: Method) -> Floats:
    chosen = list(range(len(gram)) if method.parts is None else method.parts)
    parts, a, b = gram[chosen].astype(np.float64), lengths[0][chosen], lengths[1][chosen]
    if method.by_part:
        scaled = parts / np.sqrt(np.maximum(a[:, :, None] * b[:, None, :], 1e-60))
        return np.asarray(scaled.mean(0))
    if method.lengths:
        return np.asarray(parts.sum(0) / a.sum(0).mean())
    length = np.sqrt(np.maximum(a.sum(0)[:, None] * b.sum(0)[None], 1e-60))
    return np.asarray(parts.sum(0) / length)


def influence(cosines: Floats, clips: int, whiten: float | None, rows: npt.NDArray[np.bool_]) -> Floats:
    """[M, M] -> [N, Q]: `ranking.influence` of whole gradients. The whitened product needs the kernel alone, because
    Phi (Phi^T Phi / N + l)^-1 = (Phi Phi^T / N + l)^-1 Phi. Only `rows` of the clips take part; others are NaN."""
    at = np.flatnonzero(rows)
    plain = cosines[at][:, clips:]
    scores = np.full((clips, cosines.shape[1] - clips), np.nan)
    if whiten is None:
        scores[at] = plain
    else:
        own = cosines[np.ix_(at, at)]
        scores[at] = np.linalg.solve(own / len(at) + whiten * np.eye(len(at)), plain)
    return scores


def by_motion(values: Floats, queries: Clips, motions: Sequence[str]) -> Floats:
    """Mean over each motion's queries: [N, Q] -> [N, T]."""
    return np.stack([values[:, queries.of(motion)].mean(1) for motion in motions], 1)


def values(grams: Mapping[Place, Grams], method: Method, clips: Clips) -> Floats:
    """Influence of every clip on every query by whole gradients: [N, Q]. Rows without motion are NaN under the mask.

    Parts that are whitened each by itself count alike: the influence by each is in units of its spread over clips and
    queries."""
    if method.whitened_by_part:
        count = len(next(iter(grams.values()))[method.pair])
        alone = (replace(method, whitened_by_part=False, parts=(part,)) for part in range(count))
        of_parts = [values(grams, one, clips) for one in alone]
        return np.asarray(np.mean([of_part / np.nanstd(of_part) for of_part in of_parts], axis=0))
    rows = clips.moving if method.masked else np.ones(len(clips), bool)
    cosines = kernel(grams, method)
    if method.pair == "crossed":  # masked queries, unmasked clips: whitened by the unmasked kernel
        joined = kernel(grams, replace(method, pair="none"))
        joined[: len(clips), len(clips) :] = cosines[len(clips) :, : len(clips)].T
        cosines = joined
    return influence(cosines, len(clips), method.whiten, rows)


def voted(values: Floats) -> Floats:
    """How many of the queries each clip is among the top tenth of: [N, Q] -> [N]; NaN where it has no influence."""
    has = np.isfinite(values).all(1)
    scores = np.full(len(values), np.nan)
    scores[has] = votes(values[has].astype(np.float32), 0.1)
    return scores


def gradient_lengths(grams: Grams) -> Floats:
    """The length of every plain gradient of a setting: [M]."""
    squares: Floats = np.einsum("pii->i", grams["none"]).astype(np.float64)
    return np.sqrt(np.maximum(squares, 0))


# --- controls: what needs no gradient ---------------------------------------------------------------------------------


def overlap(clips: Clips, queries: Clips, motions: Sequence[str]) -> Floats:
    """Cosines of the masks alone."""
    return _cosines_of(clips.mask, queries.mask, clips, queries, motions)


def raw_latents(clips: Clips, queries: Clips, motions: Sequence[str]) -> Floats:
    """Cosines of the latents alone."""
    return _cosines_of(clips.latent, queries.latent, clips, queries, motions)


def _cosines_of(a: Tensor, b: Tensor, clips: Clips, queries: Clips, motions: Sequence[str]) -> Floats:
    x, y = (v.flatten(1).numpy().astype(np.float64) for v in (a, b))
    x, y = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (x, y))
    scores = by_motion(x @ y.T, queries, motions)
    scores[~clips.moving] = np.nan
    return scores


def caption_match(of_clips: Sequence[str], of_queries: Sequence[str], queries: Clips, motions: Sequence[str]) -> Floats:
    """How many words a caption shares with those of a motion's queries, of all words of both: the mean over them."""
    words, asked = ([_words(caption) for caption in captions] for captions in (of_clips, of_queries))
    likeness = np.array([[len(a & b) / max(1, len(a | b)) for b in asked] for a in words], np.float64)
    return by_motion(likeness, queries, motions)


def _words(caption: str) -> frozenset[str]:
    return frozenset(word.lower() for word in re.findall(r"[^\W_]+", caption))


def nearest_flow(clips: Clips, queries: Clips, motions: Sequence[str]) -> Floats:
    """Less the judge's distance of a clip's flow from that of the nearest query of each motion. Uses queries that
    move."""
    rows = np.flatnonzero(np.isin(queries.motions, motions) & queries.moving)
    taught = judge.taught([(str(queries.motions[row]), queries.movement[row]) for row in rows.tolist()])
    return np.stack([-taught.courses(motion, clips.movement).mean(1) for motion in motions], 1)


def magnitude(clips: Clips, motions: Sequence[str]) -> Floats:
    scores: Floats = np.repeat(clips.magnitude[:, None].astype(np.float64), len(motions), 1)
    return scores


def chance(clips: Clips, motions: Sequence[str]) -> Floats:
    return np.random.default_rng(11).standard_normal((len(clips), len(motions)))


def true_motion(clips: Clips, motions: Sequence[str]) -> Floats:
    """The oracle: 1 for a real clip of the motion, and 0."""
    return np.stack([((clips.motions == m) & (clips.kinds == "real")).astype(np.float64) for m in motions], 1)
