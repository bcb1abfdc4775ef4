"""All Ray Train code: one arm's fine-tuning on one or several workers, restarted from its last checkpoint.

The loop itself is `loop.train`. Latents and captions are encoded once a run, by all workers together, into
``ROOT/finetuned/.latents``, which every arm shares; Ray's checkpoints live in ``ROOT/finetuned/.train`` until the arm
is done. Both have to be reachable from every node, as the run's root has.

When nodes go away, training goes on from the last checkpoint with `finetune.min_workers` or more.
When memory does not do, it goes on from there with half as many clips in a pass, and as many in a step as before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchTrainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline import models
from pipeline.cluster import failures, journal, loading, resources
from pipeline.cluster.checkpoints import METRICS, Checkpoints
from pipeline.cluster.watchdog import Patience, looking
from pipeline.config import Arm, Run
from pipeline.errors import StageError, is_out_of_memory
from pipeline.models.device import device_for
from pipeline.storage import lease, stores
from pipeline.training import loop, time_bands
from pipeline.training.training_set import ClipSet, FramesOf, Row, cache_folder, drawn, encode_set, encoded_as, kept_in

log = logging.getLogger(__name__)

Report = Callable[[int, int, dict[str, int]], None]  # steps done, steps in all, nothing

DONE = "done.json"
AT_ONCE = "clips_at_once.json"  # beside the checkpoints: clips of a pass, once those of finetune.batch were too many
MAX_FAILURES = 3
POLL = 5.0  # seconds between two looks at an arm's metrics
REGROW = 300.0  # seconds between two looks whether lost workers can be had again: each costs a restart
WITHOUT_EFFECT = {"arm", "checkpoint_every", "checkpoint_seconds", "sharding", "min_workers"}  # on the result


def frames_by_decoder(run: Run) -> FramesOf:
    """Decode clips at the training geometry in a child process. The default of `finetune`; called in each worker."""
    from pipeline.video.decoders import decoder_for

    decoder, d = decoder_for(run), run.data

    def frames_of(row: Row) -> Any:
        return decoder.frames(row["uri"], row["start_frame"], d.frames, d.fps, d.height, d.width)

    return frames_of


def identity(run: Run, rows: pa.Table, model_hash: str) -> str:
    """A hash of all that an arm's result depends on: its clips with their weights and times, the model, and the
    configuration."""
    of_clips = ("clip_id", "version", "caption", "captions", "weight", time_bands.EDGES, time_bands.WEIGHTS)
    named = [c for c in of_clips if c in rows.column_names]
    clips = rows.select(named).sort_by("clip_id").to_pylist()
    parts = [clips, run.finetune.arm, _settings(run), run.seed, encoded_as(run, model_hash)]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def version(run: Run, rows: pa.Table) -> str:
    """The name of an arm's training on these rows, as `finished` tells it once it is done."""
    return _name(run, rows, models.weights_hash(run.model))


def _name(run: Run, rows: pa.Table, model_hash: str) -> str:
    return f"{run.finetune.arm}-{identity(run, rows, model_hash)}"


def _settings(run: Run) -> dict[str, Any]:
    settings = run.finetune.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    for key, value in (("expert", "both"), ("motion_weight", 0.0), ("frozen_weights", "full")):
        if settings[key] == value:  # what arms of before there was the key have
            del settings[key]
    if run.model.compile:  # compiled code rounds differently
        settings["model.compile"] = True
    return settings


def finished(run: Run, arm: Arm) -> str | None:
    """A name for the training that an arm's folder holds the result of; None where there is none with these settings of
    `finetune`. Whether the selection has changed since is for `finetune` to find."""
    path = stores.join(run.root, "finetuned", arm, DONE)
    done = json.loads(stores.read_bytes(path)) if stores.exists(path) else {}
    return str(done["name"]) if done.get("finetune") == _settings(run) else None


