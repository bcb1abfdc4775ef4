"""What is compared, by name: the paper's rule, ours, their parts, and the controls that each must beat; what else could
have been done, one change at a time; and cheaper attributions beside the full one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jobs.benchmarks.quality import influences, versions
from jobs.benchmarks.quality.influences import Floats, Method, Place
from jobs.benchmarks.quality.kernels import Grams
from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.quality.retraining import Losses
from jobs.benchmarks.quality.tasks import PAPER
from pipeline.statistics.correlations import spearman_by_column

# Kernels at PAPER beside the shared ones (`kernels.VARIANTS`).
CONTROLS = ("others",)
OTHERS = ("adam", "projected", "own", "robust", "steady", "mixed", "short", "small", "tuned", *CONTROLS)
WHITEN = 0.01
# Pairs, and lambda, over every setting; chosen in sight of the subsets (`datamodel.cross_fitted` judges that).
BEST = (("crossed",), WHITEN)
ONE = (PAPER,)
QUERIES = (1, 3, 5)  # of a motion, where all others have all of them
UNTRAINED, CAPTION = "control: untrained model, as the best", "control: caption match"
OWN_LOSS, LENGTH = "control: own loss", "control: gradient length"
OVERLAP, RAW, MAGNITUDE = "control: mask overlap alone", "control: raw latents", "control: motion magnitude"
FLOW, RANDOM = "control: nearest flow", "control: random"
ONE_LOOK = f"both masked, empty captions, timestep {versions.PLACE[0]:g}, whitened"
LOOKS, TWINS = f"the same, {versions.LOOKS} looks", f"the same, {versions.LOOKS} looks and twins"
UNLEARNING = tuple(f"forward passes alone: mirrored unlearning, clips {of}" for of in ("masked", "plain"))
Captions = tuple[Sequence[str], Sequence[str]]  # of the clips, of the queries
Named = tuple[str, Floats]  # what was changed, and the score of every clip for every motion [N, T]
TOP, LISTED = 0.1, 0.2  # the full one's best tenth, looked for in the cheap one's best fifth
LAST = 3  # parts of the model: the last block and what follows


@dataclass(frozen=True)
class Kernels:
    """Gram matrices by place, under shared noise; those of an untrained model; the same as the first under noises of
    other numbers; and OTHERS."""

    shared: Mapping[Place, Grams]
    untrained: Mapping[Place, Grams]
    repeated: Mapping[Place, Grams]
    others: Mapping[str, Grams]

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(self.shared)


@dataclass(frozen=True)
class Scored:
    """Influence on every query [N, Q], or on every motion where `by_query` is false, and backward passes a clip."""

    values: Floats
    gradients: int = 0
    by_query: bool = True


def compared(
    computed: Kernels, clips: Clips, queries: Clips, motions: tuple[str, ...], captions: Captions, own: Losses
) -> dict[str, Scored]:
    """The methods of the main table, and the controls. `own` [N, 2] are the clips' losses under the base."""
    every, many = computed.places, f"{len(computed.places)} settings"
    others = [place for place in every if place[0] != PAPER[0]]

    def of(pair: str, whiten: float | None, places: tuple[Place, ...] = (PAPER,)) -> Scored:
        return Scored(influences.values(computed.shared, Method(places, pair, whiten), clips), len(places))

    table = {
        "motive": of("motion", None),
        "no mask": of("none", None),
        "motive, whitened": of("motion", WHITEN),
        "no mask, whitened": of("none", WHITEN),
        "queries masked, whitened": of("crossed", WHITEN),
        **{f"queries masked, timestep {t:g}, whitened": of("crossed", WHITEN, ((t, n),)) for t, n in others},
        f"motive, {many}": of("motion", None, every),
        f"no mask, {many}": of("none", None, every),
        f"motive, {many}, whitened": of("motion", WHITEN, every),
        f"no mask, {many}, whitened": of("none", WHITEN, every),
        "best": combined(computed, clips, *BEST),
    }
    for name, pair in (("motive", "motion"), ("queries masked", "crossed")):
        by_part = Method(every, pair, WHITEN, whitened_by_part=True)
        values = influences.values(computed.shared, by_part, clips)
        table[f"{name}, {many}, whitened part by part"] = Scored(values, len(every))
    for grams, title in ((computed.untrained[PAPER], "untrained model"),
                         (computed.others["others"], "own mask, another clip's latent")):  # fmt: skip
        values = influences.values({PAPER: grams}, Method((PAPER,), "motion", WHITEN), clips)
        table[f"control: {title}, whitened"] = Scored(values, 1)
    blank = replace(computed, shared=computed.untrained)
    table[UNTRAINED] = combined(blank, clips, *BEST)
    lengths = influences.gradient_lengths(computed.shared[PAPER])[: len(clips)]
    for name, values in (
        (CAPTION, influences.caption_match(*captions, queries, motions)),
        (OWN_LOSS, np.repeat(own[:, 1:], len(motions), 1)),
        (LENGTH, np.repeat(lengths[:, None], len(motions), 1)),
        (OVERLAP, influences.overlap(clips, queries, motions)),
        (RAW, influences.raw_latents(clips, queries, motions)),
        (FLOW, influences.nearest_flow(clips, queries, motions)),
        (MAGNITUDE, influences.magnitude(clips, motions)),
        (RANDOM, influences.chance(clips, motions)),
        ("oracle: the clip's true motion", influences.true_motion(clips, motions)),
    ):
        table[name] = Scored(values, 0, by_query=False)
    return table


