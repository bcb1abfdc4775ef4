"""Large inputs: rows in bounded windows, parts in time, tables read and subtracted part by part."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jobs.benchmarks import scale
from pipeline import models, tables
from pipeline.attribution.workers import AttributionWorker
from pipeline.cluster import streaming
from pipeline.config import Run
from pipeline.config.operations import Pool
from pipeline.errors import InputError
from pipeline.inputs import videos as manifest
from pipeline.inputs.changes import Listing
from pipeline.inputs.manifests import versioned
from pipeline.inputs.video_set import VideoSet
from pipeline.tables import IdSet, Outcomes, Scan, ShuffledRows, scanning, schemas
from pipeline.tables.ids import IdList, digests
from pipeline.tables.merging import merge
from pipeline.tables.retries import mark_second_failures
from pipeline.tables.scanning import lookup

SCHEMA = pa.schema([("clip_id", pa.string()), ("version", pa.string()), ("value", pa.int64()), ("error", pa.string())])


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    root = str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return f"{root}/features/clips"


def of_same_root(folder: str, name: str) -> str:
    """Another table below the root of features/clips."""
    return folder.replace("features/clips", name)


def rows(*ids: str, error: str | None = None, version: str | None = "v1", value: int = 0) -> pa.Table:
    return pa.Table.from_pylist(
        [{"clip_id": i, "version": version, "value": value, "error": error} for i in ids], schema=SCHEMA
    )


def everything(table: pa.Table) -> pa.Array:
    return pa.array([True] * len(table), pa.bool_())


def drawn(shuffled: ShuffledRows) -> list[str]:
    return [i for block in shuffled for i in block.column("clip_id").to_pylist()]


# --- parts in time ---------------------------------------------------------------------------------------------------


class Clock:
    """A clock that goes on by as much as each row takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def rows(self, *seconds: float) -> Iterator[int]:
        for i, second in enumerate(seconds):
            self.now += second
            yield i


def test_finished_rows_are_a_part_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = list(tables.in_parts(Clock(monkeypatch).rows(20, 20, 20, 20, 70, 1, 1)))
    assert groups == [[0, 1, 2], [3, 4], [5, 6]], "finished rows wait for more than 60 s"


def test_a_thousand_rows_are_a_part() -> None:
    assert [len(group) for group in tables.in_parts(range(2500))] == [1000, 1000, 500]
    assert list(tables.in_parts([])) == [], "a part without rows"


def test_a_part_waits_for_gradients_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three gradients that share one generation of the projection none is finished before the third."""
    clock, consumed_rows = Clock(monkeypatch), list[int]()

    def take() -> Iterator[int]:
        for row in clock.rows(50, 50, 50, 50, 50, 50, 50):
            consumed_rows.append(row)
            yield row

    groups = list(tables.in_parts(take(), lambda: len(consumed_rows) % 3 == 0))
    assert groups == [[0, 1, 2], [3, 4, 5], [6]]


def test_parts_in_time_change_no_bit_of_a_feature(
    small_run: Callable[..., Run], small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of two losses each, of which four share a generation of the projection: a part is due after every clip, and
    written after every second one."""
    run = small_run(tmp_path, attribution__hold=4)
    files = sorted((small_world / "clips").rglob("*.mp4"))[:5]
    whole = {"version": "v", "start_frame": 0, "num_frames": run.data.frames, "caption": "a ball", "fps": run.data.fps}
    videos = [{**whole, "clip_id": file.stem, "uri": str(file)} for file in files]
    table = pa.Table.from_pylist(videos, schema=schemas.CLIPS)
    worker = AttributionWorker(run, models.grid(run), {})
    monkeypatch.setattr("pipeline.tables.rows.PART_SECONDS", math.inf)  # a busy machine may take longer than a part
    (at_once,) = worker(table)
    monkeypatch.setattr("pipeline.tables.rows.PART_SECONDS", 0.0)
    in_time = list(worker(table))
    for name in ("motion", "features"):
        assert pa.concat_tables(part[name] for part in in_time).equals(at_once[name]), f"{name} depend on the parts"
    moving = at_once["motion"].column("error").is_null().to_pylist()
    assert all(moving), "this test needs clips of two losses each"
    assert [part["motion"].num_rows for part in in_time] == [2, 2, 1]


# --- windows ---------------------------------------------------------------------------------------------------------


