"""What the benchmark of specificity concludes from held-out losses, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.benchmarks import wan
from pipeline import config
from pipeline.errors import InputError

MOTION_OF = {"a": "spin", "b": "spin", "c": "roll", "d": "roll"}


def values(arm: str, masked: dict[str, float], plain: float = 1.0) -> list[dict[str, Any]]:
    rows = [{"arm": arm, "metric": "masked_loss", "clip_id": clip, "value": v} for clip, v in masked.items()]
    rows += [{"arm": arm, "metric": "plain_loss", "clip_id": clip, "value": plain} for clip in masked]
    return [*rows, {"arm": arm, "metric": "masked_loss (much noise)", "clip_id": "a", "value": 99.0}]


def measured(selected: float, others: float, plain: float, **arms: float) -> dict[str, wan.Changes]:
    """The same changes of four motions, but for a little."""

    def of(target: float) -> dict[str, float]:
        return {"masked_target": target, "masked_others": others, "plain_target": plain, "plain_others": 0.0}

    return {
        motion: {arm: of(target + n / 1000) for arm, target in {"selected": selected, **arms}.items()}
        for n, motion in enumerate(("bounce", "roll", "spin", "swing"))
    }


def failures(of_run: dict[str, wan.Changes]) -> dict[str, bool | None]:
    return {verdict.criterion: verdict.failed for verdict in wan.verdicts(of_run)}


def test_changes_are_of_the_motion_and_of_the_others_over_the_base() -> None:
    rows = values("base", {"a": 2.0, "b": 4.0, "c": 1.0, "d": 1.0})
    rows += values("selected", {"a": 1.0, "b": 2.0, "c": 1.0, "d": 2.0}, plain=1.01)
    (arm, of_arm), *rest = wan.changes(rows, MOTION_OF, "spin").items()
    assert (arm, rest) == ("selected", [])
    assert of_arm == pytest.approx(
        {"masked_target": -0.5, "masked_others": 0.5, "plain_target": 0.01, "plain_others": 0.01}
    )


def test_a_selection_that_does_all_that_is_asked_passes() -> None:
    of_run = measured(-0.05, -0.01, 0.005, random=-0.01, caption=-0.02, lawful=-0.02, own_loss=-0.03)
    assert failures(of_run) == {"random": False, "specific": False, "search": False, "hard": False}
    assert wan.sentence(wan.verdicts(of_run), 4) == wan.ADDS
    rows = {row["arm"]: row for row in wan.table(of_run)}
    assert rows["selected"]["masked, target, over random"].startswith("-4.00%")


@pytest.mark.parametrize(
    ("criterion", "changes"),
    [
        ("random", {"random": -0.06}),
        ("specific", {"others": -0.06}),
        ("specific", {"plain": 0.02}),
        ("search", {"caption": -0.06}),
        ("hard", {"own_loss": -0.06}),
    ],
)
def test_each_criterion_fails_by_its_own_figure(criterion: str, changes: dict[str, float]) -> None:
    figures = {"others": -0.01, "plain": 0.005, "random": -0.01, "caption": -0.02, "own_loss": -0.03, **changes}
    of_run = measured(-0.05, **figures)
    assert [name for name, failed in failures(of_run).items() if failed] == [criterion]
    assert wan.sentence(wan.verdicts(of_run), 4) == wan.NOTHING


def test_without_captions_the_nearest_flow_is_the_rival() -> None:
    of_run = measured(-0.05, -0.01, 0.005, random=-0.01, lawful=-0.06, own_loss=-0.03)
    assert failures(of_run)["search"] is True
    del of_run["roll"]["lawful"]
    assert failures(of_run)["search"] is None
    assert wan.sentence(wan.verdicts(of_run), 4) == wan.NOTHING, "what was not measured was passed"


def test_of_few_motions_nothing_follows() -> None:
    of_run = measured(-0.05, -0.01, 0.005, random=-0.01, caption=-0.02, lawful=-0.02, own_loss=-0.03)
    assert "Nothing can be concluded from 3 motions" in wan.sentence(wan.verdicts(of_run), 3)


def test_arms_that_the_configuration_cannot_have_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    named = wan.possible(config.load("demo"))
    assert set(wan.ARMS) - set(named) == {"lawful", "magnitude", "motive"}, "the demo measures the motion of a sample"
    said = capsys.readouterr().out
    assert "the arm motive is left out: the arm 'motive' compares features" in said
    assert "the arm lawful is left out: Value error, motion.of='queries'" in said
    both = [{"timestep": 751, "noise": 0, "mask": mask} for mask in ("motion", "none")]
    run = config.load("wan2.1-t2v-1.3b", {"attribution.settings": both, "motion.of": "all"})
    assert wan.possible(run) == list(wan.ARMS)


def test_it_needs_held_out_videos_and_has_a_budget() -> None:
    run = config.load("demo", {"evaluate.videos": None})
    with pytest.raises(InputError, match=r"evaluate\.videos is null"):
        wan.specificity(run)
    assert wan._with_budget(run).budget.gpu_hours == wan.GPU_HOURS
    given = config.load("demo", {"budget.gpu_hours": 3})
    assert wan._with_budget(given).budget.gpu_hours == 3
    assert not wan._with_budget(given).evaluate.generate
