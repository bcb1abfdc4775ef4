"""Other looks of the same motion, and other motions of the same looks."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.synthetic import world
from pipeline.video import looks


def frames() -> looks.Frames:
    return world.render(world.scene(1, "a", "real", "roll", 9), 32, 32)


def test_look_zero_is_the_video_and_another_is_another() -> None:
    video = frames()
    assert looks.recoloured(video, "q", 0) is video
    first, again, second = (looks.recoloured(video, "q", n) for n in (1, 1, 2))
    assert np.array_equal(first, again)
    for other in (first, looks.recoloured(video, "p", 1)):
        assert not np.array_equal(other, second)
    assert first.shape == video.shape
    assert first.dtype == np.uint8
    with pytest.raises(ValueError, match="look=-1"):
        looks.recoloured(video, "q", -1)


def test_a_recolouring_changes_the_mean_colour_and_keeps_what_moves_where() -> None:
    video = frames()
    moved = np.abs(np.diff(video.astype(int), axis=0)).sum(-1) > 30
    for look in range(1, 4):
        other = looks.recoloured(video, "q", look).astype(int)
        moves = np.abs(np.diff(other, axis=0)).sum(-1) > 30
        assert (moved == moves).mean() > 0.9
        assert np.abs(other.mean((0, 1, 2)) - video.mean((0, 1, 2))).max() > 5


def test_what_moves_stays_and_the_rest_is_another_picture() -> None:
    video, moving = frames(), np.zeros((32, 32), np.float32)
    moving[8:16, 4:20] = 1
    assert looks.before_another_background(video, moving, "q", 0) is video
    first, second = (looks.before_another_background(video, moving, "q", n) for n in (1, 2))
    for other in (first, second):
        assert np.array_equal(other[:, 8:16, 4:20], video[:, 8:16, 4:20])
        outside = other[:, moving == 0]
        assert (outside == outside[0]).all(), "the picture stands still"
        assert not np.array_equal(outside, video[:, moving == 0])
    assert not np.array_equal(first, second)
    assert np.array_equal(first, looks.before_another_background(video, moving, "q", 1))
    assert looks.before_another_background(video[:, :, :20], moving[:, :20], "q", 1).shape == (9, 32, 20, 3)


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("A man throws a ball to the left", "A man throws a ball to the right"),
        ("Leftward, then RIGHTWARDS", "Rightward, then LEFTWARDS"),
        ("bright leftovers", "bright leftovers"),
        ("", ""),
    ],
)
def test_a_mirrored_caption_has_the_other_side(caption: str, mirrored: str) -> None:
    assert looks.mirrored_caption(caption) == mirrored
    assert looks.mirrored_caption(mirrored) == caption


@pytest.mark.parametrize("name", looks.TWINS)
def test_a_twin_has_frames_of_the_video_in_another_order(name: str) -> None:
    video = frames()
    twin = looks.twin(video, name, "q")
    assert twin.shape == video.shape
    assert not np.array_equal(twin, video)
    assert {frame.tobytes() for frame in twin} <= {frame.tobytes() for frame in video}
    assert np.array_equal(twin, looks.twin(video, name, "q"))


def test_twins_are_in_the_order_that_their_name_says() -> None:
    orders = {name: order(9, "q").tolist() for name, order in looks.TWINS.items()}
    assert orders["backwards"] == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert orders["slow_start"] == [0, 0, 0, 1, 1, 2, 4, 6, 8]
    assert orders["frozen"] == [0, 1, 2, 3, 4, 4, 4, 4, 4]
    assert orders["stuttering"] == [0, 0, 2, 2, 4, 4, 6, 6, 8]
    assert sorted(orders["shuffled"]) == list(range(9))
