"""Rankings out of one corpus' gradients, by name, and controls that need no model: each [clips, queries]."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.looks.both_sides import BothSides
from jobs.benchmarks.looks.changes import FEW, MORE_TWINS, Changes
from jobs.benchmarks.looks.gradients import LOOKS, TWINS, Array, Corpus, Video
from pipeline.attribution.functionals import query_feature
from pipeline.config.attribution import Functional
from pipeline.motion import colours, judge
from pipeline.ranking import influence, unit_settings

Scores = npt.NDArray[np.float64]

OWN, EMPTY = 0, 1
T751, T501 = 0, 1
MASKED, PLAIN = 0, 1
WHITEN = 0.01
WEIGHTS = (0.5, 2.0)  # of the twins' part, where the real query's is one
DIRECTIONS = (16, 64)  # of the 512 that a feature has


def rules(corpus: Corpus) -> Iterator[tuple[str, Scores]]:
    """What the product can be asked for."""
    clips, queries = corpus.of_clips, corpus.of_queries

    def rank(of_clips: Array, of_queries: Array, whiten: float | None = WHITEN) -> Scores:
        return influence(unit_settings(of_clips, 1), unit_settings(of_queries, 1), whiten).astype(np.float64)

    yield "the paper's: both masked, cosine, 751", rank(clips[OWN, T751, MASKED], queries[OWN, T751], None)
    yield "queries masked, clips plain, 751 (the demo)", rank(clips[OWN, T751, PLAIN], queries[OWN, T751])
    yield "queries masked, clips plain, 501", rank(clips[OWN, T501, PLAIN], queries[OWN, T501])
    yield "both masked, 751", rank(clips[OWN, T751, MASKED], queries[OWN, T751])
    yield "both masked, 501", rank(clips[OWN, T501, MASKED], queries[OWN, T501])
    yield "both masked, empty captions, 751", rank(clips[EMPTY, T751, MASKED], queries[EMPTY, T751])
    masked, plain = clips[EMPTY, T501, MASKED], clips[EMPTY, T501, PLAIN]
    yield "both masked, empty captions, 501", rank(masked, queries[EMPTY, T501])
    for looks in (4, LOOKS):
        yield f"the same, {looks} looks, loss", rank(masked, asked(corpus, "loss", looks))
    for functional in ("preference", "both"):
        yield f"the same, {LOOKS} looks, {functional}", rank(masked, asked(corpus, functional))
    yield f"the same, {LOOKS} looks, both, clips plain", rank(plain, asked(corpus, "both"))
    for count in DIRECTIONS:
        spanned = directions(corpus, count)
        of_clips, of_queries = (part - part @ spanned.T @ spanned for part in (masked, asked(corpus, "loss")))
        name = f"the same, {LOOKS} looks, loss, {count} directions of looks taken out"
        yield name, rank(of_clips, of_queries)


def changed(corpus: Corpus, of: Changes) -> Iterator[tuple[str, Scores]]:
    """Queries in looks that differ otherwise, against one twin or more, and against the same looks in other motions:
    all masked on both sides, under empty captions, at 501, whitened."""
    masked, own = corpus.of_clips[EMPTY, T501, MASKED], corpus.of_queries[EMPTY, T501]
    real, few = corpus.of_looks[0], corpus.of_looks[0, :FEW]
    twins = {name: corpus.of_looks[place, :FEW] for place, name in enumerate(TWINS, 1)}
    twins |= dict(zip(MORE_TWINS, of.twins, strict=True))

    def rank(of_queries: Array, of_clips: Array = masked) -> Scores:
        return influence(unit_settings(of_clips, 1), unit_settings(of_queries, 1), WHITEN).astype(np.float64)

    for name, looks in (("background", of.background), ("mirrored", of.mirrored), ("all three", of.all)):
        yield f"{len(looks)} looks that differ in {name}", rank(over(looks, (), "loss"))
    for name, twin in twins.items():
        yield f"{FEW} looks, both, the twin {name}", rank(over(few, [twin], "both"))
    yield f"{FEW} looks, both, five twins", rank(over(few, list(twins.values()), "both"))
    for weight in WEIGHTS:
        yield f"{LOOKS} looks, both, two twins of weight {weight:g}", rank(weighted(real, corpus.of_looks[1:], weight))
    yield "against three motions of the same looks", rank(over(own[None], list(of.others[:, None]), "both"))
    yield "the name of the motion as the query's caption", rank(of.words, corpus.of_clips[OWN, T501, MASKED])


def on_both_sides(corpus: Corpus, changed: Changes, of: BothSides) -> Iterator[tuple[str, Scores]]:
    """Clips as queries are: in several looks, or against their own twins. Untrained models in the same form."""
    own, backwards = corpus.of_clips[EMPTY, T501, MASKED], of.backwards
    in_looks = over(of.clips, (), "loss")

    def rank(of_clips: Array, of_queries: Array) -> Scores:
        return influence(unit_settings(of_clips, 1), unit_settings(of_queries, 1), WHITEN).astype(np.float64)

    yield f"queries as they are, clips in {FEW} looks", rank(in_looks, corpus.of_queries[EMPTY, T501])
    yield f"queries in {LOOKS} looks of colours, clips in {FEW}", rank(in_looks, asked(corpus, "loss"))
    yield f"queries in {LOOKS} looks of all three, clips in {FEW}", rank(in_looks, over(changed.all, (), "loss"))
    preferred = over(corpus.of_looks[0], [corpus.of_looks[1]], "preference")
    yield "clips and queries less themselves backwards", rank(_unit(own) - _unit(backwards), preferred)
    untrained_clips, untrained = over(of.untrained_clips, (), "loss"), over(of.untrained_queries, (), "loss")
    name = f"control: untrained model, queries in {LOOKS} looks of all three, clips in {FEW}"
    yield name, rank(untrained_clips, untrained)


def over(real: Array, twins: Sequence[Array] | Array, functional: Functional) -> Array:
    """Features of queries in looks, [looks, Q, k], against twins in the same: [Q, k]."""
    stacked = np.array(twins, np.float32).reshape(len(twins), *real.shape)
    return np.stack([query_feature(real[:, q], stacked[:, :, q], functional) for q in range(real.shape[1])])


def weighted(real: Array, twins: Array, weight: float) -> Array:
    """The functional `both` with another weight of the twins' part than one: [Q, k]."""
    loss = over(real, (), "loss")
    return _unit(loss) + weight * sum(_unit(over(real, [twin], "preference")) for twin in twins)


