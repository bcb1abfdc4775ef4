"""Whatever users write into captions, names and columns: what goes in comes out, once, from a listing and a stage."""

from __future__ import annotations

import csv
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from pipeline import models, tables
from pipeline.attribution.workers import AttributionWorker
from pipeline.config import Run
from pipeline.inputs.changes import Listing
from pipeline.inputs.manifests.columns import columns
from pipeline.inputs.video_set import VideoSet
from pipeline.inputs.videos import videos
from pipeline.ranking import selection
from pipeline.tables import schemas
from pipeline.video import indexing
from pipeline.video.frames import write_mp4

Rows = list[dict[str, Any]]

# Any text but NUL and halves of characters, with what quoting and splitting trip over drawn often.
QUOTES = ["", '"', '""', "a,b", "\n", "\r\n", "x\ny", "\\", '\\"', "'", "[1]", '["x"]', "\t", "\u2028", "\ufeff", "{}"]
LIKE_OTHERS = ["007", "1e5", "NA", "null", "true", "2024-01-01", "😀", "שלום", "é", "e\u0301", "a" * 9000]
ODD = st.sampled_from([*QUOTES, *LIKE_OTHERS])
TEXT = st.one_of(ODD, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\:\0"), min_size=1, max_size=20)
ODD_NAME = st.sampled_from(
    ["a[1]", "*", "a?b", "100%41", "#1", "a b", "a.b.c", "'", '"', "é", "e\u0301", "日本", "{x}", "~", "a+b"]
)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def file_names() -> st.SearchStrategy[str]:
    """Names of videos that a manifest can list: it trims blanks, and hidden files are not listed."""
    return (
        st.one_of(ODD_NAME, NAME)
        .map(lambda name: f"{name}.mp4")
        .filter(lambda name: name == name.strip() and not name.startswith((".", "~")) and len(name.encode()) < 200)
    )


def column_names() -> st.SearchStrategy[str]:
    read = {"caption", "captions", "source", "group", "id", "version", "size", "span", "start_frame"}
    reserved = st.sampled_from(sorted(schemas.RESERVED - read))
    return st.one_of(NAME, st.sampled_from(["a.b", "two\nlines", "Weight", "SCORE", "select", "x y"]), reserved)


@st.composite
def manifests(draw: st.DrawFn) -> Rows:
    """Rows of a manifest whose other columns are texts, so that every format holds them: `true` or `7` alone in a
    column of a CSV is none."""
    names = draw(st.lists(file_names(), min_size=1, max_size=4, unique=True))
    others = draw(st.lists(column_names(), max_size=3, unique_by=str.casefold))
    ids = draw(st.lists(TEXT.map(str.strip).filter(bool), min_size=len(names), max_size=len(names), unique=True))
    rows = [
        {
            "file_name": name,
            "caption": draw(TEXT),
            "id": one,
            "group": draw(TEXT),
            **{other: draw(st.none() | TEXT.map("x{}".format)) for other in others},
        }
        for name, one in zip(names, ids, strict=True)
    ]
    try:
        columns(list(rows[0]))  # names that cannot be together are refused: tests/inputs/test_manifests.py
    except ValueError:
        assume(False)
    return rows


def write(folder: Path, kind: str, rows: Rows) -> str:
    path = folder / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in rows[0]])), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def streamed(where: str) -> Rows:
    return [row for block in Listing(VideoSet(where)).videos for row in block.to_pylist()]


@pytest.fixture
def folder() -> Iterator[Callable[[], Path]]:
    """A new folder for each example."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp()))
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
@QUICK
@given(rows=manifests())
def test_what_a_manifest_says_comes_out_once(
    folder: Callable[[], Path], kind: str, versioned: bool, rows: Rows
) -> None:
    place = folder()
    for row in rows:
        (place / row["file_name"]).touch()
    where = write(place, kind, [{**row, "version": "v 1"} for row in rows] if versioned else rows)
    named = columns(list(rows[0]))
    for read in (lambda: videos(where, "data.videos").to_pylist(), lambda: streamed(where)):
        by_id = {row["id"]: row for row in read()}
        assert by_id.keys() == {row["id"] for row in rows}
        for row in rows:
            one = by_id[row["id"]]
            assert one["error"] is None, one
            assert one["uri"] == str(place / row["file_name"])
            assert one["caption"] == row["caption"].strip()
            group = row["group"].strip()
            assert one["group"] == (group if group not in ("", ".") else "all")
            for name, new in named.others.items():
                assert one.get(new) == row[name], (name, new)


@QUICK
@given(
    names=st.lists(file_names(), min_size=1, max_size=5, unique=True), captions=st.lists(TEXT, min_size=5, max_size=5)
)
def test_a_folder_with_captions_beside_its_videos(
    folder: Callable[[], Path], names: list[str], captions: list[str]
) -> None:
    assume(len({Path(name).stem for name in names}) == len(names))
    assume(not any(name.startswith("metadata.") for name in names))
    place = folder()
    caption_by_name = dict(zip(names, captions, strict=False))
    for name, caption in caption_by_name.items():
        (place / name).touch()
        (place / name).with_suffix(".txt").write_bytes(caption.encode())
    for video_rows in (videos(str(place), "data.videos").to_pylist(), streamed(str(place))):
        assert Counter(row["uri"] for row in video_rows) == Counter(str(place / name) for name in names)
        assert all(row["group"] == "all" and row["error"] is None for row in video_rows)
        assert {Path(row["uri"]).name: row["caption"] for row in video_rows} == {
            name: caption.removeprefix("\ufeff").strip() for name, caption in caption_by_name.items()
        }


# --- through the stages ----------------------------------------------------------------------------------------------


def values() -> st.SearchStrategy[Any]:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    return st.one_of(
        TEXT, st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), finite, st.lists(TEXT, max_size=3), st.none()
    )


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Videos of two segments in which a square moves, and one that is none."""
    place, frames = tmp_path_factory.mktemp("toys"), np.zeros((18, 32, 32, 3), np.uint8)
    for n in range(18):
        frames[n, 8:20, n : n + 12] = (250, 120, 30)
    paths = [place / "right.mp4", place / "left.mp4", place / "broken.mp4"]
    write_mp4(str(paths[0]), frames, 8)
    write_mp4(str(paths[1]), np.ascontiguousarray(frames[:, :, ::-1]), 8)
    paths[2].write_text("no video")
    return paths