def test_blocks_are_drawn_a_window_at_a_time() -> None:
    drawn = []

    def blocks() -> Iterator[pa.Table]:
        for i in range(7):
            drawn.append(i)
            yield pa.table({"clip_id": [f"{i}-{j}" for j in range(10)]})

    windows = streaming.windows(blocks(), 25)
    assert sum(block.num_rows for block in next(windows)) == 30
    assert drawn == [0, 1, 2], "blocks of a later window are in memory already"
    assert [sum(b.num_rows for b in window) for window in windows] == [30, 10], "rows are lost between windows"


def test_windows_of_long_rows_are_bounded_by_their_bytes() -> None:
    blocks = [pa.table({"clip_id": [f"{i}"], "caption": ["a ball " * 1000]}) for i in range(7)]
    assert [len(window) for window in streaming.windows(blocks, 100, 20_000)] == [3, 3, 1]


def test_a_window_is_handed_over_in_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.ray.data, "from_blocks", list)
    window = [pa.table({"clip_id": [f"{i}-{j}" for j in range(5)]}) for i in range(3)]
    ids = [i for block in window for i in block.column("clip_id").to_pylist()]
    batches = streaming._stored(window, 4)
    assert [batch.num_rows for batch in batches] == [4, 4, 4, 3]
    assert [i for batch in batches for i in batch.column("clip_id").to_pylist()] == ids
    assert window == [], "the driver holds what the object store has"


@pytest.mark.parametrize(
    ("rows", "actors", "size"), [(50, 2, 13), (30, 2, 8), (200, 2, 25), (4, 1, 4), (1, 1, 1), (1000, 3, 25)]
)
def test_every_actor_of_a_short_stage_gets_as_many_batches_as_ray_gives_at_once(
    rows: int, actors: int, size: int
) -> None:
    assert streaming._batch(Pool(actors=actors, batch=25), rows, actors) == size
    assert actors == 1 or math.ceil(rows / size) >= streaming.AT_ONCE * actors


# --- the shuffled order ----------------------------------------------------------------------------------------------


def shuffled(*blocks: pa.Table) -> ShuffledRows:
    return tables.shuffled(SCHEMA, ((block, block.column("clip_id")) for block in blocks))


def test_the_order_belongs_to_the_ids_alone() -> None:
    ids = [f"clip-{i}" for i in range(3000)]
    order = drawn(shuffled(rows(*ids)))
    assert sorted(order) == sorted(ids), "rows are lost or doubled"
    blocks = [rows(*ids[i : i + 7]) for i in range(0, 3000, 7)]
    assert drawn(shuffled(*reversed(blocks))) == order, "the order depends on how the rows came in"
    half = set(ids[::2])
    assert drawn(shuffled(rows(*ids[::2]))) == [i for i in order if i in half], "other clips change who comes first"


