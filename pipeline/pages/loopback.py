"""Pages served on loopback: one place for who may ask, and for what protects every answer.

A request names this machine as its host, and as the site that it comes from if it names one; where a server has a
token, its path begins with it. Every response says that it runs no script and shows no picture but its own.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import socket
import urllib.parse
from dataclasses import dataclass

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost", "::1")  # a page of a foreign host name that resolves to loopback gets nothing
VIDEO = "video/mp4"
IDLE = 60  # seconds that a browser may leave a connection, or half an answer, without a byte
LEAVING = 2  # seconds that responses under way get when the server ends; a paused video would take for ever
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Server:
    """Serves an application on loopback. Port 0: any that is free. Raises OSError where it is taken."""

    def __init__(self, port: int, application: ASGIApp) -> None:
        self._socket = socket.create_server((LOOPBACK, port))  # from here on, connections wait for `serve`
        # Connections inherit it: else the end of each answer waits 40 ms until the browser has acknowledged its start.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application,
            loop="asyncio",
            http="h11",  # whatever else is installed, one parser, and a strict one
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # else a video that is cut off at the end is a traceback; failures are logged below
            access_log=False,
            proxy_headers=False,  # nothing that a request claims about its sender is believed
            server_header=False,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=LEAVING,
        )
        self._server = uvicorn.Server(config)

    def serve(self) -> None:
        """Serve until `stop`, which another thread calls, or until SIGINT or SIGTERM, whose own handlers then run: by
        default KeyboardInterrupt is raised."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        self._server.should_exit = True


@dataclass(frozen=True)
class Policy:
    """A Content-Security-Policy. A page that runs scripts by `nonce` says so in a header of its own."""

    script: str
    style: str
    img: str = "data:"
    media: str = "'self'"

    def __str__(self) -> str:
        return (
            f"default-src 'none'; script-src {self.script}; style-src {self.style}; img-src {self.img}; "
            f"media-src {self.media}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )


def nonce() -> str:
    return secrets.token_urlsafe(16)


class LoopbackOnly:
    """Refuses what is not for this machine by name, is another site's doing, or lacks the token; protects every
    response."""

    def __init__(self, app: ASGIApp, policy: Policy, token: str | None = None) -> None:
        self._app, self._policy, self._token = app, str(policy), token
        self._foreign = refusal(403, f"this page is served to {LOOPBACK} alone", {"Connection": "close"})
        self._unknown = refusal(
            403, "this address lacks the token; take the address that the command printed", {"Connection": "close"}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers.setdefault("Content-Security-Policy", self._policy)
                if headers.get("Content-Type") != VIDEO:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            await self._responder(scope)(scope, receive, send_protected)
        except Exception:  # its sender has got status 500 from Starlette
            log.exception("%s %s failed", scope["method"], self._without_token(scope["path"]))

    def _responder(self, scope: Scope) -> ASGIApp:
        if not is_local(Headers(scope=scope)):
            return self._foreign
        if self._token is None:
            return self._app
        first, slash, rest = scope["path"].removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(first.encode("utf-8", "replace"), self._token.encode()):
            return self._unknown
        scope["path"] = f"/{rest}"
        scope.pop("raw_path", None)
        return self._app

    def _without_token(self, path: str) -> str:
        return path if self._token is None else path.replace(self._token, "...")


def is_local(headers: Headers) -> bool:
    """Whether a request names this machine as its host, and as the site that it comes from, if it names one."""
    hosts = [host_name(f"//{host}") for host in headers.getlist("host")]
    origins = [host_name(origin) for origin in headers.getlist("origin")]
    return bool(hosts) and all(name in HOSTS for name in hosts + origins)


def host_name(address: str) -> str | None:
    try:
        return urllib.parse.urlsplit(address).hostname
    except ValueError:  # an address that is none, such as //[
        return None


def refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


async def json_body(request: Request, longest: int) -> bytes:
    """What was posted as JSON. Raises ValueError where it is not JSON, states no length or is too long, and
    TimeoutError where it does not come. JSON, because no page of another site may post that without being asked for
    leave, which it does not get here."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    length = request.headers.get("content-length", "")
    if kind != "application/json" or not length.isdecimal() or int(length) > longest:
        raise ValueError("not JSON of a stated length")
    body = b""
    async with asyncio.timeout(IDLE):
        async for chunk in request.stream():
            body += chunk
            if len(body) > longest:  # a chunked body may be longer than what it states
                raise ValueError("longer than stated")
    return body


def film(data: bytes, header: str | None) -> Response:
    """An mp4 film in memory, whole or the one range that a request's `Range` header asks for."""
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600"}
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):  # several ranges, or none of ours: the whole is a right answer
        return Response(data, 200, headers, VIDEO)
    first, last = match.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last), len(data) - 1) if first and last else len(data) - 1
    if start > end:
        return Response(b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"}, VIDEO)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return Response(data[start : end + 1], 206, headers, VIDEO)
