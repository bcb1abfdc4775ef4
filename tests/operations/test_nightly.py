"""Three nights on a growing folder of the synthetic world, and what a night refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

import jobs.nightly
from jobs import command
from jobs.nightly import nightly
from pipeline import models, tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.errors import ConfigError, FingerprintError, SpentError, UsageError
from pipeline.evaluation.held_out import Trained
from pipeline.operations import in_use, nights, reattribution, webhook
from pipeline.operations.in_use import InUse
from pipeline.operations.reattribution import FIELD
from pipeline.stages import attribution, held_out, indexing, video_sets
from pipeline.stages.progress import Counted
from pipeline.statistics import rank_drift
from pipeline.storage import stores
from pipeline.tables import schemas
from tests.support.registered import unregistered

MakeRun = Callable[..., Run]
SPOILED = "2026-03-01"
FIRST, SECOND, THIRD = "2026-03-02", "2026-03-04", "2026-03-05"  # nobody ran on the third


def files(folder: Path) -> Mapping[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def world(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of some of the small world's clips, which grows."""
    folder = tmp_path_factory.mktemp("nightly") / "videos"
    folder.mkdir()
    for source in sorted((small_world / "clips").rglob("*.mp4"))[:16]:
        shutil.copy2(source, folder / source.name)
    return folder


@pytest.fixture(scope="module")
def make(small_run: MakeRun, world: Path) -> Callable[..., Run]:
    def made(night: str, **overrides: Any) -> Run:
        values = {
            "data__videos": str(world),
            "nightly__date": night,
            "nightly__drift_clips": 6,
            "nightly__promote__confidence": 0.5,
            "ranking__fraction": 0.25,
            "finetune__steps": 6,
            "finetune__learning_rate": 1e-4,
            "finetune__caption_dropout": 0,
            "nightly__keep": 2,
            "resources__extract_features": {"actors": 1, "cpus": 1, "batch": 32},
            "resources__estimate_motion": {"actors": 1, "cpus": 1, "batch": 32},
            "resources__evaluate": {"actors": 1, "cpus": 1, "batch": 32},
        }
        return small_run(world.parent / "root", **{**values, **overrides})

    return made


