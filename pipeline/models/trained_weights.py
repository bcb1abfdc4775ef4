"""What fine-tuning wrote, put into a base model."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from pipeline.errors import ConfigError, first_line
from pipeline.models.contract import VideoModel
from pipeline.models.diffusers_model import LORA
from pipeline.storage import stores

__all__ = ["LORA", "load_weights"]


def load_weights(model: VideoModel, folder: str, merge: bool = False) -> None:
    """Give a base model what `save_weights` wrote, local or s3://. FileNotFoundError if there is nothing.

    `merge` adds adapters to the weights that they adapt, so that the model has the base's parameters and no others.
    Where a model has several transformers, those that were not trained stay the base's.
    """
    with tempfile.TemporaryDirectory() as local:
        stores.fetch_folder(folder, local)
        try:
            read = [part for part, module in model.transformers().items() if _load(model, part, module, local, merge)]
        except (RuntimeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{folder}: what was trained there does not fit model.id={str(model.family.path)!r} "
                f"({first_line(error)}). Give the model that it was trained from."
            ) from error
        if not read:
            raise FileNotFoundError(f"{folder}: it holds neither transformer/ nor {LORA}; run jobs.finetune")


def _load(model: VideoModel, part: str, module: nn.Module, local: str, merge: bool) -> bool:
    if model.read_lora(part, local):
        if merge:
            module.fuse_lora()  # type: ignore[operator]
            module.unload_lora()  # type: ignore[operator]
        return True
    if not Path(local, part).exists():
        return False
    trained = type(module).from_pretrained(f"{local}/{part}", use_safetensors=True)  # type: ignore[attr-defined]
    module.load_state_dict(trained.state_dict())
    return True
