"""Ray Train on the CPU: an arm with and without a killed worker, and with two workers, against the plain loop."""

from __future__ import annotations

import glob
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError

from pipeline.models import trained_weights

ROOT = str(Path(__file__).parents[2])
from pipeline.cluster import failures  # noqa: E402
from pipeline.cluster import training as ray_train  # noqa: E402
from pipeline.config import Run, parse  # noqa: E402
from pipeline.errors import LostError, StageError, StoreError, store_failure  # noqa: E402
from pipeline.storage import lease, stores  # noqa: E402
from pipeline.training import loop, time_bands, training_set  # noqa: E402
from tests.training import test_loop as tiny  # noqa: E402

pytestmark = pytest.mark.slow

STEPS = 8


class RenamedError(StoreError):
    """A store's failure of a module that the product does not know by name."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A local cluster of four logical CPUs whose workers can import this file."""
    before = dict(os.environ)
    path = ROOT
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONPATH": path}
    import ray

    ray.shutdown()  # of another test file, whose workers could not import this one
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("wan")
    tiny.write_pipeline(folder)
    return str(folder)


def configured(root: Path | str, checkpoint: str, **finetune: object) -> Run:
    values = {
        "root": str(root),
        "data": {"videos": "none", "frames": 5, "fps": 8, "height": 8, "width": 8},
        "queries": {"videos": "none"},
        "model": {"id": checkpoint, "dtype": "float32", "text_tokens": 8},
        "finetune": {
            "arm": "motive",
            "steps": STEPS,
            "batch": 2,
            "learning_rate": 1e-3,
            "checkpoint_every": 2,
            "lora_rank": 4,
            **finetune,
        },
    }
    return parse(values, "test")


def training_rows() -> pa.Table:
    return pa.Table.from_pylist(tiny.rows())


def timed_rows() -> pa.Table:
    """The same clips, each at times of its own."""
    columns = {time_bands.EDGES: [[501.0]] * 4, time_bands.WEIGHTS: [[0.3, 1.7], [1.5, 0.5], [1.0, 1.0], [0.6, 1.4]]}
    rows = training_rows()
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(values, pa.list_(pa.float64())))
    return rows


def frames(run: Run) -> training_set.FramesOf:
    return tiny.frames_of


def frames_and_a_kill(run: Run) -> training_set.FramesOf:
    """As `frames`, but the first worker is killed once a second checkpoint has been started."""
    marker = Path(run.root) / "killed"

    def watch() -> None:
        while len(glob.glob(f"{run.root}/finetuned/.train/*/checkpoint_*")) < 2:
            time.sleep(0.002)
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)

    if not marker.exists():
        threading.Thread(target=watch, daemon=True).start()
    return tiny.frames_of


def plain(
    checkpoint: str, cache: Path, run: Run, rows: pa.Table | None = None
) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = tiny.opened(checkpoint)
    training_set.encode_set(model, tiny.rows(), tiny.frames_of, str(cache), 8.0)
    training = loop.begin(model, run.finetune, run.seed)
    of_table = (training_rows() if rows is None else rows).to_pylist()
    clips = training_set.ClipSet(model, of_table, training_set.kept_in(str(cache)))
    losses = [line.loss for line in loop.train(training, clips, run.finetune, run.seed)]
    loop.save_weights(training, str(cache / "arm"))
    return losses, weights(cache / "arm")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    import safetensors.torch

    tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(folder / trained_weights.LORA)
    return tensors


def lines(folder: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in stores.read_bytes(f"{folder}/metrics.jsonl").decode().splitlines()]


