"""The motion metrics against VBench's definition, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation import metrics


def speeds(values: list[float]) -> metrics.Flow:
    """A flow whose length is the given one everywhere, for each pair in turn; along a 3-4-5 triangle."""
    left = iter(values)

    def flow(before: Tensor, after: Tensor) -> Tensor:
        assert before.shape == after.shape
        assert before.shape[-1] % 8 == before.shape[-2] % 8 == 0
        rows = [torch.tensor([0.6, -0.8]) * next(left) for _ in before]
        return torch.stack(rows)[..., None, None].expand(-1, 2, *before.shape[-2:])

    return flow


def still(frames: int, height: int = 256, width: int = 300) -> np.ndarray:
    return np.zeros((frames, height, width, 3), np.uint8)


@pytest.mark.parametrize(("frames", "needed"), [(2, 0), (3, 1), (6, 2), (10, 2), (14, 4), (16, 4), (18, 4)])
def test_pairs_needed_follow_pythons_rounding_to_even(frames: int, needed: int) -> None:
    degree = metrics.vbench_dynamic_degree(still(frames), 8, speeds([0.0] * frames))
    assert degree.needed == needed
    assert degree.dynamic == (needed == 0), "only VBench's degenerate case of two frames is dynamic without motion"


def test_a_pair_counts_only_strictly_above_the_threshold() -> None:
    fast = [6.0625, 6.0625, 1, 1, 1]  # exact in float32
    assert metrics.vbench_dynamic_degree(still(6), 8, speeds(fast)).dynamic
    degree = metrics.vbench_dynamic_degree(np.zeros((6, 256, 256, 3), np.uint8), 8, lambda a, b: at(6.0, a))
    assert not degree.dynamic
    assert degree.margin == 1.0
    assert degree.threshold == 6.0


def at(speed: float, before: Tensor) -> Tensor:
    flow = torch.zeros(len(before), 2, *before.shape[-2:])
    flow[:, 0] = speed
    return flow


def test_the_margin_is_the_needed_th_largest_score_over_the_threshold() -> None:
    degree = metrics.vbench_dynamic_degree(still(10, 128, 200), 8, speeds([1, 9, 2, 4.5, 3, 0, 0, 0, 0]), batch=4)
    assert degree.dynamic
    assert (degree.threshold, degree.needed) == (3.0, 2)
    assert degree.margin == pytest.approx(1.5)
    assert len(degree.scores) == 9


@pytest.mark.parametrize(("fps", "sampled"), [(8, 33), (16, 17), (20, 17), (24, 11), (30, 9), (4, 33)])
def test_frames_are_taken_at_about_eight_a_second(fps: float, sampled: int) -> None:
    # 20 fps: round(2.5) is 2; 30 fps: round(3.75) is 4
    assert len(metrics.vbench_dynamic_degree(still(33, 16, 16), fps, speeds([0.0] * 40)).scores) == sampled - 1


def test_a_pair_scores_the_fastest_five_percent_of_the_padded_flow() -> None:
    # 30 x 40 becomes 32 x 40: 1280 pixels, of which int(64.0) count; 40 pixels at 10 and the rest at 1
    seen = []

    def flow(before: Tensor, after: Tensor) -> Tensor:
        seen.append(before.shape)
        flow_field = at(1.0, before)
        flow_field[:, 0, 5] = 10.0
        return flow_field

    degree = metrics.vbench_dynamic_degree(still(3, 30, 40), 8, flow)
    assert seen[0] == (2, 3, 32, 40)
    assert degree.threshold == 6.0 * 30 / 256, "the threshold is that of the frame, not of the padded one"
    assert degree.scores == pytest.approx(((40 * 10 + 24) / 64,) * 2)


def test_padding_repeats_edges_and_splits_evenly() -> None:
    frames = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 8, 5)
    assert metrics.pad(frames)[0, 0, 0].tolist() == [0, 0, 1, 2, 3, 4, 4, 4]
    assert metrics.pad(frames).shape == (1, 1, 8, 8)
    assert metrics.pad(torch.zeros(1, 3, 16, 24)).shape == (1, 3, 16, 24)


def test_the_definition_agrees_with_a_naive_one() -> None:
    flow = torch.randn(3, 2, 24, 40, generator=torch.Generator().manual_seed(0))
    lengths = np.sqrt((flow.numpy() ** 2).sum(1)).reshape(3, -1)
    naive = [np.sort(row)[::-1][: int(24 * 40 * 0.05)].mean() for row in lengths]
    assert metrics.pair_scores(flow).tolist() == pytest.approx(naive, rel=1e-6)


def test_flickering() -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    assert metrics.temporal_flickering(frames) == 1.0
    frames[1] = 255
    assert metrics.temporal_flickering(frames) == 0.0
    frames[1] = 51
    frames[2] = 0
    assert metrics.temporal_flickering(frames) == pytest.approx(0.8)


def test_one_frame_has_no_motion_to_measure() -> None:
    with pytest.raises(ValueError, match="two frames"):
        metrics.vbench_dynamic_degree(still(2), 30, speeds([]))
    with pytest.raises(ValueError, match="two frames"):
        metrics.temporal_flickering(still(1))
