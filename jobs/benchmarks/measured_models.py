"""What the benchmark of the stages measures: the demo's model on a CPU, Wan2.1-T2V-1.3B's architecture on a GPU.

The large model has the published configuration and random weights: for speed and memory they do not matter.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from torchvision.models import optical_flow
from transformers import UMT5Config, UMT5EncoderModel

from pipeline import config, models
from pipeline.config import Run, VideoModelConfig
from pipeline.config.attribution import Setting
from pipeline.models import Grid
from pipeline.models.adapters.wan import Wan, WanFamily
from pipeline.motion import load_raft
from pipeline.synthetic import world

# The configurations published with Wan-AI/Wan2.1-T2V-1.3B-Diffusers; the autoencoder's are diffusers' defaults.
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
PARAMETERS, TENSORS = 1_418_996_800, 825
TEXT = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}


@dataclass(frozen=True)
class Subject:
    """A model with the recipe it is measured under; `frames` is a clip of the world at the recipe's geometry."""

    name: str
    device: torch.device
    run: Run
    model: Wan
    raft: nn.Module
    settings: tuple[Setting, ...]
    hold: int
    frames: npt.NDArray[np.uint8]

    @property
    def grid(self) -> Grid:
        """The latent grid of a clip."""
        frames, _, height, width = self.run.geometry
        return models.grid_of(self.model.family, frames, height, width)

    @property
    def caption(self) -> Tensor:
        """Random token ids [1, text_tokens] in place of a caption as long as captions may be."""
        size = self.model.pipeline.text_encoder.config.vocab_size
        ids = torch.randint(2, size, (1, self.model.text_tokens), generator=torch.Generator().manual_seed(0))
        return ids.to(self.device)

    @torch.no_grad()
    def text(self) -> Tensor:
        """The embedding of `caption`, [1, tokens, width]."""
        ids = self.caption
        states: Tensor = self.model.pipeline.text_encoder(ids, torch.ones_like(ids)).last_hidden_state
        return states


def demo(device: torch.device) -> Subject:
    """The demo recipe with its shipped weights, as it runs on one core."""
    run = config.load("demo")
    frames, _, height, width = run.geometry
    model = models.open_model(run.model, device)
    assert isinstance(model, Wan)
    raft = load_raft(run.motion, device)
    a = run.attribution
    return Subject("demo", device, run, model, raft, a.settings, a.hold, clip(frames, height, width))


def wan(device: torch.device) -> Subject:
    """Wan2.1-T2V-1.3B's and RAFT large's architectures with random weights, 81x480x832, one setting, streamed."""
    run = config.load("wan2.1-t2v-1.3b")
    frames, _, height, width = run.geometry
    torch.manual_seed(0)
    raft = optical_flow.raft_large(weights=None).to(device).eval()
    pictures = clip(frames, height // 2, width // 2).repeat(2, axis=1).repeat(2, axis=2)
    settings = (Setting(),)
    return Subject("wan2.1-t2v-1.3b", device, run, random_wan(run.model, device), raft, settings, 1, pictures)


def clip(frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return world.render(world.scene(0, "benchmark", "real", "spin", frames, pan=1.0), height, width)


def random_wan(config: VideoModelConfig, device: torch.device) -> Wan:
    """The architecture with random weights: transformer and text encoder in bfloat16, the autoencoder in float32."""
    torch.manual_seed(0)
    with device:
        transformer = WanTransformer3DModel(**TRANSFORMER)
        vae = AutoencoderKLWan()
    parameters = dict(transformer.named_parameters())
    count = sum(p.numel() for p in parameters.values())
    if (count, len(parameters)) != (PARAMETERS, TENSORS):
        raise RuntimeError(f"this transformer has {count} parameters in {len(parameters)} tensors, not Wan2.1-1.3B's")
    for name, parameter in parameters.items():  # what from_pretrained leaves in float32, stays in it here
        if not set(name.split(".")) & set(WanTransformer3DModel._keep_in_fp32_modules):
            parameter.data = parameter.data.to(torch.bfloat16)
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=_text_encoder(device),
        vae=vae,
        transformer=transformer,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_config(folder)
        for part in ("vae", "transformer", "scheduler"):
            getattr(pipeline, part).save_config(Path(folder, part))
        return Wan(WanFamily(Path(folder)), pipeline, config, device)


def _text_encoder(device: torch.device) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            encoder: nn.Module = UMT5EncoderModel(UMT5Config(**TEXT))
    finally:
        torch.set_default_dtype(before)
    return encoder
