"""Which Ray a job joins. Nothing here waits longer than TRY seconds."""

from __future__ import annotations

import os
import re
import socket

import grpc
from ray._private import services
from ray.core.generated import gcs_service_pb2

from pipeline.config.credentials import scrubbed
from pipeline.errors import ConfigError

TRY = 30.0  # seconds in which a cluster has to answer
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):(?P<port>\d{1,5})")
_REMEDY = "Start the cluster, give the address of one that is up, or unset RAY_ADDRESS to work on this machine alone."


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