def test_a_stopped_run_is_a_uniform_sample() -> None:
    """Of 20,000 numbered clips the first 2,000 drawn have their mean number within four standard errors."""
    order = drawn(shuffled(rows(*(f"{i:05d}" for i in range(20_000)))))
    numbers = np.array([int(i) for i in order[:2000]])
    assert abs(numbers.mean() - 9999.5) < 4 * 20_000 / np.sqrt(12 * 2000)
    assert abs((numbers < 5000).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_a_clip_is_drawn_once_and_its_result_before_its_error() -> None:
    shuffled_rows = shuffled(rows("a", "b", error="no_motion: still"), rows("a", "c", value=5), rows("c", "c", value=6))
    assert shuffled_rows.num_rows == 3
    by_id = {row["clip_id"]: (row["value"], row["error"]) for block in shuffled_rows for row in block.to_pylist()}
    assert by_id == {"a": (5, None), "b": (0, "no_motion: still"), "c": (5, None)}


def test_what_was_dropped_stays_so() -> None:
    shuffled_rows = shuffled(rows("a", "b", "c"), rows("a"))
    for name in ("b", "a"):
        shuffled_rows.drop(IdSet.of([pa.array([name])]))
    assert (shuffled_rows.num_rows, drawn(shuffled_rows)) == (1, ["c"])


def test_nothing_to_draw_is_no_block() -> None:
    shuffled_rows = shuffled(rows("a"))
    shuffled_rows.drop(IdSet.of([pa.array(["a", "b"])]))
    assert (shuffled_rows.num_rows, drawn(shuffled_rows), drawn(shuffled())) == (0, [], [])


# --- ids in memory ---------------------------------------------------------------------------------------------------


def test_ids_are_found_whatever_the_order_in_which_they_came() -> None:
    ids = pa.array([f"clip-{i}" for i in range(5000)])
    known = IdSet.of(ids[i : i + 700] for i in range(0, 5000, 700))
    at = known.find(ids)
    assert sorted(at.tolist()) == list(range(5000)), "an id is lost or found twice"
    assert (known.digests[at] == digests(ids)).all(), "the halves of a digest were parted"
    assert not known.has(pa.array(["clip-5000", ""])).any()
    assert not IdSet.of([]).has(ids).any()
    some = known.subset(at % 2 == 0)
    assert (some.has_set(known) == (at % 2 == 0)).all(), "a subset has other ids"


def test_ids_are_listed_and_sorted_in_twice_their_room() -> None:
    count = 1 << 20
    random = np.random.default_rng(0)
    gathered = IdList()
    tracemalloc.start()
    try:
        for _ in range(16):
            gathered.add_digests(random.integers(0, 1 << 63, (count // 16, 2), np.uint64))
        known = gathered.to_set()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(known) == count
    assert peak < 2.25 * 16 * count, f"{peak / count:.0f} bytes an id"


# --- what a table holds and lacks ------------------------------------------------------------------------------------


def test_what_is_held_is_counted_as_it_is_read(folder: str) -> None:
    tables.append(folder, rows("a", "b", error="read: gone"), {})
    tables.append(folder, rows("a", "c"), {})
    tables.append(folder, rows("b", "d", error="decode: broken"), {})
    outcomes, table = Outcomes(folder), tables.read(folder)
    assert len(outcomes) == table.num_rows == 4
    assert outcomes.errors == tables.errors_by_code(table) == {"decode": 2}, "b stands as decode, not as read"
    assert len(Outcomes(of_same_root(folder, "motion/clips"))) == 0


def test_only_a_table_with_one_row_a_clip_has_outcomes(tmp_path: Path) -> None:
    """Of a table without errors every row would count as a result."""
    folder = str(tmp_path / "selection")
    tables.append(folder, pa.Table.from_pylist([{"clip_id": "a", "group": "all"}], schema=schemas.SELECTION), {})
    with pytest.raises(ValueError, match="selection: its rows are no results or errors of one clip each"):
        Outcomes(folder)


def test_pending_rows_come_and_rows_that_give_way_go(folder: str) -> None:
    source = of_same_root(folder, "clips")
    tables.append(source, rows("new", "done", "failed", "again", "broken"), {})
    tables.append(source, rows("changed", version="v2"), {})
    tables.append(folder, rows("done", "changed", "other"), {})
    tables.append(folder, rows("failed", error="decode: broken"), {})
    tables.append(folder, rows("again", error="read: killed"), {})
    tables.append(folder, rows("broken", error="no_motion: still"), {})
    pending_rows = tables.pending_rows(Scan(source, everything), [folder]).rows
    assert sorted(drawn(pending_rows)) == ["again", "changed", "new"]
    left = tables.read(folder).column("clip_id").to_pylist()
    assert left == ["broken", "done", "failed", "other"], "old rows are still there, or others have gone with them"


def test_a_clip_that_crashes_every_time_is_tried_twice_in_all(folder: str) -> None:
    """A run that is killed before it comes to the clip forgets nothing; one whose try ends so again gives it up."""
    source = of_same_root(folder, "clips")
    tables.append(source, rows("a", "b", "c", "d"), {})
    tables.append(folder, rows("a", "b", error="crashed: killed"), {})
    tables.append(folder, rows("c", error="memory: too large"), {})
    tables.append(folder, rows("d", error="read: gone"), {})
    for _ in range(2):
        pending = tables.pending_rows(Scan(source, everything), [folder])
        assert (sorted(drawn(pending.rows)), sorted(pending.last_tries)) == (["a", "b", "c", "d"], ["a", "b", "c"])
    for made in (rows("a", error="crashed: killed"), rows("b"), rows("c", error="crashed: killed"), rows("d")):
        tables.append(folder, mark_second_failures(made, "error", pending.last_tries), {})
    tables.drop_superseded_errors(folder, pending.last_tries)
    files = [row for block in scanning.blocks(folder, ["clip_id", "error"]) for row in block.to_pylist()]
    assert sorted((row["clip_id"], row["error"]) for row in files if row["error"]) == [
        ("a", "crashed again: killed"),
        ("c", "crashed again: killed"),
    ]
    assert sorted(row["clip_id"] for row in files) == ["a", "b", "c", "d"], "an error stays beside what came of it"
    assert drawn(tables.pending_rows(Scan(source, everything), [folder]).rows) == [], (
        "a clip that is given up is tried again"
    )


def test_a_changed_video_that_crashed_is_a_new_one(folder: str) -> None:
    source = of_same_root(folder, "clips")
    tables.append(source, rows("a", version="v2"), {})
    tables.append(folder, rows("a", error="crashed again: killed"), {})
    pending = tables.pending_rows(Scan(source, everything), [folder])
    assert (drawn(pending.rows), pending.last_tries, tables.read(folder)) == (["a"], set(), None)


def test_a_pass_for_two_tables_takes_only_what_both_lack(folder: str) -> None:
    source, other = of_same_root(folder, "clips"), of_same_root(folder, "motion/clips")
    tables.append(source, rows("a", "b", "c", "d"), {})
    tables.append(folder, rows("a", "b"), {})
    tables.append(other, rows("a", "c"), {})
    assert drawn(tables.pending_rows(Scan(source, everything), [folder, other]).rows) == ["d"]


def test_rows_without_a_version_are_not_changed_ones(folder: str) -> None:
    tables.append(folder, rows("a", version=None), {})
    table = rows("a", "b", version=None)
    assert Outcomes(folder).standing(table).is_pending.tolist() == [False, True]


def test_columns_left_out_are_looked_up_by_id(folder: str) -> None:
    schema = pa.schema(
        [("clip_id", pa.string()), ("version", pa.string()), ("mask", pa.binary()), ("error", pa.string())]
    )
    for part in ("xyz", "abc"):
        table = [
            {"clip_id": f"{part}{i:04d}", "version": "v", "mask": f"{part}{i}".encode() * 5000} for i in range(500)
        ]
        tables.append(folder, pa.Table.from_pylist(table, schema=schema), {})
    assert pq.ParquetFile(tables.parts(folder)[0]).num_row_groups > 1 if "://" not in folder else True
    narrow = Scan(folder, everything, without=["mask"])
    blocks = list(narrow)
    assert (
        [block.schema.names for block in blocks]
        == [["clip_id", "version", "error", "part"]] * 2
        == [narrow.schema.names] * 2
    )
    some = pa.concat_tables([blocks[0].slice(490), blocks[1].slice(3, 2)]).take([11, 3, 0, 10])
    mask_rows = lookup(some, ["mask"]).to_pylist()
    assert [row["clip_id"] for row in mask_rows] == some.column("clip_id").to_pylist()
    assert all(row["mask"] == f"{row['clip_id'][:3]}{int(row['clip_id'][3:])}".encode() * 5000 for row in mask_rows)
    with pytest.raises(RuntimeError, match="gone-with-it"):
        lookup(some.set_column(0, "clip_id", pa.array(["gone-with-it"] * 4)), ["mask"])


def test_dropping_rewrites_only_the_parts_that_hold_the_rows(tmp_path: Path) -> None:
    folder = str(tmp_path / "clips")
    for name in "abc":
        tables.append(folder, rows(f"{name}1", f"{name}2"), {})
    before = {path: Path(path).stat().st_mtime_ns for path in tables.parts(folder)}
    tables.drop(folder, ["b1", "none"])
    after = {path: Path(path).stat().st_mtime_ns for path in tables.parts(folder)}
    assert len(before.items() & after.items()) == 2


# --- merging ---------------------------------------------------------------------------------------------------------


def test_merged_parts_are_of_bounded_size_and_not_read_again(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(60):
        tables.append(folder, rows(*(f"{i:02d}-{j}" for j in range(7))), {"numerics": 1}, settings=["s"])
    merge(folder, rows=100)
    sizes = sorted(part.rows for part in scanning.footers(folder))
    assert sum(sizes) == 420
    assert sizes[1:] == [98] * 4, "parts are not of about the size asked for"
    assert tables.metadata(folder) == {"fingerprint": {"numerics": 1}, "settings": ["s"]}
    left = tables.parts(folder)
    merge(folder, rows=100)
    assert tables.parts(folder) == left, "what is large is merged again"


def test_parts_are_merged_by_their_bytes_too(folder: str) -> None:
    schema = pa.schema([("clip_id", pa.string()), ("mask", pa.binary()), ("error", pa.string())])
    random = np.random.default_rng(0)
    for i in range(20):
        row = {"clip_id": f"{i}", "mask": random.bytes(10_000), "error": None}
        tables.append(folder, pa.Table.from_pylist([row], schema=schema), {})
    merge(folder, size=50_000)
    assert sorted(part.rows for part in scanning.footers(folder)) == [4] * 5
    assert all(part.size <= 50_000 for part in scanning.footers(folder))


# --- long manifests --------------------------------------------------------------------------------------------------


def manifest_file(tmp_path: Path, kind: str, columns: dict[str, list[Any]]) -> str:
    path, table = tmp_path / f"list.{kind}", pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=3)
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return str(path)


PATHS = [
    "a/1.mp4",
    "2.mp4",
    " b/../3.mp4 ",
    "/elsewhere/4.mp4",
    "",
    "concat:a|b",
    "http://host/5.mp4",
    "x.m3u8",
    "a//6.mp4",
]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_manifest_that_tells_versions_says_what_one_that_does_not_says(tmp_path: Path, kind: str) -> None:
    count = len(PATHS)
    columns: dict[str, list[Any]] = {
        "path": PATHS,
        "caption": [f" a ball {i}" for i in range(count)],
        "group": ["g", ""] + ["h"] * (count - 2),
        "width": list(range(count)),
        "speaker": [f"s{i}" for i in range(count)],
        "id": [f"id{i}" for i in range(count)],
    }
    short = manifest.videos(manifest_file(tmp_path, kind, columns))
    where = manifest_file(tmp_path, kind, {**columns, "version": [f"v{i}" for i in range(count)], "size": [7] * count})
    schema_and_blocks = versioned.read(VideoSet(where))
    assert schema_and_blocks is not None
    schema, blocks = schema_and_blocks
    table = pa.concat_tables(blocks)
    assert table.schema.equals(schema)
    assert schema.names == short.schema.names
    same = [name for name in schema.names if name not in ("version", "size", "error")]
    assert table.select(same).to_pylist() == short.select(same).to_pylist()
    refused = [(e or "").startswith("refused") for e in short.column("error").to_pylist()]
    assert [(e or "").startswith("refused") for e in table.column("error").to_pylist()] == refused
    assert any(refused)
    assert set(table.column("size").to_pylist()) == {7}
    assert table.column("version").to_pylist()[:2] == ["v0", "v1"]


def test_manifests_that_tell_less_are_read_as_before(tmp_path: Path) -> None:
    videos = {"path": ["1.mp4"], "caption": ["c"]}
    for columns in (videos, {**videos, "version": ["v"]}, {**videos, "id": ["i"]}):
        assert versioned.read(VideoSet(manifest_file(tmp_path, "parquet", columns))) is None
    assert versioned.read(VideoSet(str(tmp_path))) is None


def test_paths_of_a_long_manifest_stay_inside_the_base(tmp_path: Path) -> None:
    columns = {"path": ["in/1.mp4", "../2.mp4"], "caption": ["", ""], "version": ["v", "v"], "id": ["1", "2"]}
    schema_and_blocks = versioned.read(VideoSet(manifest_file(tmp_path, "parquet", columns), base=str(tmp_path)))
    assert schema_and_blocks is not None
    errors = pa.concat_tables(schema_and_blocks[1]).column("error").to_pylist()
    assert errors[0] is None
    assert errors[1].startswith("refused: it lies outside data.base")


@pytest.mark.parametrize("own", [True, False])
def test_a_video_listed_twice_is_an_error_that_names_it(tmp_path: Path, own: bool) -> None:
    columns: dict[str, list[Any]] = {"path": ["1.mp4", "2.mp4", "1.mp4"], "caption": [""] * 3, "version": ["v"] * 3}
    columns |= {"id": ["x", "y", "x"]} if own else {"size": [1, 2, 1]}
    with pytest.raises(InputError, match="x" if own else "1.mp4"):
        Listing(VideoSet(manifest_file(tmp_path, "parquet", columns)))


def clips(*clip_rows: tuple[str, str, str, str | None], start_frame: int = 0) -> pa.Table:
    names = ("clip_id", "uri", "version", "error")
    rows = [{**dict(zip(names, row, strict=True)), "start_frame": start_frame} for row in clip_rows]
    return pa.Table.from_pylist(rows, schema=schemas.CLIPS)


def test_new_videos_are_those_without_rows_of_their_version(tmp_path: Path) -> None:
    """Without ids: known by their uri, however many clips a video has."""
    columns = {"path": [f"{i}.mp4" for i in range(5)], "caption": [""] * 5, "version": ["v"] * 5, "size": [1] * 5}
    listed = Listing(VideoSet(manifest_file(tmp_path, "parquet", columns)))
    table, at = str(tmp_path / "clips"), [f"{tmp_path}/{i}.mp4" for i in range(6)]
    tables.append(table, clips(("a", at[0], "v", None), ("b", at[0], "v", None), ("c", at[1], "old", None)), {})
    tables.append(
        table, clips(("d", at[2], "v", "read: gone"), ("e", at[3], "v", "decode: x"), ("f", at[5], "v", None)), {}
    )
    tables.append(table, clips(("g", at[4], "v", "crashed: x"), ("h", at[5], "v", "crashed: x")), {})
    assert listed.subtract(table) == {"g"}
    assert sorted(r["relative"] for block in listed.videos for r in block.to_pylist()) == ["1.mp4", "2.mp4", "4.mp4"]
    assert tables.read(table, ["clip_id"]).column("clip_id").to_pylist() == ["a", "b", "e", "g"]


def test_videos_with_ids_of_their_own_are_known_by_them(tmp_path: Path) -> None:
    columns = {"path": ["1.mp4"] * 3, "id": ["x", "y", "z"], "caption": [""] * 3, "version": ["v"] * 3}
    listed = Listing(VideoSet(manifest_file(tmp_path, "parquet", columns)))
    table, uri = str(tmp_path / "clips"), f"{tmp_path}/1.mp4"
    tables.append(table, clips(("x", uri, "v", None), ("y", uri, "old", None)), {})
    tables.append(table, clips(("x-16", uri, "v", None), start_frame=16), {})
    listed.subtract(table)
    assert sorted(i for block in listed.videos for i in block.column("id").to_pylist()) == ["y", "z"]
    assert tables.read(table, ["clip_id"]).column("clip_id").to_pylist() == ["x", "x-16"]


def test_clips_give_way_where_their_videos_get_other_ids(tmp_path: Path) -> None:
    """Else each video would have its clips twice, under both ids."""
    table, uris = str(tmp_path / "clips"), [f"{tmp_path}/{i}.mp4" for i in range(2)]

    def listed(ids: list[str] | None) -> list[str | None]:
        names = {"size": [1, 1]} if ids is None else {"id": ids}
        columns = {"path": ["0.mp4", "1.mp4"], "caption": ["", ""], "version": ["v", "v"], **names}
        videos = Listing(VideoSet(manifest_file(tmp_path, "parquet", columns)))
        videos.subtract(table)
        return [row["id"] for block in videos.videos for row in block.to_pylist()]

    def clip_ids() -> list[str]:
        rows = tables.read(table, ["clip_id"])
        return [] if rows is None else rows.column("clip_id").to_pylist()

    tables.append(table, clips(("hash", uris[0], "v", None), ("x-3", uris[1], "v", None)), {})
    tables.append(table, clips(("x-3-9", uris[1], "v", None), start_frame=9), {})
    assert listed(["w", "x-3"]) == ["w"]
    assert clip_ids() == ["x-3", "x-3-9"]
    assert sorted(str(name) for name in listed(["w", "y"])) == ["w", "y"]
    assert clip_ids() == []
    tables.append(table, clips(("w", uris[0], "v", None), ("y", uris[1], "v", None)), {})
    assert listed(None) == [], "videos that have no id now keep the one they had"
    assert clip_ids() == ["w", "y"]


# --- the benchmark ---------------------------------------------------------------------------------------------------


def test_the_benchmark_schedules_the_half_that_is_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but Ray; the benchmark itself sees that it is the odd half, each once, in the order of its hash."""
    monkeypatch.setattr(streaming, "connect", lambda: None)
    monkeypatch.setattr(streaming, "stream", lambda stage, blocks, *_: [None for _ in blocks])
    monkeypatch.setattr(scale, "PART", 300)
    scale.make(tmp_path, 1000)
    for case in (scale.index, scale.attribute):
        assert case(tmp_path, 1000)["whole"] > 0
