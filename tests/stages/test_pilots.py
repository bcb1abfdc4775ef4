"""`resources: auto`: what a pilot measures, what stands in the run, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import config, models, tables
from pipeline.attribution.workers import AttributionWorker
from pipeline.cluster.nodes import Nodes
from pipeline.config import Run
from pipeline.config.operations import Pool
from pipeline.errors import ConfigError, NothingUsableError
from pipeline.inputs import changes
from pipeline.operations import index_pilot, stage_pilot
from pipeline.operations.pools import Chosen, Measure
from pipeline.stages import attribution, indexing, pilots, video_sets
from pipeline.tables import throughput
from pipeline.tables.throughput import Figures
from tests.support.registered import unregistered

MakeRun = Callable[..., Run]
AUTO = ("index_clips", "estimate_motion", "extract_features")


def videos_of(run: Run, count: int) -> list[dict[str, Any]]:
    videos, _ = pilots.drawn(video_sets.asked(run, "clips"), count, 0)
    rows: list[dict[str, Any]] = videos.to_pylist()
    return rows


def recorded(run: Run, measures: dict[str, Measure]) -> pilots.Record:
    """A record of these measures on a machine of two cores."""
    chosen = Chosen(pool=Pool(actors=2, batch=4), rate=4.0, seconds=0.5, busy=0.95, bottleneck="the cores")
    node = pilots.NodeRecord(cpus=2, gpus=0, count=1, memory=None)
    empty = pilots._record(run)
    values = {"nodes": (node,), "videos": 30, "segments": 1.0, "measures": measures}
    return empty.model_copy(update={**values, "chosen": dict.fromkeys(measures, chosen)})


def test_what_is_drawn_does_not_depend_on_blocks(
    small_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long manifest no more than a block is in memory."""
    asked = video_sets.asked(small_run(tmp_path), "clips")
    first, whole = pilots.drawn(asked, 3, 0)
    monkeypatch.setattr(changes, "BLOCK", 2)
    again, count = pilots.drawn(asked, 3, 0)
    assert (again.to_pylist(), count) == (first.to_pylist(), whole)
    assert (first.num_rows, pilots.drawn(asked, 10**6, 0)[0].num_rows) == (3, whole)
    assert whole > 3
    assert pilots.drawn(asked, 3, 1)[0].to_pylist() != first.to_pylist()


def test_the_parts_of_a_pilot_are_measured(small_run: MakeRun, tmp_path: Path) -> None:
    run = small_run(tmp_path, attribution__hold=1)
    indexed = index_pilot.index_videos(run, videos_of(run, 3))
    assert (len(indexed.clips), indexed.problems, indexed.segments) == (3, [], 1.0)
    index = indexed.measures["index_clips"]
    assert index.compute > 0
    assert index.decoder_memory > 1 << 20
    report = stage_pilot.attribute_clips(run, indexed.clips, features=True)
    motion, features = (report.measures[stage] for stage in ("estimate_motion", "extract_features"))
    assert report.problems == []
    assert features.gradients == 2, "masked and plain"
    assert 0 <= features.gradients * features.generation < features.compute
    assert features.memory >= motion.memory > 0
    assert features.compute >= motion.compute, "curate's actors do both, where the motion of all is measured"
    assert list(tmp_path.iterdir()) == [], "a pilot writes nothing"


def test_clips_that_cannot_be_used_are_told(small_run: MakeRun, tmp_path: Path) -> None:
    broken = tmp_path / "videos"
    broken.mkdir()
    (broken / "broken.mp4").write_bytes(b"no video")
    run = small_run(tmp_path / "run", data__videos=str(broken))
    report = index_pilot.index_videos(run, videos_of(run, 5))
    assert report.clips == []
    text = pilots._all_failed(run, 1, report.problems)
    assert "data.videos=" in text
    assert "decode: " in text
    assert "\n" not in text
    assert "model.gradient_checkpointing" in pilots._all_failed(run, 2, ["memory: CUDA out of memory"] * 2)


def test_too_little_memory_that_says_nothing_more_is_a_problem_of_the_pilot() -> None:
    problems = list[str]()
    with stage_pilot._Problems(problems, torch.device("cpu")):
        raise MemoryError
    assert problems == ["memory: MemoryError"]


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        ({"finetune__arm": "random"}, True),  # arms are trained in turn, by one choice
        ({"attribution__hold": 4}, True),  # that is chosen
        ({"attribution__height": 32}, False),
        ({"model__dtype": "bfloat16"}, False),
        ({"finetune__lora_rank": 4}, False),
    ],
)
def test_measurements_are_of_a_geometry_and_a_model(
    small_run: MakeRun, tmp_path: Path, overrides: dict[str, Any], same: bool
) -> None:
    key = pilots._record(small_run(tmp_path)).key
    assert (pilots._record(small_run(tmp_path, **overrides)).key == key) is same


