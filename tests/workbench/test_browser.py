"""The workbench in a real browser, by keyboard: Debian's chromium by playwright; skipped where there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from pipeline import tables
from pipeline.config import Run
from pipeline.storage import stores
from pipeline.workbench import made_queries, requests
from tests.support import browsers
from tests.support.workbenches import GONE, HOSTILE, Served, run_of, words, write_lawfulness

pytestmark = [pytest.mark.slow, browsers.needs_chromium]
TIMEOUT = 60_000  # milliseconds, of which a machine with nothing else to do needs a hundred
ROOT = Path(__file__).parents[2]
SCREENS = ("overview", "clips", "queries", "review", "duplicates", "handover")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as browser:
        yield browser


class Curator:
    """A person with a browser of their own."""

    def __init__(self, browser: Browser, name: str | None, **more: Any) -> None:
        self.context: BrowserContext = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **more})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        if name is not None:
            self.context.add_init_script(
                f"localStorage.getItem('curator') ?? localStorage.setItem('curator', '\"{name}\"')"
            )

    def open(self, address: str, screen: str = "clips") -> None:
        self.page.goto(f"{address}#{screen}")
        self.page.wait_for_selector(f"html[data-ready][data-screen={screen}]")

    def until(self, what: Callable[[], Any], message: str) -> Any:
        """Wait until something holds: the page's policy lets nothing be evaluated that waits in the page."""
        end = time.monotonic() + TIMEOUT / 1000
        while time.monotonic() < end:
            if value := what():
                return value
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{message}; status: {self.page.text_content('#status')!r}")

    def at(self) -> str:
        """The caption of the clip that has the focus of the keys."""
        return str(self.page.locator(".cell.on .caption").text_content())

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def saved(self) -> None:
        self.until(lambda: not self.page.text_content("#pending"), "something is not saved")

    def close(self) -> None:
        self.context.close()
        assert not self.wrong, f"the page threw an error, or a caption was executed: {self.wrong}"


@pytest.fixture
def curator(browser: Browser) -> Iterator[Callable[..., Curator]]:
    people: list[Curator] = []

    def one(name: str | None = "ann", **more: Any) -> Curator:
        people.append(Curator(browser, name, **more))
        return people[-1]

    yield one
    for person in people:
        person.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_of(tmp_path / "run")


@pytest.fixture
def server(run: Run) -> Iterator[Served]:
    workbench_server = Served(run)
    yield workbench_server
    workbench_server.stop()


def said(run: Run) -> dict[str, list[str]]:
    """What stands on disk: clip_id -> words in order."""
    state: dict[str, list[str]] = {}
    for row in sorted(words(run.root), key=lambda row: row["at"]):
        state.setdefault(row["clip_id"], []).append(row["say"])
    return state


