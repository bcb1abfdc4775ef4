"""Seconds and memory of a clip's attribution and of a training step, family by family: one at a time, what fits.

    python -m jobs.benchmarks.families                     # a GPU: published sizes with random weights
    python -m jobs.benchmarks.families --quick             # a few layers at a small geometry, on any machine

Weights are random: for speed and memory they do not matter. Captions are random tensors of the length that the
pipeline pads to, so text encoders are not measured. Which attention kernel ran is told by the profiler on a GPU.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import optical_flow

from jobs.benchmarks import ceilings
from jobs.benchmarks.measured_models import clip
from pipeline import config, models
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.config import Finetune, VideoModelConfig
from pipeline.config.attribution import Setting
from pipeline.errors import first_line
from pipeline.models.adapters.cogvideox import CogVideoX, CogVideoXFamily
from pipeline.models.adapters.ltx import LTX, LTXFamily
from pipeline.models.adapters.wan import Wan, WanFamily
from pipeline.models.adapters.wan22 import WanTokens, WanTokensFamily
from pipeline.models.conditioning import split
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.models.loss import own_noise
from pipeline.motion import estimate
from pipeline.projection import Projection
from pipeline.training import loop
from pipeline.training.training_set import ClipSet, EncodedClip

Geometry = tuple[int, int, int]
ADAPTERS = 3_000_000_000  # numbers above which a step of training is one of adapters
KERNELS = ("cudnn", "flash", "efficient")  # in the names of the kernels that the profiler tells of


@dataclass(frozen=True)
class Published:
    """A family at its published size: `make` takes smaller settings of the transformer and of the
    autoencoder for a quick run."""

    name: str
    make: Callable[[dict[str, Any], dict[str, Any]], Any]
    family: Any
    model: Any
    geometry: Geometry
    fps: float
    quick: Geometry
    text: tuple[int, int]  # tokens and width
    timestep: float = 751.0
    masked: bool = False  # whether a caption has a mask


def flow_steps(shift: float) -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def wan(smaller: dict[str, Any], vae: dict[str, Any]) -> Any:
    settings = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, **smaller}
    transformer = diffusers.WanTransformer3DModel(**settings)
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": flow_steps(3.0), "transformer": transformer}
    return diffusers.WanPipeline(vae=diffusers.AutoencoderKLWan(**vae), **parts)


def wan_tokens(smaller: dict[str, Any], vae: dict[str, Any]) -> Any:
    settings = {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, **smaller}
    transformer = diffusers.WanTransformer3DModel(in_channels=48, out_channels=48, **settings)
    levels = {"base_dim": 160, "decoder_base_dim": 256, **vae}
    autoencoder = diffusers.AutoencoderKLWan(
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        **levels,
    )
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": flow_steps(5.0), "transformer": transformer}
    return diffusers.WanPipeline(vae=autoencoder, expand_timesteps=True, **parts)


def ltx(smaller: dict[str, Any], vae: dict[str, Any]) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096
    )
    transformer = diffusers.LTXVideoTransformer3DModel(**smaller)
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": scheduler, "transformer": transformer}
    return diffusers.LTXPipeline(vae=diffusers.AutoencoderKLLTXVideo(**vae), **parts)


def cogvideox(smaller: dict[str, Any], vae: dict[str, Any]) -> Any:
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    transformer = diffusers.CogVideoXTransformer3DModel(**smaller)
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": scheduler, "transformer": transformer}
    return diffusers.CogVideoXPipeline(vae=diffusers.AutoencoderKLCogVideoX(**vae), **parts)


PUBLISHED = (
    Published("wan2.1-t2v-1.3b", wan, WanFamily, Wan, (81, 480, 832), 16, (5, 32, 32), (512, 4096)),
    Published("wan2.2-ti2v-5b", wan_tokens, WanTokensFamily, WanTokens, (121, 704, 1280), 24, (5, 64, 64), (512, 4096)),
    Published("ltx-video-2b", ltx, LTXFamily, LTX, (121, 480, 832), 24, (9, 64, 64), (128, 4096), masked=True),
    Published(
        "cogvideox-2b", cogvideox, CogVideoXFamily, CogVideoX, (49, 480, 720), 8, (9, 32, 32), (226, 4096), 494.0
    ),
)
SMALLER: dict[str, dict[str, Any]] = {
    "wan2.1-t2v-1.3b": {"num_attention_heads": 2, "num_layers": 1, "ffn_dim": 64},
    "wan2.2-ti2v-5b": {"num_attention_heads": 2, "num_layers": 1, "ffn_dim": 64},
    "ltx-video-2b": {"num_attention_heads": 2, "num_layers": 1, "cross_attention_dim": 128},
    "cogvideox-2b": {"num_attention_heads": 2, "num_layers": 1},
}


SMALLER_VAE: dict[str, dict[str, Any]] = {
    "wan2.1-t2v-1.3b": {"base_dim": 8},
    "wan2.2-ti2v-5b": {"base_dim": 8, "decoder_base_dim": 8},
    "ltx-video-2b": {"block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)},
    "cogvideox-2b": {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2, "layers_per_block": 1},
}


def opened(published: Published, device: torch.device, quick: bool) -> DiffusersModel:
    """A family's adapter over random weights: bfloat16 on a GPU, float32 elsewhere."""
    torch.manual_seed(0)
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with device:
            small = (SMALLER[published.name], SMALLER_VAE[published.name]) if quick else ({}, {})
            pipeline = published.make(*small)
    finally:
        torch.set_default_dtype(before)
    values = {"id": published.name, "dtype": dtype, "vae_dtype": dtype, "text_tokens": published.text[0]}
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_config(folder)
        for part in ("vae", "transformer", "scheduler"):
            getattr(pipeline, part).save_config(Path(folder, part))
        of_files = published.family(Path(folder))
        made: DiffusersModel = published.model(of_files, pipeline, VideoModelConfig.model_validate(values), device)
    return made


