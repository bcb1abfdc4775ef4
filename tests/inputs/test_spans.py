"""Rows that are about a stretch of a video: segments lie inside it, ids hold it, and what is no span is an error."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import tables
from pipeline.config import Data
from pipeline.errors import InputError
from pipeline.inputs import spans
from pipeline.inputs.changes import Listing
from pipeline.inputs.spans import SpanError
from pipeline.inputs.video_set import VideoSet
from pipeline.inputs.videos import videos
from pipeline.tables.schemas import CLIPS
from pipeline.video import frames as video
from pipeline.video import segments
from pipeline.video.decoder import Decoder
from pipeline.video.indexing import clip_id, index
from tests.support import numbered

RATE, COUNT = 20, 100  # frames a second, frames: five seconds


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("films") / "v.mp4"
    numbered.write(path, "libx264", range(COUNT), rate=RATE, keys=12, b_frames=2)
    return path


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as child:
        yield child


def _manifest(folder: Path, film: Path, rows: list[dict[str, Any]], end: str = ".jsonl") -> str:
    path = folder / f"list{end}"
    rows = [{"video": str(film), "caption": "c", **row} for row in rows]
    if end == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif end == ".csv":
        header = list(rows[0])
        lines = [",".join(header)]
        for row in rows:
            lines.append(",".join('"{}"'.format(str(row[name]).replace('"', '""')) for name in header))
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _indexed(where: str, decoder: Decoder, frames: int = 5, fps: float = 10.0) -> list[dict[str, Any]]:
    data = Data(videos=where, frames=frames, fps=fps, height=32, width=64)
    listed = [row for block in Listing(VideoSet(where)).videos for row in block.to_pylist()]
    return sorted((row for one in listed for row in index(one, data, decoder)), key=lambda row: row["start_frame"])


# --- what columns say ------------------------------------------------------------------------------------------------

SECONDS: list[dict[str, Any]] = [
    {"start": 1.0, "end": 2.2},
    {"start_time": "0:00:01.000", "end_time": "0:00:02.200"},
    {"span_start": "00:01", "span_end": "2.2"},
    {"timestamp": ["0:00:01.000", "0:00:02.200"]},
    {"timestamp": [1, 2.2]},
    {"duration_span": [1.0, 2.2]},
    {"from_timestamp": 1.0, "to_timestamp": 2.2},
    {"start_ms": 1000, "end_ms": 2200},
    {"start": 1.0, "duration": 1.2},
    {"startTime": "1.0", "endTime": "2.2s"},
    {"start_frame": 20, "num_frames": 24},
    {"start_frame": 20, "num_frames": 12, "fps": 10.0},
    {"start_frame": 20, "end_frame": 44},
    {"span": "1s-2.2s"},
]


@pytest.mark.parametrize("row", SECONDS, ids=lambda row: "-".join(row))
@pytest.mark.parametrize("end", [".jsonl", ".csv"])
def test_segments_lie_inside_the_span(
    tmp_path: Path, film: Path, decoder: Decoder, row: dict[str, Any], end: str
) -> None:
    rows = _indexed(_manifest(tmp_path, film, [row], end), decoder)
    assert [r["error"] for r in rows] == [None, None], "a span of 1.2 s holds two segments of 5 frames at 10 a second"
    assert [r["start_frame"] for r in rows] == [20, 30]
    for r in rows:
        shown = numbered.numbers(decoder.frames(r["uri"], r["start_frame"], 5, 10.0, 32, 64))
        assert shown == list(range(r["start_frame"], r["start_frame"] + 10, 2))
        assert min(shown) >= 20
        assert max(shown) < 44


@pytest.mark.parametrize("end", [".jsonl", ".csv", ".parquet"])
def test_every_span_of_a_video_is_a_row(tmp_path: Path, film: Path, decoder: Decoder, end: str) -> None:
    """Panda-70M: one row a video, its lists as Python text in CSV."""
    spans_of = [["0:00:00.000", "0:00:01.000"], ["0:00:02.500", "0:00:03.500"]]
    row: dict[str, Any] = {
        "timestamp": spans_of,
        "caption": ["first", "it's the second"],
        "matching_score": [0.5, 0.25],
    }
    if end == ".csv":
        row = {name: str(value) for name, value in row.items()}
    rows = _indexed(_manifest(tmp_path, film, [row], end), decoder)
    shown = [(r["start_frame"], r["caption"], r["span"]) for r in rows]
    assert shown == [
        (0, "first", "0s-1s"),
        (10, "first", "0s-1s"),
        (50, "it's the second", "2.5s-3.5s"),
        (60, "it's the second", "2.5s-3.5s"),
    ]
    assert [r["matching_score"] for r in rows] == [0.5, 0.5, 0.25, 0.25]
    assert len({r["clip_id"] for r in rows}) == 4


def test_a_scene_cut_that_a_table_rounds_to_milliseconds_is_where_the_span_begins(
    tmp_path: Path, decoder: Decoder
) -> None:
    path = numbered.write(tmp_path / "v.mp4", "libx264", range(60), rate=30)
    for frame in range(1, 40, 7):
        row = {"start": round(frame / 30, 3), "end": round((frame + 10) / 30, 3)}
        (clip,) = _indexed(_manifest(tmp_path, Path(path), [row]), decoder, frames=10, fps=30.0)
        assert clip["start_frame"] == frame
        shown = numbered.numbers(decoder.frames(path, frame, 10, 30.0, 32, 64))
        assert shown == list(range(frame, frame + 10))


def test_the_segments_of_an_export_are_themselves(tmp_path: Path, film: Path, decoder: Decoder) -> None:
    """Our own list of segments: `num_frames` at `fps` from the source's `start_frame` on."""
    for fps in (7.0, 10.0, 16.0, 20.0, 30.0):
        plain = _indexed(_manifest(tmp_path, film, [{}]), decoder, frames=9, fps=fps)
        rows = [{name: row[name] for name in ("start_frame", "num_frames", "fps")} for row in plain]
        again = _indexed(_manifest(tmp_path, film, rows), decoder, frames=9, fps=fps)
        assert [row["start_frame"] for row in again] == [row["start_frame"] for row in plain], fps


