"""Noise levels, targets and training times of a diffusion model, in closed form from its scheduler's configuration.

A scheduler object is never asked: its methods depend on the steps that were last set on it (`add_noise` of UniPC mixes
in 0.052 or 0.940 of the clip at t = 751 where flow matching has 0.249), or take no time that is not among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.errors import ConfigError

STEPS = 1000
END = (0.0, float(STEPS))


@dataclass(frozen=True)
class Betas:
    """The variance schedule of a "vp" model, as diffusers' schedulers are configured."""

    start: float
    end: float
    kind: Literal["scaled_linear", "linear"]
    snr_shift: float = 1.0
    zero_snr: bool = False

    def cumulated(self) -> Tensor:
        """alpha^2 of every index, [1000] float64."""
        if self.kind == "scaled_linear":
            betas = torch.linspace(self.start**0.5, self.end**0.5, STEPS, dtype=torch.float64) ** 2
        else:
            betas = torch.linspace(self.start, self.end, STEPS, dtype=torch.float64)
        bar = torch.cumprod(1 - betas, 0)
        bar = bar / (self.snr_shift + (1 - self.snr_shift) * bar)
        if (
            self.zero_snr
        ):  # Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", algorithm 1
            root = bar.sqrt()
            first, last = float(root[0]), float(root[-1])
            bar = ((root - last) * first / (first - last)).square()
        return bar


@dataclass(frozen=True)
class DynamicShift:
    """A shift e^mu, mu linear in the number of latent cells."""

    base_cells: int
    max_cells: int
    base_mu: float
    max_mu: float

    def at(self, cells: int) -> float:
        slope = (self.max_mu - self.base_mu) / (self.max_cells - self.base_cells)
        return math.exp(self.base_mu + slope * (cells - self.base_cells))


