"""Captions, groups and columns edited in a manifest while its videos stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import InputError
from pipeline.stages import attribution, indexing
from pipeline.storage import stores

pytestmark = pytest.mark.slow


def _rows(run: Run, *names: str) -> dict[str, dict[str, Any]]:
    table = tables.read(stores.join(run.root, *names))
    assert table is not None
    return {row["clip_id"]: row for row in table.to_pylist()}


def test_edited_words_are_noticed_and_only_captions_cost_features(
    small_run: Callable[..., Run], small_world: Path, cluster: None, tmp_path: Path
) -> None:
    lines = (small_world / "clips" / "metadata.jsonl").read_text().splitlines()
    rows = [r for r in map(json.loads, lines) if r["motion"] not in ("", "still")][:3]
    rows = [{**r, "file_name": str(small_world / "clips" / r["file_name"]), "id": f"c{i}"} for i, r in enumerate(rows)]
    manifest = tmp_path / "list.jsonl"

    def write(edits: dict[int, dict[str, Any]]) -> None:
        manifest.write_text("".join(json.dumps({**r, **edits.get(i, {})}) + "\n" for i, r in enumerate(rows)))

    run = small_run(tmp_path / "run", data__videos=str(manifest))
    write({})
    indexing.index(run, "clips")
    attribution.attribute(run, "clips")
    before = _rows(run, "features", "clips")
    assert [row["error"] for row in before.values()] == [None] * 3

    write({0: {"caption": "something else entirely"}, 1: {"motion": "corrected", "source": "elsewhere"}})
    indexing.index(run, "clips")
    clips = _rows(run, "clips")
    assert clips["c0"]["caption"] == "something else entirely"
    assert (clips["c1"]["motion"], clips["c1"]["source"]) == ("corrected", "elsewhere")
    assert len(clips) == 3
    assert set(_rows(run, "features", "clips")) == {"c1", "c2"}, "only another caption makes another feature"
    assert set(_rows(run, "motion", "clips")) == {"c1", "c2"}
    attribution.attribute(run, "clips")
    after = _rows(run, "features", "clips")
    assert not np.allclose(after["c0"]["feature"], before["c0"]["feature"]), "the feature is that of the old caption"
    assert [after[i]["feature"] for i in ("c1", "c2")] == [before[i]["feature"] for i in ("c1", "c2")]

    write({2: {"motion": 3}, 0: {"motion": 4}, 1: {"motion": 5}})
    with pytest.raises(InputError, match=r"data\.videos.*'motion'.*int64.*string"):
        attribution.check(run, "index_clips", ("clips",))
