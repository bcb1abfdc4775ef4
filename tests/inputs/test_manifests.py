"""A row of a manifest means one thing: in each format, with and without versions, and what is wrong is said with its
line."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import tables
from pipeline.config import Data
from pipeline.errors import ConfigError, InputError
from pipeline.inputs.changes import Listing
from pipeline.inputs.manifests import csv_blocks
from pipeline.inputs.video_set import VideoSet
from pipeline.inputs.videos import videos
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.video import indexing
from pipeline.video.decoder import Decoder

Rows = list[dict[str, Any]]


def streamed(where: str) -> Rows:
    """The rows of a listing, as a stage draws them."""
    rows = [row for block in Listing(VideoSet(where)).videos for row in block.to_pylist()]
    return sorted(rows, key=lambda row: str(row["uri"]))


def listed(where: str) -> Rows:
    return sorted(videos(where, "data.videos").to_pylist(), key=lambda row: str(row["uri"]))


def both(tmp_path: Path, name: str, text: str, versioned: str) -> tuple[Rows, Rows]:
    """What a manifest gives without versions, and what the same one gives with them."""
    for video in ("a.mp4", "b.mp4", "take:1.mp4"):
        (tmp_path / video).touch()
    (tmp_path / name).write_text(text, newline="")
    (tmp_path / f"versioned-{name}").write_text(versioned, newline="")
    return listed(str(tmp_path / name)), streamed(str(tmp_path / f"versioned-{name}"))


def message(tmp_path: Path, name: str, content: str | bytes) -> str:
    """What is said of a manifest that is refused; the same whoever reads it."""
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(data)
    messages = []
    for read in (listed, streamed):
        with pytest.raises(InputError) as caught:
            read(str(tmp_path / name))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"data.videos={str(tmp_path / name)!r}: ")
    return messages[0]


# --- texts -----------------------------------------------------------------------------------------------------------

NUMBERS: dict[str, Any] = {"1e5": 1e5, "true": True, "1.50": 1.5, "-0": 0}
LIKE = ["2024-01-01", "2024-01-01T00:00:00Z", "007", "1e5", "true", "NA", "null", "1.50", "12:30", "0x1F", "-0"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("text", LIKE)
def test_texts_that_look_like_something_else_stay_what_was_typed(tmp_path: Path, kind: str, text: str) -> None:
    row = {"path": "a.mp4", "caption": text, "id": text, "group": text, "source": text, "note": text}
    whole = {**row, "version": text}
    separator = {"csv": ",", "tsv": "\t"}.get(kind)

    def written(row: dict[str, str]) -> str:
        if separator is None:
            return json.dumps(row) + "\n"
        return "\n".join(separator.join(line) for line in (row, row.values())) + "\n"

    plain, versioned = both(tmp_path, f"l.{kind}", written(row), written(whole))
    names = ("caption", "id", "group", "source")
    for (video_row,) in (plain, versioned):
        assert {name: video_row[name] for name in names} == dict.fromkeys(names, text)
        # What passes through has no type in CSV but that of what is written there: neither 007 nor a date is a number.
        assert video_row["note"] == (text if kind == "jsonl" else NUMBERS.get(text, text))
    assert versioned[0]["version"] == text


@pytest.mark.parametrize(
    ("values", "column"),
    [
        (["1", "-2", ""], pa.array([1, -2, None], pa.int64())),
        (["1", "0.5", "nan"], pa.array([1.0, 0.5, None], pa.float64())),
        (["true", "FALSE", ""], pa.array([True, False, None])),
        (["1", "007", "2"], pa.array(["1", "007", "2"])),
        (["1", "2024-01-01", "2"], pa.array(["1", "2024-01-01", "2"])),
        (["true", "1", "x"], pa.array(["true", "1", "x"])),
        (["nan", "x", ""], pa.array(["nan", "x", None])),
        (["9" * 30, "1", "2"], pa.array(["9" * 30, "1", "2"])),
        ([str(2**62), "1.5", ""], pa.array([str(2**62), "1.5", None])),
        (["1e999", "1", "2"], pa.array(["1e999", "1", "2"])),
        (["-", "1", ".5"], pa.array(["-", "1", ".5"])),
        (["e5", "-e7", ""], pa.array(["e5", "-e7", None])),
        (["1e5", "2.5E-7", "-.5"], pa.array([1e5, 2.5e-7, -0.5])),
    ],
)
def test_a_csv_column_is_of_numbers_where_all_values_are(tmp_path: Path, values: list[str], column: pa.Array) -> None:
    lines = [f"{n}.mp4,,{value}\n" for n, value in enumerate(values)]
    (tmp_path / "l.csv").write_text("path,caption,score\n" + "".join(lines))
    assert videos(str(tmp_path / "l.csv"))["score"].combine_chunks() == column


def test_a_column_of_a_csv_without_values_has_no_type_yet(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,caption,score,note\na.mp4,,,nan\n")
    (tmp_path / "v.csv").write_text("path,caption,score,note,version,size\na.mp4,,,nan,1,1\n")
    for schema in (videos(str(tmp_path / "l.csv")).schema, Listing(VideoSet(str(tmp_path / "v.csv"))).schema):
        assert not {"score", "note"} & set(schema.names), "a later run, in which it has numbers, would be refused"


def test_views_of_arrow_are_read(tmp_path: Path) -> None:
    """Newer writers of Parquet note types that few functions take."""
    texts = pa.array(["x", "y"], pa.string_view())
    columns = {"path": ["a.mp4", "b.mp4"], "caption": texts, "note": texts, "bytes": pa.array([b"x", None])}
    lists = pa.array([["x"], None], pa.list_(pa.string_view()))
    structs = pa.array([{"k": "x"}, None], pa.struct([("k", pa.string_view())]))
    table = pa.table({**columns, "list": lists, "struct": structs})
    for name, more in {"l.parquet": {}, "v.parquet": {"version": ["1", "1"], "size": [1, 1]}}.items():
        pq.write_table(pa.table({**{n: table.column(n) for n in table.column_names}, **more}), tmp_path / name)
    for rows in (streamed(str(tmp_path / "l.parquet")), streamed(str(tmp_path / "v.parquet"))):
        assert [row["caption"] for row in rows] == ["x", "y"]
        assert [row["note"] for row in rows] == ["x", "y"]
        assert (rows[0]["list"], rows[0]["struct"]) == (["x"], {"k": "x"})


def test_half_a_character_in_a_list_of_a_csv_is_an_error_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('path,captions\na.mp4,"[""half \\ud83d"", ""x""]"\nb.mp4,"[""fine""]"\n')
    first, second = listed(str(tmp_path / "l.csv"))
    assert first["error"].startswith("refused: line 2 of the manifest: its `captions` is no text")
    assert second["captions"] == ["fine"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "tar"])
def test_credentials_in_lists_are_masked(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = "https://user:open-sesame@host/a.mp4"
    row = {"path": "a.mp4", "captions": ["a cat", f"from {secret}"], "urls": [secret]}
    where = tmp_path / f"l.{kind}"
    if kind == "csv":
        where.write_text(f'path,captions\na.mp4,"[""a cat"", ""from {secret}""]"\n')
    elif kind == "jsonl":
        where.write_text(json.dumps(row))
    elif kind == "parquet":
        more = {"by": {"urls": [secret]}, "map": [("k", secret)]}
        kinds = {"map": pa.map_(pa.string(), pa.string())}
        columns = {name: pa.array([value], kinds.get(name)) for name, value in {**row, **more}.items()}
        pq.write_table(pa.table(columns), where)
    else:
        with tarfile.open(where, "w") as tar:
            for name, content in {"a.mp4": b"v", "a.json": json.dumps(row).encode()}.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (video,) = listed(str(where))
    assert "open-sesame" not in repr(video)
    assert video["captions"] == ["a cat", "from https://****@host/a.mp4"]
    assert "hold credentials; they are masked" in caplog.text


def test_utf16_without_a_mark_is_named_whatever_its_later_lines_have(tmp_path: Path) -> None:
    said = message(tmp_path, "l.csv", "path,caption\na.mp4,a café\n".encode("utf-16-le"))
    assert "line 1: it looks like UTF-16 without a byte-order mark" in said


def test_numbers_where_texts_belong_are_their_digits(tmp_path: Path) -> None:
    rows = [
        {"path": "a.mp4", "caption": 7, "id": 18446744073709551615, "group": 2024, "source": True},
        {"path": "b.mp4", "caption": float("nan"), "id": "x", "group": None, "source": 1.0},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    versioned = "".join(json.dumps({**row, "version": 1}) + "\n" for row in rows)
    for first, second in both(tmp_path, "l.jsonl", text, versioned):
        assert [first[n] for n in ("caption", "id", "group", "source")] == ["7", "18446744073709551615", "2024", "true"]
        assert [second[n] for n in ("caption", "id", "group", "source")] == ["", "x", "all", "1.0"]


def test_parquet_texts_of_other_types(tmp_path: Path) -> None:
    columns = {
        "path": pa.array(["a.mp4", "b.mp4"]).dictionary_encode(),
        "caption": pa.array([b"\xc3\xa9", None], pa.binary()),
        "id": pa.array([2**64 - 1, 2], pa.uint64()),
        "group": pa.array([float("nan"), 1.0]),
    }
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    first, second = listed(str(tmp_path / "l.parquet"))
    assert [first[n] for n in ("caption", "id", "group")] == ["é", str(2**64 - 1), "all"]
    assert [second[n] for n in ("caption", "id", "group")] == ["", "2", "1.0"]


# --- captions --------------------------------------------------------------------------------------------------------


def test_parquet_columns_that_hold_no_texts(tmp_path: Path) -> None:
    for name in ("id", "group", "caption"):
        columns = {"path": ["a.mp4"], "caption": ["x"], "None": ["y"], name: [{"a": 1}]}
        pq.write_table(pa.table(columns), tmp_path / "l.parquet")
        with pytest.raises(InputError, match=f"`{name}`.*struct"):
            listed(str(tmp_path / "l.parquet"))


def test_a_nul_in_parquet_is_an_error_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    rows = [{"path": "a.mp4", "id": "1", "caption": "x\0", "version": "1"}, {"path": "a.mp4", "id": "2", "text": "y"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "l.parquet")
    for read in (listed, streamed):
        errors = {row["id"]: row["error"] for row in read(str(tmp_path / "l.parquet"))}
        assert errors == {"1": "refused: its caption has a NUL character", "2": None}


def test_lists_of_captions_in_every_format(tmp_path: Path) -> None:
    row = {"path": "a.mp4", "id": "a", "caption": ["x", None, " y ", "x", ""]}
    plain, versioned = both(tmp_path, "l.jsonl", json.dumps(row), json.dumps({**row, "version": "1"}))
    assert plain[0]["captions"] == versioned[0]["captions"] == ["x", "y"]
    assert plain[0]["caption"] == versioned[0]["caption"] == "x"
    text = 'path,id,captions{}\na.mp4,a,"[""x"",""y""]"{}\nb.mp4,b,[one] plain{}\n'
    plain, versioned = both(tmp_path, "l.csv", text.format("", "", ""), text.format(",version", ",1", ",1"))
    for first, second in (plain, versioned):
        assert first["captions"] == ["x", "y"]
        assert second["captions"] == ["[one] plain"]
    mixed = [{"path": "a.mp4", "caption": "one"}, {"path": "b.mp4", "caption": ["x", 2]}, {"path": "c.mp4"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    assert [row["captions"] for row in listed(str(tmp_path / "m.jsonl"))] == [["one"], ["x", "2"], []]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.csv", "path,captions\na.mp4,\"['x', 'y']\"\n", ["line 2", "captions", "JSON list"]),
        ("l.jsonl", '{"path": "a.mp4", "caption": {"en": "x"}}\n', ["line 1", "caption", "object"]),
        ("l.jsonl", '{"path": "a.mp4", "caption": [["x"]]}\n', ["line 1", "caption", "list"]),
        ("l.jsonl", '{"path": "a.mp4", "caption": "", "id": ["x"]}\n', ["line 1", "id", "list"]),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path, name: str, content: str, words: list[str]) -> None:
    said = message(tmp_path, name, content)
    assert all(word in said for word in words), said


@pytest.mark.parametrize("version", ["", ', "version": 1'])
def test_a_text_that_is_none_is_an_error_of_its_row(tmp_path: Path, version: str) -> None:
    (tmp_path / "a.mp4").touch()
    lines = [
        r'{"path": "a.mp4", "id": "1", "caption": "x \ud800"',
        "",
        r'{"path": "b\udc80.mp4", "id": "2", "caption": "y"',
        r'{"path": "a.mp4", "id": "3", "caption": "z\u0000"',
        r'{"path": "a.mp4", "id": "4", "caption": "fine", "tags": ["\udfff"]',
        r'{"path": "a.mp4", "id": "5", "caption": "fine"',
    ]
    (tmp_path / "l.jsonl").write_text("".join(f"{line}{version}}}\n" if line else "\n" for line in lines))
    for read in (listed, streamed):
        errors = {row["id"]: row["error"] for row in read(str(tmp_path / "l.jsonl"))}
        for name, line, key in (("1", 1, "caption"), ("2", 3, "path"), ("3", 4, "caption"), ("4", 5, "tags")):
            assert errors[name].startswith(f"refused: line {line} of the manifest: its `{key}` is no text"), errors
        assert errors["5"] is None


# --- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('path,caption\na.mp4,"never closed\nb.mp4,y\nc.mp4,z\n', ["line 2", "never closed"]),
        ('path,caption\na.mp4,x\n"b.mp4","y\n', ["line 3", "never closed"]),
        ('path,note,caption\na.mp4,"one\ntwo","open\nb.mp4,y,z\n', ["line 3", "never closed"]),
        ('path,caption\na.mp4,"open\nb.mp4,"y"\n', ["line 2", "line 3", "goes on"]),
        ('path,caption\na.mp4,"open\nb.mp4,y\nc.mp4,z"\n', ["line 2", "'b.mp4,y'", "row by itself"]),
        ('path,caption\na.mp4,"he said \\"hi\\""\n', ["line 2", "backslash", "Spark"]),
        ('path,caption\na.mp4,"ends \\""\nb.mp4,"x"\n', ["line 2", "backslash"]),
        ('path,caption\na.mp4,"12\\", wide"\n', ["line 2", "3 values", "2 names", "backslash"]),
        ("path,caption\na.mp4,one, two\n", ["line 2", "3 values", "2 names"]),
        ("path,caption\n\na.mp4\n", ["line 3", "1 values", "2 names"]),
        ("path,caption,id,id\na.mp4,x,1,2\n", ["`id` twice"]),
        ("path,caption,id,id,version\na.mp4,x,1,2,1\n", ["`id` twice"]),
    ],
)
def test_rows_that_are_none_are_said_with_their_line(tmp_path: Path, text: str, words: list[str]) -> None:
    said = message(tmp_path, "l.csv", text)
    assert all(word in said for word in words), said


def test_a_quote_that_swallows_a_large_file_is_not_followed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_blocks, "LONGEST", 1000)
    said = message(tmp_path, "l.csv", 'path,caption\na.mp4,"open\n' + "b,y\n" * 1000)
    assert "line 2: the value whose quote opens here has more than 1000 characters" in said


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    """Line ends of Windows and of old Macs, blank lines, empty values and rows at the end, quoted newlines."""
    text = '\r\nFile_Name , Caption,\r\na.mp4,"two\r\nlines, ""quoted""",\r\n\r\nb.mp4,19" screen,,,\r\n,,\r\n'
    versioned = text.replace("Caption,", "Caption,version,id").replace('ed""",', 'ed""",1,1').replace("n,,,", "n,1,2,,")
    for first, second in both(tmp_path, "l.csv", text, versioned):
        assert first["caption"] == 'two\r\nlines, "quoted"'
        assert second["caption"] == '19" screen'
        assert first["error"] is second["error"] is None
    (tmp_path / "mac.csv").write_bytes(b"path,caption\ra.mp4,x\r")
    assert listed(str(tmp_path / "mac.csv"))[0]["caption"] == "x"
    (tmp_path / "UP.TSV").write_bytes(b'path\tcaption\na.mp4\tone, "two"\n')
    assert listed(str(tmp_path / "UP.TSV"))[0]["caption"] == 'one, "two"'
    for name in ("UP.CSV", "UP.JSONL"):
        (tmp_path / name).write_text("path,caption\na.mp4,x\n" if "CSV" in name else '{"path": "a.mp4", "text": "x"}')
        assert listed(str(tmp_path / name))[0]["caption"] == "x"


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["l.csv", "l.jsonl"])
def test_encodings_that_say_what_they_are(tmp_path: Path, name: str, codec: str) -> None:
    text = "path,caption\na.mp4,é 😀\n" if name == "l.csv" else '{"path": "a.mp4", "caption": "é 😀"}\n'
    (tmp_path / name).write_bytes(text.encode(codec))
    assert listed(str(tmp_path / name))[0]["caption"] == "é 😀"


