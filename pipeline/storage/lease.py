"""One writer at a time: a lease under a run's root that its holder renews and that runs out when the holder dies.

Everyone who wants it writes a file of its own, ``ROOT/.lease-NONCE``, and then lists the root. Of two that come
together at least one sees the other, and whoever sees a holder gives way. This needs no lock and no conditional put,
only a store that lists what was written before: local disks, NFS, S3, Google and Azure storage do.

A holder of this machine counts as dead when its process is gone. Any other counts as dead when its file is `EXPIRY`
seconds old by the clock and does not change during `WATCH` seconds more, so that clocks which differ do no harm; the
holder itself gives up after `EXPIRY` seconds without a renewal, before anyone may take its place.

A lease that is lost interrupts nothing: it is remembered, and `check` raises LostError where the holder may stop. Every
write of a table asks it, and so does every stage between two batches or steps.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from pipeline.errors import ConfigError, HeldError, LostError
from pipeline.storage import stores

log = logging.getLogger(__name__)

RENEWAL, EXPIRY, WATCH = 10.0, 60.0, 15.0  # seconds
TOGETHER = 30.0  # seconds in which those who came together must have sorted out who is first
PREFIX = ".lease-"  # of the files of those who hold the run or want to


class Lease:
    """The hold of this process on the run at `root`, until the body of `held` ends."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.lost = threading.Event()
        self.failed = list[str]()  # why renewals since the last good one failed

    def check(self) -> None:
        """Raise LostError once the lease is lost."""
        if self.lost.is_set():
            raise LostError(
                f"root={self.root!r}: this job could not renew its lease for {EXPIRY:g} s "
                f"({self.failed[-1] if self.failed else 'a stalled machine or store'}), and another job may hold the "
                f"run by now. {'Once that is mended, give' if self.failed else 'Give'} the same command again to "
                "continue."
            )


_leases = list[Lease]()  # of this process: a table that is written knows its folder and no lease


def check(path: str) -> None:
    """Raise LostError if `path` lies in a run that this process held, and holds no more. Costs nothing until then."""
    for lease in [lease for lease in _leases if lease.lost.is_set()]:
        if _lies_in(path, lease.root):
            lease.check()


def is_lost(path: str) -> bool:
    """Whether `check` would raise."""
    return any(lease.lost.is_set() and _lies_in(path, lease.root) for lease in _leases)


def _lies_in(path: str, root: str) -> bool:
    inner, outer = (stores.place(place)[1].rstrip("/") for place in (path, root))
    return inner == outer or inner.startswith(f"{outer}/")


class Holder(BaseModel, frozen=True, extra="forbid"):
    """What a lease file says."""

    nonce: str
    job: str
    submission: str | None  # of `ray job submit`
    host: str
    machine: str | None  # tells machines and containers apart where their names do not
    pid: int
    born: str | None  # when the process started, because process ids are used again
    since: datetime.datetime
    renewed: float  # seconds of the Unix clock
    taken: bool  # false while its writer still looks for others


def check_root(root: str) -> None:
    """Raise ConfigError for a local root that is a file, or lies below one. Makes nothing."""
    fs, bare = stores.place(root)
    if "file" not in fs.protocol:
        return
    path = Path(bare).absolute()
    nearest = next(place for place in (path, *path.parents) if os.path.exists(place))
    if not nearest.is_dir():
        raise ConfigError(
            f"root={root!r}: nothing can be written there ({nearest} is a file). Choose another root, or move "
            "that file away."
        )


@contextlib.contextmanager
def hold(root: str, job: str, submission: str | None = None) -> Iterator[Lease]:
    """Hold the run at `root` while the body runs. Raises HeldError where another does or may, and ConfigError where
    nothing can be written.

    When the lease is lost meanwhile, `check` raises LostError from then on, and so does the end of the body. Folders
    that had to be made for the lease and stayed empty are removed again.
    """
    folders = _missing_folders(root)
    try:
        mine = _take(root, job, submission)
    except OSError as error:
        raise ConfigError(
            f"root={root!r}: nothing can be written there ({error}). Mend that, or choose another root."
        ) from error
    lease, over = Lease(root), threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease, mine, over, _clock()), name="lease", daemon=True)
    renewal.start()
    _leases.append(lease)
    try:
        yield lease
    finally:
        over.set()
        renewal.join(5.0)  # it may be waiting for a store that does not answer
        _leases.remove(lease)
        lease.check()
        _remove(root, mine.nonce)
        for folder in folders:
            with contextlib.suppress(OSError):  # it is not empty, so it stays
                folder.rmdir()


# --- taking -----------------------------------------------------------------------------------------------------------


def _take(root: str, job: str, submission: str | None) -> Holder:
    _refuse(root, _others(root))
    mine = Holder(
        nonce=uuid.uuid4().hex,
        job=job,
        submission=submission,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        born=_born(os.getpid()),
        since=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        renewed=time.time(),
        taken=False,
    )
    _write(root, mine)
    try:
        late = time.monotonic() + TOGETHER
        # Those who came together give way to the smallest nonce; that one waits until the others have seen it.
        while others := _others(root, mine):
            first = min(others, key=lambda other: other.nonce)
            if any(o.taken for o in others) or first.nonce < mine.nonce or time.monotonic() > late:
                _refuse(root, others)
            time.sleep(random.uniform(0.05, 0.2))
        return _write(root, mine.model_copy(update={"taken": True}))
    except BaseException:
        _remove(root, mine.nonce)
        raise


