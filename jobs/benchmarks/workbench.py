"""The workbench on a million clips: seconds until it is there, until another motion, search, order or weight is shown,
and until a word is on disk; its memory; and in chromium the page's own nodes and heap.

``--clips 20000`` is quick; ``--clips 10000000`` needs 8 GB of memory and 5 GB of disk. Influence is drawn at random for
50 queries of ten motions; the videos are a few, many times over. Every figure is the median of its trials with the
largest beside it, as a browser on the same machine sees them, and the mean of the server's own seconds of CPU.
Figures of the page need chromium and playwright (`pip install playwright`), and are left out without them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline import config, tables
from pipeline.ranking import selection_blocks, votes
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.frames import write_mp4

GROUPS = ("bounce", "compress", "explode", "float", "free_fall", "roll", "slide", "spin", "stretch", "swing")
EACH = 5  # queries of a motion
FILMS, SIDE = 24, 128  # videos that the clips share, and their height
BLOCK = 100_000  # clips that are written at a time
TRIALS = 8
SEARCHES = ("red thing", "blue", "take 000012", "spin", "green bounce", "yellow", "purple 000345", "swing")
LIMITS = {  # seconds, but for the last three
    "page ready": 2.0,
    "another motion": 1.0,
    "a filter": 1.0,
    "a search": 0.5,
    "a word on disk": 0.15,
    "nodes": 400,
    "heap, MB": 50,
    "server, MB": 1500,
}
MANY = 10_000_000  # clips from which on it is to be usable, no more
LIMITS_OF_MANY = {"another motion, the first time": 3.0, "another motion": 3.0, "a filter": 3.0, "a search": 3.0}
Figures = dict[str, Any]


# --- a large run ------------------------------------------------------------------------------------------------------


def write_run(root: str, clips: int) -> None:
    """The tables of a ranked run of so many clips, without features and masks."""
    run = config.load("demo", {"root": root, "data.frames": 17, "data.fps": 8.0})
    films = []
    for n in range(FILMS):
        path = f"{root}/videos/film-{n:02d}.mp4"
        scene = world.scene(5, f"bench-{n}", "real", world.MOTIONS[n % len(world.MOTIONS)])
        frames = np.resize(world.render(scene, SIDE, SIDE), (17, SIDE, SIDE, 3))
        write_mp4(path, frames, 8.0)
        films.append(path)
    query_ids = [f"query-{n:03d}" for n in range(EACH * len(GROUPS))]
    groups = [GROUPS[n // EACH] for n in range(len(query_ids))]
    queries = rows(np.arange(len(query_ids)), films, "query").append_column("group", pa.array(groups))
    queries = queries.append_column(schemas.MASK_BOX, pa.nulls(len(query_ids), pa.string()))
    tables.append(f"{root}/queries", queries.select(schemas.QUERIES.names).cast(schemas.QUERIES), {})
    rng = np.random.default_rng(0)
    influence = rng.standard_normal((clips, len(query_ids)), dtype=np.float32)
    influence += rng.standard_normal((clips, 1), dtype=np.float32)
    ids = rows(np.arange(clips), films, "clip").column("clip_id").combine_chunks()
    motion = schemas.motion_schema(schemas.CLIPS)
    for start in range(0, clips, BLOCK):
        numbers = np.arange(start, min(start + BLOCK, clips))
        part = rows(numbers, films, "clip")
        tables.append(f"{root}/clips", part, {})
        moved = part.append_column("motion_mean", pa.array(rng.gamma(2, 2, len(numbers)), pa.float32()))
        moved = moved.append_column("camera_share", pa.array(rng.random(len(numbers)), pa.float32()))
        for name in ("mask", "mask_shape", "motion_p95"):
            moved = moved.append_column(name, pa.nulls(len(numbers), motion.field(name).type))
        tables.append(f"{root}/motion/clips", moved.select(motion.names).cast(motion), {})
    blocks = (
        pa.table([ids.slice(start, BLOCK), tables.vectors(influence[start : start + BLOCK])], schema=of_queries())
        for start in range(0, clips, BLOCK)
    )
    tables.replace_streamed(f"{root}/influence", of_queries(), blocks, {}, query_ids=query_ids)
    decided = decisions(influence, ids, groups, run.ranking)
    tables.replace_streamed(f"{root}/selection", schemas.SELECTION, decided, {}, query_ids=query_ids)
    recorded = {**run.model_dump(mode="json"), "versions": {}}
    stores.write_bytes(f"{root}/config.yaml", yaml.safe_dump(recorded).encode())


def of_queries() -> pa.Schema:
    return schemas.influence_schema(EACH * len(GROUPS))


def rows(numbers: Any, films: list[str], kind: str) -> pa.Table:
    """Rows of clips/ of these numbers."""
    n = len(numbers)
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 9, "0")
    colour = pa.array(["red", "blue", "green", "yellow", "purple"]).take(pa.array(numbers % 5))
    motion = pa.array(GROUPS).take(pa.array(numbers // 7 % len(GROUPS)))
    columns = {
        "clip_id": pc.binary_join_element_wise(kind, digits, "-"),
        "uri": pa.array(films).take(pa.array(numbers % FILMS)),
        "version": pc.binary_join_element_wise("1-", digits, ""),
        "source": pc.binary_join_element_wise("source", pa.array(numbers % 12).cast(pa.string()), " "),
        "start_frame": pa.array(np.zeros(n), pa.int32()),
        "num_frames": pa.array(np.full(n, 17), pa.int32()),
        "fps": pa.array(np.full(n, 8.0), pa.float32()),
        "height": pa.array(np.full(n, SIDE), pa.int32()),
        "width": pa.array(np.full(n, SIDE), pa.int32()),
        "caption": pc.binary_join_element_wise("a", colour, "thing in", motion, "take", digits, " "),
        "cuts": pa.nulls(n, pa.list_(pa.int32())),
        "error": pa.nulls(n, pa.string()),
    }
    return pa.table(columns, schema=schemas.CLIPS)


def decisions(influence: Any, ids: pa.Array, groups: list[str], rule: config.Ranking) -> Iterator[pa.Table]:
    for group in ("all", *GROUPS):
        chosen = [n for n, name in enumerate(groups) if group in ("all", name)]
        starts = range(0, len(influence), BLOCK)  # blocks and single columns: of ten million clips, all are 2 GB
        mean = np.concatenate([influence[start : start + BLOCK][:, chosen].mean(1) for start in starts])
        above = np.zeros(len(influence), np.int32)
        for n in chosen:
            above += votes(influence[:, n : n + 1])
        for table in selection_blocks(mean, above, ids.cast(pa.large_string()), len(chosen), rule):
            table = table.append_column("group", pa.repeat(pa.scalar(group, pa.string()), table.num_rows))
            yield table.select(schemas.SELECTION.names).cast(schemas.SELECTION)


# --- the server -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(root: str) -> Iterator[tuple[str, int, float]]:
    """The workbench of a run: its address, its process and the seconds until it could be asked."""
    command = [sys.executable, "-m", "jobs.workbench", "--set", f"root={root}", "--set", "workbench.port=0"]
    start, address = time.monotonic(), ""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            address = line.strip() if "http://" in line else address
            if line.startswith("Ctrl-C"):
                break
        if not address:
            raise RuntimeError("the workbench did not start; its message is on stderr")
        yield address, process.pid, time.monotonic() - start
    finally:
        process.terminate()
        process.wait()


def resident(pid: int, word: str = "VmRSS") -> float:
    """Megabytes of a process that are in memory now; at most so far: VmHWM."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{word}:")[1].split()[0]) / 1000


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used, its children's left out."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def timed(pid: int, call: Callable[[int], Any], trials: int = TRIALS) -> dict[str, float]:
    seconds, before = [], cpu(pid)
    for n in range(trials):
        start = time.perf_counter()
        call(n)
        seconds.append(time.perf_counter() - start)
    return {"median": float(np.median(seconds)), "most": max(seconds), "cpu": (cpu(pid) - before) / trials}


