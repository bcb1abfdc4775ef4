"""The fine-tuning loop: the loss of attribution without its mask, clips drawn by weight, and nothing else.

    encode_set(model, rows, frames_of, cache)           # latents and captions, once (training_set)
    training = begin(model, run.finetune, run.seed)     # every parameter, or LoRA
    for line in train(training, ClipSet(model, rows, cache), run.finetune, run.seed):
        ...                                             # log it, save_state(training, path) now and then
    save_weights(training, folder)                      # what diffusers loads

Clip, timestep, noise and caption dropout of a place in a batch belong to (seed, step, position) alone. So a resumed run
equals an undisturbed one, workers may share a batch in any way, and every arm sees the same noise at the same step.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import stores
from pipeline.config import Finetune
from pipeline.diffusion import loss_map
from pipeline.models import VideoModel
from pipeline.models.attention import fastest_attention
from pipeline.training_set import ClipSet, draw, named_generator

LORA = "pytorch_lora_weights.safetensors"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_GRADIENT = 1.0


# --- the loop --------------------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """The plain loss of a batch as a module, so that it can be wrapped for data parallelism: a scalar, float32."""

    def __init__(self, model: VideoModel, autocast: bool) -> None:
        super().__init__()
        self.transformer, self._model, self._autocast = model.transformer, model, autocast

    def forward(self, latent: Tensor, text: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(latent.device.type, torch.bfloat16, enabled=self._autocast):
            return loss_map(self._model, latent, text, timestep, noise).mean()


@dataclass
class Training:
    """What training changes. `objective` may be replaced by a wrapper that averages gradients over workers."""

    objective: nn.Module
    transformer: nn.Module
    parameters: dict[str, nn.Parameter]  # those that are trained, float32
    optimizer: torch.optim.Optimizer
    lora: bool
    step: int = 0  # steps done

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device


@dataclass(frozen=True)
class Line:
    """A step done, as it stands in metrics.jsonl."""

    step: int
    loss: float
    seconds: float

    def json(self) -> str:
        return json.dumps(asdict(self))


def begin(model: VideoModel, config: Finetune, seed: int) -> Training:
    """Make a model trainable: float32 master weights, computed in bfloat16 where the model was loaded in it."""
    module = model.transformer
    autocast = any(p.dtype == torch.bfloat16 for p in module.parameters())
    module.requires_grad_(config.lora_rank is None).train()
    if config.lora_rank is not None:
        _add_lora(module, config.lora_rank, seed)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    return Training(Objective(model, autocast), module, parameters, optimizer, config.lora_rank is not None)


def _add_lora(module: nn.Module, rank: int, seed: int) -> None:
    """Low-rank adapters on attention, drawn by name: A normal with deviation 1/rank (peft's "gaussian"), B zero."""
    from peft import LoraConfig

    module.add_adapter(  # type: ignore[operator]
        LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS), init_lora_weights="gaussian")
    )
    for name, parameter in module.named_parameters():
        if ".lora_A." in name:
            normal = named_generator(f"lora {seed} {name}").standard_normal(tuple(parameter.shape), np.float32)
            parameter.data.copy_(torch.from_numpy(normal) / rank)


def _alone(loss: Tensor) -> Tensor:
    return loss


def train(
    training: Training,
    clips: ClipSet,
    config: Finetune,
    seed: int,
    rank: int = 0,
    workers: int = 1,
    mean: Callable[[Tensor], Tensor] = _alone,
) -> Iterator[Line]:
    """Go on to config.steps, a line a step. Worker `rank` of `workers` takes its share of the config's whole batch.

    `mean` averages a loss over the workers. FloatingPointError if the loss is not finite.
    """
    share, left = divmod(config.batch * config.accumulate * config.workers, workers)
    if left:
        raise ValueError(f"a batch of {share * workers + left} clips cannot be shared by {workers} workers evenly")
    while training.step < config.steps:
        start = time.monotonic()
        draws = [draw(seed, training.step, rank * share + i) for i in range(share)]
        losses = []
        for first in range(0, share, config.batch):
            batch = clips.batch(draws[first : first + config.batch], config.caption_dropout)
            last = first + config.batch >= share
            with contextlib.nullcontext() if last or workers == 1 else training.objective.no_sync():  # type: ignore[operator]
                inputs = (batch.latent, batch.text, batch.timestep, batch.noise)
                with fastest_attention():
                    loss = training.objective(*(t.to(training.device) for t in inputs)) * (len(batch.noise) / share)
                    loss.backward()
            losses.append(loss.detach())
        found = float(mean(torch.stack(losses).sum()))
        if not np.isfinite(found):
            raise FloatingPointError(f"the loss of step {training.step + 1} is {found}; lower finetune.learning_rate")
        torch.nn.utils.clip_grad_norm_(training.parameters.values(), CLIP_GRADIENT)
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)
        training.step += 1
        yield Line(training.step, found, round(time.monotonic() - start, 4))


# --- state and result ------------------------------------------------------------------------------------------------


def save_state(training: Training, path: Path) -> None:
    """Everything that going on needs, as one plain safetensors file: trained parameters, AdamW's moments, the step."""
    state = {f"parameter.{name}": p.detach() for name, p in training.parameters.items()}
    for index, moments in training.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    state["step"] = torch.tensor(training.step)
    safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path)


def load_state(training: Training, path: Path) -> None:
    """Go on from a file of `save_state` of the same configuration."""
    state = safetensors.torch.load_file(path)
    with torch.no_grad():
        for name, parameter in training.parameters.items():
            parameter.copy_(state[f"parameter.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    training.optimizer.load_state_dict({**training.optimizer.state_dict(), "state": moments})
    training.step = int(state["step"])


def save_weights(training: Training, folder: str) -> None:
    """What was trained, as diffusers loads it: transformer/ for from_pretrained, or LORA for load_lora_weights.

    In float32: updates of a step are far below what bfloat16 tells apart. The folder may be s3://.
    """
    from diffusers import WanPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    with tempfile.TemporaryDirectory() as local:
        if training.lora:
            layers = get_peft_model_state_dict(training.transformer)
            metadata = _collate_lora_metadata({"transformer": training.transformer})
            WanPipeline.save_lora_weights(local, transformer_lora_layers=layers, **metadata)
        else:
            training.transformer.save_pretrained(stores.join(local, "transformer"))  # type: ignore[operator]
        for file in sorted(p for p in Path(local).rglob("*") if p.is_file()):
            fs, bare = stores.place(stores.join(folder, str(file.relative_to(local))))
            fs.makedirs(bare.rsplit("/", 1)[0], exist_ok=True)
            fs.put_file(str(file), bare)


def load_weights(model: VideoModel, folder: str) -> None:
    """Give a base model what `save_weights` wrote, local or s3://. FileNotFoundError if there is nothing."""
    fs, bare = stores.place(folder)
    with tempfile.TemporaryDirectory() as local:
        if fs.exists(stores.join(bare, LORA)):
            fs.get_file(stores.join(bare, LORA), f"{local}/{LORA}")
            model.transformer.load_lora_adapter(local, prefix="transformer", weight_name=LORA)  # type: ignore[operator]
        elif fs.exists(stores.join(bare, "transformer")):
            fs.get(stores.join(bare, "transformer"), f"{local}/transformer", recursive=True)
            trained = type(model.transformer).from_pretrained(f"{local}/transformer", use_safetensors=True)  # type: ignore[attr-defined]
            model.transformer.load_state_dict(trained.state_dict())
        else:
            raise FileNotFoundError(f"{folder}: it holds neither transformer/ nor {LORA}; run jobs.finetune")
