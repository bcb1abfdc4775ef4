"""The arms that draw each clip at times of its own.

`timed` and `timed_random` draw their clips at the times where their influence is good.
The timesteps of the settings that the ranking compares part the scale into bands: neighbours meet halfway. A clip's
score in a band is its mean influence there on the queries of the arm's group (as `ranking.spare` has it), less the mean
of all ranked clips and over their standard deviation. With z its scores in the B bands, the band b has the weight

    (1 - SHIFTED) + SHIFTED * B * softmax(z)[b],

of mean 1 over the bands. Training draws the band so many times as often as it would without, and then all shares are
scaled to a sum of 1; inside a band times are drawn as ever. So no time is left out, and a clip that is no better at
one time than at another, or has no influence at all, trains at the times of every other arm. The loss is not weighted
back: to shift what is trained is the purpose. The idea is that of TQD (arXiv 2603.25527), where clips rich in motion
train at high timesteps and good-looking ones at low; here influence says which.

`little_noise` and `little_noise_random` part the draws of training into halves. Where there is less noise, training
draws the clips that the arm picks alone; where there is more, all clips alike. Each half is drawn as often as in other
arms. In small worlds the clips of `selected` helped at little noise and did harm at much (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import LITTLE_NOISE, Run
from pipeline.config.attribution import compared
from pipeline.errors import ConfigError
from pipeline.models.schedule import STEPS
from pipeline.tables import schemas

if TYPE_CHECKING:  # for speed: they import torchvision, which workers of fine-tuning do not need
    from pipeline.models import Expert
    from pipeline.ranking.influence_table import BySetting
    from pipeline.ranking.selection import Ranked

Floats = npt.NDArray[np.float64]

LITTLE = 0.5  # the share of the draws of training, those with the least noise, that the arms of LITTLE_NOISE part off
SHIFTED = 0.75  # of a clip's draws, the share that goes by its influence
END = float(STEPS)
COLUMNS = EDGES, SCORES, WEIGHTS = "time_edges", "time_scores", "time_weights"  # of a training set


# --- what a configuration has -----------------------------------------------------------------------------------------


def timesteps(run: Run) -> list[float]:
    """The different timesteps of the settings that the ranking compares, ascending."""
    return sorted({setting.timestep for setting in compared(run.ranking.mask, run.attribution.settings)["clips"]})


def check(run: Run, arm: str) -> None:
    """Raise ConfigError where an arm of TIMED cannot be had: with fewer than two bands, for two experts in one
    training, and for random clips of which a shortlist leaves most without influence. Those of LITTLE_NOISE need one
    expert alone."""
    named = timesteps(run)
    advice = f"or leave {arm!r} out of finetune.arm and evaluate.arms."
    if arm in LITTLE_NOISE:
        _trained_expert(run, arm, advice)
        return
    if len(named) < 2:
        raise ConfigError(
            f"the arm {arm!r} draws each clip at the timesteps where its influence is good, and the settings of "
            f"attribution.settings that ranking.mask={run.ranking.mask!r} compares have one timestep, {named[0]:g}. "
            f"Add settings of another timestep and extract features again in a new root, {advice}"
        )
    if arm == "timed_random" and run.attribution.shortlist is not None:
        raise ConfigError(
            "the arm 'timed_random' needs the influence of clips drawn at random, and with attribution.shortlist most "
            f"clips have none. Leave attribution.shortlist out, {advice}"
        )
    _check_experts(run, arm, named, advice)


def _trained_expert(run: Run, arm: str, advice: str) -> Expert | None:
    """The expert that is trained, of a model with several."""
    from pipeline import models  # imports torch

    experts = models.family(run.model).experts
    if len(experts) == 1:
        return None
    if run.finetune.expert == "both":
        raise ConfigError(
            f"the arm {arm!r} draws times clip by clip, and of a model with two experts a step trains one, at its "
            f"times, for all clips: a clip's shares would not come true. Name one (finetune.expert=high), {advice}"
        )
    (expert,) = (expert for expert in experts if expert.name == run.finetune.expert)
    return expert


def _check_experts(run: Run, arm: str, named: Sequence[float], advice: str) -> None:
    expert = _trained_expert(run, arm, advice)
    if expert is None:
        return
    inside = [timestep for timestep in named if expert.has(timestep)]
    if len(inside) < 2:
        raise ConfigError(
            f"the arm {arm!r} parts the times of the {expert.name}-noise expert, {expert.first:g} to {expert.last:g}, "
            f"and of the timesteps in attribution.settings {len(inside)} lie there. Add settings with two such "
            f"timesteps or more, {advice}"
        )


# --- which times a clip has -------------------------------------------------------------------------------------------


def edges(named: Sequence[float]) -> Floats:
    """Where the bands of ascending timesteps [B] meet: [B - 1]."""
    times = np.asarray(named, np.float64)
    return (times[:-1] + times[1:]) / 2


def scores(by_setting: BySetting, of_setting: Sequence[float], group: str, spare: float = 0.0) -> Floats:
    """The standardised influence of all ranked clips in each band [N, B]; 0 where it is the same for all of them.

    `of_setting` is the timestep of every setting; settings of one timestep are averaged.
    """
    named = sorted(set(of_setting))
    total, counts = np.zeros((by_setting.columns.rows, len(named))), np.zeros(len(named))
    for timestep, values in zip(of_setting, by_setting.scores(group, spare), strict=True):
        band = named.index(timestep)
        total[:, band] += values
        counts[band] += 1
    mean = total / counts
    centred, spread = mean - mean.mean(0), mean.std(0)
    standardised: Floats = np.where(spread > 0, centred / np.where(spread > 0, spread, 1.0), 0.0)
    return standardised


def weights(score: Floats) -> Floats:
    """How many times as often as in plain training each band is drawn, before shares are scaled: [..., B] -> the same.
    NaN scores, of clips without influence, give 1."""
    bands = score.shape[-1]
    raised = np.exp(score - score.max(-1, keepdims=True))
    value: Floats = (1 - SHIFTED) + SHIFTED * bands * raised / raised.sum(-1, keepdims=True)
    return np.where(np.isnan(value), 1.0, value)


def with_times(run: Run, rows: pa.Table, ranked: Ranked) -> pa.Table:
    """Rows of a training set with EDGES [B - 1] on the 1000-step scale, SCORES [B] (null without influence) and WEIGHTS
    [B], of the bands from little noise to much."""
    by_setting = ranked.by_setting
    if by_setting is None:
        raise ValueError("a ranking without influence by setting cannot say at which times clips are good")
    of_setting = [s.timestep for s in compared(run.ranking.mask, run.attribution.settings)["clips"]]
    every = scores(by_setting, of_setting, run.finetune.group, run.ranking.spare)
    places = pc.index_in(rows.column("clip_id").cast(pa.large_string()), ranked.clip_ids).combine_chunks()
    known = places.is_valid().to_numpy(zero_copy_only=False)
    score = np.full((rows.num_rows, every.shape[1]), np.nan)
    score[known] = every[places.drop_null().to_numpy()]
    between = edges(timesteps(run)).tolist()
    columns = {
        EDGES: [between] * rows.num_rows,
        SCORES: [row.tolist() if has else None for row, has in zip(score, known.tolist(), strict=True)],
        WEIGHTS: weights(score).tolist(),
    }
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(values, pa.list_(pa.float64())))
    return rows


def at_little_noise(run: Run, clips: pa.Table, row_mask: npt.NDArray[np.bool_]) -> pa.Table:
    """All clips with `weight`, their share of the draws, and the columns of `with_times` for two bands: those of the
    mask [N] share the draws of the first one, which has LITTLE of all, and all clips those of the second. Scores are
    null: no influence says when a clip trains."""
    count = clips.num_rows
    in_first = np.where(row_mask, LITTLE / row_mask.sum(), 0.0)
    in_second = np.full(count, (1 - LITTLE) / count)
    weight = in_first + in_second
    of_bands = np.stack([in_first / weight / LITTLE, in_second / weight / (1 - LITTLE)], 1)
    columns = {
        "weight": pa.array(weight, pa.float64()),
        EDGES: pa.array([[_little_noise_ends(run)]] * count, pa.list_(pa.float64())),
        SCORES: pa.nulls(count, pa.list_(pa.float64())),
        WEIGHTS: pa.array(of_bands.tolist(), pa.list_(pa.float64())),
    }
    for name, values in columns.items():
        clips = clips.append_column(name, values)
    return clips


def _little_noise_ends(run: Run) -> float:
    """The timestep below which training draws LITTLE of its times, of the expert that it trains."""
    import torch  # for speed, as above

    from pipeline import models

    family, d = models.family(run.model), run.data
    expert = _trained_expert(run, run.finetune.arm, "")
    within = (0.0, END) if expert is None else (expert.first, expert.last)
    cells = math.prod(models.grid_of(family, d.frames, d.height, d.width).shape)
    uniform = torch.tensor([LITTLE], dtype=torch.float64)
    return float(family.schedule.times(uniform, cells, within))


def times_table(rows: pa.Table) -> pa.Table:
    """The table times/ of a training set with these columns: a row for each clip and band, by clip_id."""
    lines = []
    for row in rows.select(["clip_id", EDGES, SCORES, WEIGHTS]).sort_by("clip_id").to_pylist():
        ends = [0.0, *row[EDGES], END]
        for band, weight in enumerate(row[WEIGHTS]):
            score = None if row[SCORES] is None else row[SCORES][band]
            place = {"clip_id": row["clip_id"], "band": band, "first": ends[band], "last": ends[band + 1]}
            lines.append({**place, "score": score, "weight": weight})
    return pa.Table.from_pylist(lines, schema=schemas.TIMES)


# --- drawing ----------------------------------------------------------------------------------------------------------


def warped(uniform: float, ends: Sequence[float], weight: Sequence[float]) -> float:
    """A uniform number in [0, 1) -> one that falls into each band as often as its weight says, in the same order.

    `ends` [B - 1] are the shares of plain training below the bands' edges, ascending. An inverse distribution function:
    linear inside a band, so that times there stay as they are drawn.
    """
    plain = np.array([0.0, *ends, 1.0])
    shares = np.diff(plain) * np.asarray(weight)
    upto = np.concatenate([[0.0], np.cumsum(shares / shares.sum())])
    return min(float(np.interp(uniform, upto, plain)), float(np.nextafter(1.0, 0.0)))
