"""Where the ranking masks queries alone, the motion of a sample of the clips is enough, and no feature is another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.index_clips import index_clips
from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.pages import funnel
from pipeline.stages import attribution

PLAIN = [
    {"timestep": 751, "noise": 0, "mask": "motion", "of": "queries"},
    {"timestep": 751, "noise": 0, "mask": "none", "of": "clips"},
]


def ids(root: Path, table: str) -> list[str]:
    rows = tables.read(str(root / table), ["clip_id"])
    return [] if rows is None else rows.column("clip_id").to_pylist()


@pytest.mark.whole
def test_features_are_those_of_a_run_that_measures_all(
    small_run: Callable[..., Run], clips_of_world: Callable[[Iterable[int]], str], tmp_path: Path, cluster: None
) -> None:
    pool = {"actors": 1, "cpus": 1, "batch": 5}
    given = {
        "data__videos": clips_of_world([*range(11), 24]),
        "attribution__settings": PLAIN,
        "resources__extract_features": pool,
    }
    whole = small_run(tmp_path / "whole", **given)
    sampled = small_run(tmp_path / "sampled", motion__of="queries", motion__sample=7, **given)
    for run in (whole, sampled):
        index_clips(run)
        attribution.attribute(run, "clips")
    assert len(ids(tmp_path / "whole", "motion/clips")) == 12
    sample = ids(tmp_path / "sampled", "motion/clips")
    assert len(sample) == 7
    pictures = [tables.read(str(root / "pictures" / "clips")) for root in (tmp_path / "whole", tmp_path / "sampled")]
    assert pictures[0].equals(pictures[1]), "of every clip whose frames are decoded there is a signature"
    assert pictures[0].num_rows == 12
    features = [tables.read(str(root / "features" / "clips")) for root in (tmp_path / "whole", tmp_path / "sampled")]
    assert features[0].column("clip_id").equals(features[1].column("clip_id"))
    assert np.array_equal(tables.matrix(features[0], "feature"), tables.matrix(features[1], "feature"))
    parts = sorted((tmp_path / "sampled").rglob("part-*"))
    attribution.attribute(sampled, "clips")
    assert sorted((tmp_path / "sampled").rglob("part-*")) == parts, "what is there was computed again"
    stages = funnel.funnel(sampled).stages
    assert [(s.name, s.entered, s.left) for s in stages] == [("index", 12, 12), ("features", 12, 12)]


@pytest.mark.parametrize(
    "changes", [{"finetune__arm": "magnitude", "attribution__settings": PLAIN}, {"finetune__arm": "selected"}]
)
def test_what_needs_every_clips_motion_is_refused(
    small_run: Callable[..., Run], tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"motion\.of='queries', but"):
        small_run(tmp_path, motion__of="queries", **changes)