def by_versions(products: Grams, unlearnt: Floats, clips: Clips) -> dict[str, Scored]:
    """Rules by looks and twins of queries (`versions.grams`), both sides masked under empty captions; and mirrored
    unlearning [2, N, Q] (`unlearning.differences`), which takes no gradient of a clip."""
    at = {versions.PLACE: products}
    pairs = {ONE_LOOK: versions.ONE_LOOK, LOOKS: versions.IN_LOOKS, TWINS: versions.WITH_TWINS}
    table = {
        name: Scored(influences.values(at, Method((versions.PLACE,), pair, WHITEN), clips), 1)
        for name, pair in pairs.items()
    }
    return table | {name: Scored(values) for name, values in zip(UNLEARNING, unlearnt, strict=True)}


def combined(computed: Kernels, clips: Clips, pairs: Sequence[str], whiten: float | None = WHITEN) -> Scored:
    """The mean of several pairs' influence, each in units of its own spread, over every setting; of a clip without
    motion the mean of those that it has."""
    of_pairs = [influences.values(computed.shared, Method(computed.places, pair, whiten), clips) for pair in pairs]
    scaled = np.stack([values / np.nanstd(values) for values in of_pairs])
    has = np.isfinite(scaled)
    mean = np.where(has, scaled, 0).sum(0) / np.maximum(has.sum(0), 1)
    of_clips = {"motion" if pair == "motion" else "none" for pair in pairs}
    return Scored(np.where(has.any(0), mean, np.nan), len(of_clips) * len(computed.places))


def motion_scores(scored: Scored, queries: Clips, motions: tuple[str, ...]) -> Floats:
    """[N, T]: the mean over each motion's queries."""
    return influences.by_motion(scored.values, queries, motions) if scored.by_query else scored.values


# --- what else could have been done, one change at a time -------------------------------------------------------------


def ablations(
    computed: Kernels, clips: Clips, queries: Clips, motions: Sequence[str], parts: Sequence[str]
) -> Iterator[Named]:
    """All of them. `parts` names the model's (`kernels.parts`), in order."""
    yield from _of_one_setting(computed, clips, queries, motions)
    yield from _of_every_setting(computed, clips, queries, motions, parts)


def _of_one_setting(computed: Kernels, clips: Clips, queries: Clips, motions: Sequence[str]) -> Iterator[Named]:
    def of(name: str, method: Method, at: str | None = None) -> Named:
        grams = computed.shared if at is None else dict.fromkeys(method.places, computed.others[at])
        return name, influences.by_motion(influences.values(grams, method, clips), queries, motions)

    ours = Method(ONE, "motion", WHITEN)
    yield of("motive, whitened, timestep 751", ours)
    for place in computed.places:
        if place != PAPER:
            yield of(f"timestep {place[0]:g}, noise {place[1]}", Method((place,), "motion", WHITEN))
    yield of("a noise of its own for each clip", ours, "own")
    yield of("masks up to a quantile", ours, "robust")
    yield of("camera motion subtracted", ours, "steady")
    yield of("by Adam's second moments", Method(ONE, "adam_motion", WHITEN), "adam")
    yield of("gradients after fine-tuning on everything", ours, "tuned")
    yield of("clips of half the height and width", ours, "small")
    yield of("clips of five frames", ours, "short")
    yield of("every second clip of five frames", ours, "mixed")
    values = influences.values(computed.shared, ours, clips)
    voted = [influences.voted(values[:, queries.of(motion)]) for motion in motions]
    yield "votes instead of the mean", np.stack(voted, 1)
    yield from _of_few_queries("", values, queries, motions)
    for pair in computed.others["projected"]:
        if pair != "seconds":
            yield of(f"projected: {pair}", Method(ONE, pair, WHITEN), "projected")
    yield of("projected: gaussian-512, not whitened", Method(ONE, "gaussian-512", None), "projected")


