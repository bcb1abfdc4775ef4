"""Gradients, features and what they are counted over, against autograd without hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.attribution.gradients import ProjectedGradients, manifest, restrict, take_clip
from pipeline.config.attribution import Setting
from pipeline.models.conditioning import batched
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.models.loss import loss_map
from pipeline.operations.model_checks.subject import CAPTIONS, CheckError, Subject, difference, within
from pipeline.projection import Projection

DIM = 8  # of the projection


def check_gradients(subject: Subject) -> str:
    """A parameter counts if and only if it gets a gradient at some of the times: what is named idle gets none."""
    model = subject.model
    reached = set[str]()
    with counting(model, idle=False):
        for timestep in subject.timesteps:
            for name, gradient in whole_gradient(subject, timestep).items():
                if not bool(torch.isfinite(gradient).all()):
                    raise CheckError(f"the gradient of {name} is not finite at t = {timestep:g}")
                if bool(gradient.any()):
                    reached.add(name)
    with counting(model):
        counted = {name for name, p in model.trained.named_parameters() if p.requires_grad}
    for what, names in (("count and get no", counted - reached), ("are named idle and get a", reached - counted)):
        if names:
            raise CheckError(f"{len(names)} parameters {what} gradient: {', '.join(sorted(names)[:5])} ...")
    return f"{len(counted)} parameters count, {len(list(model.trained.parameters())) - len(counted)} are idle"


@contextmanager
def counting(model: DiffusersModel, idle: bool = True) -> Iterator[None]:
    """Gradients of every parameter; `idle`: but of those that no loss reaches."""
    restrict(model.trained, ".*", model.family.idle if idle else None)
    try:
        yield
    finally:
        model.trained.zero_grad(set_to_none=True)


def whole_gradient(subject: Subject, timestep: float) -> dict[str, Tensor]:
    """By autograd alone, of the parameters that are reached."""
    model, (latent, conditioning) = subject.model, subject.clip(CAPTIONS[1])
    noise = subject.noise(latent)[None]
    loss = loss_map(model, latent[None], batched([conditioning]), subject.time(timestep), noise).mean()
    named = {name: p for name, p in model.trained.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, gradients, strict=True) if g is not None}


def check_checkpointing(subject: Subject) -> str:
    """Computing blocks again in backward changes no gradient."""
    worst, timestep = 0.0, subject.timesteps[0]
    modules = list(subject.model.transformers().values())
    before = subject.model.checkpointing
    results = []
    with counting(subject.model):
        for checkpointing in (False, True):
            for module in modules:
                switch(module, checkpointing)
            results.append(whole_gradient(subject, timestep))
    for module in modules:
        switch(module, before)
    for name, gradient in results[0].items():
        worst = max(worst, difference(results[1][name], gradient))
    return within(worst, subject.exact, "gradient checkpointing changes gradients")


def switch(module: Any, checkpointing: bool) -> None:
    module.enable_gradient_checkpointing() if checkpointing else module.disable_gradient_checkpointing()


def check_features(subject: Subject) -> str:
    """Features, streamed out of backward, are the projection of autograd's gradient."""
    model, projection, worst = subject.model, Projection("gaussian", DIM, 3), 0.0
    with counting(model):
        gradients = ProjectedGradients(model.trained, projection)
        latent, conditioning = subject.clip(CAPTIONS[1])
        settings = [Setting(timestep=t, mask="none") for t in subject.timesteps]
        take_clip(gradients, model, settings, latent, conditioning, None, 0)
        features, _ = gradients.collect()
        gradients.close()
        for feature, timestep in zip(features, subject.timesteps, strict=True):
            whole = whole_gradient(subject, timestep)
            own = torch.zeros(1, DIM)
            for placed in manifest(model.trained):
                if placed.name in whole:
                    own += projection(whole[placed.name].detach().float().reshape(1, -1), placed.offset).cpu()
            worst = max(worst, difference(feature, own[0]))
    return within(worst, max(1e-4, subject.exact), "features are not the projection of the gradient")


def check_skeleton(subject: Subject) -> str:
    """Names and shapes that the driver counts with are those of the loaded model."""
    own = [(name, tuple(p.shape)) for name, p in subject.model.trained.named_parameters()]
    skeleton = subject.model.family.skeleton()
    if [(name, tuple(p.shape)) for name, p in skeleton.named_parameters()] != own:
        raise CheckError("the configuration promises other parameters than the weights have")
    numbers = sum(p.numel() for p in skeleton.parameters())
    return f"{len(own)} tensors, {numbers:,} numbers"


def check_blocks(subject: Subject) -> str:
    """Blocks are told for sharding and for layers."""
    counts = {}
    for part, module in subject.model.transformers().items():
        blocks = subject.model.blocks(module)
        if not blocks:
            raise CheckError(f"{part} has no list of blocks, so that it cannot be sharded")
        inside = sum(p.numel() for block in blocks for p in block.parameters())
        counts[part] = f"{len(blocks)} blocks with {inside / sum(p.numel() for p in module.parameters()):.0%}"
    return ", ".join(f"{part}: {count}" for part, count in counts.items())
