"""Tables of a run: whole parts, no loss and no doubling, readable by anyone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import tables
from pipeline.errors import FingerprintError
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.tables.merging import merge

SCHEMA = pa.schema([("clip_id", pa.string()), ("version", pa.string()), ("value", pa.int64()), ("error", pa.string())])
PRINT = {"numerics": 1, "data.frames": 9}


class LosesDeletes(MemoryFileSystem):
    """A store whose deletions fail, as if the process were killed between its writes and its deletions."""

    protocol = "losesdeletes"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs: list[str] = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("losesdeletes://", "memory://")))

    def rm_file(self, path: str) -> None:
        raise ConnectionError("killed here")


fsspec.register_implementation("losesdeletes", LosesDeletes, clobber=True)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run" / "clips") if request.param == "local" else f"memory://{uuid.uuid4().hex}/clips"


def rows(*ids: str, error: str | None = None, version: str = "v1", value: int = 0) -> pa.Table:
    return pa.Table.from_pylist(
        [{"clip_id": i, "version": version, "value": value, "error": error} for i in ids], schema=SCHEMA
    )


def contents(folder: str) -> dict[str, tuple[int, str | None]]:
    table = tables.read(folder)
    assert table is not None, "the table is gone"
    records = table.to_pylist()
    ids = [row["clip_id"] for row in records]
    assert len(ids) == len(set(ids)), f"rows are doubled: {ids}"
    assert ids == sorted(ids), f"rows are not in the order of their ids: {ids}"
    return {row["clip_id"]: (row["value"], row["error"]) for row in records}


def pending(candidates: pa.Table, folder: str) -> pa.Table:
    """The rows that a table has no row for yet, or one of another version, or one whose error may be tried again."""
    return candidates.filter(pa.array(tables.Outcomes(folder).standing(candidates).is_pending))


# --- parts -----------------------------------------------------------------------------------------------------------


def test_what_is_appended_is_read(folder: str) -> None:
    assert tables.read(folder) is None, "a table that nobody wrote is there"
    tables.append(folder, rows("b", "a", value=1), PRINT)
    tables.append(folder, rows("c", error="decode: broken"), PRINT)
    assert contents(folder) == {"a": (1, None), "b": (1, None), "c": (0, "decode: broken")}
    assert tables.read(folder, ["value"]).column_names == ["value"], "columns that were not asked for come along"


def test_an_empty_table_makes_no_part(folder: str) -> None:
    tables.append(folder, rows(), PRINT)
    assert tables.parts(folder) == [], "a part without rows was written"


def test_the_same_rows_written_twice_are_one_file(folder: str) -> None:
    tables.append(folder, rows("a", "b"), PRINT)
    tables.append(folder, rows("b", "a"), PRINT)
    assert len(tables.parts(folder)) == 1, "a batch that was retried has doubled its part"
    tables.append(folder, rows("a", "c"), PRINT)
    assert len(tables.parts(folder)) == 2, "other rows have taken another part's place"


def test_ids_that_join_to_the_same_text_are_different_parts(folder: str) -> None:
    tables.append(folder, rows("a", "bc"), PRINT)
    tables.append(folder, rows("ab", "c"), PRINT)
    assert set(contents(folder)) == {"a", "bc", "ab", "c"}, "a part was named as another and replaced it"


def test_a_root_with_brackets_is_a_place_like_any_other(tmp_path: Path) -> None:
    folder = str(tmp_path / "run [1]*" / "clips")
    tables.append(folder, rows("a"), PRINT)
    assert list(contents(folder)) == ["a"], "a table is invisible because its path is taken for a pattern"


def test_a_write_that_fails_leaves_no_part_and_no_trouble_for_readers(tmp_path: Path) -> None:
    """The process may write files of 4 kB at most, so that the second part fails half way, as on a full disk."""
    code = f"""
