"""Promotion and drift: the rule's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import config, tables
from pipeline.attribution import fingerprints
from pipeline.config.operations import Promote
from pipeline.errors import ConfigError, FingerprintError, UsageError
from pipeline.evaluation import comparison
from pipeline.models import trained_weights
from pipeline.models.conditioning import batched
from pipeline.models.promoted import promoted
from pipeline.operations import in_use, nights, promotion
from pipeline.statistics import rank_drift
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.training import loop
from tests.support import tiny_wan
from tests.support.s3_store import BUCKET, Store, seen_by, served


def losses(values: np.ndarray) -> dict[str, float]:
    return {f"clip-{i:03d}": float(v) for i, v in enumerate(values)}


def test_pairing_finds_what_means_alone_would_not() -> None:
    rng = np.random.default_rng(0)
    old = rng.uniform(0.5, 5.0, 40)  # clips differ far more than models
    new = old - 0.02 + rng.normal(0, 0.01, 40)
    verdict = promotion.judge(losses(new), losses(old), Promote())
    assert verdict.better
    assert verdict.improvement == pytest.approx((old - new).mean() / old.mean())
    assert 0 < verdict.bound < verdict.improvement
    assert not promotion.judge(losses(old), losses(new), Promote()).better, "a worse model passed"


def test_a_masked_loss_that_the_rest_of_the_picture_pays_for_is_not_promoted() -> None:
    old = np.full(10, 1.0)
    better = promotion.judge(losses(old - np.linspace(0.01, 0.02, 10)), losses(old), Promote())
    assert better.better
    paid = promotion.spare_the_rest(better, losses(old * 1.02), losses(old), Promote())
    assert not paid.better
    assert paid.plain_change == pytest.approx(0.02)
    assert "2.00 % higher, and nightly.promote.plain_loss_at_most allows +1 %" in paid.reason
    assert promotion.spare_the_rest(better, losses(old * 1.005), losses(old), Promote()).better
    assert promotion.spare_the_rest(better, losses(old * 1.02), losses(old), Promote(plain_loss_at_most=None)).better
    worse = promotion.judge(losses(old), losses(old), Promote())
    assert not promotion.spare_the_rest(worse, losses(old * 0.9), losses(old), Promote()).better


def test_the_page_and_the_decision_tell_the_same_bound() -> None:
    """The page's interval is two-sided, so its end of 95 % is the decision's bound of 97.5 %."""
    rng = np.random.default_rng(4)
    old = rng.uniform(0.5, 5.0, 12)
    models = {"base": losses(old), "random": losses(old - 0.02 + rng.normal(0, 0.03, 12))}
    verdict = promotion.judge(models["random"], models["base"], Promote(confidence=0.975))
    rows = [
        {"arm": arm, "clip_id": clip, "uri": "", "seed": 0, "metric": "masked_loss", "value": loss, "version": "v"}
        for arm, loss_by_clip in models.items()
        for clip, loss in loss_by_clip.items()
    ]
    _, record = comparison.comparison(pa.Table.from_pylist(rows, schema=schemas.EVALUATION))
    assert verdict.bound == pytest.approx(-record["relative_high"])
    assert verdict.improvement == pytest.approx(-record["relative"])


def test_a_model_that_is_no_better_passes_as_seldom_as_the_rule_says() -> None:
    rng = np.random.default_rng(1)
    passed = 0
    for _ in range(2000):
        old = rng.uniform(1, 2, 12)
        passed += promotion.judge(losses(old + rng.normal(0, 0.1, 12)), losses(old), Promote(confidence=0.9)).better
    assert 160 < passed < 240, f"{passed} of 2000 passed at 90 % confidence"


def test_a_small_improvement_does_not_pass_where_more_is_asked_for() -> None:
    old = np.linspace(1, 2, 20)
    new = 0.99 * old
    assert promotion.judge(losses(new), losses(old), Promote()).better
    asked = promotion.judge(losses(new), losses(old), Promote(improvement=0.02))
    assert not asked.better
    assert "2 % is asked for" in asked.reason


def test_clips_of_one_model_only_are_left_out_and_too_few_keep_the_old_one() -> None:
    old, new = {"a": 1.0, "b": 2.0, "c": 3.0}, {"b": 1.9, "c": 2.9, "d": 0.1}
    assert promotion.judge(new, old, Promote()).pairs == 2
    few = promotion.judge({"a": 0.5}, old, Promote())
    assert not few.better
    assert "too few" in few.reason
    assert few.bound is None


def test_drift_of_equal_and_opposite_rankings() -> None:
    score = np.random.default_rng(2).normal(size=100)
    same = rank_drift.compare(score, 3 * score + 1)
    assert (same.spearman, same.overlap) == (pytest.approx(1), 1)
    assert same.overlap_interval is not None
    assert same.overlap_interval[0] < 1, "ten clips of ten are no certainty"
    opposite = rank_drift.compare(score, -score)
    assert (opposite.spearman, opposite.overlap) == (pytest.approx(-1), 0)
    assert rank_drift.compare(score[:2], score[:2]).spearman is None


def test_drift_interval_covers_the_true_correlation() -> None:
    rng, inside, rho = np.random.default_rng(3), 0, 0.8
    true = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of a normal pair with correlation rho
    for _ in range(400):
        pair = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 80)
        low, high = rank_drift.compare(pair[:, 0], pair[:, 1]).spearman_interval
        inside += low < true < high
    assert 368 <= inside <= 395, f"the 95 % interval held the true value {inside} times of 400"


def test_the_drawn_clips_stay_when_others_come() -> None:
    ids = [f"clip-{i}" for i in range(500)]
    before, after = set(rank_drift.drawn(0, ids, 50)), set(rank_drift.drawn(0, [*ids, "new-1", "new-2"], 50))
    assert len(before) == 50
    assert len(before & after) >= 48
    assert rank_drift.drawn(1, ids, 50) != rank_drift.drawn(0, ids, 50)


# --- the model in use ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with served() as store:
        yield store


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "disk":
        return str(tmp_path / "root [1]")
    seen_by(monkeypatch, request.getfixturevalue("store"))
    return f"s3://{BUCKET}/{tmp_path.name}/root [1]"


def trained(root: str, weights: bytes) -> str:
    folder = stores.join(root, "finetuned", "motive")
    for name, data in {
        "transformer/config.json": b"{}",
        "transformer/diffusion_pytorch_model.safetensors": weights,
        "done.json": b'{"name": "motive-1"}',
        "curated/segments.jsonl": b'{"clip_id": "clip-0"}\n',
    }.items():
        stores.write_bytes(stores.join(folder, *name.split("/")), data)
    return folder


@pytest.mark.parametrize(
    "content", [b"", b'{"night": "2026-01', b"\xff", b"[]", b'{"night": "2026-01-02"}', b'{"night": 3, "version": "a"}']
)
def test_a_damaged_pointer_is_named_with_what_to_do(root: str, content: bytes) -> None:
    path = stores.join(root, in_use.POINTER)
    stores.write_bytes(path, content)
    with pytest.raises(UsageError, match=r"damaged.*nights/DATE/night\.json.*Or delete the file") as caught:
        in_use.in_use(root)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_promoted_model_outlives_the_arm_that_it_was(root: str) -> None:
    assert in_use.in_use(root) == in_use.InUse(None, "base", "")
    folder = in_use.keep(root, "2026-01-02", trained(root, b"one"), "motive-1", "base-hash")
    assert in_use.in_use(root).night is None, "a copy alone changes nothing"
    in_use.put(root, "2026-01-02", "motive-1")
    stores.remove(stores.join(root, "finetuned", "motive"))
    now = in_use.in_use(root)
    assert (now.night, now.version, now.folder) == ("2026-01-02", "motive-1", folder)
    path = stores.join(folder, "transformer", "diffusion_pytorch_model.safetensors")
    assert stores.read_bytes(path) == b"one"
    assert promoted(folder)["weights"] == in_use.weights_hash(folder)
    in_use.check_base(root, "base-hash")
    with pytest.raises(ConfigError, match="another model"):
        in_use.check_base(root, "other-hash")


def test_half_a_copy_is_made_anew_and_a_whole_one_left(root: str) -> None:
    folder = in_use.model_folder(root, "2026-01-02")
    stores.write_bytes(stores.join(folder, "transformer", "of-another.safetensors"), b"left by a killed copy")
    in_use.keep(root, "2026-01-02", trained(root, b"one"), "motive-1", "base-hash")
    assert not stores.exists(stores.join(folder, "transformer", "of-another.safetensors"))
    path = stores.join(folder, "transformer", "diffusion_pytorch_model.safetensors")
    in_use.keep(root, "2026-01-02", trained(root, b"two"), "motive-1", "base-hash")
    assert stores.read_bytes(path) == b"one", "a whole copy was made again"
    in_use.keep(root, "2026-01-02", trained(root, b"two"), "motive-2", "base-hash")
    assert stores.read_bytes(path) == b"two", "the copy is of another training"


def test_old_nights_are_deleted_but_for_the_models_in_use_and_pinned(root: str) -> None:
    for day in range(1, 8):
        night = f"2026-01-0{day}"
        in_use.keep(root, night, trained(root, night.encode()), night, "base-hash")
        if day != 6:  # which was killed
            nights.write(root, night, nights.RECORD, {"date": night})
    in_use.put(root, "2026-01-02", "2026-01-02")
    assert nights.retain(root, 2, f"{root}/nights/2026-01-03/model/") == ["2026-01-01", "2026-01-04", "2026-01-06"]
    assert nights.begun(root) == ["2026-01-02", "2026-01-03", "2026-01-05", "2026-01-07"]
    assert nights.retain(root, 2, None) == ["2026-01-03"]
    assert nights.retain(root, 2, None) == []


def test_what_was_not_promoted_cannot_attribute(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no promoted model"):
        promoted(str(tmp_path))
    run = config.load("demo", {"attribution.weights": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"attribution\.weights"):
        fingerprints.features(run)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weights": "0'])
def test_a_damaged_record_of_a_promoted_model_is_one_paragraph(tmp_path: Path, content: str) -> None:
    (tmp_path / "promoted.json").write_text(content)
    with pytest.raises(ConfigError, match=r"promoted\.json: this file is damaged"):
        promoted(str(tmp_path))


def test_the_fingerprint_tells_promoted_models_apart_and_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    def of(weights: str | None) -> dict[str, object]:
        return fingerprints.features(config.load("demo", {"attribution.weights": weights}))

    one, two = (
        in_use.keep(str(tmp_path / w), "2026-01-02", trained(str(tmp_path / w), w.encode()), w, "base")
        for w in ("one", "two")
    )
    assert of(one)["attribution.weights"] != of(two)["attribution.weights"]
    base = of(None)
    folder = str(tmp_path / "influence")
    tables.append(folder, pa.table({"clip_id": ["a"]}), {k: v for k, v in base.items() if v is not None})
    tables.check(folder, base)  # tables from before there was such a key
    with pytest.raises(FingerprintError, match=r"attribution\.weights"):
        tables.check(folder, of(one))


def test_merged_adapters_leave_the_bases_parameters_and_give_the_same_velocity(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    path = tiny_wan.folder(tmp_path_factory)
    model = tiny_wan.opened(path)
    names = [name for name, _ in model.trained.named_parameters()]
    training = loop.begin(model, config.Finetune(lora_rank=2), 0)
    with torch.no_grad():
        for parameter in training.parameters.values():
            parameter.add_(0.05)
    loop.save_weights(training, str(tmp_path))
    plain, apart, merged = (tiny_wan.opened(path) for _ in range(3))
    trained_weights.load_weights(apart, str(tmp_path))
    trained_weights.load_weights(merged, str(tmp_path), merge=True)
    assert [name for name, _ in merged.trained.named_parameters()] == names
    torch.manual_seed(0)
    noisy, text = torch.randn(1, plain.trained.config.in_channels, 3, 4, 4), batched([plain.text("a ball")])
    with torch.no_grad():
        base, two, one = (m.predict(noisy, torch.tensor([500.0]), text) for m in (plain, apart, merged))
    assert not torch.allclose(base, two, atol=1e-4)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