@pytest.fixture(scope="module")
def worker(small_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> AttributionWorker:
    run = small_run(tmp_path_factory.mktemp("worker"))
    return AttributionWorker(run, models.grid(run), {})


# An example takes seconds, so that none is made smaller: the values are small as they are.
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_every_clip_leaves_every_stage_once(
    folder: Callable[[], Path], worker: AttributionWorker, toys: list[Path], data: st.DataObject
) -> None:
    rows = data.draw(
        st.lists(
            st.fixed_dictionaries({"id": TEXT.map(str.strip).filter(bool), "caption": TEXT, "group": TEXT}),
            min_size=3,
            max_size=3,
            unique_by=lambda row: row["id"],
        )
    )
    name, value = data.draw(column_names()), data.draw(values())
    rows = [{"file_name": str(toy), **row, name: value} for toy, row in zip(toys, rows, strict=True)]
    try:
        new = columns(list(rows[0])).others.get(name)
    except ValueError:
        assume(False)
    place = folder()
    where = write(toys[0].parent, "jsonl", rows)  # beside the videos, whose group is then that of the data root
    run = worker.motion.run.model_copy(update={"root": str(place)})
    listed = Listing(VideoSet(where))
    others = [field for field in listed.schema if field.name not in (*schemas.VIDEOS.names, *schemas.CLIPS.names)]
    clips = pa.schema([*schemas.QUERIES, *others])
    parts = [part["clips"] for block in listed.videos for part in indexing.IndexWorker(run, clips)(block)]
    indexed = pa.concat_tables(parts)
    expected = [f"{row['id']}{start}" for row in rows[:2] for start in ("", "-9")] + [rows[2]["id"]]
    assert sorted(indexed["clip_id"].to_pylist()) == sorted(expected)
    fine = indexed.filter(indexed["error"].is_null())
    (outputs,) = worker(fine)
    for table, folders in (
        (indexed, ["clips", "queries"]),
        *((outputs[n], [f"{n}/clips", f"{n}/queries"]) for n in outputs),
    ):
        kinds = {} if table is not outputs["features"] else {"settings": [s.record() for s in run.attribution.settings]}
        for one in folders:
            tables.append(str(place / one), table, {}, **kinds)
    _check_words(tables.read(str(place / "clips")), rows, new, name)
    _check_words(tables.read(str(place / "motion/clips")), rows, new, name)
    _check_selection(run, rows, sorted(expected))


def _check_words(table: pa.Table | None, rows: Rows, new: str | None, name: str) -> None:
    """Every clip has its video's caption, group and other column."""
    assert table is not None
    row_by_file = {row["file_name"]: row for row in rows}
    for clip in table.to_pylist():
        row = row_by_file[clip["uri"]]
        assert clip["caption"] == row["caption"].strip()
        assert clip["group"] == (row["group"].strip() if row["group"].strip() not in ("", ".") else "all")
        if new is not None and row[name] is not None:
            same = clip[new] == row[name] or (isinstance(row[name], float) and math.isclose(clip[new], row[name]))
            assert same, (new, clip[new], row[name])


def _check_selection(run: Run, rows: Rows, expected: list[str]) -> None:
    """Every clip once in influence/, and once in selection/ for each group."""
    ranked = selection.rank(run, run.ranking.mask, run.ranking.whiten)
    influence = pa.concat_tables(selection.influence_tables(ranked))
    assert sorted(influence["clip_id"].to_pylist()) == [one for one in expected if one != rows[2]["id"]]
    others = selection.unranked(run, ranked)
    marks = ranked.marks(run.ranking.vote_fraction, run.ranking.neighbors)
    chosen = pa.concat_tables(selection.selection_tables(ranked, run.ranking, marks, others))
    groups = {row["group"].strip() for row in rows[:2]} - {"", "."}
    counts = Counter(zip(chosen["clip_id"].to_pylist(), chosen["group"].to_pylist(), strict=True))
    assert counts == Counter((one, group) for one in expected for group in {"all", *groups})
