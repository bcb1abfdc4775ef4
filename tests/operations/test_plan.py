"""What a run will cost: the pilot's parts, the arithmetic, and the job from videos to plan.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import config, tables
from pipeline.config import Run
from pipeline.config.operations import Pool, Prices
from pipeline.operations import costs, pilot
from pipeline.operations.costs import Cost
from tests.support.registered import unregistered

PARTS = {"index": [0.5], "decode": [1.0, 1.0], "motion": [0.2, 0.4], "encode": [0.1], "gradient": [2.0, 4.0]}
SIZE = costs.Size(videos=100, clips=200, held_out=10, parameters=1000, latent_numbers=64, mask_numbers=16)


def test_a_clip_holds_its_actor_for_its_parts_or_for_its_decoding() -> None:
    near = costs.attribution("a", PARTS, 200, Pool(cpus=2, gpus=1))
    assert near.seconds == pytest.approx(0.3 + 0.1 + 3.0)  # one decoder of one second is never waited for
    slow = costs.attribution("a", PARTS | {"decode": [30.0]}, 200, Pool(cpus=4, gpus=1))
    assert slow.seconds == pytest.approx(10.0)  # three decoders share it
    assert near.gpu_hours == pytest.approx(200 * 3.4 / 3600)
    assert near.error == pytest.approx((0.02 / 2 + 2.0 / 2) ** 0.5)


def test_hours_become_money_where_prices_are_known() -> None:
    cost = Cost("x", 3600, 2.0, gpus=1, cpus=4)
    prices = Prices(gpu_hour=3, cpu_hour=0.5)
    assert cost.money(prices) == pytest.approx(2 * 3 + 8 * 0.5)
    assert costs.total([cost, cost], prices)[-1] == "20.00"
    assert costs.total([cost], Prices())[-1] == "-"


def test_every_arm_and_every_held_out_clip_is_counted() -> None:
    run = config.load("demo", {"evaluate.arms": ["base", "random", "motive"], "finetune.arm": "motive"})
    parts = PARTS | {"step": [1.0], "denoising": [0.5], "video": [2.0]}
    attributed = costs.attribution("attribution", parts, SIZE.clips, run.resources.extract_features)
    stage_costs = {cost.what: cost for cost in costs.stages(run, SIZE, parts, attributed)}
    assert stage_costs["finetune, 2 arms"].count == 2 * run.finetune.steps
    e = run.evaluate
    assert stage_costs["evaluate, held-out losses"].count == 3 * 10 * e.passes
    twinned = run.model_copy(update={"evaluate": e.model_copy(update={"twins": ("backwards", "frozen")})})
    with_twins = {cost.what: cost for cost in costs.stages(twinned, SIZE, parts, attributed)}
    assert with_twins["evaluate, held-out losses"].count == 3 * 3 * 10 * e.passes, "a twin costs what its clip does"
    assert stage_costs["evaluate, held-out losses"].seconds == 0.25  # guidance takes two forward passes a step
    assert stage_costs["evaluate, videos"].seconds == 2.0 + e.steps * 0.5
    lora = run.model_copy(update={"finetune": run.finetune.model_copy(update={"lora_rank": 4})})
    assert costs.storage(run, SIZE)["checkpoints"] == 2 * 12 * 1000
    assert costs.storage(lora, SIZE)["checkpoints"] == 0
    assert costs.storage(run, replace(SIZE, clips=400))["features"] == 2 * costs.storage(run, SIZE)["features"]


def test_a_pilot_is_of_the_recipe_and_of_its_shortlist_alone() -> None:
    assert list(pilot.variants(config.load("demo"))) == [pilot.AS_IT_IS]
    shortlist = {"parameters": "^blocks", "height": 16}
    variants = pilot.variants(config.load("demo", {"motion.of": "all", "attribution.shortlist": shortlist}))
    assert list(variants) == [pilot.AS_IT_IS, pilot.SHORTLIST]
    assert variants[pilot.SHORTLIST].attribution.parameters == "^blocks"
    assert variants[pilot.SHORTLIST].geometry[2] == 16


def test_two_stages_are_priced_beside_the_full_setting_of_every_clip() -> None:
    from jobs.plan import attributions

    lines = [
        pilot.line("clip", variant, part, seconds)
        for variant, gradient in ((pilot.AS_IT_IS, 4.0), (pilot.SHORTLIST, 1.0))
        for part, seconds in (("motion", 1.0), ("gradient", gradient))
    ]
    shares = {"top": 0.2, "bottom": 0.0, "audit": 0.5, "parameters": "^blocks"}
    run = config.load("demo", {"motion.of": "all", "attribution.shortlist": shares})
    full, both = attributions(run, pilot.table(lines), 100)
    assert full.seconds == 5.0
    assert both.seconds == pytest.approx(2.0 + 0.6 * 4.0), "motion is estimated once where the geometry is one"
    assert attributions(config.load("demo"), pilot.table(lines), 100) == [full]


def test_a_plan_says_of_how_many_clips_lawfulness_will_be_known() -> None:
    from jobs.plan import lawfulness_sentence

    sampled = config.load("demo", {"motion.of": "queries", "motion.sample": 500})
    assert "known of 500 of about 12,345 clips" in lawfulness_sentence(sampled, 12_345.4)
    assert "known of 20 of about 20 clips" in lawfulness_sentence(sampled, 20.0)
    assert "known of every clip" in lawfulness_sentence(config.load("demo", {"motion.of": "all"}), 20.0)


def test_a_plan_from_videos(
    small_run: Callable[..., Run], tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.plan import plan

    adapters = {"finetune__lora_rank": 2, "finetune__frozen_weights": "fp8"}
    run = small_run(tmp_path, plan__clips=4, prices__gpu_hour=2.5, prices__cpu_hour=0.1, **adapters)
    plan(run)
    assert unregistered(tmp_path) == []
    rows = tables.read(str(tmp_path / "plan" / "pilot"))
    assert rows is not None
    for variant in pilot.variants(run):
        parts = costs.seconds_by_part(rows, variant)
        assert {"decode", "motion", "encode", "caption", "gradient", "projection"} <= set(parts), variant
        assert all(sum(parts[part]) > 0 for part in costs.PARTS)
    printed = capsys.readouterr().out
    assert "The same command with a --set more" in printed
    assert "model: Wan 2.1 text-to-video, latent grid 5x8x8" in printed
    assert "t = 751: a share of noise of 0.75" in printed
    assert re.search(r"masks: on this grid they keep \d+% of the energy .* of 320 cells move", printed)
    record = json.loads((tmp_path / "plan" / "plan.json").read_text())
    by_stage = {stage["what"]: stage for stage in record["stages"]}
    assert record["frozen_weights"]["fp8"] < 0.4 * record["frozen_weights"]["full"]
    assert re.search(
        r"frozen weights on the device of a .* worker, .*: [\d.]+ MB with full, [\d.]+ MB with fp8", printed
    )
    assert by_stage["index_clips"]["count"] == 30
    assert by_stage["estimate_motion, extract_features"]["money"] > 0
    assert any(name.startswith("finetune") for name in by_stage)
    assert not (tmp_path / "features").exists()
    assert not (tmp_path / "clips").exists()
