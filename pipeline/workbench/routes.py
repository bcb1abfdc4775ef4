"""The workbench's addresses, for whoever asks: `loopback.LoopbackOnly` decides who may.

GET  /                     the page
GET  /static/NAME          its modules and its style
GET  /state                whether the ranking is another one, and how much has been said
GET  /overview             the first screen
GET  /view, /rows          a view: its size, facets and histogram; a few of its cards
GET  /clip, /mask, /film   one clip: what is known of it, its motion mask, its film
GET  /queries, /changes    the queries with their weights; what other weights would change
GET  /duplicates, /agreement, /handout
GET  /made, /likes         the queries that people made, and what they cost; what an exact likeness costs
POST /decisions, /undo, /weights, /likes, /duplicates, /reload
POST /made, /brought       a query out of a clip; out of a video that is sent
POST /prompted             a query out of a caption, which a job makes
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.errors import ClipError, UsageError
from pipeline.pages import loopback
from pipeline.pages.loopback import LoopbackOnly, Policy, json_body, refusal
from pipeline.workbench import duplicates, facts, handout, made_queries, requests, review
from pipeline.workbench.bench import Bench
from pipeline.workbench.made_queries import Made, Prompted
from pipeline.workbench.overview import overview
from pipeline.workbench.people import Decision, Like, ReadOnlyError, Undo, Weighing
from pipeline.workbench.requests import Requests
from pipeline.workbench.views import SORTS, Spec

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
LONGEST = 16 << 20  # bytes of what is posted
BRINGING = 600  # seconds in which a video has come
PAGE_ROWS = 240  # rows of a view that are sent at once
POLICY = Policy(script="'none'", style="'none'", img="'self' data: blob:", media="'self' blob:")
Handler = Callable[[Request], Any]


def protected(bench: Bench, token: str) -> LoopbackOnly:
    return LoopbackOnly(application(bench), POLICY, token)


def application(bench: Bench) -> Starlette:
    served = Routes(bench)
    routes = [
        Route("/", served.page),
        Route("/static/{name}", served.static),
        *(Route(f"/{name}", _answered(getattr(served, f"get_{name}"))) for name in GETS),
        *(Route(f"/{name}", _posted(getattr(served, f"post_{name}")), methods=["POST"]) for name in POSTS),
        Route("/brought", served.brought, methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return app


GETS = (
    *("state", "overview", "view", "rows", "clip", "mask", "film", "queries", "changes", "duplicates", "agreement"),
    *("handout", "made", "likes"),
)
POSTS = ("decisions", "undo", "weights", "likes", "duplicates", "reload", "made", "prompted")


def _answered(handler: Handler) -> Callable[[Request], Response]:
    """A handler in a thread of its own; what cannot be asked is a sentence."""

    def respond(request: Request) -> Response:
        try:
            return _response(handler(request))
        except (UsageError, ValueError, KeyError) as error:
            return refusal(400, _sentence(error))
        except OSError as error:
            log.warning("%s: %s", request.url.path.rsplit("/", 1)[-1], error)
            return refusal(503, f"the store does not answer as it should: {error}")

    return respond


def _posted(handler: Callable[[bytes], Any]) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        try:
            body = await json_body(request, LONGEST)
        except (ValueError, TimeoutError, ClientDisconnect):
            # The rest of its body is not read, so that the connection cannot be used again.
            return refusal(400, "what is posted here is JSON of a stated length", {"Connection": "close"})
        try:
            return _response(await run_in_threadpool(handler, body))
        except ReadOnlyError as error:
            return refusal(403, str(error))
        except ClipError as error:
            return refusal(410, str(error))
        except (UsageError, ValueError, KeyError) as error:
            return refusal(400, _sentence(error))
        except OSError as error:
            log.warning("what somebody said could not be written: %s", error)
            return refusal(507, f"it could not be written, and is kept in your browser: {error}")

    return respond


def _response(value: Any) -> Response:
    return value if isinstance(value, Response) else JSONResponse(value)


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return str(error)


class Routes:
    """What each address answers."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._static = {path.name: path.read_bytes() for path in TEMPLATES.iterdir() if path.suffix in KINDS}
        self._page = (TEMPLATES / "workbench.html").read_text(encoding="utf-8")
        self._searching = threading.Lock()

    async def page(self, request: Request) -> Response:
        word = loopback.nonce()
        policy = Policy(
            script=f"'nonce-{word}'", style=f"'nonce-{word}'", img="'self' data: blob:", media="'self' blob:"
        )
        return HTMLResponse(self._page.replace("NONCE", word), headers={"Content-Security-Policy": str(policy)})

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            return refusal(404, "there is no such file")
        return Response(self._static[name], media_type=KINDS[Path(name).suffix])

    # --- looking ---

    def get_state(self, request: Request) -> Any:
        return self._bench.state()

    def get_overview(self, request: Request) -> Any:
        asked, bench = request.query_params, self._bench
        bench.people.refresh()
        size = bench.scores.size("all")
        return {
            **overview(bench.index, bench.people, size, asked.get("by", ""), asked.get("since")),
            "about": self.about(),
        }

    def about(self) -> dict[str, Any]:
        index = self._bench.index
        return {
            "groups": index.groups or ["all"],
            "sorts": [*SORTS, "weighted", "like"],
            "queues": review.QUEUES,
            "pictures": index.run.report.pictures,
            "captions": index.run.report.captions,
            "queries": len(index.query_ids),
            "run": self._bench.name,
        }

    def get_view(self, request: Request) -> Any:
        view = self._bench.views.view(self._spec(request))
        spec = view.spec.model_dump()
        return {
            "key": view.key,
            "n": len(view.places),
            "spec": spec,
            "facets": view.facets,
            "histogram": view.histogram,
            "exact": spec["sort"] == "like" and self._bench.scores.is_exact(view.spec.like),
        }

    def get_rows(self, request: Request) -> Any:
        view, bench = self._bench.views.view(self._spec(request)), self._bench
        start = _whole(request, "from", 0, 1 << 31)
        stop = min(_whole(request, "to", 0, 1 << 31), start + PAGE_ROWS)
        return facts.cards(bench.index, bench.people, view.places[start:stop].tolist(), view.spec.group)

    def _spec(self, request: Request) -> Spec:
        queue = request.query_params.get("queue")
        if queue:
            asked = request.query_params
            count, seed = _whole(request, "count", 1, 10_000), _whole(request, "seed", 0, 1 << 31)
            stamp = _whole(request, "stamp", 0, 1 << 53)
            return review.spec(queue, asked.get("group", "all"), asked.get("by", ""), count, seed, stamp)
        return Spec.model_validate_json(request.query_params.get("spec", "{}"))

    def get_clip(self, request: Request) -> Any:
        bench = self._bench
        clip = facts.clip(bench.index, bench.people, _id(request), request.query_params.get("group", "all"))
        return clip if clip is not None else refusal(404, "the run has no such clip")

    def get_mask(self, request: Request) -> Any:
        if not self._bench.index.run.report.pictures:
            return refusal(404, "report.pictures is false")
        mask = facts.mask(self._bench.index, _id(request))
        return mask if mask is not None else refusal(404, "this clip has no motion mask")

    def get_film(self, request: Request) -> Any:
        try:
            data = self._bench.film(request.query_params.get("kind", "clips"), _id(request))
        except ClipError as error:
            return JSONResponse({"error": error.sentence, "code": error.code}, 410)
        if data is None:
            return refusal(404, "the run has no such clip")
        return loopback.film(data, request.headers.get("range"))

    def get_queries(self, request: Request) -> Any:
        self._bench.people.refresh()
        return facts.queries(self._bench.index, self._bench.people, request.query_params.get("by", ""))

    def get_changes(self, request: Request) -> Any:
        weights = json.loads(request.query_params.get("weights", "{}"))
        checked = Weighing(batch="00000000", by="nobody", weights=weights or {"": 1.0})
        group = request.query_params.get("group", "all")
        weights = {query: weight for query, weight in checked.weights.items() if query}
        if request.query_params.get("alone"):
            return self._bench.scores.alone(group, weights)
        changes = self._bench.scores.changes(group, weights)
        cards = {}
        for side in ("came", "went"):
            places = self._bench.index.places(changes[side]).tolist()
            cards[side] = facts.cards(self._bench.index, self._bench.people, places, group)
        return {**changes, **cards}

    def get_duplicates(self, request: Request) -> Any:
        by_bytes = request.query_params.get("kind", "feature") == "bytes"
        threshold = float(request.query_params.get("threshold", "0.97"))
        with self._searching:
            bench = self._bench
            listed = bench.copies().groups if by_bytes else bench.duplicates(threshold)
            shown = [dict(group) for group in listed[:100]]
            ids = [clip["clip_id"] for group in shown for clip in group["clips"]]
            cards = facts.cards(bench.index, bench.people, bench.index.places(ids).tolist(), "all")
            by_id = {card["clip_id"]: card for card in cards}
            for group in shown:
                group["cards"] = [{**by_id[clip["clip_id"]], **clip} for clip in group["clips"]]
            copies = sum(len(group["clips"]) - 1 for group in listed)
            unread = bench.copies().unread if by_bytes else 0
            complete = not unread if by_bytes else bench.scores.features().complete
            counts = {"count": len(listed), "copies": copies, "complete": complete, "unread": unread}
            return {"groups": shown, **counts}

    def get_agreement(self, request: Request) -> Any:
        self._bench.people.refresh()
        return review.agreements(self._bench.index, self._bench.people, request.query_params.get("group", "all"))

    def get_handout(self, request: Request) -> Any:
        bench, view = self._bench, self._bench.views.view(self._spec(request))
        places = view.places[: handout.MOST].tolist()
        cards = facts.cards(bench.index, bench.people, places, view.spec.group)

        def film_of(clip_id: str) -> bytes | None:
            try:
                return bench.film("clips", clip_id)
            except ClipError:
                return None

        page = handout.page(bench.index, bench.people, cards, view.spec.group, film_of)
        return Response(page, media_type="application/octet-stream")

    # --- saying ---

    def post_decisions(self, body: bytes) -> Any:
        fields = _object(body)
        if "view" in fields:  # all clips of a view: it must still be what the person saw
            view = self._bench.views.view(Spec.model_validate(fields.pop("view")))
            count = fields.pop("count", None)
            if count != len(view.places):
                raise ValueError(f"the view holds {len(view.places):,} clips, and {count} were confirmed")
            fields["clips"] = self._bench.index.ids.take(view.places).to_pylist()
        said = Decision.model_validate(fields)
        words = self._bench.people.decide(said)
        return {"batch": said.batch, "words": words if len(words) <= PAGE_ROWS else {}}

    def post_undo(self, body: bytes) -> Any:
        said = Undo.model_validate_json(body)
        words = self._bench.people.undo(said)
        return {"batch": said.batch, "clips": len(words), "words": words if len(words) <= PAGE_ROWS else {}}

    def post_weights(self, body: bytes) -> Any:
        said = Weighing.model_validate_json(body)
        self._bench.people.weigh(said)
        return {"batch": said.batch}

    def post_likes(self, body: bytes) -> Any:
        said = Like.model_validate_json(body)
        self._bench.people.like(said)
        return {"batch": said.batch, "liked": self._bench.people.liked(said.by, said.group)}

    def post_duplicates(self, body: bytes) -> Any:
        if self._bench.people.read_only is not None:
            raise ReadOnlyError(self._bench.people.read_only)
        fields, bench = _object(body), self._bench
        kind = "bytes" if fields.get("kind") == "bytes" else "feature"
        with self._searching:
            listed = (
                bench.copies().groups if kind == "bytes" else bench.duplicates(float(fields.get("threshold", 0.97)))
            )
            return {"batch": duplicates.write(bench.index.run.root, listed, kind)}

    def get_made(self, request: Request) -> Any:
        run = self._bench.index.run
        self._bench.people.refresh()
        return {
            "queries": made_queries.records(run.root),
            "cost": made_queries.cost(run),
            "frames": run.data.frames,
            "fps": run.data.fps,
            "seen": run.geometry[0] / run.geometry[1],
            "prompt_cost": requests.cost(run.root, requests.ONE_PROMPT),
            "requests": requests.listed(run.root, self._bench.people.likes.rows),
        }

    def get_likes(self, request: Request) -> Any:
        """What it costs to make the likeness to some clips exact, and by which command."""
        ids = json.loads(request.query_params.get("ids", "[]"))
        if not isinstance(ids, list) or not ids or not all(isinstance(one, str) for one in ids):
            raise ValueError("ids: name clips")
        root, liked = self._bench.index.run.root, set(self._bench.index.liked_ids)
        left = [one for one in ids if one not in liked]
        return {"cost": requests.cost(root, Requests([], [], left)), "command": requests.command(root)}

    def post_prompted(self, body: bytes) -> Any:
        return self._bench.prompt_query(Prompted.model_validate_json(body))

    def post_made(self, body: bytes) -> Any:
        return self._bench.make_query(Made.model_validate_json(body))

    async def brought(self, request: Request) -> Response:
        """A video of somebody's own, as it comes: into a private file, decoded by the child, and never kept."""
        kind = request.headers.get("content-type", "")
        length = request.headers.get("content-length", "")
        refused = refusal(400, "a video of at most 512 MiB, sent as application/octet-stream", {"Connection": "close"})
        if kind != "application/octet-stream" or not length.isdecimal() or int(length) > made_queries.LONGEST:
            return refused
        handle, path = tempfile.mkstemp(dir=self._bench.folder)
        try:
            received = 0
            with os.fdopen(handle, "wb") as file:
                async with asyncio.timeout(BRINGING):
                    async for chunk in request.stream():
                        received += len(chunk)
                        if received > made_queries.LONGEST:  # a chunked body may be longer than what it states
                            return refused
                        await run_in_threadpool(file.write, chunk)
            said = {name: request.query_params[name] for name in ("batch", "by", "group", "caption")}
            return JSONResponse(await run_in_threadpool(self._bench.make_query, Made.model_validate(said), path))
        except ReadOnlyError as error:
            return refusal(403, str(error))
        except ClipError as error:
            return refusal(410, str(error))
        except (UsageError, ValueError, KeyError, TimeoutError, ClientDisconnect) as error:
            return refusal(400, _sentence(error), {"Connection": "close"})
        except OSError as error:
            return refusal(507, f"it could not be written: {error}")
        finally:
            os.unlink(path)

    def post_reload(self, body: bytes) -> Any:
        self._bench.reload()
        return self._bench.state()


def _object(body: bytes) -> dict[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("what is posted here is an object")
    return value


def _id(request: Request) -> str:
    value = request.query_params.get("id", "")
    if not value:
        raise ValueError("id: name a clip")
    return value


def _whole(request: Request, name: str, low: int, high: int) -> int:
    text = request.query_params.get(name, str(low))
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ValueError(f"{name}: a whole number from {low} to {high}")
    return int(text)
