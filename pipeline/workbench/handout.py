"""A view as one page without a server, to be given away: films, words and notes are inside it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pipeline.workbench.index import Index
from pipeline.workbench.people import People

TEMPLATE = Path(__file__).parent / "templates" / "handout.html"
MOST, BYTES = 500, 40 << 20  # clips of a page, and bytes of its films

FilmOf = Callable[[str], bytes | None]


def page(index: Index, people: People, cards: Sequence[Mapping[str, Any]], group: str, film_of: FilmOf) -> bytes:
    """The page of these cards. Films that the page has no room for, and those that cannot be made, are left out."""
    said = people.said([card["clip_id"] for card in cards], group)
    shown, room = [], BYTES
    for card in cards[:MOST]:
        film = film_of(card["clip_id"]) if index.run.report.pictures else None
        uri = None
        if film is not None and len(film) * 4 / 3 < room:
            uri = f"data:video/mp4;base64,{base64.b64encode(film).decode()}"
            room -= len(uri)
        shown.append({**card, "film": uri, "said": said.get(card["clip_id"])})
    # Not the report's environment: what the report imports takes 700 MB, and the workbench serves for days.
    words = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = words.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(cards=shown, group=group, root=index.run.root, ranking=index.written).encode()
