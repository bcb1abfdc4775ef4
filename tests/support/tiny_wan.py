"""A complete Wan pipeline of the demo's shape with two layers and random weights, written once per session."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from jobs.weights import autoencoder, transformer
from pipeline.config import VideoModelConfig
from pipeline.models import open_model
from pipeline.models.adapters.wan import Wan

LAYERS = 2


def small_transformer() -> WanTransformer3DModel:
    """The demo's transformer with fewer layers; no parameter is zero, so that every one gets a gradient."""
    torch.manual_seed(0)
    full = transformer.make_transformer()
    model = WanTransformer3DModel.from_config({**full.config, "num_layers": LAYERS})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def folder(factory: pytest.TempPathFactory) -> Path:
    return _written(factory.getbasetemp() / "tiny_wan")


@cache
def _written(path: Path) -> Path:
    model = small_transformer()
    mean = [0.3 * i - 1 for i in range(autoencoder.CHANNELS)]
    std = [0.5 + 0.2 * i for i in range(autoencoder.CHANNELS)]
    WanPipeline(
        tokenizer=transformer.make_tokenizer(),
        text_encoder=transformer.make_text_encoder(),
        vae=autoencoder.make_vae(mean, std),
        transformer=model,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=transformer.FLOW_SHIFT
        ),
    ).save_pretrained(path)
    return path


def opened(path: Path, **changes: object) -> Wan:
    values = {"id": str(path), "dtype": "float32", "text_tokens": 32, "gradient_checkpointing": False, **changes}
    model = open_model(VideoModelConfig.model_validate(values), torch.device("cpu"))
    assert isinstance(model, Wan)
    return model
