"""The workbench's server: who may ask, what is never served, ranges, damaged requests, a full disk, a bucket."""

from __future__ import annotations

import errno
import http.client
import json
import random
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from jobs import command
from jobs import workbench as job
from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ClipError, ConfigError
from pipeline.operations import purge
from pipeline.storage import stores
from pipeline.workbench import bench, previews
from tests.support.registered import unregistered
from tests.support.s3_store import BUCKET, seen_by, served
from tests.support.workbenches import CUT_OFF, FRAMES, GONE, HOSTILE, Served, names, run_of, words


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("served") / "run")


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[Served]:
    workbench_server = Served(run)
    yield workbench_server
    workbench_server.stop()


def ask(
    server: Served, path: str, method: str = "GET", body: bytes | None = None, token: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    prefix = f"/{server.token if token is None else token}/"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    link.request(method, prefix + path if not path.startswith("/") else path, body, named)
    answer = link.getresponse()
    data = answer.read()
    link.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, data


def get(server: Served, path: str, **query: Any) -> Any:
    said = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in query.items()}
    status, _, data = ask(server, f"{path}?{urllib.parse.urlencode(said)}")
    return status, json.loads(data)


def post(server: Served, path: str, said: Any) -> Any:
    status, _, data = ask(server, path, "POST", json.dumps(said).encode(), Content_Type="application/json")
    return status, json.loads(data)


def decision(batch: str, *clips: str, **more: Any) -> dict[str, Any]:
    return {"batch": batch, "by": "ann", "say": "keep", "clips": list(clips), **more}


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_nothing_is_answered_without_the_token(server: Served) -> None:
    for path in ("", "view", "rows", "film?kind=clips&id=clip-01", "static/main.js", "state"):
        for token in ("", "b-token", server.token[:-1], server.token + "x"):
            status, _, body = ask(server, path, token=token)
            assert status == 403, f"{path} with {token!r}"
            assert b"token" in body
            assert server.token.encode() not in body
    assert ask(server, "/")[0] == 403
    assert ask(server, f"/{server.token}")[0] == 403, "the path ends with a slash, so that links lie below it"
    assert ask(server, "decisions", "POST", b"{}", "b-token", Content_Type="application/json")[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_another_host_or_site_gets_nothing(server: Served, headers: dict[str, str]) -> None:
    for path, method in (("", "GET"), ("view", "GET"), ("decisions", "POST")):
        status, _, body = ask(server, path, method, b"{}" if method == "POST" else None, **headers)
        assert status == 403
        assert b"alone" in body


def test_every_answer_is_protected_and_the_page_runs_its_own_scripts_alone(server: Served) -> None:
    status, headers, body = ask(server, "")
    assert status == 200
    policy = headers["content-security-policy"]
    word = policy.split("'nonce-")[1].split("'")[0]
    assert body.count(f'nonce="{word}"'.encode()) == 2
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert word not in ask(server, "")[1]["content-security-policy"], "a nonce is used once"
    for path in ("view", "rows?from=0&to=3", "static/main.js", "nowhere", "film?id=clip-01"):
        headers = ask(server, path)[1]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]


def test_the_page_asks_no_other_machine(server: Served) -> None:
    for name in ("workbench.html", *server_files()):
        text = (Path(bench.__file__).parent / "templates" / name).read_text()
        assert "http://" not in text.replace("http://www.w3.org", ""), name
        assert "https://" not in text, name
        assert "innerHTML" not in text, f"{name}: what comes from data must never become markup"


def server_files() -> list[str]:
    return [
        path.name for path in (Path(bench.__file__).parent / "templates").iterdir() if path.suffix in (".js", ".css")
    ]


