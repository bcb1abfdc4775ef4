"""Which local places of a configuration are not there: known at once, without opening a file or asking a store.

Whether what is there can be used is for the stages to find, which takes the imports and the time of a listing.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config import Run
from pipeline.config.faults import FaultsError
from pipeline.inputs.folders.file_tree import MAGIC

_WEIGHTS = (".safetensors", ".pth")


def check_places(run: Run) -> None:
    """Raise ConfigError, with a sentence for each, where videos, embeddings, the model or the flow's weights are not
    there."""
    sentences = []
    for key, where in (
        ("data.videos", run.data.videos),
        ("data.embeddings", run.data.embeddings),
        ("queries.videos", run.queries.videos),
        ("queries.embeddings", run.queries.embeddings),
        ("evaluate.videos", run.evaluate.videos),
    ):
        if where is not None and _is_missing(where):
            sentences.append(f"{key}={where!r}: there is no such file or folder. Check the path.")
    name = run.model.id
    if (name.startswith((".", "~")) or Path(name).is_absolute()) and _is_missing(name):
        sentences.append(
            f"model.id={name!r}: there is no such folder. Give that of a diffusers pipeline, or a model id of the hub."
        )
    weights = run.motion.weights
    if weights.endswith(_WEIGHTS) and _is_missing(weights):
        sentences.append(f"motion.weights={weights!r}: there is no such file. Check the path, or leave the key out.")
    if sentences:
        raise FaultsError(sentences)


def _is_missing(where: str) -> bool:
    """Whether a place is local, no pattern, and not there. A place with `::` is a file inside another."""
    if "://" in where or "::" in where or any(sign in where for sign in MAGIC):
        return False
    return not os.path.exists(os.path.expanduser(where))