def get(address: str, path: str, **words: Any) -> Any:
    said = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in words.items()}
    with urllib.request.urlopen(f"{address}{path}?{urllib.parse.urlencode(said)}") as response:
        return json.load(response)


def post(address: str, path: str, said: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(said).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request) as response:
        response.read()


def measure_server(address: str, pid: int, clips: int) -> Figures:
    def view(**spec: Any) -> None:
        stamped = {**spec, "stamp": time.monotonic_ns() % (1 << 50)}
        page = get(address, "view", spec=stamped)
        get(address, "rows", spec=stamped, **{"from": 0, "to": 60})
        assert page["n"] <= clips

    def word(n: int) -> None:
        said = {"batch": uuid.uuid4().hex, "by": "bench", "say": "keep", "clips": [f"clip-{n * 7:09d}"]}
        post(address, "decisions", said)

    weights = {f"query-{n:03d}": 0.5 if n % 2 else -1.0 for n in range(EACH * len(GROUPS))}
    decided = {"decision": ["selected", "neutral"]}
    figures: Figures = {
        "another motion, the first time": timed(pid, lambda n: view(group=GROUPS[-1 - n]), 4),  # the page had six
        "another motion": timed(pid, lambda n: view(group=GROUPS[n])),
        "a filter": timed(pid, lambda n: view(where={**decided, "source": [f"source {n % 12}"]})),
        "a search": timed(pid, lambda n: view(text=SEARCHES[n])),
        "another order": timed(pid, lambda n: view(sort=("motion_mean", "cut", "disagreement", "name")[n % 4])),
        "the last rows": timed(pid, lambda n: get(address, "rows", spec={}, **{"from": clips - 60, "to": clips})),
        "a word on disk": timed(pid, word, 3 * TRIALS),
        "weights of 50 queries": timed(pid, lambda n: get(address, "changes", group="all", weights=weights), 4),
        "a film": timed(pid, lambda n: get_film(address, f"clip-{n:09d}")),
    }
    return {**figures, "server, MB": resident(pid), "server at most, MB": resident(pid, "VmHWM")}


