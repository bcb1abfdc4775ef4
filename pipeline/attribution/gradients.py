"""Loss -> projected gradient, parameter by parameter: the full gradient need not exist."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from pipeline.attribution.host_blocks import HostBlocks
from pipeline.config.attribution import Setting
from pipeline.errors import ConfigError
from pipeline.models import Conditioning, VideoModel
from pipeline.models.attention import fastest_attention
from pipeline.models.compiling import keeps_graph
from pipeline.models.conditioning import batched
from pipeline.models.lora import adapter_parameters
from pipeline.models.loss import loss_map, masked_mean, shared_noise
from pipeline.projection import Projection

JOINED = 1 << 20  # numbers of small parameters that are projected together
LAST_STAGE = 64  # losses that share the last stage of a projection


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


def restrict(module: nn.Module, pattern: str, idle: str | None = None, adapters: bool = False) -> int:
    """Let only the parameters count whose name the pattern finds; the others' gradients are not computed at all.

    `idle` finds those that no loss of the family reaches, and which never count. With `adapters` only those that were
    loaded into the module count, by the names that they have in their file. Returns how many numbers count. Raises
    ConfigError if the pattern finds none.
    """
    counted = dict(adapter_parameters(module) if adapters else module.named_parameters())
    module.requires_grad_(False)
    for name, parameter in counted.items():
        unreached = idle is not None and re.search(idle, name) is not None
        parameter.requires_grad_(re.search(pattern, name) is not None and not unreached)
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if not count:
        some = ", ".join(list(counted)[:5])
        whose = "the adapters of attribution.lora" if adapters else "the transformer's parameters"
        raise ConfigError(f"attribution.parameters={pattern!r} finds none of {whose}; they are called {some} ...")
    return count


@dataclass(eq=False)
class Stretch:
    """Counted parameters at consecutive coordinates that are projected together: one large one, or several small."""

    offset: int
    size: int
    members: dict[nn.Parameter, int]  # where each begins in the stretch


def stretches(module: nn.Module) -> list[Stretch]:
    """The parameters that require a gradient, neighbours of one type joined as long as they are small."""
    parameters, spans, last = dict(module.named_parameters()), list[Stretch](), None
    for placed in manifest(module):
        parameter = parameters[placed.name]
        if not parameter.requires_grad:
            continue
        size, end = parameter.numel(), spans[-1].offset + spans[-1].size if spans else -1
        if spans and last == parameter.dtype and end == placed.offset and spans[-1].size + size <= JOINED:
            spans[-1].members[parameter] = spans[-1].size
            spans[-1].size += size
        else:
            spans.append(Stretch(placed.offset, size, {parameter: 0}))
        last = parameter.dtype
    return spans


class ProjectedGradients:
    """Takes losses one at a time and gives P g and |g| of each.

    Streamed (``hold=1``): a parameter's gradient is projected when backward has produced it and freed at once (small
    ones wait for their neighbours, up to a million numbers together), so that above a bare forward and backward there
    is about one parameter's gradient in memory, and the sums of up to 64 losses, 64 MiB for the sketch. With
    ``hold=n``, for dense kinds, the gradients of n losses are kept, in their own type, and share one generation of P;
    on the CPU both give the same bits. The last stage of the sketch and of Fastfood is done once for up to 64 losses
    that are collected together. A loss's gradient is never mixed with another's. Parameters that get no gradient count
    as zeros.
    """

    def __init__(
        self, module: nn.Module, projection: Projection, hold: int = 1, host: HostBlocks | None = None
    ) -> None:
        """`host` has those blocks of the module that lie in main memory, if some do."""
        if hold > 1 and not projection.dense:
            raise ValueError(f"hold={hold}: {projection.kind} has no generation to share; it is streamed, with hold=1")
        self.projection, self.hold = projection, min(hold, LAST_STAGE)
        self._stretches = {parameter: s for s in stretches(module) for parameter in s.members}
        self._arrivals: dict[Stretch, dict[nn.Parameter, Tensor]] = {}
        self._gradients: dict[Stretch, Tensor] = {}
        self._sums = projection.zeros(LAST_STAGE, "cpu")  # until a gradient arrives: parameters may lie elsewhere
        self._squares = torch.zeros(LAST_STAGE, dtype=torch.float64)
        self._count = self._projected = 0  # losses in the sums; those of them whose held gradients are there too
        self._collected: list[tuple[Tensor, Tensor]] = []
        self._handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._stretches]
        self._host = host
        if host is not None:
            host.sink = self.arrive

    def _arrived(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        if gradient is not None:
            self.arrive(parameter, gradient)  # type: ignore[arg-type]

    def arrive(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Take what backward has computed for a parameter."""
        stretch = self._stretches[parameter]
        arrivals = self._arrivals.setdefault(stretch, {})
        flat = gradient.detach().reshape(-1)
        arrivals[parameter] = arrivals[parameter] + flat if parameter in arrivals else flat
        if len(arrivals) == len(stretch.members):
            self._complete(stretch)

    def _complete(self, stretch: Stretch) -> None:
        """Project or keep what this loss's backward has left in a stretch."""
        arrivals = self._arrivals.pop(stretch)
        some = next(iter(arrivals.values()))
        parts = [arrivals[p] if p in arrivals else some.new_zeros(p.numel()) for p in stretch.members]
        row = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.hold == 1:
            self._project(stretch, row[None], self._count)
            return
        if stretch not in self._gradients:
            self._gradients[stretch] = row.new_zeros((self.hold, stretch.size))
        self._gradients[stretch][self._count - self._projected] += row

    def _project(self, stretch: Stretch, rows: Tensor, first: int) -> None:
        """Add the shares of the losses from `first` on in this stretch: [losses, size]."""
        self._sums, self._squares = self._sums.to(rows.device), self._squares.to(rows.device)
        self.projection.add(self._sums[first : first + len(rows)], rows, stretch.offset)
        for i, row in enumerate(rows, first):
            self._squares[i] += squared_norm(row)

    def take(self, loss: Tensor, keep_graph: bool = False) -> None:
        """Backward one loss; with `keep_graph` another loss of the same forward pass may follow."""
        loss.backward(retain_graph=keep_graph)
        for stretch in list(self._arrivals):
            self._complete(stretch)
        self._count += 1
        if self._count - self._projected == self.hold:
            self._project_gradients()
        if self._count == LAST_STAGE:
            self._finish()

    @property
    def waiting(self) -> int:
        """Losses whose gradients are held until there are enough of them for a generation of P."""
        return self._count - self._projected

    def _project_gradients(self) -> None:
        for stretch, rows in self._gradients.items():
            self._project(stretch, rows[: self._count - self._projected], self._projected)
            rows.zero_()
        self._projected = self._count

    def _finish(self) -> None:
        """The last stage, for the losses taken since the one before."""
        if self._projected < self._count:
            self._project_gradients()
        sums, squares = self._sums[: self._count], self._squares[: self._count]
        self._collected.append((self.projection.finish(sums).cpu(), squares.sqrt().float().cpu()))
        sums.zero_()
        squares.zero_()
        self._count = self._projected = 0

    def collect(self) -> tuple[Tensor, Tensor]:
        """Features [taken, dim] and gradient norms [taken], float32, of all losses since the last call, on the CPU."""
        self._finish()  # of none, where nothing was taken
        features, norms = (torch.cat(parts) for parts in zip(*self._collected, strict=True))
        self._collected = []
        return features, norms

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._host is not None:
            self._host.sink = None


