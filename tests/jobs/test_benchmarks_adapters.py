"""The benchmark of adapters: its figures are of what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.benchmarks import adapters
from jobs.benchmarks.adapters import Clip, WarmUp
from pipeline import config
from pipeline.models import open_model
from pipeline.models.lora import adapter_parameters
from pipeline.synthetic import world


def clips(count: int) -> list[Clip]:
    run = config.load("demo")
    return adapters.encoded(run, open_model(run.model, adapters.CPU), world.corpus(5, count), masked=False)


def test_a_ranking_is_like_itself_and_unlike_its_reverse() -> None:
    truth = {"cosine": torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    same = adapters.fidelity(truth, {"cosine, projected": truth["cosine"]})["cosine, projected"]
    assert same == pytest.approx(dict.fromkeys(same, 1.0))
    turned = adapters.fidelity(truth, {"cosine": -truth["cosine"]})["cosine"]
    assert turned["spearman"] == pytest.approx(-1)
    assert turned["top_tenth"] == turned["chosen_tenth"] == 0


@pytest.mark.parametrize("steps", [0, 2])
def test_adapters_alone_have_the_gradient_that_is_measured(steps: int, tmp_path: Path) -> None:
    run, some = config.load("demo"), clips(3)
    adapters.warmed_up(run, some, WarmUp(2, steps), 0, str(tmp_path))
    model = adapters.with_adapters(run, str(tmp_path))
    own = dict(adapter_parameters(model.trained))
    rows = adapters.gradients(run, model, some, "none")
    assert rows.shape == (3, sum(p.numel() for p in own.values()))
    assert all(row.any() for row in rows)
    assert adapters.counted(model) == rows.shape[1]


def test_the_control_without_adapters_counts_what_they_adapt(tmp_path: Path) -> None:
    run = config.load("demo")
    adapters.warmed_up(run, clips(1), WarmUp(2, 0), 0, str(tmp_path))
    adapted = {
        name.rpartition(".lora_")[0]
        for name, _ in adapter_parameters(adapters.with_adapters(run, str(tmp_path)).trained)
    }
    base = open_model(run.model, adapters.CPU)
    adapters.restrict(base.trained, adapters.ATTENTION)
    assert {n.removesuffix(".weight") for n, p in base.trained.named_parameters() if p.requires_grad} == adapted


@pytest.mark.benchmark
def test_every_row_has_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    figures = adapters.measure(config.load("demo"), 30, 1, (WarmUp(4, 2),), 1)
    assert [row["what"] for row in figures["rows"]] == [
        "every parameter",
        "control: the adapted weights themselves",
        "adapters of rank 4, after 2 steps",
    ]
    assert [row["what"] for row in figures["costs"]] == ["every parameter", adapters.ADAPTED, "adapters of rank 4"]
    assert figures["rows"][0]["fidelity"]["cosine"]["spearman"] == pytest.approx(1)