def get_film(address: str, clip_id: str) -> None:
    query = urllib.parse.urlencode({"kind": "clips", "id": clip_id})
    with urllib.request.urlopen(f"{address}film?{query}") as response:
        response.read()


# --- the page ---------------------------------------------------------------------------------------------------------


def measure_page(address: str) -> Figures:
    """What a person waits for; empty where there is no chromium or no playwright."""
    path = next((p for name in ("chromium", "chromium-browser") if (p := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright  # here, because it is an extra of the tests
    except ImportError:
        return {}
    if path is None:
        return {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(120_000)
        page.add_init_script("localStorage.setItem('curator', '\"bench\"')")
        page.goto(f"{address}#clips")
        page.wait_for_selector("html[data-ready]")
        figures: Figures = {"page ready": page.evaluate("performance.getEntriesByName('ready')[0].startTime / 1000")}
        for n in range(6):
            page.select_option("[aria-label=Motion]", GROUPS[n])
            spans = measured(page, n + 2)
        figures["another motion, on the screen"] = {"median": float(np.median(spans[1:])), "most": max(spans[1:])}
        page.locator("[role=gridcell].on").focus()
        for key in ("PageDown",) * 6 + ("End", "Home") + ("PageDown",) * 4:
            page.keyboard.press(key)
            page.wait_for_timeout(250)
        figures["nodes"] = page.evaluate("document.querySelectorAll('*').length")
        page.wait_for_timeout(2000)
        link = page.context.new_cdp_session(page)
        link.send("HeapProfiler.collectGarbage")
        link.send("Performance.enable")
        metrics = {one["name"]: one["value"] for one in link.send("Performance.getMetrics")["metrics"]}
        figures["heap, MB"] = metrics["JSHeapUsedSize"] / 1e6
        browser.close()
    return figures


def measured(page: Any, count: int) -> list[float]:
    """Seconds of the views that the page has shown, once there are so many. The page's policy lets nothing be evaluated
    that waits in the page itself."""
    for _ in range(600):
        spans: list[float] = page.evaluate("performance.getEntriesByName('view').map((one) => one.duration / 1000)")
        if len(spans) >= count:
            break
        page.wait_for_timeout(100)
    return spans


def shown(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:,.2f}"
    own = f", {value['cpu']:.3f} s of CPU" if "cpu" in value else ""
    return f"{value['median']:.3f} s, at most {value['most']:.3f} s{own}"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--clips", type=int, default=1_000_000)
    words.add_argument("--root", help="a run that an earlier call wrote there, or is written there now")
    arguments = words.parse_args()
    with contextlib.ExitStack() as stack:
        root = arguments.root or stack.enter_context(tempfile.TemporaryDirectory())
        if not os.path.exists(f"{root}/config.yaml"):
            write_run(root, arguments.clips)
        address, pid, seconds = stack.enter_context(served(root))
        figures: Figures = {"clips": arguments.clips, "load": os.getloadavg()[0], "start": seconds}
        figures |= {"start, CPU": cpu(pid), "server at rest, MB": resident(pid)}
        figures |= measure_page(address)
        figures |= measure_server(address, pid, arguments.clips)
        limits = LIMITS if arguments.clips < MANY else LIMITS_OF_MANY
        for name, value in figures.items():
            limit = limits.get(name)
            print(f"{name:<32} {shown(value)}" + ("" if limit is None else f"   (limit {limit:g})"))
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