class Job:
    """`python -m jobs.workbench`, to be killed."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder, self.port = run, folder, 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "jobs.workbench", "--set", f"root={self.run.root}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, "--set", f"workbench.port={self.port}"], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "http://" in line:
                self.address = line.strip()
                self.port = int(self.address.split(":")[2].split("/")[0])
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError("the workbench did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def job(run: Run, tmp_path: Path) -> Iterator[Job]:
    folder = tmp_path / "tmp"
    folder.mkdir()
    job = Job(run, folder)
    yield job
    job.kill()  # also where the test fails


def test_a_session_by_keyboard_over_a_kill_and_a_reload_has_every_decision_on_disk_once(
    run: Run, curator: Callable[..., Curator], job: Job
) -> None:
    ann = curator(None)
    ann.open(job.address)
    page, order = ann.page, list[str]()

    def say(key: str) -> None:
        order.append(ann.at())
        page.keyboard.press(key)

    ann.press("Shift+K")  # the first word asks for a name
    page.wait_for_selector("#who")
    page.keyboard.type("  ann   b ")
    page.keyboard.press("Enter")
    ann.until(lambda: said(run), "the first word is not on disk")
    assert {row["by"] for row in words(run.root)} == {"ann b"}
    ann.saved()
    say("d")
    say("+")
    ann.saved()
    job.kill()
    say("-")
    say("Shift+K")
    ann.until(lambda: "2 not saved" in str(page.text_content("#pending")), "it does not say what waits")
    first = job.address
    job.start()
    assert job.address == first, "the page's address is another one after a restart"
    ann.saved()
    page.reload()
    page.wait_for_selector("html[data-ready][data-screen=clips]")
    ann.until(lambda: page.locator(".said:visible").count() >= 5, "the words are not shown after a reload")
    say("d")
    ann.saved()
    rows = words(run.root)
    assert Counter(row["say"] for row in rows) == {"keep": 3, "drop": 3}
    assert len({row["batch"] for row in rows}) == len(rows) == 6, "a word is lost or doubled"
    by_caption = {row["clip_id"]: row["caption"] for row in tables.read(stores.join(run.root, "clips")).to_pylist()}
    listed = [by_caption[row["clip_id"]] for row in sorted(rows, key=lambda row: row["at"])]
    assert listed[1:] == order, "a word stands at another clip"
    ann.press("z")
    ann.until(lambda: len(words(run.root)) == 7, "undo is not on disk")
    last = sorted(words(run.root), key=lambda row: row["at"])[-2:]
    assert [row["say"] for row in last] == ["drop", "keep"], "what was said of it before is not restored"
    assert last[0]["clip_id"] == last[1]["clip_id"]


def test_two_curators_who_disagree_see_it_and_settle_it(
    run: Run, server: Served, curator: Callable[..., Curator]
) -> None:
    ann, ben = curator("ann"), curator("ben")
    for person in (ann, ben):
        person.open(server.address)
    clip = ann.at()
    ann.press("Shift+K")
    ann.saved()
    ben.press("d")
    ben.saved()
    ben.page.reload()
    ben.page.wait_for_selector("html[data-ready]")
    disputed = ben.page.locator("button.value[data-name=people][data-value=disputed]")
    assert disputed.get_attribute("data-n") == "1"
    disputed.click()
    ben.until(lambda: ben.page.text_content(".count") == "1 clips", "the filter does not filter")
    assert ben.at() == clip
    ben.page.locator(".cell.on").press("u")
    ben.saved()
    ann.open(server.address, "overview")
    ann.page.reload()
    ann.page.wait_for_selector("html[data-ready]")
    people = ann.page.locator("section:has(h2:text-is('People'))").inner_text()
    assert "ann: 1 clips" in people
    assert "ben: 1 clips" in people
    assert said(run)[words(run.root)[0]["clip_id"]] == ["keep", "drop", "clear"]


def test_marks_ranges_and_a_whole_view_are_one_batch_each(
    run: Run, server: Served, curator: Callable[..., Curator]
) -> None:
    ann = curator()
    ann.open(server.address)
    ann.press("Shift+ArrowRight", "Shift+ArrowRight")
    ann.until(lambda: ann.page.locator(".cell.marked").count() == 3, "a range is not marked")
    ann.press("d")
    ann.saved()
    ann.until(lambda: len(words(run.root)) == 3, "a range is not dropped")
    assert len({row["batch"] for row in words(run.root)}) == 1
    ann.press("/")
    ann.page.keyboard.type("blue")
    ann.until(lambda: ann.page.text_content(".count") == "12 clips", "the search does not search")
    ann.press("Enter")
    ann.page.click("text=Keep all of view")
    ann.page.locator("dialog input").fill("11")
    ann.press("Enter")
    ann.until(lambda: "another one" in str(ann.page.text_content("#status")), "a wrong number is taken")
    ann.page.click("text=Keep all of view")
    ann.page.locator("dialog input").fill("12")
    ann.press("Enter")
    ann.until(lambda: len(words(run.root)) == 15, "the view is not kept")
    ann.press("z")
    ann.until(lambda: len(words(run.root)) == 27, "the view is not taken back")


def test_hostile_captions_are_text_and_a_lost_video_says_why(server: Served, curator: Callable[..., Curator]) -> None:
    ann = curator()
    ann.open(server.address)
    ann.press("/")
    ann.page.keyboard.type("onerror")
    ann.until(lambda: ann.page.text_content(".count") == "1 clips", "the hostile caption is not found")
    shown = ann.page.locator(".cell.on .caption", has_text="onerror")
    ann.until(lambda: shown.count() == 1, "the clip's cell is not there")
    ann.press("Enter", "Enter")
    ann.page.wait_for_selector("html[data-screen=clip]")
    assert "onerror" in ann.page.inner_text("h1")
    ann.open(server.address, "clips")
    ann.page.goto(f"{server.address}#clip&id={GONE}")
    ann.page.wait_for_selector("html[data-screen=clip]")
    ann.until(
        lambda: "read:" in ann.page.inner_text(".player") or "decode:" in ann.page.inner_text(".player"), "no reason"
    )
    ann.page.goto(f"{server.address}#clip&id={HOSTILE}")
    ann.until(lambda: "onerror" in ann.page.inner_text("main"), "the clip is not shown")
    ann.page.keyboard.press("e")
    ann.page.wait_for_selector("dialog textarea")
    ann.page.fill("dialog textarea", "<img src=x onerror=alert(3)>")
    ann.page.click("dialog >> text=Save")
    ann.until(lambda: "onerror=alert(3)" in ann.page.inner_text("main"), "the note is not shown as text")
    assert ann.page.locator("main img").count() == 0


def test_weights_show_what_they_change_and_are_saved(run: Run, server: Served, curator: Callable[..., Curator]) -> None:
    ann = curator()
    ann.open(server.address, "queries")
    slider = ann.page.locator("input[type=range]").first
    slider.focus()
    for _ in range(8):
        ann.press("ArrowLeft")
    ann.until(lambda: "not saved" in ann.page.inner_text(".tools"), "a change is not announced")
    assert ann.until(lambda: " in, " in ann.page.inner_text(".tools"), "no count")
    ann.page.click("text=Save")
    ann.until(lambda: tables.read(stores.join(run.root, "query_weights")) is not None, "weights are not on disk")
    assert tables.read(stores.join(run.root, "query_weights")).column("weight").to_pylist() == [-1.0]


def test_a_blind_review_hides_rank_and_label_and_is_written_as_blind(
    run: Run, server: Served, curator: Callable[..., Curator]
) -> None:
    ann = curator()
    ann.page.goto(f"{server.address}#review&queue=near&blind=1")
    ann.page.wait_for_selector("html[data-ready][data-screen=review]")
    shown = ann.page.inner_text(".scroll").split("Agreement")[0]
    assert not any(word in shown for word in ("selected", "neutral", "above", "query of"))
    ann.press("k", "d")
    ann.saved()
    ann.until(lambda: len(words(run.root)) == 2, "the words are not on disk")
    assert all(row["blind"] for row in words(run.root))


def test_a_ranking_that_is_written_meanwhile_is_announced(
    run: Run, server: Served, curator: Callable[..., Curator]
) -> None:
    ann = curator()
    ann.open(server.address)
    table = tables.read(stores.join(run.root, "selection"))
    tables.replace(stores.join(run.root, "selection"), table.slice(0, 48), {})
    ann.until(lambda: ann.page.locator("#banner").is_visible(), "a new ranking is not announced")
    with ann.page.expect_navigation():  # the old page is ready too; a browser that is closed on its way hangs
        ann.page.click("#banner >> text=Reload")
    ann.page.wait_for_selector("html[data-ready]")
    ann.until(lambda: not ann.page.locator("#banner").is_visible(), "the line stays")


def test_under_reduced_motion_nothing_starts_by_itself_and_space_plays(
    server: Served, curator: Callable[..., Curator]
) -> None:
    ann = curator(reduced_motion="reduce")
    ann.open(server.address)
    ann.page.wait_for_selector(".cell.on video")
    playing = "[...document.querySelectorAll('video')].filter((video) => !video.paused).length"
    ann.page.hover(".cell >> nth=2")
    ann.page.wait_for_timeout(500)
    assert ann.page.evaluate(playing) == 0
    ann.press("Space")
    ann.until(lambda: ann.page.evaluate(playing) == 1, "Space does not play")
    ann.press("Enter")
    ann.page.wait_for_selector(".player video")
    ann.page.wait_for_timeout(500)
    assert ann.page.evaluate(playing) == 0
    ann.press(".", ".")
    ann.until(lambda: "frame 3 of 9" in ann.page.inner_text(".controls >> nth=0"), "frames are not stepped")


OVERFLOWING = "document.documentElement.scrollWidth > innerWidth"
UNNAMED = """[...document.querySelectorAll('button, input, select, textarea, a')].filter((one) => one.offsetParent &&
  !(one.getAttribute('aria-label') || one.innerText?.trim() || one.labels?.length)).map((one) => one.outerHTML)"""
SMALL = """[...document.querySelectorAll('button, select, input')].filter((one) => one.offsetParent &&
  (one.getBoundingClientRect().height < 24 || one.getBoundingClientRect().width < 24)).map((one) => one.outerHTML)"""
CONTRAST = """() => {
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const level = (rgb) => rgb.map((v) => linear(v / 255)).reduce((a, v, n) => a + v * [0.2126, 0.7152, 0.0722][n], 0);
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const read = (text) => ({ rgb: numbers(text).slice(0, 3), alpha: numbers(text)[3] ?? 1 });
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = read(getComputedStyle(at).backgroundColor);
      if (colour.alpha > 0.9) return colour.rgb;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const one of document.querySelectorAll('main *, header *, footer *')) {
    const texts = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!one.offsetParent || one.disabled || !texts) continue;
    const a = level(read(getComputedStyle(one).color).rgb), b = level(ground(one));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.push(`${one.tagName} ${one.className} ${one.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return weak;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1400, 900)])
def test_every_screen_fits_is_named_and_can_be_read(
    server: Served, curator: Callable[..., Curator], scheme: str, width: int, height: int
) -> None:
    ann = curator(color_scheme=scheme, viewport={"width": width, "height": height})
    for screen in SCREENS:
        ann.open(server.address, screen)
        ann.page.wait_for_timeout(300)
        assert not ann.page.evaluate(OVERFLOWING), f"{screen} is wider than {width}"
        assert ann.page.evaluate(UNNAMED) == [], screen
        assert ann.page.evaluate(SMALL) == [], screen
        assert ann.page.evaluate(CONTRAST) == [], screen


def test_the_grid_says_what_it_is(server: Served, curator: Callable[..., Curator]) -> None:
    ann = curator()
    ann.open(server.address)
    grid = ann.page.locator("[role=grid]")
    assert int(str(grid.get_attribute("aria-rowcount"))) >= 4
    assert ann.page.locator("[role=gridcell][tabindex='0']:visible").count() == 1
    ann.press("ArrowRight", "j", "l", "h", "k")
    assert ann.page.evaluate("document.activeElement.classList.contains('on')"), "the focus does not move with the keys"
    ann.press("x")
    assert ann.page.locator("[role=gridcell][aria-selected=true]").count() == 1
    ann.press("End")
    ann.until(lambda: "24 of 24" in str(ann.page.text_content("#status")), "End does not lead to the end")
    assert ann.page.evaluate("document.querySelectorAll('*').length") < 400


def test_lawfulness_is_on_the_cell_and_on_the_clip_and_orders_and_filters(
    tmp_path: Path, curator: Callable[..., Curator]
) -> None:
    server = Served(write_lawfulness(run_of(tmp_path / "run")))
    try:
        ann = curator()
        ann.open(server.address)
        ann.page.select_option("select[aria-label='Sorted by']", label="unlikeness to its queries")
        ann.until(lambda: "number 6" in ann.at(), "the farthest clip is not the first")
        assert str(ann.page.locator(".cell.on .meta").text_content()).endswith(" · quantile 0.020")
        ann.page.click("button.value[data-name='law or flaw'][data-value='frozen']")
        ann.until(lambda: "number 9" in ann.at(), "the filter leaves another clip")
        assert " frozen · all · " in str(ann.page.locator(".cell.on .meta").text_content())
        assert ", frozen, quantile 0.300" in str(ann.page.locator(".cell.on").get_attribute("aria-label"))
        ann.page.locator(".cell.on").press("Enter")
        ann.page.wait_for_selector("html[data-ready][data-screen=clip]")
        assert "flaw frozen: its picture stands still for 40% of the clip" in str(ann.page.text_content("main"))
    finally:
        server.stop()


def test_a_clip_becomes_a_query_whose_rectangle_is_drawn(
    run: Run, server: Served, curator: Callable[..., Curator]
) -> None:
    ann = curator()
    ann.page.goto(f"{server.address}#clip&id=clip-01&group=roll")
    ann.page.wait_for_selector("html[data-ready][data-screen=clip]")
    ann.page.click("button:has-text('Make it a query')")
    box = ann.page.locator(".cut").bounding_box()
    assert box is not None
    assert abs(box["width"] - box["height"]) < 2, "shares of the box are not shares of the picture"
    ann.page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    ann.page.mouse.down()
    ann.page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + box["height"] - 1)
    ann.page.mouse.up()
    ann.page.fill("dialog input >> nth=0", "hop")
    ann.page.fill("[aria-label='First frame']", "3")
    ann.page.fill("[aria-label='Last frame']", "8")
    ann.page.click("dialog button:has-text('Play the part')")
    assert "Costs one query more" in ann.page.inner_text("dialog")
    ann.page.click("dialog button[type=submit]")
    ann.until(lambda: made_queries.records(run.root), "the query is not made")
    record = made_queries.records(run.root)[0]
    assert (record["group"], record["clip"], record["by"]) == ("hop", "clip-01", "ann")
    assert record["rectangle"] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.02)
    assert record["seconds"] == [0.25, 1.0]
    ann.open(server.address, "queries")
    ann.until(lambda: "jobs.attribute_requests" in ann.page.inner_text("main"), "the command is not shown")
    ann.page.fill("section label:has-text('Which motion') input", "hop")
    ann.page.fill("label:has-text('Or a caption') input", "a frog hops")
    ann.page.click("button:has-text('Ask for it')")
    ann.until(lambda: "waits for its video" in ann.page.inner_text("main"), "the prompt is not asked for")
    assert "1 video (this run has not measured its pace) and 2 gradients of queries" in ann.page.inner_text("main")


def test_a_like_is_approximate_until_an_exact_one_is_asked_for_and_there(
    run: Run, server: Served, curator: Callable[..., Curator]
) -> None:
    ann = curator()
    ann.open(server.address)
    ann.press("Shift+L")
    ann.until(lambda: "Approximate" in ann.page.inner_text(".likeness"), "it does not say that it is approximate")
    ann.page.click("button:has-text('Ask for the exact one')")
    ann.until(lambda: "It costs 1 gradient of a query" in ann.page.inner_text("dialog"), "the cost is not said")
    ann.page.click("dialog button[type=submit]")
    ann.until(lambda: requests.pending(run.root).likes, "it is not asked for")
