"""A blind study served on loopback: the page, its videos, and where answers go. Nobody outside this machine reaches it.

GET /                      the page
GET /videos/NAME.mp4       a video, whole or a range of it, which browsers need to go back to its beginning
GET /answers?person=NAME   {"revisions": {pair: last revision}} of what this person has answered
POST /answers              one answer; 200 recorded or known already, 409 answered otherwise, 400 none of this study
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import urllib.parse

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.study.answer_log import AnswerLog, ConflictError
from pipeline.study.answers import LONGEST

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost", "::1")  # a page of a foreign host name that resolves to loopback gets nothing
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
VIDEO = "video/mp4"
IDLE = 60  # seconds that a browser may leave a connection, or half an answer, without a byte
LEAVING = 2  # seconds that responses under way get when the server ends; a paused video would take for ever


class AnswerServer:
    """Serves a page and the videos of a local folder. Port 0: any that is free. Raises OSError where it is taken."""

    def __init__(self, port: int, page: bytes, folder: str, answers: AnswerLog) -> None:
        self._socket = socket.create_server((LOOPBACK, port))  # from here on, connections wait for `serve`
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            LoopbackOnly(application(page, folder, answers)),
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


def application(page: bytes, folder: str, answers: AnswerLog) -> Starlette:
    """The four addresses, for whoever asks: `LoopbackOnly` decides who may."""
    names = {name for name in os.listdir(folder) if re.fullmatch(r"[0-9a-f]+\.mp4", name)}

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page)

    def send_video(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in names:
            raise HTTPException(404)
        path = os.path.join(folder, name)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            log.warning("a video of the study is gone: %s", path)
            raise HTTPException(404, "this video is gone") from None
        return FileResponse(path, media_type=VIDEO, stat_result=status)

    def list_revisions(request: Request) -> Response:
        return JSONResponse({"revisions": answers.revisions(request.query_params.get("person", ""))})

    async def record_answer(request: Request) -> Response:
        try:
            body = await answer_body(request)
        except (ValueError, TimeoutError, ClientDisconnect):
            # The rest of its body is not read, so that the connection cannot be used again.
            return refusal(400, "an answer is JSON, posted to /answers", {"Connection": "close"})
        try:
            recorded = await run_in_threadpool(answers.add, body)
        except ConflictError as error:
            return refusal(409, str(error))
        except ValueError as error:
            return refusal(400, str(error))
        except OSError as error:
            log.warning("an answer could not be written: %s", error)
            return refusal(500, "it could not be written")
        return JSONResponse({"recorded": recorded})

    routes = [
        Route("/", show_page),
        Route("/index.html", show_page),
        Route("/videos/{name}", send_video),
        Route("/answers", list_revisions, methods=["GET"]),
        Route("/answers", record_answer, methods=["POST"]),
    ]
    served = Starlette(routes=routes)
    served.router.redirect_slashes = False
    return served


async def answer_body(request: Request) -> bytes:
    """What was posted as an answer. Raises ValueError where it is not JSON, states no length or is too long, and
    TimeoutError where it does not come. JSON, because no page of another site may post that without being asked for
    leave, which it does not get here."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    length = request.headers.get("content-length", "")
    if kind != "application/json" or not length.isdecimal() or int(length) > LONGEST:
        raise ValueError("not JSON of a stated length")
    body = b""
    async with asyncio.timeout(IDLE):
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST:  # a chunked body may be longer than what it states
                raise ValueError("longer than stated")
    return body


def refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


class LoopbackOnly:
    """Refuses what is not for this machine by name, or is another site's doing, and protects every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refusal = refusal(403, f"this page is served to {LOOPBACK} alone", {"Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Content-Security-Policy"] = POLICY
                if headers.get("Content-Type") != VIDEO:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        app = self._app if is_local(Headers(scope=scope)) else self._refusal
        try:
            await app(scope, receive, send_protected)
        except Exception:  # its sender has got status 500 from Starlette
            log.exception("%s %s failed", scope["method"], scope["path"])


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
