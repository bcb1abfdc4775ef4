"""Checkpoints of fine-tuning under Ray Train: each worker's own part, written in the background.

A part is staged in main memory and handed to Ray's thread, which writes it while training goes on. Ray counts a
checkpoint once every worker has reported that its part is there, so one that was cut short is never gone on from.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode

from pipeline.cluster.failures import surfacing
from pipeline.config import Finetune
from pipeline.storage import stores
from pipeline.training import checkpoints
from pipeline.training.loop import Training

METRICS = "metrics.jsonl"
ASK = 1.0  # seconds between two questions whether the training has to stop, or a node is about to go


class Checkpoints:
    """A worker's part of an arm's checkpoints, at most one of them on its way at a time.

    `storage` is the folder in which Ray keeps them, `folder` the arm's, where the metrics are shown. `lines` is what
    metrics.jsonl holds so far. A part is written where this worker holds rows of its own, and the first worker adds the
    metrics. `permission` is an actor of `journal.permission`; once it is withdrawn, `stopped` is true in all workers.
    """

    def __init__(
        self, training: Training, config: Finetune, storage: str, folder: str, scratch: str, permission: Any
    ) -> None:
        self.training, self.config, self.storage, self.folder = training, config, storage, folder
        self.scratch, self.rank, self.lines = scratch, dist.get_rank(), ""
        self.last, self.written = time.monotonic(), threading.Event()
        self.notice: Any = None  # Ray's last word of a node that is about to go
        self.written.set()
        self.permission, self.asked, self.stopped = permission, -ASK, False

    def resume(self) -> None:
        """Go on from the last complete checkpoint, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        folder = stores.join(self.storage, Path(checkpoint.path).name)
        checkpoints.restore(self.training, folder)
        self.lines = stores.read_bytes(stores.join(folder, METRICS)).decode()

    def due(self, step: int) -> bool:
        """Whether all workers checkpoint now: by the step, by the first one's clock, or as a node is about to go; none
        does once `stopped` is true."""
        late, self.stopped, asks = self._said_by_the_first()
        before = self.notice
        if asks:  # of a spot node, mostly; the same for all workers, each of which asks an actor and waits for it
            self.notice = ray.train.get_preemption_info()
        going = self.notice is not None and self.notice != before
        by_step = step % self.config.checkpoint_every == 0 or step == self.config.steps
        return not self.stopped and (by_step or late or going)

    def _said_by_the_first(self) -> tuple[bool, bool, bool]:
        """Whether the first worker's clock asks for a checkpoint, whether the training has to stop, and whether it is
        time to ask for a node that is about to go."""
        late = time.monotonic() - self.last > self.config.checkpoint_seconds
        asks = time.monotonic() - self.asked >= ASK
        if self.rank == 0 and asks:
            self.stopped, self.asked = ray.get(self.permission.stopped.remote()), time.monotonic()
        if dist.get_world_size() == 1:
            return late, self.stopped, asks
        flags = torch.tensor([late, self.stopped, asks], device=self.training.device)
        dist.broadcast(flags, src=0)
        late, stopped, asks = flags.tolist()
        return late, stopped, asks

    def write(self) -> None:
        """Stage this worker's part and hand it to Ray's thread, once the checkpoint before it is there."""
        self.written.wait()
        self.last, step = time.monotonic(), {"step": self.training.step}
        if self.rank == 0:
            stores.write_bytes(stores.join(self.folder, METRICS), self.lines.encode())
        if self.rank > 0 and self.config.sharding == "none":
            ray.train.report(step, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        self.written.clear()
        state, lines, storage = checkpoints.staged(self.training), self.lines, ray.train.get_context().get_storage()

        def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                with surfacing():
                    checkpoints.write(state, Path(checkpoint.path), *self.training.share)
                    if self.rank == 0:
                        (Path(checkpoint.path) / METRICS).write_text(lines)
                    return storage.persist_current_checkpoint(checkpoint, name)
            finally:
                self.written.set()

        part = ray.train.Checkpoint.from_directory(tempfile.mkdtemp(dir=self.scratch))
        ray.train.report(step, part, checkpoint_upload_mode=CheckpointUploadMode.ASYNC, checkpoint_upload_fn=upload)
