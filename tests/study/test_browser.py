"""The blind study's page in a real browser: Debian's chromium (`apt-get install chromium`), driven by playwright, which
needs no browser of its own. Where there is no chromium on the machine these tests are skipped."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from jobs import study as job
from pipeline.config import Run
from pipeline.study import answers, handout, results
from pipeline.study.answer_log import AnswerLog
from pipeline.study.answer_server import AnswerServer
from pipeline.study.pairs import Key, Pair
from tests.support import browsers
from tests.support.studies import answer, key_of, known, lines, paper_key, recorded_answers, run_of

pytestmark = [pytest.mark.slow, browsers.needs_chromium]

KEYS = {"left": ("ArrowLeft", "1"), "tie": ("ArrowDown", "0"), "right": ("ArrowRight", "2")}
TIMEOUT = 30_000  # milliseconds, of which a machine with nothing else to do needs a hundred
READY = "[data-choice=left][aria-disabled=false]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    browser_page = context.new_page()
    browser_page.set_default_timeout(TIMEOUT)
    wrong: list[str] = []
    browser_page.on("pageerror", lambda error: wrong.append(str(error)))
    browser_page.on("dialog", lambda dialog: wrong.append(dialog.message))
    yield browser_page
    context.close()
    assert not wrong, "the page threw an error, or a caption was executed"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_of(tmp_path_factory.mktemp("small"), captions=3, catch=0.2)
    job.study(run)
    return run


def hashed(text: str) -> int:
    """The page's hash: FNV-1a over UTF-8, then MurmurHash3's finalizer."""
    h = 0x811C9DC5
    for byte in text.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


def shuffled(key: Key, person: str) -> list[tuple[str, str]]:
    """The videos (left, right) in the order in which a person sees them."""
    entries = []
    for pair in key.pairs:
        own = json.dumps([key.asked["seed"], person, pair.pair], separators=(",", ":"), ensure_ascii=False)
        first, second = sorted(side.video for side in pair.sides)
        sides = (first, second) if hashed(f"side {own}") >> 31 else (second, first)
        entries.append((hashed(f"order {own}"), pair.pair, sides))
    return [sides for *_, sides in sorted(entries)]


def begin(page: Page, person: str) -> None:
    page.fill("#person", person)
    page.keyboard.press("Enter")
    page.wait_for_selector(READY)


def shown(page: Page) -> tuple[str, str]:
    """The names of the videos on the left and on the right."""
    left, right = page.eval_on_selector_all(".film video", "all => all.map(v => v.src.split('/').pop().split('.')[0])")
    return left, right


def press(page: Page, key: str) -> None:
    """Press a key, and wait for the next pair or the end."""
    before = page.text_content("#count")
    page.keyboard.press(key)
    page.wait_for_function(
        "([before, ready]) => !document.getElementById('done').hidden || "
        "(document.getElementById('count').textContent !== before && document.querySelector(ready))",
        arg=[before, READY],
    )


def test_order_and_sides_belong_to_the_person_and_favour_no_arm() -> None:
    key = paper_key()
    ours = {pair.sides[0].video for pair in key.pairs}
    orders = [shuffled(key, f"person {n}") for n in range(40)]
    assert len({tuple(order) for order in orders}) == 40
    lefts = [np.mean([left in ours for left, _ in order]) for order in orders]
    assert abs(np.mean(lefts) - 0.5) < 0.04
    assert max(lefts) < 0.75
    places = [[pair for pair, _ in sorted(enumerate(order), key=lambda p: min(p[1]))] for order in orders]
    correlation = np.corrcoef(places)[np.triu_indices(40, 1)]
    assert np.abs(correlation).mean() < 0.2, "people see the pairs in similar orders"


def test_a_page_from_a_file_is_judged_by_keyboard_resumed_and_downloaded(
    small: Run, page: Page, tmp_path: Path
) -> None:
    key = key_of(small)
    page.goto((Path(small.root) / "study" / "handout" / "index.html").as_uri())
    assert page.evaluate("document.activeElement.id") == "person"
    begin(page, "  Änna   K. ")
    order, said = shuffled(key, "Änna K."), dict[tuple[str, str], str]()
    assert len(order) == len(key.pairs) == 5
    for n, (choice, sides) in enumerate(zip(("left", "tie", "right", "left", "tie"), order, strict=True)):
        assert shown(page) == sides
        if n == 2:
            page.keyboard.press("Backspace")
            page.wait_for_function("document.getElementById('count').textContent === 'Pair 2 of 5'")
            page.wait_for_selector(READY)
            assert page.get_attribute("[data-choice=tie]", "aria-pressed") == "true"
            press(page, "2")
            said[order[1]] = "right"
            page.reload()
            page.wait_for_selector(READY)
            assert page.text_content("#count") == "Pair 3 of 5", "the reload lost answers"
            assert page.text_content("#whose") == "Änna K."
        said.setdefault(sides, choice)
        press(page, KEYS[choice][n % 2])
    page.wait_for_selector("#done:not([hidden])")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == f"answers-{key.study[:8]}-Änna_K.jsonl"
    download.value.save_as(tmp_path / "answers.jsonl")
    downloaded_answers = answers.read(str(tmp_path / "answers.jsonl"), key)
    assert {(a.left, a.right): a.choice for a in downloaded_answers} == said
    assert {a.person for a in downloaded_answers} == {"Änna K."}
    assert Counter(a.revision for a in downloaded_answers) == {0: 4, 1: 1}
    page.reload()
    page.wait_for_selector("#done:not([hidden])")


def test_videos_loop_in_step_pause_and_are_chosen_by_touch(small: Run, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto((Path(small.root) / "study" / "handout" / "index.html").as_uri())
    page.fill("#person", "x")
    page.tap("text=Begin")
    page.wait_for_selector(READY)
    gaps = page.evaluate(
        """() => new Promise((done) => {
          const films = [...document.querySelectorAll(".film video")], seen = [], begun = performance.now();
          let loops = 0;
          (function look() {
            const now = films.map((video) => video.currentTime);
            if (seen.length && now[0] < seen[seen.length - 1][0] - 0.5) loops += 1;
            seen.push(now);
            if (loops < 3 && performance.now() - begun < 20000) requestAnimationFrame(look); else done(seen);
          })();
        })"""
    )
    times = np.array(gaps)
    for one in times.T:
        assert (np.diff(one) < -0.5).sum() >= 2, "it does not loop"
    assert np.quantile(np.abs(times[:, 0] - times[:, 1]), 0.9) < 1 / 8, "the two are a frame apart"
    page.tap("#pause")
    page.wait_for_timeout(100)
    at = page.eval_on_selector(".film video", "v => v.currentTime")
    page.wait_for_timeout(300)
    assert page.eval_on_selector(".film video", "v => v.paused && v.currentTime") == at
    for choice in ("tie", "left", "right"):
        before = page.text_content("#count")
        page.wait_for_selector(READY)
        page.tap(f"[data-choice={choice}]")
        page.wait_for_function("b => document.getElementById('count').textContent !== b", arg=before)
    stored_answers = page.evaluate(
        "Object.values(localStorage).map(v => JSON.parse(v)).filter(v => typeof v === 'object')[0]"
    )
    assert Counter(v["answer"]["choice"] for v in stored_answers.values()) == {"tie": 1, "left": 1, "right": 1}
    context.close()


class Served:
    """A study's server that can be stopped and started again on its port, as its job would."""

    def __init__(self, run: Run, path: Path | None = None) -> None:
        self.run, self.key, self.port = run, key_of(run), 0
        self.path = path or Path(handout.place(run.root, "answers.sqlite"))
        self.start()

    def start(self) -> None:
        self.log = AnswerLog(str(self.path), self.key)
        videos = handout.place(self.run.root, "handout", "videos")
        self.server = AnswerServer(self.port, handout.page(self.key, served=True), videos, self.log)
        self.port = self.server.port
        self.thread = browsers.served(self.server)

    def stop(self) -> None:
        browsers.stopped(self.server, self.thread)
        self.log.close()

    def post(self, given: answers.Answer) -> None:
        where, kind = f"http://127.0.0.1:{self.port}/answers", {"Content-Type": "application/json"}
        request = urllib.request.Request(where, given.model_dump_json().encode(), kind, method="POST")
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    run = run_of(tmp_path_factory.mktemp("served"), captions=50, catch=0.1)
    job.study(run)
    study_server = Served(run)
    yield study_server
    study_server.stop()


