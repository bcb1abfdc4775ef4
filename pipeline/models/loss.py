"""The one loss of this product: the model's own, masked for attribution and plain for fine-tuning."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pipeline.models.contract import Conditioning, VideoModel


@lru_cache(maxsize=8)
def shared_noise(seed: int, index: int, shape: tuple[int, int, int, int]) -> Tensor:
    """The noise of that index for a latent [C, f, h, w], float32, the same for every clip and query, and the same
    tensor: it is read, never written to.

    Each latent frame is drawn on the CPU under a key of its own, so a shorter clip's noise is a prefix of a longer
    one's, and no GPU model, library or order of work changes it.
    """
    channels, frames, height, width = shape
    drawn = np.empty(shape, np.float32)
    for f in range(frames):
        generator = np.random.Generator(np.random.Philox(key=[seed, (index << 32) + f]))
        drawn[:, f] = generator.standard_normal((channels, height, width), np.float32)
    return torch.from_numpy(drawn)


def own_noise(name: str, index: int, shape: tuple[int, ...]) -> Tensor:
    """The noise of that index for the clip of that name alone, float32, drawn on the CPU.

    A mean over clips is then one over as many noises, where one noise for all is one draw however many clips share it.
    """
    drawn = named_generator(f"own noise {name} {index}").standard_normal(shape, np.float32)
    return torch.from_numpy(drawn)


def drawn_uniforms(name: str, count: int) -> Tensor:
    """Uniform numbers of the clip of that name alone, float32 [count], the n-th from the n-th of `count` equal parts of
    [0, 1]: with the schedule's `times`, timesteps as training draws them, low ones and high ones in its shares."""
    places = named_generator(f"times {name}").random(count)
    return torch.from_numpy((np.arange(count) + places) / count).float()


def named_generator(name: str) -> np.random.Generator:
    """Random numbers that belong to a name; NumPy's, because PyTorch's depend on the processor's vector width."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def loss_map(model: VideoModel, latent: Tensor, conditioning: Conditioning, timestep: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the model's prediction, mean over channels: [B, f, h, w], float32.

    Latent and noise are [B, C, f, h, w], the conditioning is that of a batch, timestep [B] on the 1000-step scale. The
    mask takes no part in it: noising and forward pass are those of training (Wu et al. 2026, section 3). Latent frames
    that are given to the model have no error, and those that are denoised weigh so much more that the mean over all
    places is that over the denoised ones.
    """
    predicted = model.predict(model.schedule.noised(latent, noise, timestep), timestep, conditioning)
    errors = (predicted.float() - model.schedule.target(latent, noise, timestep).float()).square().mean(1)
    counted = model.counted(latent.shape[2])
    if counted is None:
        return errors
    return errors * (counted / counted.mean()).to(errors).view(1, -1, 1, 1)


def motion_weights(latent: Tensor, strength: float) -> Tensor:
    """Weights of a training loss by what changes in time, without flow: [B, C, f, h, w] -> [B, f, h, w], of mean 1.

    A place weighs 1 + strength x its change, where a clip's changes (mean absolute difference over channels from the
    frame before; of the first frame, to the next) have mean 1; as in latent temporal difference (arXiv 2601.20504). A
    clip that does not change, and one of a single latent frame, weighs 1 everywhere.
    """
    if latent.shape[2] < 2:
        return torch.ones_like(latent[:, 0])
    steps = latent.float().diff(dim=2).abs().mean(1)
    change = torch.cat([steps[:, :1], steps], 1)
    mean = change.mean((1, 2, 3), keepdim=True)
    relative = torch.where(mean > 0, change / mean.clamp_min(torch.finfo(mean.dtype).tiny), torch.ones_like(change))
    return (1 + strength * relative) / (1 + strength)


def masked(errors: Tensor, mask: Tensor | None) -> Tensor:
    """W * L: errors [B, f, h, w], mask [B, f, h, w] or None for the plain loss."""
    return errors if mask is None else errors * mask


def masked_mean(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of W * L over frames and places."""
    return masked(errors, mask).mean()
