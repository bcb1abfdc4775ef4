"""Every way to score a clip for an action: the product's rules and the controls that they must beat.

A score is [N, T], higher where more of the clip is wanted; NaN where a rule cannot score a clip.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.quality import influences
from jobs.benchmarks.quality.influences import Method, Place
from jobs.benchmarks.quality.kernels import Grams
from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.quality.retraining import Losses
from jobs.benchmarks.quality.tasks import PAPER
from jobs.benchmarks.real import versions
from jobs.benchmarks.real.footage import Footage
from jobs.benchmarks.real.versions import Directions

Floats = npt.NDArray[np.float64]
Targets = tuple[str, ...]

WHITEN = 0.01
PAPERS, BEST, UNTRAINED = "paper: masked cosine", "best: queries masked, whitened", "untrained, as best"
TWINS = "8 looks and twins"
FLOW, CAPTION, OWN_LOSS = "nearest flow", "caption", "own loss"
MAGNITUDE, LENGTH, RANDOM = "magnitude", "gradient length", "random"
OVERLAP, RAW, SCENE, EMBEDDING = "mask overlap", "raw latents", "scene", "embedding"
CONTROLS = (UNTRAINED, CAPTION, FLOW, SCENE, OVERLAP, RAW, EMBEDDING, MAGNITUDE, OWN_LOSS, LENGTH, RANDOM)


def scores(
    of: Footage,
    queries: Footage,
    targets: Targets,
    grams: Mapping[Place, Grams],
    blank: Mapping[Place, Grams],
    own: Losses,
    directions: Directions,
) -> dict[str, Floats]:
    """Every score of these clips. `grams` are of them and the queries, `blank` the same of an untrained model, `own`
    [N, 2] the clips' own losses under the base, `directions` theirs and those of the queries in looks and twins."""
    clips = of.clips
    places = tuple(grams)

    def influence(products: Mapping[Place, Grams], method: Method) -> Floats:
        return influences.by_motion(influences.values(products, method, clips), queries.clips, targets)

    many = len(targets)
    return {
        PAPERS: influence(grams, Method((PAPER,), "motion", None)),
        "masked, whitened": influence(grams, Method((PAPER,), "motion", WHITEN)),
        BEST: influence(grams, Method(places, "crossed", WHITEN)),
        TWINS: versions.scores(directions, of, queries, targets),
        UNTRAINED: influence(blank, Method(places, "crossed", WHITEN)),
        CAPTION: influences.caption_match(of.captions.tolist(), queries.captions.tolist(), queries.clips, targets),
        FLOW: influences.nearest_flow(clips, queries.clips, targets),
        SCENE: scenes(of, queries, targets),
        OVERLAP: influences.overlap(clips, queries.clips, targets),
        RAW: influences.raw_latents(clips, queries.clips, targets),
        EMBEDDING: embeddings(clips, queries.clips, targets),
        MAGNITUDE: influences.magnitude(clips, targets),
        OWN_LOSS: np.repeat(own[:, 1:], many, 1),
        LENGTH: np.repeat(influences.gradient_lengths(grams[PAPER])[: len(clips), None], many, 1),
        RANDOM: influences.chance(clips, targets),
    }


def scenes(of: Footage, queries: Footage, targets: Targets) -> Floats:
    """Which share of an action's queries is of the clip's scene. Of its person none is: nobody is in two parts."""
    same = (of.scenes[:, None] == queries.scenes[None]).astype(np.float64)
    return influences.by_motion(same, queries.clips, targets)


def embeddings(clips: Clips, queries: Clips, targets: Targets) -> Floats:
    """The mean cosine of a clip's embedding with those of an action's queries, as the product's arm `embedding` has it.

    An embedding here is the autoencoder's latent, mean over time and place: what a video looks like, and neither where
    nor when. It stands in for a curator's model, which the benchmark has not.
    """
    sides = [_unit(side.latent.double().mean((2, 3, 4)).numpy()) for side in (clips, queries)]
    return influences.by_motion(sides[0] @ sides[1].T, queries, targets)


def _unit(rows: Floats) -> Floats:
    """Rows of length one; zero stays zero."""
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
