"""A Ray that starts on this machine, for one job: how it is started, and where it keeps its files."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

import ray

from pipeline.errors import ConfigError, StageError

log = logging.getLogger(__name__)

STARTS = 3  # tries to start a Ray
TOO_SLOW = "The current node timed out during startup"  # what Ray says then; the exception has no class of its own

LONGEST = 103 if sys.platform == "darwin" else 107  # bytes of a socket's path
_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # Ray's longest, below its folder
SHORT = ("/tmp", "/var/tmp")  # where a short folder may lie


def start(**options: Any) -> None:
    """Start a Ray on this machine's cores, with these options of `ray.init`.

    Ray gives its agent, a Python process, 15 seconds to load, and has no switch for more (issue 65983 of Ray). On a
    busy machine or a slow disk that may not do: it is tried again, when more of the files are in memory. The control
    service of a try that failed ends with this process. Raises ConfigError where Ray cannot keep its files, StageError
    where it never starts.
    """
    folder_options = folders()
    # Pools of fractional demand and Ray's own bookkeeping share two cores best when Ray counts at least four.
    cpus = max(4, os.cpu_count() or 1)
    for left in reversed(range(STARTS)):
        try:
            with _on_loopback():
                ray.init("local", num_cpus=cpus, include_dashboard=False, **folder_options, **options)
            return
        except Exception as error:
            if TOO_SLOW not in str(error):
                raise
            if not left:
                raise StageError("connect", _too_slow(folder_options)) from error
            log.warning("Ray did not start within 30 s, as on a busy machine; tries left: %d", left)


def _too_slow(folder_options: dict[str, Any]) -> str:
    folder = folder_options.get("_temp_dir") or os.path.join(os.environ.get("TMPDIR") or "/tmp", "ray")
    return (
        f"Ray did not start on this machine in 30 s, {STARTS} times. Its agent has 15 s to load: the machine is too "
        f"busy, or the disk with Python's packages too slow. {folder}/session_latest/logs/raylet.err says what it "
        "waited for. Run the same command when the machine has less to do, or start a Ray by `ray start --head` and "
        "name it in RAY_ADDRESS."
    )


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts here listens on 127.0.0.1 alone: on Linux it would answer any host, and run what that sends.

    `_node_ip_address="127.0.0.1"` does not do: Ray 2.60 replaces it by the machine's address. What it does on macOS and
    Windows has no switch of its own on Linux.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def folders() -> dict[str, Any]:
    """The options of ray.init that say where a Ray that starts here keeps its files.

    None are needed where Ray's own choice does: a folder `ray` in RAY_TMPDIR, else in TMPDIR, else in /tmp. Ray keeps
    its sockets there too, whose paths must be short. In a TMPDIR that is too long for them stay the objects that do not
    fit in memory; sockets and logs go to a short folder of this user. Raises ConfigError.
    """
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    value = os.environ.get(name) or "/tmp"
    folder = os.path.join(os.path.abspath(value), "ray")
    _check_writable(name, value, folder)
    if _fits(folder):
        as_ray_has_it = os.path.isabs(value) and os.environ.get("RAY_TMPDIR") != ""
        return {} if as_ray_has_it else {"_temp_dir": folder}
    if name == "RAY_TMPDIR":
        most = LONGEST - len(f"/ray/{_SOCKET}")
        raise ConfigError(
            f"RAY_TMPDIR={value!r}: it has {len(os.fsencode(os.path.abspath(value)))} bytes, and Ray's sockets need a "
            f"folder of at most {most}. Give a shorter one, or unset it."
        )
    short = _short_folder()
    log.warning(
        "TMPDIR is too long for Ray's sockets: they and Ray's logs are in %s; temporary files and objects that do not "
        "fit in memory stay in %s",
        short,
        value,
    )
    return {"_temp_dir": short, "object_spilling_directory": folder}


def _fits(folder: str) -> bool:
    return len(os.fsencode(os.path.join(folder, _SOCKET))) <= LONGEST


def _check_writable(name: str, value: str, folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = f"{folder} is not this user's to write"
    except OSError as error:
        writable, reason = False, str(error.strerror)
    if not writable:
        raise ConfigError(
            f"{name}={value!r}: Ray cannot keep its files there ({reason}). Set {name} to a folder that can be written."
        )


def _short_folder() -> str:
    """A folder with a short path that nobody else can enter. Ray lets everyone write to the folder that it is given, so
    it gets one inside."""
    owns = [os.path.join(base, f"ray-{os.getuid()}") for base in SHORT]
    for own in owns:
        try:
            os.mkdir(own, 0o700)
        except FileExistsError:
            pass  # of an earlier run, or of another that runs now: Ray's sessions have names of their own
        except OSError:
            continue  # this base cannot be written
        status = os.lstat(own)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return os.path.join(own, "s")
    raise ConfigError(
        f"TMPDIR={os.environ.get('TMPDIR')!r} is too long for Ray's sockets, and neither {' nor '.join(owns)} "
        "can be a folder of this user alone. Set RAY_TMPDIR to a short one."
    )
