"""Two sharded workers train what one worker alone trains: of a dense family, of one with two experts, and of one of
which a part is not trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.support import tiny_pipelines

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
from pathlib import Path
import numpy as np, torch, torch.distributed as dist
from pipeline.config import Finetune
from pipeline.models.conditioning import split
from pipeline.training import loop
from pipeline.training.training_set import ClipSet, EncodedClip
from tests.support import tiny_pipelines

torch.set_num_threads(1)
family, folder, out, rank, workers = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
dist.init_process_group("gloo", init_method=f"file://{out}/group", rank=rank, world_size=workers)
model = tiny_pipelines.opened(folder, family)
shape = tiny_pipelines.TINY[family].geometry
encoded = {}
for n in range(4):
    frames = np.random.default_rng(n).integers(0, 256, (*shape, 3), np.uint8)
    encoded[f"clip {n}"] = EncodedClip(model.encode(frames, 8.0), (model.text(f"a ball {n}"),))
empty = EncodedClip({}, (model.blank(),))
config = Finetune(steps=6, batch=1, accumulate=4, learning_rate=1e-3, sharding="fsdp")
training = loop.begin(model, config, 0)
clips = ClipSet(model, [{"clip_id": name} for name in encoded], lambda row: encoded[row["clip_id"]] if row else empty)
def mean(value):
    dist.all_reduce(value)
    return value / workers
experts, losses = [], []
lines = loop.train(training, clips, config, 0, rank, workers, mean)
for _ in range(config.steps):
    experts.append(loop.expert_of_step(training, 0, training.step).name)
    losses.append(next(lines).loss)
loop.save_weights(training, out)
if rank == 0:
    Path(out, "losses.txt").write_text(" ".join(map(str, losses)) + "\\n" + " ".join(experts))
dist.barrier()
"""


def trained(family: str, folder: Path, out: Path, workers: int) -> tuple[list[float], list[str]]:
    out.mkdir()
    command = [sys.executable, "-c", WORKER, family, str(folder), str(out)]
    processes = [
        subprocess.Popen([*command, str(rank), str(workers)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(workers)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-2000:]
    losses, experts = (out / "losses.txt").read_text().splitlines()
    return [float(loss) for loss in losses.split()], experts.split()


@pytest.mark.whole
@pytest.mark.parametrize("family", ["cogvideox-5b", "wan2.2-a14b", "ltx-2"])
def test_two_workers_train_what_one_trains(
    family: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_pipelines.folder(tmp_path_factory, family)
    alone, experts = trained(family, folder, tmp_path / "one", 1)
    together, same = trained(family, folder, tmp_path / "two", 2)
    assert experts == same
    assert together == pytest.approx(alone, rel=1e-4), "workers of one step asked different experts, or other clips"
    parts = {"wan2.2-a14b": ("transformer", "transformer_2")}.get(family, ("transformer",))
    assert family != "wan2.2-a14b" or set(experts) == {"high", "low"}, "the steps of this test are of one expert"
    for part in parts:
        file = f"{part}/diffusion_pytorch_model.safetensors"
        one, two = (safetensors.torch.load_file(tmp_path / name / file) for name in ("one", "two"))
        assert set(one) == set(two)
        for name, tensor in one.items():
            assert torch.allclose(tensor, two[name], atol=2e-3), f"{part}.{name}: other weights"
