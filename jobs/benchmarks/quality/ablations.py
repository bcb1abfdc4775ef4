"""What else could have been done, one change at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from jobs.benchmarks.quality import influences
from jobs.benchmarks.quality.influences import Floats, Method
from jobs.benchmarks.quality.methods import WHITEN, Kernels, combined
from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.quality.tasks import PAPER

ONE = (PAPER,)
QUERIES = (1, 3, 5)  # of a motion, where all others have all of them
Named = tuple[str, Floats]  # what was changed, and the score of every clip for every motion [N, T]


def variants(
    held: Kernels, clips: Clips, queries: Clips, motions: Sequence[str], parts: Sequence[str]
) -> Iterator[Named]:
    """Everything. `parts` names the model's (`kernels.parts`), in order."""
    yield from _of_one_setting(held, clips, queries, motions)
    yield from _of_every_setting(held, clips, queries, motions, parts)


def _of_one_setting(held: Kernels, clips: Clips, queries: Clips, motions: Sequence[str]) -> Iterator[Named]:
    def of(name: str, method: Method, at: str | None = None) -> Named:
        grams = held.shared if at is None else dict.fromkeys(method.places, held.others[at])
        return name, influences.by_motion(influences.values(grams, method, clips), queries, motions)

    ours = Method(ONE, "motion", WHITEN)
    yield of("motive, whitened, timestep 751", ours)
    for place in held.places:
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
    values = influences.values(held.shared, ours, clips)
    voted = [influences.voted(values[:, queries.of(motion)]) for motion in motions]
    yield "votes instead of the mean", np.stack(voted, 1)
    yield from _of_few_queries("", values, queries, motions)
    for pair in held.others["projected"]:
        if pair != "seconds":
            yield of(f"projected: {pair}", Method(ONE, pair, WHITEN), "projected")
    yield of("projected: gaussian-512, not whitened", Method(ONE, "gaussian-512", None), "projected")


def _of_few_queries(start: str, values: Floats, queries: Clips, motions: Sequence[str]) -> Iterator[Named]:
    for count in QUERIES:
        few = [values[:, queries.of(motion)[:count]].mean(1) for motion in motions]
        yield f"{start}{count} of the queries of each motion", np.stack(few, 1)


def _of_every_setting(
    held: Kernels, clips: Clips, queries: Clips, motions: Sequence[str], parts: Sequence[str]
) -> Iterator[Named]:
    places = held.places
    start = f"{len(places)} settings"

    def of(name: str, method: Method) -> Named:
        values = influences.values(held.shared, method, clips)
        return f"{start}{name}", influences.by_motion(values, queries, motions)

    for whiten in (None, 0.1, 0.03, 0.01, 0.003, 0.001):
        yield of(f", lambda {whiten}", Method(places, "motion", whiten))
    for pair, title in (("none", "unmasked"), ("crossed", "queries masked, clips not")):
        for whiten in (None, WHITEN, 0.001):
            yield of(f", {title}, lambda {whiten}", Method(places, pair, whiten))
    crossed = influences.values(held.shared, Method(places, "crossed", WHITEN), clips)
    yield from _of_few_queries(f"{start}, queries masked, clips not, ", crossed, queries, motions)
    for pairs in (("motion", "none"), ("crossed", "none"), ("crossed", "motion")):
        for whiten in (WHITEN, 0.001):
            values = combined(held, clips, pairs, whiten).values
            yield f"{start}, {' and '.join(pairs)}, lambda {whiten}", influences.by_motion(values, queries, motions)
    yield of(", each part of the model alike", Method(places, "motion", WHITEN, by_part=True))
    yield of(", lengths kept", Method(places, "motion", WHITEN, lengths=True))
    yield of(", lengths kept, not whitened", Method(places, "motion", None, lengths=True))
    last = tuple(n for n, part in enumerate(parts) if part in parts[-3:])
    yield of(", the last block and what follows", Method(places, "motion", WHITEN, parts=last))
    blocks = tuple(n for n, part in enumerate(parts) if part.startswith("blocks."))
    yield of(", the blocks alone", Method(places, "motion", WHITEN, parts=blocks))
