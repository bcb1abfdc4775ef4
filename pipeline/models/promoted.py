"""What is known of a promoted model, whose folder attribution may be over."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage import stores

PROMOTED = "promoted.json"
KEYS = ("version", "base", "weights")


def promoted(folder: str) -> dict[str, Any]:
    """What is known of a promoted model: `version`, `base`, `weights`, and `purged` where clips of its were purged.

    Raises ConfigError where the folder is no promoted model, or its record is damaged.
    """
    path = stores.join(folder, PROMOTED)
    if not stores.exists(path):
        raise ConfigError(
            f"attribution.weights={folder!r}: there is no promoted model there (no {PROMOTED}). Name a folder "
            "ROOT/nights/DATE/model that jobs.nightly has kept, or null for the model as it is."
        )
    try:
        record: Any = json.loads(stores.read_bytes(path))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in KEYS):
        raise ConfigError(
            f"{path}: this file is damaged, so it is not known what model lies there. Name the folder of another night "
            "(attribution.weights), or null for the model as it is."
        )
    return record
