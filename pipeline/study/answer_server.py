"""A blind study served on loopback: the page, its videos, and where answers go. Nobody outside this machine reaches it.

GET /                      the page
GET /videos/NAME.mp4       a video, whole or a range of it, which browsers need to go back to its beginning
GET /answers?person=NAME   {"revisions": {pair: last revision}} of what this person has answered
POST /answers              one answer; 200 recorded or known already, 409 answered otherwise, 400 none of this study
"""

from __future__ import annotations

import http.server
import json
import logging
import os
import re
import urllib.parse
from http import HTTPStatus
from typing import Any

from pipeline.study.answer_log import AnswerLog, ConflictError
from pipeline.study.answers import LONGEST

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost", "::1")  # a page of a foreign host name that resolves to loopback gets nothing
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CHUNK = 1 << 20


class AnswerServer(http.server.ThreadingHTTPServer):
    """Serves a page and the videos of a local folder. Port 0: any that is free. Raises OSError where it is taken."""

    daemon_threads = True

    def __init__(self, port: int, page: bytes, folder: str, answers: AnswerLog) -> None:
        self.page, self.folder, self.answers = page, folder, answers
        self.names = {name for name in os.listdir(folder) if re.fullmatch(r"[0-9a-f]+\.mp4", name)}
        super().__init__((LOOPBACK, port), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: AnswerServer
    protocol_version = "HTTP/1.1"
    server_version = "study"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        if not self._from_here():
            return
        asked = urllib.parse.urlsplit(self.path)
        if asked.path in ("/", "/index.html"):
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        elif asked.path == "/answers":
            person = urllib.parse.parse_qs(asked.query).get("person", [""])[0]
            self._tell(HTTPStatus.OK, {"revisions": self.server.answers.revisions(person)})
        elif asked.path.removeprefix("/videos/") in self.server.names:
            self._video(os.path.join(self.server.folder, asked.path.removeprefix("/videos/")))
        else:
            self._tell(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        if not self._from_here():
            return
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if self.path != "/answers" or kind != "application/json" or not length.isdecimal() or int(length) > LONGEST:
            self.close_connection = True  # its body is not read
            self._tell(HTTPStatus.BAD_REQUEST, {"error": "an answer is JSON, posted to /answers"})
            return
        try:
            new = self.server.answers.add(self.rfile.read(int(length)))
            self._tell(HTTPStatus.OK, {"recorded": new})
        except ConflictError as error:
            self._tell(HTTPStatus.CONFLICT, {"error": str(error)})
        except ValueError as error:
            self._tell(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError as error:
            log.warning("an answer could not be written: %s", error)
            self._tell(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "it could not be written"})

    def _from_here(self) -> bool:
        """Whether the request is for this machine by name, and not another site's doing."""
        origin = self.headers.get("Origin")
        if _host(f"//{self.headers.get('Host', '')}") in HOSTS and (origin is None or _host(origin) in HOSTS):
            return True
        self.close_connection = True
        self._tell(HTTPStatus.FORBIDDEN, {"error": "this page is served to 127.0.0.1 alone"})
        return False

    def _tell(self, status: HTTPStatus, held: dict[str, Any]) -> None:
        self._send(status, json.dumps(held).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self._head(status, kind, len(body), {"Cache-Control": "no-store", "Content-Security-Policy": POLICY})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, length: int, more: dict[str, str]) -> None:
        self.send_response(status)
        plain = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **plain, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def _video(self, path: str) -> None:
        if not os.path.exists(path):
            log.warning("a video of the study is gone: %s", path)
            self._tell(HTTPStatus.NOT_FOUND, {"error": "this video is gone"})
            return
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), int(asked[2] or size - 1)) if asked else (0, size - 1)
            last = min(last, size - 1)
            if first > last:
                self._head(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "video/mp4", 0, {"Content-Range": f"bytes */{size}"}
                )
                return
            part = {"Content-Range": f"bytes {first}-{last}/{size}"} if asked else {}
            status = HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK
            self._head(status, "video/mp4", last + 1 - first, {"Accept-Ranges": "bytes", **part})
            file.seek(first)
            left = 0 if self.command == "HEAD" else last + 1 - first
            while left:
                data = file.read(min(CHUNK, left))
                self.wfile.write(data)
                left -= len(data)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the browser went to the next video
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _host(address: str) -> str | None:
    try:
        return urllib.parse.urlsplit(address).hostname
    except ValueError:  # an address that is none, such as //[
        return None
