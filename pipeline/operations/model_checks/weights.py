"""What training writes and what the model generates, against diffusers' own loaders."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Finetune
from pipeline.models.conditioning import batched
from pipeline.models.loss import own_noise
from pipeline.operations.model_checks.subject import CAPTIONS, CheckError, Subject, difference, within
from pipeline.training import loop


def check_lora(subject: Subject) -> str:
    """Adapters that training writes, loaded by diffusers' own classes, give the same prediction as in training."""
    model, before = subject.model, predictions(subject)
    config = Finetune(lora_rank=2, steps=1)
    training = loop.begin(model, config, 0)
    with torch.no_grad():
        for n, parameter in enumerate(training.parameters.values()):
            parameter.add_(0.5 * own_noise("lora", n, tuple(parameter.shape)).to(parameter))
    model.trained.eval()
    after = predictions(subject)
    with tempfile.TemporaryDirectory() as folder:
        loop.save_weights(training, folder)
        for module in model.transformers().values():
            module.unload_lora()  # type: ignore[operator]
        plain = predictions(subject)
        model.read_lora_as_pipeline(folder)
        loaded = predictions(subject)
        for module in model.transformers().values():
            module.unload_lora()  # type: ignore[operator]
    if difference(after, before) < 1e-4:
        raise CheckError("adapters change nothing, so that their targets are not where the model attends")
    if difference(plain, before) > subject.exact:
        raise CheckError("the base is another one after its adapters were taken off")
    count = len(training.parameters)
    return f"{count} tensors; " + within(
        difference(loaded, after), 10 * subject.exact, "diffusers loads other adapters than were trained"
    )


def check_full(subject: Subject) -> str:
    """Weights that training writes are what diffusers' from_pretrained loads."""
    model, parts = subject.model, []
    dtypes = {name: p.dtype for name, p in model.trained.named_parameters()}
    training = loop.begin(model, Finetune(steps=1), 0)
    model.trained.eval()
    with tempfile.TemporaryDirectory() as folder:
        loop.save_weights(training, folder)
        for part, module in model.transformers().items():
            loaded = type(module).from_pretrained(Path(folder, part), use_safetensors=True).state_dict()  # type: ignore[attr-defined]
            own = module.state_dict()
            if set(own) != set(loaded) or not all(torch.equal(own[n].float(), loaded[n].float()) for n in own):
                raise CheckError(f"{part}: diffusers loads other weights than were trained")
            parts.append(part)
    for name, parameter in model.trained.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])  # training made float32 of them
    model.trained.requires_grad_(True)
    return ", ".join(parts)


@torch.no_grad()
def predictions(subject: Subject) -> Tensor:
    latent, conditioning = subject.clip()
    conditionings = batched([conditioning])
    outputs = []
    for timestep in subject.timesteps:
        t = subject.time(timestep)
        noisy = subject.model.schedule.noised(latent[None], subject.noise(latent)[None], t)
        outputs.append(subject.model.predict(noisy, t, conditionings).float())
    return torch.stack(outputs)


def check_generation(subject: Subject) -> str:
    """A generated video has the shape that was asked for, and the seed decides it."""
    image = subject.frames[0] if subject.model.family.image else None
    make = partial(
        subject.model.generate, CAPTIONS[0], subject.geometry, subject.fps, steps=2, guidance=2.0, image=image
    )
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    if first.shape != (*subject.geometry, 3) or first.dtype != np.uint8:
        raise CheckError(f"a video has the shape {first.shape}, and {(*subject.geometry, 3)} was asked for")
    if not np.array_equal(first, again) or np.array_equal(first, other):
        raise CheckError("the seed does not decide the video")
    return f"{first.shape}"
