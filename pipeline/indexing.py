"""The body of the actors that index videos. It stands alone so that they start without torch."""

from __future__ import annotations

import pyarrow as pa

from pipeline.config import Run
from pipeline.decoder import Decoder, index


class IndexWorker:
    """Videos -> rows of clips."""

    def __init__(self, run: Run, schema: pa.Schema) -> None:
        self.run, self.schema, self.decoder = run, schema, Decoder(run.data.decode_timeout)

    def __call__(self, videos: pa.Table) -> dict[str, pa.Table]:
        rows = [row for video in videos.to_pylist() for row in index(video, self.run.data, self.decoder, self.run.seed)]
        return {"clips": pa.Table.from_pylist(rows, schema=self.schema)}
