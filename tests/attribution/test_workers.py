"""The bodies of the actors: what too little memory makes them do changes no feature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import models, tables
from pipeline.attribution.workers import AttributionWorker
from pipeline.config import Run
from pipeline.inputs import videos as manifest
from pipeline.models.device import SideStream
from pipeline.motion.worker import smaller_batch
from pipeline.operations import index_pilot
from pipeline.stages import video_sets
from pipeline.tables import schemas


@pytest.mark.parametrize("blocks", ["device", "host"])
def test_smaller_parts_give_the_same_rows(small_run: Callable[..., Run], tmp_path: Path, blocks: str) -> None:
    changes = {"attribution__blocks": blocks, "model__gradient_checkpointing": blocks == "host"}
    run = small_run(tmp_path, attribution__hold=4, motion__batch=8, **changes)
    videos = manifest.of_set(video_sets.asked(run, "clips")).slice(0, 1).to_pylist()
    rows = index_pilot.index_videos(run, videos).clips
    clips = pa.Table.from_pylist(rows, schema=schemas.CLIPS)
    worker = AttributionWorker(run, models.grid(run), {})
    (whole,) = worker(clips)
    frames = worker.motion.decoder.submit_frames(rows[0]["uri"], 0, *run.geometry).result()
    worker.features.take({**rows[0], "mask": None}, frames)  # memory is out before this is finished
    holds = [worker.features.gradients.hold]
    while worker.shrink():
        holds.append(worker.features.gradients.hold)
        if blocks == "host":  # on a CPU features are right without it: only a GPU has two places for a gradient
            assert worker.features.host.sink == worker.features.gradients.arrive, "gradients go where none are held"
        (parts,) = worker(clips)
        assert parts.keys() == whole.keys()
        for name, table in parts.items():
            assert table.to_pylist() == whole[name].to_pylist(), f"{name} after holds of {holds}"
    assert holds[:3] == [4, 2, 1]
    assert worker.motion.run.motion.batch < 8


@pytest.mark.gpu
def test_a_clip_that_is_prepared_meanwhile_has_the_same_features(small_run: Callable[..., Run], tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    run = small_run(tmp_path, resources__extract_features__gpus=1)
    videos = manifest.of_set(video_sets.asked(run, "clips")).slice(0, 8).to_pylist()
    clips = pa.Table.from_pylist(index_pilot.index_videos(run, videos).clips, schema=schemas.CLIPS)
    worker = AttributionWorker(run, models.grid(run), {})
    ahead = [tables.matrix(part["features"], "feature") for part in worker(clips)]
    assert worker.features.side.close(), "a GPU has a second stream"
    in_turn = [tables.matrix(part["features"], "feature") for part in worker(clips)]
    assert len(np.concatenate(ahead)) == 8
    np.testing.assert_allclose(np.concatenate(ahead), np.concatenate(in_turn), rtol=1e-3, atol=1e-5)


def test_a_cpu_has_no_second_stream() -> None:
    side, made = SideStream(torch.device("cpu")), torch.ones(3)
    with side.stream():
        side.hand_over([made])
    assert not side.close(), "there is nothing that memory could be saved by"


@pytest.mark.parametrize(
    ("batch", "frames", "device", "half"),
    [
        (8, 9, "cpu", 4),
        (4, 9, "cpu", 2),
        (2, 9, "cpu", None),  # frames alone have other last bits
        (2, 9, "cuda", 1),
        (1, 9, "cuda", None),
        (6, 11, "cpu", None),  # 6 + 5 of 11 frames; in threes one of ten pairs would be alone
        (100, 10, "cuda", 5),
    ],
)
def test_rafts_batch_is_halved_as_far_as_bits_go(batch: int, frames: int, device: str, half: int | None) -> None:
    assert smaller_batch(batch, frames, device) == half
