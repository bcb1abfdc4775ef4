"""The synthetic world: exact flow, and nothing but the motion tells the motion."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.synthetic import shifted, world
from pipeline.synthetic.world import CARTOONS, MOTIONS, Scene

Floats = npt.NDArray[np.float64]
EACH = 60  # scenes of every motion for the statistics


def described(scene: Scene) -> dict[str, object]:
    fields = dataclasses.asdict(scene)
    return {
        key: np.asarray(value).tolist() if isinstance(value, np.ndarray) else value for key, value in fields.items()
    }


def same(a: Scene, b: Scene) -> bool:
    return repr(described(a)) == repr(described(b))


# --- determined by names ---------------------------------------------------------------------------------------------


def test_a_scene_is_determined_by_seed_and_name() -> None:
    scene = world.scene(3, "x", "real", "roll")
    np.random.seed(1)
    assert same(scene, world.scene(3, "x", "real", "roll")), "a scene depends on something beside seed and name"
    assert not same(scene, world.scene(4, "x", "real", "roll")), "the seed has no effect"
    assert not same(scene, world.scene(3, "y", "real", "roll")), "the name has no effect"


def test_a_scene_is_the_same_in_another_process() -> None:
    code = "from pipeline.synthetic import world\n"
    code += "print(world.render(world.scene(3, 'x', 'real', 'explode'), 8, 8).tobytes().hex())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == world.render(world.scene(3, "x", "real", "explode"), 8, 8).tobytes().hex()


def test_a_corpus_is_a_prefix_of_a_larger_one_and_its_scenes_differ() -> None:
    large = world.corpus(0, 30)
    for a, b in zip(world.corpus(0, 7), large, strict=False):
        assert same(a, b), "the first clips change when more are asked for"
    assert len({scene.name for scene in large}) == 30
    assert not any(same(a, b) for i, a in enumerate(large) for b in large[:i]), "a scene comes twice"
    assert not same(world.corpus(1, 1)[0], large[0]), "two corpora of different seeds share their clips"


def test_a_corpus_has_the_shares_it_promises() -> None:
    kinds = [scene.kind for scene in world.corpus(0, 2000, 2)]
    for kind, share in (("real", 0.62), ("cartoon", 0.23), ("still", 0.08), ("camera", 0.07)):
        error = abs(kinds.count(kind) / 2000 - share)
        assert error < 4 * (share * (1 - share) / 2000) ** 0.5, f"{kind}: {kinds.count(kind)} of 2000, not {share}"


def test_queries_are_clean_scenes_of_every_motion() -> None:
    scenes = world.queries(0, 3)
    assert [scene.motion for scene in scenes] == [motion for motion in MOTIONS for _ in range(3)]
    for scene in scenes:
        assert (scene.camera == scene.camera[0]).all(), f"{scene.name}: the camera of a query moves"


@pytest.mark.parametrize(
    ("kind", "motion"), [("real", "melt"), ("cartoon", "stretch"), ("still", "roll"), ("toon", "")]
)
def test_unknown_motions_and_kinds_are_refused(kind: str, motion: str) -> None:
    with pytest.raises(ValueError, match="use"):
        world.scene(0, "x", kind, motion)


# --- pictures and flow -----------------------------------------------------------------------------------------------


def sampled(image: Floats, x: Floats, y: Floats) -> Floats:
    """Bilinear values of an image [H, W, 3] at pixel coordinates."""
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    a, b = (x - left)[..., None], (y - top)[..., None]
    return (1 - b) * ((1 - a) * image[top, left] + a * image[top, left + 1]) + b * (
        (1 - a) * image[top + 1, left] + a * image[top + 1, left + 1]
    )


def topmost(scene: Scene, frame: int, x: Floats, y: Floats, size: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Which body (-1: none) is seen at pixel coordinates, and the distance to the nearest edge, in units."""
    half = size / 2
    points = np.stack([(x + 0.5 - half) / half, (y + 0.5 - half) / half], -1)
    points = points * scene.camera[frame, 2] + scene.camera[frame, :2]
    seen, clear = np.full(x.shape, -1), np.full(x.shape, np.inf)
    for i, body in enumerate(scene.bodies):
        depth = (
            world._cover(body, world._inside(body, points, frame), 1.0) - 0.5
        )  # signed distance to the edge, cut off
        seen = np.where(depth > 0, i, seen)
        clear = np.minimum(clear, np.abs(depth))
    return seen, clear


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_flow_carries_each_picture_into_the_one_before(motion: str) -> None:
    """Frame f+1 sampled at x + flow is frame f: in bodies and background, away from edges and what they uncover."""
    size = 160
    for name, pan in (("a", 0.0), ("b", 1.0)):
        scene = world.scene(11, name, "real", motion, frames=5, pan=pan)
        frames, flow = world.render(scene, size, size).astype(float), world.flow(scene, size, size)
        y, x = np.mgrid[0:size, 0:size].astype(float)
        for f in range(4):
            x1, y1 = x + flow[f, ..., 0], y + flow[f, ..., 1]
            inside = (x1 >= 0) & (y1 >= 0) & (x1 < size - 1) & (y1 < size - 1)
            before, clear = topmost(scene, f, x, y, size)
            after, clear_after = topmost(scene, f + 1, x1, y1, size)
            pixels = inside & (before == after) & (clear > 0.035) & (clear_after > 0.035)
            assert pixels.mean() > 0.4, "this test looks at too few pixels"
            assert (pixels & (before >= 0)).sum() > 100, "this test looks at too little of the body"
            error = np.abs(sampled(frames[f + 1], x1[pixels], y1[pixels]) - frames[f][pixels])
            assert error.max() < 4, f"{motion} frame {f}: the flow is wrong by up to {error.max():.0f} grey levels"
            assert error.mean() < 0.6, f"{motion} frame {f}: the flow is slightly wrong ({error.mean():.2f} levels)"


