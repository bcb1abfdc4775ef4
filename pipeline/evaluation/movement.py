"""Videos -> how they move, in the numbers that the judge compares: the body of the actors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch

from pipeline import motion, tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.models.device import device_for
from pipeline.motion import judge
from pipeline.tables import schemas
from pipeline.video.decoders import Row, decoder_for

QUERY, VIDEO = "query", "video"
ASKED = schemas.JUDGED
DESCRIBED = schemas.descriptions_schema(judge.NUMBERS)


def fingerprint(run: Run) -> dict[str, Any]:
    d = run.data
    return {**fingerprints.motion(run), "data.size": [d.height, d.width], "judge": judge.VERSION}


class DescriptionWorker:
    """Rows of ASKED -> rows of DESCRIBED. A generated video must have exactly the frames that the run asks for."""

    def __init__(self, run: Run) -> None:
        self.run, self.device = run, device_for(run.resources.evaluate.gpus)
        self.raft = motion.load_raft(run.motion, self.device)
        self.decoder = decoder_for(run)

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        for group in tables.in_parts(map(self.describe, rows.to_pylist())):
            yield {"motion": pa.Table.from_pylist(group, schema=DESCRIBED)}

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        refused_rows = [{**row, "description": None, "problem": str(error)} for row in rows.to_pylist()]
        return {"motion": pa.Table.from_pylist(refused_rows, schema=DESCRIBED)}

    def describe(self, row: Row) -> Row:
        d = self.run.data
        try:
            frames = self.decoder.frames(row["uri"], row["start_frame"], d.frames, d.fps, d.height, d.width)
            if row["kind"] == VIDEO and self._has(row, d.frames + 1):
                problem = f"too_long: it has more than the {d.frames} frames of data.frames."
                return {**row, "description": None, "problem": problem}
        except ClipError as error:
            return {**row, "description": None, "problem": str(error)}
        flow = motion.estimate(frames, self.raft, self.run.motion, self.device)
        if self.run.motion.camera == "subtract":
            flow = flow - motion.camera_motion(flow)
        if not bool(torch.isfinite(flow).all()):
            return {**row, "description": None, "problem": "not_finite: its optical flow is not finite."}
        return {**row, "description": judge.description(flow.cpu().numpy()).tolist(), "problem": None}

    def _has(self, row: Row, frames: int) -> bool:
        """Whether a video has so many frames. Raises ClipError where that cannot be seen."""
        d = self.run.data
        try:
            self.decoder.frames(row["uri"], row["start_frame"], frames, d.fps, d.height, d.width)
        except ClipError as error:
            if error.code != "too_short":
                raise
            return False
        return True
