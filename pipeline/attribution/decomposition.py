"""A clip's feature taken apart, so that its influence is a sum over latent frames and layers.

The loss is a mean over latent frames and places, so its gradient is the sum of the frames' gradients; a layer's
parameters are coordinates of their own; and the projection is linear. So the feature P g is the sum of the parts'
features P g_fl, and the influence phi . w on a query w (whitened or not) is the sum of the parts' shares
(P g_fl . w) / (|P g| sqrt(settings)), with the length of the whole feature under each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline import motion, tables
from pipeline.attribution.gradients import manifest
from pipeline.attribution.host_blocks import HostBlocks
from pipeline.attribution.workers import FeatureWorker
from pipeline.config import Run
from pipeline.config.attribution import Setting, mask_of
from pipeline.errors import ClipError
from pipeline.models import Conditioning, VideoModel
from pipeline.models.attention import fastest_attention
from pipeline.models.compiling import keeps_graph
from pipeline.models.conditioning import batched, split
from pipeline.models.loss import loss_map, masked, shared_noise
from pipeline.projection import Projection
from pipeline.tables import schemas
from pipeline.video.decoders import Row, decoded

Array = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]

ALL = "all"  # the layer's name where layers are not told apart


def layer(parameter: str, transformers: Collection[str] = ()) -> str:
    """The layer of a parameter by its name: a numbered block, or whatever else its name begins with.

    `transformers` are the names of a model's experts, if it has some: a layer is one expert's.
    """
    expert, _, rest = parameter.partition(".")
    if expert in transformers:
        return f"{expert}.{layer(rest)}"
    first, second, *_ = [*parameter.split("."), "", ""]
    return f"{first}.{second}" if second.isdigit() else first


class LayeredGradient:
    """Takes one loss after the other and gives P g of each by layers, [layers, dim], float32 on the CPU.

    Each parameter's gradient is projected and freed as backward produces it, as `gradients.ProjectedGradients` does.
    """

    def __init__(self, module: nn.Module, projection: Projection, layers: bool, host: HostBlocks | None = None) -> None:
        counted = {name: p for name, p in module.named_parameters() if p.requires_grad}
        experts = tuple(module) if isinstance(module, nn.ModuleDict) else ()
        named = {name: layer(name, experts) if layers else ALL for name in counted}
        self.names = list(dict.fromkeys(named.values()))
        self.projection = projection
        self._sums = projection.zeros(len(self.names), "cpu")  # until a gradient arrives
        self._place = {
            counted[placed.name]: (self.names.index(named[placed.name]), placed.offset)
            for placed in manifest(module)
            if placed.name in counted
        }
        self._handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._place]
        self._host = host
        if host is not None:
            host.sink = self.arrive

    def _arrived(self, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            self.arrive(parameter, gradient)  # type: ignore[arg-type]

    def arrive(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        row, offset = self._place[parameter]
        self._sums = self._sums.to(gradient.device)
        self.projection.add(self._sums[row : row + 1], gradient.detach().reshape(1, -1), offset)

    def take(self, loss: Tensor, keep_graph: bool = False) -> Tensor:
        loss.backward(retain_graph=keep_graph)
        features = self.projection.finish(self._sums).cpu()
        self._sums.zero_()
        return features

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._host is not None:
            self._host.sink = None


@fastest_attention()
def by_frame(
    gradient: LayeredGradient,
    model: VideoModel,
    setting: Setting,
    latent: Tensor,
    conditioning: Conditioning,
    mask: Tensor | None,
    seed: int,
) -> list[tuple[float, Tensor]]:
    """The share of every latent frame in a clip's loss, and its gradient's feature by layers [layers, dim].

    Inputs are those of `gradients.take_clip`: the frames' losses and features add up to what that gives.
    """
    noise = shared_noise(seed, setting.noise, tuple(latent.shape)).to(latent.device)
    t = torch.full((1,), setting.timestep, device=latent.device)
    weights = mask[None] if setting.mask == "motion" and mask is not None else None
    frames, shared, parts = latent.shape[1], keeps_graph(model), list[tuple[float, Tensor]]()
    batch = batched([conditioning])
    for frame in range(frames):
        if frame == 0 or not shared:  # under checkpointing a kept graph would hold all that it computes again
            losses = masked(loss_map(model, latent[None], batch, t, noise[None]), weights)
        loss = losses[:, frame].sum() / losses.numel()
        parts.append((float(loss.detach()), gradient.take(loss, keep_graph=shared and frame + 1 < frames)))
    return parts


# --- the actor -------------------------------------------------------------------------------------------------------


class DecompositionWorker:
    """A row of the motion table -> the clip's feature in parts, under those settings that the ranking compares."""

    def __init__(self, run: Run, fingerprint: Mapping[str, Any]) -> None:
        self.run, self.worker = run, FeatureWorker(run, fingerprint)
        self.worker.gradients.close()
        module, host = self.worker.model.trained, self.worker.host
        self.gradient = LayeredGradient(module, self.worker.gradients.projection, run.explain.layers, host)

    def __call__(self, clips: pa.Table) -> Iterator[dict[str, pa.Table]]:
        for row, frames in decoded(self.worker.decoder, self.run, clips.to_pylist()):
            if isinstance(frames, ClipError):
                yield self._table([self._failed(row, frames)])
            else:
                yield self._table(list(self._parts(row, self.worker.encode(frames))))

    def refuse(self, clips: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        return self._table([self._failed(row, error) for row in clips.to_pylist()])

    def _parts(self, row: Row, encoded: Conditioning) -> Iterator[Row]:
        latent, of_clip = split(encoded)
        mask = None if row["mask"] is None else motion.decode_mask(row["mask"], row["mask_shape"]).to(latent.device)
        conditioning, settings = (
            {**of_clip, **self.worker.text(self.worker.caption(row))},
            self.run.attribution.settings,
        )
        for i, setting in enumerate(settings):
            if setting.mask != mask_of(self.run.ranking.mask, "clips"):
                continue
            frame_parts = by_frame(self.gradient, self.worker.model, setting, latent, conditioning, mask, self.run.seed)
            for frame, (loss, features) in enumerate(frame_parts):
                for name, feature in zip(self.gradient.names, features.tolist(), strict=True):
                    place = {"clip_id": row["clip_id"], "setting": i, "latent_frame": frame, "layer": name}
                    yield {**place, "feature": feature, "loss": loss, "error": None}

    @staticmethod
    def _failed(row: Row, error: ClipError) -> Row:
        return {"clip_id": row["clip_id"], "error": str(error)}

    def _table(self, rows: list[Row]) -> dict[str, pa.Table]:
        return {"parts": pa.Table.from_pylist(rows, schema=schemas.parts_schema(self.run.attribution.projection.dim))}


# --- shares ----------------------------------------------------------------------------------------------------------


def as_array(parts: pa.Table) -> tuple[Array, list[int], list[str]]:
    """Rows of `schemas.parts_schema` as [settings, frames, layers, dim], with the settings and the layers' names in
    their order."""
    settings = sorted(set(parts.column("setting").to_pylist()))
    layers = list(dict.fromkeys(parts.column("layer").to_pylist()))
    frames = 1 + max(parts.column("latent_frame").to_pylist())
    features = np.zeros((len(settings), frames, len(layers), parts.schema.field("feature").type.list_size), np.float32)
    places = zip(*(parts.column(c).to_pylist() for c in ("setting", "latent_frame", "layer")), strict=True)
    for (setting, frame, name), feature in zip(places, tables.matrix(parts, "feature"), strict=True):
        features[settings.index(setting), frame, layers.index(name)] = feature
    return features, settings, layers


def shares(parts: Array, queries: Array) -> Sums:
    """Each part's share in the influence on every query: [S, F, L, k] and [Q, S * k] -> [S, F, L, Q].

    `queries` are unit rows, whitened where the ranking is; the sum over settings, frames and layers is the influence.
    """
    settings, _, _, dim = parts.shape
    exact = parts.astype(np.float64)
    lengths = np.linalg.norm(exact.sum((1, 2)), axis=-1) * np.sqrt(settings)  # as ranking.unit_settings
    whole = np.where(lengths > 0, lengths, 1.0)[:, None, None, None]
    by_setting = queries.reshape(len(queries), settings, dim).astype(np.float64)
    sums: Sums = np.einsum("sflk,qsk->sflq", exact / whole, by_setting)
    return sums


def agreement(parts: Array, feature: Array) -> float:
    """The lowest cosine, over the settings, of the sum of the parts [S, F, L, k] with a feature [S * k]."""
    whole = parts.astype(np.float64).sum((1, 2))
    reference = feature.astype(np.float64).reshape(whole.shape)
    lengths = np.linalg.norm(whole, axis=1) * np.linalg.norm(reference, axis=1)
    return float(((whole * reference).sum(1) / np.maximum(lengths, 1e-30)).min())