@dataclass(frozen=True)
class Schedule:
    """x_t = alpha x_0 + sigma eps on a scale of 1000 times, and what the model is trained to predict.

    "flow": sigma = t / 1000, alpha = 1 - sigma, and the target is eps - x_0, or its negative with `sign` -1. "vp": t is
    an index of `betas`, sigma^2 = 1 - alpha^2, and the target is v = alpha eps - sigma x_0 (Salimans & Ho 2022) or eps.
    """

    kind: Literal["flow", "vp"] = "flow"
    prediction: Literal["velocity", "v_prediction", "epsilon"] = "velocity"
    sign: Literal[1, -1] = 1
    shift: float | DynamicShift = 1.0
    betas: Betas | None = None

    def record(self) -> dict[str, Any]:
        """As fingerprints have it."""
        return asdict(self)

    def check(self, timestep: float, key: str) -> None:
        """Raise ConfigError for a time that the model was never trained at."""
        if self.kind == "vp" and timestep != int(timestep):
            raise ConfigError(
                f"{key}={timestep:g}: the times of this model are indices of its schedule, so they are whole numbers; "
                f"use {int(timestep)} or {int(timestep) + 1}."
            )

    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of timesteps [B], [B, 1, 1, 1, 1] float32. ValueError for a fraction of an index."""
        if self.betas is None:
            sigma = (timestep / STEPS).view(-1, 1, 1, 1, 1)
            return 1 - sigma, sigma
        if bool((timestep != timestep.round()).any()):
            raise ValueError(f"times of a {self.kind} model are whole numbers, not {timestep.tolist()}")
        bar = self.betas.cumulated().to(timestep.device)[timestep.long()].view(-1, 1, 1, 1, 1)
        return bar.sqrt().float(), (1 - bar).sqrt().float()

    def noised(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The transformer's input at timesteps [B]: [B, C, f, h, w]."""
        alpha, sigma = self.coefficients(timestep)
        return alpha * latent + sigma * noise

    def target(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the prediction is compared with, [B, C, f, h, w]."""
        if self.kind == "flow":
            return noise - latent if self.sign == 1 else latent - noise
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self.coefficients(timestep)
        return alpha * noise - sigma * latent

    def times(self, uniform: Tensor, cells: int | None = None, within: tuple[float, float] = END) -> Tensor:
        """Uniform numbers in [0, 1) -> timesteps as the model is trained on, inside an interval.

        `cells` is the number of latent cells f h w, which a dynamic shift depends on.
        """
        if within != END:
            first, last = (self.quantile(t, cells) for t in within)
            uniform = first + (last - first) * uniform
        if self.kind == "vp":
            return _inside(STEPS * uniform, within).floor().clamp(max=STEPS - 1)
        shift = self.shift_at(cells)
        return _inside(STEPS * shift * uniform / (1 + (shift - 1) * uniform), within)

    def shift_at(self, cells: int | None = None) -> float:
        """The shift of a clip of so many latent cells. ValueError where a dynamic one is not told them."""
        if not isinstance(self.shift, DynamicShift):
            return self.shift
        if cells is None:
            raise ValueError("this model's shift depends on the number of latent cells, which is not given")
        return self.shift.at(cells)

    def quantile(self, timestep: float, cells: int | None = None) -> float:
        """The share of training times below a timestep: the inverse of `times`."""
        part = timestep / STEPS
        if self.kind == "vp":
            return part
        shift = self.shift_at(cells)
        return part / (shift - (shift - 1) * part)

    def level(self, timestep: float) -> float:
        """sigma / (alpha + sigma), in [0, 1]: the share of noise, comparable over families."""
        alpha, sigma = (float(c) for c in self.coefficients(torch.tensor([timestep])))
        return sigma / (alpha + sigma)


def _inside(timesteps: Tensor, interval: tuple[float, float]) -> Tensor:
    """Timesteps of an interval [first, last) that rounding may have put outside it, where another expert is asked."""
    if interval == END:
        return timesteps
    first, last = timesteps.new_tensor(interval)
    return timesteps.clamp(first, torch.nextafter(last, first))


def of_scheduler(config: Mapping[str, Any], source: str, sign: Literal[1, -1] = 1) -> Schedule:
    """The schedule that a scheduler's configuration describes. Raises ConfigError naming `source` and the key."""
    name = str(config.get("_class_name"))
    steps = config.get("num_train_timesteps", STEPS)
    if steps != STEPS:
        raise ConfigError(f"{source}: num_train_timesteps={steps}; this version knows schedules of {STEPS} alone.")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return Schedule("flow", "velocity", sign, _shift(config, source))
    if name in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):
        return _with_betas(config, source)
    raise ConfigError(
        f"{source}: a {name} with prediction_type={config.get('prediction_type')!r} is none of the schedules that this "
        "version knows in closed form: flow matching (FlowMatch..., or use_flow_sigmas) and CogVideoX's."
    )


def _shift(config: Mapping[str, Any], source: str) -> float | DynamicShift:
    if config.get("use_dynamic_shifting"):
        if config.get("time_shift_type", "exponential") != "exponential":
            raise ConfigError(f"{source}: time_shift_type={config['time_shift_type']!r}; only exponential is known.")
        keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        base_cells, max_cells, base_mu, max_mu = (_number(config, key, source) for key in keys)
        return DynamicShift(int(base_cells), int(max_cells), base_mu, max_mu)
    return _number(config, "flow_shift" if "flow_shift" in config else "shift", source)


def _with_betas(config: Mapping[str, Any], source: str) -> Schedule:
    kind, prediction = config.get("beta_schedule"), config.get("prediction_type")
    if kind not in ("scaled_linear", "linear") or config.get("trained_betas") is not None:
        raise ConfigError(f"{source}: beta_schedule={kind!r} with trained_betas is not known; scaled_linear is.")
    if prediction not in ("v_prediction", "epsilon"):
        raise ConfigError(f"{source}: prediction_type={prediction!r}; v_prediction and epsilon are known.")
    start, end, snr = (_number(config, key, source) for key in ("beta_start", "beta_end", "snr_shift_scale"))
    return Schedule(
        "vp", prediction, betas=Betas(start, end, kind, snr, bool(config.get("rescale_betas_zero_snr", False)))
    )


def _number(config: Mapping[str, Any], key: str, source: str) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{source}: {key} is {value!r}, not a number, so the model's training times are not known.")
    return float(value)
