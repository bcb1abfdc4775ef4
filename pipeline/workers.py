"""The bodies of the actors: load once, then a batch of rows in, tables out. No Ray.

Every row that comes in leaves as a row: a result, or an error that starts with a code. What the machine lacks (memory
on a GPU, a broken model) is no clip's fault and surfaces.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from itertools import cycle, starmap
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline import finetuning, motion, scanning, schemas, stores, tables
from pipeline.attribution import Setting
from pipeline.config import Run
from pipeline.decoder import Decoder
from pipeline.diffusion import shared_noise
from pipeline.errors import ClipError
from pipeline.gradients import ProjectedGradients, restrict, take_clip
from pipeline.models import VideoModel, open_model
from pipeline.projection import Projection

Row = dict[str, Any]
Frames = npt.NDArray[np.uint8]

CANARY = 1 << 21  # the index of the noise that the canary clip is made of
CANARY_READS = 10  # half a second apart
CAPTIONS_KEPT = 128  # embeddings of one caption of Wan take 4 MB


def device_for(gpus: float) -> torch.device:
    """The device of an actor that was given that share of a GPU. One thread: results must not depend on a pool's
    size."""
    torch.set_num_threads(1)
    if gpus > 0 and not torch.cuda.is_available():
        raise RuntimeError("this actor was given a GPU, but torch sees none: is torch built for this machine's CUDA?")
    return torch.device("cuda" if gpus > 0 else "cpu")


class Decoders:
    """Several decoders that take clips in turn, so that as many decode at once; which of them does, changes no bit.

    Each keeps its own copy of the last remote file.
    """

    def __init__(self, count: int, timeout: float) -> None:
        self._all = [Decoder(timeout) for _ in range(count)]
        self._turns = cycle(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def submit_frames(
        self, uri: str, start_frame: int, count: int, fps: float, height: int, width: int
    ) -> Future[Frames]:
        return next(self._turns).submit_frames(uri, start_frame, count, fps, height, width)

    def close(self) -> None:
        for decoder in self._all:
            decoder.close()


def decoders_for(run: Run, cpus: float) -> Decoders:
    """As many decoders as an actor of so many CPUs has beside the one it computes on, and at least one."""
    return Decoders(max(1, int(cpus) - 1), run.data.decode_timeout)


def decoded(decoder: Decoder | Decoders, run: Run, rows: list[Row]) -> Iterator[tuple[Row, Frames | ClipError]]:
    """Each row with its frames at the attribution geometry; the next clips, one for each decoder, decode while the
    caller computes."""
    frames, fps, height, width = run.geometry
    ahead = len(decoder) if isinstance(decoder, Decoders) else 1

    def start(row: Row) -> Future[Frames]:
        return decoder.submit_frames(row["uri"], row["start_frame"], frames, fps, height, width)

    waiting = deque(start(row) for row in rows[:ahead])
    for i, row in enumerate(rows):
        waiting.extend(start(later) for later in rows[i + ahead : i + ahead + 1])
        try:
            yield row, waiting.popleft().result()
        except ClipError as error:
            yield row, error


class MotionWorker:
    """Clips -> motion: RAFT is loaded once, on the actor's share of GPUs."""

    def __init__(self, run: Run, strides: tuple[int, int], gpus: float, cpus: float | None = None) -> None:
        self.run, (self.temporal, self.spatial) = run, strides
        self.device = device_for(gpus)
        self.raft = motion.load_raft(run.motion, self.device)
        self.decoder = decoders_for(run, run.resources.estimate_motion.cpus if cpus is None else cpus)

    def measure(self, row: Row, frames: Frames | ClipError) -> Row:
        """The row of the motion table; a clip's own error is kept."""
        row = {**row, "mask": None, "mask_shape": None, "motion_mean": None, "motion_p95": None, "camera_share": None}
        if isinstance(frames, ClipError):
            return {**row, "error": str(frames)}
        flow = motion.estimate(frames, self.raft, self.run.motion, self.device)
        if not bool(torch.isfinite(flow).all()):
            return {**row, "error": str(ClipError("not_finite", "the optical flow of this clip is not finite."))}
        camera = motion.camera_motion(flow)
        row["camera_share"] = motion.camera_share(flow, camera)
        flow = flow - camera if self.run.motion.camera == "subtract" else flow
        row["motion_mean"], row["motion_p95"] = motion.statistics(flow)
        count, _, height, width = self.run.geometry
        grid = ((count - 1) // self.temporal + 1, height // self.spatial, width // self.spatial)
        mask = motion.motion_mask(flow, self.run.motion, grid, self.temporal)
        if mask is None:
            still = f"its flow spans less than motion.still = {self.run.motion.still:g} pixels a frame."
            return {**row, "error": str(ClipError("no_motion", still))}
        row["mask"], row["mask_shape"] = motion.encode_mask(mask), list(mask.shape)
        return row

    def __call__(self, clips: pa.Table) -> Iterator[dict[str, pa.Table]]:
        schema = schemas.motion_schema(clips.schema)
        for rows in tables.in_parts(starmap(self.measure, decoded(self.decoder, self.run, clips.to_pylist()))):
            yield {"motion": pa.Table.from_pylist(rows, schema=schema)}

    def refuse(self, clips: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        rows = [self.measure(row, error) for row in clips.to_pylist()]
        return {"motion": pa.Table.from_pylist(rows, schema=schemas.motion_schema(clips.schema))}


class FeatureWorker:
    """Rows of the motion table -> features: autoencoder, text encoder and transformer are loaded once."""

    LOOKED_UP = ("mask", "mask_shape")  # columns that are too large to travel; they are read from the table here

    def __init__(self, run: Run, fingerprint: Mapping[str, Any]) -> None:
        self.run = run
        a = run.attribution
        self.device = device_for(run.resources.extract_features.gpus)
        self.model: VideoModel = open_model(run.model, self.device)
        if a.weights is not None:
            finetuning.load_weights(self.model, a.weights, merge=True)
        restrict(self.model.transformer, a.parameters)
        projection = Projection(a.projection.kind, a.projection.dim, a.projection.seed)
        self.gradients = ProjectedGradients(self.model.transformer, projection, a.hold)
        self.text = Captions(self.model.text)
        self.decoder = decoders_for(run, run.resources.extract_features.cpus)
        known = json.dumps(dict(fingerprint), sort_keys=True).encode()
        self._check_canary(hashlib.blake2b(known, digest_size=8).hexdigest())

    def _check_canary(self, name: str) -> None:
        """Hold this actor's feature of one clip, the same for all, against the first's. RuntimeError if they differ.

        On GPUs attention's backward is not deterministic and GPU models differ; below 0.9999 features cannot be mixed.
        """
        c = self.run
        frames, _, height, width = c.geometry
        video = shared_noise(c.seed, CANARY, (3, 1, height, width)).permute(1, 2, 3, 0)
        latent = self.model.encode((video.clamp(-2, 2) * 60 + 128).byte().numpy().repeat(frames, 0))
        take_clip(self.gradients, self.model, [Setting(mask="none")], latent, self.text(""), None, c.seed)
        feature = self.gradients.collect()[0][0]
        check_canary(stores.join(c.root, "canary", f"{name}.json"), feature)

    def take(self, row: Row, frames: Frames | ClipError) -> Row:
        """Backward this clip's losses. Returns its row without the features, which `finish` adds."""
        found: Row = {key: row[key] for key in ("clip_id", "version", "num_frames")}
        if isinstance(frames, ClipError):
            return {**found, "error": str(frames), "losses": {}}
        settings = self.run.attribution.settings
        mask = None
        if row["mask"] is not None:
            mask = motion.decode_mask(row["mask"], row["mask_shape"]).to(self.device)
        elif all(setting.mask == "motion" for setting in settings):
            return {**found, "error": row["error"], "losses": {}}
        latent = self.model.encode(frames)
        losses = take_clip(
            self.gradients, self.model, settings, latent, self.text(row["caption"] or ""), mask, self.run.seed
        )
        return {**found, "error": None, "losses": losses}

    def finish(self, rows: list[Row]) -> pa.Table:
        """Put the features taken since the last call to their rows."""
        settings, dim = len(self.run.attribution.settings), self.gradients.projection.dim
        features = np.zeros((len(rows), settings, dim), np.float32)
        norms, losses = np.zeros((len(rows), settings), np.float32), np.zeros((len(rows), settings), np.float32)
        taken = [(n, s) for n, row in enumerate(rows) for s in row["losses"]]
        if taken:
            found, lengths = self.gradients.collect()
            for (n, s), feature, length in zip(taken, found.numpy(), lengths.numpy(), strict=True):
                features[n, s], norms[n, s], losses[n, s] = feature, length, rows[n]["losses"][s]
        for n, row in enumerate(rows):
            row["error"] = row["error"] or _unusable(row["losses"], features[n], norms[n])
        valid = np.array([row["error"] is None for row in rows], bool)
        features[~valid], norms[~valid], losses[~valid] = 0, 0, 0
        return pa.table(
            [
                pa.array([row["clip_id"] for row in rows], pa.string()),
                pa.array([row["version"] for row in rows], pa.string()),
                tables.vectors(features.reshape(len(rows), settings * dim), valid),
                tables.vectors(norms, valid),
                tables.vectors(losses, valid),
                pa.array([row["num_frames"] for row in rows], pa.int32()),
                pa.array([row["error"] for row in rows], pa.string()),
            ],
            schema=schemas.features_schema(settings, dim),
        )

    def projected(self) -> bool:
        """Whether the gradients taken so far are projected, but for a clip's: to finish earlier would cost a whole
        generation of a dense P for the few that are held."""
        return self.gradients.waiting < len(self.run.attribution.settings)

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        rows = scanning.lookup(rows, self.LOOKED_UP)
        taken = starmap(self.take, decoded(self.decoder, self.run, rows.to_pylist()))
        for found in tables.in_parts(taken, self.projected):
            yield {"features": self.finish(found)}

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        return {"features": self.finish([self.take(row, error) for row in rows.to_pylist()])}


def check_canary(path: str, feature: Tensor) -> None:
    """Compare an actor's feature of the canary clip with that of the first actor, which the file at `path` holds.

    Actors start together, so the file is created by one of them alone, and every actor compares with what is in it.
    RuntimeError where the cosine is below 0.9999, or where there is nothing to compare.
    """
    if not torch.isfinite(feature).all() or not feature.any():
        raise RuntimeError(
            "this actor's feature of the canary clip is not finite, or zero: the model's weights, its dtype or this "
            "machine's GPU are at fault, and every clip's feature would be so."
        )
    stores.create_bytes(path, json.dumps(feature.tolist()).encode())
    first = _first_canary(path)
    if first.shape != feature.shape:
        raise RuntimeError(
            f"{path}: it has {first.numel()} numbers, and this actor's feature of the canary clip {feature.numel()}. "
            "Delete the file if it was not written by this run."
        )
    cosine = float(torch.nn.functional.cosine_similarity(first, feature, 0))
    if not cosine >= 0.9999:
        raise RuntimeError(
            f"this actor's feature of the canary clip has a cosine of {cosine:.6f} with the first actor's "
            f"({path}); features of the two cannot be mixed. Use GPUs of one kind, or another root."
        )


def _first_canary(path: str) -> Tensor:
    for _ in range(CANARY_READS):
        try:
            return torch.tensor(json.loads(stores.read_bytes(path)), dtype=torch.float32)
        except (ValueError, TypeError):  # on a disk without hard links its writer may still be at it
            time.sleep(0.5)
    raise RuntimeError(
        f"{path}: this is no feature of the canary clip. Delete the file, and run the same command again."
    )


def featured(error: str | None) -> bool:
    """Whether a row of the motion table goes on to features: every result, and still clips for their unmasked ones."""
    return error is None or error.startswith("no_motion: ")


class AttributionWorker:
    """Clips -> motion and features in one pass: every video is read and decoded once."""

    def __init__(self, run: Run, strides: tuple[int, int], fingerprint: Mapping[str, Any]) -> None:
        pool = run.resources.extract_features
        self.motion, self.features = MotionWorker(run, strides, pool.gpus, pool.cpus), FeatureWorker(run, fingerprint)

    def both(self, row: Row, frames: Frames | ClipError) -> tuple[Row, Row | None]:
        """A clip's row of the motion table and, if it goes on, that of the features."""
        measured = self.motion.measure(row, frames)
        return measured, self.features.take(measured, frames) if featured(measured["error"]) else None

    def __call__(self, clips: pa.Table) -> Iterator[dict[str, pa.Table]]:
        schema = schemas.motion_schema(clips.schema)
        rows = starmap(self.both, decoded(self.motion.decoder, self.motion.run, clips.to_pylist()))
        for found in tables.in_parts(rows, self.features.projected):
            moved = pa.Table.from_pylist([measured for measured, _ in found], schema=schema)
            gone_on = [taken for _, taken in found if taken is not None]
            yield {"motion": moved, "features": self.features.finish(gone_on)}

    def refuse(self, clips: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        return self.motion.refuse(clips, error)


class Captions:
    """Embeddings of the captions seen last; memory does not grow with the corpus."""

    def __init__(self, embed: Callable[[list[str]], Tensor], size: int = CAPTIONS_KEPT) -> None:
        self._embed, self._size = embed, size
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, caption: str) -> Tensor:
        """[1, tokens, width]"""
        if caption not in self._kept:
            self._kept[caption] = self._embed([caption])
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(caption)
        return self._kept[caption]


def _unusable(
    losses: dict[int, float], features: npt.NDArray[np.float32], norms: npt.NDArray[np.float32]
) -> str | None:
    """Why a clip's features cannot be used, if so."""
    taken = list(losses)
    if not (
        np.isfinite(features[taken]).all()
        and np.isfinite(norms[taken]).all()
        and np.isfinite(list(losses.values())).all()
    ):
        return str(
            ClipError("not_finite", f"a loss or gradient of this clip is not finite (losses {list(losses.values())}).")
        )
    if taken and not norms[taken].all():
        return str(ClipError("not_finite", "a gradient of this clip is zero in every parameter that counts."))
    return None
