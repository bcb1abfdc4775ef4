"""What clips look like, as the rows of pictures/ have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ClipError
from pipeline.motion.signature import signature
from pipeline.tables import schemas

Row = dict[str, Any]


def picture(row: Row, frames: npt.NDArray[np.uint8] | ClipError) -> Row:
    """The row of pictures/ of a clip, [F, H, W, 3], or of one that could not be decoded."""
    about = {"clip_id": row["clip_id"], "version": row["version"]}
    if isinstance(frames, ClipError):
        return {**about, "signature": None, "error": str(frames)}
    return {**about, "signature": signature(frames), "error": None}


def rows(pictures: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(pictures, schema=schemas.PICTURES)
