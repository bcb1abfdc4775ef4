"""An S3 on loopback: moto, and before it a door that can fail requests and keeps a record of them."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

BUCKET = "bucket"
KEY, SECRET, TOKEN = "AKIATESTSTORE1234567", "wJalr+secret/of/the/test/store+EXAMPLE", "FwoGZXIvYXdzEJr-session-token"


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # with its query
    key_id: str  # of its signature

    @property
    def lists(self) -> bool:
        return self.method == "GET" and "list-type=2" in self.path


@dataclass
class Store:
    """`fault` is asked for every request and may answer "503", "500", "403", "404", "expired", "reset", "cut" (half of
    the body) or a number of seconds to wait before going on; None lets it pass."""

    endpoint: str
    moto: str
    fault: Callable[[Request], str | float | None] = lambda request: None
    page: int | None = None  # keys in a page of a listing, if not 1,000
    requests: list[Request] = field(default_factory=list)

    def client(self) -> Any:
        """A plain client that passes by the door."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.moto, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
        )

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def clear(self) -> None:
        """Let everything pass again, and empty the bucket."""
        self.fault, self.page = lambda request: None, None
        self.requests.clear()
        raw, keys = self.client(), self.keys()
        for upload in raw.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            raw.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
        if keys:
            raw.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in keys]})

    def asked(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, f"{r.method} {r.path}")) for r in self.requests)


_BODY = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message><AWSAccessKeyId>{}</AWSAccessKeyId></Error>"
_CODES = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "403": (403, "AccessDenied"),
    "404": (404, "NoSuchKey"),
    "expired": (400, "ExpiredToken"),
}


def _door(store: Store) -> type[BaseHTTPRequestHandler]:
    host = store.moto.removeprefix("http://")

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            credential = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
            request = Request(self.command, self.path, credential[1] if credential else "")
            store.requests.append(request)
            fault = store.fault(request)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()  # with a lingering time of 0, this is a reset
                self.close_connection = True
            elif isinstance(fault, str) and fault in _CODES:
                status, code = _CODES[fault]
                message = f"signed by {request.key_id} with X-Amz-Signature=feedc0ffee"
                text = _BODY.format(code, message, request.key_id).encode()
                self._send(status, {"Content-Type": "application/xml"}, text)
            else:
                time.sleep(fault if isinstance(fault, int | float) else 0)
                self._pass_on(body, cut=fault == "cut")

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any  # noqa: N815

        def _pass_on(self, body: bytes, cut: bool) -> None:
            link = http.client.HTTPConnection(host)
            small = f"&max-keys={store.page}" if store.page and "list-type=2" in self.path else ""
            link.request(self.command, self.path + small, body, dict(self.headers))
            answer = link.getresponse()
            data = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            self._send(answer.status, headers, data, cut)
            link.close()

        def _send(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
            self.send_response_only(status)
            if self.command != "HEAD":
                headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
                headers["Content-Length"] = str(max(len(data), 10) if cut else len(data))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

    return Door


@contextmanager
def served() -> Iterator[Store]:
    """A store with one empty bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = Store("", f"http://{host}:{port}")
    door = ThreadingHTTPServer(("127.0.0.1", 0), _door(store))
    door.daemon_threads = True
    threading.Thread(target=door.serve_forever, daemon=True).start()
    store.endpoint = f"http://127.0.0.1:{door.server_address[1]}"
    store.client().create_bucket(Bucket=BUCKET)
    try:
        yield store
    finally:
        door.shutdown()
        door.server_close()
        server.stop()


def environment(store: Store) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def seen_by(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Let this process use the store, with waits that tests can afford and no rate limit after a throttled request."""
    from pipeline.storage import s3

    for name, value in environment(store).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(s3, "LONGEST_WAIT", 0.01)
    config = {**s3.OPTIONS["config_kwargs"], "retries": {"mode": "standard", "total_max_attempts": 1}}  # type: ignore[dict-item]
    monkeypatch.setitem(s3.OPTIONS, "config_kwargs", config)
    forget()


def forget() -> None:
    """Close the connections of this process and forget their endpoint and credentials."""
    from fsspec.asyn import sync

    from pipeline.storage import s3

    for fs in list(s3.S3._cache.values()):
        if fs._s3 is not None:
            sync(fs.loop, fs._s3creator.__aexit__, None, None, None, timeout=30)
    s3.S3.clear_instance_cache()


def first(count: int, fault: str | float, pattern: str = "") -> Callable[[Request], str | float | None]:
    """A fault for the first `count` requests whose method and path match."""
    left = [count]

    def plan(request: Request) -> str | float | None:
        if left[0] and re.search(pattern, f"{request.method} {request.path}"):
            left[0] -= 1
            return fault
        return None

    return plan
