"""What a training needs to go on, as safetensors files: each worker's rows of parameters and moments, and the step.

A checkpoint is a folder, local or s3://, of ``state-RANK-of-WORKERS.safetensors``. The number of workers that reads it
may differ from the number that wrote it: rows are found by `sharding.rows`. `torch.distributed.checkpoint` is not used:
its readers for object stores unpickle the metadata file, and its safetensors reader knows local folders only.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.storage import stores
from pipeline.training.loop import Training
from pipeline.training.sharding import local, rows

PART = re.compile(r"state-\d+-of-(\d+)\.safetensors$")


def staged(training: Training) -> dict[str, Tensor]:
    """A copy in main memory of what this worker holds: trained parameters, the optimizer's moments, the step."""
    state = {"step": torch.tensor(training.step)}
    for name, parameter in training.parameters.items():
        state[f"parameter.{name}"] = _copy(parameter)
        for moment, value in training.optimizer.state[parameter].items():
            state[f"optimizer.{moment}.{name}"] = _copy(value)
    return state


def _copy(tensor: Tensor) -> Tensor:
    return local(tensor.detach()).to("cpu", copy=True).contiguous()


def file_name(rank: int, workers: int) -> str:
    return f"state-{rank:05d}-of-{workers:05d}.safetensors"


def write(state: dict[str, Tensor], folder: Path, rank: int = 0, workers: int = 1) -> None:
    """Write a worker's part of a checkpoint into a local folder."""
    safetensors.torch.save_file(state, folder / file_name(rank, workers))


def restore(training: Training, folder: str) -> None:
    """Go on from a checkpoint of the same configuration. FileNotFoundError if a part of it is missing."""
    parts = _parts(folder)
    for rank, path in enumerate(parts):
        theirs = (rank, len(parts))
        if rank > 0 and not any(_common(p, training.share, theirs) for p in training.parameters.values()):
            continue
        with _opened(path) as file:
            training.step = int(file.get_tensor("step"))
            for key in file.keys():  # noqa: SIM118, for the file is no mapping
                if key != "step":
                    _take(training, key, file.get_slice(key), theirs)


def _parts(folder: str) -> list[str]:
    workers_by_file = {match[0]: int(match[1]) for path in stores.files(folder) if (match := PART.search(path))}
    workers = max(workers_by_file.values(), default=1)
    expected = [file_name(rank, workers) for rank in range(workers)]
    if missing := set(expected) - set(workers_by_file):
        raise FileNotFoundError(f"{folder}: the checkpoint lacks {', '.join(sorted(missing))}")
    return [stores.join(folder, name) for name in expected]


def _common(parameter: Tensor, mine: tuple[int, int], theirs: tuple[int, int]) -> range:
    """The rows of a parameter that two workers both hold, counted from its first."""
    a, b = rows(len(parameter), *mine), rows(len(parameter), *theirs)
    return range(max(a.start, b.start), min(a.stop, b.stop))


def _take(training: Training, key: str, source: Any, theirs: tuple[int, int]) -> None:
    """Copy from a part what this worker holds of one parameter, or of one of its moments."""
    kind, _, name = key.partition(".")
    target = parameter = training.parameters[name.partition(".")[2] if kind == "optimizer" else name].detach()
    if kind == "optimizer":
        moment, _, name = name.partition(".")
        state = training.optimizer.state[training.parameters[name]]
        if not source.get_shape():
            state[moment] = source[...].to(parameter.device, copy=True)  # where the fused optimizer asks for it
            return
        target = state.setdefault(moment, torch.zeros_like(parameter))
    common = _common(parameter, training.share, theirs)
    if common:
        mine, their = rows(len(parameter), *training.share).start, rows(len(parameter), *theirs).start
        values = source[common.start - their : common.stop - their]
        local(target)[common.start - mine : common.stop - mine].copy_(values)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    fs, bare = stores.place(path)
    with tempfile.TemporaryDirectory() as scratch:
        if "file" not in fs.protocol:
            stores.fetch(path, f"{scratch}/part")
            bare = f"{scratch}/part"
        with safe_open(bare, framework="pt") as file:
            yield file