def test_other_encodings_are_refused_with_the_line(tmp_path: Path) -> None:
    said = message(tmp_path, "l.csv", "path,caption\na.mp4,x\nb.mp4,café\n".encode("latin-1"))
    assert "line 3: it is not UTF-8" in said
    assert "Latin-1" in said
    assert "UTF-16" in message(tmp_path, "m.csv", "path,caption\na.mp4,x\n".encode("utf-16-le"))


# --- kinds of values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['"s": "1"', "", '"s": 2'], ["line 3", "`s`", "whole number", "text in line 1"]),
        (['"s": true', '"s": 2'], ["line 2", "`s`", "whole number", "true or false in line 1"]),
        (['"t": 1', '"s": [1]', '"s": ["x"]'], ["line 3", "`s`", "list of text", "list of whole number in line 2"]),
        (['"s": [1, "x"]'], ["line 1", "`s`", "several kinds"]),
        (['"s": 1', "", '"s": 18446744073709551615'], ["line 3", "`s`", "18446744073709551615", "64 bits"]),
        (['"s": 9007199254740993', '"s": 0.5'], ["line 1", "`s`", "9007199254740993", "fractions"]),
        (['"s": 1, "s": 2'], ["line 1", "'s' twice"]),
        (['"s": 1,'], ["line 1", "no JSON"]),
        (['"s": 1}, {"s": 2'], ["line 1", "after its object"]),
    ],
)
@pytest.mark.parametrize("version", ["", ', "version": 1'])
def test_values_of_several_kinds_are_refused_with_the_line(
    tmp_path: Path, lines: list[str], words: list[str], version: str
) -> None:
    rows = [
        f'{{"path": "{n}.mp4", "id": {n}, "caption": ""{version}, {line}}}\n' if line else "\n"
        for n, line in enumerate(lines)
    ]
    said = message(tmp_path, "l.jsonl", "".join(rows))
    assert all(word in said for word in words), said


