"""The projection benchmark: what it measures is what it says, and nothing is left out in silence."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.benchmarks import ceilings, projection, projectors
from jobs.benchmarks.projection import Case
from jobs.benchmarks.projectors import PEERS, SUBJECTS, reference

_ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_an_unbiased_projection_and_a_function_of_its_seed() -> None:
    values = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(12_345))  # of no projection below
    once = reference(values, 512, 7)
    assert torch.equal(once, reference(values, 512, 7))
    assert not torch.equal(once, reference(values, 512, 8))
    gram = torch.stack([y @ y.T for y in (reference(values, 512, seed) for seed in range(20))]).mean(0)
    torch.testing.assert_close(gram, values @ values.T, rtol=0, atol=5 * 20_000 / math.sqrt(20 * 512))


def test_the_reference_does_not_lose_the_last_block() -> None:
    values = torch.zeros(1, 8192 + 5)
    values[0, -1] = 1
    assert reference(values, 16, 0).norm() > 0


def test_theory_is_what_a_true_gaussian_does() -> None:
    truth = projection.gaussian_errors(2000, 512, seeds=600)
    for name, errors in truth.items():
        assert abs(errors["rms"] / errors["theory"] - 1) < 3 * errors["uncertainty"] / errors["rms"] + 0.005, name
        assert errors["uncertainty"] / errors["rms"] < 0.01


def test_the_short_way_to_a_true_gaussian_has_the_errors_of_the_long_way() -> None:
    long = projection.rms_errors(lambda seed: partial(reference, dim=512, seed=seed), range(60), 1000, 512)
    short = projection.gaussian_errors(1000, 512, seeds=600)
    for name in long:
        comparison = projection.against(long[name], short[name])
        assert abs(comparison["over_gaussian"] - 1) < 4 * comparison["over_gaussian_error"], name


def test_the_error_sees_a_projection_that_is_not_gaussian() -> None:
    """The control: a matrix that reads every 8th coordinate has eight times the variance in what it keeps."""

    def prepare(seed: int) -> Any:
        return lambda values: reference(values[:, ::8], 64, seed)

    errors = projection.rms_errors(prepare, range(16), 4000, 512)["orthogonal"]
    assert errors["rms"] / errors["theory"] > 2


def test_a_case_counts_the_memory_that_the_call_adds_and_not_the_values() -> None:
    """The reference holds a block of 512 x 8,192 floats, 16 MiB; the values, 8 MB, were there before."""
    figures = projection.measured_alone(Case("reference", 262_144, vectors=8, threads=1))
    assert 15 * 2**20 < figures["extra_bytes"] < 120 * 2**20
    assert figures["repeats"] == 1


def test_a_reference_beside_is_scaled_to_the_coordinates() -> None:
    figures = projection.measured_alone(
        Case("reference", 400_000, threads=1, repeats=3, reference=100_000, reference_repeats=3)
    )
    assert figures["ratio"] == pytest.approx(figures["reference_seconds"] / figures["seconds"])
    assert 0.3 < figures["ratio"] < 3  # of itself


def test_what_cannot_be_run_says_why() -> None:
    row = projection.measured_alone(Case("sklearn gaussian", 10**9))
    assert row["not_run"].startswith("needs 6148 GB")
    assert projection.measured_alone(Case("reference", 1_000_000, threads=1, timeout=0.1))["not_run"] == "over 0 s"
    line = projection.line({"name": "x", "coordinates": 1, "vectors": 1, "threads": 1, "not_run": "no room"})
    assert "not run: no room" in line


def test_a_peer_that_is_not_installed_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "versions", dict)
    assert "pip install -e '.[bench]'" in projection.run(Case("traker normal", 1000))["not_run"]


def test_a_cap_on_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_SHARE", 1e9 / projection._free_bytes())
    reason = projection.measured_alone(Case("reference", 240_000_000))["not_run"]  # 0.96 GB of values alone
    assert "memory" in reason


def test_every_peer_is_in_the_extra_and_in_the_plan() -> None:
    extra = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    of_decoding = {"torchcodec"}
    assert {name.partition(">=")[0] for name in extra} - of_decoding == {peer.distribution for peer in PEERS}
    assert set(projectors.versions()) <= {peer.distribution for peer in PEERS}
    planned = {each.subject for each in projection.peer_cases(projection.Plan())}
    assert planned == {peer.name for peer in PEERS}
    assert set(SUBJECTS) == planned | {each.subject for each in projection.own_cases(projection.Plan())} | {"reference"}


def test_the_bounds_of_a_gpu_scale_as_they_should() -> None:
    rates = {"copy_bytes_per_s": 4e12, "philox_calls_per_s": 1e11, "matmul_bf16_flop_per_s": 7e14}
    one, eight = (projection.bounds(projection.WAN, vectors, 512, rates) for vectors in (1, 8))
    assert one["read"] == pytest.approx(2 * projection.WAN / 4e12)
    assert eight["philox"] == one["philox"] == pytest.approx(projection.WAN * 64 / 1e11)
    assert eight["matmul"] == pytest.approx(8 * one["matmul"])


def test_the_clock_leaves_the_warm_up_out() -> None:
    calls: list[int] = []
    assert len(ceilings.timed(lambda: calls.append(1), "cpu", 3, warmup=2)) == 3
    assert len(calls) == 5


@pytest.mark.benchmark
def test_quick_runs_from_end_to_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(projection, "KINDS", ("gaussian",))
    monkeypatch.setattr(sys, "argv", ["projection", "--quick"])
    threads = torch.get_num_threads()
    projection.main()
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    speed = {(row["name"], row["coordinates"], row["vectors"]): row for row in figures["speed"]}
    assert speed["gaussian", 20_000, 1]["ratio"] > 0
    assert speed["gaussian", 100_000, 1]["extra_bytes"] < 256 * 2**20
    assert abs(figures["cosines"][1]["orthogonal"]["over_theory"] - 1) < 0.05
    assert figures["ceilings"]["copy_bytes_per_s"] > 0
    for word in ("ceilings", "not run: --quick", "torch sees none" if not torch.cuda.is_available() else "GPU"):
        assert word in printed
