"""The times of arms that draw each clip at times of its own: what they are made of, and that training draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats

from pipeline import config, models, tables
from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.exports import clip_rows, formats
from pipeline.models.schedule import END, DynamicShift, Schedule
from pipeline.ranking.column_file import Columns
from pipeline.ranking.influence_table import BySetting
from pipeline.stages.ranking import rank_clips
from pipeline.tables import schemas
from pipeline.training import arms, checkpoints, loop, time_bands
from pipeline.training import training_set as ts
from tests.ranking import test_influence_by_setting as ranked_run
from tests.support import tiny_pipelines
from tests.training import test_loop as tiny

make = ranked_run.make
cache, checkpoint = tiny.cache, tiny.checkpoint
EDGES, WEIGHTS = [376.0, 626.0], [0.4, 0.8, 1.8]
TIMED = {time_bands.EDGES: EDGES, time_bands.WEIGHTS: WEIGHTS}


def timed_rows(count: int = 4) -> list[dict[str, object]]:
    """Training rows of which the first, and every second one after it, has times of its own."""
    return [{**row, **(TIMED if n % 2 == 0 else {})} for n, row in enumerate(tiny.rows(count))]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_have_mean_one_a_floor_and_favour_the_better_bands() -> None:
    score = np.random.default_rng(0).normal(size=(50, 3)) * 3
    weight = time_bands.weights(score)
    np.testing.assert_allclose(weight.mean(1), 1.0)
    assert (weight > 1 - time_bands.SHIFTED).all(), "a time is left out"
    assert np.array_equal(weight.argsort(1), score.argsort(1))
    np.testing.assert_allclose(time_bands.weights(score + 7.0), weight, err_msg="good at all times is good at none")
    np.testing.assert_array_equal(time_bands.weights(np.full((2, 3), np.nan)), 1.0)
    assert np.isfinite(time_bands.weights(np.array([[1e6, -1e6, 0.0]]))).all()


def by_setting(values: np.ndarray) -> BySetting:
    """Of two groups with 4 and 3 queries; values are [N, settings, groups]."""
    columns = Columns(len(values), values[0].size)
    columns.add(values.reshape(len(values), -1).astype(np.float32))
    return BySetting(("roll", "spin"), (4, 3), values.shape[1], columns)


def test_scores_are_standardised_in_each_band_and_settings_of_one_timestep_averaged() -> None:
    values = np.random.default_rng(1).normal(size=(30, 3, 2)) * [[[1.0], [9.0], [5.0]]] + 4
    scores = time_bands.scores(by_setting(values), [751.0, 251.0, 751.0], "spin")
    bands = np.stack([values[:, 1, 1], values[:, [0, 2], 1].mean(1)], 1)
    np.testing.assert_allclose(scores, (bands - bands.mean(0)) / bands.std(0), rtol=1e-5, atol=1e-5)
    less = time_bands.scores(by_setting(values), [251.0, 501.0, 751.0], "spin", 1.0)
    difference = values[..., 1] - values[..., 0]
    np.testing.assert_allclose(less, (difference - difference.mean(0)) / difference.std(0), rtol=1e-4, atol=1e-5)


def test_a_band_in_which_no_clip_has_influence_counts_as_the_mean_clip() -> None:
    values = np.random.default_rng(2).normal(size=(30, 2, 2))
    values[:, 0] = 0.0
    scores = time_bands.scores(by_setting(values), [251.0, 751.0], "all")
    assert not scores[:, 0].any()
    assert np.isfinite(time_bands.weights(scores)).all()


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_warping_keeps_order_ends_and_plain_draws() -> None:
    places = np.linspace(0, 1, 1001)[:-1].tolist()
    assert [time_bands.warped(u, [0.2, 0.7], [1.0, 1.0, 1.0]) for u in places] == pytest.approx(places)
    moved = [time_bands.warped(u, [0.2, 0.7], [0.25, 0.25, 2.5]) for u in places]
    assert moved == sorted(moved)
    assert moved[0] == 0.0
    assert moved[-1] < 1.0
    outside = [time_bands.warped(u, [0.0, 1.0], [9.0, 1.0, 9.0]) for u in places]
    assert outside == pytest.approx(places), "bands outside an expert's interval count"


@pytest.mark.parametrize("within", [END, (500.0, 1000.0)])
@pytest.mark.parametrize(
    "schedule", [Schedule(), Schedule(shift=3.0), Schedule(shift=DynamicShift(4, 400, 0.5, 1.2)), Schedule("vp")]
)
def test_drawn_times_follow_the_weights(
    checkpoint: str, cache: str, schedule: Schedule, within: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chi-square over bands and, inside them, halves: the shares of plain training times the weights."""
    clips = ts.ClipSet(tiny.opened(checkpoint), timed_rows(1), ts.kept_in(cache))
    monkeypatch.setattr(clips, "_schedule", schedule)
    cells, draws = 3 * 4 * 4, [ts.draw(5, step, 0) for step in range(4000)]
    times = np.concatenate([clips.batch(draws[n : n + 500], 0.0, within).timestep.numpy() for n in range(0, 4000, 500)])
    first, last = within
    bounds = np.array(sorted({first, *[t for t in (200.0, 376.0, 500.0, 626.0, 800.0) if first < t < last], last}))
    plain = np.diff([schedule.quantile(float(t), cells) for t in bounds])
    density = [WEIGHTS[int(np.searchsorted(EDGES, middle))] for middle in (bounds[1:] + bounds[:-1]) / 2]
    expected = plain * density / (plain * density).sum()
    counts = np.histogram(times, bounds)[0]
    assert counts.sum() == 4000
    assert stats.chisquare(counts, 4000 * expected).pvalue > 0.01
    assert stats.chisquare(counts, 4000 * plain / plain.sum()).pvalue < 1e-6, "times are those of plain training"


