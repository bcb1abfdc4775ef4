"""Train the demo's video model, a complete tiny Wan pipeline: ``python -m jobs.weights.video_model [vae|transformer]``.

First the tokenizer and the autoencoder, then the text encoder and the transformer together on the autoencoder's
latents, with the loss, the timestep distribution and the caption dropout that fine-tuning uses. Training scenes come
from seed 0 of the synthetic world, judged scenes from another seed. A killed run goes on from its last state.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from pipeline import world

SIZE, FRAMES, CHANNELS, TEXT_TOKENS, FLOW_SHIFT = 32, 9, 8, 32, 3.0
HELD_OUT = 1_000_003
OUT = Path("pipeline/weights/wan-demo")
STATE = Path("runs/weights")


def clips(seed: int, count: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Videos [N, 3, F, H, W] in [-1, 1] as uint8 levels, captions, and whether a pixel moves [N, F, H, W]."""
    scenes = world.corpus(seed, count, FRAMES)
    videos = np.stack([world.render(s, SIZE, SIZE) for s in scenes])
    flows = np.stack([np.linalg.norm(world.flow(s, SIZE, SIZE), axis=-1) for s in scenes]) if count <= 512 else None
    moving = torch.zeros(0) if flows is None else torch.from_numpy(np.concatenate([flows, flows[:, -1:]], 1) > 0.1)
    return torch.from_numpy(videos).permute(0, 4, 1, 2, 3), [s.caption for s in scenes], moving


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to 2 % of the peak."""
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def keep(state: dict[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


# --- tokenizer --------------------------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens: world captions in a few tokens, any other text in bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([s.caption for s in world.corpus(0, 2000, 2)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


# --- autoencoder ------------------------------------------------------------------------------------------------------


def make_vae(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=24,
        z_dim=CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=mean or [0.0] * CHANNELS,
        latents_std=std or [1.0] * CHANNELS,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )


@torch.no_grad()
def judge_vae(vae: AutoencoderKLWan, count: int = 128) -> dict[str, float]:
    """Held-out squared error as a share of the variance, of all pixels and of the moving ones."""
    videos, _, moving = clips(HELD_OUT, count)
    x = videos.float() / 127.5 - 1
    y = torch.cat([vae.decode(vae.encode(b).latent_dist.mode()).sample for b in x.split(16)])
    error, where = (y - x) ** 2, moving[:, None].expand_as(x)
    return {
        "error_of_variance": float(error.mean() / x.var()),
        "moving_error_of_variance": float(error[where].mean() / x[where].var()),
    }


def train_vae(steps: int) -> None:
    """Frames first, then clips: started on clips it hardly learns."""
    path = STATE / "vae.pt"
    torch.manual_seed(0)
    vae = make_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.99))
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    videos, _, _ = clips(0, 6000)
    start = time.monotonic()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 1e-3)
        rng = np.random.default_rng([1, step])
        frames_only = step < steps // 4
        chosen = torch.from_numpy(rng.integers(0, len(videos), 24 if frames_only else 8))
        x = videos[chosen].float() / 127.5 - 1
        if frames_only:
            x = x[:, :, rng.integers(0, FRAMES)][:, :, None]
        posterior = vae.encode(x).latent_dist
        generator = torch.Generator().manual_seed(step)
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        y = vae.decode(z).sample
        error = (y - x) ** 2
        change = (y.diff(dim=2) - x.diff(dim=2)) ** 2 if not frames_only else error
        loss = error.mean() + change.mean() + 0.05 * (y - x).abs().mean() + 1e-6 * posterior.kl().mean() / 64
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} error {float(error.mean()):.5f} {time.monotonic() - start:.0f} s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            keep({"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, path)
            print(json.dumps({"step": step + 1, **judge_vae(vae)}), flush=True)
    finish_vae(vae, videos[:1500])


@torch.no_grad()
def finish_vae(vae: AutoencoderKLWan, videos: torch.Tensor) -> None:
    """Write the autoencoder with the mean and deviation of its latents, so that they are normalised as Wan's are."""
    latents = torch.cat([vae.encode(b.float() / 127.5 - 1).latent_dist.mode() for b in videos.split(50)])
    mean, std = latents.mean((0, 2, 3, 4)).tolist(), latents.std((0, 2, 3, 4)).tolist()
    finished = make_vae(mean, std)
    finished.load_state_dict(vae.state_dict())
    finished.save_pretrained(OUT / "vae")


# --- text encoder and transformer -------------------------------------------------------------------------------------


def make_text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0, pad_token_id=0
    )
    return UMT5EncoderModel(config)


def make_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=64,
        freq_dim=64,
        ffn_dim=384,
        num_layers=4,
        rope_max_seq_len=128,
    )