# --- ids -------------------------------------------------------------------------------------------------------------


def test_ids_without_a_span_stay_and_with_one_hold_it(tmp_path: Path, film: Path) -> None:
    row = videos(_manifest(tmp_path, film, [{}])).to_pylist()[0]
    assert "span" not in row
    name = "\0".join([row["relative"], str(row["size"]), "0"])
    import hashlib

    assert clip_id(row, 0) == hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    ids = {clip_id({**row, "span": span}, 0) for span in ("0s-1s", "0s-2s", None)}
    assert len(ids) == 3
    assert clip_id({**row, "span": None}, 0) == clip_id(row, 0)


def test_rows_with_and_without_spans_stand_together(tmp_path: Path, film: Path, decoder: Decoder) -> None:
    where = _manifest(tmp_path, film, [{"start": None, "end": None}, {"start": 1.0, "end": 1.6}])
    rows = _indexed(where, decoder)
    whole = [row for row in rows if row["span"] is None]
    assert len(whole) == 10
    assert [row["start_frame"] for row in rows if row["span"]] == [20]
    plain = _indexed(_manifest(tmp_path, film, [{}]), decoder)
    assert [row["clip_id"] for row in whole] == [row["clip_id"] for row in plain]


def test_a_span_listed_twice_and_an_id_twice_are_errors(tmp_path: Path, film: Path) -> None:
    span = {"start": 1.0, "end": 2.0}
    with pytest.raises(InputError, match="listed more than once"):
        videos(_manifest(tmp_path, film, [span, span]))
    rows = [{"id": "a", **span}, {"id": "a", "start": 2.0, "end": 3.0}]
    with pytest.raises(InputError, match="a is the id of more than one row"):
        videos(_manifest(tmp_path, film, rows))
    versioned = [{**row, "version": "1"} for row in rows]
    with pytest.raises(InputError, match="a is the id of more than one row"):
        Listing(VideoSet(_manifest(tmp_path, film, versioned)))


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("with_versions", [False, True])
def test_a_run_that_was_killed_between_two_spans_of_a_video_goes_on(
    tmp_path: Path, film: Path, decoder: Decoder, with_ids: bool, with_versions: bool
) -> None:
    """The table has one span of the video: the other one alone is indexed, and nothing twice."""
    rows: list[dict[str, Any]] = [{"start": 0.0, "end": 1.0}, {"start": 2.0, "end": 3.0}]
    if with_ids:
        rows = [{**row, "id": f"own{place}"} for place, row in enumerate(rows)]
    if with_versions:
        rows = [{**row, "version": "1", "size": 1} for row in rows]
    where, folder = _manifest(tmp_path, film, rows), str(tmp_path / "run" / "clips")
    clips = _indexed(where, decoder)
    schema = pa.schema([*CLIPS, ("span", pa.string())])
    first = [row for row in clips if row["span"] == "0s-1s"]
    tables.append(folder, pa.Table.from_pylist(first, schema=schema), {})
    listed = Listing(VideoSet(where))
    listed.subtract(folder)
    assert [row["span"] for block in listed.videos for row in block.to_pylist()] == ["2s-3s"]
    rest = [row for row in clips if row["span"] == "2s-3s"]
    tables.append(folder, pa.Table.from_pylist(rest, schema=schema), {})
    listed = Listing(VideoSet(where))
    listed.subtract(folder)
    assert listed.videos.num_rows == 0
    table = tables.read(folder)
    assert table is not None
    assert table.num_rows == len(clips)


