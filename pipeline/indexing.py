"""The body of the actors that index videos. It stands alone so that they start without torch."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipeline.config import Run
from pipeline.decoder import Decoder, index
from pipeline.tables import in_parts


class IndexWorker:
    """Videos -> rows of clips."""

    def __init__(self, run: Run, schema: pa.Schema) -> None:
        self.run, self.schema, self.decoder = run, schema, Decoder(run.data.decode_timeout)

    def __call__(self, videos: pa.Table) -> Iterator[dict[str, pa.Table]]:
        found = (index(video, self.run.data, self.decoder, self.run.seed) for video in videos.to_pylist())
        for group in in_parts(found):
            yield {"clips": pa.Table.from_pylist([row for rows in group for row in rows], schema=self.schema)}
