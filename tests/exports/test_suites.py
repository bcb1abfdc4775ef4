"""Generated videos as evaluation suites look for them, and what suites say of them as rows of evaluation/."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs import export as job
from pipeline import config, tables
from pipeline.config import Run
from pipeline.errors import ConfigError, InputError, MissingTableError, NothingUsableError
from pipeline.exports import suites
from pipeline.exports.suite_results import read_results
from pipeline.exports.suites import Prompt, Video, read_prompts
from pipeline.storage import stores
from pipeline.tables import schemas

MakeRun = Callable[..., Run]
VIDEOS = [Video(f"q{n}", f"prompt {n}", seed, "v", f"/g/prompt {n}-{seed}.mp4") for n in range(2) for seed in (0, 7)]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run in which the arm random has generated two videos of two queries each."""
    root = tmp_path / "run"
    lines = []
    for video in VIDEOS:
        uri = root / "generated" / "random" / Path(video.uri).name
        stores.write_bytes(str(uri), f"{video.clip_id} {video.seed}".encode())
        about = {"arm": "random", "clip_id": video.clip_id, "seed": video.seed, "version": "v"}
        lines.append({**about, "uri": str(uri), "metric": "temporal_flickering", "value": 0.5})
    lines.append({**about, "seed": 0, "clip_id": "h", "uri": "/held/out.mp4", "metric": "masked_loss", "value": 0.1})
    tables.append(str(root / "evaluation"), pa.Table.from_pylist(lines, schema=schemas.EVALUATION), {"a": 1})
    queries = [{"clip_id": f"q{n}", "caption": f"prompt {n}"} for n in range(2)]
    tables.append(str(root / "queries"), pa.Table.from_pylist(queries, schema=schemas.QUERIES), {})

    def make(name: str, **changes: Any) -> Run:
        values = {"root": str(root), "export.format": name, "export.arm": "random"}
        return config.load("demo", {**values, **{key.replace("__", "."): value for key, value in changes.items()}})

    return make


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.mp4")}


def test_each_suite_finds_its_names() -> None:
    prompts = [Prompt("prompt 1", "0012_ball.mp4", ("Mechanics", "Human Identity"), 1), Prompt("none", "", (), 2)]
    first, second = VIDEOS[2:]
    assert suites.vbench2("a", VIDEOS, prompts) == {
        "Mechanics/prompt 1-0.mp4": first,
        "Mechanics/prompt 1-1.mp4": second,
        "Human_Identity/prompt 1-0.mp4": first,
        "Human_Identity/prompt 1-1.mp4": second,
    }
    assert suites.vmbench("a", VIDEOS, [Prompt("prompt 0", "", (), 1050)]) == {"videos/1050.mp4": VIDEOS[0]}
    assert suites.vmbench("a", VIDEOS, [Prompt("prompt 0", "7", (), 1)]) == {"videos/0007.mp4": VIDEOS[0]}
    assert suites.physics_iq("a", VIDEOS, prompts) == {"a/0012_ball.mp4": first}
    assert suites.phyground("a", VIDEOS, prompts) == {"videos/a/0012_ball.mp4": first}
    long = [Video("q", "x" * 300, 0, "v", "/g/x.mp4")]
    assert list(suites.vbench2("a", long, [Prompt("x" * 300, "", ("D",), 1)])) == [f"D/{'x' * 180}-0.mp4"]


def test_lists_of_prompts() -> None:
    entries = [{"prompt_en": " a ball ", "dimension": ["Material"]}, {"prompt": "b", "index": "0003"}, "c"]
    assert read_prompts(json.dumps(entries), "p.json") == [
        Prompt("a ball", "", ("Material",), 1),
        Prompt("b", "0003", (), 2),
        Prompt("c", "", (), 3),
    ]
    table = "scenario,description,generated_video_name\n1,it falls,0001_x.mp4\n"
    assert read_prompts(table, "d.csv") == [Prompt("it falls", "0001_x.mp4", (), 1)]
    for text, path in (("{", "a.json"), ("{}", "a.json"), ('[{"id": 1}]', "a.json"), ("", "a.txt")):
        with pytest.raises(InputError, match=r"export\.suite="):
            read_prompts(text, path)