def test_an_edited_span_gives_way(tmp_path: Path, film: Path, decoder: Decoder) -> None:
    folder = str(tmp_path / "run" / "clips")
    before = _indexed(_manifest(tmp_path, film, [{}]), decoder)
    tables.append(folder, pa.Table.from_pylist(before, schema=CLIPS), {})
    listed = Listing(VideoSet(_manifest(tmp_path, film, [{"start": 0.0, "end": 1.0}])))
    listed.subtract(folder)
    assert listed.videos.num_rows == 1, "the whole video is not listed any more"
    table = tables.read(folder)
    assert table is None or table.num_rows == 0


# --- what is no span -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"start": 2.0, "end": 1.0}, "refused: line 1: its span ends where it begins or before that"),
        ({"start": 2.0, "end": 2.0}, "refused: line 1: its span ends where it begins"),
        ({"start": -1.0, "end": 2.0}, "refused: line 1: its span begins before the video"),
        ({"start": "soon", "end": "later"}, "refused: line 1: 'soon' is no time"),
        ({"timestamp": [1.0, 2.0, 3.0]}, "refused: line 1: its `timestamp` is '[1.0, 2.0, 3.0]'"),
        (
            {"start": 1.0, "end": 9.0},
            "too_short: its span (from 1 s to 9 s) ends after the video, which has 100 frames",
        ),
        ({"start": 9.0, "end": 9.5}, "too_short: its span (from 9 s to 9.5 s) begins after the end of the video"),
        (
            {"start_frame": 90, "end_frame": 200},
            "too_short: its span (from frame 90 to frame 200) ends after the video",
        ),
        ({"start": 1.0, "end": 1.2}, "too_short: it has 2 frames at 10 frames a second in its span, a segment needs 5"),
    ],
)
def test_a_span_that_no_video_has_is_a_row_with_an_error(
    tmp_path: Path, film: Path, decoder: Decoder, row: dict[str, Any], sentence: str
) -> None:
    (clip,) = _indexed(_manifest(tmp_path, film, [row]), decoder)
    assert clip["error"].startswith(sentence)


@pytest.mark.parametrize(
    "name", ["scene_end", "start", "endTime", "clip_begin", "timestamp_sec", "shot-start", "timecode"]
)
def test_a_column_that_looks_like_a_span_and_is_not_understood_is_an_error(
    tmp_path: Path, film: Path, name: str
) -> None:
    with pytest.raises(InputError, match=f"its column `{name}` looks like a part of a span"):
        videos(_manifest(tmp_path, film, [{name: 3.5}]))
    with pytest.raises(InputError, match=f"its column `{name}` looks like a part of a span"):
        Listing(VideoSet(_manifest(tmp_path, film, [{name: 3.5, "version": "1", "size": 1}])))


@pytest.mark.parametrize(
    "row",
    [
        {"end_of_day": 1.0},
        {"timestamp": "2026-01-02T03:04:05"},
        {"timestamp": 1767225600},
        {"first_frame": "a.png"},
        {"num_frames": 81},
        {"duration": 3.0},
        {"start_date": "2026-01-02"},
    ],
)
def test_other_columns_pass_through(tmp_path: Path, film: Path, row: dict[str, Any]) -> None:
    table = videos(_manifest(tmp_path, film, [row]))
    assert "span" not in table.column_names
    name, value = next(iter(row.items()))
    assert table.column(f"manifest_{name}" if name == "num_frames" else name).to_pylist() == [value]


