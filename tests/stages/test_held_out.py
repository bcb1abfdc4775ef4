"""The losses by which a night decides."""

from __future__ import annotations

from pipeline.evaluation.comparison import BANDS, banded
from pipeline.stages.held_out import by_clip


def test_a_night_decides_by_the_finite_losses_over_all_timesteps() -> None:
    rows = [
        {"arm": "base", "clip_id": "a", "metric": "masked_loss", "value": 2.0},
        {"arm": "base", "clip_id": "a", "metric": "plain_loss", "value": 3.0},
        *({"arm": "base", "clip_id": "a", "metric": banded("masked_loss", band), "value": 9.0} for band in BANDS),
        {"arm": "base", "clip_id": "gone", "metric": "masked_loss", "value": 9.0},
        {"arm": "another", "clip_id": "a", "metric": "masked_loss", "value": 9.0},
        {"arm": "candidate", "clip_id": "a", "metric": "masked_loss", "value": None},
        {"arm": "candidate", "clip_id": "a", "metric": "plain_loss", "value": float("nan")},
    ]
    assert by_clip(rows, ["base", "candidate"], {"a"}) == {
        "base": {"masked_loss": {"a": 2.0}, "plain_loss": {"a": 3.0}},
        "candidate": {"masked_loss": {}, "plain_loss": {}},
    }
