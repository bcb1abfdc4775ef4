"""The server of a blind study: it gives the page and its videos to this machine alone, takes every answer once, and
loses none that it acknowledged, also where it is killed."""

from __future__ import annotations

import ast
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs import study as job
from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.study import answers, handout
from pipeline.study.answer_log import AnswerLog
from pipeline.study.answer_server import AnswerServer
from pipeline.study.answers import Answer
from tests.support.studies import answer, known, paper_key, recorded_answers, run_of

ROOT = Path(__file__).parents[2]
KEY = paper_key(5)


@dataclass(frozen=True)
class Served:
    server: AnswerServer
    videos: Path
    path: Path  # of the database


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    videos, path = tmp_path / "videos", tmp_path / "answers.sqlite"
    videos.mkdir()
    for number, side in enumerate(side for pair in KEY.pairs for side in pair.sides):
        (videos / f"{side.video}.mp4").write_bytes(bytes((number + n) % 256 for n in range(200_000)))
    (videos / "notes.txt").write_text("not for the page")
    (tmp_path / "key.json").write_text(KEY.model_dump_json())
    with contextlib.closing(AnswerLog(str(path), KEY)) as log:
        server = AnswerServer(0, handout.page(KEY, served=True), str(videos), log)
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        yield Served(server, videos, path)
        server.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server does not end"


