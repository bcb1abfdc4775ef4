"""The model in use: one small pointer in a root, and the folders of the models that were promoted.

    ROOT/in_use.json               which night's model is in use, and its training's name; absent: the recipe's base
    ROOT/nights/DATE/model/        a copy of what fine-tuning wrote: ROOT/finetuned/ARM gives way to the next selection
    ROOT/nights/DATE/model/promoted.json    written last: the copy is complete; a hash of the weights

The pointer is replaced atomically after the copy is complete, so that whoever follows it finds a whole model, on a disk
and on an object store alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from pipeline.errors import ConfigError, UsageError
from pipeline.models.promoted import PROMOTED, promoted
from pipeline.models.trained_weights import LORA
from pipeline.storage import stores

POINTER = "in_use.json"
BASE = "base"
WEIGHTS = re.compile(r"transformer(_2)?/.*|pytorch_lora_weights(_transformer_2)?\.safetensors")


@dataclass(frozen=True)
class InUse:
    """`night` is None and `folder` empty for the recipe's base. `purged`: how many clips it was trained on that have
    been purged since."""

    night: str | None
    version: str
    folder: str
    purged: int = 0


def in_use(root: str) -> InUse:
    """The model in use. Raises UsageError where the pointer is damaged, ConfigError where its model is gone."""
    path = stores.join(root, POINTER)
    if not stores.exists(path):
        return InUse(None, BASE, "")
    night, version = _pointed(path, stores.read_bytes(path))
    folder = model_folder(root, night)
    return InUse(night, version, folder, len(promoted(folder).get("purged", ())))


def _pointed(path: str, data: bytes) -> tuple[str, str]:
    """The night and the version that a pointer, the file at `path`, names. Raises UsageError."""
    try:
        pointer = json.loads(data)
    except ValueError:
        pointer = None
    named = [pointer.get(key) for key in ("night", "version")] if isinstance(pointer, dict) else []
    texts = [value for value in named if isinstance(value, str) and value]
    if len(texts) != 2:
        raise UsageError(
            f"{path}: this file is damaged, so it is not known which model is in use. Take the last DATE whose "
            'nights/DATE/night.json says "promoted": true and write {"night": "DATE", "version": "VERSION"}, with the '
            f'"version" of nights/DATE/model/{PROMOTED}. Or delete the file: the recipe\'s base is then in use.'
        )
    night, version = texts
    return night, version


def model_folder(root: str, night: str) -> str:
    return stores.join(root, "nights", night, "model")


def put(root: str, night: str, version: str) -> None:
    """Let a night's model, whose copy is complete, be the one in use."""
    pointer = {"night": night, "version": version, "folder": f"nights/{night}/model"}
    stores.write_bytes(stores.join(root, POINTER), json.dumps(pointer).encode())


def keep(root: str, night: str, trained: str, version: str, base: str) -> str:
    """Copy what fine-tuning wrote into a folder that stays; returns it. A copy that was interrupted, or is of another
    training, is made anew: nothing points to it before the night is decided.

    `base` is the hash of the weights that the training started from.
    """
    folder = model_folder(root, night)
    note = stores.join(folder, PROMOTED)
    if stores.exists(note):
        if promoted(folder)["version"] == version:
            return folder
        fs, note_path = stores.place(note)
        fs.rm_file(note_path)  # first, so that half a folder is never taken for a whole one
    stores.remove(folder)
    source, bare = stores.place(trained)
    target, target_folder = stores.place(folder)
    for path in sorted(str(p) for p in source.find(bare)):
        copy = stores.join(target_folder, path.removeprefix(bare.rstrip("/") + "/"))
        target.makedirs(copy.rsplit("/", 1)[0], exist_ok=True)
        target.cp_file(path, copy)
    record = {"version": version, "base": base, "weights": weights_hash(folder)}
    stores.write_bytes(note, json.dumps(record).encode())
    return folder


def weights_hash(folder: str) -> str:
    """A hash of the weights that fine-tuning wrote into a folder: transformer/ or the adapters' file, and of a second
    transformer."""
    fs, bare = stores.place(folder)
    digest = hashlib.blake2b(digest_size=16)
    paths = sorted(str(p) for p in fs.find(bare))
    weights = [path for path in paths if WEIGHTS.fullmatch(path.removeprefix(bare.rstrip("/") + "/"))]
    if not weights:
        raise FileNotFoundError(f"{folder}: it holds neither transformer/ nor {LORA}")
    for path in weights:
        digest.update(path.removeprefix(bare).encode())
        with fs.open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def check_base(root: str, base: str) -> None:
    """Raise ConfigError where the model in use was fine-tuned from other weights than the recipe's."""
    now = in_use(root)
    if now.night is not None and promoted(now.folder)["base"] != base:
        raise ConfigError(
            f"root={root!r}: the model in use ({now.folder}) was fine-tuned from another model than model.id names "
            "now, so the two cannot be compared. Use the old model.id, or another root."
        )
