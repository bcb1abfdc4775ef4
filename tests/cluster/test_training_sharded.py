"""Sharded fine-tuning under Ray Train on several small nodes: a worker, then a whole node, lost in a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

ROOT = str(Path(__file__).parents[2])
from pipeline.cluster import checkpoints as ray_checkpoints  # noqa: E402
from pipeline.cluster import training as ray_train  # noqa: E402
from pipeline.config import Run  # noqa: E402
from pipeline.storage import s3, stores  # noqa: E402
from pipeline.training import checkpoints, loop, training_set  # noqa: E402
from tests.cluster import test_training as alone  # noqa: E402
from tests.support import s3_store  # noqa: E402
from tests.training import test_loop as tiny  # noqa: E402

pytestmark = pytest.mark.slow

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers note what happened to them."""
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def store() -> Iterator[s3_store.Store]:
    with s3_store.served() as served_store:
        yield served_store


@pytest.fixture(scope="module", autouse=True)
def three_nodes(notes: Path, store: s3_store.Store) -> Iterator[Callable[[], None]]:
    """Three nodes of one logical CPU, the first with the driver, that see the store; what replaces those that a test
    lost."""
    before = dict(os.environ)
    path = ROOT
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONPATH": path}
    os.environ |= {"NOTES": str(notes), "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1", **s3_store.environment(store)}
    s3.S3.clear_instance_cache()  # what is kept there has another test's endpoint
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    with tempfile.TemporaryDirectory(prefix="rt") as temp:
        small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        noticed_soon = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        nodes = Cluster(True, head_node_args={**small, "temp_dir": temp, "_system_config": noticed_soon})
        for _ in range(2):
            nodes.add_node(**small)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")

        def filled() -> None:
            while sum(node["Alive"] for node in ray.nodes()) < 3:
                nodes.add_node(**small)

        yield filled
        ray.shutdown()
        nodes.shutdown()
    os.environ.clear()
    os.environ.update(before)


checkpoint = alone.checkpoint


def frames_and_a_lost_worker(run: Run) -> training_set.FramesOf:
    if _begins():
        _go_in_the_second_part(lambda: None)
    return tiny.frames_of


def frames_and_a_lost_node(run: Run) -> training_set.FramesOf:
    if _begins():
        _go_in_the_second_part(lambda: os.kill(os.getppid(), signal.SIGKILL))
    return tiny.frames_of


def frames_and_a_noticed_node(run: Run) -> training_set.FramesOf:
    """The node is told to go, as a spot node is, and goes once the checkpoint that follows is written."""
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    if _begins():
        here, soon = ray.get_runtime_context(), round(time.time() * 1000) + 60_000
        reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        assert GcsClient(address=here.gcs_address).drain_node(here.get_node_id(), reason, "spot", soon)[0]
        time.sleep(4)  # until Ray Train has noticed
        due = ray_checkpoints.Checkpoints.due

        def due_or_go(self: ray_checkpoints.Checkpoints, step: int) -> bool:
            if step > 1:
                self.written.wait()
                time.sleep(4)  # until it is counted
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            return due(self, step)

        ray_checkpoints.Checkpoints.due = due_or_go  # type: ignore[method-assign]
    return tiny.frames_of


def _begins() -> bool:
    """Note how many workers begin, and from which checkpoint; whether this is the one that is to go, once: the first to
    come of those that are not on the driver's node."""
    import ray

    last_checkpoint, notes = ray.train.get_checkpoint(), Path(os.environ["NOTES"])
    if dist.get_rank() == 0:
        life = {"workers": dist.get_world_size(), "from": last_checkpoint and Path(last_checkpoint.path).name}
        with (notes / "lives.jsonl").open("a") as file:
            file.write(json.dumps(life) + "\n")
    if ray.get_runtime_context().get_node_id() == (notes / "head").read_text() or last_checkpoint is not None:
        return False
    try:
        (notes / "victim").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _go_in_the_second_part(first: Callable[[], None]) -> None:
    """Kill this process instead of writing its part of its second checkpoint."""
    write, written = checkpoints.write, []

    def write_or_go(*part: object) -> None:
        if written:
            first()
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(part[1])
        write(*part)  # type: ignore[arg-type]

    checkpoints.write = write_or_go