def ask(
    port: int, method: str, path: str, body: str | None = None, **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    kind = {} if body is None else {"Content-Type": "application/json"}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    link.request(method, path, None if body is None else body.encode(), {**kind, **names})
    response = link.getresponse()
    content = response.read()
    link.close()
    return response.status, content, response.headers


def post(port: int, given: Answer) -> int:
    return ask(port, "POST", "/answers", given.model_dump_json())[0]


def raw(port: int, request: bytes) -> bytes:
    """What comes back for these bytes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        link.sendall(request)
        return b"".join(iter(lambda: link.recv(65536), b""))


# --- answers ---------------------------------------------------------------------------------------------------------


def test_double_submissions_are_one_answer(served: Served) -> None:
    port, pair = served.server.port, KEY.pairs[0]
    given = answer(KEY, pair, "Änna", known(pair))
    replies: list[tuple[int, bool]] = []
    start = threading.Barrier(8)

    def submit() -> None:
        start.wait()
        status, content, _ = ask(port, "POST", "/answers", given.model_dump_json())
        replies.append((status, json.loads(content)["recorded"]))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(replies) == [(200, False)] * 7 + [(200, True)]
    assert recorded_answers(served.path) == [given]
    assert json.loads(ask(port, "GET", "/answers?person=%C3%84nna")[1]) == {"revisions": {pair.pair: 0}}
    otherwise = given.model_copy(update={"choice": "right" if given.choice != "right" else "left"})
    assert post(port, otherwise) == 409
    again = otherwise.model_copy(update={"revision": 1})
    assert post(port, again) == 200
    assert recorded_answers(served.path) == [given, again]


def test_what_is_no_answer_is_refused(served: Served) -> None:
    port = served.server.port
    fine = answer(KEY, KEY.pairs[0], "Anna", None).model_dump_json()
    assert ask(port, "POST", "/answers", fine, Content_Type="text/plain")[0] == 400, "what any page may post"
    assert ask(port, "POST", "/answers", " " * 5000)[0] == 400
    assert ask(port, "POST", "/answers", fine.replace('"study":"s"', '"study":"other"'))[0] == 400
    assert ask(port, "POST", "/answers", "[]")[0] == 400
    assert ask(port, "POST", "/answers", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"))[0] == 400
    assert ask(port, "POST", "/", fine)[0] == 405
    start = b"POST /answers HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    for head in (b"", b"Content-Length: 10\r\n"):  # chunks count, whatever length is stated beside them
        reply = raw(port, start + head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2)
        assert reply.startswith(b"HTTP/1.1 400 ")
    assert raw(port, start + b"Content-Length: 9999999999\r\n\r\n").startswith(b"HTTP/1.1 400 "), "it waited for it"
    assert recorded_answers(served.path) == []
    assert ask(port, "POST", "/answers", fine)[0] == 200


SERVER = """
import sys
from pathlib import Path
from pipeline.study.answer_log import AnswerLog
from pipeline.study.answer_server import AnswerServer
from pipeline.study.pairs import Key
folder = Path(sys.argv[1])
key = Key.model_validate_json((folder / "key.json").read_text())
server = AnswerServer(0, b"", str(folder), AnswerLog(str(folder / "answers.sqlite"), key))
print(server.port, flush=True)
server.serve()
"""


def test_a_killed_server_has_lost_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    """Three kills with SIGKILL while two people answer as fast as they can; then each sends all of it once more."""
    path = tmp_path / "answers.sqlite"
    (tmp_path / "key.json").write_text(KEY.model_dump_json())
    acknowledged: dict[tuple[str, str, int], Answer] = {}
    sent: list[Answer] = []

    def judge(port: int, person: str, first: int, enough: threading.Event) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the server is gone
            for revision in itertools.count(first):
                pair = KEY.pairs[revision % len(KEY.pairs)]
                one = answer(KEY, pair, person, known(pair), revision=revision)
                sent.append(one)
                assert post(port, one) == 200
                acknowledged[one.which] = one
                if revision == first + 9:
                    enough.set()

    for kill in range(3):
        words = [sys.executable, "-c", SERVER, str(tmp_path)]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            enough = [threading.Event(), threading.Event()]
            people = [
                threading.Thread(target=judge, args=(port, person, 1000 * kill, event))
                for person, event in zip(("Anna", "Bert"), enough, strict=True)
            ]
            for thread in people:
                thread.start()
            for event in enough:
                assert event.wait(60)
            os.kill(child.pid, signal.SIGKILL)
            for thread in people:
                thread.join()
        recorded = {one.which: one for one in recorded_answers(path)}
        assert len(recorded) == len(recorded_answers(path)), "an answer is there twice"
        assert acknowledged.items() <= recorded.items(), "an acknowledged answer is lost or changed"
        assert recorded.items() <= {one.which: one for one in sent}.items()
    assert len(acknowledged) >= 60
    with contextlib.closing(AnswerLog(str(path), KEY)) as log:
        for one in sent:
            log.add(one.model_dump_json().encode())
    assert sorted(one.which for one in recorded_answers(path)) == sorted(one.which for one in sent)
    assert len(answers.read(str(path), KEY)) == 2 * len(KEY.pairs)


# --- who may ask, and what there is ----------------------------------------------------------------------------------


def test_the_server_gives_the_page_and_its_videos_and_nothing_else(served: Served) -> None:
    port = served.server.port
    video = served.videos / f"{KEY.pairs[0].sides[0].video}.mp4"
    data, name = video.read_bytes(), f"/videos/{video.name}"
    for place in ("/", "/index.html"):
        status, content, headers = ask(port, "GET", place)
        assert (status, content) == (200, handout.page(KEY, served=True))
        assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert ask(port, "GET", name)[:2] == (200, data)
    assert ask(port, "HEAD", name)[:2] == (200, b"")
    hidden = ("/key.json", "/../key.json", "/videos/../../key.json", "/videos/%2e%2e/%2e%2e/key.json", "/videos/")
    for place in (*hidden, "/videos/..%2f..%2fkey.json", "/videos/notes.txt", "/answers.sqlite", "/answers/", "/docs"):
        assert ask(port, "GET", place)[0] == 404, place
    away = video.rename(video.with_suffix(".away"))
    assert ask(port, "GET", name)[0] == 404, "a video that was deleted while it is served"
    away.rename(video)


def test_a_browser_gets_the_range_of_a_video_that_it_asks_for(served: Served) -> None:
    port = served.server.port
    video = served.videos / f"{KEY.pairs[0].sides[0].video}.mp4"
    data, name = video.read_bytes(), f"/videos/{video.name}"
    for asked, first, last in (("10-19", 10, 19), ("10-", 10, 199_999), ("0-", 0, 199_999), ("9-999999", 9, 199_999)):
        status, content, headers = ask(port, "GET", name, Range=f"bytes={asked}")
        assert (status, content) == (206, data[first : last + 1])
        assert headers["Content-Range"] == f"bytes {first}-{last}/200000"
        assert headers["Content-Type"] == "video/mp4"
    assert ask(port, "GET", name)[2]["Accept-Ranges"] == "bytes"
    status, _, headers = ask(port, "GET", name, Range=f"bytes={len(data)}-")
    assert (status, headers["Content-Range"]) == (416, "bytes */200000")


def test_another_host_or_site_is_refused(served: Served) -> None:
    port = served.server.port
    fine = answer(KEY, KEY.pairs[0], "Anna", None).model_dump_json()
    video = f"/videos/{KEY.pairs[0].sides[0].video}.mp4"
    for host in ("evil.example:8377", "localhost.evil.example", "127.0.0.1.evil.example", "[", "", "0.0.0.0"):
        for place in ("/", video, "/answers?person=Anna", "/nothing"):
            assert ask(port, "GET", place, Host=host)[0] == 403, f"{host!r} is another name that leads to loopback"
        assert ask(port, "POST", "/answers", fine, Host=host)[0] == 403
    for origin in ("https://evil.example", "null", "http://localhost.evil.example", "file://", "http://["):
        assert ask(port, "POST", "/answers", fine, Origin=origin)[0] == 403, origin
        assert ask(port, "GET", "/", Origin=origin)[0] == 403, origin
    for header in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        assert raw(port, b"GET / HTTP/1.1\r\n" + header + b"\r\n").startswith(b"HTTP/1.1 400 ")
    forwarded = b"Host: evil.example\r\nX-Forwarded-Host: localhost\r\nX-Forwarded-For: 127.0.0.1\r\n"
    assert raw(port, b"GET / HTTP/1.1\r\n" + forwarded + b"\r\n").startswith(b"HTTP/1.1 403 ")
    twice = b"Host: localhost\r\nOrigin: http://localhost\r\nOrigin: https://evil.example\r\n"
    assert raw(port, b"GET / HTTP/1.1\r\n" + twice + b"\r\n").startswith(b"HTTP/1.1 403 ")
    assert recorded_answers(served.path) == []
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert ask(port, "GET", "/", Host=host, Origin="http://localhost:2")[0] == 200


def test_every_response_is_protected(served: Served) -> None:
    port = served.server.port
    video = f"/videos/{KEY.pairs[0].sides[0].video}.mp4"
    for status, place, host in ((200, "/", "localhost"), (404, "/x", "localhost"), (200, video, "localhost"),
                                (200, "/answers?person=x", "localhost"), (403, "/", "evil.example")):  # fmt: skip
        code, _, headers = ask(port, "GET", place, Host=host)
        assert code == status
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Server"] is None
        assert headers["Access-Control-Allow-Origin"] is None
        assert headers["Cache-Control"] == (None if place == video else "no-store")
        assert (headers["Connection"] == "close") == (status == 403)


def test_a_failure_is_status_500_and_logged_with_its_cause(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(sqlite3.connect(served.path)) as database:
        database.execute("DROP TABLE answers")
    given = answer(KEY, KEY.pairs[0], "Anna", None)
    assert ask(served.server.port, "GET", "/answers?person=x")[:2] == (500, b"Internal Server Error")
    late = time.monotonic() + 30
    while "GET /answers failed" not in caplog.text and time.monotonic() < late:
        time.sleep(0.01)  # the reply goes out before the cause is logged
    assert "GET /answers failed" in caplog.text
    assert "no such table: answers" in caplog.text
    caplog.clear()
    status, content, _ = ask(served.server.port, "POST", "/answers", given.model_dump_json())
    assert (status, json.loads(content)) == (500, {"error": "it could not be written"})
    assert "an answer could not be written: " in caplog.text


def test_it_listens_on_loopback_alone(served: Served) -> None:
    assert served.server._socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OSError, match="in use"):
        AnswerServer(served.server.port, b"", str(served.videos), AnswerLog(str(served.path), KEY))


# --- the job ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_of(tmp_path_factory.mktemp("study"), captions=3, catch=0.2)
    job.study(run)
    return run


def serving(root: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "jobs.study", "--config", "demo"]
    keys = {"root": root, "study.serve": "true", "study.port": "0"}
    words += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def port_of(child: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """The port that the job serves at, and the lines that it has printed by then."""
    assert child.stdout is not None
    printed = list(itertools.islice(child.stdout, 4))
    address = re.fullmatch(r"judge at http://127\.0\.0\.1:(\d+)/\n", "".join(printed[2:3]))
    assert address, (printed, child.stderr.read() if child.stderr else "")
    return int(address[1]), printed


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serving_holds_no_lease_and_ends_with_status_zero(built: Run, ending: signal.Signals) -> None:
    path = Path(handout.place(built.root, "answers.sqlite"))
    path.unlink(missing_ok=True)
    with serving(built.root) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        port, printed = port_of(child)
        assert printed[3] == f"answers go to {path}; Ctrl-C ends it, and the same command goes on\n"
        assert not list(Path(built.root).glob(".lease-*")), "a study served for days keeps the run's jobs out"
        assert ask(port, "GET", "/")[0] == 200
        with socket.create_connection(("127.0.0.1", port)) as half:  # an answer that never comes whole
            half.sendall(b"POST /answers HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            half.sendall(b"Content-Length: 10\r\n\r\n{")
            assert ask(port, "GET", "/")[0] == 200, "it keeps others waiting"
            child.send_signal(ending)
            assert child.wait(20) == 0, child.stderr.read()
        assert f"0 judgements of 0 people; to score them: --set study.answers={path}\n" in child.stdout.read()
        assert child.stderr.read() == ""
    path.unlink()


def test_a_root_on_an_object_store_and_a_port_in_use_are_refused(built: Run) -> None:
    serve = built.model_copy(update={"study": built.study.model_copy(update={"serve": True})})
    with pytest.raises(ConfigError, match="object store cannot"):
        job.study(serve.model_copy(update={"root": "s3://bucket/run"}))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        study = serve.study.model_copy(update={"port": port})
        with pytest.raises(ConfigError, match=rf"study\.port={port}: nothing can be served there \(Address already in"):
            job.serve(serve.model_copy(update={"study": study}))


def test_only_what_serves_imports_the_server() -> None:
    """`--help`, building and scoring do not pay for it: it is imported inside a function, and so is who imports it."""
    for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py")]:
        body = ast.parse(path.read_text()).body
        lines = [ast.unparse(line) for line in body if isinstance(line, ast.Import | ast.ImportFrom)]
        heavy = [line for line in lines if re.search(r"\b(starlette|uvicorn|loopback|answer_server|routes)\b", line)]
        assert bool(heavy) == (path.name in ("answer_server.py", "loopback.py", "routes.py")), f"{path}: {heavy}"
