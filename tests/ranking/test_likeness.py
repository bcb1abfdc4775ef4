"""How much clips look like, and move like, the queries; and what the page says where looks explain more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.motion import colours, judge
from pipeline.motion.flaws import FLAWS
from pipeline.pages import sections
from pipeline.ranking.likeness import likenesses
from pipeline.storage import stores
from pipeline.tables import schemas

SCHEMA = schemas.movement_schema(judge.NUMBERS, len(FLAWS), colours.NUMBERS)


def row(name: str, moves: float, colour: int) -> dict[str, Any]:
    histogram = np.full(colours.NUMBERS, 0.1 / colours.NUMBERS)
    histogram[colour] += 0.9
    description = [moves] * judge.NUMBERS
    return {
        "clip_id": name,
        "version": "v",
        "description": description,
        "flaws": [0.0] * len(FLAWS),
        "colours": histogram.tolist(),
    }


def write(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    tables.append(stores.join(str(root), "movement", name), pa.Table.from_pylist(rows, schema=SCHEMA), {})


def test_clips_are_alike_by_colour_or_by_movement(tmp_path: Path) -> None:
    write(tmp_path, "queries", [row("p", 0, 1), row("q", 0.2, 1), row("r", 5, 9), row("s", 5.2, 9)])
    lost = {"clip_id": "lost", "version": "v", "error": "decode: it is damaged"}
    write(tmp_path, "clips", [row("same colour", 5, 1), row("same movement", 0, 9), lost])
    by_kind = likenesses(str(tmp_path), {"p": "x", "q": "x", "r": "y", "s": "y"})
    for alike in by_kind.values():
        assert alike.clip_ids.to_pylist() == ["same colour", "same movement"]
        assert set(alike.groups) == {"all", "x", "y"}
    by_colour, by_movement = by_kind["colours"].groups["x"], by_kind["movement"].groups["x"]
    assert by_colour[0] == pytest.approx(1, abs=1e-5)
    assert by_colour[1] < 0.5
    assert by_movement[1] == 0
    assert by_movement[0] < -1
    np.testing.assert_allclose(by_kind["movement"].groups["all"], [0, 0], atol=1e-5)


def test_without_movement_nothing_is_alike(tmp_path: Path) -> None:
    assert likenesses(str(tmp_path), {"p": "x"}) == {}


def test_the_page_warns_where_looks_explain_more_than_motion() -> None:
    def overlap(by_looks: float | None, by_motion: float | None) -> dict[str, Any]:
        return {"ranked": 101, "colours": {"spearman": by_looks}, "movement": {"spearman": by_motion}}

    assert sections.looks({"all": overlap(0.5, 0.1)}).startswith("Looks explain more of the ranking of all queries")
    assert "of roll, spin than" in sections.looks({"roll": overlap(0.5, 0.1), "spin": overlap(0.3, -0.2)})
    for quiet in (overlap(0.1, 0.0), overlap(0.5, 0.6), overlap(None, 0.1), overlap(0.5, None), {"ranked": 5}):
        assert sections.looks({"all": quiet}) == ""
