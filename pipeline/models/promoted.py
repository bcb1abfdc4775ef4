"""What is known of a promoted model, whose folder attribution may be over."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage import stores

PROMOTED = "promoted.json"


def promoted(folder: str) -> dict[str, Any]:
    """What is known of a promoted model: `version`, `base`, `weights`, and `purged` where clips of its were purged.

    Raises ConfigError where the folder is no promoted model.
    """
    path = stores.join(folder, PROMOTED)
    if not stores.exists(path):
        raise ConfigError(
            f"attribution.weights={folder!r}: there is no promoted model there (no {PROMOTED}). Name a folder "
            "ROOT/nights/DATE/model that jobs.nightly has kept, or null for the model as it is."
        )
    record: dict[str, Any] = json.loads(stores.read_bytes(path))
    return record
