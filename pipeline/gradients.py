"""Loss -> projected gradient, parameter by parameter: the full gradient need not exist."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config import ConfigError, Setting
from pipeline.diffusion import loss_map, masked_mean, shared_noise
from pipeline.models import VideoModel
from pipeline.projection import Projection


@dataclass(frozen=True)
class Placed:
    """A parameter and the global coordinate of its first entry."""

    name: str
    shape: tuple[int, ...]
    offset: int


def manifest(module: nn.Module) -> list[Placed]:
    """All parameters of a module, in the order of their names in it, at consecutive global coordinates."""
    placed, offset = [], 0
    for name, parameter in module.named_parameters():
        placed.append(Placed(name, tuple(parameter.shape), offset))
        offset += parameter.numel()
    return placed


def manifest_hash(placed: Sequence[Placed]) -> str:
    return hashlib.blake2b(repr([(p.name, p.shape, p.offset) for p in placed]).encode(), digest_size=8).hexdigest()


def restrict(module: nn.Module, pattern: str) -> int:
    """Let only the parameters count whose name the pattern finds; the others' gradients are not computed at all.

    Returns how many numbers count. Raises ConfigError if the pattern finds none.
    """
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(re.search(pattern, name) is not None)
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if not count:
        some = ", ".join(name for name, _ in list(module.named_parameters())[:5])
        raise ConfigError(
            f"attribution.parameters={pattern!r} finds none of the transformer's parameters; they are called {some} ..."
        )
    return count


class ProjectedGradients:
    """Takes losses one at a time and gives P g and |g| of each.

    With ``hold=1`` every parameter's gradient is projected when backward has produced it and freed at once. With more,
    the gradients of that many losses are kept and share one generation of P; on the CPU both give the same bits.
    A loss's gradient is never mixed with another's. Parameters that get no gradient count as zeros.
    """

    def __init__(self, module: nn.Module, projection: Projection, hold: int = 1) -> None:
        self.projection, self.hold = projection, hold
        places = {p.name: p.offset for p in manifest(module)}
        self._offsets = {p: places[name] for name, p in module.named_parameters() if p.requires_grad}
        self._held: dict[nn.Parameter, Tensor] = {}
        self._row = 0
        self._features: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._offsets]

    def _arrived(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        if gradient is None:
            return
        flat = gradient.detach().reshape(-1)
        self._squares[-1] += flat.double().square().sum().cpu()
        if self.hold == 1:
            self._features[-1] += self.projection(flat, self._offsets[parameter]).cpu()  # type: ignore[index]
            return
        if parameter not in self._held:
            self._held[parameter] = flat.new_zeros((self.hold, flat.numel()))  # type: ignore[index]
        self._held[parameter][self._row] += flat  # type: ignore[index]

    def take(self, loss: Tensor, keep_graph: bool = False) -> None:
        """Backward one loss; with `keep_graph` another loss of the same forward pass may follow."""
        self._features.append(torch.zeros(self.projection.dim))
        self._squares.append(torch.zeros((), dtype=torch.float64))
        loss.backward(retain_graph=keep_graph)
        self._row += 1
        if self.hold > 1 and self._row == self.hold:
            self._project_held()

    def _project_held(self) -> None:
        first = len(self._features) - self._row
        for parameter, rows in self._held.items():
            shares = self.projection(rows[: self._row], self._offsets[parameter]).cpu()
            for i, share in enumerate(shares):
                self._features[first + i] += share
            rows.zero_()
        self._row = 0

    def collect(self) -> tuple[Tensor, Tensor]:
        """Features [taken, dim] and gradient norms [taken], float32, of all losses since the last call."""
        if self.hold > 1 and self._row:
            self._project_held()
        self._row = 0
        features, squares = torch.stack(self._features), torch.stack(self._squares)
        self._features, self._squares = [], []
        return features, squares.sqrt().float()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def passes(settings: Sequence[Setting]) -> list[tuple[float, int, list[int]]]:
    """The forward passes that settings need: timestep, noise, and which settings share that pass."""
    found: dict[tuple[float, int], list[int]] = {}
    for i, setting in enumerate(settings):
        found.setdefault((setting.timestep, setting.noise), []).append(i)
    return [(timestep, noise, members) for (timestep, noise), members in found.items()]


def take_clip(
    gradients: ProjectedGradients,
    model: VideoModel,
    settings: Sequence[Setting],
    latent: Tensor,
    text: Tensor,
    mask: Tensor | None,
    seed: int,
) -> dict[int, float]:
    """Take a clip's losses: latent [C, f, h, w], text [1, tokens, width], mask [f, h, w] or None for a still clip.

    Returns each setting's loss by its index, in the order taken; settings under the motion mask are left out where
    there is no mask.
    """
    losses: dict[int, float] = {}
    for timestep, noise_index, members in passes(settings):
        taken = [i for i in members if settings[i].mask == "none" or mask is not None]
        if not taken:
            continue
        noise = shared_noise(seed, noise_index, tuple(latent.shape)).to(latent.device)  # type: ignore[arg-type]
        t = torch.full((1,), timestep, device=latent.device)
        errors = loss_map(model, latent[None], text, t, noise[None])
        for i in taken:
            loss = masked_mean(errors, mask[None] if settings[i].mask == "motion" and mask is not None else None)
            losses[i] = float(loss.detach())
            gradients.take(loss, keep_graph=i != taken[-1])
    return losses
