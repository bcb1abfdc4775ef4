"""The lease: one holder at a time, named to whoever comes second, and free again when its holder has died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import command
from pipeline import tables
from pipeline.errors import (
    ConfigError,
    HeldError,
    LostError,
)
from pipeline.storage import lease, stores
from tests.support.s3_store import BUCKET, Store, seen_by, served

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with served() as store:
        yield store


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "s3":
        seen_by(monkeypatch, request.getfixturevalue("store"))
        return f"s3://{BUCKET}/{uuid.uuid4().hex}/run"
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/run"


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter times."""
    for name, seconds in (("RENEWAL", 0.1), ("EXPIRY", 30.0), ("WATCH", 2.0)):
        monkeypatch.setattr(lease, name, seconds)


def files(root: str) -> list[str]:
    return [path for path in stores.files(root) if "/.lease-" in path]


def elsewhere(root: str, **changed: object) -> lease.Holder:
    """A lease as a job on another machine would have written it."""
    with lease.hold(root, "curate"):
        mine = lease._read(root, None)[0]
    return lease._write(root, mine.model_copy(update={"machine": "another", "host": "far", "pid": 17, **changed}))


def test_the_second_is_told_who_holds_it_and_since_when(root: str) -> None:
    with lease.hold(root, "curate", "raysubmit_7"):
        with pytest.raises(HeldError) as error, lease.hold(root, "report"):
            pytest.fail("two held it")
        for part in (repr(root), "curate", "raysubmit_7", str(os.getpid()), "since 20", "ray job stop raysubmit_7"):
            assert part in str(error.value)
        assert len(files(root)) == 1, "the refused one left something"
    with lease.hold(root, "report"):
        pass
    assert files(root) == []


