"""What people asked for that takes a model: what is left to do, what it costs, when a likeness is exact."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.config import Run
from pipeline.storage import stores
from pipeline.tables import schemas, throughput
from pipeline.workbench import index, made_queries, requests
from pipeline.workbench.made_queries import Prompted
from pipeline.workbench.requests import Requests
from tests.support.registered import unregistered
from tests.support.workbenches import PRINT, START, Served, names, run_of
from tests.workbench.test_server import get, post


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_of(tmp_path / "run")


def like(n: int, clip: str, sign: int, state: str, by: str = "ann") -> dict[str, Any]:
    at = START + datetime.timedelta(seconds=n)
    return {"batch": f"b{n}", "clip_id": clip, "group": "all", "sign": sign, "by": by, "at": at, "state": state}


def test_exact_likes_are_those_asked_for_and_not_taken_back_in_any_order_of_rows() -> None:
    rows = [
        like(1, "a", 1, "approximate"),
        like(2, "b", 1, "asked"),
        like(3, "c", -1, "asked"),
        like(4, "c", 0, "approximate"),
        like(5, "c", 1, "asked", "ben"),
        like(6, "d", 1, "asked"),
        like(7, "d", 0, "approximate"),
        like(8, "b", -1, "approximate"),
    ]
    for order in (rows, rows[::-1], rows[3:] + rows[:3]):
        assert requests.exact_likes(pa.Table.from_pylist(order, schema=schemas.LIKES)) == ["b", "c"]
    assert requests.exact_likes(schemas.LIKES.empty_table()) == []


def test_a_prompt_waits_for_its_video_and_its_gradient(run: Run) -> None:
    served = Served(run)
    said = {"batch": "made-by-prompt", "by": "ann", "group": "hop", "prompt": " a frog hops ", "seed": 7}
    status, record = post(served, "prompted", said)
    assert (status, record["caption"], record["seed"]) == (200, "a frog hops", 7)
    assert post(served, "prompted", said)[0] == 200, "sent twice it is one"
    for wrong in ({"prompt": " "}, {"group": ""}, {"seed": -1}, {"more": 1}):
        assert post(served, "prompted", {**said, "batch": "wrong-wrong", **wrong})[0] == 400
    made = get(served, "made")[1]
    name = "made-made-by-prompt"
    assert made["requests"]["waits"] == {name: "waits for its video"}
    assert "1 video (this run has not measured its pace) and 1 gradient of a query" in made["requests"]["cost"]
    assert requests.pending(run.root) == Requests([name], [name], [])
    assert [row["file_name"] for row in made_queries.prompted(run.root)] == [f"{name}.mp4"]
    path = made_queries.write_manifest(run, served.bench.index.queries)
    assert name not in Path(path).read_text(), "a manifest does not name a video that is not there"
    assert unregistered(run.root) == []
    served.stop()


def test_what_failed_does_not_wait(run: Run) -> None:
    made_queries.of_prompt(run.root, Prompted(batch="by-a-prompt", by="ann", group="hop", prompt="a frog hops"))
    (Path(run.root) / "made_queries" / "made-by-a-prompt.mp4").touch()
    assert requests.pending(run.root) == Requests([], ["made-by-a-prompt"], [])
    row = {"clip_id": "made-by-a-prompt", "error": "no_motion: it is still."}
    motion = schemas.motion_schema(schemas.QUERIES)
    tables.append(stores.join(run.root, "motion", "queries"), pa.Table.from_pylist([row], schema=motion), PRINT)
    assert requests.pending(run.root).queries == ["made-by-a-prompt"], "a still one goes on to features"
    row = {"clip_id": "made-by-a-prompt", "error": "decode: it is no video."}
    tables.append(stores.join(run.root, "queries"), pa.Table.from_pylist([row], schema=schemas.QUERIES), PRINT)
    assert not requests.pending(run.root)


def test_guests_ask_for_nothing(tmp_path: Path) -> None:
    guests = Served(run_of(tmp_path / "run", **{"workbench.write": False}))
    said = {"batch": "of-a-guest", "by": "g", "group": "hop", "prompt": "a frog hops"}
    assert post(guests, "prompted", said)[0] == 403
    guests.stop()
    assert not (tmp_path / "run" / "made_queries").exists()


def test_what_it_costs_is_what_this_run_took(run: Run) -> None:
    assert requests.cost(run.root, Requests([], [], [])) == "nothing"
    figures = throughput.Figures(seconds=100.0, rows=4, busy_seconds=20.0)
    throughput.save(throughput.new_file(run.root, "attribute queries"), "attribute queries", figures)
    assert requests.cost(run.root, Requests([], ["q"], ["a", "b"])).startswith(
        "3 gradients of queries (about 15 s of an"
    )


def test_a_likeness_is_exact_once_each_liked_clip_was_attributed(run: Run) -> None:
    served = Served(run)
    spec = {"sort": "like", "like": {"clip-01": 1, "clip-04": -1}}
    assert get(served, "view", spec=spec)[1]["exact"] is False
    for clip, sign in spec["like"].items():
        said = {"batch": f"likes-{clip}", "by": "ann", "clip": clip, "sign": sign, "exact": True}
        assert post(served, "likes", said)[0] == 200
    assert get(served, "made")[1]["requests"]["likes"] == 2
    assert get(served, "likes", ids='["clip-01", "clip-04"]')[1]["cost"].startswith("2 gradients of queries")
    assert get(served, "likes", ids="{}")[0] == 400
    liked = requests.liked_rows(run.root)
    assert liked is not None
    assert (liked.column("clip_id").to_pylist(), liked.schema) == (["clip-01", "clip-04"], schemas.QUERIES)
    values = write_influence(run, names(24))
    served.bench._load()
    scores = values[:, 0] - values[:, 1]
    view = get(served, "view", spec={**spec, "stamp": 1})[1]
    assert view["exact"] is True
    rows = get(served, "rows", spec={**spec, "stamp": 1}, **{"from": 0, "to": 24})[1]
    assert [row["clip_id"] for row in rows] == [f"clip-{n:02d}" for n in np.argsort(-scores, kind="stable")]
    part = {**spec, "like": {"clip-01": 1, "clip-09": 1}, "stamp": 1}
    assert get(served, "view", spec=part)[1]["exact"] is False, "one of them was not attributed"
    served.stop()
    write_influence(run, names(20))
    ranked = index.read(run).standing("all").rank[20:] != index.NOT_RANKED
    assert ranked.any()
    late = Served(run)
    assert get(late, "view", spec=spec)[1]["exact"] is False, "clips came after it"
    late.stop()


def write_influence(run: Run, ids: list[str]) -> Any:
    values = np.random.default_rng(5).standard_normal((len(ids), 2)).astype(np.float32)
    table = pa.table([pa.array(ids), tables.vectors(values)], schema=schemas.influence_schema(2))
    tables.replace(stores.join(run.root, "influence_liked"), table, PRINT, query_ids=["clip-01", "clip-04"])
    return values
