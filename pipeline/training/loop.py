"""The fine-tuning loop: the loss of attribution without its mask, clips drawn by weight, and nothing else.

    model = opened(run.model, run.finetune, device)
    encode_set(model, rows, frames_of, cache, fps)      # latents and captions, once (training_set)
    training = begin(model, run.finetune, run.seed)     # every parameter, or LoRA
    for line in train(training, ClipSet(model, rows, kept_in(cache)), run.finetune, run.seed):
        ...                                             # log it, keep training_state.staged(training) now and then
    save_weights(training, folder)                      # what diffusers loads

Clip, timestep, noise and caption dropout of a place in a batch belong to (seed, step, position) alone. So a resumed run
equals an undisturbed one, workers may share a batch in any way, and every arm sees the same noise at the same step:
bit for bit with as many workers, to the rounding of the sum over them otherwise.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Finetune, VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models import Conditioning, Expert, Family, VideoModel, fp8, open_model
from pipeline.models.attention import fastest_attention
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.models.loss import loss_map, masked_mean, motion_weights, named_generator
from pipeline.storage import stores
from pipeline.training import sharding
from pipeline.training.training_set import Batch, ClipSet, draw

CLIP_GRADIENT = 1.0


# --- the loop --------------------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """The loss of a batch as a module, so that it can be wrapped for data parallelism: a scalar, float32. It is the
    plain one, or weighted by what changes (`finetune.motion_weight`). Its parameters are those of the transformers that
    are trained: another expert lies in main memory."""

    def __init__(self, model: VideoModel, parts: Iterable[str], autocast: bool, motion_weight: float = 0.0) -> None:
        super().__init__()
        self.trained = nn.ModuleDict({part: model.transformers()[part] for part in parts})
        self._model, self._autocast, self._strength = model, autocast, motion_weight

    def forward(self, latent: Tensor, conditioning: Conditioning, timestep: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(latent.device.type, torch.bfloat16, enabled=self._autocast):
            errors = loss_map(self._model, latent, conditioning, timestep, noise)
            return masked_mean(errors, motion_weights(latent, self._strength) if self._strength else None)


@dataclass
class Training:
    """What training changes. `objective` may be replaced by a wrapper that averages gradients over workers."""

    objective: nn.Module
    model: VideoModel
    experts: tuple[Expert, ...]  # whose transformers are trained
    parameters: dict[str, nn.Parameter]  # those that are trained, float32
    optimizer: torch.optim.Optimizer
    lora: bool
    share: tuple[int, int] = (0, 1)  # which worker's rows of each parameter are held here, of how many workers
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
    waited: float  # seconds of them until its clips were there

    def json(self) -> str:
        return json.dumps(asdict(self))


def opened(model: VideoModelConfig, config: Finetune, device: torch.device) -> VideoModel:
    """The model to be trained, on its device. Frozen weights that are stored as float8 never are there at full width.
    Raises ConfigError."""
    if config.frozen_weights == "full":
        return open_model(model, device)
    base = open_model(model, torch.device("cpu"))
    if not isinstance(base, DiffusersModel):
        raise ConfigError(
            f"finetune.frozen_weights='fp8': {type(base).__name__} is no DiffusersModel, and how it comes to its "
            "device is not known here. Use finetune.frozen_weights: full."
        )
    fp8.compress(base)
    base.move(device)
    return base


def begin(model: VideoModel, config: Finetune, seed: int) -> Training:
    """Make a model trainable: float32 master weights, computed in bfloat16 where the model was loaded in it. Frozen
    weights are stored as float8 where the configuration says so.

    With sharding "fsdp" all workers of the process group call it, and each keeps its rows of every parameter.
    """
    experts = trained_experts(model.family, config.expert)
    autocast = any(p.dtype == torch.bfloat16 for p in model.trained.parameters())
    share = (0, 1)
    model.trained.requires_grad_(False)
    if config.frozen_weights == "fp8":
        fp8.compress(model)
    trained_parts = list(dict.fromkeys(expert.part for expert in experts))
    model.keep_on_device(trained_parts)
    for part in trained_parts:
        module = model.transformers()[part].train()
        if config.lora_rank is None:
            _unfreeze(module, model.family.idle)
        else:
            _add_lora(module, model, config.lora_rank, seed)
        if config.sharding == "fsdp":
            sharding.shard(module, model.blocks(module), autocast)
            share = (dist.get_rank(), dist.get_world_size())
        else:
            sharding.masters(module)
    parameters = {name: p for name, p in model.trained.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    lora = config.lora_rank is not None
    objective = Objective(model, trained_parts, autocast, config.motion_weight)
    return Training(objective, model, experts, parameters, optimizer, lora, share)


def trained_experts(family: Family, named: str) -> tuple[Expert, ...]:
    """Which experts `finetune.expert` names; all where a model has one. ValueError for a name that it has not."""
    experts = family.experts
    chosen = tuple(e for e in experts if named in ("both", e.name) or len(experts) == 1)
    if not chosen:
        raise ValueError(f"finetune.expert={named!r}: this model has the experts {[e.name for e in experts]}")
    return chosen


def _unfreeze(module: nn.Module, idle: str | None) -> None:
    """Let every parameter be trained but those that no loss reaches, which weight decay would wear away."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(idle is None or re.search(idle, name) is None)