def finetune(
    run: Run, rows: pa.Table, frames: Callable[[Run], FramesOf] = frames_by_decoder, report: Report | None = None
) -> str:
    """Fine-tune `run.finetune.arm` on rows of clips with their `weight`; returns the arm's folder.

    An arm that was finished with the same clips, weights, model and configuration is left as it is; a run that was
    interrupted goes on; anything else in the arm's folder gives way. `frames` is a function of an importable module
    that each worker calls once. RuntimeError if the workers fail more than MAX_FAILURES times, StageError if a store
    fails them, LostError where the run's lease was lost: they stop between two steps.
    """
    root = _absolute(run.root)
    folder = stores.join(root, "finetuned", run.finetune.arm)
    model_hash = models.weights_hash(run.model)
    name = _name(run, rows, model_hash)
    storage = stores.join(root, "finetuned", ".train")
    lease.check(root)
    if not _is_done(folder, name):
        stores.remove(folder)
        columns = [c for c in rows.column_names if c not in ("cuts", "error", "mask", "feature")]
        task = {
            "run": run.model_dump(mode="json"),
            "rows": rows.select(columns).sort_by("clip_id"),
            "frames": frames,
            "folder": folder,
            "cache": cache_folder(root, run, model_hash),
            "name": name,
            "checkpoints": stores.join(storage, name),
        }
        with (
            journal.permission(root) as permission,
            _watched(stores.join(folder, METRICS), run, report),
        ):
            _fit(run, task, permission, name, storage)
        lease.check(root)  # its workers stopped for it without an error
        if not _is_done(folder, name):
            raise RuntimeError(f"{folder}: its training counts as finished, but it is gone; delete {storage}/{name}")
    for entry in (path.rsplit("/", 1)[-1] for path in stores.files(storage)):
        if entry.startswith(f"{run.finetune.arm}-"):  # of earlier selections as well
            stores.remove(stores.join(storage, entry))
    return folder


def _fit(run: Run, task: dict[str, Any], permission: Any, name: str, storage: str) -> None:
    """Train until it is done, also through many lost nodes: only failures without a step between them are counted.

    A failure of the workers is one that Ray Train has tried MAX_FAILURES times again. One of its controller it never
    tries again, although many pass: the port where the workers were to meet was taken by somebody else meanwhile.
    """
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths in a configuration mean the same in every process
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # each report of a checkpoint waits for one
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    interrupted, reached, failed = signal.getsignal(signal.SIGINT), _progress(run, task), 0
    try:
        while failed <= MAX_FAILURES:
            lease.check(run.root)
            try:
                _trainer(run, task, permission, name, storage).fit()
                _tell_size(run, _at_once(task, run))
                return
            except ray.train.TrainingFailedError as error:
                failure = failures.of_training(error)
                if isinstance(failure, StageError):
                    raise failure from error
                if failure is not None:  # each request was tried long enough, and a full disk stays full
                    raise StageError("finetune", str(failure)) from failure
                last = error
            failed += 1 if isinstance(last, ray.train.ControllerError) else MAX_FAILURES + 1
            log.warning("fine-tuning failed after step %d: %s", _progress(run, task)[0], last)
            if (progress := _progress(run, task)) > reached:
                reached, failed = progress, 0
    finally:
        if signal.getsignal(signal.SIGINT) is not interrupted:  # Ray's own handler of Ctrl-C outlives the training
            signal.signal(signal.SIGINT, interrupted)
    raise RuntimeError(
        f"fine-tuning of arm {run.finetune.arm} failed {failed} times without coming further: {last}\nOnce the cause "
        f"is gone, run it again: it goes on from its last checkpoint in {storage}/{name}."
    ) from last


def _progress(run: Run, task: dict[str, Any]) -> tuple[int, int]:
    """Greater once a step more is done, or once a pass has fewer clips because memory did not do."""
    return _lines(stores.join(task["folder"], METRICS)), -_at_once(task, run)


def _at_once(task: dict[str, Any], run: Run) -> int:
    """Clips of a pass: those of finetune.batch, or fewer once these took more memory than there is."""
    path = stores.join(task["checkpoints"], AT_ONCE)
    return int(json.loads(stores.read_bytes(path))) if stores.exists(path) else run.finetune.batch


def _tell_size(run: Run, at_once: int) -> None:
    config = run.finetune
    if at_once == config.batch:
        return
    words = f"finetune.batch={config.batch} took more memory than there is, so passes had {at_once} clips at most"
    if config.batch % at_once == 0:
        accumulate = config.batch * config.accumulate // at_once
        words += f"; finetune.batch={at_once} with finetune.accumulate={accumulate} begins that way"
    log.warning("finetune %s: %s. A step is the same.", config.arm, words)


