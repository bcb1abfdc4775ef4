"""A model that has learnt nothing: a control of whatever is read off a trained one."""

from __future__ import annotations

import copy

import torch

from pipeline.models import VideoModel


def with_random_weights(model: VideoModel) -> VideoModel:
    """The model with random weights of the same mean and spread in place of the trained ones, the same at every call;
    the model itself stays as it is. For families of one expert."""
    blank = copy.copy(model)
    blank.trained = copy.deepcopy(model.trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in blank.trained.parameters():
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
            parameter.copy_(parameter.mean() + spread * torch.randn(parameter.shape, generator=generator))
    return blank
