"""Ranking streamed from tables against ranking of the same features as arrays, and what it does to tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_limits

from pipeline import config, tables
from pipeline.config import Ranking, Run
from pipeline.errors import ConfigError, MissingTableError
from pipeline.ranking import BLOCK, feature_table, influence, order, select, selection, unit_settings, votes
from pipeline.ranking import influence_table as influence_of_tables
from pipeline.ranking.column_file import Columns
from pipeline.storage.parallel import in_order
from pipeline.tables import schemas

Array = npt.NDArray[np.float32]
SETTINGS = [{"timestep": 751, "noise": 0, "mask": "motion"}, {"timestep": 501, "noise": 0, "mask": "motion"}]
N, K = 3000, 32


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rows(ids: list[str], features: Array, errors: list[str | None] | None = None) -> pa.Table:
    errors = errors or [None] * len(ids)
    valid, norm = np.array([e is None for e in errors]), np.ones((len(ids), 2), np.float32)
    arrays = [
        pa.array(ids),
        pa.array(["v"] * len(ids)),
        tables.vectors(features, valid),
        tables.vectors(norm, valid),
        tables.vectors(norm, valid),
        pa.array([9] * len(ids), pa.int32()),
        pa.array(errors, pa.string()),
    ]
    return pa.table(arrays, schema=schemas.features_schema(2, K))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """3,000 clips in parts of several sizes and no order, 6 queries in two groups; features with a shared direction."""
    names = [f"clip{i:05d}" for i in np.random.default_rng(5).permutation(N)]
    start = 0
    for size in (1, 700, 999, 1300):
        tables.append(
            str(tmp_path / "features/clips"), rows(names[start : start + size], features()[start : start + size]), {},
            settings=SETTINGS,
        )  # fmt: skip
        start += size
    query_ids = [f"q{i}" for i in range(6)]
    tables.append(str(tmp_path / "features/queries"), rows(query_ids, queries()), {}, settings=SETTINGS)
    clips = {n: [None] * 6 for n in schemas.QUERIES.names}
    grouped = pa.table({**clips, "clip_id": query_ids, "group": ["spin"] * 4 + ["roll"] * 2}, schema=schemas.QUERIES)
    tables.append(str(tmp_path / "queries"), grouped, {})
    return config.load("demo", {"root": str(tmp_path)})


def features() -> Array:
    return normal(0, N, 2 * K) + normal(3, 2 * K)


def queries() -> Array:
    return normal(1, 6, 2 * K) + normal(3, 2 * K)


def ids() -> list[str]:
    return [f"clip{i:05d}" for i in np.random.default_rng(5).permutation(N)]


@pytest.mark.parametrize("resident", [0, 1800 * 8 * K, 1 << 30])  # bytes: no part is kept, some are, all are
@pytest.mark.parametrize("whiten", [None, 0.01])
def test_streamed_ranking_is_that_of_the_arrays(
    run: Run, whiten: float | None, resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(influence_of_tables, "RESIDENT", resident)
    monkeypatch.setattr(feature_table, "BATCH", 256)
    monkeypatch.setattr(influence_of_tables, "BUFFER_ROWS", 500)
    whole = influence(unit_settings(features(), 2), unit_settings(queries(), 2), whiten)
    ranked = selection.rank(run, "motion", whiten)
    by_id = dict(zip(ids(), whole, strict=True))
    expected = np.stack([by_id[i] for i in ranked.clip_ids.to_pylist()])
    influences = np.stack([ranked.influence[q] for q in range(6)], 1)
    scale = float(np.abs(whole).max())
    assert np.abs(influences - expected).max() < 1e-6 * max(1, scale), "a streamed influence is not the array's"
    for group, chosen in (("all", slice(6)), ("spin", slice(4)), ("roll", slice(4, 6))):
        mean, given = ranked.score(group, ranked.marks(0.1))
        assert (given == votes(influences[:, chosen], 0.1)).all(), f"votes of {group} are not exact"
        assert np.allclose(mean, influences[:, chosen].mean(1), rtol=1e-6, atol=1e-6)
        for by in ("mean", "votes"):
            names = ranked.clip_ids.to_pylist()
            placed = [names[i] for i in order(influences[:, chosen], names, by)]  # type: ignore[arg-type]
            assert ranked.order(group, by, 0.1).to_pylist() == placed, f"{group} by {by}"  # type: ignore[arg-type]


def test_a_ranking_that_is_written_down_is_read_and_another_is_not(run: Run) -> None:
    """Also where the recipe has settings of queries that the clips' features know nothing of."""
    of_clips = {"timestep": 751, "noise": 0, "mask": "motion"}
    both = [{**of_clips, "mask": "none", "of": "queries"}, {**of_clips, "of": "clips"}]
    tables.drop_where(str(Path(run.root, "features/clips")), lambda rows: pa.array([True] * rows.num_rows), ["clip_id"])
    fingerprint = {"attribution.settings": [of_clips], "seed": 0}
    tables.append(str(Path(run.root, "features/clips")), rows(ids(), features()), fingerprint, settings=SETTINGS)
    ranked = selection.rank(run, "motion", 0.01)
    schema = schemas.influence_schema(6)

    def write(settings: list[dict[str, object]]) -> None:
        recipe = {"attribution.settings": settings, "seed": 0, "ranking": {"mask": "motion", "whiten": 0.01}}
        folder = str(Path(run.root, "influence"))
        tables.replace_streamed(folder, schema, selection.influence_tables(ranked), recipe, query_ids=ranked.query_ids)

    write(both)
    again = selection.recorded(run, "motion", 0.01)
    assert again is not None, "it is computed again for every arm"
    assert all(np.array_equal(again.influence[q], ranked.influence[q]) for q in range(6))
    assert selection.recorded(run, "motion", None) is None
    write([{**of_clips, "timestep": 501}])
    assert selection.recorded(run, "motion", 0.01) is None, "it is of features of another timestep"


