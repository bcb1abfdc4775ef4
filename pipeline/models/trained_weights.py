"""What fine-tuning wrote, put into a base model."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.models import VideoModel
from pipeline.storage import stores

LORA = "pytorch_lora_weights.safetensors"


def load_weights(model: VideoModel, folder: str, merge: bool = False) -> None:
    """Give a base model what `save_weights` wrote, local or s3://. FileNotFoundError if there is nothing.

    `merge` adds adapters to the weights that they adapt, so that the model has the base's parameters and no others.
    """
    with tempfile.TemporaryDirectory() as local:
        stores.fetch_folder(folder, local)
        if Path(local, LORA).exists():
            model.transformer.load_lora_adapter(local, prefix="transformer", weight_name=LORA)  # type: ignore[operator]
            if merge:
                model.transformer.fuse_lora()  # type: ignore[operator]
                model.transformer.unload_lora()  # type: ignore[operator]
        elif Path(local, "transformer").exists():
            trained = type(model.transformer).from_pretrained(f"{local}/transformer", use_safetensors=True)  # type: ignore[attr-defined]
            model.transformer.load_state_dict(trained.state_dict())
        else:
            raise FileNotFoundError(f"{folder}: it holds neither transformer/ nor {LORA}; run jobs.finetune")
