"""The training set of fine-tuning: clips and captions encoded once a run, and drawn by (seed, step, position)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline import models
from pipeline.config import Finetune, Run
from pipeline.models import Conditioning, VideoModel
from pipeline.models.conditioning import batched, moved, split
from pipeline.models.loss import named_generator
from pipeline.models.schedule import END
from pipeline.storage import stores
from pipeline.training import time_bands

ENCODING = 2  # raise by hand when the files of encoded clips change

Row = Mapping[str, Any]  # a clip: clip_id, caption (or captions), weight, and whatever finding its frames takes
FramesOf = Callable[[Row], npt.NDArray[np.uint8]]
Geometry = tuple[int, float, int, int]  # frames, fps, height, width


@dataclass(frozen=True)
class EncodedClip:
    """A clip's latent and what else the transformer is told of it, and the conditioning of each of its captions."""

    clip: Mapping[str, Tensor]
    captions: tuple[Conditioning, ...]


# A clip's encoding; without a row, that of a dropped caption alone.
Encoded = Callable[[Row | None], EncodedClip]


@dataclass(frozen=True)
class Draw:
    """One place of one batch: which clip, at what time, with which noise and which of its captions, if with any."""

    clip: float  # in [0, 1): where in the summed weights
    time: float  # in [0, 1): before the model's shift
    dropped: float  # in [0, 1): no caption if below finetune.caption_dropout
    caption: float  # in [0, 1): where among the clip's captions
    generator: np.random.Generator  # goes on to the noise

    def noise(self, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.generator.standard_normal(tuple(shape), np.float32))


def draw(seed: int, step: int, position: int) -> Draw:
    """The draws of a place in the batch of a step: a function of these three numbers, on the CPU."""
    generator = named_generator(f"finetune {seed} {step} {position}")
    clip, moment, dropped = generator.random(3).tolist()
    caption = named_generator(f"caption {seed} {step} {position}").random()
    return Draw(clip, moment, dropped, caption, generator)


def cumulated(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """The summed shares of the rows' `weight` (1 where there is none). ValueError unless they are a distribution."""
    weights = np.array([row.get("weight", 1.0) for row in rows], np.float64)
    if not len(rows) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"the weights of the {len(rows)} training clips must be finite, none negative, some positive")
    shares = np.cumsum(weights)
    return np.where(shares == shares[-1], 1.0, shares / shares[-1])  # so that nothing in [0, 1) falls past the last


def pick(upto: npt.NDArray[np.float64], at: Sequence[float]) -> list[int]:
    """Which rows numbers in [0, 1) fall on, by their summed shares."""
    rows: list[int] = np.searchsorted(upto, np.asarray(at), side="right").tolist()
    return rows


def drawn(rows: Sequence[Row], config: Finetune, seed: int) -> list[int]:
    """The rows that a run of `config` will train on at all, in ascending order: no others need encoding."""
    places = [(s, p) for s in range(config.steps) for p in range(config.batch * config.accumulate * config.workers)]
    return sorted(set(pick(cumulated(rows), [draw(seed, *place).clip for place in places])))


# --- encoded clips ---------------------------------------------------------------------------------------------------


def cache_folder(root: str, run: Run, model_hash: str, geometry: Geometry | None = None) -> str:
    """Where the encodings of a run's clips lie: a folder of one model and one geometry, which all arms share. Training
    has that of `data`; evaluation names its own, and shares the folder where it is the same."""
    parts = json.dumps([ENCODING, *encoded_as(run, model_hash, geometry)])
    return stores.join(root, "finetuned", ".latents", hashlib.blake2b(parts.encode(), digest_size=8).hexdigest())


def encoded_as(run: Run, model_hash: str, geometry: Geometry | None = None) -> list[Any]:
    """All that an encoding depends on beside its clip. Without a geometry it is that of `data`."""
    d, m = run.data, run.model
    named = [model_hash, m.dtype, m.text_tokens, *(geometry or (d.frames, d.fps, d.height, d.width))]
    if m.vae_dtype != "float32":  # what arms of before there was the key have
        named.append(m.vae_dtype)
    if d.scaler != "pillow":
        named.append(f"data.scaler={d.scaler}")
    record = models.family(m).record(m)
    return [*named, record] if record else named


def _file(cache: str, row: Row | None) -> str:
    """A clip's encoding, named by all of the row that it depends on; without a row, the empty caption's. A twin's has
    the name of its clip's, a dash and its own."""
    identity = "" if row is None else json.dumps([row["clip_id"], row.get("version"), *_named(row)])
    digest = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    twin = None if row is None else row.get("twin")
    return stores.join(cache, f"{digest}.safetensors" if twin is None else f"{digest}-{twin}.safetensors")


def as_twin(row: Row, name: str, seed: int) -> dict[str, Any]:
    """The row by which the encoding of a clip's twin (`video.looks`) is named, its order drawn under that seed."""
    return {**row, "twin": f"{name}-{seed}"}


def encodings(rows: Iterable[Row]) -> set[str]:
    """The names of these clips' files in a cache, the empty caption's among them."""
    return {_file("", row).rsplit("/", 1)[-1] for row in (None, *rows)}


def encoding_of_clip(name: str) -> str:
    """The name of the clip's file, where `name` is that of one of its twins; else `name`."""
    clip, dash, _ = name.partition("-")
    return f"{clip}.safetensors" if dash else name


