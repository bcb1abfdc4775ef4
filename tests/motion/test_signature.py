"""Signatures of what clips show: copies have nearly the same, other motions and other scenes have not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.errors import ClipError
from pipeline.motion import pictures
from pipeline.motion.signature import NUMBERS, signature, unit_rows
from pipeline.synthetic import world

Frames = npt.NDArray[np.uint8]


def clips(count: int = 12) -> list[Frames]:
    return [world.render(scene, 32, 32) for scene in world.corpus(31, 40, 9) if scene.kind == "real"][:count]


def alike(a: Frames, b: Frames) -> float:
    numbers = [signature(a), signature(b)]
    rows = unit_rows([number for number in numbers if number is not None])
    return float(rows[0] @ rows[1])


def test_a_larger_copy_a_brighter_one_and_one_with_noise_are_alike() -> None:
    for n, frames in enumerate(clips()):
        large = frames.repeat(4, 1).repeat(4, 2)
        noisy = np.clip(frames + np.random.default_rng(n).normal(0, 4, frames.shape), 0, 255).astype(np.uint8)
        for name, copy in (("large", large), ("noisy", noisy), ("brighter", frames // 2 + 60), ("same", frames)):
            assert alike(frames, copy) > 0.9, f"clip {n}, {name}"


def test_the_same_scene_with_another_motion_is_another_clip() -> None:
    scenes = [s for s in world.corpus(31, 60, 9) if s.kind == "real" and len(s.bodies) == 1][:20]
    others = [
        replace(s, bodies=(replace(s.bodies[0], poses=scenes[n - 1].bodies[0].poses),)) for n, s in enumerate(scenes)
    ]
    like = [alike(world.render(a, 32, 32), world.render(b, 32, 32)) for a, b in zip(scenes, others, strict=True)]
    assert sum(one >= 0.9 for one in like) <= 1, "one of these pairs moves alike by chance"


def test_distinct_clips_are_far_from_alike() -> None:
    rows = unit_rows([number for frames in clips() if (number := signature(frames)) is not None])
    assert np.max(rows @ rows.T - 2 * np.eye(len(rows))) < 0.8


def test_bytes_do_not_depend_on_how_frames_lie_in_memory() -> None:
    frames = clips(1)[0]
    assert signature(frames) == signature(np.asfortranarray(frames))
    assert len(signature(frames) or b"") == NUMBERS


def test_one_colour_has_none_and_the_smallest_clips_have_one() -> None:
    assert signature(np.full((9, 32, 32, 3), 128, np.uint8)) is None
    assert signature(clips(1)[0][:2, :5, :3]) is not None


@pytest.mark.parametrize("frames", [np.full((9, 8, 8, 3), 3, np.uint8), ClipError("decode", "it is damaged.")])
def test_a_clip_without_a_signature_is_a_row(frames: Frames | ClipError) -> None:
    table = pictures.rows([pictures.picture({"clip_id": "a", "version": "1"}, frames)])
    row = table.to_pylist()[0]
    assert row["signature"] is None
    assert row["error"] == (str(frames) if isinstance(frames, ClipError) else None)
