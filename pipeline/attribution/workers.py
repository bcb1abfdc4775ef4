"""The bodies of the actors: load once, then a batch of rows in, tables out. No Ray.

Every row that comes in leaves as a row: a result, or an error that starts with a code. A broken model is no clip's
fault and surfaces. So does an end of memory: `cluster.streaming` tries again after `shrink`, then clip by clip.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline import models, motion, tables
from pipeline.attribution.attributed_model import open_attributed, projected_gradients
from pipeline.attribution.canary import check_canary
from pipeline.attribution.functionals import query_feature
from pipeline.attribution.gradients import take_clip
from pipeline.config import Run
from pipeline.config.attribution import Setting, Storage
from pipeline.errors import ClipError, code_of
from pipeline.inputs.manifests import mask_boxes
from pipeline.models import Conditioning, Grid
from pipeline.models.conditioning import Captions, split
from pipeline.models.device import SideStream, device_for
from pipeline.models.loss import shared_noise
from pipeline.motion import pictures
from pipeline.motion.worker import MotionWorker
from pipeline.storage import stores
from pipeline.tables import scanning, schemas
from pipeline.video import looks
from pipeline.video.decoders import Frames, Row, decoded, decoders_for

log = logging.getLogger(__name__)

Place = tuple[int, int, int]  # of a gradient: the clip itself (0) or a twin, its look, the setting
Version = tuple[tuple[int, int], Frames, Tensor | None, str]  # kind and look, frames, mask, caption
Encoded = tuple[tuple[int, int], Conditioning, Tensor | None]  # kind and look, with latent and caption; the mask
Gradient = tuple[npt.NDArray[np.float32], np.floating]  # projected, and its length before

CANARY = 1 << 21  # the index of the noise that the canary clip is made of


class FeatureWorker:
    """Rows of the motion table -> features: autoencoder, text encoder and transformer are loaded once."""

    LOOKED_UP = ("mask", "mask_shape")  # columns that are too large to travel; they are read from the table here

    def __init__(self, run: Run, fingerprint: Mapping[str, Any], measure: MotionWorker | None = None) -> None:
        """`measure` finds the masks of twins, and what moves before other backgrounds; by default it is one of its own,
        where there are such."""
        self.run = run
        self.device = device_for(run.resources.extract_features.gpus)
        self.model, self.host = open_attributed(run, self.device, run.attribution.settings)
        self.gradients = projected_gradients(run, self.model, self.host)
        self.text, self._cut = Captions(self.model.text), 0
        self.decoder = decoders_for(run, run.resources.extract_features.cpus)
        fingerprint_json = json.dumps(dict(fingerprint), sort_keys=True).encode()
        self.looks, self.changes = run.looks
        needs_flow = run.queries.twins or "background" in self.changes
        self.motion = measure or (self._motion_worker() if needs_flow else None)
        self._check_canary(hashlib.blake2b(fingerprint_json, digest_size=8).hexdigest())
        # Blocks in main memory: the GPU's is short, so there is no second stream, which takes more of it.
        self.side = SideStream(self.device if self.host is None else torch.device("cpu"))

    def shrink(self) -> bool:
        """Drop gradients that are not collected. From now on prepare no clip ahead; then hold half as many gradients;
        then smaller parts of the flow."""
        hold, was_ahead = self.gradients.hold, self.side.close()
        self.gradients.close()
        self.model.trained.zero_grad(set_to_none=True)
        fewer = hold if was_ahead else max(1, hold // 2)
        self.gradients = projected_gradients(self.run, self.model, self.host, fewer)
        return was_ahead or hold > 1 or (self.motion is not None and self.motion.shrink())

    def _motion_worker(self) -> MotionWorker:
        pool = self.run.resources.extract_features
        return MotionWorker(self.run, models.grid(self.run), pool.gpus, pool.cpus)

    def _check_canary(self, name: str) -> None:
        """Hold this actor's feature of one clip, the same for all, against the first's. RuntimeError if they differ.

        On GPUs attention's backward is not deterministic and GPU models differ; below 0.9999 features cannot be mixed.
        """
        c = self.run
        frames, _, height, width = c.geometry
        video = shared_noise(c.seed, CANARY, (3, 1, height, width)).permute(1, 2, 3, 0)
        latent, of_clip = split(self.encode((video.clamp(-2, 2) * 60 + 128).byte().numpy().repeat(frames, 0)))
        conditioning = {**of_clip, **self.text("")}
        take_clip(self.gradients, self.model, [self._canary_setting()], latent, conditioning, None, c.seed)
        feature = self.gradients.collect()[0][0]
        check_canary(stores.join(c.root, "canary", f"{name}.json"), feature)

    def _canary_setting(self) -> Setting:
        """The default time; with several experts one that asks a transformer whose parameters count."""
        several = len(self.model.family.experts) > 1
        return Setting(mask="none", **({"timestep": self.run.attribution.settings[0].timestep} if several else {}))

    def encode(self, frames: Frames) -> Conditioning:
        """A clip's latent, and what else the transformer is told of it."""
        return self.model.encode(frames, self.run.geometry[1])

    def take(self, row: Row, frames: Frames | ClipError) -> Row:
        """Backward this clip's losses. Returns its row without the features, which `finish` adds.

        A GPU is still at it then, and the next clip is prepared meanwhile.
        """
        columns: Row = {key: row[key] for key in ("clip_id", "version", "num_frames")}
        losses: dict[Place, Tensor] = {}
        try:
            with self.side.stream():
                versions = self._encoded(row, frames)
        except ClipError as error:
            return {**columns, "error": str(error), "losses": losses}
        settings = self.run.attribution.settings
        for place, conditioning, mask in versions:
            self.side.hand_over([*conditioning.values(), *([] if mask is None else [mask])])
            latent, of_clip = split(conditioning)
            of_video = take_clip(self.gradients, self.model, settings, latent, of_clip, mask, self.run.seed)
            losses |= {(*place, setting): loss for setting, loss in of_video.items()}
        return {**columns, "error": None if versions else row["error"], "losses": losses}

    def _encoded(self, row: Row, frames: Frames | ClipError) -> list[Encoded]:
        """A clip, or a query and its twins in all of their looks, as the transformer takes them; none where every
        setting needs a mask that the clip has not. Raises ClipError."""
        if isinstance(frames, ClipError):
            raise frames
        mask = None
        if row.get("mask") is not None:
            mask = motion.decode_mask(row["mask"], row["mask_shape"]).to(self.device)
        elif all(setting.mask == "motion" for setting in self.run.attribution.settings):
            return []
        return [
            (place, {**self.encode(video), **self.text(caption)}, video_mask)
            for place, video, video_mask, caption in self._versions(row, frames, mask, self.caption(row))
        ]

    def caption(self, row: Row) -> str:
        """The caption under which a clip is attributed."""
        by_name = {"own": row["caption"], "empty": "", "group": (row.get("group") or "").replace("_", " ")}
        caption: str = by_name[self.run.attribution.captions] or ""
        cut = self.model.cut(caption)
        if cut:
            self._cut += 1
            if self._cut in (1, 10, 100, 1000, 10_000, 100_000):
                log.warning(
                    "%d captions here are longer than model.text_tokens=%d, and their ends are cut off; clip %s loses "
                    "%d tokens",
                    self._cut,
                    self.run.model.text_tokens,
                    row["clip_id"],
                    cut,
                )
        return caption

    def _versions(self, row: Row, frames: Frames, mask: Tensor | None, caption: str) -> Iterator[Version]:
        """A clip, or a query and then its twins in all of their looks. Raises ClipError for a twin that does not
        move."""
        key = f"{self.run.seed} {row['clip_id']}"
        for look in self._looks(row, frames, mask, caption):
            yield (0, look[0]), *look[1:]
        for place, name in enumerate(self.run.queries.twins, 1):
            video = looks.twin(frames, name, key)
            twin_mask = None if mask is None else self._twin_mask(row, name, video)
            for look in self._looks(row, video, twin_mask, caption):
                yield (place, look[0]), *look[1:]

    def _looks(
        self, row: Row, frames: Frames, mask: Tensor | None, caption: str
    ) -> Iterator[tuple[int, Frames, Tensor | None, str]]:
        """A video in all of its looks: the look's number, frames, mask and caption."""
        key, moving = f"{self.run.seed} {row['clip_id']}", None
        if "background" in self.changes:
            assert self.motion is not None, "it was made for the backgrounds"
            moving = self.motion.region({**row, "mask_box": _of_picture(row)}, frames)
        for look in range(self.looks):
            video, is_mirrored = looks.in_look(frames, key, look, self.changes, moving)
            if is_mirrored:
                yield look, video, None if mask is None else mask.flip(-1), looks.mirrored_caption(caption)
            else:
                yield look, video, mask, caption

    def _twin_mask(self, row: Row, name: str, video: Frames) -> Tensor:
        assert self.motion is not None, "it was made for the twins"
        measured = self.motion.measure({**row, "mask_box": _of_picture(row), "error": None}, video)
        if measured["error"] is not None:
            raise ClipError("no_motion", f"its twin {name!r} (queries.twins) has no motion mask: {measured['error']}")
        return motion.decode_mask(measured["mask"], measured["mask_shape"]).to(self.device)

    def finish(self, rows: list[Row]) -> pa.Table:
        """Put the features taken since the last call to their rows."""
        settings, dim = len(self.run.attribution.settings), self.gradients.projection.dim
        storage = self.run.attribution.storage
        features = np.zeros((len(rows), settings, dim), np.float32)
        norms, losses = np.zeros((len(rows), settings), np.float32), np.zeros((len(rows), settings), np.float32)
        collected = iter(zip(*(part.numpy() for part in self.gradients.collect()), strict=True))
        for n, row in enumerate(rows):
            gradients = {place: next(collected) for place in row["losses"]}
            row["losses"] = {place: float(loss) for place, loss in row["losses"].items()}
            row["error"] = row["error"] or _unusable(row["losses"], gradients)
            if row["error"] is None:
                for s in dict.fromkeys(place[-1] for place in gradients):
                    features[n, s], norms[n, s], losses[n, s] = self._setting(row["losses"], gradients, s)
        valid = np.array([row["error"] is None for row in rows], bool)
        return pa.table(
            [
                pa.array([row["clip_id"] for row in rows], pa.string()),
                pa.array([row["version"] for row in rows], pa.string()),
                tables.vectors(stored_as(features, storage).reshape(len(rows), settings * dim), valid, storage),
                tables.vectors(norms, valid),
                tables.vectors(losses, valid),
                pa.array([row["num_frames"] for row in rows], pa.int32()),
                pa.array([row["error"] for row in rows], pa.string()),
            ],
            schema=schemas.features_schema(settings, dim, storage),
        )

    def _setting(
        self, losses: Mapping[Place, float], gradients: Mapping[Place, Gradient], setting: int
    ) -> tuple[npt.NDArray[np.float32], np.floating, np.floating]:
        """Feature, norm and loss of a clip under a setting; of a query's looks norm and loss are the mean."""
        q = self.run.queries
        kinds = [
            [(kind, look, setting) for look in range(self.looks) if (kind, look, setting) in gradients]
            for kind in range(1 + len(q.twins))
        ]
        real, *twins = (np.stack([gradients[place][0] for place in places]) for places in kinds)
        feature = query_feature(real, np.array(twins), q.functional)
        norm = np.mean([gradients[place][1] for place in kinds[0]])
        return feature, norm, np.mean([losses[place] for place in kinds[0]])

    def projected(self) -> bool:
        """Whether the gradients taken so far are projected, but for a clip's: to finish earlier would cost a whole
        generation of a dense P for the few that are held."""
        versions = self.looks * (1 + len(self.run.queries.twins))
        return self.gradients.waiting < len(self.run.attribution.settings) * versions

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        measured = scanning.PART in rows.column_names  # of the motion table: its masks are read here
        if measured:
            rows = scanning.lookup(rows, self.LOOKED_UP)
        clips = decoded(self.decoder, self.run, rows.to_pylist())
        for pairs in tables.in_parts((self._take(clip, measured) for clip in clips), self.projected):
            shown = [picture for picture, _ in pairs if picture is not None]
            parts = {"pictures": pictures.rows(shown)} if shown else {}
            yield {**parts, "features": self.finish([row for _, row in pairs])}

    def _take(self, clip: tuple[Row, Frames | ClipError], measured: bool) -> tuple[Row | None, Row]:
        """A clip's row of pictures/, which it has already where its motion was measured, and that of its features."""
        return None if measured else pictures.picture(*clip), self.take(*clip)

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        return {"features": self.finish([self.take(row, error) for row in rows.to_pylist()])}