def test_the_direction_of_unwanted_queries_is_taken_away(run: Run) -> None:
    asked = run.model_copy(update={"queries": run.queries.model_copy(update={"unwanted": ("roll",)})})
    ranked = selection.rank(asked, "motion", None)
    assert ranked.query_ids == [f"q{n}" for n in range(4)], "unwanted queries are none of the ranking's"
    assert ranked.all_groups == ["all", "spin"]
    unit = unit_settings(queries(), 2)
    away = unit[4:].mean(0) / np.linalg.norm(unit[4:].mean(0))
    whole = influence(unit_settings(features(), 2), unit_settings(unit[:4] - away, 2), None)
    by_id = dict(zip(ids(), whole, strict=True))
    influences = np.stack([ranked.influence[q] for q in range(4)], 1)
    np.testing.assert_allclose(influences, np.stack([by_id[i] for i in ranked.clip_ids.to_pylist()]), atol=1e-5)
    for groups, says in (
        (("slide",), "of group 'slide'; the groups are roll, spin"),
        (("roll", "spin"), "every query"),
    ):
        unfit = run.model_copy(update={"queries": run.queries.model_copy(update={"unwanted": groups})})
        with pytest.raises(ConfigError, match=says):
            selection.rank(unfit, "motion", None)


def test_the_selection_is_the_notebooks_whatever_the_chunks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = selection.rank(run, "motion", 0.01)
    influences = np.stack([ranked.influence[q] for q in range(6)], 1)
    unlawful = {clip_id: f"law {clip_id}" for clip_id in ranked.clip_ids.to_pylist()[::37]}
    whole = select(influences, ranked.clip_ids.to_pylist(), by="votes", unlawful=unlawful)
    for module in ("scores", "rules.selection_blocks"):
        monkeypatch.setattr(f"pipeline.ranking.{module}.CHUNK", 700)
    others = pa.table({"clip_id": pa.array([], pa.string()), "error": pa.array([], pa.string())})
    spoiled = pa.table({"clip_id": list(unlawful), "reason": list(unlawful.values())})
    rule, marks = Ranking(by="votes"), ranked.marks(0.1)
    streamed = pa.concat_tables(selection.selection_tables(ranked, rule, marks, others, spoiled))
    streamed = streamed.filter(pa.compute.equal(streamed.column("group"), "all")).select(whole.column_names)
    assert streamed.equals(whole), "rows differ between one chunk and several"


