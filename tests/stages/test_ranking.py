"""The stage of ranking on tables made by hand: rules, one ranking for several fractions, runs of before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from pipeline import config, tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.motion.signature import NUMBERS
from pipeline.ranking import selection
from pipeline.ranking.rules import strata
from pipeline.stages import ranking
from pipeline.stages.ranking import rank_clips
from pipeline.tables import schemas
from pipeline.training import arms

N, DIM = 60, 64
LICENCES = (None, "cc")
TWINS = {("clip03", "clip07"): "features", ("clip08", "clip09"): "features", ("clip11", "clip12"): "pictures"}
Array = npt.NDArray[np.float32]
Row = dict[str, Any]


def names(count: int, kind: str = "clip") -> list[str]:
    return [f"{kind}{n:02d}" for n in range(count)]


def features() -> Array:
    """Clip 7 is nearly clip 3, clip 9 nearly clip 8, but for the last digits."""
    rows = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
    rows[7] = rows[3] + 0.05 * rows[20]
    rows[9] = rows[8] + 0.05 * rows[21]
    return rows


def signatures() -> list[bytes]:
    """Clip 12 looks as clip 11 does."""
    rows = np.random.default_rng(1).integers(-100, 100, (N, NUMBERS)).astype(np.int8)
    rows[12] = rows[11] // 2
    return [row.tobytes() for row in rows]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    """A run of 60 clips with features, sources and licences; the same tables whatever is asked of the ranking."""

    def made(**ranking: Any) -> Run:
        keys = {f"ranking.{key}": value for key, value in ranking.items()}
        projection = {"kind": "gaussian", "dim": DIM, "seed": 0}
        return config.load(
            "demo", {"root": str(tmp_path), "attribution.projection": projection, "finetune.arm": "selected", **keys}
        )

    run = made()
    for name, values, ids in (("clips", features(), names(N)), ("queries", features()[:4], names(4, "q"))):
        one = tables.vectors(np.ones((len(ids), 1), np.float32))
        columns = [pa.array(ids), pa.array(["v"] * len(ids)), tables.vectors(values), one, one]
        columns += [pa.array([9] * len(ids), pa.int32()), pa.nulls(len(ids), pa.string())]
        table = pa.table(columns, schema=schemas.features_schema(1, DIM))
        settings = [setting.record() for setting in run.of(name).attribution.settings]
        tables.append(f"{tmp_path}/features/{name}", table, fingerprints.features(run.of(name)), settings=settings)
    empty = dict.fromkeys(schemas.QUERIES.names)
    queries = [{**empty, "clip_id": i, "group": g} for i, g in zip(names(4, "q"), ["roll", "spin"] * 2, strict=True)]
    tables.append(f"{tmp_path}/queries", pa.Table.from_pylist(queries, schema=schemas.QUERIES), {})
    clips = [
        {**empty, "clip_id": i, "version": "v", "source": f"film {n % 5}", "licence": LICENCES[n % 2], "tags": ["a"]}
        for n, i in enumerate(names(N))
    ]
    passed = [("licence", pa.string()), ("tags", pa.list_(pa.string()))]
    tables.append(f"{tmp_path}/clips", pa.Table.from_pylist(clips, schema=pa.schema([*schemas.CLIPS, *passed])), {})
    return made


def pictures(run: Run) -> None:
    rows = [
        {"clip_id": i, "version": "v", "signature": s, "error": None}
        for i, s in zip(names(N), signatures(), strict=True)
    ]
    tables.append(f"{run.root}/pictures/clips", pa.Table.from_pylist(rows, schema=schemas.PICTURES), {})


def decided(run: Run, group: str = "all") -> dict[str, Row]:
    table = tables.read(f"{run.root}/selection")
    assert table is not None
    return {row["clip_id"]: row for row in table.to_pylist() if row["group"] == group}


def test_near_duplicates_get_one_representative_in_every_group(
    make: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(duplicates={}, fraction=0.5)
    pictures(run)
    rank_clips(run)
    for group in ("all", "roll", "spin"):
        rows = decided(run, group)
        assert sum(row["decision"] == "selected" for row in rows.values()) == 30, "the next best take their places"
        for pair, by in TWINS.items():
            best, other = sorted((rows[name] for name in pair), key=lambda row: row["rank"])
            assert (other["rule"], other["decision"]) == ("duplicate", "neutral")
            assert other["duplicate_of"] == best["clip_id"]
            assert f"near-duplicate of {best['clip_id']} by its {by}, cosine " in other["reason"]
            assert best["duplicate_of"] is None
    assert "selection: barred are 3 by duplicate" in capsys.readouterr().out
    ids = arms.training_set(run).column("clip_id").to_pylist()  # type: ignore[union-attr]
    assert sorted(ids) == sorted(i for i, row in decided(run).items() if row["decision"] == "selected")


def test_a_run_without_pictures_is_told_and_ranked_by_features(
    make: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    run = make(duplicates={})
    rank_clips(run)
    assert "60 of 60 ranked clips have no signature" in caplog.text
    barred = [i for i, row in decided(run).items() if row["rule"] == "duplicate"]
    assert set(barred) <= {"clip03", "clip07", "clip08", "clip09"}
    assert len(barred) == 2


def test_caps_let_the_next_best_in_and_count_a_missing_value(
    make: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(caps={"source": 3, "licence": 9}, fraction=0.4)
    rank_clips(run)
    rows = decided(run)
    chosen = [int(i[-2:]) for i, row in rows.items() if row["decision"] == "selected"]
    assert max(np.bincount([n % 5 for n in chosen])) <= 3
    assert max(np.bincount([n % 2 for n in chosen])) <= 9
    capped = [row for row in rows.values() if row["rule"].startswith("cap ")]
    values = {*(f"source film {n}" for n in range(5)), "licence cc", "licence none"}
    assert {row["reason"].split(" has ")[0] for row in capped} <= values
    assert all(row["decision"] != "harmful" for row in capped)
    assert f"only {len(chosen)} of the 24 clips that ranking.fraction=0.4 asks for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("caps", "says"),
    [({"license": 3}, r"no column 'license'. They have .*licence"), ({"tags": 1}, "'tags' holds list<")],
)
def test_a_cap_that_cannot_be_is_refused_before_anything_is_ranked(
    make: Callable[..., Run], caps: dict[str, int], says: str
) -> None:
    run = make(caps=caps)
    with pytest.raises(ConfigError, match=says):
        rank_clips(run)
    assert not Path(run.root, "influence").exists()


@pytest.mark.parametrize(
    ("ranking", "says"),
    [
        ({"caps": {"source": 0}}, "caps"),
        ({"duplicates": {"feature": 0.5}}, "feature"),
        ({"duplicates": {"feature": None, "picture": None}}, "both null"),
    ],
)
def test_what_no_rule_can_be_is_a_configuration_error(make: Callable[..., Run], ranking: Row, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(**ranking)


def test_another_fraction_or_rule_ranks_nothing_again(
    make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the tables are those of a run that ranks: to the bit."""
    rank_clips(make(fraction=0.3))
    wished = tables.read(f"{make().root}/selection")
    rank_clips(make(fraction=0.05))
    by_choice = sorted(
        (row for row in decided(make()).values() if row["choice"] is not None), key=lambda r: r["choice"]
    )

    def forbidden(*_: Any) -> None:
        raise AssertionError("features are ranked again")

    monkeypatch.setattr(ranking, "rank", forbidden)
    for fraction, count in ((0.01, 1), (0.05, 3), (0.1, 6), (0.3, 18), (0.5, 30)):
        rank_clips(make(fraction=fraction))
        selected = {i for i, row in decided(make()).items() if row["decision"] == "selected"}
        assert selected == {row["clip_id"] for row in by_choice[:count]}, f"fraction {fraction}"
    rank_clips(make(fraction=0.3, caps={"source": 3}))
    rank_clips(make(fraction=0.3))
    assert tables.read(f"{make().root}/selection").equals(wished)
    assert "as the last ranking left it" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["a feature", "whiten", "a query"])
