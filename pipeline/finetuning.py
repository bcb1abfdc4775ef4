"""The fine-tuning loop: the loss of attribution without its mask, clips drawn by weight, and nothing else.

    encode_set(model, rows, frames_of, cache)           # latents and captions, once
    training = begin(model, run.finetune, run.seed)     # every parameter, or LoRA
    for line in train(training, ClipSet(model, rows, cache), run.finetune, run.seed):
        ...                                             # log it, save_state(training, path) now and then
    save_weights(training, folder)                      # what diffusers loads

Clip, timestep, noise and caption dropout of a place in a batch belong to (seed, step, position) alone. So a resumed run
equals an undisturbed one, workers may share a batch in any way, and every arm sees the same noise at the same step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import tables
from pipeline.config import Finetune
from pipeline.diffusion import loss_map
from pipeline.models import VideoModel

Row = Mapping[str, Any]  # a clip: clip_id, caption, weight, and whatever finding its frames takes
FramesOf = Callable[[Row], npt.NDArray[np.uint8]]

LORA = "pytorch_lora_weights.safetensors"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_GRADIENT = 1.0


# --- the training set ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """One place of one batch: which clip, at what time, with which noise, with or without its caption."""

    clip: float  # in [0, 1): where in the summed weights
    time: float  # in [0, 1): before the model's shift
    dropped: float  # in [0, 1): no caption if below finetune.caption_dropout
    generator: np.random.Generator  # goes on to the noise

    def noise(self, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.generator.standard_normal(tuple(shape), np.float32))


def draw(seed: int, step: int, position: int) -> Draw:
    """The draws of a place in the batch of a step: a function of these three numbers, on the CPU."""
    generator = _generator(f"finetune {seed} {step} {position}")
    clip, moment, dropped = generator.random(3).tolist()
    return Draw(clip, moment, dropped, generator)


def _generator(name: str) -> np.random.Generator:
    """Random numbers that belong to a name; NumPy's, because PyTorch's depend on the processor's vector width."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def cumulated(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """The summed shares of the rows' `weight` (1 where there is none). ValueError unless they are a distribution."""
    weights = np.array([row.get("weight", 1.0) for row in rows], np.float64)
    if not len(rows) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"the weights of the {len(rows)} training clips must be finite, none negative, some positive")
    shares = np.cumsum(weights)
    return np.where(shares == shares[-1], 1.0, shares / shares[-1])  # so that nothing in [0, 1) falls past the last


def pick(upto: npt.NDArray[np.float64], at: Sequence[float]) -> list[int]:
    """Which rows numbers in [0, 1) fall on, by their summed shares."""
    found: list[int] = np.searchsorted(upto, np.asarray(at), side="right").tolist()
    return found


def drawn(rows: Sequence[Row], config: Finetune, seed: int) -> list[int]:
    """The rows that a run of `config` will train on at all, in ascending order: no others need encoding."""
    places = [(s, p) for s in range(config.steps) for p in range(config.batch * config.accumulate * config.workers)]
    return sorted(set(pick(cumulated(rows), [draw(seed, *place).clip for place in places])))


def _file(cache: str, row: Row | None) -> str:
    """A clip's encoding, named by all of the row that it depends on; without a row, the empty caption's."""
    known = "" if row is None else json.dumps([row["clip_id"], row.get("version"), row["caption"]])
    return tables.join(cache, f"{hashlib.blake2b(known.encode(), digest_size=16).hexdigest()}.safetensors")


def encode_set(model: VideoModel, rows: Sequence[Row], frames_of: FramesOf, cache: str) -> int:
    """Encode clips and captions into a folder, local or s3://, a file a clip; files that exist are kept.

    `cache` must be the folder of one model and one geometry. Returns how many clips were encoded. An error of
    `frames_of` surfaces: a clip that indexing found readable and that is not any more would change what an arm is.
    """
    if not tables.exists(_file(cache, None)):
        tables.write_bytes(_file(cache, None), safetensors.torch.save({"text": _kept(model.text([""])[0])}))
    encoded = 0
    for row in rows:
        if tables.exists(_file(cache, row)):
            continue
        latent, text = model.encode(frames_of(row)), model.text([row["caption"] or ""])[0]
        tables.write_bytes(_file(cache, row), safetensors.torch.save({"latent": _kept(latent), "text": _kept(text)}))
        encoded += 1
    return encoded


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


@dataclass(frozen=True)
class Batch:
    """Inputs of `loss_map`, on the CPU."""

    latent: Tensor
    text: Tensor
    timestep: Tensor
    noise: Tensor


class ClipSet:
    """Encoded clips as batches, read file by file when they are needed."""

    def __init__(self, model: VideoModel, rows: Sequence[Row], cache: str) -> None:
        self.rows, self.cache, self._upto = rows, cache, cumulated(rows)
        self._shifted = model.shifted
        self._empty = safetensors.torch.load(tables.read_bytes(_file(cache, None)))["text"]

    def batch(self, draws: Sequence[Draw], caption_dropout: float) -> Batch:
        """The clips that draws fall on. ValueError if their latents differ in shape."""
        rows = [self.rows[i] for i in pick(self._upto, [d.clip for d in draws])]
        found = [safetensors.torch.load(tables.read_bytes(_file(self.cache, row))) for row in rows]
        shapes = {row["clip_id"]: tuple(f["latent"].shape) for row, f in zip(rows, found, strict=True)}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"clips of different sizes cannot share a batch: {shapes}; set finetune.batch to 1")
        texts = [self._empty if d.dropped < caption_dropout else f["text"] for d, f in zip(draws, found, strict=True)]
        return Batch(
            torch.stack([f["latent"] for f in found]),
            torch.stack(texts),
            self._shifted(torch.tensor([d.time for d in draws], dtype=torch.float32)),
            torch.stack([d.noise(f["latent"].shape) for d, f in zip(draws, found, strict=True)]),
        )


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
            normal = _generator(f"lora {seed} {name}").standard_normal(tuple(parameter.shape), np.float32)
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
            training.transformer.save_pretrained(tables.join(local, "transformer"))  # type: ignore[operator]
        for file in sorted(p for p in Path(local).rglob("*") if p.is_file()):
            fs, bare = tables.place(tables.join(folder, str(file.relative_to(local))))
            fs.makedirs(bare.rsplit("/", 1)[0], exist_ok=True)
            fs.put_file(str(file), bare)


def load_weights(model: VideoModel, folder: str) -> None:
    """Give a base model what `save_weights` wrote, local or s3://. FileNotFoundError if there is nothing."""
    fs, bare = tables.place(folder)
    with tempfile.TemporaryDirectory() as local:
        if fs.exists(tables.join(bare, LORA)):
            fs.get_file(tables.join(bare, LORA), f"{local}/{LORA}")
            model.transformer.load_lora_adapter(local, prefix="transformer", weight_name=LORA)  # type: ignore[operator]
        elif fs.exists(tables.join(bare, "transformer")):
            fs.get(tables.join(bare, "transformer"), f"{local}/transformer", recursive=True)
            trained = type(model.transformer).from_pretrained(f"{local}/transformer")  # type: ignore[attr-defined]
            model.transformer.load_state_dict(trained.state_dict())
        else:
            raise FileNotFoundError(f"{folder}: it holds neither transformer/ nor {LORA}; run jobs.finetune")
