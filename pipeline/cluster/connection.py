"""Which Ray a job joins, and where a Ray that it starts keeps its files. Nothing here waits longer than TRY seconds."""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
import sys
from typing import Any

import grpc
from ray._private import services
from ray.core.generated import gcs_service_pb2

from pipeline.config.credentials import scrubbed
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

TRY = 30.0  # seconds in which a cluster has to answer
LONGEST = 103 if sys.platform == "darwin" else 107  # bytes of a socket's path
_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # Ray's longest, below its folder
SHORT = ("/tmp", "/var/tmp")  # where a short folder may lie
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):(?P<port>\d{1,5})")
_REMEDY = "Start the cluster, give the address of one that is up, or unset RAY_ADDRESS to work on this machine alone."


# --- a cluster that is up --------------------------------------------------------------------------------------------


def cluster_address() -> str | None:
    """host:port of the cluster that RAY_ADDRESS names, which answers; None where none is named.

    Raises ConfigError for what is no address, or where no Ray cluster answers within TRY seconds.
    """
    value = os.environ.get("RAY_ADDRESS", "")
    if value in ("", "local"):
        return None
    address = _local_address(value) if value == "auto" else value
    if "://" in address:
        raise _refusal(
            value,
            "it is a URL, of Ray Client or of the dashboard, and a job cannot join a cluster by it. Send the job "
            "there (`ray job submit --address URL --working-dir . -- python -m jobs.NAME ...`), or give the HOST:PORT "
            "of the cluster's head, mostly port 6379, on one of its nodes.",
        )
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        raise _refusal(value, "it is no address. Give HOST:PORT of the cluster's head (mostly port 6379), or unset it.")
    failure = _probe(address)
    if failure is not None:
        raise _refusal(value, f"{failure}. {_REMEDY}")
    return address


def rejected(error: Exception) -> ConfigError:
    """The error for a cluster that answers, but that does not take this job."""
    cause = " ".join(str(error.__cause__ or error).split())[:600].rstrip(".")
    return _refusal(
        os.environ.get("RAY_ADDRESS", ""),
        f"a Ray cluster answers there, but this job cannot join it: {cause}. Run the job on one of its nodes, with its "
        "version of Ray and its token, for example by `ray job submit`.",
    )


def _refusal(value: str, sentence: str) -> ConfigError:
    return ConfigError(scrubbed(f"RAY_ADDRESS={value!r}: {sentence}"))


def _local_address(value: str) -> str:
    """The cluster that was started on this machine."""
    try:
        return str(services.canonicalize_bootstrap_address_or_die(value))
    except (ConnectionError, ValueError) as error:
        cause = " ".join(str(error).split()).split(" Please ")[0].rstrip(".")
        raise _refusal(value, f"{cause}. {_REMEDY}") from error


def _probe(address: str) -> str | None:
    """Ask the control service of a cluster's head whether it is alive; why it is not, or None."""
    # Proxies of the environment are for the world outside; Ray itself does not use them either.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(
            "/ray.rpc.NodeInfoGcsService/CheckAlive",
            request_serializer=gcs_service_pb2.CheckAliveRequest.SerializeToString,
            response_deserializer=gcs_service_pb2.CheckAliveReply.FromString,
        )
        try:
            ask(gcs_service_pb2.CheckAliveRequest(), timeout=TRY, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:  # it is a Ray with tokens, which ray.init presents
                return None
            if os.environ.get("RAY_USE_TLS", "0") in ("1", "true", "True") and _connects(address) is None:
                return None  # it speaks TLS, which this question does not
            return _connects(address) or f"what answers there is no Ray cluster's head ({error.code().name})"
    return None


def _connects(address: str) -> str | None:
    """Why no connection can be made to an address; None where one can."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError as error:
        return f"no Ray cluster answered there within {TRY:g} s ({error.strerror or error})"
    return None


# --- a Ray that starts here ------------------------------------------------------------------------------------------


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