def test_neighbors_are_exact_with_ties_by_id() -> None:
    column = np.random.default_rng(0).integers(-4, 5, 400).astype(np.float32)  # full of ties
    columns = Columns(400, 1)
    columns.add(column[:, None])
    names = [f"c{i:03d}" for i in np.random.default_rng(1).permutation(400)]
    ranked = selection.Ranked(pa.array(names, pa.large_string()), ["q"], ["all"], columns)
    neighbors = selection.neighbors_table(ranked, 60, ranked.marks(0.1, 60)).to_pylist()
    whole = sorted(range(400), key=lambda i: (-column[i], names[i]))
    for sign, expected in (("positive", whole[:60]), ("negative", whole[::-1][:60])):
        assert [r["clip_id"] for r in neighbors if r["sign"] == sign] == [names[i] for i in expected], sign
    assert len(selection.neighbors_table(ranked, 1000, ranked.marks(0.1, 1000))) == 800, (
        "more neighbours are asked for than there are clips"
    )


def test_of_a_clips_two_rows_the_one_counts_that_tables_read_takes(run: Run) -> None:
    """After a kill a merged part and its sources lie side by side; a failed clip that was tried again has an error."""
    folder = str(Path(run.root) / "features/clips")
    before = selection.rank(run, "motion", 0.01)
    again = ids()[:5]
    tables.append(folder, rows(again, normal(9, 5, 2 * K), ["read: gone"] * 5), {}, settings=SETTINGS)
    tables.append(folder, rows([*ids()[5:300], "zz"], normal(9, 296, 2 * K), [None] * 295 + ["memory: x"]), {},
                  settings=SETTINGS)  # fmt: skip
    after = selection.rank(run, "motion", 0.01)
    assert sorted(after.clip_ids.to_pylist()) == sorted(before.clip_ids.to_pylist()), "clips are doubled or lost"
    read = tables.read(folder, ["clip_id", "feature"])
    by_id = dict(zip(read.column("clip_id").to_pylist(), read.column("feature").to_pylist(), strict=True))
    used = np.concatenate(list(feature_table.under_mask(run.root, "clips", "motion").map(lambda phi: phi)))
    expected = unit_settings(np.array([by_id[i] for i in after.clip_ids.to_pylist()], np.float32), 2)
    assert np.array_equal(used, expected), "another row than that of tables.read is ranked"
    others = selection.unranked(run, after).to_pylist()
    assert others == [{"clip_id": "zz", "error": "memory: x"}], f"not ranked: {others}"


def test_why_a_clip_is_not_ranked_is_its_latest_error(run: Run) -> None:
    motion = pa.table({"clip_id": ["x", "y", "clip00000"], "error": ["no_motion: x", None, "no_motion: stale"]})
    clips = pa.table({"clip_id": ["x", "y", "w"], "error": [None, None, "decode: w"]})
    tables.append(str(Path(run.root) / "motion/clips"), motion, {})
    tables.append(str(Path(run.root) / "clips"), clips, {})
    unranked = selection.unranked(run, selection.rank(run, "motion", None)).to_pylist()
    assert unranked == [
        {"clip_id": "w", "error": "decode: w"},
        {"clip_id": "x", "error": "no_motion: x"},
        {"clip_id": "y", "error": selection.NOT_ATTRIBUTED},
    ]


def test_columns_are_those_of_the_matrix_and_what_is_missing_is_an_error() -> None:
    values, columns = normal(0, 50, 3), Columns(50, 3)
    columns.add(values[:20])
    with pytest.raises(EOFError, match="were not all written"):
        columns[2]
    columns.add(values[20:])
    assert all(np.array_equal(columns[q], values[:, q]) for q in range(3))
    assert np.array_equal(columns.read(1, 10, 30), values[10:30, 1])