def asked(corpus: Corpus, functional: Functional, looks: int = LOOKS) -> Array:
    """The queries' features by a functional: [Q, k]."""
    return over(corpus.of_looks[0, :looks], corpus.of_looks[1:, :looks], functional)


def directions(corpus: Corpus, count: int) -> Array:
    """The directions in which a query's gradient differs most from one of its looks to another, over all queries:
    orthonormal, [count, k]."""
    real = corpus.of_looks[0] / np.linalg.norm(corpus.of_looks[0], axis=-1, keepdims=True)
    apart = (real - real.mean(0)).reshape(-1, real.shape[-1])
    first: Array = np.linalg.svd(apart, full_matrices=False)[2][:count]
    return first


def forward_only(differences: Array) -> Iterator[tuple[str, Scores]]:
    """Rankings by what unlearning a motion's queries does to a clip's loss: [masked and plain, N, Q]."""
    for name, scores in zip(("masked", "plain"), differences, strict=True):
        yield f"forward passes alone: mirrored unlearning, clips {name}, 501", scores.astype(np.float64)


def controls(corpus: Corpus, of: Changes) -> Iterator[tuple[str, Scores]]:
    clips, queries = corpus.clips, corpus.queries
    masks = [_unit(np.stack([video.mask.numpy().ravel() for video in side])) for side in (clips, queries)]
    yield "control: overlap of masks", (masks[0] @ masks[1].T).astype(np.float64)
    histograms = [np.stack([video.colours for video in side]) for side in (clips, queries)]
    yield "control: colours of what moves", colours.alike(*histograms)
    words = [[set(_words(video)) for video in side] for side in (clips, queries)]
    yield "control: words of the caption", np.array([[len(a & b) / len(a | b) for b in words[1]] for a in words[0]])
    yield "control: flow, the judge's distance", _by_flow(clips, queries)
    fast = np.array([video.description[: judge.STRETCHES].mean() for video in clips], np.float64)
    for name, of_clips in (("magnitude", fast), ("gradient length", of.lengths), ("own loss", of.losses)):
        yield f"control: {name}", np.repeat(of_clips[:, None].astype(np.float64), len(queries), 1)
    yield "control: raw latents", of.latents.astype(np.float64)


def untrained(corpus: Corpus) -> tuple[str, Scores]:
    """The rule of both functionals under a model that has learnt nothing."""
    of_clips = unit_settings(corpus.of_clips[0, 0, MASKED], 1)
    scores = influence(of_clips, unit_settings(asked(corpus, "both"), 1), WHITEN)
    return "control: untrained model, 8 looks, both", scores.astype(np.float64)


def _by_flow(clips: Sequence[Video], queries: Sequence[Video]) -> Scores:
    descriptions = [(video.scene.motion, video.description.astype(np.float64)) for video in queries]
    spread = judge.taught(descriptions).spread
    numbers = [np.stack([video.description for video in side]) / spread for side in (clips, queries)]
    apart: Scores = np.stack([np.abs(numbers[0] - query).mean(1) for query in numbers[1]], 1)
    return -apart


def _words(video: Video) -> list[str]:
    return re.findall(r"\w+", video.scene.caption)


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
