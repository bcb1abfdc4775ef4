"""Flaws are found in spoiled videos, as a codec leaves them, and not in the same videos unspoiled."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.motion import flaws
from pipeline.motion.flaws import FLAWS
from pipeline.synthetic import world
from pipeline.video.frames import write_mp4
from pipeline.video.looks import twin

Frames = npt.NDArray[np.uint8]
FEW = 24


def moving(step: float = 4.0, count: int = 9) -> Frames:
    """A square that moves to the right by so many pixels a frame."""
    frames = np.full((count, 48, 96, 3), 90, np.uint8)
    for n in range(count):
        left = round(n * step)
        frames[n, 16:32, left : left + 16] = (200, 120, 40)
    return frames


def coded(frames: Frames, folder: Path) -> Frames:
    place = folder / "video.mp4"
    write_mp4(str(place), frames, 8.0)
    return np.stack([picture.to_ndarray(format="rgb24") for picture in av.open(str(place)).decode(video=0)])


@pytest.fixture(scope="module")
def scenes() -> list[world.Scene]:
    return [scene for scene in world.corpus(8, 80, 9) if scene.kind == "real"][:FEW]


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.float64]:
    folder = tmp_path_factory.mktemp("queries")
    return np.array([flaws.flaws(coded(world.render(scene, 32, 32), folder)) for scene in world.queries(7, 3, 9)])


def test_measures_are_shares_of_the_steps() -> None:
    frames = moving()
    assert flaws.flaws(frames).tolist() == [0.0, 0.0, 1.0]
    frozen, again, _ = flaws.flaws(frames[[0, 1, 2, 3, 4, 4, 4, 4, 4]])
    assert (frozen, again) == (0.5, 0.0)
    frozen, again, _ = flaws.flaws(frames[[0, 0, 2, 2, 4, 4, 6, 6, 8]])
    assert (frozen, again) == (0.0, 0.5)
    far = moving()
    far[5:] = 255 - far[5:]
    assert flaws.flaws(far)[FLAWS.index("cut")] > 10


@pytest.mark.parametrize("frames", [moving(0.0), moving()[:3], moving()[:1]])
def test_a_clip_that_never_changes_or_is_too_short_has_none(frames: Frames) -> None:
    assert not flaws.flaws(frames).any()


@pytest.mark.parametrize(("order", "flaw"), [("frozen", "frozen"), ("stuttering", "repeats")])
def test_spoiled_videos_are_told(
    order: str, flaw: str, scenes: list[world.Scene], queries: npt.NDArray[np.float64], tmp_path: Path
) -> None:
    spoiled = [coded(twin(world.render(scene, 32, 32), order, scene.name), tmp_path) for scene in scenes]
    which = flaws.spoils(np.array([flaws.flaws(frames) for frames in spoiled]), queries)[:, FLAWS.index(flaw)]
    assert which.mean() > 0.9


def test_real_motion_is_not_called_spoiled(
    scenes: list[world.Scene], queries: npt.NDArray[np.float64], tmp_path: Path
) -> None:
    measures = np.array([flaws.flaws(coded(world.render(scene, 32, 32), tmp_path)) for scene in scenes])
    assert flaws.spoils(measures, queries).any(1).mean() <= 0.05


def test_what_queries_have_is_no_flaw() -> None:
    measure = flaws.flaws(moving()[[0, 0, 2, 2, 4, 4, 6, 6, 8]])[None]
    assert flaws.spoils(measure, np.zeros((0, len(FLAWS)))).any()
    assert not flaws.spoils(measure, measure).any(), "videos of half the rate, and queries of the same"


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_said_in_a_sentence(flaw: str) -> None:
    assert flaws.sentence(flaw, 0.5).endswith("which no query does")
