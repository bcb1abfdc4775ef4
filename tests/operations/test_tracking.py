"""Tracking: what is sent, once, and what is refused; with MLflow and W&B themselves where they are installed."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import config
from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.operations import tracking
from pipeline.storage import stores

SECRET = "0123456789abcdef0123"
RECORDS = [
    {"metric": "masked_loss", "arm": "base", "mean": 0.5, "n": 4, "difference": None},
    {"metric": "masked_loss", "arm": "motive", "mean": 0.25, "n": 4, "difference": -0.25},
    {"metric": "plain_loss", "arm": "motive", "mean": None, "n": 0, "difference": None},
]


def configured(kind: str, root: Path | str = "runs/x") -> Run:
    return config.load("demo", {"root": str(root), "tracking.kind": kind, "tracking.project": "a project"})


def metrics_file(root: Path, steps: int) -> str:
    path = stores.join(str(root), "metrics.jsonl")
    lines = [json.dumps({"step": s, "loss": 1 / s, "seconds": 0.1}) + "\n" for s in range(1, steps + 1)]
    stores.write_bytes(path, "".join(lines).encode())
    return path


@pytest.mark.parametrize(("kind", "variable"), [("mlflow", "MLFLOW_TRACKING_URI"), ("wandb", "WANDB_API_KEY")])
def test_what_is_missing_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, kind: str, variable: str) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"package {kind} is not installed"):
        tracking.check(configured(kind))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=variable):
        tracking.check(configured(kind))
    monkeypatch.setenv(variable, SECRET)
    tracking.check(configured(kind))
    tracking.check(configured("none"))


def test_keys_have_no_place_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.key"):
        config.load("demo", {"root": "x", "tracking.key": SECRET})


def test_parameters_are_the_configuration_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    run = configured("wandb", f"runs/{SECRET}")
    parameters = tracking.parameters(run, "motive")
    assert SECRET not in "".join(parameters.values())
    assert parameters["finetune.steps"] == str(run.finetune.steps)
    assert parameters["arm"] == "motive"
    assert parameters["page"].endswith("/report/index.html")
    assert max(map(len, parameters.values())) <= tracking.LONGEST


class Recorder:
    """What a server would have got."""

    url, last = "", 0

    def __init__(self, broken: bool = False) -> None:
        self.got: list[int] = []
        self.broken = broken

    def steps(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        if self.broken:
            raise ConnectionError(f"no route, with {SECRET}\nsecond line")
        self.got += [step for step, _ in lines]

    def result(self, values: Mapping[str, float], records: Sequence[Mapping[str, Any]]) -> None: ...

    def close(self, failed: bool) -> None: ...


def test_each_step_is_sent_once_also_when_training_falls_back(tmp_path: Path) -> None:
    tracked = Recorder()
    for steps in (0, 2, 2, 5, 3, 6):  # a worker was lost after step 5: the file holds steps up to the checkpoint again
        tracking.follow(tracked, metrics_file(tmp_path, steps))
    assert tracked.got == [1, 2, 3, 4, 5, 6]
    tracking.follow(tracked, str(tmp_path / "none yet"))
    tracking.follow(None, metrics_file(tmp_path, 1))


def test_a_server_that_fails_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    tracked = Recorder(broken=True)
    with caplog.at_level(logging.WARNING):
        tracking.follow(tracked, metrics_file(tmp_path, 2))
    assert "did not take the loss: ConnectionError: no route, with ****" in caplog.text
    assert tracked.last == 0, "what was not taken is sent again"


def fail_after_two_steps(run: Run, folder: Path, begun: list[tracking.Tracked]) -> None:
    """The training fails, and is gone on with by a second job."""
    with tracking.opened(run, "motive", "motive-1") as tracked:
        assert tracked is not None
        begun.append(tracked)
        tracking.follow(tracked, metrics_file(folder, 2))
        raise RuntimeError("lost")


def test_mlflow_holds_the_training_and_its_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is an extra")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(None)
    run = configured("mlflow", tmp_path)
    begun: list[tracking.Tracked] = []
    with pytest.raises(RuntimeError, match="lost"):
        fail_after_two_steps(run, tmp_path, begun)
    (first,) = begun
    client = mlflow.MlflowClient()
    id = first.url.rsplit("/", 1)[1]
    assert client.get_run(id).info.status == "FAILED"
    with tracking.opened(run, "motive", "motive-1") as second:
        assert second is not None
        assert (second.last, second.url) == (2, first.url)
        tracking.follow(second, metrics_file(tmp_path, 4))
    tracking.evaluated(run, {"base": "base", "motive": "motive-1"}, RECORDS)

    mlflow_run = client.get_run(id)
    assert mlflow_run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(id, "loss")] == [1, 2, 3, 4]
    assert mlflow_run.data.metrics["evaluation/masked_loss"] == 0.25
    assert "evaluation/plain_loss" not in mlflow_run.data.metrics
    assert mlflow_run.data.params["arm"] == "motive"
    assert mlflow_run.data.tags["page"] == f"{tmp_path}/report/index.html"
    table = mlflow.artifacts.load_dict(f"runs:/{id}/evaluation.json")
    assert table["rows"] == RECORDS
    experiment = client.get_experiment_by_name("a project")
    assert len(client.search_runs([experiment.experiment_id])) == 2, "base and motive"


def test_wandb_takes_the_training_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is an extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = configured("wandb", tmp_path)
    with tracking.opened(run, "motive", "motive-1") as tracked:
        assert tracked is not None
        tracking.follow(tracked, metrics_file(tmp_path, 3))
        assert tracked.last == 3
    tracking.evaluated(run, {"motive": "motive-1"}, RECORDS)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*.wandb"))
    assert b"finetune.steps" in written
    assert b"evaluation/masked_loss" in written
