"""The clip, its conditioning and its loss, against the definition of each."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models import grid_of
from pipeline.models.conditioning import batched
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.models.loss import loss_map, masked_mean
from pipeline.operations.model_checks.subject import CAPTIONS, CheckError, Subject, difference, within


def check_grid(subject: Subject) -> str:
    """Latents have the shape that the configuration promised; motion masks are made for it."""
    expected = grid_of(subject.model.family, *subject.geometry)
    latent, _ = subject.clip()
    if tuple(latent.shape[1:]) != expected.shape or sum(expected.folds) != subject.geometry[0]:
        raise CheckError(f"the latent is {tuple(latent.shape[1:])}, and the configuration says {expected.shape}")
    if latent.shape[0] != subject.model.family.channels:
        raise CheckError(f"the latent has {latent.shape[0]} channels, not {subject.model.family.channels}")
    return f"{subject.geometry} -> {expected.shape}"


def check_captions(subject: Subject) -> str:
    """Two captions condition differently, and a caption the same twice."""
    first, again, other = (subject.model.text(c) for c in (CAPTIONS[0], CAPTIONS[0], CAPTIONS[1]))
    if all(torch.equal(first[name], other[name]) for name in first):
        raise CheckError("two captions condition alike, so that the words are cut off")
    if not all(torch.equal(first[name], again[name]) for name in first):
        raise CheckError("a caption conditions differently the second time")
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in first.items())


@torch.no_grad()
def check_batch(subject: Subject) -> str:
    """A batch of two captions and times gives each clip what it gives alone."""
    latent, first = subject.clip()
    _, second = subject.clip(CAPTIONS[1])
    worst = 0.0
    for timestep in subject.timesteps:
        times = torch.cat([subject.time(timestep), subject.time(timestep - 50)])
        noise = torch.stack([subject.noise(latent), subject.noise(latent, 1)])
        both = loss_map(subject.model, torch.stack([latent, latent]), batched([first, second]), times, noise)
        for n, one in enumerate((first, second)):
            alone = loss_map(subject.model, latent[None], batched([one]), times[n : n + 1], noise[n : n + 1])
            worst = max(worst, difference(both[n], alone[0]))
    return within(worst, subject.exact, "a clip's loss depends on its neighbours in a batch")


@torch.no_grad()
def check_loss(subject: Subject) -> str:
    """Under a mask of ones the loss is the plain one, and that is the mean squared error of the prediction from the
    target, with noise and target written out from the scheduler's definition."""
    latent, conditioning = subject.clip()
    worst = 0.0
    for timestep in subject.timesteps:
        noise, t, batch = subject.noise(latent)[None], subject.time(timestep), batched([conditioning])
        errors = loss_map(subject.model, latent[None], batch, t, noise)
        masked, plain = masked_mean(errors, torch.ones_like(errors)), masked_mean(errors, None)
        if not torch.equal(masked, plain):
            raise CheckError("a mask of ones does not give the plain loss")
        noisy, target = written_out(subject.model, latent[None].double(), noise.double(), timestep)
        predicted = subject.model.predict(noisy.float(), t, batch).double()
        counted = subject.model.counted(latent.shape[1])
        places = slice(None) if counted is None else counted.bool()
        own = (predicted - target).square()[:, :, places].mean()
        worst = max(worst, abs(float(plain - own)) / float(own))
    return within(worst, 10 * subject.exact, "the loss is not the family's own")


def written_out(model: DiffusersModel, latent: Tensor, noise: Tensor, timestep: float) -> tuple[Tensor, Tensor]:
    """Noisy latent and target, from the definition of flow matching or from the scheduler's alphas."""
    if model.schedule.kind == "flow":
        part = timestep / 1000
        return (1 - part) * latent + part * noise, model.schedule.sign * (noise - latent)
    squared = float(model.pipeline.scheduler.alphas_cumprod[int(timestep)])
    alpha, sigma = squared**0.5, (1 - squared) ** 0.5
    noisy = alpha * latent + sigma * noise
    return noisy, noise if model.schedule.prediction == "epsilon" else alpha * noise - sigma * latent