def test_spans_and_captions_of_other_lengths_are_an_error(tmp_path: Path, film: Path) -> None:
    row = {"timestamp": [["0", "1"], ["2", "3"]], "caption": ["a", "b", "c"]}
    with pytest.raises(InputError, match="2 spans, and 3 values in `caption`"):
        videos(_manifest(tmp_path, film, [row]))


def test_which_columns_hold_the_spans_is_said(tmp_path: Path, film: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        videos(_manifest(tmp_path, film, [{"start": 1.0, "end": 2.0}]))
    assert "rows are stretches of their videos, by `start`, `end`" in caplog.text


# --- spans alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["12.5s-17.25s", "48f-129f", "48f+5.0625s", "12.5s-", "0f-"])
def test_a_span_is_its_text(text: str) -> None:
    assert str(spans.parse(text)) == text


@pytest.mark.parametrize("text", ["", "1-2", "2s-1s", "5f-5f", "-1s-2s", "1s+0s", "nans-1s"])
def test_a_text_that_is_no_span(text: str) -> None:
    with pytest.raises(SpanError):
        spans.parse(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0:00:16.300", 16.3), ("1:02:03", 3723.0), ("02:03.5", 123.5), ("7", 7.0), (7, 7.0), (None, None), ("", None)],
)
def test_times(value: Any, expected: float | None) -> None:
    assert spans.seconds(value) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("0s-2s", "2s-4s", False),
        ("0s-2.1s", "2s-4s", True),
        ("0f-10f", "10f-20f", False),
        ("5s-", "0s-5s", False),
        ("5s-", "9s-10s", True),
        ("0f-10f", "5s-6s", True),
        ("0f+1s", "90f-99f", True),
        (None, "0s-1s", True),
    ],
)
def test_spans_that_may_share_a_frame(one: str | None, other: str | None, expected: bool) -> None:
    assert spans.overlap(one, other) is spans.overlap(other, one) is expected


def test_indexing_a_span_decodes_no_more_than_it_needs(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    real = segments.numbered

    def counted(*arguments: Any) -> Iterator[Any]:
        for number, picture in real(*arguments):
            shown.append(number)
            yield number, picture

    monkeypatch.setattr(segments, "numbered", counted)
    rows = video.segments(str(film), 5, 20.0, span="3s-3.5s")
    assert [row["start_frame"] for row in rows] == [60, 65]
    assert max(shown) == 70
    assert min(shown) >= 48, "it was decoded from the file's start"


def test_spans_equal_the_whole_file_where_they_cover_it(film: Path) -> None:
    whole, span = video.segments(str(film), 5, 8.0), video.segments(str(film), 5, 8.0, span="0s-5s")
    assert whole == span
    assert np.all([row["error"] is None for row in whole])


def test_a_span_has_the_segments_of_the_same_frames_in_a_file_of_their_own(tmp_path: Path) -> None:
    """The oracle: whatever the rates, a span is indexed and decoded as if somebody had cut it out."""
    draw = np.random.default_rng(5)
    film = numbered.write(tmp_path / "film.mp4", "libx264", range(200), rate=25, keys=17, b_frames=2)
    for _ in range(4):
        first = int(draw.integers(0, 150))
        last = int(draw.integers(first + 12, 200))
        fps, frames = float(draw.choice([5.0, 8.0, 12.5, 16.0, 24.0, 25.0, 30.0])), int(draw.integers(2, 6))
        alone = tmp_path / "alone.mp4"
        _write_part(alone, first, last)
        expected = video.segments(str(alone), frames, fps)
        for span in (f"{first}f-{last}f", f"{first / 25:g}s-{last / 25:g}s", f"{first}f+{(last - first) / 25:g}s"):
            rows = video.segments(film, frames, fps, span=span)
            assert [row["start_frame"] - first for row in rows] == [row["start_frame"] for row in expected], span
            for row in rows:
                shown = numbered.numbers(video.decode(film, row["start_frame"], frames, fps, 32, 64))
                assert first <= min(shown) <= max(shown) < last, span


def _write_part(path: Path, first: int, last: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        for number in range(first, last):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered.picture(number), format="rgb24")))
        container.mux(stream.encode(None))
