"""Simulated curators: what they see, what they say, and what is fine-tuned on then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from jobs.benchmarks import curators
from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.quality.studies import MOTIONS

CLIPS = 200


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Every tenth clip is still; motions go round."""
    kinds = np.array(["still" if n % 10 == 9 else "cartoon" if n % 7 == 0 else "real" for n in range(CLIPS)])
    motions = np.array([MOTIONS[n % 9] for n in range(CLIPS)])
    given: Any = SimpleNamespace(
        clip_ids=tuple(f"c{n:03d}" for n in range(CLIPS)), kinds=kinds, motions=motions, moving=kinds != "still"
    )
    return cast(Clips, given)


@pytest.fixture(scope="module")
def scores() -> curators.Floats:
    return np.random.default_rng(0).normal(size=(CLIPS, len(MOTIONS)))


@pytest.mark.parametrize("name", curators.QUEUES)
def test_a_queue_holds_so_many_clips_that_move_each_once(name: str, clips: Clips, scores: curators.Floats) -> None:
    rows = curators.queue(name, scores, 3, clips, 50)
    assert len(set(rows.tolist())) == 50
    assert clips.moving[rows].all()
    assert np.array_equal(rows, curators.queue(name, scores, 3, clips, 50))


def test_the_queue_near_the_cut_has_both_of_its_sides(clips: Clips, scores: curators.Floats) -> None:
    order = curators.ranked(scores[:, 3], clips)
    rows = curators.queue("near the cut", scores, 3, clips, 20)
    assert np.array_equal(rows, order[18 - 10 : 18 + 10]), "a tenth of the 180 that move are 18"


def test_disputed_clips_are_high_for_another_motion_too(clips: Clips, scores: curators.Floats) -> None:
    rows = curators.queue("disputed", scores, 3, clips, 10)
    for row in rows.tolist():
        own = curators.ranked(scores[:, 3], clips).tolist().index(row)
        others = [curators.ranked(scores[:, m], clips).tolist().index(row) for m in range(len(MOTIONS)) if m != 3]
        assert max(own, min(others)) < 30


def test_a_curator_errs_in_about_one_of_ten(clips: Clips) -> None:
    words = curators.said(np.flatnonzero(clips.moving), MOTIONS[2], clips)
    truth = {row: bool(clips.motions[row] == MOTIONS[2] and clips.kinds[row] == "real") for row in words}
    wrong = np.mean([words[row] != truth[row] for row in words])
    assert 0.03 < wrong < 0.2
    assert words == curators.said(np.flatnonzero(clips.moving), MOTIONS[2], clips)


def test_what_is_kept_comes_first_and_what_is_dropped_goes(clips: Clips, scores: curators.Floats) -> None:
    order = curators.ranked(scores[:, 0], clips)
    keep, drop = int(order[40]), int(order[0])
    changed = curators.curated(order, {keep: True, drop: False}, clips).tolist()
    assert changed[0] == keep
    assert drop not in changed
    assert changed[1:5] == order[1:5].tolist()
