"""What the projection benchmark measures: this project's kinds, the reference, and the peers' projectors.

A subject's ``prepare(coordinates, dim, seed)`` does what its users do once; what it returns is timed on [B, n] values.
Peers are imported when they are prepared, in the process that measures them. ``pip install -e '.[bench]'`` installs
them; one that is not there is a row that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from typing import Any, cast

import torch
from torch import Tensor

KINDS = ("gaussian", "rademacher", "sketched_gaussian", "fastfood")
REFERENCE = "reference"
ENTRIES = "gaussian's entries alone"  # the floor of the dense kind: P is made and nothing multiplied
_COLUMNS = 8192  # of a block of the reference

Call = Callable[[Tensor], Tensor]
Prepare = Callable[[int, int, int], Call]


@dataclass(frozen=True)
class Subject:
    """One row of the benchmark's tables."""

    name: str
    prepare: Prepare
    dense: bool  # every entry of P is random and independent
    distribution: str | None = None  # what pip calls it; None: nothing to install
    bytes_per_entry: float = 0.0  # of all k x n entries, what is in memory at once, by reading its source
    note: str = ""
    prepared: bool = False  # P is made beforehand and held, which no gradient of a real model allows
    short_only: str = ""  # why it is not run at the long size

    def bytes_needed(self, coordinates: int, vectors: int, dim: int) -> int:
        """Memory by arithmetic: what it holds of P, and the float32 values. No more than a reason not to start."""
        return int(self.bytes_per_entry * coordinates * dim) + 4 * vectors * coordinates


def reference(values: Tensor, dim: int, seed: int) -> Tensor:
    """The obvious way: seeded ``torch.randn`` blocks of 8,192 columns, times the values: [B, n] -> [B, dim]."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(values), dim)
    for start in range(0, values.shape[1], _COLUMNS):
        part = values[:, start : start + _COLUMNS]
        total += part @ torch.randn(dim, part.shape[1], generator=generator).T
    scaled: Tensor = total / dim**0.5
    return scaled


def _reference(coordinates: int, dim: int, seed: int) -> Call:
    return lambda values: reference(values, dim, seed)


def _own(kind: str, coordinates: int, dim: int, seed: int) -> Call:
    made: Any = import_module("pipeline.projection").Projection  # a kind that it refuses is for it to refuse
    return cast(Call, made(kind=kind, dim=dim, seed=seed))


def _entries(coordinates: int, dim: int, seed: int) -> Call:
    dense, tag = (
        import_module("pipeline.projection.cpu").dense,
        import_module("pipeline.projection.philox").Tag.GAUSSIAN,
    )

    def call(values: Tensor) -> Tensor:
        nothing = torch.zeros(0, dim, dtype=torch.float64)
        dense(values[:0], seed, 0, tag, nothing)
        return nothing

    return call


def _trak(kind: str, coordinates: int, dim: int, seed: int) -> Call:
    projectors = import_module("trak.projectors")
    projector = projectors.BasicProjector(coordinates, dim, seed, projectors.ProjectionType(kind), torch.device("cpu"))
    return lambda values: cast(Tensor, projector.project(values, model_id=0)) / dim**0.5


def _dattri(coordinates: int, dim: int, seed: int) -> Call:
    random_project = import_module("dattri.func.projection").random_project
    return cast(Call, random_project(torch.empty(1, coordinates), 1, dim, 16, seed, "normal", device="cpu"))


def _bergson(coordinates: int, dim: int, seed: int) -> Call:
    project_global = import_module("bergson.collector.collector").project_global
    return lambda values: cast(Tensor, project_global(f"all/single/seed{seed}", values, dim, "normal"))


def _sklearn(name: str, prepared: bool, coordinates: int, dim: int, seed: int) -> Call:
    """scikit-learn holds the matrix. Kept: made beforehand, and not counted; else a call makes it, as ours does."""
    projector = getattr(import_module("sklearn.random_projection"), name)(dim, random_state=seed)
    if prepared:
        projector.fit(torch.empty(1, coordinates).zero_().numpy())
        return lambda values: torch.from_numpy(projector.transform(values.numpy()))
    return lambda values: torch.from_numpy(projector.fit_transform(values.numpy()))


_IN_BLOCKS_OF_100 = 4 * 100 / 512  # a float32 block of 100 of 512 rows
_TWICE = 8 + 4  # drawn in float64, then copied to float32
_LINEAR = "minutes, and ten times the figure above"
_SAME_MATRIX = "the same matrix as above"

_ALL = (
    Subject(REFERENCE, _reference, dense=True),
    *(Subject(kind, partial(_own, kind), dense=kind in ("gaussian", "rademacher")) for kind in KINDS),
    Subject(ENTRIES, _entries, dense=False),
    Subject("traker normal", partial(_trak, "normal"), True, "traker", _IN_BLOCKS_OF_100),
    Subject("traker rademacher", partial(_trak, "rademacher"), True, "traker", _IN_BLOCKS_OF_100, short_only=_LINEAR),
    Subject("dattri normal", _dattri, True, "dattri", _IN_BLOCKS_OF_100),
    Subject("bergson normal", _bergson, True, "bergson", note="global projection, 512 MiB blocks"),
    Subject(
        "sklearn gaussian", partial(_sklearn, "GaussianRandomProjection", False), True, "scikit-learn", _TWICE,
        note="matrix made in the call",
    ),
    Subject(
        "sklearn gaussian, kept", partial(_sklearn, "GaussianRandomProjection", True), True, "scikit-learn", _TWICE,
        note="matrix made before the clock starts, and held", prepared=True, short_only=_SAME_MATRIX
    ),
    Subject(
        "sklearn sparse", partial(_sklearn, "SparseRandomProjection", False), False, "scikit-learn",
        note="matrix made in the call",
    ),
    Subject(
        "sklearn sparse, kept", partial(_sklearn, "SparseRandomProjection", True), False, "scikit-learn",
        note="matrix made before the clock starts, and held", prepared=True, short_only=_SAME_MATRIX
    ),
)  # fmt: skip
SUBJECTS = {subject.name: subject for subject in _ALL}
PEERS = tuple(subject for subject in _ALL if subject.distribution)
NOT_ON_A_CPU = {
    "traker CudaProjector": "needs CUDA and the compiled fast_jl",
    "dattri sjlt": "needs CUDA and the compiled sjlt",
}


def versions() -> dict[str, str]:
    """The version of every peer's distribution that is installed here."""
    installed = {package.name.lower(): package.version for package in metadata.distributions()}
    names = {peer.distribution for peer in PEERS if peer.distribution}
    return {name: installed[name] for name in sorted(names) if name in installed}