def test_what_influence_depends_on_ranks_again(make: Callable[..., Run], change: str) -> None:
    run = make()
    rank_clips(run)
    before = tables.metadata(f"{run.root}/influence")["features"]
    if change == "whiten":
        run = make(whiten=0.1)
    else:
        name = "clips" if change == "a feature" else "queries"
        folder = f"{run.root}/features/{name}"
        rows = tables.read(folder)
        assert rows is not None
        values = -tables.matrix(rows, "feature")
        changed = rows.set_column(rows.schema.get_field_index("feature"), "feature", tables.vectors(values))
        metadata = tables.metadata(folder)
        tables.append(folder, changed, metadata["fingerprint"], settings=metadata["settings"])
    rank_clips(run)
    again = selection.rank(run, run.ranking.mask, run.ranking.whiten)
    influence = tables.read(f"{run.root}/influence")
    assert influence is not None
    columns = np.stack([again.influence[q] for q in range(4)], 1)
    assert np.array_equal(tables.matrix(influence, "influence"), columns), "an influence of before is there"
    assert change == "whiten" or tables.metadata(f"{run.root}/influence")["features"] != before


def test_a_selection_of_before_there_were_rules_is_read(make: Callable[..., Run]) -> None:
    run = make()
    rank_clips(run)
    folder = f"{run.root}/selection"
    table = tables.read(folder)
    assert table is not None
    ids = arms.training_set(run).column("clip_id").to_pylist()  # type: ignore[union-attr]
    tables.replace(folder, table.drop_columns(["rule", "choice", "duplicate_of"]), {})
    assert arms.training_set(run).column("clip_id").to_pylist() == ids  # type: ignore[union-attr]


