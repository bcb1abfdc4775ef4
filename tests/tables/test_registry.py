"""The registry of tables: what is written is in it, its words fit its columns, and docs/tables.md is what it says."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.tables import documentation, registry, schemas
from pipeline.tables.registry import TABLES, Table, table_of
from tests.support.registered import unregistered

ROOT = Path(__file__).parents[2]
NAMES = [table.folders[0] for table in TABLES]


def clips(*ids: str) -> pa.Table:
    return pa.Table.from_pylist([{"clip_id": i} for i in ids], schema=schemas.CLIPS)


@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_words_and_columns_fit(table: Table) -> None:
    assert list(table.columns) == [n for n in table.columns if n in table.schema.names], "a column that is not there"
    assert set(table.schema.names) == set(table.columns), "a column without a meaning"
    assert set(table.needed) | set(table.ids) | set(table.sizes) <= set(table.schema.names)
    sized = {f.name for f in table.schema if pa.types.is_fixed_size_list(f.type)}
    assert sized == set(table.sizes), "a list whose length nothing explains"
    named = {name for name in table.schema.names if name.endswith("_id")}
    assert named == set(table.ids), "a purge would leave rows that name a clip"


def test_the_documentation_is_what_the_registry_says() -> None:
    said = (ROOT / "docs" / "tables.md").read_text()
    assert said == documentation.markdown(), "run python -m pipeline.tables.documentation > docs/tables.md"


@pytest.mark.parametrize("root", ["/runs/demo", "s3://bucket/a run", "memory://x", "relative"])
@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_a_table_is_known_by_its_folder_wherever_the_root_lies(table: Table, root: str) -> None:
    for folder in table.folders:
        path = f"{root}/{folder.replace('*', '2026-01-02')}"
        assert table_of(path, table.schema.names) is table
        assert registry.content(folder.replace("*", "2026-01-02")) is table


def test_a_root_that_is_called_like_a_page_has_its_own_tables() -> None:
    """ROOT/queries and ROOT/explain/CLIP/queries differ in their keys."""
    assert table_of("/explain/demo/queries", schemas.QUERIES.names) is registry.QUERIES
    assert table_of("/explain/demo/queries", schemas.EXPLAINED_QUERIES.names) is registry.EXPLAINED_QUERIES


@pytest.mark.parametrize("name", ["snippets", "featuers/clips2", "motion"])
def test_a_folder_of_no_table_is_not_written_to(tmp_path: Path, name: str) -> None:
    folder = str(tmp_path / name)
    for write in (tables.append, tables.replace):
        with pytest.raises(ValueError, match=rf"{folder}: no table.*registry\.py"):
            write(folder, clips("a"), {})
    assert not Path(folder).exists()


def test_rows_without_what_tells_them_apart_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clips: its rows lack the column error"):
        tables.append(str(tmp_path / "clips"), pa.table({"clip_id": ["a"]}), {})
    with pytest.raises(ValueError, match="evaluation: its rows lack the column arm, seed"):
        tables.append(str(tmp_path / "evaluation"), clips("a"), {})


def test_a_part_of_no_table_is_not_read_as_one(tmp_path: Path) -> None:
    tables.append(str(tmp_path / "clips"), clips("a"), {})
    (tmp_path / "clips").rename(tmp_path / "snippets")
    with pytest.raises(ValueError, match=r"snippets: no table.*registry\.py"):
        tables.read(str(tmp_path / "snippets"))


def test_folders_of_no_table_and_no_files_are_found(tmp_path: Path) -> None:
    tables.append(str(tmp_path / "nights" / "2026-01-02" / "drift" / "motion" / "clips"), clips("a"), {})
    tables.append(str(tmp_path / "previews" / "clips"), clips("a"), {})
    for file in ("finetuned/all/curated/segments.jsonl", "stats/a.json", "cache/a.bin", "generated/all/a.mp4"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(b"")
    assert unregistered(tmp_path) == ["cache", "previews/clips (a table)"]


# --- which rows count ------------------------------------------------------------------------------------------------


def described(arm: str, numbers: list[float] | None, problem: str | None) -> pa.Table:
    row = {"kind": "video", "arm": arm, "clip_id": "q", "seed": 0, "version": "v", "description": numbers}
    return pa.Table.from_pylist([{**row, "problem": problem}], schema=schemas.descriptions_schema(2))


def test_of_two_rows_of_one_key_the_result_counts(tmp_path: Path) -> None:
    """A clip has a row for each arm: the error column is `problem`, and the key more than the clip."""
    folder = tmp_path / "comparison" / "motion"
    for part, arm, numbers, problem in (
        ("a", "all", None, "read: gone"),
        ("b", "all", [1.0, 2.0], None),
        ("c", "random", [3.0, 4.0], None),
        ("d", "random", None, "read: gone"),
        ("e", "base", None, "decode: broken"),
    ):
        rows = described(arm, numbers, problem)
        tables.append(str(folder), rows, {})
        Path(tables.part(str(folder), rows)).rename(folder / f"part-{part}.parquet")
    stored_table = tables.read(str(folder), ["arm", "description"])
    assert stored_table is not None
    assert stored_table.to_pylist() == [
        {"arm": "all", "description": [1.0, 2.0]},
        {"arm": "random", "description": [3.0, 4.0]},
        {"arm": "base", "description": None},
    ]


def test_rows_without_a_key_are_all_kept(tmp_path: Path) -> None:
    """Steps of fine-tuning are timed several times each."""
    row = {"clip_id": "a", "variant": "as it stands", "metric": "step", "seconds": 1.0}
    folder = str(tmp_path / "plan" / "pilot")
    tables.append(folder, pa.Table.from_pylist([row, row, row], schema=schemas.PILOT), {})
    rows = tables.read(folder)
    assert rows is not None
    assert rows.num_rows == 3


@pytest.mark.parametrize(
    ("folder", "schema", "name"),
    [
        ("clips", schemas.CLIPS, "part-1cba7393daa6010302f4b555.parquet"),
        ("evaluation", schemas.EVALUATION, "part-8feecdfe654cddb5da1ef62e.parquet"),
        ("plan/pilot", schemas.PILOT, "part-f9150f72e861d4341b4ce74e.parquet"),
        ("comparison/motion", schemas.descriptions_schema(3), "part-53d8a01c7ddf08cc1e5ab36f.parquet"),
        ("selection", schemas.SELECTION, "part-88d128b1bcff9f607951b63b.parquet"),
    ],
    ids=["clips", "evaluation", "pilot", "descriptions", "selection"],
)
def test_the_names_of_parts_stay(folder: str, schema: pa.Schema, name: str) -> None:
    """A job of a later version that goes on after a kill writes the same batch to the same file."""

    def value(kind: pa.DataType, row: int) -> str | int | None:
        return f"a{row}" if kind == pa.string() else row if pa.types.is_integer(kind) else None

    rows = [{field.name: value(field.type, row) for field in schema} for row in range(3)]
    assert tables.part(f"root/{folder}", pa.Table.from_pylist(rows, schema=schema)) == f"root/{folder}/{name}"
