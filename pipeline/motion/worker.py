"""The body of the actors that measure motion."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline import motion, tables
from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.inputs.manifests import mask_boxes
from pipeline.models import Grid
from pipeline.models.device import device_for
from pipeline.motion import movement, pictures
from pipeline.tables import schemas
from pipeline.video.decoders import Frames, Row, decoded, decoders_for


class MotionWorker:
    """Clips -> motion: RAFT is loaded once, on the actor's share of GPUs."""

    def __init__(self, run: Run, grid: Grid, gpus: float, cpus: float | None = None) -> None:
        self.run, self.grid = run, grid
        self.device = device_for(gpus)
        self.raft = motion.load_raft(run.motion, self.device)
        self.decoder = decoders_for(run, run.resources.estimate_motion.cpus if cpus is None else cpus)

    def shrink(self) -> bool:
        """Put half as many frames at a time through RAFT; see `smaller_batch`."""
        smaller = smaller_batch(self.run.motion.batch, self.run.geometry[0], self.device.type)
        if smaller is None:
            return False
        self.run = self.run.model_copy(update={"motion": self.run.motion.model_copy(update={"batch": smaller})})
        return True

    def measure(self, row: Row, frames: Frames | ClipError) -> Row:
        """The row of the motion table, with the columns of movement/ beside; a clip's own error is kept.

        Of a query with a `mask_box`, mask and movement are those inside it; its statistics are of the whole picture.
        """
        row = {**row, "mask": None, "mask_shape": None, "motion_mean": None, "motion_p95": None, "camera_share": None}
        row |= {"description": None, "flaws": None, "colours": None}
        if isinstance(frames, ClipError):
            return {**row, "error": str(frames)}
        try:
            keep = self._keep(row, frames)
        except ClipError as error:
            return {**row, "error": str(error)}
        flow = motion.estimate(frames, self.raft, self.run.motion, self.device)
        if not bool(torch.isfinite(flow).all()):
            return {**row, "error": str(ClipError("not_finite", "the optical flow of this clip is not finite."))}
        camera = motion.camera_motion(flow)
        row["camera_share"] = motion.camera_share(flow, camera)
        row |= movement.movement(frames, _inside(flow - camera, keep))
        flow = flow - camera if self.run.motion.camera == "subtract" else flow
        row["motion_mean"], row["motion_p95"] = motion.statistics(flow)
        mask = motion.motion_mask(flow, self.run.motion, self.grid, keep)
        if mask is None:
            where = "" if keep is None else f" inside its mask_box {row['mask_box']}"
            still = f"its flow{where} spans less than motion.still = {self.run.motion.still:g} pixels a frame."
            return {**row, "flaws": movement.UNBROKEN, "error": str(ClipError("no_motion", still))}
        row["mask"], row["mask_shape"] = motion.encode_mask(mask), list(mask.shape)
        return row

    def _keep(self, row: Row, frames: Frames) -> Tensor | None:
        """Which places of the flow the row's `mask_box` keeps, [F, h, w]; None where all count. Raises ClipError."""
        box = mask_boxes.of_row(row.get("mask_box"))
        if box is None:
            return None
        size = (self.run.motion.height, self.run.motion.width)
        return torch.from_numpy(box.keep(len(frames), self.run.geometry[1], *size)).to(self.device)

    def region(self, row: Row, frames: Frames) -> npt.NDArray[np.float32]:
        """Where something in a query moves by itself, inside its `mask_box`: [H, W] in [0, 1]. Raises ClipError for a
        box that holds too little."""
        keep = self._keep(row, frames)
        flow = motion.estimate(frames, self.raft, self.run.motion, self.device)
        _, height, width, _ = frames.shape
        moving = motion.moving_region(flow - motion.camera_motion(flow), height, width, keep)
        region: npt.NDArray[np.float32] = moving.cpu().numpy()
        return region

    def energy(self, frames: Frames) -> tuple[float, int] | None:
        """What a clip's mask keeps on the model's grid; see `motion.mask_energy`."""
        flow = motion.estimate(frames, self.raft, self.run.motion, self.device)
        if self.run.motion.camera == "subtract":
            flow = flow - motion.camera_motion(flow)
        return motion.mask_energy(flow, self.run.motion, self.grid)

    def __call__(self, clips: pa.Table) -> Iterator[dict[str, pa.Table]]:
        schema = schemas.motion_schema(clips.schema)
        decoded_clips = decoded(self.decoder, self.run, clips.to_pylist())
        for pairs in tables.in_parts((pictures.picture(*clip), self.measure(*clip)) for clip in decoded_clips):
            shown, measured = zip(*pairs, strict=True)
            yield {"pictures": pictures.rows(list(shown)), **self.parts(list(measured), schema)}

    @staticmethod
    def parts(measured: list[Row], schema: pa.Schema) -> dict[str, pa.Table]:
        """What is written of measured clips. Their movement comes first: a row of motion/ says that both are there."""
        return {"movement": movement.rows(measured), "motion": pa.Table.from_pylist(measured, schema=schema)}

    def refuse(self, clips: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        rows = clips.to_pylist()
        shown, measured = [pictures.picture(row, error) for row in rows], [self.measure(row, error) for row in rows]
        return {"pictures": pictures.rows(shown), **self.parts(measured, schemas.motion_schema(clips.schema))}


def _inside(flow: Tensor, keep: Tensor | None) -> Tensor:
    return flow if keep is None else flow * keep[:-1, None]


def smaller_batch(batch: int, frames: int, device: str) -> int | None:
    """Half of RAFT's batch; None where there is no smaller one.

    On CPUs a frame or pair that goes through alone gets other last bits than one in company, so that a batch is not
    halved where more of them would be alone than before.
    """
    half = min(batch, frames) // 2
    if half < 1:
        return None
    alike = all((count % half == 1) == (count % batch == 1) for count in (frames, frames - 1))
    return half if device != "cpu" or (half > 1 and alike) else None