@pytest.mark.parametrize("content", [b"", b"no lease", b'{"nonce": "0", "version": 2}'])
def test_a_lease_file_of_another_version_is_named_and_left_alone(root: str, content: bytes) -> None:
    path = stores.join(root, ".lease-0")
    stores.write_bytes(path, content)
    with pytest.raises(HeldError) as error, lease.hold(root, "curate"):
        pytest.fail("two held it")
    for part in (repr(root), path, "another version", "delete that file"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert stores.read_bytes(path) == content
    assert len(files(root)) == 1, "the refused one left something"
    stores.remove(path)
    with lease.hold(root, "curate"):
        pass


def test_nothing_stays_of_a_lease_that_was_given_back(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wrong"), lease.hold(str(tmp_path / "new" / "run"), "curate"):
        raise ConfigError("wrong")
    assert list(tmp_path.iterdir()) == []
    with lease.hold(str(tmp_path / "new" / "run"), "curate"):
        (tmp_path / "new" / "table").mkdir()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["table"], "a folder with something in it has to stay"


def test_of_many_that_come_together_one_holds_it(root: str) -> None:
    inside, most, entered, refused = 0, 0, 0, 0
    count, start = threading.Lock(), threading.Barrier(8)

    def come() -> None:
        nonlocal inside, most, entered, refused
        start.wait()
        try:
            with lease.hold(root, "curate"):
                with count:
                    inside, entered = inside + 1, entered + 1
                    most = max(most, inside)
                time.sleep(1)
                with count:
                    inside -= 1
        except HeldError:
            with count:
                refused += 1

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entered, refused) == (1, 1, 7)


def test_a_holder_elsewhere_is_believed_until_it_stops_renewing(root: str, brisk: None) -> None:
    far = elsewhere(root, renewed=time.time())
    with pytest.raises(HeldError, match="far"), lease.hold(root, "curate"):
        pytest.fail("two held it")
    lease._write(root, far.model_copy(update={"renewed": time.time() - 2 * lease.EXPIRY}))
    with lease.hold(root, "curate"):
        assert len(files(root)) == 1, "the dead holder's file is still there"


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_a_clock_that_goes_wrong_makes_no_living_holder_dead(root: str, brisk: None, ahead: float) -> None:
    far = elsewhere(root, renewed=time.time() + ahead)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(lease.RENEWAL):
            lease._write(root, far.model_copy(update={"renewed": time.time() + ahead}))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(HeldError, match="far"), lease.hold(root, "curate"):
            pytest.fail("two held it")
    finally:
        over.set()
        thread.join()


def holder(root: str, expiry: float = 60.0) -> subprocess.Popen[str]:
    """A process that holds a run until it is killed; it renews its lease often."""
    code = (
        f"import time; from pipeline.storage import lease; lease.RENEWAL, lease.EXPIRY = 0.1, {expiry}\n"
        f"with lease.hold({root!r}, 'curate') as mine:\n    print('held', flush=True)\n"
        "    while True:\n        time.sleep(0.05)\n        mine.check()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n", process.communicate()[1]
    return process


def test_a_killed_holder_of_this_machine_frees_it_at_once(tmp_path: Path) -> None:
    process = holder(str(tmp_path))
    with pytest.raises(HeldError, match=f"process id {process.pid}"), lease.hold(str(tmp_path), "curate"):
        pytest.fail("two held it")
    process.kill()
    time.sleep(0.2)  # not waited for: a zombie holds nothing either
    with lease.hold(str(tmp_path), "curate"):
        assert len(files(str(tmp_path))) == 1
    process.communicate()


def test_a_holder_that_stalled_too_long_ends(tmp_path: Path) -> None:
    process = holder(str(tmp_path), expiry=1.0)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=120)
    assert "LostError" in said


def test_a_holder_whose_file_was_taken_away_ends(tmp_path: Path) -> None:
    process = holder(str(tmp_path))
    for path in files(str(tmp_path)):
        Path(path).unlink()
    assert "LostError" in process.communicate(timeout=120)[1]


@pytest.fixture
def lost(tmp_path: Path, brisk: None) -> Iterator[Callable[[], str]]:
    """Hold a run; the call takes the lease away and gives the run's root. The end of a lost lease raises as well."""
    root = str(tmp_path / "run")
    holding = lease.hold(root, "curate")
    mine = holding.__enter__()

    def lose() -> str:
        for path in files(root):
            Path(path).unlink()
        assert mine.lost.wait(10)
        return root

    yield lose
    with pytest.raises(LostError, match="another job may hold the run"):
        holding.__exit__(None, None, None)
    lease.check(root)  # it is over


def test_a_lost_lease_interrupts_nothing_and_is_told_at_the_next_checkpoint(lost: Callable[[], str]) -> None:
    """A signal would end a notebook's kernel."""
    signals = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    try:
        root = lost()
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == []
    for path in (root, f"{root}/features/clips"):
        with pytest.raises(LostError, match=repr(root)):
            lease.check(path)
    for path in (f"{root}2/features", str(Path(root).parent)):
        lease.check(path)


def test_nothing_is_written_to_a_table_once_the_lease_is_lost(lost: Callable[[], str], tmp_path: Path) -> None:
    folder = f"{tmp_path}/run/clips"
    table = pa.table({"clip_id": ["a", "b"], "error": pa.nulls(2, pa.string())})
    tables.append(folder, table, {})
    before = [(path, os.stat(path).st_mtime_ns) for path in tables.parts(folder)]

    def more() -> Iterator[pa.Table]:
        yield table
        lost()
        yield table

    writes: list[Callable[[], None]] = [
        lambda: tables.replace_streamed(folder, table.schema, more(), {}),
        lambda: tables.replace(folder, table, {}),
        lambda: tables.append(folder, table.slice(1), {}),
        lambda: tables.drop(folder, ["a"]),
    ]
    for write in writes:
        with pytest.raises(LostError):
            write()
    assert [(path, os.stat(path).st_mtime_ns) for path in tables.parts(folder)] == before


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/run"), lease.hold(str(tmp_path / "file" / "run"), "curate"):
        pytest.fail("it was held")


def job(
    root: Path, body: str, *options: str, expiry: float = 60.0, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A job of these lines, through the command line that all jobs share; it renews its lease often."""
    code = (
        "import sys, time; from jobs import command; from pipeline import errors; from pipeline.storage import lease\n"
        f"lease.RENEWAL, lease.EXPIRY = 0.1, {expiry}\ndef curate(run):\n    print('began', flush=True)\n    {body}\n"
        "command.main(curate, None, default='demo')"
    )
    line = [sys.executable, "-c", code, "--set", f"root={root}", *options]
    known = {**os.environ, **(environment or {})}
    return subprocess.Popen(line, cwd=ROOT, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise errors.ConfigError('data.videos=s3://user:hidden@b/k: it is not there')", 2),
        ("raise errors.LostError('s3://user:hidden@b/k: another job may hold it')", 1),
        ("raise errors.StoreError('s3://user:hidden@b/k: no room')", 1),
        ("raise errors.StageError('index', 'x') from errors.StoreError('s3://user:hidden@b/k: no room')", 1),
        ("raise errors.SpentError('s3://user:hidden@b/k: enough')", 0),
    ],
)
def test_what_a_job_says_at_its_end_has_no_secrets(tmp_path: Path, body: str, status: int) -> None:
    process = job(tmp_path / "run", body)
    output = "".join(process.communicate(timeout=120))
    assert process.returncode == status
    assert "s3://****@b/k: " in output
    assert "hidden" not in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_gives_its_lease_back(tmp_path: Path, number: signal.Signals) -> None:
    process = job(tmp_path, "time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    assert len(files(str(tmp_path))) == 1
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said == "stopped; the same command continues from here\n"
    assert files(str(tmp_path)) == []


def test_a_second_interrupt_while_a_stopped_job_leaves_changes_nothing(tmp_path: Path) -> None:
    leaving = "lambda: (print('leaving', flush=True), time.sleep(1))"
    process = job(tmp_path, f"import atexit; atexit.register({leaving}); print('works', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    for line in ("works\n", "leaving\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert said == "stopped; the same command continues from here\n"
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("pass", 0, ""),
        ("raise errors.ConfigError('seed=x is wrong')", 2, "error: seed=x is wrong\n"),
        ("raise errors.MissingTableError('run index_clips first')", 2, "error: run index_clips first\n"),
        ("raise errors.NothingUsableError('no query moves')", 2, "error: no query moves\n"),
        ("raise errors.InputError('a.csv: no rows')", 2, "error: a.csv: no rows\n"),
        ("raise errors.FingerprintError('clips/: other weights')", 2, "error: clips/: other weights\n"),
        ("raise errors.LostError('another job may hold it')", 1, "error: another job may hold it\n"),
        ("raise errors.StoreError('a: no room')", 1, f"error: a: no room\n{command.CONTINUED}\n"),
        (
            "raise errors.StageError('index', 'a: no room') from errors.DamagedError('b: damaged')",
            1,
            f"error: stage index failed: b: damaged\n{command.CONTINUED}\n",
        ),
        ("raise errors.SpentError('enough')", 0, ""),
        ("sys.exit(0)", 1, "stopped; the same command continues from here\n"),
    ],
)
def test_exit_status_of_a_job(tmp_path: Path, body: str, status: int, said: str) -> None:
    process = job(tmp_path / "run", body)
    assert process.communicate(timeout=120)[1] == said
    assert process.returncode == status
    assert list(tmp_path.iterdir()) == [], "something of the lease is left"


def test_a_job_that_lost_its_lease_fails(tmp_path: Path) -> None:
    process = job(tmp_path, "while True: time.sleep(0.05); lease.check(run.root)", expiry=1.0)
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "could not renew its lease" in said
    assert "Traceback" not in said


def test_a_job_that_cannot_renew_its_lease_says_why(tmp_path: Path) -> None:
    full = (
        "lease._write = lambda *_: (_ for _ in ()).throw(OSError('lease-1: No space left'))\n"
        "    while True: time.sleep(0.05); lease.check(run.root)"
    )
    _, said = job(tmp_path, full, expiry=1.0).communicate(timeout=120)
    *_, last = said.splitlines()
    assert "could not renew its lease for 1 s (lease-1: No space left)" in last
    assert "Once that is mended, give the same command again" in last


def test_a_second_job_is_refused_before_it_begins(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "nightly", "raysubmit_7"):
        process = job(tmp_path, "pass")
        began, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert began == ""
    assert "nightly, running as raysubmit_7" in said


def test_a_submitted_job_needs_a_root_that_stays(tmp_path: Path) -> None:
    submitted = '{"metadata": {"job_submission_id": "raysubmit_7"}}'
    process = job(Path("runs/nowhere"), "pass", environment={"RAY_JOB_CONFIG_JSON_ENV_VAR": submitted})
    assert "root='runs/nowhere': a submitted job" in process.communicate(timeout=120)[1]
    assert process.returncode == 2
