"""Which adapter a folder needs, and what is refused by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Run, VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models.adapters.cogvideox import CogVideoXFamily
from pipeline.models.adapters.hunyuan import HunyuanFamily
from pipeline.models.adapters.hunyuan15 import Hunyuan15Family
from pipeline.models.adapters.kandinsky5 import Kandinsky5Family
from pipeline.models.adapters.ltx import LTXFamily
from pipeline.models.adapters.ltx2 import LTX2Family
from pipeline.models.adapters.mochi import MochiFamily
from pipeline.models.adapters.sana import SanaFamily
from pipeline.models.adapters.skyreels import SkyReelsFamily
from pipeline.models.adapters.wan import WanFamily
from pipeline.models.adapters.wan22 import WanExpertsFamily, WanTokensFamily
from pipeline.models.adapters.wan_image import WanImageExpertsFamily, WanImageFamily, WanImageTokensFamily
from pipeline.models.compiling import is_compiled
from pipeline.models.contract import Family, Grid, VideoModel
from pipeline.models.diffusers_family import INDEX
from pipeline.models.folders import folder, hash_parts, read_config

OfFolder = Callable[[Path], Family]


def wan(plain: OfFolder, experts: OfFolder, tokens: OfFolder) -> OfFolder:
    """What tells the families of one class apart: Wan 2.1 is `plain`; Wan 2.2 has two experts or times of tokens."""

    def of_folder(path: Path) -> Family:
        index = read_config(path / INDEX)
        if any(index.get("transformer_2") or []) or (path / "transformer_2").is_dir() or index.get("boundary_ratio"):
            return experts(path)
        return tokens(path) if index.get("expand_timesteps") else plain(path)

    return of_folder


# Pipelines by the class that their model_index.json names. Where one class serves several families, a function tells
# them apart.
ADAPTERS: dict[str, OfFolder] = {
    "CogVideoXPipeline": CogVideoXFamily,
    "HunyuanVideo15Pipeline": Hunyuan15Family,
    "HunyuanVideoPipeline": HunyuanFamily,
    "Kandinsky5T2VPipeline": Kandinsky5Family,
    "LTX2Pipeline": LTX2Family,
    "LTXPipeline": LTXFamily,
    "MochiPipeline": MochiFamily,
    "SanaVideoPipeline": SanaFamily,
    "SkyReelsV2Pipeline": SkyReelsFamily,
    "WanImageToVideoPipeline": wan(WanImageFamily, WanImageExpertsFamily, WanImageTokensFamily),
    "WanPipeline": wan(WanFamily, WanExpertsFamily, WanTokensFamily),
}

# What has an adapter in diffusers and none here, and why.
REFUSED = {
    "WanVACEPipeline": "it takes videos and masks as conditions, which clips do not have",
    "WanAnimatePipeline": "it takes poses and faces as conditions, which clips do not have",
    "AnyFlowPipeline": "it is distilled: its transformer predicts a flow map of two times, no velocity",
    "AnyFlowFARPipeline": "it is distilled: its transformer predicts a flow map of two times, no velocity",
    "HeliosPipeline": "it is autoregressive: a chunk of frames depends on those before it",
    "HeliosPyramidPipeline": "it is autoregressive: a chunk of frames depends on those before it",
    "HunyuanVideoFramepackPipeline": "it is autoregressive: a chunk of frames depends on those before it",
    "SkyReelsV2DiffusionForcingPipeline": "its frames have times of their own, and diffusers' pipeline fails on them",
    "AllegroPipeline": "its transformer takes no adapters, and its autoencoder needs tiling",
    "EasyAnimatePipeline": "its transformer takes no adapters",
    "Cosmos2VideoToWorldPipeline": "it encodes its condition by chance, and does not generate without a safety checker",
}


def family(config: VideoModelConfig) -> Family:
    """What the configuration files of `config.id` tell. Raises ConfigError for what has no adapter, by name."""
    path = folder(config.id)
    made = _imported(config.adapter)(path) if config.adapter is not None else _adapter(path)(path)
    made.check(config)
    return made


def _adapter(path: Path) -> OfFolder:
    index = read_config(path / INDEX)
    name = str(index.get("_class_name"))
    if name in ADAPTERS:
        return ADAPTERS[name]
    reason = REFUSED.get(name, _modular(index) or "no adapter for it exists")
    raise ConfigError(
        f"model.id={str(path)!r}: it is a {name}, which this version does not attribute: {reason}. It has adapters for "
        f"{', '.join(sorted(ADAPTERS))}; model.adapter names one of your own (docs/models.md)."
    )


def _modular(index: dict[str, Any]) -> str | None:
    modular = "modular" in str(index.get("_class_name")).lower() or "_blocks_class_name" in index
    return "it is a modular pipeline, whose blocks decide what is computed" if modular else None


def _imported(name: str) -> OfFolder:
    """The family that `model.adapter` names, "package.module:Family". Raises ConfigError."""
    module, _, attribute = name.partition(":")
    try:
        made: OfFolder = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"model.adapter={name!r}: this cannot be imported ({error}). Name a module that every worker can import "
            "and a class in it, as in package.module:Family."
        ) from error
    return made


def grid(run: Run) -> Grid:
    """The latent grid of a run's clips in attribution. Raises ConfigError."""
    frames, _, height, width = run.geometry
    return grid_of(family(run.model), frames, height, width)


def grid_of(of: Family, frames: int, height: int, width: int) -> Grid:
    _, stride = of.strides
    return Grid(of.folds(frames), height // stride, width // stride)


def weights_hash(config: VideoModelConfig) -> str:
    """A hash of every weight and configuration file that changes a feature. Raises ConfigError."""
    of = family(config)
    return hash_parts(of.path, of.parts)


def open_model(config: VideoModelConfig, device: torch.device) -> VideoModel:
    """Load the checkpoint that `config.id` names. Raises ConfigError if it is not to be had or not known, or where
    compiled blocks were asked for and are not."""
    model = family(config).open(config, device)
    if config.compile and not is_compiled(model):
        raise ConfigError(
            f"model.compile: {type(model).__name__} does not compile its blocks (it has no `compiled` that is true). "
            "Use model.compile: false."
        )
    return model