def test_a_clip_without_times_of_its_own_is_drawn_as_ever(checkpoint: str, cache: str) -> None:
    """To the bit, beside clips that have some; and noise, clip and caption are those of every arm."""
    plain = ts.ClipSet(tiny.opened(checkpoint), tiny.rows(), ts.kept_in(cache))
    timed = ts.ClipSet(tiny.opened(checkpoint), timed_rows(), ts.kept_in(cache))
    before, after = (clips.batch([ts.draw(0, 0, place) for place in range(64)], 0.1) for clips in (plain, timed))
    chosen = ts.pick(ts.cumulated(tiny.rows()), [ts.draw(0, 0, place).clip for place in range(64)])
    own = torch.tensor([n % 2 == 0 for n in chosen])
    assert torch.equal(before.timestep[~own], after.timestep[~own])
    assert not torch.isclose(before.timestep[own], after.timestep[own]).any()
    assert torch.equal(before.noise, after.noise)
    assert torch.equal(before.latent, after.latent)


def test_times_belong_to_seed_step_place_and_clip(checkpoint: str, cache: str) -> None:
    clips = ts.ClipSet(tiny.opened(checkpoint), timed_rows(), ts.kept_in(cache))
    draws = [ts.draw(3, 7, position) for position in range(6)]
    whole = clips.batch(draws, 0.0).timestep
    halves = [clips.batch(part, 0.0).timestep for part in (draws[3:], draws[:3])]
    assert torch.equal(whole, torch.cat(halves[::-1])), "who shares the batch changes a time"


def test_a_resumed_training_equals_an_undisturbed_one(checkpoint: str, cache: str, tmp_path: Path) -> None:
    config_of_loop, load_clip = tiny.settings(steps=4), ts.kept_in(cache)

    def begun() -> tuple[loop.Training, ts.ClipSet]:
        model = tiny.opened(checkpoint)
        return loop.begin(model, config_of_loop, seed=3), ts.ClipSet(model, timed_rows(), load_clip)

    whole, clips = begun()
    losses = [line.loss for line in loop.train(whole, clips, config_of_loop, seed=3)]
    first, clips = begun()
    lines = loop.train(first, clips, config_of_loop, seed=3)
    next(lines)
    next(lines)
    checkpoints.write(checkpoints.staged(first), tmp_path)
    second, clips = begun()
    checkpoints.restore(second, str(tmp_path))
    assert [line.loss for line in loop.train(second, clips, config_of_loop, seed=3)] == losses[2:]
    assert losses != tiny.trained(checkpoint, cache, config_of_loop)[1], "times of its own change nothing"


# --- the arms ---------------------------------------------------------------------------------------------------------


def with_arm(run: Run, arm: str, group: str = "spin") -> Run:
    return run.model_copy(update={"finetune": run.finetune.model_copy(update={"arm": arm, "group": group})})