def caption(published: Published, model: DiffusersModel) -> dict[str, Tensor]:
    """Random embeddings in place of a caption as long as captions may be."""
    text = {"text": own_noise("caption", 0, published.text).to(model.device, model.dtype)}
    return {**text, "mask": torch.ones(published.text[0], device=model.device)} if published.masked else text


def measured(published: Published, device: torch.device, quick: bool) -> dict[str, Any]:
    """Seconds, FLOP/s and peak memory of the parts of a clip, and of a training step."""
    run = config.load(
        "wan2.1-t2v-1.3b", {"motion.height": 128, "motion.width": 128, "motion.updates": 2} if quick else {}
    )
    model = opened(published, device, quick)
    geometry = published.quick if quick else published.geometry
    frames = clip(*geometry)
    grid = models.grid_of(model.family, *geometry)
    numbers = sum(p.numel() for p in model.trained.parameters())
    network = optical_flow.raft_small if quick else optical_flow.raft_large
    raft: nn.Module = network(weights=None).to(device).eval()
    figures: dict[str, Any] = {"parameters": numbers, "geometry": geometry, "grid": grid.shape}
    figures["flow"] = seconds(lambda: estimate(frames, raft, run.motion, device), device)
    encoded = model.encode(frames, published.fps)
    figures["encode"] = seconds(lambda: model.encode(frames, published.fps), device)
    latent, of_clip = split(encoded)
    conditioning = {**of_clip, **caption(published, model)}
    mask = own_noise("mask", 0, grid.shape).abs().clamp(0, 1).to(device)
    gradients = ProjectedGradients(model.trained, Projection("sketched_gaussian", 2048, 0))
    settings = [Setting(timestep=published.timestep, mask="motion")]
    take = partial(take_clip, gradients, model, settings, latent, conditioning, mask, 0)
    with FlopCounterMode(display=False) as counter:
        take()
    figures["gradient and projection"] = seconds(lambda: (take(), gradients.collect()), device)
    figures["gradient TFLOP"] = counter.get_total_flops() / 1e12
    figures["TFLOP/s"] = figures["gradient TFLOP"] / figures["gradient and projection"]
    figures["attention"] = kernel(take) if device.type == "cuda" else "the CPU's"
    gradients.collect()
    gradients.close()
    figures["training step"] = step(model, published, {"latent": latent, **of_clip}, conditioning, numbers)
    if device.type == "cuda":
        figures["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def step(
    model: DiffusersModel,
    published: Published,
    encoded: dict[str, Tensor],
    conditioning: dict[str, Tensor],
    numbers: int,
) -> float:
    """Median seconds of a step of training, of every parameter or of adapters."""
    finetune = Finetune(steps=3, lora_rank=None if numbers < ADAPTERS else 32)
    of_clip = EncodedClip({n: t.cpu() for n, t in encoded.items()}, ({n: t.cpu() for n, t in conditioning.items()},))
    clips = ClipSet(model, [{"clip_id": published.name}], lambda row: of_clip)
    lines = list(loop.train(loop.begin(model, finetune, 0), clips, finetune, 0))
    return median(line.seconds for line in lines[1:])


def seconds(call: Callable[[], object], device: torch.device) -> float:
    return median(ceilings.timed(call, device, 2))


def kernel(call: Callable[[], object]) -> str:
    """Which of PyTorch's attention kernels a call ran, by the names in its profile."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
    names = " ".join(event.key.lower() for event in profile.key_averages())
    return ", ".join(name for name in KERNELS if name in names) or "none that is known"


@contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """A family's memory is given back before the next one is built."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few layers at a small geometry")
    parser.add_argument("--families", help="names, separated by commas; all by default")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.quick:
        parser.error("the published sizes need a GPU; --quick runs anywhere")
    names = arguments.families.split(",") if arguments.families else [p.name for p in PUBLISHED]
    unknown = set(names) - {p.name for p in PUBLISHED}
    if unknown:
        parser.error(f"--families: there is no {', '.join(sorted(unknown))}; known are {[p.name for p in PUBLISHED]}")
    machine = ceilings.machine()
    ceilings.print_machine(machine)
    by_family: dict[str, Any] = {}
    for published in PUBLISHED:
        if published.name in names:
            with alone(device):
                by_family[published.name] = attempted(published, device, arguments.quick)
    parts = ("flow", "encode", "gradient and projection", "training step", "TFLOP/s", "peak GiB", "attention")
    rows = [[name, *(_cell(figures.get(part)) for part in parts)] for name, figures in by_family.items()]
    ceilings.print_table(["family", *parts], rows)
    ceilings.print_json({"machine": machine, "quick": arguments.quick, "families": by_family})


def attempted(published: Published, device: torch.device, quick: bool) -> dict[str, Any]:
    """What was measured, or why a family was not: the others' figures stay."""
    try:
        return measured(published, device, quick)
    except Exception as error:
        return {"attention": f"failed: {type(error).__name__}: {first_line(error)}"}


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