def squared_norm(flat: Tensor) -> Tensor:
    """|g|^2 of [n] values, float64: float32 within 4,096 of them and float64 over them, without a copy of g."""
    whole = len(flat) // 4096 * 4096
    parts = [flat[:whole].view(-1, 4096), flat[None, whole:]]
    norms = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float32) for part in parts]
    return torch.cat(norms).double().square().sum()


def passes(settings: Sequence[Setting]) -> list[tuple[float, int, list[int]]]:
    """The forward passes that settings need: timestep, noise, and which settings share that pass."""
    members_by_pass: dict[tuple[float, int], list[int]] = {}
    for i, setting in enumerate(settings):
        members_by_pass.setdefault((setting.timestep, setting.noise), []).append(i)
    return [(timestep, noise, members) for (timestep, noise), members in members_by_pass.items()]


@lru_cache(maxsize=8)
def _noise(seed: int, index: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """The shared noise where it is needed: to copy it there for each clip would wait for the clip before."""
    return shared_noise(seed, index, shape).to(device)


@fastest_attention()
def take_clip(
    gradients: ProjectedGradients,
    model: VideoModel,
    settings: Sequence[Setting],
    latent: Tensor,
    conditioning: Conditioning,
    mask: Tensor | None,
    seed: int,
) -> dict[int, Tensor]:
    """Take a clip's losses: latent [C, f, h, w], what it is conditioned by without a batch, mask [f, h, w] or None
    for a still clip.

    Returns each setting's loss by its index, a scalar on the device, in the order taken; settings under the motion mask
    are left out where there is no mask. Losses of one timestep and noise share a forward pass where a graph can be
    kept. A GPU is given the work and not waited for, unless the schedule has whole times, which are looked at.
    """
    losses: dict[int, Tensor] = {}
    batch = batched([conditioning])
    for timestep, noise_index, members in passes(settings):
        indices = [i for i in members if settings[i].mask == "none" or mask is not None]
        if not indices:
            continue
        noise = _noise(seed, noise_index, tuple(latent.shape), latent.device)
        t = torch.full((1,), timestep, device=latent.device)
        shared = keeps_graph(model)
        for i in indices:
            if i == indices[0] or not shared:
                errors = loss_map(model, latent[None], batch, t, noise[None])
            loss = masked_mean(errors, mask[None] if settings[i].mask == "motion" and mask is not None else None)
            losses[i] = loss.detach()
            gradients.take(loss, keep_graph=shared and i != indices[-1])
    return losses