def test_a_run_without_auto_is_left_alone(small_run: MakeRun, tmp_path: Path) -> None:
    run = small_run(tmp_path)
    assert pilots.with_pools(run, AUTO) is run
    other = small_run(tmp_path, resources__evaluate="auto")
    assert pilots.with_pools(other, AUTO) is other, "this job has no stage of it"
    assert list(tmp_path.iterdir()) == []


def test_a_record_comes_back_and_another_file_is_refused(small_run: MakeRun, tmp_path: Path) -> None:
    run = small_run(tmp_path, resources="auto")
    assert pilots._read(run) is None
    record = recorded(run, {"evaluate": Measure(rows=1, compute=0.5)})
    path = tmp_path / "resources" / "pilot.json"
    path.parent.mkdir()
    path.write_text(record.model_dump_json())
    assert pilots._read(run) == record
    assert [one.nodes() for one in record.nodes] == [Nodes(2, 0)]
    path.write_text(path.read_text()[:100])
    with pytest.raises(ConfigError, match=r"pilot\.json: this is no record of a pilot"):
        pilots._read(run)


def test_the_end_of_a_run_is_compared_with_its_plan(
    small_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run(tmp_path, resources="auto")
    pilots.compare(run)
    assert capsys.readouterr().out == ""
    record = recorded(run, {"extract_features": Measure(rows=20, compute=0.5)})
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "pilot.json").write_text(record.model_dump_json())
    figures = Figures(seconds=20, rows=30, actors=2, actor_seconds=40, busy_seconds=30)
    throughput.save(throughput.new_file(run.root, "attribute clips"), "attribute clips", figures)
    pilots.compare(run)
    assert capsys.readouterr().out.splitlines() == [
        "resources, as it was of what was planned: attribute clips 75% busy of 95%, 1 s a row of 0.5"
    ]
    assert unregistered(tmp_path) == []


def test_auto_is_a_word_in_a_pools_place(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    head = "root: r\ndata: {videos: v}\nqueries: {videos: q}\nmodel: {id: m}\n"
    file.write_text(head + "resources: {evaluate: auto, export: {actors: 2}}\n")
    run = config.load(str(file))
    assert run.resources.auto == ("evaluate",)
    assert config.parse(run.model_dump(mode="json"), "again") == run
    every = config.load_line("tiny", ["resources=auto"]).resources
    assert set(every.auto) == {*AUTO, "finetune", "evaluate"}
    assert config.load_line("tiny", ["resources.finetune=auto"]).resources.auto == ("finetune",)
    for pair, words in (("export=auto", "no pilot measures exports"), ("evaluate=autmatic", "evaluate='autmatic'")):
        with pytest.raises(ConfigError, match=words):
            config.load_line("tiny", [f"resources.{pair}"])


# --- on a cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def six_videos(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("six")
    for path in sorted((small_world / "clips").rglob("*.mp4"))[:6]:
        shutil.copy(path, folder)
    return str(folder)


@pytest.mark.whole
def test_a_pilot_chooses_once_and_no_feature_differs(
    small_run: MakeRun, six_videos: str, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pools = {f"resources__{stage}": "auto" for stage in AUTO}
    run = small_run(tmp_path, data__videos=six_videos, resources__pilot=3, **pools)
    chosen = pilots.with_pools(run, AUTO)
    assert "a pilot of 3 videos measures index_clips" in capsys.readouterr().out
    path = tmp_path / "resources" / "pilot.json"
    record = json.loads(path.read_text())
    assert chosen.resources.extract_features.memory, "actors are placed by memory"
    indexing.index(chosen, "clips")
    attribution.attribute(chosen, "clips")
    assert pilots.with_pools(run, AUTO) == chosen, "the same command goes on with the same pools"
    assert "a pilot of" not in capsys.readouterr().out
    assert json.loads(path.read_text()) == record
    pilots.compare(chosen)
    assert "resources, as it was of what was planned: " in capsys.readouterr().out
    assert unregistered(tmp_path) == []
    clips, features = (tables.read(str(tmp_path / name)) for name in ("clips", "features/clips"))
    assert clips is not None
    assert features is not None
    streamed = small_run(tmp_path, data__videos=six_videos, attribution__hold=1)
    worker = AttributionWorker(streamed, models.grid(streamed), {})
    alone = {row["clip_id"]: row for part in worker(clips.slice(0, 2)) for row in part["features"].to_pylist()}
    assert len(alone) == 2
    assert {row["clip_id"]: row for row in features.to_pylist() if row["clip_id"] in alone} == alone


@pytest.mark.slow
def test_a_pilot_of_which_nothing_can_be_used_writes_nothing(small_run: MakeRun, tmp_path: Path, cluster: None) -> None:
    from jobs.index_clips import index_clips

    broken = tmp_path / "videos"
    broken.mkdir()
    for i in range(3):
        (broken / f"{i}.mp4").write_bytes(b"no video")
    run = small_run(tmp_path / "run", data__videos=str(broken), resources__index_clips="auto")
    with pytest.raises(NothingUsableError, match="none of the pilot's 3 clips"):
        index_clips(run)
    assert not (tmp_path / "run").exists()
