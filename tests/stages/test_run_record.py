"""The record of a job that ended well: what makes it void, when there is none, and that it costs no heavy import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.config import Run
from pipeline.inputs import changes
from pipeline.stages import indexing, run_record, video_sets
from pipeline.storage import lease
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.frames import write_mp4
from tests.support.s3_store import BUCKET, Store

MakeRun = Callable[..., Run]
ROOT = Path(__file__).parents[2]
JOB = "index_clips"


def end_well(run: Run, said: tuple[str, ...] = (), job: str = JOB) -> None:
    """A job that has found its videos and made nothing of them."""
    key = run_record.completion_key(run, job)
    warnings = list[str]()
    with lease.hold(run.root, job), run_record.completing(run, job, key, warnings):
        warnings += said
        for name in video_sets.names(run):
            run_record.note_listing(name, changes.digest_of(video_sets.asked(run, name)))


def is_done(run: Run, job: str = JOB) -> bool:
    key = run_record.completion_key(run, job)
    return key is not None and run_record.valid_completion(run, job, key) is not None


@pytest.fixture
def run(small_run: MakeRun, small_world: Path, tmp_path: Path) -> Run:
    """A root with a table of clips, and videos that a test may change."""
    shutil.copytree(small_world, tmp_path / "world")
    places = {name: str(tmp_path / "world" / name) for name in ("clips", "queries", "held_out")}
    made = small_run(
        tmp_path / "run",
        data__videos=places["clips"],
        queries__videos=places["queries"],
        evaluate__videos=places["held_out"],
    )
    add_clips(made, {"a": None, "b": "decode: torn"})
    return made


def add_clips(run: Run, errors: dict[str, str | None]) -> None:
    columns = {f.name: [None] * len(errors) for f in schemas.CLIPS}
    columns |= {"clip_id": list(errors), "error": list(errors.values())}
    rows = [{name: columns[name][i] for name in columns} for i in range(len(errors))]
    tables.append(f"{run.root}/clips", pa.Table.from_pylist(rows, schema=schemas.CLIPS), {})


def test_a_job_that_ended_well_has_nothing_to_do(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_done(run)
    end_well(run, ("WARNING of that run",))
    assert is_done(run)
    assert not is_done(run, "curate"), "another job's record was taken"
    key = run_record.completion_key(run, JOB)
    assert key is not None
    assert run_record.is_done(run, JOB, key, ["something else"])
    out, err = capsys.readouterr()
    assert "nothing has changed since" in out
    assert "2 in clips/" in out
    assert f"delete {run.root}/completion/{JOB}.json" in out
    assert "WARNING of that run" in err
    assert run_record.is_done(run, JOB, key, ["WARNING of that run"])
    assert capsys.readouterr().err == "", "a warning was said twice"


def _rewrite(path: Path) -> None:
    """Other bytes under the same name, size and modification time."""
    status = path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _edit_caption(folder: Path) -> None:
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[0]["caption"] += "!"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "a part is deleted": lambda home: next((home / "run/clips").glob("part-*")).unlink(),
    "a file is rewritten at its size and time": lambda home: _rewrite(next((home / "run/clips").glob("part-*"))),
    "a file is added": lambda home: (home / "run/notes.txt").write_text("x"),
    "another job holds the root": lambda home: (home / "run/.lease-0").write_text("x"),
    "a video is deleted": lambda home: next((home / "world/clips").rglob("*.mp4")).unlink(),
    "a video is newer": lambda home: os.utime(next((home / "world/held_out").rglob("*.mp4")), ns=(1, 1)),
    "a caption is edited": lambda home: _edit_caption(home / "world/queries"),
    "the videos are gone": lambda home: shutil.rmtree(home / "world"),
    "the record is damaged": lambda home: (home / f"run/completion/{JOB}.json").write_text("{"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_makes_the_record_void(run: Run, change: str) -> None:
    end_well(run)
    assert is_done(run)
    CHANGES[change](Path(run.root).parent)
    assert not is_done(run)


def test_a_video_is_known_by_its_version(run: Run) -> None:
    """A manifest says other words of a video, or none: the listing counts, and the times of its file do not."""
    end_well(run)
    os.utime(Path(str(run.queries.videos)) / "metadata.jsonl", ns=(1, 1))
    assert is_done(run), "a manifest with the same rows is another listing"


def test_other_words_are_another_command(run: Run, small_run: MakeRun, tmp_path: Path) -> None:
    end_well(run)
    assert not is_done(run.model_copy(update={"seed": 1}))
    weights = tmp_path / "raft.safetensors"
    shutil.copy(run.motion.weights, weights)
    other = run.model_copy(update={"motion": run.motion.model_copy(update={"weights": str(weights)})})
    assert not is_done(other)
    end_well(other)
    assert is_done(other)
    os.utime(weights, ns=(1, 1))
    assert not is_done(other), "weights may be other ones by now"


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("tracking", {"kind": "mlflow"}),
        ("model", {"id": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"}),
        ("model", {"adapter": "mine.models:Family"}),
        ("finetune", {"arm": "embedding"}),
    ],
)
def test_what_cannot_be_seen_from_here_is_never_done(run: Run, section: str, values: dict[str, Any]) -> None:
    changed = run.model_copy(update={section: getattr(run, section).model_copy(update=values)})
    assert run_record.completion_key(changed, JOB) is None
    end_well(changed)
    assert not Path(run_record.completion_place(changed, JOB)).exists()


@pytest.mark.parametrize("code", ["read", "crashed", "memory"])
def test_errors_that_are_tried_again_are_left(run: Run, code: str) -> None:
    end_well(run)
    add_clips(run, {"c": f"{code}: for a moment"})
    end_well(run)
    assert not Path(run_record.completion_place(run, JOB)).exists(), "the record of before is still there"


def test_words_that_came_meanwhile_are_left(run: Run) -> None:
    with run_record.completing(run, JOB, run_record.completion_key(run, JOB), []):
        folder = Path(run.root) / "decisions"
        folder.mkdir()
        (folder / "part-x.parquet").write_bytes(b"")
    assert not is_done(run)


def test_what_a_stage_leaves_and_a_job_that_fails_leave_no_record(run: Run) -> None:
    with run_record.completing(run, JOB, run_record.completion_key(run, JOB), []):
        run_record.note_retry("a held-out clip")
    assert not is_done(run)
    with pytest.raises(RuntimeError), run_record.completing(run, JOB, run_record.completion_key(run, JOB), []):
        raise RuntimeError("it failed")
    assert not is_done(run)
    run_record.note_retry("outside of a job this is for nobody")


def test_videos_that_change_while_they_are_indexed_are_left(run: Run) -> None:
    with run_record.completing(run, JOB, run_record.completion_key(run, JOB), []):
        run_record.note_listing("clips", "first")
        run_record.note_listing("clips", "second")
    assert not is_done(run)


def test_roots_that_are_ranked_together_count(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    joint = run.model_copy(update={"ranking": run.ranking.model_copy(update={"roots": (str(other),)})})
    end_well(joint)
    assert is_done(joint)
    (other / ".lease-0").write_text("x")
    assert not is_done(joint), "another job works one of the roots"
    (other / ".lease-0").unlink()
    assert is_done(joint)
    (other / "part").write_text("x")
    assert not is_done(joint)
    with run_record.completing(joint, JOB, run_record.completion_key(joint, JOB), []):
        (other / "part").write_text("xx")
    assert not is_done(joint), "clips came that this ranking may not have"


def test_an_index_notes_the_listing_that_it_worked(
    small_run: MakeRun, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mp4(str(tmp_path / "videos/a.mp4"), world.render(world.corpus(3, 1)[0], 32, 32), 8.0)
    made = small_run(tmp_path / "run", data__videos=str(tmp_path / "videos"))
    listings = dict[str, str]()
    monkeypatch.setattr(run_record, "note_listing", listings.__setitem__)
    indexing.index(made, "clips")
    assert listings == {"clips": changes.digest_of(video_sets.asked(made, "clips"))}


def test_a_root_on_a_store_is_known_by_etags(run: Run, store: Store) -> None:
    made = run.model_copy(update={"root": f"s3://{BUCKET}/runs/a run [1]"})
    add_clips(made, {"a": None})
    end_well(made)
    assert is_done(made)
    add_clips(made, {"b": None})
    assert not is_done(made)


HEAVY = ("torch", "torchvision", "ray", "diffusers", "transformers", "scipy")
CPU_SECONDS = 5.0  # of a child; it takes one, and ten where torch is imported


@pytest.mark.parametrize("job", ["index_clips", "estimate_motion", "extract_features", "rank_clips", "curate", "demo"])
def test_a_finished_job_imports_nothing_heavy(run: Run, job: str) -> None:
    path = Path(run.root).parent / "run.yaml"
    path.write_text(json.dumps(run.model_dump(mode="json")))  # JSON is YAML
    end_well(run, job=job)
    code = (
        "import atexit, resource, runpy, sys\n"
        "def tell():\n"
        "    usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"    print([m for m in {HEAVY} if m in sys.modules], usage.ru_utime + usage.ru_stime, flush=True)\n"
        "atexit.register(tell)\n"
        f"runpy.run_module('jobs.{job}', run_name='__main__', alter_sys=True)\n"
    )
    line = [sys.executable, "-c", code, "--config", str(path)]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    modules, _, seconds = ended.stdout.splitlines()[-1].rpartition(" ")
    assert "There is nothing to do" in ended.stdout
    assert modules == "[]", f"{modules} were imported"
    assert float(seconds) < CPU_SECONDS
