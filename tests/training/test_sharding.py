"""Sharded parameters and their checkpoints, in one process: rows, parts of a checkpoint, one sharded worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.config import Finetune
from pipeline.models import trained_weights
from pipeline.storage import stores
from pipeline.training import checkpoints, loop, sharding
from pipeline.training import training_set as ts
from tests.training import test_loop as tiny

Trained = tuple[loop.Training, list[float]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("wan")
    tiny.write_pipeline(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cache(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("latents"))
    ts.encode_set(tiny.opened(checkpoint), tiny.rows(), tiny.frames_of, folder, 8.0)
    return folder


@pytest.fixture
def one_worker(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(checkpoint: str, cache: str, config: Finetune, dtype: str = "float32") -> Trained:
    model = tiny.opened(checkpoint, dtype)
    training = loop.begin(model, config, seed=3)
    clips = ts.ClipSet(model, tiny.rows(), ts.kept_in(cache))
    return training, [line.loss for line in loop.train(training, clips, config, seed=3)]


def test_rows_are_split_as_torch_splits_them() -> None:
    for length in range(1, 20):
        for workers in range(1, 9):
            chunks = [c.tolist() for c in torch.arange(length).chunk(workers)]
            parts = [list(sharding.rows(length, rank, workers)) for rank in range(workers)]
            assert parts == chunks + [[]] * (workers - len(chunks))


def part(state: dict[str, torch.Tensor], rank: int, workers: int) -> dict[str, torch.Tensor]:
    """What a worker of several would have staged of a whole state."""

    def own_rows(value: torch.Tensor) -> torch.Tensor:
        mine = sharding.rows(len(value), rank, workers)
        return value[mine.start : mine.stop].contiguous()

    return {key: own_rows(value) if value.ndim else value for key, value in state.items()}


@pytest.mark.parametrize("place", ["folder", "memory"])
@pytest.mark.parametrize("lora_rank", [None, 4])
def test_parts_of_any_number_of_workers_are_the_whole(
    checkpoint: str, cache: str, tmp_path: Path, place: str, lora_rank: int | None
) -> None:
    config = tiny.settings(steps=2, weight_decay=0.1, lora_rank=lora_rank)
    whole, _ = trained(checkpoint, cache, config)
    state = checkpoints.staged(whole)
    for workers in (1, 3, 50):  # 50: more than the rows of most parameters
        local = tmp_path / str(workers)
        local.mkdir()
        for rank in range(workers):
            checkpoints.write(part(state, rank, workers), local, rank, workers)
        folder = str(local)
        if place == "memory":
            folder = f"memory://parts-{lora_rank}-{workers}"
            for file in local.iterdir():
                stores.write_bytes(stores.join(folder, file.name), file.read_bytes())
        again = loop.begin(tiny.opened(checkpoint), config, seed=3)
        checkpoints.restore(again, folder)
        restored = checkpoints.staged(again)
        assert restored.keys() == state.keys()
        assert all(torch.equal(restored[key], state[key]) for key in state), f"{workers} parts are not the whole"
        assert again.step == 2


@pytest.mark.parametrize(("written_by", "read_by"), [(1, 3), (2, 3), (3, 2)])
def test_a_checkpoint_is_read_by_more_or_fewer_workers(
    checkpoint: str, cache: str, tmp_path: Path, written_by: int, read_by: int
) -> None:
    config = tiny.settings(steps=2, weight_decay=0.1)
    state = checkpoints.staged(trained(checkpoint, cache, config)[0])
    for rank in range(written_by):
        checkpoints.write(part(state, rank, written_by), tmp_path, rank, written_by)
    for rank in range(read_by):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=read_by)  # a worker without the others
        try:
            sharded = config.model_copy(update={"sharding": "fsdp"})
            again = loop.begin(tiny.opened(checkpoint), sharded, seed=3)
            checkpoints.restore(again, str(tmp_path))
            restored, expected = checkpoints.staged(again), part(state, rank, read_by)
            assert restored.keys() == expected.keys()
            assert all(torch.equal(restored[key], expected[key]) for key in expected), f"worker {rank} of {read_by}"
            assert sum(v.numel() for v in restored.values()) < 1.2 * sum(v.numel() for v in state.values()) / read_by
        finally:
            dist.destroy_process_group()


def test_a_part_that_is_missing_is_named(checkpoint: str, cache: str, tmp_path: Path) -> None:
    training, _ = trained(checkpoint, cache, tiny.settings(steps=1))
    state = checkpoints.staged(training)
    for rank in (0, 2):
        checkpoints.write(part(state, rank, 3), tmp_path, rank, 3)
    with pytest.raises(FileNotFoundError, match="lacks state-00001-of-00003"):
        checkpoints.restore(training, str(tmp_path))


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}, {"batch": 1, "accumulate": 2}])
def test_one_sharded_worker_is_the_plain_loop(
    checkpoint: str, cache: str, tmp_path: Path, changes: dict[str, object]
) -> None:
    plain, losses = trained(checkpoint, cache, tiny.settings(**changes))
    sharded, sharded_losses = trained(checkpoint, cache, tiny.settings(sharding="fsdp", **changes))
    assert all(isinstance(p, DTensor) for p in sharded.parameters.values())
    assert sharded_losses == pytest.approx(losses, rel=1e-6)
    for training, folder in ((plain, "plain"), (sharded, "sharded")):
        loop.save_weights(training, str(tmp_path / folder))
    files = [sorted(p.relative_to(tmp_path / f) for p in (tmp_path / f).rglob("*")) for f in ("plain", "sharded")]
    assert files[0] == files[1]
    fresh = [tiny.opened(checkpoint), tiny.opened(checkpoint)]
    trained_weights.load_weights(fresh[0], str(tmp_path / "plain"))
    trained_weights.load_weights(fresh[1], str(tmp_path / "sharded"))
    torch.testing.assert_close(tiny.velocity(fresh[1].trained), tiny.velocity(fresh[0].trained))
    if "lora_rank" not in changes:
        texts = [(tmp_path / f / "transformer" / "config.json").read_text() for f in ("plain", "sharded")]
        assert texts[0] == texts[1], "the class of the exported model must not be that of sharding"


@pytest.mark.usefixtures("one_worker")
@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("lora_rank", [None, 4])
def test_bfloat16_blocks_keep_float32_weights(checkpoint: str, cache: str, lora_rank: int | None) -> None:
    config = tiny.settings(steps=3, lora_rank=lora_rank, learning_rate=1e-6)
    _, losses = trained(checkpoint, cache, config)
    training, sharded_losses = trained(checkpoint, cache, config.model_copy(update={"sharding": "fsdp"}), "bfloat16")
    assert {p.dtype for p in training.parameters.values()} == {torch.float32}
    assert {v.dtype for v in checkpoints.staged(training).values()} == {torch.float32, torch.int64}
    assert sharded_losses == pytest.approx(losses, rel=0.05)


def test_gathered_tensors_hold_nothing_but_themselves() -> None:
    padded = torch.arange(8.0)[:3]  # as the whole of three rows is, that two workers hold
    tensor = sharding.gathered({"a": padded}, keep=True)["a"]
    assert torch.equal(tensor, padded)
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert sharding.gathered({"a": padded}, keep=False) == {}


def test_a_module_without_blocks_cannot_be_sharded(one_worker: None) -> None:
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        sharding.shard(torch.nn.Linear(2, 2), [], False)