import resource, numpy as np, pyarrow as pa
from pipeline import tables
folder = {str(tmp_path / "clips")!r}
table = lambda ids: pa.table({{"clip_id": ids, "error": pa.nulls(len(ids), pa.string())}})
tables.append(folder, table(["a"]), {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
random = np.random.default_rng(0)
try:
    tables.append(folder, table([random.bytes(16).hex() for _ in range(5000)]), {{}})
except OSError:
    raise SystemExit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 7, f"the write was meant to fail with OSError: {done.stderr}"
    folder = str(tmp_path / "clips")
    assert len(tables.parts(folder)) == 1, "half a part is visible as a part"
    assert tables.read(folder).column("clip_id").to_pylist() == ["a"]
    assert pd.read_parquet(folder).clip_id.tolist() == ["a"], "what a failed write left behind breaks pandas"


def test_a_part_replaces_a_longer_one_completely(folder: str) -> None:
    path = stores.join(folder, "summary.json")
    stores.write_bytes(path, b"a long text")
    stores.write_bytes(path, b"short")
    assert stores.read_bytes(path) == b"short"
    assert stores.exists(path)
    assert not stores.exists(stores.join(folder, "other.json"))


# --- which row counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["error", "result"])
def test_a_result_counts_before_an_error_whichever_came_first(folder: str, first: str) -> None:
    failed, done = rows("a", "b", error="read: gone"), rows("a", "c", value=5)
    for part in (failed, done) if first == "error" else (done, failed):
        tables.append(folder, part, PRINT)
    assert contents(folder) == {"a": (5, None), "b": (0, "read: gone"), "c": (5, None)}


def test_an_error_on_the_very_same_ids_does_not_take_a_result_away(folder: str) -> None:
    tables.append(folder, rows("a", value=5), PRINT)
    tables.append(folder, rows("a", error="crashed: killed"), PRINT)
    assert contents(folder) == {"a": (5, None)}, "an error's part has overwritten the result of the same clips"


def test_an_error_that_stands_counts_before_one_that_is_tried_again(folder: str) -> None:
    for ids, error in ((("a", "b"), "read: gone"), (("a",), "decode: broken"), (("a", "c"), "crashed: x")):
        tables.append(folder, rows(*ids, error=error), PRINT)
    assert contents(folder)["a"] == (0, "decode: broken"), "a clip that cannot be decoded is tried again for ever"
    assert pending(rows("a", "b", "c"), folder).column("clip_id").to_pylist() == ["b", "c"]


def test_pending_are_the_rows_without_a_row(folder: str) -> None:
    candidates = rows("a", "b", "c")
    assert pending(candidates, folder).equals(candidates), "without a table everything is pending"
    tables.append(folder, rows("b"), PRINT)
    assert pending(candidates, folder).column("clip_id").to_pylist() == ["a", "c"]


def test_pending_are_clips_whose_video_changed(folder: str) -> None:
    tables.append(folder, rows("a", "b", version="v1"), PRINT)
    candidates = pa.concat_tables([rows("a", version="v1"), rows("b", version="v2")])
    assert pending(candidates, folder).column("clip_id").to_pylist() == ["b"]


@pytest.mark.parametrize("code", ["read", "crashed", "memory"])
def test_errors_that_may_pass_are_pending_again(folder: str, code: str) -> None:
    tables.append(folder, rows("a", error=f"{code}: once"), PRINT)
    assert pending(rows("a"), folder).num_rows == 1, f"{code} is not tried again"


@pytest.mark.parametrize("code", ["decode", "too_short", "no_motion", "not_finite", "timeout", "refused"])
def test_errors_of_the_clip_itself_stand(folder: str, code: str) -> None:
    tables.append(folder, rows("a", error=f"{code}: for good, read: not a code"), PRINT)
    assert pending(rows("a"), folder).num_rows == 0, f"{code} is computed again in every run"


def test_dropped_rows_are_gone_and_the_others_stay(folder: str) -> None:
    tables.append(folder, rows("a", "b", value=1), PRINT, settings=[1])
    tables.append(folder, rows("c", value=2), PRINT, settings=[1])
    tables.drop(folder, ["b", "c", "unknown"])
    assert contents(folder) == {"a": (1, None)}
    assert tables.metadata(folder) == {"fingerprint": PRINT, "settings": [1]}, "dropping rows loses the metadata"


def test_dropping_a_clip_does_not_bring_back_anothers_old_error(folder: str) -> None:
    """a failed together with b, then succeeded alone; b's rows go. Both parts then hold the id a alone."""
    tables.append(folder, rows("a", "b", error="read: gone"), PRINT)
    tables.append(folder, rows("a", value=5), PRINT)
    tables.drop(folder, ["b"])
    assert contents(folder) == {"a": (5, None)}, "dropping b has overwritten a's result with its old error"


def test_errors_are_counted_by_code() -> None:
    table = pa.concat_tables([rows("a", "b", error="read: x: y"), rows("c"), rows("d", error="decode: z")])
    assert tables.errors_by_code(table) == {"decode": 1, "read": 2}


# --- merging and replacing -------------------------------------------------------------------------------------------


def test_merging_loses_and_doubles_nothing(folder: str) -> None:
    for i in range(12):
        tables.append(folder, rows(f"{i:02d}", "shared", value=i), PRINT, settings=["s"])
    tables.append(folder, rows("03", error="read: gone"), PRINT, settings=["s"])
    before = contents(folder)
    merge(folder)
    assert len(tables.parts(folder)) == 1, "small parts are left after a merge"
    assert contents(folder) == before, "a merge has changed the rows"
    assert tables.metadata(folder) == {"fingerprint": PRINT, "settings": ["s"]}, "a merge loses the metadata"


def test_merging_leaves_large_parts_alone(folder: str) -> None:
    tables.append(folder, rows(*(f"large{i}" for i in range(10))), PRINT)
    (large,) = tables.parts(folder)
    for i in range(3):
        tables.append(folder, rows(f"{i}"), PRINT)
    merge(folder, rows=20)
    assert len(tables.parts(folder)) == 2
    assert large in tables.parts(folder)
    assert len(contents(folder)) == 13


def test_a_merge_into_ids_that_one_part_already_had_keeps_them(folder: str) -> None:
    tables.append(folder, rows("a", "b", value=1), PRINT)
    tables.append(folder, rows("a", error="read: gone"), PRINT)
    merge(folder)
    assert contents(folder) == {"a": (1, None), "b": (1, None)}, "the merge has deleted its own part"


@pytest.mark.parametrize("killed_after", range(5))
def test_a_merge_killed_at_any_deletion_loses_and_doubles_nothing(tmp_path: Path, killed_after: int) -> None:
    folder, copies = str(tmp_path / "clips"), tmp_path / "copies"
    for i in range(4):
        tables.append(folder, rows(f"{i}", value=i), PRINT)
    tables.append(folder, rows("0", "1", error="read: gone"), PRINT)
    before = contents(folder)
    shutil.copytree(folder, copies)
    merge(folder)
    for file in sorted(copies.iterdir())[killed_after:]:
        shutil.copy(file, folder)
    assert contents(folder) == before, "after a kill during a merge rows are lost or doubled"
    merge(folder)
    assert contents(folder) == before, "the merge after a killed merge loses or doubles rows"
    assert len(tables.parts(folder)) == 1


def test_evaluation_rows_are_not_doubled_by_a_killed_merge() -> None:
    folder = f"losesdeletes://{uuid.uuid4().hex}/evaluation"
    written = []
    for arm in ("base", "random"):
        for seed in (0, 1):
            row = {"arm": arm, "clip_id": "a", "uri": "u", "seed": seed, "metric": "m", "value": 1.0, "version": "v"}
            row |= {"content": "c"}
            written.append(row)
            tables.append(folder, pa.Table.from_pylist([row], schema=schemas.EVALUATION), PRINT)
    with pytest.raises(ConnectionError):
        merge(folder)
    assert len(tables.parts(folder)) == 5, "this test needs the merged part beside the four small ones"
    records = tables.read(folder).to_pylist()
    assert sorted(map(str, records)) == sorted(map(str, written)), "a killed merge counts an evaluation twice"
    assert tables.read(folder, ["value"]).num_rows == 4, "reading one column brings the doubled rows back"


def test_replace_is_never_empty_and_never_both(folder: str) -> None:
    tables.append(folder, rows("old", "older"), PRINT)
    tables.replace(folder, rows("new", value=1), PRINT, query_ids=["q"])
    assert contents(folder) == {"new": (1, None)}
    assert tables.metadata(folder)["query_ids"] == ["q"]
    tables.replace(folder, rows("newer"), PRINT, query_ids=[])
    assert list(contents(folder)) == ["newer"]


def test_a_killed_replace_shows_the_old_or_the_new_rows() -> None:
    """Tables that are replaced have no `error` column, so nothing would sort out old rows beside new ones."""
    folder = f"losesdeletes://{uuid.uuid4().hex}/influence"
    for generation in ("old", "new", "newer"):
        tables.replace(folder, pa.table({"clip_id": [generation]}), PRINT)
        assert tables.read(folder).column("clip_id").to_pylist() == [generation], "old and new rows are mixed"


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_the_same_fingerprint_passes(folder: str) -> None:
    tables.check(folder, PRINT)
    tables.append(folder, rows("a"), {"model.strides": (4, 8), **PRINT})
    tables.check(folder, {**PRINT, "model.strides": [4, 8]})


@pytest.mark.parametrize(
    ("stored", "asked", "field", "values"),
    [
        ({"motion.camera": "keep"}, {"motion.camera": "subtract"}, "motion.camera", ("'keep'", "'subtract'")),
        ({"seed": 0}, {}, "seed", ("0", "None")),
        ({}, {"seed": 3}, "seed", ("None", "3")),
    ],
)
def test_another_fingerprint_is_an_error_that_names_field_and_both_values(
    folder: str, stored: dict[str, Any], asked: dict[str, Any], field: str, values: tuple[str, str]
) -> None:
    tables.append(folder, rows("a"), PRINT | asked)
    tables.append(folder, rows("b"), PRINT | stored)
    with pytest.raises(FingerprintError) as caught:
        tables.check(folder, PRINT | asked)
    for part in (folder, f"{field}={values[0]}", f"{field}={values[1]}".replace(f"{field}=None", "None")):
        assert part in str(caught.value), f"the message lacks {part!r}: {caught.value}"


# --- formats ---------------------------------------------------------------------------------------------------------


def test_pandas_and_duckdb_read_a_table_without_ray(tmp_path: Path) -> None:
    folder = str(tmp_path / "features" / "clips")
    features = np.arange(12, dtype=np.float32).reshape(2, 6)
    schema = schemas.features_schema(2, 3)
    for i, name in enumerate("ab"):
        table = pa.table(
            [
                pa.array([name]),
                pa.array(["v"]),
                tables.vectors(features[i : i + 1]),
                tables.vectors(np.ones((1, 2), np.float32)),
                tables.vectors(np.ones((1, 2), np.float32)),
                pa.array([9], pa.int32()),
                pa.nulls(1, pa.string()),
            ],
            schema=schema,
        )
        tables.append(folder, table, PRINT)
    frame = pd.read_parquet(folder).sort_values("clip_id")
    assert np.array_equal(np.stack(frame.feature.tolist()), features), "pandas reads other features"
    fetched_rows = duckdb.sql(f"select clip_id, feature from '{folder}/part-*.parquet' order by clip_id").fetchall()
    assert [list(row[1]) for row in fetched_rows] == features.tolist(), "duckdb reads other features"
    raw = pq.read_metadata(tables.parts(folder)[0])
    assert b"fingerprint" in raw.metadata, "the part does not carry its fingerprint"
    assert "extension" not in str(pq.read_schema(tables.parts(folder)[0])), "a column needs Ray's types to be read"


@pytest.mark.parametrize(
    "schema",
    [
        schemas.CLIPS,
        schemas.QUERIES,
        schemas.motion_schema(schemas.QUERIES),
        schemas.features_schema(2, 8),
        schemas.influence_schema(3),
        schemas.NEIGHBORS,
        schemas.SELECTION,
        schemas.EVALUATION,
    ],
)
def test_no_schema_holds_anything_but_plain_types(schema: pa.Schema) -> None:
    for field in schema:
        assert not isinstance(field.type, pa.BaseExtensionType), f"{field.name} is of an extension type"
        assert not pa.types.is_dictionary(field.type), f"{field.name} is a dictionary"


def test_vectors_and_matrix_are_inverse_also_over_parts_and_slices(folder: str) -> None:
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    ids = [f"{i}" for i in range(7)]
    table = pa.table(
        [pa.array(ids), tables.vectors(values), pa.nulls(7, pa.string())],
        schema=pa.schema([("clip_id", pa.string()), ("x", pa.list_(pa.float32(), 5)), ("error", pa.string())]),
    )
    assert np.array_equal(tables.matrix(table, "x"), values)
    assert np.array_equal(tables.matrix(table.slice(2, 3), "x"), values[2:5]), "a slice reads rows outside of itself"
    tables.append(folder, table.slice(3), PRINT)
    tables.append(folder, table.slice(0, 3), PRINT)
    assert np.array_equal(tables.matrix(tables.read(folder), "x"), values), "rows of several parts are mixed up"


def test_rows_that_are_not_valid_are_null_and_the_others_keep_their_values(folder: str) -> None:
    values, valid = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([True, False, True])
    array = tables.vectors(values, valid)
    assert array.is_null().to_pylist() == [False, True, False]
    table = pa.table({"clip_id": ["a", "b", "c"], "x": array, "error": [None, "decode: x", None]})
    tables.append(folder, table, PRINT)
    stored_table = tables.read(folder)
    stored_table = stored_table.filter(stored_table.column("error").is_null())
    assert np.array_equal(tables.matrix(stored_table, "x"), values[valid]), "a null row has shifted the rows after it"


def test_columns_that_a_manifest_passes_through_may_differ_between_parts(folder: str) -> None:
    tables.append(folder, rows("a"), PRINT)
    tables.append(folder, rows("b").append_column("motion", pa.array(["spin"])), PRINT)
    assert tables.read(folder).column("motion").to_pylist() == [None, "spin"]