def _of_picture(row: Row) -> str | None:
    """A row's mask_box for all of its clip's time: a twin's frames have another order, and what stands behind a thing
    is exchanged in every frame."""
    box = mask_boxes.of_row(row.get("mask_box"))
    return None if box is None else str(box.of_picture())


def stored_as(features: npt.NDArray[np.float32], storage: Storage) -> npt.NDArray[Any]:
    """Finite features [..., k] as they are stored. In float16 and int8 each is scaled, so that none is too large or
    too small for it: to below 1 by a power of two, which costs no digit, or to 127 for its largest number."""
    if storage == "float32":
        return features
    largest = np.abs(features).max(-1, keepdims=True)
    scaled: npt.NDArray[Any]
    if storage == "float16":
        scaled = np.ldexp(features, -np.frexp(largest)[1]).astype(np.float16)
    else:
        scaled = features.astype(np.float64) * (127 / np.where(largest > 0, largest, 1).astype(np.float64))
        scaled = np.rint(scaled).astype(np.int8)
    return scaled


def featured(error: str | None) -> bool:
    """Whether a row of the motion table goes on to features: every result, and still clips for their unmasked ones."""
    return error is None or code_of(error) == "no_motion"


class AttributionWorker:
    """Clips -> motion and features in one pass: every video is read and decoded once.

    Where a `sample` is named, of other clips no motion is measured, and their features need none.
    """

    def __init__(
        self,
        run: Run,
        grid: Grid,
        fingerprint: Mapping[str, Any],
        sample: Collection[str] | None = None,
    ) -> None:
        self.sample = sample
        pool = run.resources.extract_features
        self.motion = MotionWorker(run, grid, pool.gpus, pool.cpus)
        self.features = FeatureWorker(run, fingerprint, self.motion)

    def shrink(self) -> bool:
        """See FeatureWorker: both workers share the flow."""
        return self.features.shrink()

    def take(self, row: Row, frames: Frames | ClipError) -> tuple[Row | None, Row | None, Row]:
        """A clip's row of the motion table, if it has one, that of the features, if it goes on, and that of
        pictures/."""
        shown = pictures.picture(row, frames)
        if self.sample is not None and row["clip_id"] not in self.sample:
            return None, self.features.take(row, frames), shown
        with self.features.side.stream():
            measured = self.motion.measure(row, frames)
        return measured, self.features.take(measured, frames) if featured(measured["error"]) else None, shown

    def __call__(self, clips: pa.Table) -> Iterator[dict[str, pa.Table]]:
        schema = schemas.motion_schema(clips.schema)
        decoded_clips = decoded(self.motion.decoder, self.motion.run, clips.to_pylist())
        for part in tables.in_parts((self.take(*clip) for clip in decoded_clips), self.features.projected):
            moved = [motion_row for motion_row, _, _ in part if motion_row is not None]
            gone_on = [feature_row for _, feature_row, _ in part if feature_row is not None]
            parts = {
                "pictures": pictures.rows([shown for *_, shown in part]),
                "features": self.features.finish(gone_on),
            }
            if moved:
                parts |= self.motion.parts(moved, schema)
            yield parts

    def refuse(self, clips: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        return self.motion.refuse(clips, error) if self.sample is None else self.features.refuse(clips, error)


def _unusable(losses: Mapping[Place, float], gradients: Mapping[Place, Gradient]) -> str | None:
    """Why a clip's features cannot be used, if so."""
    finite = np.isfinite(list(losses.values())).all()
    if not finite or not all(np.isfinite(feature).all() and np.isfinite(norm) for feature, norm in gradients.values()):
        return str(
            ClipError("not_finite", f"a loss or gradient of this clip is not finite (losses {list(losses.values())}).")
        )
    if not all(norm for _, norm in gradients.values()):
        return str(ClipError("not_finite", "a gradient of this clip is zero in every parameter that counts."))
    return None