def test_the_check_above_sees_a_flow_that_is_off_by_a_tenth() -> None:
    size, scene = 160, world.scene(11, "b", "real", "slide", frames=3, pan=1.0)
    frames, flow = world.render(scene, size, size).astype(float), world.flow(scene, size, size)[0] * 0.9
    y, x = np.mgrid[16:144, 16:144].astype(float)
    error = np.abs(
        sampled(frames[1], x + flow[16:144, 16:144, 0], y + flow[16:144, 16:144, 1]) - frames[0, 16:144, 16:144]
    )
    assert error.mean() > 0.6, "the tolerance hides a wrong flow"


@pytest.mark.parametrize("name", ["0", "1", "2", "3"])
def test_pairs_for_training_flow_have_exact_flow(name: str) -> None:
    frames, flow = world.flow_pair(5, name, 160)
    y, x = np.mgrid[0:160, 0:160].astype(float)
    x1, y1 = x + flow[..., 0], y + flow[..., 1]
    inside = (x1 >= 0) & (y1 >= 0) & (x1 < 159) & (y1 < 159)
    error = np.abs(sampled(frames[1].astype(float), x1[inside], y1[inside]) - frames[0][inside]).max(-1)
    assert np.median(error) < 2, "most pixels of a pair do not move as its flow says"
    assert (error < 6).mean() > 0.75, "more than edges and uncovered places are wrong"


def test_flow_scales_with_the_size_of_the_picture() -> None:
    scene = world.scene(0, "x", "real", "slide", pan=1.0)
    small, large = world.flow(scene, 32, 32), world.flow(scene, 128, 128)
    pooled = large.reshape(8, 32, 4, 32, 4, 2).mean((2, 4))
    assert np.median(np.abs(pooled - 4 * small)) < 0.02


def test_still_clips_do_not_move() -> None:
    for i in range(5):
        scene = world.scene(0, f"{i}", "still")
        assert np.abs(world.flow(scene, 32, 32)).max() < 1e-5, "a still clip has flow"
        frames = world.render(scene, 32, 32)
        assert (frames == frames[0]).all(), "a still clip changes"