def _trainer(run: Run, task: dict[str, Any], permission: Any, name: str, storage: str) -> TorchTrainer:
    pool, (filesystem, place) = run.resources.finetune, stores.arrow(storage)
    return TorchTrainer(
        loading.train,
        # Packed, for Ray's controller unpacks this dictionary as well, and needs none of what its parts import.
        train_loop_config={"task": ray.cloudpickle.dumps(task), "permission": permission},
        scaling_config=ray.train.ScalingConfig(
            num_workers=_workers(run),
            elastic_resize_monitor_interval_s=REGROW,
            use_gpu=pool.gpus > 0,
            resources_per_worker=resources.bundle(pool),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=place,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )


def _workers(run: Run) -> int | tuple[int, int]:
    fewest, most = run.finetune.min_workers, run.finetune.workers
    return most if fewest in (None, most) else (fewest, most)


def worker(packed: bytes, permission: Any) -> None:
    """A worker of Ray Train's: its task, packed, and the actor `journal.permission`."""
    with failures.surfacing():
        _worker(ray.cloudpickle.loads(packed), permission)


def _worker(task: dict[str, Any], permission: Any) -> None:
    """One worker's life: encode its share, go on from the last checkpoint, train, and on rank 0 write the result."""
    run, rows = Run.model_validate(task["run"]), task["rows"].to_pylist()
    config = run.finetune
    rank, workers = dist.get_rank(), dist.get_world_size()
    device = _device(run.resources.finetune.gpus)
    with loading.collector_at_rest():
        model = loop.opened(run.model, config, device)
    needed = [rows[i] for i in drawn(rows, config, run.seed)]
    encode_set(model, needed[rank::workers], task["frames"](run), task["cache"], run.data.fps)
    dist.barrier()

    training = loop.begin(model, config, run.seed)
    clips = ClipSet(model, rows, kept_in(task["cache"]))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Checkpoints(training, config, task["checkpoints"], task["folder"], scratch, permission)
        checkpoints.resume()
        if config.sharding == "none" and workers > 1:
            # A step trains one expert, and the other one gets no gradient.
            unused = len(training.experts) > 1 or model.family.varying
            training.objective = DistributedDataParallel(training.objective, find_unused_parameters=unused)
        at_once = _at_once(task, run)
        with _smaller_next_time(task, at_once):
            for line in loop.train(training, clips, config, run.seed, rank, workers, _mean, at_once):
                checkpoints.lines += line.json() + "\n"
                if checkpoints.due(line.step):
                    checkpoints.write()
                if checkpoints.stopped:
                    break
        if not checkpoints.stopped:
            loop.save_weights(training, task["folder"])
        checkpoints.written.wait()
    if checkpoints.stopped:
        return
    if rank == 0:
        done = {"name": task["name"], "finetune": _settings(run), "clips": len(rows), "clips_drawn": len(needed)}
        stores.write_bytes(stores.join(task["folder"], DONE), json.dumps(done).encode())
    dist.barrier()


@contextmanager
def _smaller_next_time(task: dict[str, Any], at_once: int) -> Iterator[None]:
    """Where memory does not do, write down that the next attempt takes half as many clips in a pass, and let this one
    fail: what filled the memory goes with the process. Raises StageError where it was one clip."""
    try:
        yield
    except FloatingPointError as error:  # the same step diverges again, however often it is tried
        raise StageError("finetune", str(error)) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if at_once == 1:
            raise StageError("finetune", f"{_ONE_CLIP}\n{error}") from error
        stores.write_bytes(stores.join(task["checkpoints"], AT_ONCE), json.dumps(math.ceil(at_once / 2)).encode())
        raise


_ONE_CLIP = (
    "a step of one clip at a time takes more memory than a worker has. Train adapters (finetune.lora_rank), shard the "
    "parameters (finetune.sharding: fsdp with more finetune.workers), or take fewer data.frames or a smaller picture."
)


def _device(gpus: float) -> torch.device:
    device_for(gpus)
    device: torch.device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _mean(value: Tensor) -> Tensor:
    if dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value / dist.get_world_size()


@contextmanager
def _watched(metrics: str, run: Run, report: Report | None) -> Iterator[None]:
    """Tell `report` how far an arm is, by its metrics file, while the body waits for the workers; and the log, what the
    workers wait for where the cluster has no place for them."""
    if report is None:
        yield
        return
    steps, patience, placed = run.finetune.steps, Patience(), time.monotonic()

    def look() -> None:
        nonlocal placed
        waits = journal.gang(run.resources.finetune)
        placed = time.monotonic() if waits is None else placed
        still = time.monotonic() - placed
        if patience.is_over(still):
            log.warning("finetune %s, for %.0f s: %s", run.finetune.arm, still, waits)
        report(_lines(metrics), steps, {})

    report(0, steps, {})
    with looking(look, POLL, "finetune"):
        yield
    report(_lines(metrics), steps, {})


def _lines(path: str) -> int:
    return stores.read_bytes(path).count(b"\n") if stores.exists(path) else 0


def _is_done(folder: str, name: str) -> bool:
    path = stores.join(folder, DONE)
    return stores.exists(path) and json.loads(stores.read_bytes(path))["name"] == name


def _absolute(root: str) -> str:
    fs, bare = stores.place(root)
    return bare if "file" in fs.protocol else root
