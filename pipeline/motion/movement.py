"""A clip's movement, what breaks it and the colours of what moves, as the rows of movement/ have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch.nn.functional as F
from torch import Tensor

from pipeline.motion import colours, judge
from pipeline.motion.flaws import FLAWS, flaws
from pipeline.tables import schemas

SIDE = 128  # of the flow's longer side, in points: a description of what moves needs no more
SCHEMA = schemas.movement_schema(judge.NUMBERS, len(FLAWS), colours.NUMBERS)
UNBROKEN = [0.0] * len(FLAWS)  # of a clip in which nothing moves


def movement(frames: npt.NDArray[np.uint8], flow: Tensor) -> dict[str, Any]:
    """The columns `description`, `flaws` and `colours` of a clip: frames [F, H, W, 3], flow [F-1, 2, h, w] without
    the camera's."""
    return {
        "description": judge.description(_coarse(flow).cpu().numpy()).tolist(),
        "flaws": flaws(frames).tolist(),
        "colours": colours.moving_colours(frames, flow).tolist(),
    }


def _coarse(flow: Tensor) -> Tensor:
    """A flow of at most SIDE points a side, its vectors in these points."""
    height, width = flow.shape[-2:]
    shrink = SIDE / max(height, width)
    if shrink >= 1:
        return flow
    size = [round(height * shrink), round(width * shrink)]
    small = F.interpolate(flow, size, mode="area")
    return small * flow.new_tensor([size[1] / width, size[0] / height]).view(1, 2, 1, 1)


def rows(measured: list[dict[str, Any]]) -> pa.Table:
    """Rows of movement/ of measured clips; those whose flow is not known have their error."""
    outcomes = [{**row, "error": row["error"] if row["description"] is None else None} for row in measured]
    return pa.Table.from_pylist(outcomes, schema=SCHEMA)