def _add_lora(module: nn.Module, model: VideoModel, rank: int, seed: int) -> None:
    """Low-rank adapters on attention, drawn by name: A normal with deviation 1/rank (peft's "gaussian"), B zero."""
    from peft import LoraConfig

    module.add_adapter(  # type: ignore[operator]
        LoraConfig(r=rank, lora_alpha=rank, target_modules=model.lora_targets(), init_lora_weights="gaussian")
    )
    for name, parameter in module.named_parameters():
        if model.family.idle is not None and re.search(model.family.idle, name):
            parameter.requires_grad_(False)
        if ".lora_A." in name:
            normal = named_generator(f"lora {seed} {name}").standard_normal(tuple(parameter.shape), np.float32)
            parameter.data.copy_(torch.from_numpy(normal) / rank)


def _alone(loss: Tensor) -> Tensor:
    return loss


def rate(config: Finetune, step: int) -> float:
    """The learning rate of a step, counted from 0. What a constant one leaves of the last steps' noise can outweigh the
    choice of clips; a falling one averages it out."""
    falls = config.schedule == "linear"
    return config.learning_rate * (1 - step / config.steps if falls else 1.0)


def positions(clips: int, rank: int, workers: int) -> range:
    """The places of a batch that a worker computes, as even as can be. ValueError if some worker has none."""
    if clips < workers:
        raise ValueError(f"a batch of {clips} clips cannot be shared by {workers} workers; raise finetune.batch")
    return range(rank * clips // workers, (rank + 1) * clips // workers)


def train(
    training: Training,
    clips: ClipSet,
    config: Finetune,
    seed: int,
    rank: int = 0,
    workers: int = 1,
    mean: Callable[[Tensor], Tensor] = _alone,
    at_once: int | None = None,
) -> Iterator[Line]:
    """Go on to config.steps, a line a step. Worker `rank` of `workers` takes its share of the config's whole batch,
    whose clips are read during the backward pass before.

    `mean` averages a loss over the workers. A pass holds `at_once` clips, by default config.batch: fewer take less
    memory and give the same gradients, to the rounding of a sum. FloatingPointError if the loss is not finite.
    """
    at_once = at_once or config.batch
    whole = config.batch * config.accumulate * config.workers
    mine = positions(whole, rank, workers)
    most = math.ceil(whole / workers)
    passes = math.ceil(most / at_once)
    device = training.device

    def clips_of(step: int, places: range) -> Batch:
        # All workers make as many passes, for sharded parameters are gathered in each; one too many counts nothing.
        draws = [draw(seed, step, place) for place in places or mine[-1:]]
        expert = expert_of_step(training, seed, step)
        batch = clips.batch(draws, config.caption_dropout, (expert.first, expert.last))
        return batch.pinned() if device.type == "cuda" else batch

    of_passes = [mine[number * at_once : (number + 1) * at_once] for number in range(passes)]
    coming = ((step, places) for step in range(training.step, config.steps) for places in of_passes)
    reader, read = ThreadPoolExecutor(1), deque[Future[Batch]]()

    def read_on() -> None:
        read.extend(reader.submit(clips_of, *one) for one in islice(coming, 1))

    read_on()
    try:
        while training.step < config.steps:
            start, waited = time.monotonic(), 0.0
            losses = []
            for number, places in enumerate(of_passes):
                asked = time.monotonic()
                batch = read.popleft().result().to(device)
                waited += time.monotonic() - asked
                with _summed_at(training.objective, number == passes - 1), fastest_attention():
                    loss = training.objective(batch.latent, batch.conditioning, batch.timestep, batch.noise)
                    loss = loss * (len(places) * workers / whole)
                    read_on()  # now, for the backward pass leaves Python's lock to the reader; the forward one needs it
                    loss.backward()
                losses.append(loss.detach())
            average = float(mean(torch.stack(losses).sum()))
            if not np.isfinite(average):
                step = training.step + 1
                raise FloatingPointError(f"the loss of step {step} is {average}; lower finetune.learning_rate")
            _update(training, config)
            yield Line(training.step, average, round(time.monotonic() - start, 4), round(waited, 4))
    finally:  # an error is not kept back until a store has answered
        reader.shutdown(wait=False, cancel_futures=True)


def _update(training: Training, config: Finetune) -> None:
    """A step of the optimizer, by the gradients that the passes have summed. FloatingPointError where these are not
    finite, before any weight is changed."""
    norm = torch.nn.utils.clip_grad_norm_(training.parameters.values(), CLIP_GRADIENT)
    length = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not np.isfinite(length):
        step = training.step + 1
        raise FloatingPointError(f"the gradient of step {step} has the length {length}; lower finetune.learning_rate")
    for group in training.optimizer.param_groups:
        group["lr"] = rate(config, training.step)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.step += 1


def expert_of_step(training: Training, seed: int, step: int) -> Expert:
    """The expert that a step, counted from 0, trains: the same for all workers, and each as often as training times
    fall into its interval.

    Sharded workers that ask different experts in one pass would gather each other's rows, without an error.
    """
    if len(training.experts) == 1:
        return training.experts[0]
    drawn = named_generator(f"expert {seed} {step}").random()
    upto, schedule = 0.0, training.model.schedule
    for expert in training.experts:
        upto += schedule.quantile(expert.last) - schedule.quantile(expert.first)
        if drawn < upto:
            return expert
    return training.experts[-1]


def _summed_at(objective: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Replicated workers sum their gradients once a step; sharded ones in each pass, so as to hold only their rows."""
    replicated = isinstance(objective, DistributedDataParallel)
    return objective.no_sync() if replicated and not last else contextlib.nullcontext()  # type: ignore[operator]


# --- the result ------------------------------------------------------------------------------------------------------


def save_weights(training: Training, folder: str) -> None:
    """What was trained, as diffusers loads it: transformer/ for from_pretrained, or adapters for load_lora_weights; of
    a second transformer transformer_2/, or a file of its own.

    In float32: updates of a step are far below what bfloat16 tells apart. The folder may be s3://. With sharding "fsdp"
    all workers call it, and the first one writes.
    """
    first = training.share[0] == 0
    with tempfile.TemporaryDirectory() as local:
        for part in dict.fromkeys(expert.part for expert in training.experts):
            module = training.model.transformers()[part]
            named = {n: p for n, p in module.named_parameters() if p.requires_grad}
            state = sharding.gathered(named if training.lora else module.state_dict(), keep=first)
            if first and training.lora:
                _write_lora(training.model, part, state, local)
            elif first:
                _write(module, state, Path(local, part))
        if not first:
            return
        for file in sorted(p for p in Path(local).rglob("*") if p.is_file()):
            fs, bare = stores.place(stores.join(folder, str(file.relative_to(local))))
            fs.makedirs(bare.rsplit("/", 1)[0], exist_ok=True)
            fs.put_file(str(file), bare)


def _write(transformer: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """As diffusers' save_pretrained does, from weights that lie elsewhere than in the module."""
    path.mkdir()
    config = json.loads(transformer.to_json_string())  # type: ignore[operator]
    config["_class_name"] = sharding.class_name(transformer)
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_torch_state_dict(
        weights, path, filename_pattern="diffusion_pytorch_model{suffix}.safetensors", max_shard_size="10GB"
    )


def _write_lora(model: VideoModel, part: str, weights: dict[str, Tensor], folder: str) -> None:
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    transformer = model.transformers()[part]
    layers = get_peft_model_state_dict(transformer, state_dict=weights)
    (metadata,) = _collate_lora_metadata({"transformer": transformer}).values()
    model.write_lora(part, layers, metadata, folder)
