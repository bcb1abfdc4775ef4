"""What most families of diffusers have in common, from the configuration files of a pipeline's folder alone.

An adapter is a file with two classes: a `DiffusersFamily` with what the files mean, and a `DiffusersModel`
(diffusers_model.py) with what the transformer takes. Importing one costs nothing: diffusers is imported where a model
is built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from math import lcm
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError, first_line
from pipeline.models.contract import Expert, VideoModel
from pipeline.models.device import DTYPES
from pipeline.models.folders import read_config
from pipeline.models.schedule import END, Schedule, of_scheduler

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"


class DiffusersFamily(ABC):
    """A folder of a diffusers pipeline. Raises ConfigError, when it is made, for relatives that would be computed
    wrongly."""

    title: ClassVar[str]
    transformer_class: ClassVar[str]
    vae_class: ClassVar[str]
    components: ClassVar[tuple[str, ...]]  # folders that a feature depends on, the scheduler's left out
    optional: ClassVar[tuple[str, ...]] = ()  # components that may be there and that no feature depends on
    sign: ClassVar[Literal[1, -1]] = 1
    image: ClassVar[bool] = False
    varying: ClassVar[bool] = False
    clip_by_clip: ClassVar[bool] = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = read_config(path / INDEX)
        self._configs: dict[str, dict[str, Any]] = {}
        self.transformer_config, self.vae_config = self.config("transformer"), self.config("vae")
        self.check_folder()
        self.check_dropout()

    @property
    def name(self) -> str:
        return self.title

    @property
    def pipeline_class(self) -> str:
        return str(self.index["_class_name"])

    # --- what is refused ----------------------------------------------------------------------------------------------

    def unsupported(self, what: str, remedy: str = "") -> ConfigError:
        return ConfigError(
            f"model.id={str(self.path)!r}: it is {what}. The adapter of {self.title} would compute features of it "
            f"wrongly. {remedy or 'docs/models.md lists the families that this version knows.'}"
        )

    def check_folder(self) -> None:
        """Raise ConfigError for parts and classes that the adapter does not know."""
        named = [key for key, value in self.index.items() if isinstance(value, list) and any(value)]
        expected = {*self.components, *self.optional, "scheduler"}
        others = [key for key in named if key not in expected]
        others += [
            key for key in ("transformer_2", "text_encoder_2") if key not in expected | {*others} and self.has(key)
        ]
        if others:
            raise self.unsupported(f"a pipeline with {', '.join(others)}, which {self.title} does not have")
        kinds = {"vae": self.vae_class, **{e.part: self.transformer_class for e in self.experts}}
        for part, kind in kinds.items():
            class_name = self.config(part).get("_class_name", kind)
            if class_name != kind:
                raise self.unsupported(f"a pipeline whose {part} is a {class_name}, not a {kind}")

    def check_dropout(self) -> None:
        """Raise ConfigError for dropout: training would draw it from numbers that belong to no name."""
        for expert in self.experts:
            for key, value in self.config(expert.part).items():
                if "dropout" in key and isinstance(value, int | float) and value > 0:
                    raise ConfigError(
                        f"{self.path / expert.part / 'config.json'}: {key}={value}; a training with dropout depends on "
                        f"the machine and the order of work. Set {key} to 0 in a copy of the folder."
                    )

    def has(self, part: str) -> bool:
        return (self.path / part).is_dir()

    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration, read once."""
        if part not in self._configs:
            self._configs[part] = read_config(self.path / part / "config.json")
        return self._configs[part]

    def number(self, part: str, key: str) -> int:
        """A whole number of a part's configuration. Raises ConfigError where it is missing: nothing is assumed."""
        return whole_number(self.config(part), key, f"{self.path / part / 'config.json'}")

    def real(self, part: str, key: str) -> float:
        value = self.config(part).get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{self.path / part / 'config.json'}: {key} is {value!r}, not a number.")
        return float(value)

    def flags(self, part: str, key: str) -> int:
        """How many of a list of flags are set. Raises ConfigError where there is no such list."""
        values: Any = self.config(part).get(key)
        self.length(part, values)
        return sum(bool(value) for value in values)

    def length(self, part: str, values: Any) -> int:
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(
                f"{self.path / part / 'config.json'}: it has no list of the levels that tell the model's stride, but "
                f"{values!r}. Give the folder of a complete diffusers pipeline of {self.title}."
            )
        return len(values)

    # --- geometry -----------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def strides(self) -> tuple[int, int]: ...

    @property
    def channels(self) -> int:
        return self.number("vae", "z_dim" if "z_dim" in self.vae_config else "latent_channels")

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns to a token. Raises ConfigError."""
        sizes = self.transformer_config.get("patch_size")
        if not isinstance(sizes, list) or len(sizes) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
            raise ConfigError(
                f"{self.path / 'transformer' / 'config.json'}: patch_size is {sizes!r}, not three whole numbers. Give "
                f"the folder of a complete diffusers pipeline of {self.title}."
            )
        return sizes[0], sizes[1], sizes[2]

    @property
    def sides(self) -> tuple[int, int]:
        _, stride = self.strides
        _, rows, columns = self.patch
        return stride * rows, stride * columns

    @property
    def generates(self) -> int:
        return lcm(*self.sides)

    @property
    def frame_step(self) -> int:
        """Frames come as this times n, and one."""
        return self.strides[0]

    def folds(self, frames: int) -> tuple[int, ...]:
        stride, step = self.strides[0], self.frame_step
        if (frames - 1) % step or frames < 1:
            below = max(0, (frames - 1) // step) * step + 1
            raise ConfigError(
                f"the model's autoencoder folds {stride} frames into one after the first, so frames must be {step} n + "
                f"1; use {below} or {below + step}."
            )
        return (1, *[stride] * ((frames - 1) // stride))

    # --- times and parameters -----------------------------------------------------------------------------------------

    @cached_property
    def schedule(self) -> Schedule:
        file = self.path / SCHEDULER
        return of_scheduler(read_config(file), str(file), self.sign)

    @property
    def experts(self) -> tuple[Expert, ...]:
        return (Expert("transformer", "transformer", *END),)

    @property
    def idle(self) -> str | None:
        return None

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.components, SCHEDULER, INDEX)

    def check(self, config: VideoModelConfig) -> None:
        """Every key of `model` is possible."""
        return

    def check_tokens(self, config: VideoModelConfig, exactly: int) -> None:
        if config.text_tokens != exactly:
            raise ConfigError(
                f"model.text_tokens={config.text_tokens}: {self.title} takes exactly {exactly}; set "
                f"model.text_tokens={exactly}."
            )

    def record(self, config: VideoModelConfig) -> dict[str, Any]:
        return {"model.family": self.title, "model.schedule": self.schedule.record()}

    def skeleton(self) -> nn.Module:
        diffusers = import_module("diffusers")  # 0.3 GiB, which a driver that only lists videos does not need
        kind = getattr(diffusers, self.transformer_class)
        modules = {}
        with torch.device("meta"):
            for expert in self.experts:
                modules[expert.part] = kind.from_config(kind.load_config(self.path, subfolder=expert.part))
        return modules["transformer"] if len(modules) == 1 else nn.ModuleDict(modules)

    # --- loading ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel: ...

    def load(self, config: VideoModelConfig, **components: Any) -> Any:
        """diffusers' pipeline of the folder, on the CPU, in the dtypes of `config`. Raises ConfigError."""
        diffusers = import_module("diffusers")
        try:
            vae = getattr(diffusers, self.vae_class).from_pretrained(
                self.path, subfolder="vae", dtype=DTYPES[config.vae_dtype], use_safetensors=True
            )
            return getattr(diffusers, self.pipeline_class).from_pretrained(
                self.path, vae=vae, dtype=DTYPES[config.dtype], use_safetensors=True, **components
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"model.id={config.id!r}: no pipeline of {self.title} could be opened there "
                f"({first_line(error)}). Give the folder of a complete diffusers pipeline."
            ) from error


def whole_number(config: Mapping[str, Any], key: str, source: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"{source}: {key} is {value!r}, not a whole number. Give the folder of a complete diffusers pipeline."
        )
    return value