def test_a_pan_without_zoom_moves_everything_alike() -> None:
    scene = world.scene(0, "x", "camera")
    camera = scene.camera.copy()
    camera[:, 2] = 1.0
    flow = world.flow(dataclasses.replace(scene, camera=camera), 32, 48).astype(float)
    assert np.abs(flow[0]).max() > 0.1, "the camera does not pan"
    assert np.abs(flow - flow.mean((1, 2), keepdims=True)).max() < 1e-5, "a pan moves the body and the ground apart"


def test_camera_clips_move_affinely_and_bodies_do_not_move_by_themselves() -> None:
    for i in range(5):
        scene = world.scene(0, f"{i}", "camera")
        flow = world.flow(scene, 24, 32)[3].reshape(-1, 2).astype(float)
        y, x = np.mgrid[0:24, 0:32].reshape(2, -1)
        basis = np.stack([np.ones_like(x), x, y], 1)
        rest = flow - basis @ np.linalg.lstsq(basis, flow, rcond=None)[0]
        assert np.abs(rest).max() < 1e-4, "a camera clip has motion of its own"
        assert np.linalg.norm(flow, axis=1).mean() > 0.2, "a camera clip stands still"


def test_every_motion_moves_within_the_promised_speeds() -> None:
    """SPEED is 0.5 to 1.3 pixels a frame at 32 pixels, before what keeps a body in shape slows it down."""
    for motion in MOTIONS:
        speeds = [moving_speed(world.scene(2, f"{motion}{i}", "real", motion, pan=0.0)) for i in range(10)]
        assert min(speeds) > 0.2, f"{motion}: a clip hardly moves ({min(speeds):.2f} pixels a frame)"
        assert max(speeds) < 2.5, f"{motion}: a clip moves too fast to be seen ({max(speeds):.2f} pixels a frame)"


def moving_speed(scene: Scene) -> float:
    speed = np.linalg.norm(world.flow(scene, 32, 32), axis=-1)
    return float(speed[speed > 0.02].mean())


# --- motions differ, and in nothing but the motion -------------------------------------------------------------------


def test_every_motion_and_cartoon_moves_differently() -> None:
    """The same name draws the same looks, place, direction and speed, so only the trajectory is left to differ."""
    kinds = [("real", m) for m in MOTIONS] + [("cartoon", m) for m in CARTOONS]
    for name in ("a", "b", "c"):
        flows = {k: world.flow(world.scene(0, name, *k, frames=17, pan=0.0), 32, 32) for k in kinds}
        for i, first in enumerate(kinds):
            for second in kinds[:i]:
                a, b = flows[first], flows[second]
                difference = np.linalg.norm(a - b) / np.hypot(np.linalg.norm(a), np.linalg.norm(b))
                assert difference > 0.15, f"{first} and {second} are the same motion ({difference:.2f})"


def test_looks_do_not_depend_on_the_motion() -> None:
    """One name, all motions: the same background, body, caption's noun, place and camera."""
    for name in ("a", "b", "c"):
        scenes = [world.scene(0, name, "real", motion) for motion in MOTIONS]
        for scene in scenes[1:]:
            for part in ("base", "wave", "phase", "amplitude"):
                for a, b in (
                    (scene.background, scenes[0].background),
                    (scene.bodies[0].texture, scenes[0].bodies[0].texture),
                ):
                    assert np.array_equal(getattr(a, part), getattr(b, part)), f"{scene.motion} has colours of its own"
            assert scene.caption.split()[:3] == scenes[0].caption.split()[:3]
            if scene.motion != "explode":
                assert scene.bodies[0].radius == scenes[0].bodies[0].radius, f"{scene.motion} has a size of its own"


@pytest.fixture(scope="module")
def measured() -> dict[str, Floats]:
    """Per motion, of EACH scenes: mask position (x, y), direction of the motion (cos, sin), 95 % quantile and mean of
    |flow|."""
    y, x = np.mgrid[0:32, 0:32]
    rows_by_motion = {}
    for motion in MOTIONS:
        rows = []
        for i in range(EACH):
            flow = world.flow(world.scene(5, f"{motion}-{i}", "real", motion, pan=0.0), 32, 32)
            speed = np.linalg.norm(flow, axis=-1)
            weight, (dx, dy) = speed.sum(0) / max(speed.sum(), 1e-9), flow.sum((0, 1, 2))
            angle = np.arctan2(dy, dx)
            place = ((weight * x).sum(), (weight * y).sum())
            rows.append((*place, np.cos(angle), np.sin(angle), np.quantile(speed, 0.95), speed.mean()))
        rows_by_motion[motion] = np.array(rows)
    return rows_by_motion


