"""What is measured by itself: a whole curation through Ray, attribution with and without a second stream, and steps of
fine-tuning."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.distributed as dist

from jobs.benchmarks.gpu import wan
from jobs.benchmarks.gpu.wan import Size
from jobs.curate import curate
from pipeline import config, models, tables
from pipeline.attribution import fingerprints
from pipeline.attribution.workers import AttributionWorker
from pipeline.config import Finetune
from pipeline.models.loss import own_noise
from pipeline.stages.indexing import index
from pipeline.storage import stores
from pipeline.tables import throughput
from pipeline.training import loop
from pipeline.training.training_set import ClipSet, EncodedClip

LOOK = 0.5  # seconds between two looks at the card


# --- a curation ------------------------------------------------------------------------------------------------------


def curation(folder: Path, model: Path, size: Size) -> dict[str, Any]:
    """Seconds to write what it takes, of the whole curation and of each stage; the card's busy share while clips were
    attributed and models were loaded, and the most memory that was taken of it. Interrupted, it has the stages that
    were finished: `whole` says whether it was not."""
    begun, whole = time.monotonic(), True
    run = wan.run_of(folder, model, size)
    written = time.monotonic()
    with watched() as looks:
        try:
            curate(run)
        except KeyboardInterrupt:
            whole = False
    ended = time.monotonic()
    stages = {name: {**asdict(f), "busy_share": f.busy_share} for name, f in throughput.sums(run.root).items()}
    attribution = stages["attribute clips"]
    (file,) = Path(run.root, "stats").glob("attribute_clips-*.json")  # written as the stage ends
    end, up = file.stat().st_mtime, attribution["actor_seconds"] / attribution["actors"]
    busy = [share for when, share, _ in looks if end - up < when <= end]
    return {
        "whole": whole,
        "clips": size.clips,
        "geometry": size.geometry,
        "writing_s": written - begun,
        "seconds": ended - written,
        "attribution_s_a_clip": attribution["seconds"] / max(1, attribution["rows"]),
        "actor_busy_s_a_clip": attribution["busy_seconds"] / max(1, attribution["rows"]),
        "card_busy": mean(busy) if busy else None,
        "card_gib": max(gib for _, _, gib in looks) if looks else None,
        "stages": stages,
    }


@contextlib.contextmanager
def watched() -> Iterator[list[tuple[float, float, float]]]:
    """While the body runs, look at the card: when, the share of the last moments in which a kernel ran, and GiB taken.
    Empty where there is no nvidia-smi."""
    looks, over = list[tuple[float, float, float]](), threading.Event()
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--id=0"]

    def look() -> None:
        while not over.wait(LOOK):
            said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
            busy, used = said.split(",")
            looks.append((time.time(), float(busy) / 100, float(used) / 1024))

    thread = threading.Thread(target=look, daemon=True)
    if shutil.which("nvidia-smi"):
        thread.start()
    try:
        yield looks
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()


# --- what a second stream gains --------------------------------------------------------------------------------------


OVERLAPPED = 6  # clips, after a first one that chooses algorithms


def overlap(folder: Path, model: Path, size: Size) -> dict[str, Any]:
    """Attribution in one process, the next clip prepared while a gradient is computed, and one after the other: seconds
    a clip, the card's busy share, the most memory that PyTorch held of it, and the lowest cosine of two features."""
    run = wan.run_of(folder, model, replace(size, clips=OVERLAPPED + 1))
    index(run, "clips")
    clips = tables.read(stores.join(run.root, "clips"))
    assert clips is not None, "all of them were indexed"
    worker = AttributionWorker(run, models.grid(run), fingerprints.features(run))
    list(worker(clips.slice(0, 1)))
    ways: dict[str, Any] = {}
    features = []
    for way in ("prepared meanwhile", "one after the other"):
        figures, feature = _attributed(worker, clips.slice(1))
        ways[way] = figures
        features.append(feature)
        worker.features.side.close()
    ahead, in_turn = features
    cosines = (ahead * in_turn).sum(1) / np.linalg.norm(ahead, axis=1) / np.linalg.norm(in_turn, axis=1)
    return {"ways": ways, "lowest_cosine": float(cosines.min())}


def _attributed(worker: AttributionWorker, clips: pa.Table) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """The figures of one way, and the features of its clips."""
    on_card = worker.features.device.type == "cuda"
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    with watched() as looks:
        parts = [part["features"] for part in worker(clips)]
    seconds = (time.monotonic() - begun) / clips.num_rows
    busy = mean(share for _, share, _ in looks) if looks else None
    peak = torch.cuda.max_memory_reserved() / 2**30 if on_card else None
    feature = tables.matrix(pa.concat_tables(parts), "feature")
    return {"s_a_clip": seconds, "card_busy": busy, "peak_gib": peak}, feature


# --- fine-tuning -----------------------------------------------------------------------------------------------------


WAYS: dict[str, dict[str, Any]] = {
    "adapters": {"lora_rank": 32},
    "adapters over fp8": {"lora_rank": 32, "frozen_weights": "fp8"},
    "every parameter": {},
    "every parameter, FSDP2 on one rank": {"sharding": "fsdp"},
}


def training(folder: Path, model: Path, size: Size) -> dict[str, Any]:
    """Median seconds of a step of one clip, after the first, and the most memory that PyTorch held of the card."""
    wan.write_model(model, size)
    gpus = torch.cuda.device_count() if not size.resources else 0
    device = torch.device("cuda" if gpus else "cpu")
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)  # type: ignore[attr-defined]
    dist.init_process_group("nccl" if gpus else "gloo", store=store, rank=0, world_size=1)
    try:
        return {name: _steps(model, size, way, device) for name, way in WAYS.items()}
    finally:
        dist.destroy_process_group()


def _steps(model_folder: Path, size: Size, way: dict[str, Any], device: torch.device) -> dict[str, Any]:
    recipe = config.load("wan2.1-t2v-1.3b", {"model.id": str(model_folder)})
    finetune = Finetune(steps=max(3, size.steps // 2), **way)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = loop.opened(recipe.model, finetune, device)
    grid = models.grid_of(model.family, *size.geometry)
    latent = own_noise("clip", 0, (model.family.channels, *grid.shape))
    width = model.family.number("transformer", "text_dim")  # type: ignore[attr-defined]
    text = own_noise("caption", 0, (recipe.model.text_tokens, width)).to(torch.bfloat16)
    clip = EncodedClip({"latent": latent}, ({"text": text},))
    clips = ClipSet(model, [{"clip_id": "a clip"}], lambda row: clip)
    lines = list(loop.train(loop.begin(model, finetune, 0), clips, finetune, 0))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"step_s": median(line.seconds for line in lines[1:]), "peak_gib": peak, "loss": lines[-1].loss}
