"""The benchmark of the stages: its order of output, its failures, and the model whose size it claims."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from jobs.benchmarks import ceilings, measured_models, stages
from jobs.benchmarks.agreement import compare
from jobs.benchmarks.measured_models import Subject
from jobs.benchmarks.stages import Figure, Rates
from pipeline import config

LIMITS = {
    "copy_bytes_per_s": 1e10,
    "matmul_fp32_flop_per_s": 1e11,
    "matmul_bf16_flop_per_s": 2e11,
    "normals_per_s": 1e8,
    "random_bytes_per_s": 1e9,
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``quick("text,vae")`` runs the benchmark's main with those parts, on ceilings that cost nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ceilings, "measured", lambda device: dict(LIMITS))

    def call(parts: str) -> None:
        own = config.load("demo").attribution.projection.kind
        monkeypatch.setattr(sys, "argv", ["stages", "--only", parts, "--kinds", f"{own},no_such_kind"])
        stages.main()

    return call


@pytest.mark.benchmark
def test_ceilings_come_first_and_one_line_of_json_last(
    quick: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    quick("decode,vae,text,gradient")
    lines = capsys.readouterr().out.splitlines()
    (ceiling,) = (i for i, line in enumerate(lines) if line.startswith("ceilings"))
    (table,) = (i for i, line in enumerate(lines) if line.startswith("stage "))
    assert ceiling < table < len(lines) - 1
    results = json.loads(lines[-1])
    assert set(results["bill_s"]) == {"decode", "vae", "text", "gradient", "projection"}
    assert all(seconds >= 0 for seconds in results["bill_s"].values())
    assert results["ceilings"] == LIMITS
    failures = {f["what"]: f["failure"] for f in results["figures"] if f["failure"]}
    assert list(failures) == ["no_such_kind"], f"other rows failed than the one that must: {failures}"
    assert "no_such_kind" in failures["no_such_kind"]


def test_a_part_that_raises_is_a_row_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject, rates: Rates) -> list[Figure]:
        raise MemoryError("no room\nat all")

    fine = Figure("text", "a caption", 0.5, 0.1, True)
    monkeypatch.setattr(stages, "PARTS", {"vae": broken, "text": lambda subject, rates: [fine]})
    subject = measured_models.demo(torch.device("cpu"))
    figures = stages.run(subject, Rates(LIMITS), ["vae", "text"])
    assert [f.failure for f in figures] == ["MemoryError: no room", None]
    assert stages.bill(figures) == {"text": 0.5}
    stages.print_figures(figures)


def test_the_large_model_is_wan21_13b() -> None:
    """By its published numbers of parameters and tensors; forward FLOPs by the formula, attention included."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**measured_models.TRANSFORMER).to(torch.bfloat16)
        parameters = list(model.parameters())
        assert sum(p.numel() for p in parameters) == measured_models.PARAMETERS == 1_418_996_800
        assert len(parameters) == measured_models.TENSORS == 825
        latent = torch.empty(1, 16, 21, 60, 104, dtype=torch.bfloat16)
        text = torch.empty(1, 512, 4096, dtype=torch.bfloat16)
        with torch.no_grad():
            counted = stages.flops(lambda: model(latent, torch.empty(1), text))
    n, d, wide, layers = stages.SEQUENCE, 1536, 8960, 30
    tokens = 2 * n * (6 * d * d + 2 * d * wide) + 2 * 512 * 2 * d * d
    expected = layers * (tokens + 4 * n * n * d + 4 * n * 512 * d)
    assert n == 21 * 30 * 52
    assert abs(counted / expected - 1) < 0.01, f"{counted / 1e12:.0f} TFLOP are counted, {expected / 1e12:.0f} expected"


def test_agreement_is_zero_for_equal_masks_and_counts_lost_clips() -> None:
    masks: list[Tensor | None] = [torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    same = compare(masks, masks)
    assert (same.difference, same.clips, same.lost) == (0, 3, 0)
    assert same.pearson == pytest.approx(1)
    assert same.cosine == pytest.approx(1)
    assert masks[0] is not None
    other = compare([0.5 * masks[0], None, None], [masks[0], masks[1], None])
    assert other.difference == pytest.approx(0.5)
    assert other.cosine == pytest.approx(1)
    assert (other.clips, other.lost) == (1, 1)
    with pytest.raises(ValueError, match="moves"):
        compare([None], [None])
