"""A text file that a key of the configuration names."""

from __future__ import annotations

from pipeline.config.texts import decode_text
from pipeline.errors import ConfigError, InputError, StoreError
from pipeline.storage import stores


def read_text(key: str, path: str) -> str:
    """Its text. Raises ConfigError where it is not there, InputError where it cannot be read."""
    if not stores.exists(path):
        raise ConfigError(f"{key}={path!r}: there is no such file.")
    try:
        return decode_text(stores.read_bytes(path))
    except StoreError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{key}={path!r}: it cannot be read: {error}.") from error
