"""Films of the pages: every frame at its rate, within the limit; played on hover, focus and, on demand, by Space."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.pages import pictures
from pipeline.pages.report import environment
from tests.support import browsers


def moving(count: int, side: int = 96) -> np.ndarray:
    """A bright square that crosses the picture."""
    frames = np.full((count, side, side, 3), 40, np.uint8)
    for n in range(count):
        at = n * (side - 16) // max(1, count - 1)
        frames[n, 40:56, at : at + 16] = 230
    return frames


def decoded(uri: str) -> tuple[int, float]:
    with av.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as film:
        stream = film.streams.video[0]
        assert stream.average_rate is not None
        return sum(1 for _ in film.decode(stream)), float(stream.average_rate)


def test_a_film_has_every_frame_at_its_rate_within_the_limit() -> None:
    mask = np.zeros((21, 8, 8), np.uint8)
    picture = pictures.picture(moving(81), (128, 128), 60_000, 81 / 16, mask, film=True)
    assert picture.film is not None
    assert decoded(picture.film) == (81, 16.0)
    assert (picture.frames, picture.count) == (81, 21)
    parts = (picture.film, picture.strip, picture.mask or "")
    assert sum(len(base64.b64decode(part.split(",")[1])) for part in parts) <= 60_000


def test_what_a_strip_holds_whole_stays_a_strip_and_so_does_what_has_no_room() -> None:
    assert pictures.picture(moving(9), (128, 128), 60_000, 1.0, film=True).film is None
    noise = np.random.default_rng(0).integers(0, 255, (81, 240, 416, 3), np.uint8)
    small = pictures.picture(noise, (256, 224), 30_000, 5.0, film=True)
    assert small.film is None
    assert small.strip


def page(tmp_path: Path) -> str:
    mask = np.zeros((5, 8, 8), np.uint8)
    mask[4] = 255
    shown = pictures.picture(moving(33), (128, 128), 60_000, 33 / 16, mask, film=True)
    text = environment().from_string(
        '{% from "pictures.html" import play %}<style>{% include "report.css" %}</style>'
        '<input type="checkbox" id="play" checked aria-label="Play">{{ play(picture, "Clip <b>x</b>") }}'
        '<script>{% include "films.js" %}</script>'
    )
    path = tmp_path / "page.html"
    path.write_text(text.render(picture=shown))
    return path.as_uri()


@pytest.mark.slow
@browsers.needs_chromium
@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_films_play_on_hover_and_focus_and_on_demand_under_reduced_motion(tmp_path: Path, motion: str) -> None:
    with browsers.chromium() as browser:
        shown = browser.new_context(reduced_motion=motion).new_page()  # type: ignore[arg-type]
        wrong: list[str] = []
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.goto(page(tmp_path))
        playing = "!document.querySelector('video').paused"
        assert not shown.evaluate(playing), "it plays by itself"
        shown.hover(".clip")
        shown.wait_for_timeout(400)
        assert shown.evaluate(playing) == (motion != "reduce")
        shown.mouse.move(600, 500)
        shown.focus("video")
        shown.wait_for_timeout(400)
        assert shown.evaluate(playing) == (motion != "reduce")
        shown.keyboard.press("Space")
        shown.wait_for_timeout(400)
        assert shown.evaluate(playing) == (motion == "reduce"), "Space does not turn it round"
        shown.evaluate("document.querySelector('video').pause()")
        shown.evaluate("document.querySelector('video').currentTime = 2")
        shown.wait_for_function("document.querySelector('.mask').style.transform === 'translateX(-80%)'")
        assert not wrong
