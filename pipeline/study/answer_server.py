"""A blind study served on loopback: the page, its videos, and where answers go. Nobody outside this machine reaches it.

GET /                      the page
GET /videos/NAME.mp4       a video, whole or a range of it, which browsers need to go back to its beginning
GET /answers?person=NAME   {"revisions": {pair: last revision}} of what this person has answered
POST /answers              one answer; 200 recorded or known already, 409 answered otherwise, 400 none of this study
"""

from __future__ import annotations

import logging
import os
import re

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.pages.loopback import VIDEO, LoopbackOnly, Policy, Server, json_body, refusal
from pipeline.study.answer_log import AnswerLog, ConflictError
from pipeline.study.answers import LONGEST

log = logging.getLogger(__name__)

POLICY = Policy(script="'unsafe-inline'", style="'unsafe-inline'")


class AnswerServer(Server):
    """Serves a page and the videos of a local folder. Port 0: any that is free. Raises OSError where it is taken."""

    def __init__(self, port: int, page: bytes, folder: str, answers: AnswerLog) -> None:
        super().__init__(port, LoopbackOnly(application(page, folder, answers), POLICY))


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
            body = await json_body(request, LONGEST)
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
