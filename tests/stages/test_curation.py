"""`queries.sample`: provisional queries are the corpus' own moving clips, drawn by seed and id alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from jobs.estimate_motion import estimate_motion
from jobs.index_clips import index_clips
from pipeline import tables
from pipeline.config import Run
from pipeline.errors import NothingUsableError
from pipeline.stages import attribution, indexing
from pipeline.stages.curation import place_in_draw, sample_queries
from pipeline.storage import stores

MakeRun = Callable[..., Run]


@pytest.fixture
def sampled(small_run: MakeRun, clips_of_world: Callable[[Iterable[int]], str]) -> MakeRun:
    given = {"data__videos": clips_of_world([*range(11), 24]), "queries__videos": None, "evaluate__videos": None}
    return lambda root, count=4, **changes: small_run(root, **{**given, "queries__sample": count, **changes})


def _rows(run: Run, *names: str) -> list[dict[str, Any]]:
    table = tables.read(stores.join(run.root, *names))
    assert table is not None, f"there is no table {names}"
    return list(table.to_pylist())


def test_the_first_moving_clips_of_the_order_are_the_queries(sampled: MakeRun, cluster: None, tmp_path: Path) -> None:
    run = sampled(tmp_path / "run")
    index_clips(run)
    assert not tables.parts(stores.join(run.root, "queries")), "queries without a look at their motion"
    estimate_motion(run)
    queries = _rows(run, "queries")
    moving = [row["clip_id"] for row in _rows(run, "motion", "clips") if row["error"] is None]
    first = sorted(moving, key=lambda clip_id: place_in_draw(run.seed, clip_id))[:4]
    assert sorted(row["clip_id"] for row in queries) == sorted(first)
    assert {row["group"] for row in queries} == {"all"}
    assert {row["clip_id"]: row["error"] for row in _rows(run, "motion", "queries")} == dict.fromkeys(first)


def test_a_draw_needs_no_more_motion_than_it_takes_and_a_second_changes_nothing(
    sampled: MakeRun, cluster: None, tmp_path: Path
) -> None:
    asked = [{"timestep": 751, "mask": "motion", "of": "queries"}, {"timestep": 751, "mask": "none", "of": "clips"}]
    changes = {"motion__of": "queries", "motion__sample": 1, "attribution__settings": asked}  # of one clip otherwise
    run = sampled(tmp_path / "run", 2, **changes)
    indexing.index(run, "clips")
    sample_queries(run)
    assert len(_rows(run, "motion", "clips")) < len(_rows(run, "clips")), "the whole corpus was looked at"
    before = _rows(run, "queries")
    sample_queries(run)
    assert _rows(run, "queries") == before
    more = sampled(tmp_path / "run", 3, **changes)
    sample_queries(more)
    ids = {row["clip_id"] for row in _rows(run, "queries")}
    assert len(ids) == 3
    assert {row["clip_id"] for row in before} < ids, "a larger sample has the smaller one in it"


def test_a_query_that_is_none_any_more_takes_its_features_along(
    sampled: MakeRun, cluster: None, tmp_path: Path
) -> None:
    run = sampled(tmp_path / "run", 2)
    indexing.index(run, "clips")
    sample_queries(run)
    attribution.attribute(run, "queries")
    assert len(_rows(run, "features", "queries")) == 2
    sample_queries(sampled(tmp_path / "run", 1))
    assert len(_rows(run, "queries")) == len(_rows(run, "features", "queries")) == 1


def test_a_corpus_without_motion_has_no_queries(
    sampled: MakeRun, clips_of_world: Callable[[Iterable[int]], str], cluster: None, tmp_path: Path
) -> None:
    run = sampled(tmp_path / "run", data__videos=clips_of_world([0]), motion__still=1000.0)
    indexing.index(run, "clips")
    with pytest.raises(NothingUsableError, match=r"queries\.sample=4: none of the clips .* moves"):
        sample_queries(run)