def test_videos_go_out_and_scores_come_back(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("videophy2", export__path="/suite")
    job.export(run)
    folder = Path(run.root) / "exports" / "videophy2-random" / "files"
    assert files(folder)["videos/prompt 1-7.mp4"] == "q1 7"
    rows = list(csv.DictReader((folder / "videophy2.csv").open()))
    assert rows[0] == {"caption": "prompt 0", "videopath": "/suite/videos/prompt 0-0.mp4"}
    table = tables.read(stores.join(run.root, "exports", "videophy2-random"))
    assert table.column("clip_id").to_pylist() == ["q0", "q1"], "a purge would not know whom it names"
    for task, scores in (("sa", (5, 4, 3, 5)), ("pc", (4, 4, 5, 2))):
        lines = [f"{row['caption']},{row['videopath']},{score}" for row, score in zip(rows, scores, strict=True)]
        (tmp_path / f"output_{task}.csv").write_text("caption,videopath,score\n" + "\n".join(lines))
    results = [str(tmp_path / f"output_{task}.csv") for task in ("sa", "pc")]
    for _ in range(2):  # read twice, they are there once
        job.export(make_run("videophy2", export__results=results))
    values = tables.read(stores.join(run.root, "evaluation"))
    joint = [r for r in values.to_pylist() if r["metric"] == "videophy2_joint"]
    assert {(r["clip_id"], r["seed"]): r["value"] for r in joint} == {
        ("q0", 0): 1.0,
        ("q0", 7): 1.0,
        ("q1", 0): 0.0,
        ("q1", 7): 0.0,
    }
    assert values.num_rows == 5 + 3 * 4
    tables.check(stores.join(run.root, "evaluation"), {"a": 1})


def test_results_of_dimensions() -> None:
    videos = [
        {"file": f"{dimension}/p-{n}.mp4", "arm": "a", "clip_id": "q", "seed": n, "version": "v", "uri": "u"}
        for dimension in ("Material", "Mechanics")
        for n in range(2)
    ]
    listed = [{"video_path": f"/x/Material/p-{n}.mp4", "video_results": n == 1} for n in range(2)]
    rows = read_results("vbench2", {"r.json": json.dumps({"Material": [0.5, listed]})}, videos)
    assert [(row["metric"], row["seed"], row["value"]) for row in rows] == [
        ("vbench2_Material", 0, 0.0),
        ("vbench2_Material", 1, 1.0),
    ]
    for text, why in (
        ({"D": [0.5, [{"video_path": "/x/other.mp4", "video_results": 1}]]}, "no video of this export"),
        ({"D": [0.5, [{"video_path": "/x/Material/p-0.mp4", "video_results": "good"}]]}, "no number"),
        ({"D": 0.5}, "neither a table"),
        ([1], "neither a table"),
    ):
        with pytest.raises(InputError, match=why):
            read_results("vbench2", {"r.json": json.dumps(text)}, videos)


def test_results_of_phyground() -> None:
    video = {"file": "videos/a/fall_1.mp4", "arm": "a", "clip_id": "q", "seed": 0, "version": "v", "uri": "u"}
    record = {"video": "fall_1", "SA": 4, "PTV": 5, "persistence": None, "physical": {"avg": 3.5}}
    rows = read_results("phyground", {"scores.json": json.dumps({"results": [record]})}, [video])
    assert {row["metric"]: row["value"] for row in rows} == {
        "phyground_SA": 4.0,
        "phyground_PTV": 5.0,
        "phyground_physical": 3.5,
    }


def test_what_is_missing_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"export\.suite"):
        job.export(make_run("vmbench"))
    with pytest.raises(ConfigError, match="exactly 5 seconds"):
        job.export(make_run("physics-iq", export__suite="x.csv"))
    with pytest.raises(MissingTableError, match=r"jobs\.evaluate"):
        job.export(make_run("videophy2", export__arm="all"))
    (tmp_path / "p.txt").write_text("another prompt\n")
    with pytest.raises(NothingUsableError, match="such as 'prompt 0'"):
        job.export(make_run("vmbench", export__suite=str(tmp_path / "p.txt")))
    with pytest.raises(ConfigError, match=r"export\.suite=.*gone\.txt'?: there is no such file"):
        job.export(make_run("vmbench", export__suite=str(tmp_path / "gone.txt")))
    (tmp_path / "latin.txt").write_bytes("ein Fuß\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt'?: it cannot be read: it is not UTF-8"):
        job.export(make_run("vmbench", export__suite=str(tmp_path / "latin.txt")))
    with pytest.raises(MissingTableError, match="export the videos"):
        job.export(make_run("videophy2", export__results=["a.csv"]))