def spoil(run: Run, root: Path) -> None:
    """Put a model in use that any other is better than, so that the first night certainly promotes its own."""
    model = models.open_model(run.model, torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.trained.parameters():
            parameter.add_(0.01)
    model.trained.save_pretrained(root / "finetuned" / "spoiled" / "transformer")
    base = models.weights_hash(run.model)
    in_use.keep(str(root), SPOILED, str(root / "finetuned" / "spoiled"), "spoiled", base)
    in_use.put(str(root), SPOILED, "spoiled")


@pytest.fixture(scope="module")
def three(make: Callable[..., Run], world: Path, small_world: Path, cluster: None) -> dict[str, dict[str, Any]]:
    """The records of three nights; the third has nothing new."""
    root = world.parent / "root"
    spoil(make(FIRST), root)
    nightly(make(FIRST))
    shutil.copytree(root, world.parent / "after_first")
    source = sorted((small_world / "clips").rglob("*.mp4"))
    for path in source[16:22]:
        shutil.copy2(path, world / path.name)
    (world / source[0].name).unlink()
    (world / source[1].name).write_bytes(source[29].read_bytes())
    nightly(make(SECOND))
    shutil.copytree(root / "features", world.parent / "features_of_second")
    nightly(make(THIRD))
    return {r["date"]: r for r in nights.finished(str(root))}


def test_a_night_finds_what_is_new_changed_and_gone(three: dict[str, dict[str, Any]], world: Path) -> None:
    first = json.loads((world.parent / "after_first" / "nights" / FIRST / "night.json").read_text())
    assert first["videos"] == {"all": 16, "new": 16, "changed": 0, "vanished": 0}
    assert first["missed"] == []
    assert three[SECOND]["videos"] == {"all": 21, "new": 6, "changed": 1, "vanished": 1}
    assert 0 < three[SECOND]["attributed"]["clips"] <= 7, "clips that were there were attributed again"
    assert three[SECOND]["missed"] == ["2026-03-03"]
    assert three[SECOND]["selection"]["influence"]["clips"] >= 10


def test_every_folder_is_registered(three: dict[str, dict[str, Any]], world: Path) -> None:
    assert unregistered(world.parent / "root") == [], "a purge knows nothing of it"


def test_nothing_new_changes_nothing(three: dict[str, dict[str, Any]], world: Path) -> None:
    third = three[THIRD]
    assert third["videos"] == {"all": 21, "new": 0, "changed": 0, "vanished": 0}
    assert third["attributed"]["clips"] == 0
    assert (third["selection"]["added"], third["selection"]["removed"]) == (0, 0)
    assert third["selection"]["influence"]["spearman"] == pytest.approx(1)
    assert third["candidate"] == three[SECOND]["candidate"], "the same selection was trained on again"
    before, now = (tables.read(str(world.parent / f)) for f in ("features_of_second/clips", "root/features/clips"))
    assert now.equals(before)


def test_features_mean_the_same_whatever_is_in_use(three: dict[str, dict[str, Any]], world: Path) -> None:
    before, now = (tables.read(str(world.parent / r / "features" / "clips")) for r in ("after_first", "root"))
    known = dict(zip(before.column("clip_id").to_pylist(), before.column("feature").to_pylist(), strict=True))
    shared_rows = [
        (i, f) for i, f in zip(now["clip_id"].to_pylist(), now["feature"].to_pylist(), strict=True) if i in known
    ]
    assert len(shared_rows) >= 10
    assert all(known[i] == f for i, f in shared_rows)
    assert tables.metadata(str(world.parent / "root" / "features" / "clips"))["fingerprint"][FIELD] is None


def test_what_is_better_is_promoted_and_nothing_else(three: dict[str, dict[str, Any]], world: Path) -> None:
    root = str(world.parent / "root")
    first = json.loads((world.parent / "after_first" / "nights" / FIRST / "night.json").read_text())
    assert first["promoted"], "the spoiled model stayed"
    used = SPOILED
    for record in (first, three[SECOND], three[THIRD]):
        losses = {name: metrics["masked_loss"] for name, metrics in record["losses"].items()}
        assert record["before"] == used
        if record["pairs"]:
            improvement = (losses[record["against"]] - losses["candidate"]) / losses[record["against"]]
            assert record["improvement"] == pytest.approx(improvement)
            assert record["promoted"] == (record["bound"] > 0 and record["plain_change"] <= 0.01)
        else:
            assert not record["promoted"]
        used = record["date"] if record["promoted"] else used
        assert record["in_use"] == used
    now = in_use.in_use(root)
    assert now.night == used
    assert (Path(now.folder) / "transformer" / "config.json").is_file()
    assert (Path(now.folder) / "curated" / "segments.jsonl").is_file()


def test_drift_is_measured_on_random_clips_with_an_interval(three: dict[str, dict[str, Any]], world: Path) -> None:
    root = world.parent / "root"
    drift = three[THIRD]["drift"]
    assert drift["clips"] == 6
    low, high = drift["spearman_interval"]
    assert -1 <= low <= drift["spearman"] <= high <= 1
    now = in_use.in_use(str(root))
    features = tables.read(str(Path(now.folder).parent / "drift" / "features" / "clips"))
    pinned = tables.read(str(root / "features" / "clips"))
    same = dict(zip(pinned["clip_id"].to_pylist(), pinned["feature"].to_pylist(), strict=True))
    pairs = zip(features["clip_id"].to_pylist(), features["feature"].to_pylist(), strict=True)
    assert any(same[i] != f for i, f in pairs), "the model in use gave the base's features"
    assert three[THIRD]["price"]["seconds_a_clip"] > 0


def test_a_finished_night_run_again_changes_no_file(
    three: dict[str, dict[str, Any]], make: Callable[..., Run], world: Path
) -> None:
    before = files(world.parent / "root")
    nightly(make(THIRD))
    assert files(world.parent / "root") == before


def test_old_nights_go_but_not_the_model_in_use(three: dict[str, dict[str, Any]], world: Path) -> None:
    root = str(world.parent / "root")
    used = in_use.in_use(root).night
    assert nights.begun(root) == sorted({SECOND, THIRD} | {used})


def test_the_page_compares_the_nights_and_names_no_clip(three: dict[str, dict[str, Any]], world: Path) -> None:
    root = world.parent / "root"
    page = (root / "nights" / THIRD / "index.html").read_text()
    assert page.count("<svg") == 4  # both losses, what changed, drift
    assert f'href="../{SECOND}/index.html"' in page
    assert three[THIRD]["reason"] in page.replace("&#39;", "'")
    assert not re.search(r"\b(nan|None|undefined)\b", page)
    ids = tables.read(str(root / "clips"), ["clip_id"]).column("clip_id").to_pylist()
    assert not [i for i in ids if i in page]
    assert (root / "report" / "index.html").is_file()


# --- the order of a night, with stages that cost nothing --------------------------------------------------------------


class Stages:
    """Stands in for the stages: `clips` is what they would have left, `losses` what evaluation would find."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root, self.losses, self.version, self.trainings = root, {"base": 1.0}, "motive-1", 0
        monkeypatch.setattr(indexing, "index", lambda *_: None)
        monkeypatch.setattr(attribution, "attribute", lambda *_: None)
        for name in ("attribute_queries", "index_data", "report", "check"):
            monkeypatch.setattr(jobs.nightly, name, lambda *_: None)
        monkeypatch.setattr(video_sets, "check_disjoint", lambda *_: None)
        monkeypatch.setattr(jobs.nightly.streaming, "connect", lambda: None)
        monkeypatch.setattr(jobs.nightly.resources, "check", lambda *_: None)
        held_out_clips = pa.table(
            {"clip_id": [f"held-{i}" for i in range(5)], "error": pa.array([None] * 5, pa.string())}
        )
        monkeypatch.setattr(attribution, "estimate_motion", lambda *_: None)
        tables.append(str(root / "motion" / "held_out"), held_out_clips, {})
        monkeypatch.setattr(held_out, "held_out_tasks", lambda known, rows: [(m, r) for m in known for r in rows])
        monkeypatch.setattr(held_out, "measure", self.measure)
        monkeypatch.setattr(jobs.nightly, "finetune", self.finetune)
        monkeypatch.setattr(jobs.nightly, "rank_clips", self.rank)
        monkeypatch.setattr(jobs.nightly, "measure_drift", lambda *_: {"drift": None, "drift_features": None})
        folder = root / "finetuned" / "selected"
        monkeypatch.setattr(jobs.nightly, "trained", lambda *_: Trained("selected", self.version, str(folder)))

    def rank(self, run: Run) -> None:
        clips = [{"clip_id": i, "uri": f"/{i}", "version": "1"} for i in "ab"]
        tables.replace(str(self.root / "clips"), pa.Table.from_pylist(clips, schemas.CLIPS), {})
        rows = [{"clip_id": i, "group": "all", "rank": n, "mean_influence": 0.5 - n} for n, i in enumerate("ab")]
        tables.replace(str(self.root / "selection"), pa.Table.from_pylist(rows, schemas.SELECTION), {})

    def finetune(self, run: Run) -> None:
        self.trainings += 1
        stores.write_bytes(str(self.root / "finetuned/selected/transformer/weights"), self.version.encode())

    def measure(self, run: Run, tasks: list[tuple[Trained, dict[str, str]]], folder: str) -> None:
        measurements = tables.read(folder)
        known = (
            set()
            if measurements is None
            else set(zip(measurements["version"].to_pylist(), measurements["clip_id"].to_pylist(), strict=True))
        )
        rows = [
            {"arm": m.arm, "clip_id": r["clip_id"], "metric": metric, "version": m.version, "seed": 0, "uri": ""}
            | {"value": self.losses[m.version] + i / 1000}
            for i, (m, r) in enumerate(tasks)
            for metric in ("masked_loss", "plain_loss")
            if (m.version, r["clip_id"]) not in known
        ]
        self.measured = len(rows)
        tables.append(folder, pa.Table.from_pylist(rows, schemas.EVALUATION), fingerprints.evaluation(run))


@pytest.fixture
def staged(
    make: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Stages, Callable[..., Run]]:
    root = tmp_path / "root"

    def run(night: str, **overrides: Any) -> Run:
        return make(night, **overrides).model_copy(update={"root": str(root)})

    return Stages(monkeypatch, root), run


def test_the_model_in_use_stays_until_a_better_one_comes(staged: tuple[Stages, Callable[..., Run]]) -> None:
    stages, run = staged
    outcomes = []
    for day, (version, loss) in enumerate((("one", 1.1), ("two", 0.8), ("three", 0.9), ("four", 0.7)), 10):
        stages.version, stages.losses[version] = version, loss
        nightly(run(f"2026-03-{day}", nightly__keep=1))
        outcomes.append((nights.finished(str(stages.root))[-1]["promoted"], in_use.in_use(str(stages.root)).version))
    assert outcomes == [(False, "base"), (True, "two"), (False, "two"), (True, "four")]
    assert nights.begun(str(stages.root)) == ["2026-03-13"]
    assert (stages.root / "nights/2026-03-13/model/transformer/weights").read_text() == "four"


def test_an_earlier_nights_losses_are_taken_over(staged: tuple[Stages, Callable[..., Run]]) -> None:
    stages, run = staged
    stages.losses |= {"one": 0.9, "two": 0.8}
    stages.version = "one"
    nightly(run("2026-03-10"))
    assert stages.measured == 20
    stages.version = "two"
    nightly(run("2026-03-11"))
    assert stages.measured == 10, "base and the model in use were measured again"
    nightly(run("2026-03-12"))
    last = nights.finished(str(stages.root))[-1]
    assert stages.measured == 0
    assert not last["promoted"]
    assert "it is the model in use" in last["reason"]


def test_a_model_trained_on_purged_clips_is_no_measure(staged: tuple[Stages, Callable[..., Run]]) -> None:
    stages, run = staged
    stages.losses |= {"one": 0.5, "two": 0.9}
    stages.version = "one"
    nightly(run("2026-03-10"))
    note = stages.root / "nights/2026-03-10/model" / in_use.PROMOTED
    note.write_text(json.dumps({**json.loads(note.read_text()), "purged": ["x"]}))
    stages.version = "two"
    nightly(run("2026-03-11"))
    last = nights.finished(str(stages.root))[-1]
    assert (last["promoted"], last["against"], last["in_use"]) == (True, "base", "2026-03-11")
    assert "purged" in last["reason"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (jobs.nightly, "rank_clips"),
        (held_out, "measure"),
        (in_use, "weights_hash"),
        (in_use, "put"),
        (nights, "selection_of"),
        (jobs.nightly, "measure_drift"),
        (jobs.nightly, "report"),
        (nights, "retain"),
    ],
)
@pytest.mark.parametrize("later", ["2026-03-11", "2026-03-13"])
def test_a_killed_night_is_continued(
    staged: tuple[Stages, Callable[..., Run]], monkeypatch: pytest.MonkeyPatch, module: Any, name: str, later: str
) -> None:
    """By the same command, or by the next night's where its decision was made."""
    stages, run = staged
    stages.losses |= {"one": 0.9, "two": 0.8}
    stages.version = "one"
    nightly(run("2026-03-10"))
    stages.version = "two"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            nightly(run("2026-03-11"))
    nightly(run(later))
    done = nights.finished(str(stages.root))
    dates = [record["date"] for record in done]
    assert dates[-1] == later
    assert set(dates) <= {"2026-03-10", "2026-03-11", later}
    assert "2026-03-11" in dates or done[-1]["missed"] == ["2026-03-11", "2026-03-12"]
    assert sum(record["candidate"] == "two" and record["promoted"] for record in done) == 1
    assert in_use.in_use(str(stages.root)).version == "two"
    assert stores.exists(str(Path(in_use.in_use(str(stages.root)).folder) / "transformer" / "weights"))
    before = files(stages.root)
    nightly(run(later))
    assert files(stages.root) == before


@pytest.mark.parametrize(
    ("module", "name", "decided"),
    [
        (attribution, "attribute", False),
        (jobs.nightly, "finetune", False),
        (held_out, "measure", False),
        (jobs.nightly, "measure_drift", True),
    ],
)
def test_a_spent_budget_ends_a_night_that_the_same_date_goes_on_with(
    staged: tuple[Stages, Callable[..., Run]], monkeypatch: pytest.MonkeyPatch, module: Any, name: str, decided: bool
) -> None:
    stages, run = staged
    stages.losses |= {stages.version: 0.9}
    root, bodies = str(stages.root), list[dict[str, str]]()
    monkeypatch.setenv("CURATION_HOOK", "https://hooks.example.com/x")
    monkeypatch.setattr(webhook, "_try", lambda _, body: (bodies.append(json.loads(body)), (None, True))[1])
    path = stages.root.parent / "run.yaml"
    path.write_text(yaml.safe_dump(run("2026-03-10", webhook__variable="CURATION_HOOK").model_dump(mode="json")))
    monkeypatch.setattr("sys.argv", ["nightly", "--config", str(path)])

    def spent(*_: object, **__: object) -> None:
        raise SpentError("x: budget.gpu_hours=1 is spent after 60 of 100")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, spent)
        command.main(nightly, None)  # it ends without an exit status of its own, which is 0
    assert nights.finished(root) == []
    assert (in_use.in_use(root).night == "2026-03-10") is decided, "a model is used that nothing was decided on"
    for _ in range(2):
        command.main(nightly, None)
    (done,) = nights.finished(root)
    assert (done["promoted"], in_use.in_use(root).night) == (True, "2026-03-10")
    assert [(t["job"], t["state"]) for t in bodies] == [("nightly", "spent"), ("nightly", "finished")]
    assert (bodies[1]["night"], bodies[1]["headline"]) == ("2026-03-10", done["headline"][:500])