def _refuse(root: str, others: list[Holder]) -> None:
    if not others:
        return
    other = min(others, key=lambda o: (not o.taken, o.nonce))
    alias = f" as {other.submission}" if other.submission else ""
    stop = f"`ray job stop {other.submission}`" if other.submission else f"`kill {other.pid}` on {other.host}"
    raise HeldError(
        f"root={root!r} is in use: the job {other.job}, running{alias} on {other.host} with process id {other.pid}, "
        f"has held it since {other.since:%Y-%m-%d %H:%M:%S} UTC; its last sign of life is "
        f"{max(0, time.time() - other.renewed):.0f} s old. Wait for it, stop it ({stop}), or use another root. Should "
        f"it be dead, the root is free {EXPIRY + WATCH:g} s after that sign."
    )


def _others(root: str, mine: Holder | None = None) -> list[Holder]:
    """Whoever else lives and holds the run or wants to. The files of the dead are removed."""
    holders = _read(root, mine)
    living = [holder for holder in holders if not _dead(holder)]
    if living and all(abs(time.time() - holder.renewed) > EXPIRY for holder in living):
        log.warning("waiting %g s to see whether the job %s on %s is alive", WATCH, living[0].job, living[0].host)
        time.sleep(WATCH)
        living = [holder for holder in _read(root, mine) if holder not in holders]
    for nonce in {holder.nonce for holder in holders} - {holder.nonce for holder in living}:
        _remove(root, nonce)
    return living


def _dead(holder: Holder) -> bool:
    """Whether it is certain that a holder's process is no more, because it ran on this machine."""
    return holder.machine is not None and holder.machine == _machine() and _born(holder.pid) != holder.born


def _machine() -> str | None:
    """This boot of this machine and the container in it: where a process id means one process. None where the system
    does not tell (it is not Linux)."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}" if boot.exists() else None


def _born(pid: int) -> str | None:
    """When a process of this machine started, in ticks since its boot; None for one that is no more."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else rest[18]


# --- renewing ---------------------------------------------------------------------------------------------------------


def _renew(lease: Lease, mine: Holder, over: threading.Event, last: float) -> None:
    """Renew until it is `over` or the lease is lost. It was taken at `last`, which may be long before a thread of a
    machine that stalls begins."""
    root = lease.root
    while not over.wait(RENEWAL):
        now = _clock()
        try:
            if now - last > EXPIRY or not _there(root, mine):
                lease.lost.set()
                log.warning("the lease on %s is lost; what runs here stops at its next checkpoint", root)
                return
            _write(root, mine.model_copy(update={"renewed": time.time()}))
            last = now
            lease.failed.clear()
        except Exception as error:  # every store has its own exceptions; whichever it is, the next renewal may succeed
            lease.failed.append(str(error))
            log.warning("the lease on %s was not renewed (%s: %s)", root, type(error).__name__, error)


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


# --- files ------------------------------------------------------------------------------------------------------------


def _path(root: str, nonce: str) -> str:
    return stores.join(root, f"{PREFIX}{nonce}")


def _write(root: str, mine: Holder) -> Holder:
    stores.write_bytes(_path(root, mine.nonce), mine.model_dump_json().encode())
    return mine


def _there(root: str, mine: Holder) -> bool:
    try:
        stores.read_bytes(_path(root, mine.nonce))
    except FileNotFoundError:
        return False
    return True


def _read(root: str, mine: Holder | None) -> list[Holder]:
    """What the lease files say, but for one's own. Raises HeldError for a file that this version cannot read."""
    names = [path.rsplit("/", 1)[-1] for path in stores.files(root)]
    holders = []
    for nonce in (name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)):
        if mine is None or nonce != mine.nonce:
            with contextlib.suppress(FileNotFoundError):  # released since it was listed
                holders.append(_parsed(root, nonce, stores.read_bytes(_path(root, nonce))))
    return holders


def _parsed(root: str, nonce: str, content: bytes) -> Holder:
    try:
        return Holder.model_validate_json(content)
    except ValueError as error:
        raise HeldError(
            f"root={root!r} may be in use: {_path(root, nonce)} is the lease file of a job of another version, or it "
            "is damaged. Wait for that job, stop it, or use another root. If no job works on this root, delete that "
            "file and give the same command again."
        ) from error


def _remove(root: str, nonce: str) -> None:
    fs, bare = stores.place(_path(root, nonce))
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(bare)


def _missing_folders(root: str) -> list[Path]:
    """The local folders that writing below `root` would make, the innermost first."""
    fs, bare = stores.place(root)
    path = Path(bare).absolute()
    return [p for p in (path, *path.parents) if not p.exists()] if "file" in fs.protocol else []