def accuracy(measured: dict[str, Floats], columns: list[int]) -> float:
    """Of a nearest-centroid classifier of the motion: fitted on every other scene, judged on the rest."""
    values = np.stack([rows[:, columns] for rows in measured.values()])
    values = (values - values.mean((0, 1))) / values.std((0, 1))
    centroids, judged = values[:, ::2].mean(1), values[:, 1::2]
    guesses = ((judged[:, :, None] - centroids) ** 2).sum(-1).argmin(-1)
    return float((guesses == np.arange(len(values))[:, None]).mean())


CHANCE = 1 / len(MOTIONS)
UPPER = CHANCE + 3 * (CHANCE * (1 - CHANCE) / (len(MOTIONS) * EACH / 2)) ** 0.5  # three standard errors above chance


@pytest.mark.parametrize(
    ("what", "columns"),
    [
        ("position", [0, 1]),
        ("direction", [2, 3]),
        ("position and |flow|", [0, 1, 4]),
    ],
)
def test_place_direction_and_speed_do_not_tell_the_motion(
    measured: dict[str, Floats], what: str, columns: list[int]
) -> None:
    share = accuracy(measured, columns)
    assert share < UPPER, f"the {what} of the mask tells the motion: {share:.2f} of the guesses are right, not {CHANCE}"


def test_the_classifier_sees_a_small_dependence(measured: dict[str, Floats]) -> None:
    """Its power: positions that differ by half a standard deviation from motion to motion are found out."""
    shifted = {
        m: rows + np.array([3.0 * np.cos(i), 3.0 * np.sin(i), 0, 0, 0, 0])
        for i, (m, rows) in enumerate(measured.items())
    }
    assert accuracy(shifted, [0, 1]) > UPPER


@pytest.mark.parametrize("motion", MOTIONS)
def test_no_motion_is_much_slower_or_faster_than_the_others(measured: dict[str, Floats], motion: str) -> None:
    others = np.mean([rows[:, 5].mean() for rows in measured.values()])
    ratio = measured[motion][:, 5].mean() / others
    assert 0.7 < ratio < 1.4, f"the amount of motion names {motion}: its mean flow is {ratio:.2f} of the motions' mean"


# --- another world ----------------------------------------------------------------------------------------------------


def test_a_shifted_corpus_shows_the_same_motions_by_other_bodies() -> None:
    ours, theirs = world.corpus(7, 40), shifted.corpus(7, 40)
    assert [(s.name, s.kind, s.motion) for s in ours] == [(s.name, s.kind, s.motion) for s in theirs]
    outlines = {(body.power, body.lobes, body.depth) for s in theirs if s.motion != "explode" for body in s.bodies}
    assert outlines <= set(shifted.OUTLINES)
    assert not outlines & {(body.power, body.lobes, body.depth) for s in ours for body in s.bodies}
    assert all(s.caption.startswith("a shape ") for s in theirs)
    assert not same(shifted.scene(7, "x", "real", "roll"), shifted.scene(8, "x", "real", "roll"))
    assert same(shifted.scene(7, "x", "real", "roll"), shifted.scene(7, "x", "real", "roll"))


def test_a_shifted_world_is_faster_and_its_camera_mostly_moves() -> None:
    asked, usual = shifted.queries(7, 10), world.queries(7, 10)
    assert 0.75 < np.mean([bool(np.ptp(s.camera[:, :2], axis=0).any()) for s in asked]) < 1
    assert not any(np.ptp(s.camera[:, :2], axis=0).any() for s in usual)

    def speed(scenes: list[Scene]) -> float:
        paths = [s.bodies[0].poses[:, :2] for s in scenes if s.motion == "slide"]
        return float(np.mean([np.linalg.norm(np.diff(path, axis=0), axis=1).mean() for path in paths]))

    assert speed(asked) > 1.2 * speed(usual)
