"""Train the demo's autoencoder, a tiny AutoencoderKLWan: ``python -m jobs.weights.autoencoder``.

Training scenes come from seed 0 of the synthetic world, judged scenes from another seed. A killed run goes on from its
last state.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from jobs.weights.training import CHANNELS, FRAMES, HELD_OUT, OUT, STATE, clips, rate, save_state


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
            save_state({"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, path)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    torch.set_num_threads(1)
    train_vae(parser.parse_args().steps)


if __name__ == "__main__":
    main()