@torch.no_grad()
def encode(vae: AutoencoderKLWan, videos: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    return torch.cat([(vae.encode(b.float() / 127.5 - 1).latent_dist.mode() - mean) / std for b in videos.split(50)])


def text(encoder: UMT5EncoderModel, tokens: torch.Tensor) -> torch.Tensor:
    """Embeddings [B, TEXT_TOKENS, 64] as WanPipeline pads them: zeros after the end of the caption."""
    mask = tokens != 0
    hidden: torch.Tensor = encoder(tokens, attention_mask=mask).last_hidden_state
    return hidden * mask[..., None]


def timesteps(generator: torch.Generator, count: int) -> torch.Tensor:
    """Uniform in [0, 1], then the flow shift, on the 1000-step scale: [count]."""
    s = torch.rand(count, generator=generator)
    return 1000 * FLOW_SHIFT * s / (1 + (FLOW_SHIFT - 1) * s)


def velocity_error(
    model: WanTransformer3DModel, h: torch.Tensor, context: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    s = (t / 1000).view(-1, 1, 1, 1, 1)
    found: torch.Tensor = model((1 - s) * h + s * noise, t, context, return_dict=False)[0]
    return ((found - (noise - h)) ** 2).mean((1, 2, 3, 4))


@torch.no_grad()
def judge_transformer(
    model: WanTransformer3DModel, encoder: UMT5EncoderModel, h: torch.Tensor, tokens: torch.Tensor
) -> dict[str, float]:
    """Held-out loss, and that of the mean predictor (a constant velocity)."""
    generator = torch.Generator().manual_seed(HELD_OUT)
    noise, t = torch.randn(h.shape, generator=generator), timesteps(generator, len(h))
    losses = [
        velocity_error(model, h[i], text(encoder, tokens[i]), t[i], noise[i]) for i in torch.arange(len(h)).split(64)
    ]
    u = noise - h
    mean = float(((u - u.mean((0, 2, 3, 4), keepdim=True)) ** 2).mean())
    loss = float(torch.cat(losses).mean())
    return {"loss": loss, "mean_predictor": mean, "share": loss / mean}


def train_transformer(steps: int) -> None:
    path = STATE / "transformer.pt"
    tokenizer = make_tokenizer()
    vae = AutoencoderKLWan.from_pretrained(OUT / "vae")
    torch.manual_seed(1)
    model, encoder = make_transformer(), make_text_encoder()
    parameters = [*model.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99))
    average, average_encoder, first = copy.deepcopy(model), copy.deepcopy(encoder), 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        for name, module in (
            ("model", model),
            ("encoder", encoder),
            ("average", average),
            ("average_encoder", average_encoder),
        ):
            module.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    def prepared(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        videos, captions, _ = clips(seed, count)
        padded = tokenizer(captions, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt")
        return encode(vae, videos), padded.input_ids

    (h, tokens), held_out = prepared(0, 12000), prepared(HELD_OUT, 512)
    empty = tokenizer([""], padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt").input_ids
    start = time.monotonic()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 1.5e-3)
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(0, len(h), (32,), generator=generator)
        dropped = torch.rand(32, 1, generator=generator) < 0.1
        context = text(encoder, torch.where(dropped, empty, tokens[chosen]))
        t, noise = timesteps(generator, 32), torch.randn((32, *h.shape[1:]), generator=generator)
        loss = velocity_error(model, h[chosen], context, t, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.998, (step + 1) / (step + 10))
            for ours, theirs in ((average, model), (average_encoder, encoder)):
                for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                    a.lerp_(b, 1 - decay)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {float(loss.detach()):.4f} {time.monotonic() - start:.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            modules = {"model": model, "encoder": encoder, "average": average, "average_encoder": average_encoder}
            states: dict[str, object] = {name: module.state_dict() for name, module in modules.items()}
            keep({**states, "optimizer": optimizer.state_dict(), "step": step + 1}, path)
            scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
            )
            WanPipeline(
                tokenizer=tokenizer, text_encoder=average_encoder, vae=vae, scheduler=scheduler, transformer=average
            ).save_pretrained(OUT)
            print(json.dumps({"step": step + 1, **judge_transformer(average, average_encoder, *held_out)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "part", nargs="?", choices=("vae", "transformer"), help="both, one after the other, if left out"
    )
    parser.add_argument("--vae-steps", type=int, default=2400)
    parser.add_argument("--transformer-steps", type=int, default=10000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part in (None, "vae"):
        train_vae(args.vae_steps)
    if args.part in (None, "transformer"):
        train_transformer(args.transformer_steps)


if __name__ == "__main__":
    main()
