"""Two stages from videos to the page: stopped by a budget in either, continued, with new clips, run again, purged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs import budget, stages, two_stages
from jobs.curate import attribute_queries, curate, index_data
from jobs.rank_clips import rank_clips
from jobs.report import report
from pipeline import arms, fingerprints, purging, reattribution, schemas, tables
from pipeline.config import Run
from pipeline.operations import Budget, SpentError
from pipeline.reattribution import FIELD


def ids(root: Path, name: str) -> set[str]:
    table = tables.read(str(root / name), ["clip_id"])
    return set() if table is None else set(table.column("clip_id").to_pylist())


def bits(root: Path) -> dict[str, bytes]:
    """Every clip's feature by the full setting."""
    table = tables.read(str(root / "features" / "clips"))
    assert table is not None
    found = zip(table.column("clip_id").to_pylist(), table.column("feature").to_pylist(), strict=True)
    return {i: np.asarray(f or [], np.float32).tobytes() for i, f in found}


def chosen(root: Path) -> set[str]:
    table = tables.read(str(root / "shortlist" / "chosen"))
    assert table is not None
    return {row["clip_id"] for row in table.to_pylist() if row["reason"]}


def summary(root: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((root / "summary.json").read_text())
    assert found["problems"] == []
    return found


def selection(root: Path) -> dict[str, dict[str, object]]:
    table = tables.read(str(root / "selection"))
    assert table is not None
    return {row["clip_id"]: row for row in table.to_pylist() if row["group"] == "all"}


def test_two_stages_from_videos_to_the_page(
    small_run: Callable[..., Run],
    small_world: Path,
    tmp_path: Path,
    cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    videos, root = tmp_path / "videos", tmp_path / "run"
    videos.mkdir()
    source = sorted((small_world / "clips").rglob("*.mp4"))
    for path in source[:20]:
        shutil.copy2(path, videos / path.name)
    shortlist = {"top": 0.4, "bottom": 0.1, "audit": 0.3, "frames": 5, "settings": [{"timestep": 751}]}
    run = small_run(
        root,
        data__videos=str(videos),
        evaluate__videos=None,
        evaluate__arms=["base"],
        evaluate__generate=0,
        finetune__steps=2,
        attribution__shortlist=shortlist,
    )
    capped = run.model_copy(update={"budget": Budget(cpu_hours=1e-9)})

    def spent(title: str) -> None:
        monkeypatch.setattr(budget, "_held", {"gpu_hours": 0.0, "cpu_hours": 0.0})
        with pytest.raises(SpentError, match=f"^{title}: .* is spent"):
            curate(capped)

    spent("cheaper attribute clips")
    assert 0 < len(ids(root, "shortlist/features/clips")) < 20
    assert not ids(root, "selection"), "ranked without one feature by the full setting"
    assert (root / "report" / "index.html").is_file()
    cheaper, scope = stages.scopes(run)[0]
    stages.attribute(cheaper, "clips", scope)

    spent("attribute clips")
    partly, listed = ids(root, "features/clips"), chosen(root)
    assert 0 < len(partly) < len(listed)
    assert partly < listed
    assert {i for i, row in selection(root).items() if row["rank"] is not None} == partly
    summary(root)

    curate(run)
    everyone = ids(root, "clips")
    featured = {i for i, error in zip(*_errors(root), strict=True) if error is None}
    assert ids(root, "motion/clips") == ids(root, "features/clips") == listed, "not the shortlist has the full setting"
    assert len(listed) < len(everyone) == 20
    rows = selection(root)
    assert set(rows) == everyone
    assert sum(row["decision"] == "selected" for row in rows.values()) == round(0.1 * len(featured))
    left = featured - listed
    assert left
    assert all("not on the shortlist, rank " in str(rows[i]["reason"]) for i in left)
    told = summary(root)
    assert [s["name"] for s in told["funnel"]["clips"]] == [  # type: ignore[index]
        "index", "cheaper_motion", "cheaper_features", "shortlist", "motion", "features",
    ]  # fmt: skip
    assert told["shortlist"]["clips"] == len(featured)  # type: ignore[index]
    assert "rank correlation of the two influences" in (root / "report" / "index.html").read_text()
    assert "audited clips say next to nothing" in capsys.readouterr().out
    for arm in ("random", "magnitude", "mask_overlap", "motive_whitened"):
        assert (
            arms.training_set(
                run.model_copy(update={"finetune": run.finetune.model_copy(update={"arm": arm})})
            ).num_rows
            == 2
        )
    drawn = arms.decodable(run).num_rows
    assert drawn == 20, "an arm draws from the shortlist alone"

    before, parts = bits(root), set((root / "features/clips").iterdir())
    for path in source[20:26]:
        shutil.copy2(path, videos / path.name)
    night(run)
    assert len(ids(root, "shortlist/motion/clips")) == 26
    after = bits(root)
    assert before.items() <= after.items(), "features that were there changed, or went"
    assert set(after) == chosen(root) | listed
    assert {i for i, row in selection(root).items() if row["rank"] is not None} == set(after)
    summary(root)
    del parts

    files = {
        p: p.stat().st_mtime_ns
        for name in ("features", "shortlist/features", "motion")
        for p in (root / name).rglob("*.parquet")
    }
    night(run)
    assert {p: p.stat().st_mtime_ns for p in files} == files, "run again, something is computed again"

    stale = reattribution.stale_parts(run)
    assert stale == {}
    other = tables.metadata(str(root / "shortlist/features/clips"))["fingerprint"]
    assert other[FIELD] is None
    assert other != fingerprints.features(run)

    gone = {next(iter(chosen(root))), next(iter(ids(root, "shortlist/features/clips") - chosen(root)))}
    purging.purge(str(root), gone)
    for path in root.rglob("part-*.parquet"):
        assert not gone & set(pa.parquet.read_table(path).column(0).to_pylist()), path
    assert tables.read(str(root / "shortlist/chosen")).schema.names == schemas.CHOSEN.names
    assert two_stages.rankable(run)


def _errors(root: Path) -> tuple[list[str], list[str | None]]:
    table = tables.read(str(root / "shortlist/features/clips"), ["clip_id", "error"])
    assert table is not None
    return table.column("clip_id").to_pylist(), table.column("error").to_pylist()


def night(run: Run) -> None:
    """What a later run does before it trains."""
    attribute_queries(run)
    index_data(run)
    two_stages.clips(run)
    rank_clips(run)
    report(run)