def test_readers_see_the_old_rows_until_the_new_ones_are_whole(tmp_path: Path) -> None:
    """Neither a reader while it is written nor one after it failed sees a mixture, or a file that is not whole."""
    folder = str(tmp_path / "influence")
    tables.replace(folder, pa.table({"clip_id": ["old"]}), {"a": 1})
    schema = pa.schema([("clip_id", pa.string())])

    def coming(fail: bool) -> Iterator[pa.Table]:
        for i in range(3):
            table = tables.read(folder)
            assert table is not None
            assert table.column("clip_id").to_pylist() == ["old"], "a reader sees rows of an unfinished table"
            yield pa.table({"clip_id": [f"new{i}"]})
        if fail:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        tables.replace_streamed(folder, schema, coming(True), {"a": 2})
    assert [p.name for p in (tmp_path / "influence").iterdir()] == ["part-all.parquet"], "leftovers of a failed writer"
    assert tables.metadata(folder)["fingerprint"] == {"a": 1}
    tables.replace_streamed(folder, schema, coming(False), {"a": 2}, query_ids=["q"])
    assert pq.ParquetDataset(folder).read().column("clip_id").to_pylist() == ["new0", "new1", "new2"]
    assert tables.metadata(folder) == {"fingerprint": {"a": 2}, "query_ids": ["q"]}


def test_work_over_threads_comes_in_order_and_an_error_surfaces() -> None:
    assert list(in_order(lambda i: i * i, range(50))) == [i * i for i in range(50)]

    def call(i: int) -> int:
        if i == 30:
            raise ValueError("part 30 cannot be read")
        return i

    with pytest.raises(ValueError, match="part 30"):
        list(in_order(call, range(50)))


@pytest.mark.parametrize("clips", [0, 1, BLOCK, 2 * BLOCK + 7])
def test_influence_is_the_same_to_the_bit_on_any_number_of_threads(clips: int) -> None:
    phi, q = unit_settings(normal(0, clips, K), 1), unit_settings(normal(1, 5, K), 1)
    naive = phi @ np.linalg.solve(phi.T.astype(np.float64) @ phi / max(1, clips) + 0.01 * np.eye(K), q.T)
    influences = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            influences.append(influence(phi, q, whiten=0.01 if clips else None))
    assert influences[0].shape == (clips, 5)
    assert influences[0].tobytes() == influences[1].tobytes()
    assert np.allclose(influences[0], naive, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["clips", "queries"])
@pytest.mark.parametrize(("value", "says"), [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "zero under one")])
def test_a_row_that_cannot_be_ranked_ends_the_job_with_its_name(run: Run, name: str, value: float, says: str) -> None:
    """A table should hold none; one that does, from a damaged or foreign part, must not rank by NaN."""
    values = queries()[:2]
    values[1, K:] = value
    tables.append(f"{run.root}/features/{name}", rows(["fine", "bad"], values), {}, settings=SETTINGS)
    with pytest.raises(MissingTableError, match=f"{'query' if name == 'queries' else 'clip'} 'bad'.*{says}"):
        selection.rank(run, "motion", 0.01)


def test_a_row_without_a_feature_or_with_a_norm_of_nan_is_named(run: Run) -> None:
    table = rows(["fine", "bad"], queries()[:2])
    at = table.schema.get_field_index("feature")
    empty = table.set_column(at, table.schema.field(at), tables.vectors(queries()[:2], np.array([True, False])))
    tables.append(f"{run.root}/features/clips", empty, {}, settings=SETTINGS)
    with pytest.raises(MissingTableError, match=r"clip 'bad'.*not finite"):
        selection.rank(run, "motion", None)
    at = table.schema.get_field_index("norm")
    norms = tables.vectors(np.array([[1, 1], [np.nan, 1]], np.float32))
    tables.append(
        f"{run.root}/features/queries", table.set_column(at, table.schema.field(at), norms), {}, settings=SETTINGS
    )
    with pytest.raises(MissingTableError, match=r"query 'bad'.*norm"):
        selection.rank(run, "motion", None)
