"""When a worker's part of a checkpoint is due."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
import torch
import torch.distributed as dist

from pipeline.cluster import checkpoints
from pipeline.config import load


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[checkpoints.Checkpoints, SimpleNamespace]:
    """Checkpoints every 100 steps, and what its clock and Ray say of it: the time, whether to stop, a notice."""
    says = SimpleNamespace(now=100.0, stopped=False, notice=None, asked=0)

    def notice() -> Any:
        says.asked += 1
        return says.notice

    monkeypatch.setattr(ray.train, "get_preemption_info", notice)
    monkeypatch.setattr(ray, "get", lambda answer: says.stopped)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: says.now)
    config = load("demo").finetune.model_copy(
        update={"steps": 1000, "checkpoint_every": 100, "checkpoint_seconds": 1e6}
    )
    training: Any = SimpleNamespace(device=torch.device("cpu"))
    permission = SimpleNamespace(stopped=SimpleNamespace(remote=lambda: None))
    return checkpoints.Checkpoints(training, config, "", "", str(tmp_path), permission), says


def test_a_step_asks_ray_for_nodes_that_go_once_a_second_and_not_each_time(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of, says = made(tmp_path, monkeypatch)
    due = [made_of.due(step) for step in range(1, 31)]
    assert not any(due)
    assert says.asked == 1
    says.now += checkpoints.ASK
    made_of.due(31)
    assert says.asked == 2


def test_a_node_that_is_about_to_go_asks_for_one_checkpoint(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of, says = made(tmp_path, monkeypatch)
    assert not made_of.due(1)
    says.notice = "node 7"
    assert not made_of.due(2), "it is not asked yet"
    says.now += checkpoints.ASK
    assert made_of.due(3)
    says.now += checkpoints.ASK
    assert not made_of.due(4), "the same notice is written for once"


def test_steps_clocks_and_the_end_ask_for_checkpoints_and_a_stop_for_none(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of, says = made(tmp_path, monkeypatch)
    assert [made_of.due(step) for step in (99, 100, 101, 1000)] == [False, True, False, True]
    says.now += 1e6 + 1
    assert made_of.due(5)
    says.stopped, says.now = True, says.now + checkpoints.ASK
    assert not made_of.due(100)
    assert made_of.stopped
