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

JOINED = 1 << 20  # numbers of small parameters that are projected together


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


@dataclass(eq=False)
class Stretch:
    """Counted parameters at consecutive coordinates that are projected together: one large one, or several small."""

    offset: int
    size: int
    members: dict[nn.Parameter, int]  # where each begins in the stretch


def stretches(module: nn.Module) -> list[Stretch]:
    """The parameters that require a gradient, neighbours of one type joined as long as they are small."""
    parameters, found, last = dict(module.named_parameters()), list[Stretch](), None
    for placed in manifest(module):
        parameter = parameters[placed.name]
        if not parameter.requires_grad:
            continue
        size, end = parameter.numel(), found[-1].offset + found[-1].size if found else -1
        if found and last == parameter.dtype and end == placed.offset and found[-1].size + size <= JOINED:
            found[-1].members[parameter] = found[-1].size
            found[-1].size += size
        else:
            found.append(Stretch(placed.offset, size, {parameter: 0}))
        last = parameter.dtype
    return found


class ProjectedGradients:
    """Takes losses one at a time and gives P g and |g| of each.

    Streamed (``hold=1``): a parameter's gradient is projected when backward has produced it and freed at once (small
    ones wait for their neighbours, up to a million numbers together), so that above a bare forward and backward there
    is about one parameter's gradient in memory, and a sum of `Projection.zeros` for every loss since the last
    `collect`. With ``hold=n``, for dense kinds, the gradients of n losses are kept, in their own type, and share one
    generation of P; on the CPU both give the same bits. The last stage of the sketch and of Fastfood is done once for
    all losses that are collected together. A loss's gradient is never mixed with another's. Parameters that get no
    gradient count as zeros.
    """

    def __init__(self, module: nn.Module, projection: Projection, hold: int = 1) -> None:
        if hold > 1 and not projection.dense:
            raise ValueError(f"hold={hold}: {projection.kind} has no generation to share; it is streamed, with hold=1")
        self.projection, self.hold = projection, hold
        self._stretches = {parameter: s for s in stretches(module) for parameter in s.members}
        self._device = next(iter(self._stretches)).device
        self._held: dict[Stretch, Tensor] = {}
        self._waiting: dict[Stretch, int] = {}
        self._row = 0
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._stretches]

    def _arrived(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        if gradient is None:
            return
        stretch = self._stretches[parameter]  # type: ignore[index]
        flat = gradient.detach().reshape(-1)
        if self.hold == 1 and len(stretch.members) == 1:
            self._project(stretch, flat[None])
            return
        if stretch not in self._held:
            self._held[stretch] = flat.new_zeros((self.hold, stretch.size))
        start = stretch.members[parameter]  # type: ignore[index]
        self._held[stretch][self._row, start : start + len(flat)] += flat
        self._waiting[stretch] = self._waiting.get(stretch, len(stretch.members)) - 1
        if self.hold == 1 and not self._waiting[stretch]:
            del self._waiting[stretch]
            self._project(stretch, self._held.pop(stretch))

    def _project(self, stretch: Stretch, rows: Tensor) -> None:
        """Add the shares of the last losses' gradients in this stretch: [losses, size]."""
        first = len(self._sums) - len(rows)
        shares = self._sums[first] if len(rows) == 1 else self.projection.zeros(len(rows), self._device)
        self.projection.add(shares, rows, stretch.offset)
        for i, row in enumerate(rows):
            self._squares[first + i] += squared_norm(row)
            if len(rows) > 1:
                self._sums[first + i] += shares[i]

    def take(self, loss: Tensor, keep_graph: bool = False) -> None:
        """Backward one loss; with `keep_graph` another loss of the same forward pass may follow."""
        self._sums.append(self.projection.zeros(1, self._device))
        self._squares.append(torch.zeros((), dtype=torch.float64, device=self._device))
        loss.backward(retain_graph=keep_graph)
        self._row += 1
        if self._row == self.hold:
            self._project_held()

    def _project_held(self) -> None:
        for stretch in list(self._held):
            self._project(stretch, self._held[stretch][: self._row])
            if self.hold == 1:
                del self._held[stretch]
            else:
                self._held[stretch].zero_()
        self._waiting.clear()
        self._row = 0

    def collect(self) -> tuple[Tensor, Tensor]:
        """Features [taken, dim] and gradient norms [taken], float32, of all losses since the last call, on the CPU."""
        if self._row:
            self._project_held()
        features = self.projection.finish(torch.cat(self._sums)).cpu()
        norms = torch.stack(self._squares).sqrt().float().cpu()
        self._sums, self._squares = [], []
        return features, norms

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def squared_norm(flat: Tensor) -> Tensor:
    """|g|^2 of [n] values, float64: float32 within 4,096 of them and float64 over them, without a copy of g."""
    whole = len(flat) // 4096 * 4096
    parts = [flat[:whole].view(-1, 4096), flat[None, whole:]]
    norms = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float32) for part in parts]
    return torch.cat(norms).double().square().sum()


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