# --- what a night refuses, and a re-attribution ----------------------------------------------------------------------


def test_a_night_refuses_what_cannot_be_judged(make: Callable[..., Run], world: Path, tmp_path: Path) -> None:
    def refused(match: str, **overrides: Any) -> None:
        run = make("2026-03-06", **overrides).model_copy(update={"root": str(tmp_path)})
        with pytest.raises(UsageError, match=match):
            nightly(run)

    refused("took no part in the selection", evaluate__videos=None)
    refused("nothing to promote", finetune__arm="base")
    refused("in the future", nightly__date="2999-01-01")
    nights.write(str(tmp_path), "2026-03-07", "night.json", {"date": "2026-03-07"})
    refused("done already", nightly__date="2026-03-06")


@pytest.mark.parametrize("of", ["all", "queries"])
def test_drift_takes_features_of_its_clips_from_the_runs_own_tables(
    make: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """Also where the motion of clips is not measured, as none of theirs is in motion/."""
    settings = [{"mask": "motion", "of": "queries"}, {"mask": "none", "of": "clips"}]
    changes = {"motion__of": of, "attribution__settings": settings, "ranking__mask": "queries"} if of != "all" else {}
    run = make("2026-03-06", **changes).model_copy(update={"root": str(tmp_path)})
    for name in ("clips", "queries"):
        ids = [f"{name}-{n}" for n in range(8)]
        rows = [{"clip_id": i, "uri": f"/{i}.mp4", "version": "1", "num_frames": 9} for i in ids]
        tables.append(str(tmp_path / name), pa.Table.from_pylist(rows, schemas.CLIPS), {})
        if of == "all" or name == "queries":
            motion_rows = pa.table({"clip_id": ids, "version": ["1"] * 8, "error": pa.nulls(8, pa.string())})
            for column, kind in (("mask", pa.binary()), ("mask_shape", pa.list_(pa.int32()))):
                motion_rows = motion_rows.append_column(column, pa.nulls(8, kind))
            tables.append(str(tmp_path / "motion" / name), motion_rows, fingerprints.motion(run))
    streamed: dict[str, tuple[list[str], str]] = {}

    def stream(other: Run, pool: Any, worker: Any, pending: Any, folders: Any, title: str, scope: Any) -> None:
        ids = sorted(i for rows in pending.rows for i in rows.column("clip_id").to_pylist())
        streamed[title] = ids, folders["features"]

    monkeypatch.setattr(attribution, "_stream", stream)
    (tmp_path / in_use.PROMOTED).write_text(json.dumps({"version": "motive-1", "base": "b", "weights": "others"}))
    monkeypatch.setattr(attribution, "counted", lambda *_: Counted(0, {}))
    monkeypatch.setattr(reattribution, "measure", lambda *_: rank_drift.compare(np.zeros(0), np.zeros(0)))
    selection = pa.table({"clip_id": [f"clips-{n}" for n in range(8)], "rank": list(range(8))})
    jobs.nightly.measure_drift(run, InUse("2026-03-05", "motive-1", str(tmp_path)), selection)
    drift = tmp_path / "nights" / "2026-03-05" / "drift" / "features"
    clips, folder = streamed["features clips"]
    assert (len(clips), folder) == (6, str(drift / "clips")), "six of the clips, nightly.drift_clips"
    assert streamed["features queries"] == ([f"queries-{n}" for n in range(8)], str(drift / "queries"))


def test_a_reattribution_is_asked_for_and_priced(make: Callable[..., Run], tmp_path: Path) -> None:
    run = make("2026-03-06").model_copy(update={"root": str(tmp_path)})
    folder = str(tmp_path / "features" / "clips")
    tables.append(folder, pa.table({"clip_id": ["a", "b"], "error": [None, None]}), fingerprints.features(run))
    trained = tmp_path / "finetuned" / "motive" / "transformer"
    trained.mkdir(parents=True)
    (trained / "model.safetensors").write_bytes(b"weights")
    model = in_use.keep(str(tmp_path), "2026-03-05", str(trained.parent), "motive-1", "base")
    other = reattribution.with_weights(run, model, run.root)
    history = [{"attributed": {"clips": 10, "seconds": 20.0}, "drift_features": {"clips": 100, "seconds": 90.0}}]
    with pytest.raises(ConfigError, match=r"features of 2 clips and queries anew takes .*0\.90 s a clip.*on 100"):
        jobs.nightly.stale_features(other, history)
    assert jobs.nightly.stale_features(run, history) == [], "features of the pinned model would be dropped"
    asked = other.model_copy(update={"nightly": other.nightly.model_copy(update={"reattribute": True})})
    liked = str(tmp_path / "features" / "liked")  # another like would add a row of the other model
    tables.append(liked, pa.table({"clip_id": ["c"], "error": [None]}), fingerprints.features(run))
    with pytest.raises(FingerprintError, match=r"attribution\.weights"):
        attribution.attribute(asked, "liked")
    stale = jobs.nightly.stale_features(asked, history)
    assert tables.read(folder).num_rows == 2, "features were dropped before all else was checked"
    reattribution.remove(asked, stale)
    assert tables.read(folder) is None
    assert tables.read(liked) is None
    tables.append(folder, pa.table({"clip_id": ["a"], "error": [None]}), fingerprints.features(asked))
    assert jobs.nightly.stale_features(asked, history) == [], "a re-attribution that had begun would be begun again"
