"""The adapters of a warm-up fine-tuning: with `attribution.lora` gradients are of them alone, as those of LESS (Xia et
al., ICML 2024, arXiv 2402.04333).

A folder's files are read and held against the model's parameters before a model is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models.contract import VideoModel
from pipeline.models.diffusers_model import LORA, lora_file, lora_prefix
from pipeline.models.registry import family
from pipeline.models.trained_weights import load_weights
from pipeline.storage import stores

KEY = "attribution.lora"
ADAPTER = re.compile(r"(.+)\.lora_([AB])\.weight")  # a module's A [rank, in, ...] and B [out, rank, ...]

Shape = tuple[int, ...]
Stamp = tuple[str, str, int, str]  # of a file: part, path, bytes, and when or as what it was written


@dataclass(frozen=True)
class Adapters:
    """What a folder holds: a hash of its files, and the shapes of A and B of each module that is adapted, by the names
    that they have in the files: ``blocks.0.attn1.to_q.lora_A.weight``; with several experts after that of its part."""

    digest: str
    shapes: Mapping[str, Shape]


def adapters(config: VideoModelConfig, folder: str) -> Adapters:
    """The adapters of a folder, local or s3://. Raises ConfigError where there are none, where they are of another
    model, and where they have learnt nothing."""
    fs, bare = stores.place(folder)
    fs.invalidate_cache()
    of, stamps = family(config), list[Stamp]()
    for part in dict.fromkeys(expert.part for expert in of.experts):
        path = f"{bare.rstrip('/')}/{lora_file(part)}"
        if fs.exists(path):
            info = fs.info(path)
            stamps.append((part, path, int(info["size"]), str(info.get("ETag") or info.get("mtime"))))
    if not stamps:
        raise ConfigError(
            f"{KEY}={folder!r}: there are no adapters there (no {LORA}). Name a folder ROOT/finetuned/ARM of a "
            "fine-tuning with finetune.lora_rank, or one that diffusers' save_lora_weights wrote, or null for the "
            "model's own parameters."
        )
    return _read(config, folder, tuple(stamps))


@functools.cache  # a job asks for its fingerprints ten times; a file that is written anew is read again
def _read(config: VideoModelConfig, folder: str, stamps: tuple[Stamp, ...]) -> Adapters:
    of = family(config)
    skeleton = of.skeleton()
    digest, shapes, learnt = hashlib.blake2b(digest_size=16), dict[str, Shape](), False
    for part, path, *_ in stamps:
        module = skeleton.get_submodule(part) if len(of.experts) > 1 else skeleton
        with tempfile.TemporaryDirectory() as local:
            copy = Path(local, lora_file(part))
            stores.place(folder)[0].get_file(path, str(copy))
            digest.update(part.encode())
            digest.update(hashlib.blake2b(copy.read_bytes()).digest())
            try:
                some, moved = _checked(copy, module)
            except (_MisfitError, SafetensorError) as error:
                raise ConfigError(
                    f"{KEY}={folder!r}: {copy.name} does not fit model.id={str(of.path)!r}, a {of.name}: {error}. Give "
                    "adapters that were trained from this model, as jobs.finetune or diffusers' save_lora_weights "
                    "writes them."
                ) from error
        learnt |= moved
        shapes |= {f"{part}.{name}" if len(of.experts) > 1 else name: shape for name, shape in some.items()}
    if not learnt:
        raise ConfigError(
            f"{KEY}={folder!r}: every lora_B there is zero, as it is before training, so that no lora_A would have a "
            "gradient. Give adapters that were trained for some steps."
        )
    return Adapters(digest.hexdigest(), shapes)


class _MisfitError(ValueError):
    """Adapters that the module has no place for."""


def _checked(file: Path, module: nn.Module) -> tuple[dict[str, Shape], bool]:
    """The shapes of a file's adapters, and whether some B is not zero. Raises _MisfitError where the module cannot take
    them."""
    weights = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    shapes, learnt = dict[str, Shape](), False
    with safe_open(file, "pt") as tensors:
        prefix = lora_prefix(tensors.keys())
        for key in tensors.keys():  # noqa: SIM118 - no mapping
            name = key if prefix is None else key.removeprefix(f"{prefix}.")
            match = ADAPTER.fullmatch(name)
            if match is None:
                raise _MisfitError(f"it holds {key}, which is neither a lora_A nor a lora_B in diffusers' layout")
            if f"{match[1]}.weight" not in weights:
                raise _MisfitError(f"it adapts {match[1]}, which this model has not")
            shapes[name] = tuple(tensors.get_slice(key).get_shape())
            learnt |= match[2] == "B" and bool(tensors.get_tensor(key).any())
    for adapted in dict.fromkeys(name.rpartition(".lora_")[0] for name in shapes):
        a, b = (shapes.get(f"{adapted}.lora_{side}.weight") for side in "AB")
        if a is None or b is None:
            raise _MisfitError(f"{adapted} has a lora_A or a lora_B and not both")
        weight = weights[f"{adapted}.weight"]
        if a[0] != b[1] or (b[0], a[1]) != weight[:2]:
            raise _MisfitError(
                f"the lora_A {list(a)} and lora_B {list(b)} of {adapted} are no change of its {list(weight)}"
            )
    return shapes, learnt


def load_adapters(model: VideoModel, config: VideoModelConfig, folder: str) -> None:
    """Give a model the adapters of a folder, beside its own parameters. Raises ConfigError unless all of them are
    there afterwards."""
    expected = set(adapters(config, folder).shapes)
    load_weights(model, folder)
    model.trained.eval()
    loaded = {bare for name, _ in model.trained.named_parameters() if (bare := adapter_name(name)) is not None}
    if loaded != expected:
        name = min(loaded ^ expected)
        raise ConfigError(
            f"{KEY}={folder!r}: {len(loaded & expected)} of {len(expected)} adapters could be loaded into "
            f"model.id={config.id!r}; {name} is one of the others. Its family must read adapters as diffusers does."
        )


def adapter_name(parameter: str) -> str | None:
    """The name in a file of a loaded adapter's parameter, without the adapter's own name; None for other parameters.

    >>> adapter_name("blocks.0.attn1.to_q.lora_A.default_0.weight")
    'blocks.0.attn1.to_q.lora_A.weight'
    """
    module, lora, rest = parameter.rpartition(".lora_")
    side, _, end = rest.partition(".")
    return f"{module}{lora}{side}.{end.rpartition('.')[2]}" if lora else None


def adapter_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapters in a module, by their names in a file."""
    for name, parameter in module.named_parameters():
        bare = adapter_name(name)
        if bare is not None:
            yield bare, parameter