@pytest.mark.parametrize("spare", [0.0, 0.5])
@pytest.mark.parametrize(("arm", "same"), [("timed", "selected"), ("timed_random", "random")])
def test_an_arm_has_the_clips_of_its_like_and_times_by_influence(
    make: ranked_run.Make, arm: str, same: str, spare: float
) -> None:
    run = make("one", ranked_run.IDS, spare=spare)
    rank_clips(run)
    timed, plain = arms.training_set(with_arm(run, arm)), arms.training_set(with_arm(run, same))
    assert timed is not None
    assert plain is not None
    assert timed.drop_columns(list(time_bands.COLUMNS)).equals(plain)
    parts = ranked_run.plain(0.01, ranked_run.IDS)
    score = parts["spin"] - spare * parts["roll"]
    score = ((score - score.mean(1, keepdims=True)) / score.std(1, keepdims=True))[::-1].T  # settings fall in time
    for row in timed.to_pylist():
        z = score[ranked_run.IDS.index(row["clip_id"])]
        soft = np.exp(z) / np.exp(z).sum()
        assert row[time_bands.EDGES] == [601.0, 701.0]
        assert row[time_bands.SCORES] == pytest.approx(z.tolist(), abs=2e-3)
        assert row[time_bands.WEIGHTS] == pytest.approx((0.25 + 0.75 * 3 * soft).tolist(), abs=5e-3)


def test_clips_without_influence_train_at_the_times_of_every_arm(make: ranked_run.Make) -> None:
    run = make("one", ranked_run.IDS)
    rank_clips(run)
    ranked = arms._by_setting(with_arm(run, "timed_random"))
    rows = pa.table({"clip_id": ["unknown", ranked_run.IDS[0]]})
    timed = time_bands.with_times(with_arm(run, "timed_random"), rows, ranked).to_pylist()
    assert timed[0][time_bands.WEIGHTS] == [1.0, 1.0, 1.0]
    assert timed[0][time_bands.SCORES] is None
    assert timed[1][time_bands.SCORES] is not None


def test_the_table_says_what_each_clips_times_are(make: ranked_run.Make, tmp_path: Path) -> None:
    run = make("one", ranked_run.IDS)
    rank_clips(run)
    rows = arms.training_set(with_arm(run, "timed"))
    assert rows is not None
    table = time_bands.times_table(rows)
    assert table.schema.equals(schemas.TIMES)
    tables.replace(str(tmp_path / "finetuned" / "timed" / "times"), table, {})
    first = table.slice(0, 3).to_pylist()
    assert [(row["first"], row["last"]) for row in first] == [(0.0, 601.0), (601.0, 701.0), (701.0, 1000.0)]
    assert {row["clip_id"] for row in first} == {rows.column("clip_id")[0].as_py()}
    assert sum(row["weight"] for row in first) == pytest.approx(3.0)
    assert table.num_rows == 3 * rows.num_rows


def test_a_ranking_of_an_earlier_version_is_ranked_anew(make: ranked_run.Make) -> None:
    run = make("one", ranked_run.IDS)
    rank_clips(run)
    before = arms.training_set(with_arm(run, "timed"))
    (Path(run.root) / "influence_by_setting" / "part-all.parquet").unlink()
    after = arms.training_set(with_arm(run, "timed"))
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(*(np.stack(t.column(time_bands.WEIGHTS).to_pylist()) for t in (before, after)))


def test_columns_of_a_manifest_are_not_taken_for_times(make: ranked_run.Make) -> None:
    run = make("one", ranked_run.IDS)
    rank_clips(run)
    clips = tables.read(f"{run.root}/clips")
    assert clips is not None
    named = clips.append_column(time_bands.WEIGHTS, pa.array(["of a manifest"] * len(clips)))
    tables.replace(f"{run.root}/clips", named, tables.metadata(f"{run.root}/clips")["fingerprint"])
    for arm in ("random", "timed"):
        rows = arms.training_set(with_arm(run, arm))
        assert rows is not None
        assert "of a manifest" not in str(rows.to_pylist())