def _of_few_queries(start: str, values: Floats, queries: Clips, motions: Sequence[str]) -> Iterator[Named]:
    for count in QUERIES:
        few = [values[:, queries.of(motion)[:count]].mean(1) for motion in motions]
        yield f"{start}{count} of the queries of each motion", np.stack(few, 1)


def _of_every_setting(
    computed: Kernels, clips: Clips, queries: Clips, motions: Sequence[str], parts: Sequence[str]
) -> Iterator[Named]:
    places = computed.places
    start = f"{len(places)} settings"

    def of(name: str, method: Method) -> Named:
        values = influences.values(computed.shared, method, clips)
        return f"{start}{name}", influences.by_motion(values, queries, motions)

    for whiten in (None, 0.1, 0.03, 0.01, 0.003, 0.001):
        yield of(f", lambda {whiten}", Method(places, "motion", whiten))
    for pair, title in (("none", "unmasked"), ("crossed", "queries masked, clips not")):
        for whiten in (None, WHITEN, 0.001):
            yield of(f", {title}, lambda {whiten}", Method(places, pair, whiten))
    crossed = influences.values(computed.shared, Method(places, "crossed", WHITEN), clips)
    yield from _of_few_queries(f"{start}, queries masked, clips not, ", crossed, queries, motions)
    for pairs in (("motion", "none"), ("crossed", "none"), ("crossed", "motion")):
        for whiten in (WHITEN, 0.001):
            values = combined(computed, clips, pairs, whiten).values
            yield f"{start}, {' and '.join(pairs)}, lambda {whiten}", influences.by_motion(values, queries, motions)
    yield of(", each part of the model alike", Method(places, "motion", WHITEN, by_part=True))
    yield of(", lengths kept", Method(places, "motion", WHITEN, lengths=True))
    yield of(", lengths kept, not whitened", Method(places, "motion", None, lengths=True))
    last = tuple(n for n, part in enumerate(parts) if part in parts[-3:])
    yield of(", the last block and what follows", Method(places, "motion", WHITEN, parts=last))
    blocks = tuple(n for n, part in enumerate(parts) if part.startswith("blocks."))
    yield of(", the blocks alone", Method(places, "motion", WHITEN, parts=blocks))


# --- cheaper attributions ---------------------------------------------------------------------------------------------


# The full attribution is masked and whitened over every setting. Its repeatability is how alike it ranks under noises
# of other numbers: no cheaper one can be asked to be more alike. Cost is the processor's seconds for gradients, as a
# share of the full one's; what leaving out parts of the model saves is not in it. How much of the full best tenth the
# cheap best fifth holds is what two stages of attribution live on.


def cheaper(
    computed: Kernels, clips: Clips, queries: Clips, motions: Sequence[str], parts: int
) -> Iterator[tuple[str, float, Floats]]:
    """A name, the cost, and every clip's score for every motion [N, T]; the full one first, then its repetition."""
    places, again, last = computed.places, tuple(computed.repeated), tuple(range(parts))[-LAST:]
    whole = sum(_seconds(grams) for grams in computed.repeated.values())
    single, one = whole / len(places), Method((PAPER,), "motion", WHITEN)

    def scores(grams: Mapping[Place, Grams], method: Method) -> Floats:
        return influences.by_motion(influences.values(grams, method, clips), queries, motions)

    yield f"full: {len(places)} settings", 1.0, scores(computed.shared, Method(places, "motion", WHITEN))
    yield "full, other noises", 1.0, scores(computed.repeated, Method(again, "motion", WHITEN))
    yield "one setting", single / whole, scores(computed.shared, one)
    part = Method((PAPER,), "motion", WHITEN, parts=last)
    yield "one setting, the last block alone", single / whole, scores(computed.shared, part)
    for name, title in (("short", "five frames of nine"), ("small", "half height and width")):
        grams = computed.others[name]
        yield f"one setting, {title}", _seconds(grams) / whole, scores({PAPER: grams}, one)


def _seconds(grams: Grams) -> float:
    return float(grams["seconds"][0])


def alike(scores: Floats, full: Floats) -> dict[str, float]:
    """Spearman's correlation with the full scores, and how much of their best tenth is in the best fifth of these: mean
    over the motions."""
    rows = np.isfinite(full).all(1) & np.isfinite(scores).all(1)
    a, b = scores[rows], full[rows]
    top, listed = (max(1, round(share * len(a))) for share in (TOP, LISTED))
    shares = [
        len(set(np.argsort(-x)[:listed]) & set(np.argsort(-y)[:top])) / top for x, y in zip(a.T, b.T, strict=True)
    ]
    return {"spearman": float(spearman_by_column(a, b).mean()), "top_kept": float(np.mean(shares))}