def _named(row: Row) -> list[Any]:
    """What tells a row's captions from others."""
    return [row["caption"], row["captions"]] if len(_captions(row)) > 1 else [row["caption"]]


def _captions(row: Row) -> list[str]:
    """All captions of a clip's video, or the clip's own."""
    return [str(caption) for caption in row.get("captions") or [row["caption"] or ""]]


def encode_set(model: VideoModel, rows: Sequence[Row], frames_of: FramesOf, cache: str, fps: float) -> int:
    """Encode clips and captions into a folder, local or s3://, a file a clip; files that exist are kept.

    `cache` must be the folder of one model and one geometry. Returns how many clips were encoded. An error of
    `frames_of` surfaces: a clip that indexing found readable and that is not any more would change what an arm is.
    """
    if not stores.exists(_file(cache, None)):
        stores.write_bytes(_file(cache, None), _written(EncodedClip({}, (model.blank(),))))
    encoded = 0
    for row in rows:
        if is_kept(cache, row):
            continue
        captions = tuple(model.text(caption) for caption in _captions(row))
        keep(cache, row, EncodedClip(model.encode(frames_of(row), fps), captions))
        encoded += 1
    return encoded


def keep(cache: str, row: Row, encoded: EncodedClip) -> None:
    stores.write_bytes(_file(cache, row), _written(encoded))


def is_kept(cache: str, row: Row) -> bool:
    return stores.exists(_file(cache, row))


def _written(encoded: EncodedClip) -> bytes:
    """As a safetensors file: "clip/NAME", and "caption NUMBER/NAME"."""
    groups = {"clip": encoded.clip, **{f"caption {n}": caption for n, caption in enumerate(encoded.captions)}}
    return safetensors.torch.save(
        {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, tensors in groups.items()
            for name, tensor in tensors.items()
        }
    )


def _read(data: bytes) -> EncodedClip:
    groups: dict[str, dict[str, Tensor]] = {"clip": {}}
    for key, tensor in safetensors.torch.load(data).items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    clip = groups.pop("clip")
    return EncodedClip(clip, tuple(groups[f"caption {n}"] for n in range(len(groups))))


def kept_in(cache: str) -> Encoded:
    """What `encode_set` or `keep` wrote, read file by file when it is needed. ValueError for a damaged file."""

    def read(row: Row | None) -> EncodedClip:
        path = _file(cache, row)
        try:
            return _read(stores.read_bytes(path))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and the clip is encoded anew.") from error

    return read


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Inputs of `loss_map`, on the CPU."""

    latent: Tensor
    conditioning: dict[str, Tensor]
    timestep: Tensor
    noise: Tensor

    def pinned(self) -> Batch:
        """The same in memory that a GPU copies from while it computes."""
        conditioning = {name: tensor.pin_memory() for name, tensor in self.conditioning.items()}
        return Batch(self.latent.pin_memory(), conditioning, self.timestep.pin_memory(), self.noise.pin_memory())

    def to(self, device: torch.device) -> Batch:
        latent, timestep, noise = (t.to(device, non_blocking=True) for t in (self.latent, self.timestep, self.noise))
        return Batch(latent, moved(self.conditioning, device), timestep, noise)


class ClipSet:
    """Encoded clips as batches."""

    def __init__(self, model: VideoModel, rows: Sequence[Row], encoded: Encoded) -> None:
        self.rows, self._encoded, self._upto = rows, encoded, cumulated(rows)
        self._schedule = model.schedule
        (self._blank,) = encoded(None).captions

    def batch(self, draws: Sequence[Draw], caption_dropout: float, within: tuple[float, float] = END) -> Batch:
        """The clips that draws fall on, at times inside an interval. ValueError if their latents differ in shape."""
        rows = [self.rows[i] for i in pick(self._upto, [d.clip for d in draws])]
        encoded = [self._encoded(row) for row in rows]
        latents, of_clips = zip(*(split(e.clip) for e in encoded), strict=True)
        shapes = {row["clip_id"]: tuple(latent.shape) for row, latent in zip(rows, latents, strict=True)}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"clips of different sizes cannot share a batch: {shapes}; set finetune.batch to 1")
        captions = [
            self._blank if d.dropped < caption_dropout else e.captions[int(d.caption * len(e.captions))]
            for d, e in zip(draws, encoded, strict=True)
        ]
        cells = latents[0][0].numel()
        uniform = torch.tensor(
            [self._time(d.time, row, cells, within) for d, row in zip(draws, rows, strict=True)], dtype=torch.float32
        )
        return Batch(
            torch.stack(latents),
            batched([{**one, **caption} for one, caption in zip(of_clips, captions, strict=True)]),
            self._schedule.times(uniform, cells, within),
            torch.stack([d.noise(latent.shape) for d, latent in zip(draws, latents, strict=True)]),
        )

    def _time(self, uniform: float, row: Row, cells: int, within: tuple[float, float]) -> float:
        """A draw's place in the times inside an interval; of a clip with times of its own, by their weights."""
        if row.get(time_bands.WEIGHTS) is None:
            return uniform
        first, last = (self._schedule.quantile(timestep, cells) for timestep in within)
        below = [(self._schedule.quantile(edge, cells) - first) / (last - first) for edge in row[time_bands.EDGES]]
        return time_bands.warped(uniform, [min(max(share, 0.0), 1.0) for share in below], row[time_bands.WEIGHTS])
