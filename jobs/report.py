"""The page of a run: report/index.html and summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs import command
from pipeline import report as page
from pipeline import stores
from pipeline.config import Run
from pipeline.decoder import Decoder
from pipeline.video import ClipError, Frames


def report(run: Run) -> None:
    frames, fps, height, width = run.geometry
    with Decoder(run.data.decode_timeout) as decoder:

        def frames_of(row: Mapping[str, Any]) -> Frames | None:
            try:
                return decoder.frames(row["uri"], row["start_frame"], frames, fps, height, width)
            except ClipError:
                return None

        def video_of(uri: str) -> Frames | None:
            d = run.data
            try:
                return decoder.frames(uri, 0, d.frames, d.fps, d.height, d.width)
            except ClipError:
                return None

        page.write(run, frames_of, video_of)
    print(f"page: {stores.join(run.root, 'report', 'index.html')}")


if __name__ == "__main__":
    command.main(report, __doc__)