def pair_of(key: Key, sides: tuple[str, str]) -> Pair:
    return next(pair for pair in key.pairs if sides[0] in {side.video for side in pair.sides})


def preferred(key: Key, sides: tuple[str, str], rng: np.random.Generator) -> str:
    """What someone says who prefers the first arm as people in the paper prefer Motive: 74.1 / 12.3 / 13.6 %."""
    pair = pair_of(key, sides)
    video = known(pair)
    if pair.kind == "arms":
        video = (pair.sides[0].video, None, pair.sides[1].video)[rng.choice(3, p=(0.741, 0.123, 0.136))]
    return "tie" if video is None else "left" if video == sides[0] else "right"


def test_a_served_session_with_reload_and_restart_and_850_judgements_recover_the_preference(
    served: Served, page: Page
) -> None:
    key, rng = served.key, np.random.default_rng(17)
    order, said = shuffled(key, "in a browser"), dict[tuple[str, str], str]()
    page.goto(f"http://127.0.0.1:{served.port}/")
    begin(page, "in a browser")
    for n, sides in enumerate(order):
        assert shown(page) == sides
        said[sides] = preferred(key, sides, rng)
        if n == 20:
            served.stop()
            page.keyboard.press(KEYS[said[sides]][0])
            page.wait_for_selector("#notice:has-text('could not be sent')")
            served.start()
            page.wait_for_selector("#notice", state="hidden")
            page.wait_for_function("document.getElementById('count').textContent.startsWith('Pair 22')")
            page.wait_for_selector(READY)
            continue
        press(page, KEYS[said[sides]][n % 2])
        if n == 30:
            page.reload()
            page.wait_for_selector(READY)
            assert page.text_content("#count") == "Pair 32 of 56"
    page.wait_for_selector("#told:has-text('have been recorded')")
    mine = answers.read(str(served.path), key)
    assert {(a.left, a.right): a.choice for a in mine} == said, "an answer was lost, doubled or turned round"

    others = []
    for n in range(16):
        for sides in shuffled(key, f"person {n:02d}"):
            pair, choice = pair_of(key, sides), preferred(key, sides, rng)
            video = None if choice == "tie" else sides[0] if choice == "left" else sides[1]
            others.append(answer(key, pair, f"person {n:02d}", video, flip=sides[0] != pair.sides[0].video))
    served.path.with_name("answers of others.jsonl").write_text(lines(others))
    given = answers.read(str(served.path.parent), key)
    summary: dict[str, Any] = results.write(served.run, key, given)
    row = summary["scores"]["passed"][0]
    assert (row["judgements"], row["people"], row["videos"]) == (850, 17, 50)
    assert row["win_low"] < 0.741 < row["win_high"]
    assert row["tie_low"] < 0.123 < row["tie_high"]
    assert row["loss_low"] < 0.136 < row["loss_high"]
    assert row["win_low"] > 0.65
    assert all(person["counts"] for person in summary["people"])
    assert summary["left"]["left_low"] < 0.5 < summary["left"]["left_high"]


