"""The judge prefers the motion that obeys its law, whatever it looks like and wherever it goes."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.benchmarks import judge as benchmark
from pipeline import config
from pipeline.evaluation.contests import VIDEO_MARGIN, verdict
from pipeline.motion import judge
from pipeline.motion.judge import Floats
from pipeline.synthetic import spoiled, world

SIZE = 32


def seen(scene: world.Scene) -> Floats:
    """By the world's exact flow, which is [pairs, h, w, 2]."""
    return judge.description(world.flow(scene, SIZE, SIZE).transpose(0, 3, 1, 2))


def scenes(seed: int, each: int) -> list[tuple[str, Floats]]:
    return [(scene.motion, seen(scene)) for scene in world.queries(seed, each)]


def test_right_motion_is_preferred_to_each_way_of_spoiling_it() -> None:
    known = judge.taught(scenes(1, 5))
    verdicts_by_way: dict[str, list[int]] = {}
    for motion in world.MOTIONS:
        for i in range(4):
            for how, degree in spoiled.ways(motion):
                right, wrong = spoiled.pair(2, f"{motion}-{i}", motion, how, degree)
                distances = (known.distance(motion, seen(scene)) for scene in (right, wrong))
                verdicts_by_way.setdefault(how, []).append(verdict(*distances, VIDEO_MARGIN))
    for how, verdicts in verdicts_by_way.items():
        decided = [v for v in verdicts if v]
        agreed = np.mean([v > 0 for v in decided])
        assert agreed > 0.8, f"{how}: {agreed:.0%} of {len(decided)} verdicts are right"
        assert len(decided) > 0.7 * len(verdicts), f"{how}: most pairs are ties"


@pytest.mark.whole
def test_the_benchmark_agrees_with_the_truth_through_raft() -> None:
    run = config.load("demo")
    describe = benchmark.describer(run)
    pairs = benchmark.verdicts(run, describe, benchmark.taught(run, describe, each=2), each=1)
    agreement = benchmark.agreement(pairs)
    assert agreement["right"] + agreement["ties"] + agreement["wrong"] == len(pairs) == 97
    assert agreement["share"] > 0.85, f"the judge is right in {agreement['share']:.0%} of the pairs that it decides"


def test_pairs_of_one_scene_count_as_one_trial() -> None:
    pairs = [{"scene": f"s{i}", "nearest_query": -1 if i == 3 else 1} for i in range(20)]
    once, many = benchmark.agreement(pairs), benchmark.agreement(pairs * 10)
    assert many["right"] == 10 * once["right"] == 190
    assert {k: many[k] for k in ("share", "low", "high")} == pytest.approx(
        {k: once[k] for k in ("share", "low", "high")}
    )
    assert benchmark.agreement([{"scene": "s", "nearest_query": 0}])["share"] is None


def test_place_direction_and_size_of_the_picture_do_not_matter() -> None:
    flow = world.flow(world.scene(3, "a", "real", "slide", pan=0.0), 64, 64).transpose(0, 3, 1, 2)
    moved = np.roll(flow, (5, 0), (2, 3))
    turned = np.ascontiguousarray(np.rot90(flow, axes=(2, 3)))  # the picture; then its vectors
    turned = np.stack([turned[:, 1], -turned[:, 0]], 1)
    large = 2 * flow.repeat(2, 2).repeat(2, 3)
    exact = judge.description(flow)
    for other in (moved, turned, large):
        np.testing.assert_allclose(judge.description(other), exact, rtol=0.02, atol=0.02)


def test_a_counter_spin_is_not_the_same_motion() -> None:
    """Its sense of turning tells it, where its amount does not."""
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    spin = np.stack([-y, x])[None].repeat(8, 0).astype(np.float32)
    known = judge.taught([("spin", judge.description(spin)), ("other", np.zeros(judge.NUMBERS))])
    assert known.distance("spin", judge.description(spin)) == 0
    assert known.distance("spin", judge.description(-spin)) > 0.1
    (courses,) = known.courses("spin", judge.description(-spin)[None])
    assert judge.COURSES[int(courses.argmax())] == "turning"
    assert courses.mean() == pytest.approx(known.distance("spin", judge.description(-spin)))


@pytest.mark.parametrize("pairs", [1, 2, 3, 8, 80])
def test_a_video_of_any_length_is_described_by_finite_numbers(pairs: int) -> None:
    rng = np.random.default_rng(0)
    for flow in (rng.standard_normal((pairs, 2, 8, 12)), np.zeros((pairs, 2, 8, 12))):
        description = judge.description(flow.astype(np.float32))
        assert description.shape == (judge.NUMBERS,)
        assert np.isfinite(description).all()


def test_a_steady_course_is_the_same_at_any_rate() -> None:
    once = np.zeros((1, 2, 8, 8), np.float32)
    once[:, 0, 2:5, 2:5] = 1
    short, long = judge.description(once.repeat(5, 0)), judge.description(once.repeat(50, 0))
    np.testing.assert_allclose(short, long, atol=1e-9)


def test_verdicts_follow_the_margin() -> None:
    assert [verdict(1, other, 0.1) for other in (0.5, 0.95, 1.05, 1.2)] == [-1, 0, 0, 1]
    assert verdict(0, 0, 0.1) == 0
    assert verdict(2, 1, 0.1) == -verdict(1, 2, 0.1)


def test_the_nearest_query_counts_and_few_queries_are_enough() -> None:
    a, b, c = np.zeros(4), np.full(4, 2.0), np.full(4, 10.0)
    known = judge.taught([("x", a), ("x", b), ("y", c)])
    assert known.distance("x", b) == 0
    assert known.distance("x", c) > known.distance("x", a + 0.5) > 0
    alone = judge.taught([("x", a), ("y", c)])  # no group has two
    assert alone.distance("x", b) < alone.distance("x", c)
    assert judge.taught([("x", a)]).distance("x", b) == pytest.approx(2)
    with pytest.raises(KeyError):
        known.distance("z", a)
    with pytest.raises(ValueError, match="needs queries"):
        judge.taught([])


def test_spoiled_pairs_look_alike_and_the_degree_says_how_far() -> None:
    for how, degree in spoiled.ways("roll"):
        right, wrong = spoiled.pair(5, "x", "roll", how, degree)
        assert (right.background.base == wrong.background.base).all(), "the looks differ"
        assert not np.array_equal(right.bodies[0].poses, wrong.bodies[0].poses), f"{how} {degree} changes nothing"
    still = spoiled.pair(5, "x", "roll", "frozen", 1.0)[1]
    assert np.ptp(still.bodies[0].poses, axis=0).max() == 0
    assert "cartoon" not in dict(spoiled.ways("float"))
    with pytest.raises(ValueError, match="melted"):
        spoiled.pair(5, "x", "roll", "melted", 1.0)
