"""Hostile manifests, videos and words: nothing is executed, fetched or read that was not meant to be."""

from __future__ import annotations

import ast
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import config, tables
from pipeline.config import Data, files
from pipeline.errors import ConfigError, InputError
from pipeline.inputs.changes import Listing
from pipeline.inputs.video_set import VideoSet
from pipeline.inputs.videos import videos
from pipeline.pages import report
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.decoder import Decoder
from pipeline.video.frames import write_mp4
from pipeline.video.indexing import IndexWorker, index

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_mp4(str(path), world.render(world.scene(0, "film", "real", "slide"), 32, 48), 8.0)
    return path.read_bytes()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(timeout=30) as shared_decoder:
        yield shared_decoder


@pytest.fixture
def server(film: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that gives the film for every address, and the addresses that it was asked for."""
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(film)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()


def _data(**more: Any) -> Data:
    return Data.model_validate({"videos": ".", "frames": 5, "fps": 8.0, "height": 32, "width": 48, **more})


def _row(path: Path) -> dict[str, Any]:
    own = {"relative": path.name, "version": "v", "size": 7, "source": ".", "caption": "", "id": None, "group": "."}
    return {"uri": str(path), **own, "error": None}


def _listing(path: Path, paths: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"path": p, "caption": ""}) + "\n" for p in paths))
    return str(path)


def _taken_at_its_word(manifest: str, base: str | None = None) -> pa.Table:
    """What a manifest lists if it tells versions and ids: its files are not looked at."""
    rows = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
    text = "".join(json.dumps({**row, "version": "1", "id": f"{i:03d}"}) + "\n" for i, row in enumerate(rows))
    Path(manifest).with_name("told.jsonl").write_text(text)
    listed = Listing(VideoSet(str(Path(manifest).with_name("told.jsonl")), base=base))
    return pa.concat_tables(listed.videos).sort_by("id")


def _codes(table: pa.Table) -> list[str]:
    return [str(error).split(":")[0] for error in table["error"].to_pylist()]


# --- paths and protocols ---------------------------------------------------------------------------------------------


def test_protocols_archives_and_playlists_in_a_manifest_are_refused(
    tmp_path: Path, film: bytes, server: tuple[str, list[str]], decoder: Decoder
) -> None:
    host, asked = server
    (tmp_path / "a.mp4").write_bytes(film)
    (tmp_path / "take: 2.mp4").write_bytes(film)
    wrong = [
        f"{host}/a.mp4",
        "https://user:secret@example.com/a.mp4?signature=secret",
        "ftp://example.com/a.mp4",
        "rtmp://example.com/live",
        "hf://datasets/a/b/c.mp4",
        f"simplecache::{host}/a.mp4",
        f"zip://a.mp4::{host}/a.zip",
        "tar://a.mp4::file:///tmp/a.tar",
        "s3://bucket/zip://a.mp4",
        f"concat:{tmp_path}/a.mp4|{tmp_path}/a.mp4",
        f"subfile,,start,0,end,100,,:{tmp_path}/a.mp4",
        "data:video/mp4;base64,AAAA",
        f"crypto:{tmp_path}/a.mp4",
        "pipe:0",
        f"file:{tmp_path}/a.mp4",
        "movie.m3u8",
        "https:movie.mp4",
        "list.ffconcat",
        "stream.mpd",
        "a.zip",
        "a.tar",
        "a.tar.gz",
        "a.tar#0+512:a.mp4",
        "a.parquet#0:video",
        "new\nline.mp4",
    ]
    table = videos(_listing(tmp_path / "list.jsonl", ["a.mp4", "take: 2.mp4", "a.mp4?", *wrong]))
    assert _codes(table) == ["None", "None", "read", *["refused"] * len(wrong)]
    word = _taken_at_its_word(str(tmp_path / "list.jsonl"))
    assert _codes(word)[3:] == ["refused"] * len(wrong)
    for listed in (table, word):
        assert "secret" not in json.dumps(listed.to_pylist()), "credentials of an address are kept"
    rows = [row for video in table.to_pylist() for row in index(video, _data(), decoder)]
    assert len(rows) == len(table), "a refused video leaves no row"
    assert "secret" not in json.dumps(rows)
    assert asked == [], "a manifest made the pipeline ask another host"


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/list.jsonl", "zip://a::s3://b/c.zip", "https://x/s.tar"])
def test_the_place_of_the_data_itself_is_no_foreign_protocol(where: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.videos.*kind of place"):
        videos(where)


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
        "\ufeff\n#EXTM3U\n#EXTINF:9,\n{url}/a.ts\n",
        "#EXTM3U\n#EXTINF:9,\nfile://{file}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {file}\n",
        "ffconcat version 1.0\nfile '{url}/a.mp4'\n",
        '<?xml version="1.0"?>\n<MPD><Period><BaseURL>{url}/a.mp4</BaseURL></Period></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "[playlist]\nFile1={url}/a.mp4\n",
        "PK\x03\x04 and an archive's rest",
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.m3u8.webm"])
def test_a_video_that_is_a_playlist_is_refused(
    tmp_path: Path, film: bytes, server: tuple[str, list[str]], decoder: Decoder, content: str, name: str
) -> None:
    (tmp_path / "other.mp4").write_bytes(film)
    (tmp_path / name).write_text(content.format(url=server[0], file=tmp_path / "other.mp4"))
    error = index(_row(tmp_path / name), _data(), decoder)[0]["error"]
    assert error.startswith("refused: "), error
    assert server[1] == [], "a playlist made the decoder ask another host"


@pytest.mark.parametrize("before", [b" " * 600, b"\n" * 5000, b"\0", b"# comment\n", b"ID3" + bytes(7)])
def test_a_hidden_playlist_leads_nowhere(
    tmp_path: Path, server: tuple[str, list[str]], decoder: Decoder, before: bytes
) -> None:
    (tmp_path / "a.mp4").write_bytes(before + f"#EXTM3U\n#EXTINF:9,\n{server[0]}/a.ts\n#EXT-X-ENDLIST\n".encode())
    error = index(_row(tmp_path / "a.mp4"), _data(), decoder)[0]["error"]
    assert error.split(":")[0] in ("refused", "decode")
    assert server[1] == []


def test_files_of_odd_names_are_rows(tmp_path: Path, film: bytes, decoder: Decoder) -> None:
    names = [
        b"\xff.mp4",
        b"a\nb.mp4",
        b"c::d.mp4",
        b"s.tar#0+9:e.mp4",
        b"fine \xc3\xa9 #1 100%.mp4",
        b"-i.mp4",
        b"f|g.mp4",
    ]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(film)
    table = videos(str(tmp_path))
    codes = dict(zip(table["relative"].to_pylist(), _codes(table), strict=True))
    assert codes == {
        "\\udcff.mp4": "refused",
        "a\nb.mp4": "refused",
        "c::d.mp4": "refused",
        "s.tar#0+9:e.mp4": "refused",
        "fine é #1 100%.mp4": "None",
        "-i.mp4": "None",
        "f|g.mp4": "None",
    }
    errors = [index(row, _data(), decoder)[0]["error"] for row in table.to_pylist()]
    assert [str(error).split(":")[0] for error in errors] == _codes(table)


def test_nothing_outside_the_base(tmp_path: Path, film: bytes) -> None:
    base = tmp_path / "base"
    for path in (base / "data" / "in.mp4", base / "sibling.mp4", tmp_path / "out.mp4", tmp_path / "base2" / "a.mp4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(film)
    (base / "data" / "link.mp4").symlink_to(tmp_path / "out.mp4")
    (base / "data" / "fine.mp4").symlink_to(base / "sibling.mp4")
    (base / "data" / "door").symlink_to(tmp_path)
    inside = ["in.mp4", f"file://{base}/sibling.mp4", "fine.mp4", "gone.mp4"]
    outside = [
        "../../out.mp4",
        str(tmp_path / "base2" / "a.mp4"),
        "link.mp4",
        "door/out.mp4",
        f"file://{base}/data/../../nothing.mkv",
        "/etc/passwd",
        "../../nothing.mp4",
        "s3://bucket/a.mp4",
        "memory://bucket/a.mp4",
        "",
    ]
    manifest = _listing(base / "data" / "list.jsonl", [*inside, *outside])
    table = videos(manifest, "data.videos", str(base))
    errors = dict(zip(table["relative"].to_pylist(), _codes(table), strict=True))
    assert [errors[path] for path in inside] == ["None", "None", "None", "read"]
    assert {path: errors[path] for path in outside} == dict.fromkeys(outside, "refused")
    word = _taken_at_its_word(manifest, str(base))
    assert _codes(word) == [*["None"] * len(inside), *["refused"] * len(outside)]
    folder = videos(str(base / "data" / "*.mp4"), "data.videos", str(base))
    assert dict(zip(folder["relative"].to_pylist(), _codes(folder), strict=True)) == {
        "fine.mp4": "None",
        "in.mp4": "None",
        "link.mp4": "refused",
    }
    assert _codes(videos(_listing(base / "data" / "free.jsonl", ["../../out.mp4"]))) == ["None"], "null: anything goes"


def test_nothing_outside_a_base_in_a_bucket(film: bytes) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("data/a.mp4", "data2/a.mp4", "b.mp4"):
        fs.pipe_file(f"/bucket/{name}", film)
    paths = ["a.mp4", "../b.mp4", "memory://bucket/data2/a.mp4", "memory://bucket/data/../c.mp4", "/etc/passwd"]
    rows = "".join(json.dumps({"path": p, "caption": ""}) + "\n" for p in paths)
    fs.pipe_file("/bucket/data/metadata.jsonl", rows.encode())
    assert _codes(videos("memory://bucket/data", "data.videos", "memory://bucket/data")) == [
        "None",
        *["refused"] * 3,
        "read",
    ]
    fs.rm("/bucket", recursive=True)


# --- the decoder's child ---------------------------------------------------------------------------------------------

PROBES = """
import os, resource, socket, subprocess
from pipeline.errors import ClipError

def segments(path, frames, fps, stride, pulse):
    found = {"environment": sorted(os.environ), "memory": resource.getrlimit(resource.RLIMIT_AS)[0]}
    for name, act in {"socket": lambda: socket.create_connection(("127.0.0.1", int(os.path.basename(path)))),
                      "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
                      "unix": lambda: socket.socket(socket.AF_UNIX),
                      "program": lambda: subprocess.run(["true"])}.items():
        try:
            act()
            found[name] = "allowed"
        except PermissionError:
            found[name] = "denied"
    return [found]
"""


def test_the_child_has_no_secrets_no_network_and_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[str]]
) -> None:
    (tmp_path / "probing_codec.py").write_text(PROBES)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "HF_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "HOME"):
        monkeypatch.setenv(name, "secret")
    with Decoder(timeout=20, functions="probing_codec") as probing:
        answers = probing.index(f"{tmp_path}/{server[0].rpartition(':')[2]}", 5, 5.0)[0]
    assert set(answers["environment"]) <= {
        *("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"),
        *("PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    }, "the child knows more of the environment than it needs"
    assert answers["memory"] == 4 << 30
    if os.uname().sysname == "Linux" and os.uname().machine in ("x86_64", "aarch64"):
        assert [answers[n] for n in ("socket", "datagram", "unix", "program")] == ["denied"] * 4
    assert server[1] == []


def test_an_error_that_nobody_expected_is_printed_without_secrets(tmp_path: Path) -> None:
    script = (
        "from jobs import command\n"
        "def job(run):\n"
        "    raise RuntimeError('https://bob:hunter2@example.com/a.mp4')\n"
        "command.main(job, None, default='demo')\n"
    )
    words = [sys.executable, "-c", script, "--set", f"root={tmp_path / 'run'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "RuntimeError: https://****@example.com/a.mp4" in done.stderr
    assert "hunter2" not in done.stderr.replace("raise RuntimeError('https://bob:hunter2", "")


# --- pickles ---------------------------------------------------------------------------------------------------------

FORBIDDEN = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_nothing_is_unpickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not FORBIDDEN & {alias.name.split(".")[0] for alias in node.names}, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert not FORBIDDEN & set((node.module or "").split(".")), f"line {node.lineno}"
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", f"line {node.lineno}: torch.load unpickles"
        assert "allow_pickle" not in keywords, f"line {node.lineno}: NumPy unpickles"
        assert called not in ("yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system"), f"line {node.lineno}"
        assert keywords.get("shell") != "True", f"line {node.lineno}: a shell reads its words"
        assert keywords.get("trust_remote_code") != "True", f"line {node.lineno}: a model brings its own code"
        if called.endswith(".from_pretrained"):
            assert keywords.get("use_safetensors") == "True", f"line {node.lineno}: pickled weights would be loaded"


def test_a_configuration_builds_plain_values_only(tmp_path: Path) -> None:
    with pytest.raises(yaml.YAMLError, match="python/object/apply"):
        files.parse(f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    assert not (tmp_path / "made").exists()


class _Evil(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.binary(), "evil.pickle")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> _Evil:
        return cls()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "registered"])
def test_extension_types_are_refused(tmp_path: Path, nested: bool, known: bool) -> None:
    odd = pa.ExtensionArray.from_storage(_Evil(), pa.array([b"x"]))
    column: Any = pa.StructArray.from_arrays([odd], ["inner"]) if nested else odd
    table = pa.table({"clip_id": ["a"], "path": ["a.mp4"], "caption": [""], "error": [""], "odd": column})
    if known:
        pa.register_extension_type(_Evil())
    try:
        pq.write_table(table, tmp_path / "list.parquet")
        with pytest.raises(InputError, match="extension type"):
            videos(str(tmp_path / "list.parquet"))
        (tmp_path / "clips").mkdir()
        pq.write_table(table, tmp_path / "clips" / "part-0.parquet")
        with pytest.raises(ValueError, match="extension type"):
            tables.read(str(tmp_path / "clips"))
    finally:
        if known:
            pa.unregister_extension_type("evil.pickle")


# --- the page --------------------------------------------------------------------------------------------------------

EVIL = [
    '<script src="http://evil/x.js"></script>',
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)' x='",
    "javascript:alert(1)",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "</table></section><iframe srcdoc='<script>1</script>'>",
    "<!-- --!> <![CDATA[ ]]> &lt;b&gt; \\u003cscript\\u003e",
]


class _Outline(HTMLParser):
    """The elements of a page and the names of their attributes, its texts, and what it links to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.outline: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.outline.append(f"{tag} {' '.join(name for name, _ in attributes)}")
        self.links += [value or "" for name, value in attributes if name in ("href", "src", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _page(root: Path, film: bytes, words: list[str]) -> str:
    """The page of an index whose captions, groups, sources, file names and errors are these words."""
    rows = []
    for number, word in enumerate(words):
        name = re.sub("[/\0]", "_", word) + f"{number}.mp4"
        (root / "data").mkdir(parents=True, exist_ok=True)
        (root / "data" / name).write_bytes(film if number % 2 else word.encode())
        rows.append({"file_name": name, "caption": word, "group": word, "source": word, "id": f"{word}{number}"})
    (root / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = config.load("demo", {"root": str(root / "run"), "data.videos": str(root / "data"), "data.frames": 5})
    listed = videos(str(root / "data"))
    worker = IndexWorker(run, schemas.QUERIES)
    table = pa.concat_tables(part["clips"] for part in worker(listed))
    worker.decoder.close()
    for name in ("queries", "clips"):
        tables.append(stores.join(run.root, name), table, {})
    report.write(run, lambda row: None)
    return (root / "run" / "report" / "index.html").read_text()


def test_a_hostile_manifest_does_not_change_the_page(tmp_path: Path, film: bytes) -> None:
    plain = _Outline(_page(tmp_path / "plain", film, [f"word {n}" for n in range(len(EVIL))]))
    evil = _Outline(_page(tmp_path / "evil", film, EVIL))
    assert sorted(evil.outline) == sorted(plain.outline), "words from a manifest have become elements or attributes"
    assert not [link for link in evil.links if link.lower().startswith(("javascript:", "http:", "https:", "//"))]
    text = "".join(evil.texts)
    for word in EVIL:
        assert word in text, f"the page does not show {word!r} as it is"
    assert "49" not in [t.strip() for t in evil.texts], "words from a manifest are evaluated"
