"""`ray job submit` as docs/cluster.md has it: a cluster with a token, outcome, stop, restart; no token, no job."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import HeldError
from pipeline.storage import lease, stores

MakeRun = Callable[..., Run]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # each of three runs has its own time limit
UPLOAD = 20 << 20  # bytes: well below Ray's limit of 100 MiB


class Cluster(NamedTuple):
    address: str  # of the dashboard
    environment: dict[str, str]  # of its users, the token included
    folder: Path  # Ray's own files


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def tokened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head node of its own, with its own token, ports and temporary folder (short: sockets lie below it)."""
    home, folder = tmp_path_factory.mktemp("home"), Path(tempfile.mkdtemp(prefix="ray"))
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(uuid.uuid4().hex)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(home), "TERM": "dumb"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names += ("runtime-env-agent-port", "ray-client-server-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    line = [str(BIN / "ray"), "start", "--head", "--block", f"--temp-dir={folder}", "--num-cpus=4"]
    line += [*(f"--{name}={port}" for name, port in ports.items()), f"--object-store-memory={200 << 20}"]
    log = (home / "head.log").open("w")
    # Nothing to wait for when the test is over: without this, a head node drains for 30 s.
    ending = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    head = subprocess.Popen(line, env={**environment, **ending}, stdout=log, stderr=log, start_new_session=True)
    cluster = Cluster(f"http://127.0.0.1:{ports['dashboard-port']}", environment, folder)
    try:
        deadline = time.monotonic() + 120
        while status(f"{cluster.address}/api/jobs/", token.read_text()) != 200:
            assert head.poll() is None, (home / "head.log").read_text()
            assert time.monotonic() < deadline, "the head node did not come up"
            time.sleep(0.5)
        yield cluster
    finally:
        head.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def status(url: str, token: str | None = None) -> int:
    """What the dashboard answers; 0 for nothing."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def job(cluster: Cluster, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`ray job WORDS`, with standard error among the output."""
    line = [str(BIN / "ray"), "job", words[0], "--address", cluster.address, *words[1:]]
    known = {**cluster.environment, **environment}
    return subprocess.run(
        line, cwd=ROOT, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500
    )


def submit(cluster: Cluster, name: str, run: Run, *options: str) -> subprocess.CompletedProcess[str]:
    """Submit curate with a configuration beside its root, which the cluster reaches."""
    path = Path(run.root).parent / f"{Path(run.root).name}.yaml"
    path.write_text(json.dumps(run.model_dump(mode="json")))  # JSON is YAML
    entry = ["--", "python", "-m", "jobs.curate", "--config", str(path)]
    return job(cluster, "submit", "--working-dir", ".", "--submission-id", name, *options, *entry)


def rows(root: str, *names: str) -> list[dict[str, object]]:
    """The rows of a table in a fixed order; its uris below the root without the root."""
    table = tables.read(stores.join(root, *names))
    records = [] if table is None else table.to_pylist()
    below = [{**row, "uri": (row["uri"] or "").removeprefix(root)} if "uri" in row else row for row in records]
    return sorted(below, key=lambda row: [str(row.get(key)) for key in ("clip_id", "group", "arm", "seed", "metric")])


@pytest.fixture(scope="module")
def whole(tokened: Cluster, tiny_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run submitted and followed to its end, and what was shown of its log."""
    run = tiny_run(tmp_path_factory.mktemp("whole") / "run")
    result = submit(tokened, "whole", run)
    assert result.returncode == 0, result.stdout
    return run, result.stdout


@pytest.mark.soak
def test_the_log_is_followed_to_the_end(whole: tuple[Run, str]) -> None:
    run, log = whole
    for line in ("attribute clips", "12/12", "selection: 12 clips", "finetuned/selected: 4 steps", "page: "):
        assert line in log
    assert "\r" not in log, "progress meant for a terminal"
    assert "succeeded" in log
    assert len(rows(run.root, "features", "clips")) == len(rows(run.root, "motion", "clips")) > 0
    assert (Path(run.root) / "report" / "index.html").is_file()
    assert not list(Path(run.root).glob(".lease-*")), "the lease was not given back"


@pytest.mark.soak
def test_the_upload_is_small(tokened: Cluster, whole: tuple[Run, str]) -> None:
    places = [p for p in tokened.folder.glob("session_2*/runtime_resources/working_dir_files/*") if p.is_dir()]
    assert len(places) == 1
    files = [p for p in places[0].rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert sum(p.stat().st_size for p in files) < UPLOAD
    assert {p.name for p in places[0].iterdir() if p.is_dir()} == {"pipeline", "jobs"}


@pytest.mark.soak
def test_a_stopped_job_is_continued_by_the_same_command(
    tokened: Cluster, whole: tuple[Run, str], tiny_run: MakeRun, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run")
    assert submit(tokened, "stopped", run, "--no-wait").returncode == 0
    deadline = time.monotonic() + 200
    while len(rows(run.root, "features", "clips")) < 2:
        assert time.monotonic() < deadline, job(tokened, "logs", "stopped").stdout
        time.sleep(0.1)
    with pytest.raises(HeldError, match="ray job stop stopped"), lease.hold(run.root, "curate"):
        pytest.fail("two jobs held one run")
    start = time.monotonic()
    result = job(tokened, "stop", "stopped")
    assert result.returncode == 0, result.stdout
    assert time.monotonic() - start < 30, "it took long to stop"
    assert not list(tmp_path.glob("run/.lease-*")), "a stopped job keeps its lease"
    there = len(rows(run.root, "features", "clips"))
    assert there < len(rows(whole[0].root, "features", "clips")), "it was stopped too late to show anything"
    assert "stopped; the same command continues" in job(tokened, "logs", "stopped").stdout

    again = submit(tokened, "continued", run)
    assert again.returncode == 0, again.stdout
    for names in (("clips",), ("motion", "clips"), ("features", "clips"), ("selection",), ("evaluation",)):
        assert rows(run.root, *names) == rows(whole[0].root, *names), f"{names} differs after a stop"


def test_without_the_token_nothing_is_accepted(tokened: Cluster, tiny_run: MakeRun, tmp_path: Path) -> None:
    assert status(f"{tokened.address}/api/jobs/") == 401
    assert status(f"{tokened.address}/api/jobs/", uuid.uuid4().hex) == 403
    wrong = tmp_path / "token"
    wrong.write_text(uuid.uuid4().hex)
    result = job(tokened, "submit", "--working-dir", ".", "--", "true", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert result.returncode != 0
    assert "token" in result.stdout
