"""Queries that people make: of clips with a rectangle, of videos of their own; what a next ranking makes of them."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.inputs import videos
from pipeline.operations import purge
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.decoder import Decoder
from pipeline.video.frames import write_mp4
from pipeline.workbench import made_queries
from pipeline.workbench.made_queries import Made
from tests.support.registered import unregistered
from tests.support.workbenches import FPS, FRAMES, GONE, SIZE, Served, run_of
from tests.workbench.test_server import ask, get, post


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_of(tmp_path / "run")


def asked(**more: object) -> Made:
    return Made.model_validate({"batch": "made-batch", "by": "ann", "group": "roll", "caption": "a ball", **more})


def test_the_part_of_a_clip_stands_in_the_manifest_and_its_film_stays_whole(run: Run) -> None:
    served = Served(run)
    said = {"batch": "made-of-a-part", "by": "ann", "group": "roll", "caption": "a ball", "clip": "clip-01"}
    assert post(served, "made", {**said, "rectangle": [0, 0, 0.5, 1], "seconds": [0.25, 0.75]})[0] == 200
    assert post(served, "made", {**said, "batch": "made-of-it-all", "rectangle": [0, 0, 1, 1]})[0] == 200
    boxes = {query["id"]: query.get("mask_box") for query in get(served, "made")[1]["queries"]}
    assert boxes == {"made-made-of-a-part": "0,0,0.5,1,0.25,0.75", "made-made-of-it-all": None}
    folder = Path(run.root) / "made_queries"
    assert (folder / "made-made-of-a-part.mp4").read_bytes() == (folder / "made-made-of-it-all.mp4").read_bytes()
    listed = videos.videos(str(folder / "manifest.jsonl"), "queries.videos").to_pylist()
    assert {row["id"]: row["mask_box"] for row in listed if row["id"].startswith("made")} == boxes
    status, answer = post(served, "made", {**said, "batch": "made-of-too-little", "seconds": [0.25, 0.3]})
    assert status == 400
    assert "1 of the 9 frames" in answer["error"]
    status, answer = post(served, "made", {**said, "batch": "made-of-nothing", "seconds": [0.5, 0.5]})
    assert status == 400
    assert not (folder / "made-made-of-nothing.mp4").exists()
    served.stop()


def test_the_manifest_repeats_the_boxes_of_the_runs_own_queries(run: Run) -> None:
    queries = [
        {"clip_id": f"q-{n}", "uri": "a.mp4", "start_frame": 0, "caption": "a ball", "group": "roll", "mask_box": box}
        for n, box in enumerate((None, "0,0,0.5,1"))
    ]
    path = made_queries.write_manifest(run, queries)
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert [(line["id"], line.get("mask_box")) for line in lines] == [("q-0", None), ("q-1", "0,0,0.5,1")]


@pytest.mark.parametrize("rectangle", [(0.5, 0, 0.5, 1), (0, 0, 1, 2), (0.9, 0, 0.1, 1), (0, 0.99, 1, 1)])
def test_a_rectangle_without_an_area_is_refused(rectangle: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        asked(rectangle=rectangle)


def test_the_manifest_keeps_the_ids_of_the_runs_own_queries(run: Run) -> None:
    served = Served(run)
    said = {"batch": "made-of-a-clip", "by": "ann", "group": "roll", "caption": "a ball", "clip": "clip-01"}
    status, record = post(served, "made", {**said, "rectangle": [0, 0, 0.5, 1]})
    assert (status, record["id"]) == (200, "made-made-of-a-clip")
    assert post(served, "made", {**said, "rectangle": [0, 0, 0.5, 1]})[0] == 200, "sent twice it is one"
    made = get(served, "made")[1]
    assert [query["clip"] for query in made["queries"]] == ["clip-01"]
    assert made["requests"]["queries"] == 1
    assert "jobs.attribute_requests" in made["requests"]["command"]
    video_rows = videos.videos(str(Path(run.root) / "made_queries" / "manifest.jsonl"), "queries.videos").to_pylist()
    assert {row["id"]: row["group"] for row in video_rows} == {
        **{f"query-{n:02d}": ("roll", "spin")[n % 2] for n in range(4)},
        "made-made-of-a-clip": "roll",
    }
    assert not any(row["error"] for row in video_rows)
    with Decoder() as decoder:
        path = next(row["uri"] for row in video_rows if row["id"].startswith("made"))
        assert [row["num_frames"] for row in decoder.index(path, FRAMES, FPS)] == [FRAMES]
    assert unregistered(run.root) == []
    assert post(served, "made", {**said, "batch": "of-a-lost-clip", "clip": GONE})[0] == 410
    assert post(served, "made", {**said, "batch": "of-no-clip", "clip": "nowhere"})[0] == 400
    prompt = {"batch": "by-a-prompt", "by": "ann", "group": "hop", "prompt": "a frog hops"}
    assert post(served, "prompted", prompt)[0] == 200
    served.stop()
    rows = pa.Table.from_pylist([{"clip_id": "made-made-of-a-clip"}], schema=schemas.motion_schema(schemas.QUERIES))
    tables.append(str(Path(run.root) / "motion" / "queries"), rows, {})
    purge.purge(run.root, {"clip-01", "made-by-a-prompt"})
    assert tables.read(str(Path(run.root) / "motion" / "queries")) is None, "what was computed of the clip's query"
    assert not [path for path in (Path(run.root) / "made_queries").iterdir() if path.name.startswith("made")]
    lines = (Path(run.root) / "made_queries" / "manifest.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {f"query-{n:02d}" for n in range(4)}


def test_a_video_of_ones_own_is_decoded_and_never_kept(run: Run, tmp_path: Path) -> None:
    served = Served(run)
    path = tmp_path / "phone.mp4"
    write_mp4(str(path), world.render(world.scene(5, "phone", "real", world.MOTIONS[1]), SIZE, SIZE), FPS)
    query = "brought?batch=of-my-own-1&by=ann&group=hop&caption=hopping"
    kind = "application/octet-stream"
    status, _, body = ask(served, query, "POST", path.read_bytes(), Content_Type=kind)
    assert status == 200, body
    made = Path(run.root) / "made_queries" / "made-of-my-own-1.mp4"
    assert made.read_bytes() != path.read_bytes()
    for data, kind_of in ((b"no video at all", kind), (path.read_bytes()[:400], kind), (b"", kind)):
        status, _, body = ask(served, query.replace("own-1", "own-2"), "POST", data, Content_Type=kind_of)
        assert status in (400, 410)
        assert json.loads(body)["error"]
    assert ask(served, query, "POST", path.read_bytes(), Content_Type="video/mp4")[0] == 400
    assert ask(served, "brought?by=ann", "POST", path.read_bytes(), Content_Type=kind)[0] == 400
    assert len(list((Path(run.root) / "made_queries").glob("*.mp4"))) == 1
    assert [p.name for p in Path(served.bench.folder).iterdir() if p.name.startswith("tmp")] == []
    served.stop()


def test_a_chunked_video_that_is_longer_than_it_states_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(run)
    monkeypatch.setattr(made_queries, "LONGEST", 1000)
    link = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    query = "brought?batch=of-my-own-3&by=ann&group=hop&caption=hopping"
    headers = {"Content-Type": "application/octet-stream", "Content-Length": "10", "Transfer-Encoding": "chunked"}
    chunk = b"%x\r\n%s\r\n" % (600, b"x" * 600)
    link.request("POST", f"/{served.token}/{query}", 3 * chunk + b"0\r\n\r\n", headers)
    answer = link.getresponse()
    body = answer.read()
    link.close()
    assert answer.status == 400
    assert "at most 512 MiB" in json.loads(body)["error"]
    assert answer.getheader("Connection") == "close"
    assert [path.name for path in Path(served.bench.folder).iterdir() if path.name.startswith("tmp")] == []
    served.stop()


def test_a_video_that_is_too_short_says_so(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    write_mp4(str(path), np.zeros((3, SIZE, SIZE, 3), np.uint8), FPS)
    with Decoder() as decoder, pytest.raises(ClipError, match="too_short"):
        made_queries.of_file(run, str(path), asked(), decoder)