@pytest.mark.parametrize(
    "path",
    [
        "static/../../config.yaml",
        "static/..%2f..%2fbench.py",
        "static/%2e%2e/%2e%2e/etc/passwd",
        "static/workbench.html",
        "../../etc/passwd",
        "film?kind=clips&id=../../etc/passwd",
        "film?kind=clips&id=/etc/passwd",
        "film?kind=../clips&id=clip-01",
        "mask?id=../../config",
        "clip?id=..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_out(server: Served, path: str) -> None:
    status, _, body = ask(server, path)
    assert status in (400, 403, 404), body
    assert b"root:" not in body
    assert b"import" not in body


# --- films ------------------------------------------------------------------------------------------------------------


def test_a_film_has_every_frame_at_its_rate_and_is_no_raw_file(server: Served, run: Run, tmp_path: Path) -> None:
    status, headers, data = ask(server, "film?kind=clips&id=clip-01")
    assert (status, headers["content-type"]) == (200, "video/mp4")
    raw = Path(server.bench.index.rows([1], ["uri"])[0]["uri"]).read_bytes()
    assert data != raw
    path = tmp_path / "film.mp4"
    path.write_bytes(data)
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert float(stream.average_rate) == run.data.fps
        assert sum(1 for _ in film.decode(stream)) == FRAMES
    assert ask(server, "film?kind=queries&id=query-01")[0] == 200
    assert ask(server, "film?kind=queries&id=clip-01")[0] == 404


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-", 0, -1), ("bytes=5-9", 5, 9), ("bytes=-7", -7, -1), ("bytes=3-99999999", 3, -1), ("bytes=0-0", 0, 0)],
)
def test_ranges_of_a_film(server: Served, asked: str, first: int, last: int) -> None:
    whole = ask(server, "film?kind=clips&id=clip-01")[2]
    start = first % len(whole)
    stop = last % len(whole)
    status, headers, data = ask(server, "film?kind=clips&id=clip-01", Range=asked)
    assert status == 206
    assert data == whole[start : stop + 1]
    assert headers["content-range"] == f"bytes {start}-{stop}/{len(whole)}"


def test_ranges_that_are_none(server: Served) -> None:
    size = len(ask(server, "film?kind=clips&id=clip-01")[2])
    status, headers, _ = ask(server, "film?kind=clips&id=clip-01", Range=f"bytes={size}-")
    assert (status, headers["content-range"]) == (416, f"bytes */{size}")
    for asked in ("bytes=-", "lines=1-2", "bytes=1-2,4-5", "bytes=x-y", "bytes=9-5"):
        status, _, data = ask(server, "film?kind=clips&id=clip-01", Range=asked)
        assert (status == 200 and len(data) == size) or status == 416, asked


def test_a_video_that_is_gone_or_cut_off_says_why_and_its_clip_can_be_decided_on(server: Served) -> None:
    for clip_id, codes in ((GONE, {"read", "decode"}), (CUT_OFF, {"decode", "read", "too_short"})):
        status, said = get(server, "film", kind="clips", id=clip_id)
        assert status == 410
        assert said["code"] in codes
        assert said["error"]
        assert post(server, "decisions", decision(f"of-{clip_id}", clip_id))[0] == 200


def test_pictures_that_must_not_be_shown_are_not(tmp_path: Path) -> None:
    hidden = Served(run_of(tmp_path / "run", **{"report.pictures": False}))
    assert ask(hidden, "film?kind=clips&id=clip-01")[0] == 404
    hidden.stop()


def test_the_folder_of_films_is_private_bounded_and_goes(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = bench.private_folder("x")
    assert Path(folder).stat().st_mode & 0o077 == 0
    assert bench.token(folder) == bench.token(folder)
    assert len(bench.token(folder)) >= 32
    films = previews.Previews(run, str(tmp_path / "films"), 5000, 1)
    clips = tables.read(stores.join(run.root, "clips")).to_pylist()
    for row in clips[8:20]:
        films.film("clips", row)
    sizes = [path.stat().st_size for path in (tmp_path / "films").iterdir()]
    assert 0 < sum(sizes) <= 5000 + max(sizes)
    films.close()
    Path(folder).chmod(0o755)
    with pytest.raises(ConfigError, match="not this user's alone"):
        bench.private_folder("x")


def test_nothing_is_left_in_memory_of_films_that_are_made_but_the_failures(run: Run, tmp_path: Path) -> None:
    films = previews.Previews(run, str(tmp_path / "films"), 1 << 20, 1)
    clips = {row["clip_id"]: row for row in tables.read(stores.join(run.root, "clips")).to_pylist()}
    films.film("clips", clips["clip-01"])
    for _ in range(2):  # the second time, its failure is remembered
        with pytest.raises(ClipError):
            films.film("clips", clips[CUT_OFF])
    assert films._making == {}
    assert len(films._failed) == 1
    films.close()


def test_films_ahead_lie_in_packs_and_a_purge_takes_them(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    opened = bench.Bench(run.model_copy(update={"workbench": run.workbench.model_copy(update={"ahead": 24})}))
    job.write_ahead(opened._run, opened)
    packs = list((tmp_path / "run" / "previews" / "packs").iterdir())
    assert len(packs) == 1
    assert tables.read(stores.join(run.root, "previews")).num_rows == 22, "two videos cannot be decoded"
    assert unregistered(run.root) == []
    row = tables.read(stores.join(run.root, "clips")).to_pylist()[1]
    assert opened.previews._from_pack(row) == opened.film("clips", "clip-01")
    job.write_ahead(opened._run, opened)
    assert len(list((tmp_path / "run" / "previews" / "packs").iterdir())) == 1, "films that exist are not made again"
    purge.purge(run.root, {"clip-01"})
    assert not list((tmp_path / "run" / "previews" / "packs").iterdir())
    opened.close()


# --- what is said -----------------------------------------------------------------------------------------------------


def test_decisions_are_on_disk_when_they_are_acknowledged(server: Served, run: Run) -> None:
    said = decision("acknowledged", "clip-01", "clip-04", note="fine")
    assert post(server, "decisions", said)[0] == 200
    assert {row["clip_id"] for row in words(run.root) if row["batch"] == "acknowledged"} == {"clip-01", "clip-04"}
    assert post(server, "decisions", said)[0] == 200
    assert sum(row["batch"] == "acknowledged" for row in words(run.root)) == 2
    status, clip = get(server, "clip", id="clip-04")
    assert clip["words"][0]["note"] == "fine"
    status, answer = post(server, "undo", {"batch": "taken-back-1", "by": "ann", "undone": "acknowledged"})
    assert (status, answer["words"]["clip-01"]) == (200, "")


def test_all_of_a_view_needs_its_number(server: Served) -> None:
    view = {"text": "blue", "stamp": 5}
    said = {"batch": "of-a-view", "by": "ann", "say": "drop", "view": view}
    status, answer = post(server, "decisions", {**said, "count": 7})
    assert status == 400
    assert "12 clips, and 7" in answer["error"]
    assert post(server, "decisions", {**said, "count": 12})[0] == 200
    status, answer = post(server, "undo", {"batch": "undo-of-a-view", "by": "ann", "undone": "of-a-view"})
    assert (status, answer["clips"]) == (200, 12)


@pytest.mark.parametrize(
    "said",
    [
        {},
        [],
        "x",
        {"batch": "b" * 10, "by": "", "say": "keep", "clips": ["clip-01"]},
        {"batch": "b/../c-123", "by": "ann", "say": "keep", "clips": ["clip-01"]},
        {"batch": "b" * 10, "by": "ann", "say": "burn", "clips": ["clip-01"]},
        {"batch": "b" * 10, "by": "ann", "say": "keep", "clips": []},
        {"batch": "b" * 10, "by": "ann", "say": "keep", "clips": ["clip-01"], "at": "2020"},
        {"batch": "b" * 10, "by": "ann", "say": "keep", "clips": [7]},
    ],
)
def test_what_is_no_decision_is_refused_in_a_sentence(server: Served, run: Run, said: Any) -> None:
    before = len(words(run.root))
    status, answer = post(server, "decisions", said)
    assert status == 400
    assert answer["error"]
    assert len(words(run.root)) == before


def test_bodies_that_are_no_json_of_a_stated_length(server: Served) -> None:
    assert ask(server, "decisions", "POST", b"{}", Content_Type="text/plain")[0] == 400
    assert ask(server, "decisions", "POST", b"{", Content_Type="application/json")[0] == 400
    assert (
        ask(server, "decisions", "POST", None, Content_Type="application/json", Content_Length="99999999999")[0] == 400
    )
    assert ask(server, "view", "POST", b"{}", Content_Type="application/json")[0] == 405


def test_a_full_disk_loses_no_word(server: Served, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.tables import rows

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(words(run.root))
    with monkeypatch.context() as context:
        context.setattr(rows, "write_bytes", full)
        status, answer = post(server, "decisions", decision("on-a-full-disk", "clip-01"))
        assert status == 507
        assert "No space left" in answer["error"]
        assert get(server, "clip", id="clip-01")[1]["words"][:1] != [{"batch": "on-a-full-disk"}]
    assert len(words(run.root)) == before
    assert post(server, "decisions", decision("on-a-full-disk", "clip-01"))[0] == 200, "it is sent again, and counts"
    assert sum(row["batch"] == "on-a-full-disk" for row in words(run.root)) == 1


def test_many_who_speak_at_once_lose_nothing(server: Served, run: Run) -> None:
    def speak(by: str) -> None:
        for n in range(6):
            said = {**decision(f"at-once-{by}-{n}", *names(24)[n : n + 3]), "by": by}
            assert post(server, "decisions", said)[0] == 200

    threads = [threading.Thread(target=speak, args=(by,)) for by in ("ann", "ben", "cem")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(row["batch"].startswith("at-once-") for row in words(run.root)) == 3 * 6 * 3


def test_copies_by_bytes_are_shown_and_written(server: Served, run: Run) -> None:
    status, copies = get(server, "duplicates", kind="bytes")
    assert (status, copies["count"], copies["unread"], copies["complete"]) == (200, 3, 1, False)
    assert {clip["caption"] is not None for group in copies["groups"] for clip in group["cards"]} == {True}
    status, answer = post(server, "duplicates", {"kind": "bytes"})
    assert status == 200
    rows = tables.read(stores.join(run.root, "duplicates")).to_pylist()
    kinds = {(row["kind"], row["similarity"]) for row in rows if row["batch"] == answer["batch"]}
    assert kinds == {("bytes", 1.0)}
    assert get(server, "duplicates", threshold=0.97)[1]["count"] == 1


def test_guests_look_and_nothing_is_written(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", **{"workbench.write": False})
    guests = Served(run)
    for path, said in (
        ("decisions", decision("of-a-guest", "clip-01")),
        ("weights", {"batch": "of-a-guest", "by": "g", "weights": {"query-00": 0.5}}),
        ("likes", {"batch": "of-a-guest", "by": "g", "clip": "clip-01", "sign": 1}),
        ("duplicates", {"threshold": 0.97}),
    ):
        status, answer = post(guests, path, said)
        assert status == 403
        assert "looking only" in answer["error"]
    assert get(guests, "state")[1]["read_only"]
    assert get(guests, "view")[1]["n"] == 24
    guests.stop()
    assert not any((tmp_path / "run" / name).exists() for name in ("decisions", "query_weights", "likes", "duplicates"))


def test_a_ranking_that_is_written_meanwhile_is_told_and_decisions_stay(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    served_run = Served(run)
    post(served_run, "decisions", decision("before-it", "clip-01"))
    assert get(served_run, "state")[1]["newer"] is None
    table = tables.read(stores.join(run.root, "selection"))
    tables.replace(stores.join(run.root, "selection"), table.slice(0, 24), {})
    assert get(served_run, "state")[1]["newer"]
    assert post(served_run, "reload", {})[0] == 200
    assert get(served_run, "state")[1]["newer"] is None
    assert get(served_run, "clip", id="clip-01")[1]["people"] == "kept"
    served_run.stop()


# --- hostile words ----------------------------------------------------------------------------------------------------


def test_a_page_to_give_away_escapes_what_captions_say(server: Served) -> None:
    post(server, "decisions", decision("with-markup", HOSTILE, note="<img src=x onerror=alert(1)>"))
    spec = json.dumps({"ids": [HOSTILE, GONE, "clip-01"], "sort": "given"})
    status, _, data = ask(server, f"handout?{urllib.parse.urlencode({'spec': spec})}")
    page = data.decode()
    assert status == 200
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;img src=x onerror" in page
    assert page.count("data:video/mp4;base64,") == 2


def test_random_requests_get_an_answer_and_break_nothing(server: Served, run: Run) -> None:
    """2,000 requests of words that fit and words that do not; none is a server's failure or leaks a path."""
    draw = random.Random(7)
    before = len(words(run.root))
    paths = [
        "",
        "view",
        "rows",
        "clip",
        "mask",
        "film",
        "queries",
        "changes",
        "duplicates",
        "agreement",
        "static/main.js",
    ]
    values = ["", "all", "clip-01", "-1", "99999999999999999999", "{}", "[]", '{"group":"x"}', '{"sort":"influence"}']
    values += [
        "../..",
        "\x00",
        "é" * 50,
        '{"where":{"source":["x"]}}',
        "NaN",
        "1e309",
        '{"query-00":-1}',
        "'\"<>",
        "near",
    ]
    keys = ["id", "spec", "from", "to", "kind", "group", "queue", "weights", "threshold", "count", "by", "seed", "x"]
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(2000):
        query = urllib.parse.urlencode([(draw.choice(keys), draw.choice(values)) for _ in range(draw.randrange(4))])
        method = draw.choice(["GET"] * 6 + ["POST", "PUT", "DELETE", "HEAD"])
        body = draw.choice(values).encode() if method == "POST" else None
        path = f"/{server.token}/{draw.choice(paths)}?{query}"
        link.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
        answer = link.getresponse()
        data = answer.read()
        assert answer.status < 500, f"{method} {path}: {data[:200]!r}"
        if answer.status >= 400:
            assert str(run.root).encode() not in data
        if answer.getheader("Connection") == "close":
            link.close()
    assert len(words(run.root)) == before
    assert get(server, "view")[1]["n"] == 24


# --- the job ----------------------------------------------------------------------------------------------------------


def test_a_root_says_its_own_configuration(run: Run, tmp_path: Path) -> None:
    configuration = command.of_root([f"root={run.root}", "workbench.port=0"])
    assert (configuration.root, configuration.workbench.port, configuration.data.fps) == (run.root, 0, run.data.fps)
    with pytest.raises(ConfigError, match="name the run"):
        command.of_root(["workbench.port=0"])
    with pytest.raises(ConfigError, match=r"no .*config\.yaml"):
        command.of_root([f"root={tmp_path}"])


def test_a_port_that_is_taken_is_said(server: Served, run: Run) -> None:
    second_run = run.model_copy(update={"workbench": run.workbench.model_copy(update={"port": server.port})})
    opened = bench.Bench(second_run)
    with pytest.raises(ConfigError, match=rf"workbench\.port={server.port}.*Address already in"):
        job.serve(second_run, opened)
    opened.close()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_decided_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as store:
        seen_by(monkeypatch, store)
        run = run_of(f"s3://{BUCKET}/runs/mine", home=tmp_path)
        assert command.of_root([f"root={run.root}"]).root == run.root
        first, second = Served(run), Served(run)
        assert post(first, "decisions", decision("in-a-bucket-1", "clip-01"))[0] == 200
        said = {**decision("in-a-bucket-2", "clip-01", say="drop"), "by": "ben"}
        assert post(second, "decisions", said)[0] == 200
        get(first, "state")
        assert get(first, "clip", id="clip-01")[1]["people"] == "disputed"
        store.fault = lambda request: "403" if "decisions" in request.path and request.method == "PUT" else None
        status, _ = post(first, "decisions", decision("denied-denied", "clip-02"))
        assert status == 507
        assert "clip-02" not in {row["clip_id"] for row in words(run.root)}
        assert get(first, "view")[1]["n"] == 24, "the table works"
        store.fault = lambda request: None
        assert post(first, "decisions", decision("denied-denied", "clip-02"))[0] == 200
        first.stop()
        second.stop()
