"""Adapters over frozen weights of a byte each: they learn, they are resumed, and diffusers loads them on the whole
model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from diffusers import WanPipeline
from torch.nn.parallel import DistributedDataParallel

from pipeline.cluster.training import _settings
from pipeline.config import Finetune, load
from pipeline.errors import ConfigError
from pipeline.models import VideoModel, fp8, trained_weights
from pipeline.operations import costs
from pipeline.training import checkpoints, loop
from pipeline.training import training_set as ts
from tests.models.test_fp8 import round_linears
from tests.support import tiny_pipelines
from tests.support.tiny_pipelines import TINY
from tests.training import test_loop as tiny

FAMILIES = ("wan2.1", "wan2.2-a14b", "ltx-video", "cogvideox-5b", "hunyuanvideo-1.5")
CPU = torch.device("cpu")
family, folder = tiny_pipelines.fixtures(FAMILIES)


@pytest.fixture
def one_worker(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def config(steps: int, **changes: Any) -> Finetune:
    values = {"steps": steps, "batch": 2, "lora_rank": 4, "learning_rate": 1e-2, "frozen_weights": "fp8", **changes}
    return Finetune.model_validate(values)


def clip_set(model: VideoModel, family: str, cache: Path) -> ts.ClipSet:
    """Two clips of noise, encoded once."""
    rows = [{"clip_id": str(n), "version": "1", "caption": f"a ball {n}", "weight": 1.0} for n in range(2)]

    def frames_of(row: ts.Row) -> npt.NDArray[np.uint8]:
        generator = np.random.default_rng(int(row["clip_id"]))
        return generator.integers(0, 256, (*TINY[family].geometry, 3), np.uint8)

    ts.encode_set(model, rows, frames_of, str(cache), 8.0)
    return ts.ClipSet(model, rows, ts.kept_in(str(cache)))


def test_adapters_learn_and_diffusers_loads_them_on_the_whole_model(folder: Path, family: str, tmp_path: Path) -> None:
    model = tiny_pipelines.opened(folder, family)
    clips, settings = clip_set(model, family, tmp_path / "cache"), config(60)
    training = loop.begin(model, settings, 0)
    losses = [line.loss for line in loop.train(training, clips, settings, 0)]
    assert np.mean(losses[-15:]) < np.mean(losses[:15])
    assert all(parameter.dtype == torch.float32 for parameter in training.parameters.values())
    loop.save_weights(training, str(tmp_path / "arm"))

    rounded, whole = tiny_pipelines.opened(folder, family), tiny_pipelines.opened(folder, family)
    round_linears(rounded)
    for other in (rounded, whole):
        other.read_lora_as_pipeline(str(tmp_path / "arm"))
    own, of_rounded, of_whole, before = (
        predictions(one, family, clips) for one in (model, rounded, whole, tiny_pipelines.opened(folder, family))
    )
    assert (own - of_rounded).norm() < 1e-4 * own.norm(), "diffusers loads other adapters than were trained"
    assert (own - before).norm() > 3 * (own - of_whole).norm() > 0, "what was learnt is lost on the whole model"


@torch.no_grad()
def predictions(model: VideoModel, family: str, clips: ts.ClipSet) -> torch.Tensor:
    model.trained.eval()
    outputs = []
    for timestep in TINY[family].timesteps:
        batch = clips.batch([ts.draw(0, 0, 0)], caption_dropout=0.0)
        outputs.append(model.predict(batch.noise, torch.tensor([timestep]), batch.conditioning))
    return torch.cat(outputs)


def test_the_whole_training_is_that_of_a_rounded_model(folder: Path, family: str, tmp_path: Path) -> None:
    model, oracle = tiny_pipelines.opened(folder, family), tiny_pipelines.opened(folder, family)
    round_linears(oracle)
    values = []
    for one, how in ((model, "fp8"), (oracle, "full")):
        settings = config(4, frozen_weights=how)
        training = loop.begin(one, settings, 0)
        clips = clip_set(one, family, tmp_path / "cache")
        values.append(([line.loss for line in loop.train(training, clips, settings, 0)], training.parameters))
    (losses, parameters), (expected, others) = values
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter, others[name], rtol=1e-3, atol=1e-4)


def test_killed_and_resumed_equals_undisturbed(folder: Path, family: str, tmp_path: Path) -> None:
    settings, cache, state = config(5, weight_decay=0.1), tmp_path / "cache", tmp_path / "state"
    state.mkdir()
    model = tiny_pipelines.opened(folder, family)
    whole = loop.begin(model, settings, 0)
    losses = []
    for line in loop.train(whole, clip_set(model, family, cache), settings, 0):
        losses.append(line.loss)
        if line.step == 3:
            checkpoints.write(checkpoints.staged(whole), state)
    model = tiny_pipelines.opened(folder, family)
    again = loop.begin(model, settings, 0)
    checkpoints.restore(again, str(state))
    rest = [line.loss for line in loop.train(again, clip_set(model, family, cache), settings, 0)]
    assert rest == losses[3:]
    assert all(torch.equal(p, again.parameters[name]) for name, p in whole.parameters.items())


def test_the_plan_counts_the_bytes_that_a_worker_holds(folder: Path, family: str) -> None:
    tiny_model = {"id": str(folder), "dtype": "float32", **TINY[family].settings}
    for expert in ("both", "high") if family == "wan2.2-a14b" else ("both",):
        run = load("demo", {"model": tiny_model, "finetune.lora_rank": 4, "finetune.expert": expert})
        model = tiny_pipelines.opened(folder, family)
        planned = costs.frozen_weights(run, model.family, model.family.skeleton())
        parts = {e.part for e in loop.trained_experts(model.family, expert)}
        for how in ("full", "fp8"):
            if how == "fp8":
                fp8.compress(model)
            sizes = [p.nbytes for part in parts for p in model.transformers()[part].parameters()]
            assert planned[how] == sum(sizes)
        assert planned["fp8"] < planned["full"]
        every = load("demo", {"model": tiny_model})
        assert costs.frozen_weights(every, model.family, model.family.skeleton()) == {}


# --- Wan alone --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("wan")
    tiny.write_pipeline(path)
    return str(path)


@pytest.fixture(scope="module")
def cache(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("latents"))
    ts.encode_set(tiny.opened(checkpoint), tiny.rows(), tiny.frames_of, path, 8.0)
    return path


def test_adapters_load_with_load_lora_weights(checkpoint: str, cache: str, tmp_path: Path) -> None:
    training, _, model = tiny.trained(checkpoint, cache, config(6))
    loop.save_weights(training, str(tmp_path / "arm"))
    assert [p.name for p in (tmp_path / "arm").iterdir()] == [trained_weights.LORA]
    pipe = WanPipeline.from_pretrained(checkpoint)
    pipe.load_lora_weights(str(tmp_path / "arm"))
    fresh = tiny.opened(checkpoint)
    trained_weights.load_weights(fresh, str(tmp_path / "arm"), merge=True)
    torch.testing.assert_close(tiny.velocity(pipe.transformer), tiny.velocity(fresh.trained))
    assert not torch.equal(tiny.velocity(pipe.transformer), tiny.velocity(model.trained)), "nothing was rounded"


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_a_bfloat16_model_trains_the_same_adapters_to_rounding(checkpoint: str, cache: str) -> None:
    _, exact, _ = tiny.trained(checkpoint, cache, config(4))
    model = tiny.opened(checkpoint, "bfloat16")
    training = loop.begin(model, config(4), 3)
    clips = ts.ClipSet(model, tiny.rows(), ts.kept_in(cache))
    assert [line.loss for line in loop.train(training, clips, config(4), 3)] == pytest.approx(exact, rel=0.05)
    assert {p.dtype for p in training.parameters.values()} == {torch.float32}


@pytest.mark.usefixtures("one_worker")
def test_replicated_workers_hold_the_bytes(checkpoint: str, cache: str) -> None:
    _, losses, _ = tiny.trained(checkpoint, cache, config(3))
    model = tiny.opened(checkpoint)
    training = loop.begin(model, config(3), 3)
    training.objective = DistributedDataParallel(training.objective)
    clips = ts.ClipSet(model, tiny.rows(), ts.kept_in(cache))
    assert [line.loss for line in loop.train(training, clips, config(3), 3)] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"finetune.lora_rank": None},
            r"finetune.*frozen_weights='fp8' needs a lora_rank",
        ),
        ({"finetune.sharding": "fsdp"}, r"finetune.*frozen_weights='fp8' and sharding='fsdp' exclude each other"),
        ({"finetune.frozen_weights": "nf4"}, r"finetune\.frozen_weights.*'nf4'.*full.*fp8"),
    ],
    ids=["every parameter", "sharded", "another type"],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){sentence}"):
        load("demo", {"finetune.lora_rank": 4, "finetune.frozen_weights": "fp8", **changes})


def test_arms_of_before_there_was_the_key_are_the_same() -> None:
    plain, stored = (
        _settings(load("demo", {"finetune.lora_rank": 4, "finetune.frozen_weights": how})) for how in ("full", "fp8")
    )
    assert "frozen_weights" not in plain
    assert stored == {**plain, "frozen_weights": "fp8"}