@pytest.mark.parametrize(("arm", "same"), [("little_noise", "selected"), ("little_noise_random", "random")])
def test_what_is_picked_has_the_times_of_little_noise_for_itself(make: ranked_run.Make, arm: str, same: str) -> None:
    run = make("one", ranked_run.IDS)
    rank_clips(run)
    table, picked, every = (arms.training_set(with_arm(run, name)) for name in (arm, same, "all"))
    assert table is not None
    assert picked is not None
    assert every is not None
    assert table.column("clip_id").equals(every.column("clip_id")), "all clips train at the other times"
    of_picked = set(picked.column("clip_id").to_pylist())
    assert 0 < len(of_picked) < table.num_rows
    upto, count = 0.0, table.num_rows
    for row in table.to_pylist():
        assert row[time_bands.EDGES] == pytest.approx([750.0]), "half of the draws of a shift of 3 have less noise"
        draws = 0.5 * row["weight"] * np.array(row[time_bands.WEIGHTS])
        in_first = 0.5 / len(of_picked) if row["clip_id"] in of_picked else 0.0
        assert draws.tolist() == pytest.approx([in_first, 0.5 / count])
        upto += row["weight"]
    assert upto == pytest.approx(1.0)
    times = time_bands.times_table(table)
    assert times.schema.equals(schemas.TIMES)
    assert times.num_rows == 2 * count
    assert times.column("score").null_count == 2 * count


def test_the_halves_of_the_draws_are_those_of_the_expert_that_is_trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = {"model.id": str(tiny_pipelines.folder(tmp_path_factory, "wan2.2-a14b")), "model.text_tokens": 16}
    run = of((751.0,), **model, **{"finetune.expert": "low", "finetune.arm": "little_noise"})
    rows = pa.table({"clip_id": ["a", "b", "c"]})
    table = time_bands.at_little_noise(run, rows, np.array([True, False, False]))
    (edge,) = table.column(time_bands.EDGES)[0].as_py()
    family = models.family(run.model)
    low = next(expert for expert in family.experts if expert.name == "low")
    assert low.first < edge < low.last
    first, middle, last = (family.schedule.quantile(t) for t in (low.first, edge, low.last))
    assert (middle - first) / (last - first) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(ConfigError, match=r"'little_noise'.*two experts.*finetune.expert=high"):
        arms.check(of((751.0,), **model), ["little_noise"])


# --- what is refused --------------------------------------------------------------------------------------------------


def of(timesteps: tuple[float, ...], **changes: Any) -> Run:
    settings = [{"timestep": t, "mask": "motion", "noise": n} for n, t in enumerate(timesteps)]
    ranking = {"ranking.mask": "motion", "motion.of": "all", "attribution.settings": settings}
    return config.load("demo", {**ranking, **changes})


def test_one_timestep_does_for_the_arms_of_little_noise() -> None:
    arms.check(of((751.0,), **{"evaluate.arms": ["base", "little_noise", "little_noise_random"]}))


@pytest.mark.parametrize("arm", ["timed", "timed_random"])
def test_one_timestep_is_refused(arm: str) -> None:
    arms.check(of((251.0, 751.0)), [arm])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=rf"'{arm}'.*have one timestep, 751.*Add settings"):
        arms.check(of((751.0, 751.0), **{"evaluate.arms": ["base", arm]}))


def test_a_shortlist_leaves_random_clips_without_influence() -> None:
    run = of((251.0, 751.0), **{"attribution.shortlist": {"parameters": "blocks.0"}})
    arms.check(run, ["timed"])
    with pytest.raises(ConfigError, match=r"'timed_random'.*attribution.shortlist"):
        arms.check(run, ["timed_random"])


def test_two_experts_are_refused_and_one_needs_bands(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = {"model.id": str(tiny_pipelines.folder(tmp_path_factory, "wan2.2-a14b")), "model.text_tokens": 16}
    with pytest.raises(ConfigError, match=r"'timed'.*two experts.*finetune.expert=high"):
        arms.check(of((251.0, 751.0, 951.0), **model), ["timed"])
    arms.check(of((251.0, 751.0, 951.0), **model, **{"finetune.expert": "low"}), ["timed"])
    with pytest.raises(ConfigError, match=r"high-noise expert, 875 to 1000, .* 1 lie there"):
        arms.check(of((251.0, 751.0, 951.0), **model, **{"finetune.expert": "high"}), ["timed"])


def test_no_trainer_is_handed_clips_without_their_times() -> None:
    run = of((251.0, 751.0), **{"export.arm": "timed"})
    with pytest.raises(ConfigError, match=r"export.arm='timed'.*export.arm=selected"):
        clip_rows.clip_rows(run, next(iter(formats.FORMATS.values())))
