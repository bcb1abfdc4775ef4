"""Three nights on a growing folder of the synthetic world, and what a night refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.nightly import nightly
from pipeline import nights
from pipeline.config import Run

MakeRun = Callable[..., Run]
FIRST, SECOND, THIRD = "2026-03-02", "2026-03-04", "2026-03-05"  # nobody ran on the third


def files(folder: Path) -> Mapping[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


def parts(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("part-*.parquet")}


@pytest.fixture(scope="module")
def world(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of some of the small world's clips, which grows."""
    folder = tmp_path_factory.mktemp("nightly") / "videos"
    folder.mkdir()
    for source in sorted((small_world / "clips").rglob("*.mp4"))[:16]:
        shutil.copy2(source, folder / source.name)
    return folder


@pytest.fixture(scope="module")
def make(small_run: MakeRun, world: Path) -> Callable[..., Run]:
    def made(night: str, **overrides: Any) -> Run:
        values = {
            "data__videos": str(world),
            "nightly__date": night,
            "nightly__drift_clips": 6,
            "nightly__promote__confidence": 0.5,
            "ranking__fraction": 0.25,
            "finetune__steps": 6,
            "finetune__learning_rate": 1e-4,
            "finetune__caption_dropout": 0,
            "nightly__keep": 2,
            "resources__extract_features": {"actors": 1, "cpus": 1, "batch": 32},
            "resources__estimate_motion": {"actors": 1, "cpus": 1, "batch": 32},
            "resources__evaluate": {"actors": 1, "cpus": 1, "batch": 32},
        }
        return small_run(world.parent / "root", **{**values, **overrides})

    return made


@pytest.fixture(scope="module")
def three(make: Callable[..., Run], world: Path, small_world: Path, cluster: None) -> dict[str, dict[str, Any]]:
    """The records of three nights; the third has nothing new."""
    root = world.parent / "root"
    nightly(make(FIRST))
    shutil.copytree(root, world.parent / "after_first")
    source = sorted((small_world / "clips").rglob("*.mp4"))
    for path in source[16:22]:
        shutil.copy2(path, world / path.name)
    (world / source[0].name).unlink()
    (world / source[1].name).write_bytes(source[29].read_bytes())
    nightly(make(SECOND))
    shutil.copytree(root / "features", world.parent / "features_of_second")
    nightly(make(THIRD))
    return {r["date"]: r for r in nights.finished(str(root))}


def test_a_night_finds_what_is_new_changed_and_gone(three: dict[str, dict[str, Any]]) -> None:
    assert three[SECOND]["videos"] == {"all": 21, "new": 6, "changed": 1, "vanished": 1}
    assert three[SECOND]["attributed"]["clips"] <= 7, "clips that were there were attributed again"
    assert three[SECOND]["missed"] == ["2026-03-03"]
    print(json.dumps(three, indent=1))