def test_another_browser_goes_on_where_the_server_says(served: Served, browser: Browser) -> None:
    key, person = served.key, "two browsers"
    for sides in shuffled(key, person)[:3]:
        pair = pair_of(key, sides)
        served.post(answer(key, pair, person, None, flip=sides[0] != pair.sides[0].video))
    context = browser.new_context()
    page, asked = context.new_page(), list[str]()
    page.set_default_timeout(TIMEOUT)
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    page.goto(f"http://127.0.0.1:{served.port}/")
    begin(page, person)
    assert page.text_content("#count") == "Pair 4 of 56"
    assert asked == ["3 pairs have been judged as “two browsers” already. Is that you?"]
    context.close()


# --- answers that could be lost --------------------------------------------------------------------------------------


@pytest.fixture
def serving(small: Run, tmp_path: Path) -> Iterator[Served]:
    """The small study, served with a database of this test's own."""
    study_server = Served(small, tmp_path / "answers.sqlite")
    yield study_server
    study_server.stop()


def judge_all(page: Page, count: int) -> None:
    for _ in range(count):
        press(page, "ArrowLeft")
    page.wait_for_selector("#done:not([hidden])")


def recorded(served: Served) -> set[tuple[str, str]]:
    return {(one.person, one.pair) for one in recorded_answers(served.path)}


