"""The resolved configuration of a run, ``ROOT/config.yaml``."""

from __future__ import annotations

import importlib.metadata
import platform

import yaml

from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.storage import stores

PACKAGES = ("torch", "torchvision", "ray", "diffusers", "transformers", "peft", "accelerate", "numpy", "pyarrow", "av")


def record(run: Run) -> None:
    """Write the resolved configuration, with the versions it runs under, beside the tables."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    content = {**run.model_dump(mode="json"), "versions": {"python": platform.python_version(), **versions}}
    try:
        stores.write_bytes(stores.join(run.root, "config.yaml"), yaml.safe_dump(content, sort_keys=False).encode())
    except OSError as error:
        raise ConfigError(
            f"root={run.root!r}: nothing can be written there ({error}). Mend that, or choose another root."
        ) from error