def test_kinds_are_those_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few lines each, of which none knows all kinds."""
    monkeypatch.setattr("pipeline.inputs.manifests.text_blocks.BYTES", 100)
    rows: Rows = [{"path": f"{n:02}.mp4", "id": n, "caption": "x", "version": 1} for n in range(40)]
    rows[3]["whole"], rows[30]["whole"] = 1, 2
    rows[4]["number"], rows[31]["number"] = 1, 0.5
    rows[5]["tags"], rows[32]["tags"] = [], ["x"]
    rows[6]["flag"], rows[33]["nested"] = True, {"a": [1, "x"]}
    rows[35]["caption"] = ["one", "two"]
    rows[36]["empty"] = None
    rows[37]["more"] = float("nan")
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    video_rows = streamed(str(tmp_path / "l.jsonl"))
    assert [row["id"] for row in video_rows] == [str(n) for n in range(40)]
    assert [row["whole"] for row in video_rows if row["whole"] is not None] == [1, 2]
    assert [row["number"] for row in video_rows if row["number"] is not None] == [1.0, 0.5]
    assert [row["tags"] for row in video_rows if row["tags"] is not None] == [[], ["x"]]
    assert [row["flag"] for row in video_rows if row["flag"] is not None] == [True]
    assert video_rows[33]["nested"] == '{"a": [1, "x"]}'
    assert video_rows[34]["captions"] == ["x"]
    assert video_rows[35]["captions"] == ["one", "two"]
    assert not {"empty", "more"} & video_rows[0].keys(), "a column without a value has no type"


# --- names of columns ------------------------------------------------------------------------------------------------


def test_names_that_the_tables_have_are_renamed() -> None:
    for name in ("weight", "mask", "mask_shape", "motion_mean", "rank", "votes", "decision", "feature", "norm", "loss"):
        assert name in schemas.RESERVED
    for schema in (schemas.motion_schema(schemas.QUERIES), schemas.features_schema(2, 3), schemas.SELECTION):
        assert {name.casefold() for name in schema.names} - {schemas.MASK_BOX} <= schemas.RESERVED


@pytest.mark.parametrize("version", [{}, {"version": "1", "id": "a"}])
def test_other_columns_go_through_every_table(tmp_path: Path, version: dict[str, str]) -> None:
    (tmp_path / "a.mp4").touch()
    ours = {"id", "version", "size", "caption", "captions", "source", "group", "uri"}
    odd = {"Weight": 2.5, "a.b": 3.5, "two\nlines": 4.5, "": 5.5, " blank ": 6.5, "\ud800": 7.5, "é": 8.5}
    row = {"path": "a.mp4", "caption": "x", **version, **odd}
    row |= dict.fromkeys(schemas.RESERVED - ours - {"weight"}, 1.5)
    (tmp_path / "l.jsonl").write_text(json.dumps(row))
    for video_rows in (listed(str(tmp_path / "l.jsonl")), streamed(str(tmp_path / "l.jsonl"))):
        named = {name: value for name, value in video_rows[0].items() if isinstance(value, float)}
        place = list(row).index("") + 1
        new_names = {"manifest_Weight", "a_b", "two lines", f"column {place}", "blank", "\\ud800", "é"}
        assert {name for name in named if named[name] != 1.5} == new_names
        assert {name for name in named if named[name] == 1.5} == {
            f"manifest_{name}" for name in schemas.RESERVED - ours - {"weight"}
        }
        schema = schemas.motion_schema(pa.schema([*schemas.QUERIES, *((name, pa.float64()) for name in named)]))
        assert len({name.casefold() for name in schema.names}) == len(schema), "two columns of one name"
        stage = pa.Table.from_pylist([{"clip_id": "a", **named}], schema=schema)
        tables.append(str(tmp_path / "motion" / "clips"), stage, {})
        again = tables.read(str(tmp_path / "motion" / "clips"))
        assert again is not None
        assert again.to_pylist() == stage.to_pylist()
        part = stores.join(str(tmp_path), "motion", "clips", "part-*.parquet")
        assert len(duckdb.sql(f"select * from '{part}'").columns) == len(schema)


@pytest.mark.parametrize("version", [{}, {"version": "1", "id": "a"}])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["weight", "manifest_weight"], ["`weight`", "`manifest_weight`"]),
        (["Caption"], ["`caption`", "`Caption`", "case"]),
        (["score", "Score"], ["`score`", "`Score`", "case"]),
        (["a.b", "a_b"], ["`a.b`", "`a_b`"]),
    ],
)
def test_two_columns_of_one_name_are_refused(
    tmp_path: Path, names: list[str], words: list[str], version: dict[str, str]
) -> None:
    row = {"path": "a.mp4", "caption": "x", **version, **dict.fromkeys(names, "y")}
    said = message(tmp_path, "l.jsonl", json.dumps(row))
    assert all(word in said for word in words), said


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", ', "version": "1"'])
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("take:1.mp4", None),
        ("concat:a.mp4|b.mp4", "protocol of decoders"),
        (r"C:\\clips\\a.mp4", "Windows path"),
        ("C:/clips/a.mp4", "Windows path"),
        (r"\\\\server\\share\\a.mp4", "Windows path"),
        (r"clips\\a.mp4", "Windows"),
    ],
)
def test_colons_and_backslashes(tmp_path: Path, path: str, error: str | None, version: str) -> None:
    (tmp_path / "take:1.mp4").touch()
    (tmp_path / "l.jsonl").write_text(f'{{"path": "{path}", "id": "a", "caption": ""{version}}}\n')
    for read in (listed, streamed):
        (row,) = read(str(tmp_path / "l.jsonl"))
        assert (row["error"] is None) == (error is None)
        assert error is None or error in row["error"]
        if error is None:
            assert row["uri"] == str(tmp_path / "take:1.mp4")
    with pytest.raises(ConfigError, match="Windows path"):
        videos(r"C:\clips", "data.videos")


# --- ids and groups --------------------------------------------------------------------------------------------------


def manifest(tmp_path: Path, ids: list[str], versioned: bool) -> str:
    version = {"version": "1"} if versioned else {}
    rows = [{"path": f"{n}.mp4", "caption": "", "id": one, **version} for n, one in enumerate(ids)]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "l.jsonl")


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize(
    "ids", [["v", "v-9"], ["v-9", "v"], ["x", "v-9-18", "v-9"], ["two\nlines", "two\nlines-1"], ["v", "v-2147483647"]]
)
def test_ids_that_a_segment_may_have_are_refused(tmp_path: Path, ids: list[str], versioned: bool) -> None:
    for read in (listed, streamed) if not versioned else (streamed,):
        with pytest.raises(InputError) as caught:
            read(manifest(tmp_path, ids, versioned))
        assert all(repr(one) in str(caught.value) for one in ids if one != "x")


@pytest.mark.parametrize("versioned", [False, True])
def test_ids_that_no_segment_has_are_fine(tmp_path: Path, versioned: bool) -> None:
    ids = ["clip-001", "clip-1", "clip-2", "v", "v-0", "v-09", "v-", "-3", "v-2147483648", "v-99999999999", "w-1-", "w"]
    assert sorted(row["id"] for row in streamed(manifest(tmp_path, ids, versioned))) == sorted(ids)


@pytest.mark.parametrize("versioned", [False, True])
def test_ids_that_differ_by_blanks_are_one(tmp_path: Path, versioned: bool) -> None:
    with pytest.raises(InputError, match=r"v is .*more than on"):
        streamed(manifest(tmp_path, ["v", " v\t"], versioned))


class Starts(Decoder):
    """A decoder whose videos have segments at these frames."""

    def __init__(self, *starts: int) -> None:
        self.starts = starts

    def index(self, uri: str, frames: int, fps: float, stride: int | None) -> list[dict[str, Any]]:
        return [{"start_frame": start, "num_frames": frames, "fps": fps, "error": None} for start in self.starts]


def test_clips_of_a_video_have_ids_of_their_own() -> None:
    for video in ({"uri": "a.mp4", "id": "v"}, {"uri": "a.mp4", "id": None, "relative": "a.mp4", "size": 1}):
        rows = indexing.index(video, Data(videos="x"), Starts(0, 9, 18))
        assert len({row["clip_id"] for row in rows}) == 3
        (row,) = indexing.index(video, Data(videos="x"), Starts(0, 9, 9, 18))
        assert row["error"].startswith("decode: 2 of its segments begin at frame 9")


@pytest.mark.parametrize("version", [{}, {"version": "1"}])
def test_the_data_root_is_no_group(tmp_path: Path, version: dict[str, str]) -> None:
    groups: list[tuple[str, str | None]] = [("a.mp4", None), ("b.mp4", " . "), ("c.mp4", ""), ("x/d.mp4", " ")]
    groups += [("e.mp4", "roll"), ("f.mp4", "all")]
    rows = [{"path": path, "id": path, "caption": "", "group": group, **version} for path, group in groups]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    group_by_id = {row["id"]: row["group"] for row in streamed(str(tmp_path / "l.jsonl"))}
    assert group_by_id == {
        "a.mp4": "all",
        "b.mp4": "all",
        "c.mp4": "all",
        "x/d.mp4": "x",
        "e.mp4": "roll",
        "f.mp4": "all",
    }