def test_a_killed_worker_changes_nothing(checkpoint: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = configured(tmp_path / "run", checkpoint)
    heard: list[tuple[int, int]] = []
    folder = ray_train.finetune(run, training_rows(), frames_and_a_kill, lambda d, n, e: heard.append((d, n)))
    assert (tmp_path / "run" / "killed").exists(), "the worker was to be killed on the way"
    losses, expected = plain(checkpoint, tmp_path / "plain", run)
    assert [line["step"] for line in lines(folder)] == list(range(1, STEPS + 1)), "a step is missing or doubled"
    assert [line["loss"] for line in lines(folder)] == losses
    lora_weights = weights(Path(folder))
    assert lora_weights.keys() == expected.keys()
    assert all(torch.equal(lora_weights[n], expected[n]) for n in lora_weights)
    assert (heard[0], heard[-1]) == ((0, STEPS), (STEPS, STEPS))
    assert ray_train.finished(run, "motive") == json.loads((Path(folder) / "done.json").read_text())["name"]
    assert ray_train.finished(run, "random") is None
    assert ray_train.finished(configured(tmp_path / "run", checkpoint, steps=STEPS + 1), "motive") is None
    assert os.listdir(tmp_path / "run" / "finetuned" / ".train") == [], "checkpoints of a finished arm remain"

    before = os.stat(f"{folder}/done.json").st_mtime_ns
    assert ray_train.finetune(run, training_rows(), frames) == folder
    assert os.stat(f"{folder}/done.json").st_mtime_ns == before, "a finished arm ran again"


@pytest.mark.parametrize(
    ("frozen_weights", "timed"), [("full", False), pytest.param("fp8", True, marks=pytest.mark.whole)]
)
def test_two_workers_share_the_batch_of_one(checkpoint: str, tmp_path: Path, frozen_weights: str, timed: bool) -> None:
    rows = timed_rows() if timed else training_rows()
    shared = {"workers": 2, "batch": 1, "accumulate": 2, "steps": 3}
    run = configured(tmp_path / "run", checkpoint, **shared, frozen_weights=frozen_weights)
    stale = tmp_path / "run" / "finetuned" / "motive" / "transformer"
    stale.mkdir(parents=True)
    others = [tmp_path / "run" / "finetuned" / ".train" / name for name in ("motive-0", "motive_whitened-0")]
    for other in others:
        other.mkdir(parents=True)
    folder = ray_train.finetune(run, rows, frames)
    assert not stale.exists(), "an older result remains beside the new one"
    assert [other.exists() for other in others] == [False, True], "of an older training of this arm, and of another arm"
    losses, expected = plain(checkpoint, tmp_path / "plain", run, rows)
    assert [line["loss"] for line in lines(folder)] == pytest.approx(losses, rel=1e-5)
    lora_weights = weights(Path(folder))
    assert max(float((lora_weights[n] - expected[n]).abs().max()) for n in lora_weights) < 1e-5


def test_the_identity_holds_what_changes_a_result_and_nothing_else(checkpoint: str, tmp_path: Path) -> None:
    rows, run = training_rows(), configured(tmp_path, checkpoint)
    name = ray_train.identity(run, rows, "h")
    assert ray_train.identity(run, rows.take(list(reversed(range(len(rows))))), "h") == name
    assert ray_train.identity(configured(tmp_path / "b", checkpoint, checkpoint_every=7), rows, "h") == name
    fewer = rows.slice(1)
    heavier = rows.set_column(rows.column_names.index("weight"), "weight", pa.array(np.linspace(1, 2, len(rows))))
    others = [ray_train.identity(run, r, "h") for r in (fewer, heavier)] + [
        ray_train.identity(run, rows, "other model"),
        ray_train.identity(configured(tmp_path, checkpoint, steps=9), rows, "h"),
        ray_train.identity(configured(tmp_path, checkpoint, lora_rank=None), rows, "h"),
        ray_train.identity(configured(tmp_path, checkpoint, motion_weight=2.0), rows, "h"),
        ray_train.identity(configured(tmp_path, checkpoint, frozen_weights="fp8"), rows, "h"),
        ray_train.identity(run, timed_rows(), "h"),
    ]
    assert len({name, *others}) == 9


def test_a_full_disk_ends_a_fine_tuning_that_had_come_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, calls = tmp_path / ray_train.METRICS, list[int]()

    class Trainer:
        def fit(self) -> None:
            calls.append(1)
            metrics.write_text("{}\n" * len(calls))
            raise WorkerGroupError("two", {0: RuntimeError("peer closed"), 1: RenamedError("/a: it cannot be written")})

    monkeypatch.setattr(ray_train, "_trainer", lambda *_: Trainer())
    task = {"folder": str(tmp_path), "checkpoints": str(tmp_path / "checkpoints")}
    with pytest.raises(StageError, match="stage finetune failed: /a: it cannot be written") as error:
        ray_train._fit(configured(tmp_path, "none"), task, None, "name", str(tmp_path))
    assert type(store_failure(error.value)) is RenamedError
    assert len(calls) == 1, "a full disk was tried again"


@pytest.mark.parametrize(
    ("errors", "calls"),
    [
        ([ControllerError(OSError("address already in use"))] * 3, 4),
        ([ControllerError(OSError("address already in use"))] * 4, None),
        ([WorkerGroupError("one", {0: RuntimeError("died")})], None),
    ],
)
def test_a_failure_of_rays_controller_is_tried_again_as_often_as_one_of_a_worker(
    errors: list[Exception], calls: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = list[int]()

    class Trainer:
        def fit(self) -> None:
            called.append(1)
            if len(called) <= len(errors):
                raise errors[len(called) - 1]

    monkeypatch.setattr(ray_train, "_trainer", lambda *_: Trainer())
    task = {"folder": str(tmp_path), "checkpoints": str(tmp_path / "checkpoints")}
    if calls is None:
        with pytest.raises(RuntimeError, match="failed 4 times without coming further"):
            ray_train._fit(configured(tmp_path, "none"), task, None, "name", str(tmp_path))
        assert len(called) == len(errors)
    else:
        ray_train._fit(configured(tmp_path, "none"), task, None, "name", str(tmp_path))
        assert len(called) == calls


def frames_of_a_full_disk(run: Run) -> training_set.FramesOf:
    """Frames that cannot be had, because a store failed; what surfaces first is another error."""

    def frames_of(row: training_set.Row) -> Any:
        try:
            raise RenamedError("/a: it cannot be written (No space left)")
        except RenamedError as error:
            raise ValueError("no frames") from error

    return frames_of


def test_a_workers_store_failure_reaches_the_driver_as_it_is(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of a module that nobody knows, and behind another error, for Ray drops the causes."""
    monkeypatch.setattr(ray_train, "MAX_FAILURES", 0)  # the others end alike, and each takes new workers
    with pytest.raises(StageError) as error:
        ray_train.finetune(configured(tmp_path / "run", checkpoint), training_rows(), frames_of_a_full_disk)
    assert type(store_failure(error.value)) is RenamedError
    assert str(error.value) == "stage finetune failed: /a: it cannot be written (No space left)"


def frames_and_memory_for(run: Run, most: int) -> training_set.FramesOf:
    """As `frames`, in a worker whose memory does for so many clips at a time, and from the third step on."""
    forward = loop.Objective.forward

    def scarce(self: loop.Objective, latent: torch.Tensor, *others: Any) -> torch.Tensor:
        Path(run.root, f"pass-of-{len(latent)}").touch()
        if len(latent) > most and Path(run.root, "finetuned", "motive", ray_train.METRICS).exists():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, latent, *others)

    loop.Objective.forward = scarce  # type: ignore[method-assign]
    return tiny.frames_of


def frames_and_memory_for_two(run: Run) -> training_set.FramesOf:
    return frames_and_memory_for(run, 2)


def frames_and_no_memory(run: Run) -> training_set.FramesOf:
    return frames_and_memory_for(run, 0)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.whole), 2])
def test_where_memory_does_not_do_passes_are_smaller_and_steps_are_not(
    checkpoint: str, tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = configured(tmp_path / "run", checkpoint, batch=8 // workers, workers=workers)
    folder = ray_train.finetune(run, training_rows(), frames_and_memory_for_two)
    sizes = {int(path.name.rsplit("-", 1)[1]) for path in Path(run.root).glob("pass-of-*")}
    assert sizes == {size for size in (8, 4, 2) if size <= 8 // workers}
    assert f"finetune.batch=2 with finetune.accumulate={4 // workers} begins that way" in caplog.text
    losses, expected = plain(checkpoint, tmp_path / "plain", configured(tmp_path / "run", checkpoint, batch=8))
    assert [line["step"] for line in lines(folder)] == list(range(1, STEPS + 1)), "a step is missing or doubled"
    assert [line["loss"] for line in lines(folder)] == pytest.approx(losses, rel=1e-5)
    trained = weights(Path(folder))
    assert max(float((trained[n] - expected[n]).abs().max()) for n in trained) < 1e-4


def test_one_clip_that_takes_more_memory_than_there_is_ends_the_training(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_train, "MAX_FAILURES", 1)  # of two clips, then of one; the others would end alike
    with pytest.raises(StageError, match="one clip at a time takes more memory than a worker has") as error:
        ray_train.finetune(configured(tmp_path / "run", checkpoint), training_rows(), frames_and_no_memory)
    assert "Tried to allocate" in str(error.value)


def test_a_training_that_diverges_says_so_and_is_not_begun_again(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_train, "MAX_FAILURES", 0)  # the others end alike, and each takes new workers
    run = configured(tmp_path / "run", checkpoint, learning_rate=1e30)
    with pytest.raises(StageError, match=r"the loss of step \d+ is (nan|inf); lower finetune.learning_rate"):
        ray_train.finetune(run, training_rows(), frames)


def test_a_lost_lease_ends_the_training_between_two_steps(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWAL", 0.05)
    monkeypatch.setattr(ray_train, "POLL", 0.2)
    run = configured(tmp_path / "run", checkpoint, steps=5000)

    def report(done: int, total: int, errors: dict[str, int]) -> None:
        for path in Path(run.root).glob(".lease-*") if done else ():
            path.unlink(missing_ok=True)

    def train_until_it_is_lost() -> None:
        with lease.hold(run.root, "finetune"):
            ray_train.finetune(run, training_rows(), frames, report)

    with pytest.raises(LostError):
        train_until_it_is_lost()
    folder = Path(run.root, "finetuned", "motive")
    assert 0 < len(lines(str(folder))) < 5000
    assert not (folder / ray_train.DONE).exists()
    assert not list(folder.glob("*.safetensors"))


def test_a_failure_of_rays_controller_is_known_too() -> None:
    cause = RayTaskError("run", "Traceback ...", RenamedError("/a: no"), "python", 1, "127.0.0.1")
    assert type(failures.of_training(ControllerError(cause))) is RenamedError
    assert failures.of_training(ControllerError(ValueError("pipeline.errors.StoreError: /a: no"))) is None
