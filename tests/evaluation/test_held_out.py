"""The names of generated videos, and which captions are generated."""

from __future__ import annotations

from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.held_out import Trained, video_place, video_tasks

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT, st.integers(0, 2**31))
def test_any_caption_names_one_visible_file_of_its_arm(caption: str, seed: int) -> None:
    place = PurePosixPath(video_place("/runs/x", "base", caption, seed))
    assert place.parent == PurePosixPath("/runs/x/generated/base")
    assert not place.name.startswith(".")
    assert len(place.name.encode()) < 255
    assert place.name.endswith(f"-{seed}.mp4")


def test_captions_that_differ_have_files_that_differ() -> None:
    captions = [
        "a ball",
        "a/ball",
        "a_ball",
        "a?ball",
        ".a ball",
        "..a ball",
        "../a ball",
        "\N{FIRE}",
        "?",
        "_",
        "..",
        ".",
    ]
    captions += ["x" * 200, "x" * 200 + "y"]
    places = [video_place("r", "base", caption, 0) for caption in captions]
    assert len(set(places)) == len(captions)


def test_a_plain_caption_is_the_name_that_vbench_reads() -> None:
    assert video_place("r", "base", "A ball, that (slowly) rolls - home.", 7).endswith(
        "/base/A ball, that (slowly) rolls - home.-7.mp4"
    )


def test_queries_without_a_group_are_generated_with_the_others() -> None:
    rows = [
        {"clip_id": c, "caption": c, "group": g, "error": None} for c, g in (("a", None), ("b", "01"), ("c", "all"))
    ]
    tasks = video_tasks([Trained("base", "base", "")], rows, 3, [0])
    assert [task["clip_id"] for task in tasks] == ["b", "a", "c"]