def test_strata_are_counted_before_and_after_the_rules(
    make: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(caps={"source": 2}, fraction=0.1)
    motion = schemas.motion_schema(schemas.CLIPS)
    moved = [
        {**dict.fromkeys(motion.names), "clip_id": i, "motion_mean": float(n), "camera_share": n / 40}
        for n, i in enumerate(names(40))
    ]
    tables.append(f"{run.root}/motion/clips", pa.Table.from_pylist(moved, schema=motion), {})
    rank_clips(run)
    counts = strata.strata(run)
    rows = decided(run)
    chosen = [int(i[-2:]) for i, row in rows.items() if row["decision"] == "selected"]
    best = [int(row["clip_id"][-2:]) for row in sorted(rows.values(), key=lambda row: row["rank"])[: len(chosen)]]
    for source in range(5):
        assert counts["source"][f"film {source}"] == {
            "corpus": 12,
            "before": sum(n % 5 == source for n in best),
            "selected": sum(n % 5 == source for n in chosen),
        }
    assert counts["licence"]["not known"]["corpus"] == counts["licence"]["cc"]["corpus"] == 30
    assert [of["corpus"] for of in counts["camera"].values()] == [10, 10, 10, 10, 20]
    assert [of["corpus"] for of in counts["motion"].values()] == [10, 10, 10, 10, 20]
    assert counts["camera"]["not known"]["selected"] == sum(n >= 40 for n in chosen)
    for of in counts.values():
        assert {name: sum(row[name] for row in of.values()) for name in strata.SETS} == {
            "corpus": N,
            "before": len(chosen),
            "selected": len(chosen),
        }
    assert "camera under 25 %" in capsys.readouterr().out


def test_of_a_column_of_many_values_the_largest_are_named() -> None:
    row = {"corpus": 1, "before": 0, "selected": 1}
    of = {f"v{n}": {**row, "corpus": n} for n in range(20)}
    first = strata._first(of)
    assert list(first)[:2] == ["v19", "v18"]
    assert len(first) == strata.MOST
    assert sum(one["corpus"] for one in first.values()) == sum(range(20))


def test_rows_that_tables_lack_are_warnings(
    make: Callable[..., Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a damaged part was deleted, and the job that makes its rows was not run."""
    run = make()
    rank_clips(run)
    assert not [one for one in caplog.messages if "have no row" in one or "lacks" in one]
    tables.drop(f"{tmp_path}/features/clips", ["clip05", "clip06"])
    tables.drop(f"{tmp_path}/clips", ["clip05", "clip20", "clip21", "clip22"])
    ids = [("clips", names(N)[:9], names(N)[:7]), ("queries", names(4, "q"), names(4, "q"))]
    for name, of_motion, of_movement in ids:
        for folder, of in (("motion", of_motion), ("movement", of_movement)):
            rows = pa.table({"clip_id": of, "error": pa.nulls(len(of), pa.string())})
            tables.append(f"{tmp_path}/{folder}/{name}", rows, {})
    sentences = list(ranking.gaps(run, ranked := selection.rank(run, "queries", 0.01), selection.unranked(run, ranked)))
    assert len(sentences) == 3
    assert sentences[0].startswith("2 clips have no row in features/"), "clip05 is known by motion/ alone"
    assert sentences[1].startswith("3 clips have features and no row in clips/")
    assert f"{tmp_path}/movement/clips lacks 2 of the rows that" in sentences[2]