def plain(checkpoint: str, cache: Path, run: Run) -> tuple[list[float], Weights]:
    """The same training in this process, undisturbed and not sharded."""
    config = run.finetune.model_copy(update={"sharding": "none"})
    model = tiny.opened(checkpoint)
    training_set.encode_set(model, tiny.rows(), tiny.frames_of, str(cache), 8.0)
    training = loop.begin(model, config, run.seed)
    clips = training_set.ClipSet(model, tiny.rows(), training_set.kept_in(str(cache)))
    losses = [line.loss for line in loop.train(training, clips, config, run.seed)]
    loop.save_weights(training, str(cache / "arm"))
    return losses, weights(str(cache / "arm"))


def weights(folder: str) -> Weights:
    (path,) = Path(folder).rglob("*.safetensors")
    return safetensors.torch.load_file(path)


def prepared(root: str, checkpoint: str, notes: Path, **finetune: object) -> Run:
    import ray

    for note in notes.iterdir():
        note.unlink()
    (notes / "head").write_text(ray.get_runtime_context().get_node_id())
    settings = {"sharding": "fsdp", "workers": 3, "batch": 1, "accumulate": 2, "steps": 6, **finetune}
    return alone.configured(root, checkpoint, **settings)


def begun(notes: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (notes / "lives.jsonl").read_text().splitlines()]


def expect_the_plain_run(run: Run, folder: str, checkpoint: str, cache: Path) -> None:
    losses, expected = plain(checkpoint, cache, run)
    lines = alone.lines(folder)
    assert [line["step"] for line in lines] == list(range(1, run.finetune.steps + 1)), "a step is missing or doubled"
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    lora_weights = weights(folder)
    assert lora_weights.keys() == expected.keys()
    assert max(float((lora_weights[n] - expected[n]).abs().max()) for n in lora_weights) < 1e-5


@pytest.mark.soak
def test_a_worker_lost_while_it_checkpoints_to_s3_changes_nothing(
    checkpoint: str, tmp_path: Path, notes: Path, store: s3_store.Store
) -> None:
    root = f"s3://{s3_store.BUCKET}/runs/a"
    run = prepared(root, checkpoint, notes, checkpoint_every=1000, checkpoint_seconds=1e-6)  # that is, every step
    folder = ray_train.finetune(run, alone.training_rows(), frames_and_a_lost_worker)
    first, second = begun(notes)
    assert (first["workers"], second["workers"]) == (3, 3)
    assert first["from"] is None
    assert second["from"] is not None, "the first checkpoint was complete"
    local = tmp_path / "arm"
    local.mkdir()
    for path in stores.files(folder):
        stores.fetch(stores.join(folder, path.rsplit("/", 1)[-1]), str(local / path.rsplit("/", 1)[-1]))
    expect_the_plain_run(run, str(local), checkpoint, tmp_path / "plain")
    checkpoint_names = {
        r.path.split("/checkpoint_")[1].split("/")[0] for r in store.requests if "/checkpoint_" in r.path
    }
    assert len(checkpoint_names) > 2
    assert not any("/.train/" in key for key in store.keys("runs/a")), "checkpoints of a finished arm remain"


@pytest.mark.soak
def test_a_lost_node_leaves_fewer_workers_and_the_same_result(checkpoint: str, tmp_path: Path, notes: Path) -> None:
    root = str(tmp_path / "run")
    run = prepared(root, checkpoint, notes, lora_rank=None, min_workers=2, accumulate=1, checkpoint_every=2)
    folder = ray_train.finetune(run, alone.training_rows(), frames_and_a_lost_node)
    lives = begun(notes)
    assert (lives[0]["workers"], lives[-1]["workers"]) == (3, 2)
    assert lives[-1]["from"] is not None
    expect_the_plain_run(run, folder, checkpoint, tmp_path / "plain")  # 3 clips a step on 2 workers: 1 and 2


@pytest.mark.soak
def test_a_node_that_is_about_to_go_is_checkpointed_for(
    checkpoint: str, tmp_path: Path, notes: Path, three_nodes: Callable[[], None]
) -> None:
    three_nodes()
    settings = {"min_workers": 2, "checkpoint_every": 1000, "checkpoint_seconds": 1e6}
    run = prepared(str(tmp_path / "run"), checkpoint, notes, **settings)
    folder = ray_train.finetune(run, alone.training_rows(), frames_and_a_noticed_node)
    lives = begun(notes)
    assert (lives[0]["workers"], lives[-1]["workers"]) == (3, 2)
    assert lives[-1]["from"] is not None, "no checkpoint was due but for the notice"
    expect_the_plain_run(run, folder, checkpoint, tmp_path / "plain")