def test_answers_that_are_given_while_another_is_being_sent_are_sent_too(serving: Served, page: Page) -> None:
    page.add_init_script(
        """const send = window.fetch;
        window.fetch = async (...words) => {
          if (words[1]) await new Promise((resolve) => setTimeout(resolve, 1500));
          return send(...words);
        };"""
    )
    page.goto(f"http://127.0.0.1:{serving.port}/")
    begin(page, "fast")
    judge_all(page, 5)
    page.wait_for_selector("#told:has-text('have been recorded')")
    assert recorded(serving) == {("fast", pair.pair) for pair in serving.key.pairs}


def test_what_is_still_to_be_sent_is_sent_after_a_reload_whoever_sits_there(serving: Served, page: Page) -> None:
    page.route("**/answers", lambda route: route.abort())
    page.goto(f"http://127.0.0.1:{serving.port}/")
    begin(page, "Anna")
    judge_all(page, 5)
    page.wait_for_selector("#told:has-text('5 answers are still to be sent')")
    page.click("#done .other")
    begin(page, "Bert")
    press(page, "ArrowDown")
    page.click("#judging .other")
    assert recorded(serving) == set()
    page.unroute("**/answers")
    page.reload()
    begin(page, "Carla")
    press(page, "ArrowRight")
    page.wait_for_function("document.getElementById('notice').hidden")
    page.click("#judging .other")
    page.fill("#person", "Anna")
    page.keyboard.press("Enter")
    page.wait_for_selector("#told:has-text('have been recorded')")
    assert Counter(person for person, _ in recorded(serving)) == {"Anna": 5, "Bert": 1, "Carla": 1}


@pytest.mark.parametrize("status", [400, 404])
def test_an_answer_that_is_refused_is_not_said_to_be_recorded(serving: Served, page: Page, status: int) -> None:
    page.route("**/answers", lambda route: route.fulfill(status=status, body="no such page"))
    page.goto(f"http://127.0.0.1:{serving.port}/")
    begin(page, "Anna")
    judge_all(page, 5)
    page.wait_for_selector("#told:has-text('5 answers are still to be sent')")
    assert page.is_visible("#download")
    assert f"{status}: no such page" in (page.text_content("#notice") or "")
    page.unroute("**/answers")
    page.wait_for_selector("#told:has-text('have been recorded')")
    assert len(recorded(serving)) == 5


def test_two_tabs_of_one_person_keep_each_others_answers(small: Run, page: Page) -> None:
    where = (Path(small.root) / "study" / "handout" / "index.html").as_uri()
    page.goto(where)
    begin(page, "Anna")
    other = page.context.new_page()
    other.set_default_timeout(TIMEOUT)
    other.goto(where)
    other.wait_for_selector(READY)
    press(page, "ArrowLeft")
    press(page, "ArrowLeft")
    press(other, "ArrowRight")
    other.reload()
    other.wait_for_selector(READY)
    assert other.text_content("#count") == "Pair 3 of 5", "the tabs lost each other's answers"
    stored_text = other.evaluate("Object.entries(localStorage).find(([key]) => key.endsWith('answers of Anna'))[1]")
    given = [one["answer"] for one in json.loads(stored_text).values()]
    assert sorted((one["revision"], one["choice"]) for one in given) == [(0, "left"), (1, "right")]


def test_a_pair_that_cannot_be_played_is_skipped_by_keyboard(serving: Served, page: Page) -> None:
    page.route("**/*.mp4", lambda route: route.abort())
    page.goto(f"http://127.0.0.1:{serving.port}/")
    page.fill("#person", "Anna")
    page.keyboard.press("Enter")
    page.wait_for_selector("#skip:not([hidden])")
    page.focus("#skip")
    page.wait_for_timeout(4000)  # the pair is tried again meanwhile
    assert page.evaluate("document.activeElement.id") == "skip", "trying again took the focus away"
    page.unroute("**/*.mp4")
    page.wait_for_selector(READY)
    assert page.is_hidden("#skip")
    assert page.evaluate("document.activeElement.id") == "question"
