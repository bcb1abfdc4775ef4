"""The page of a run: report/index.html and summary.json."""

from __future__ import annotations

from jobs import command
from pipeline import report as page
from pipeline import tables
from pipeline.config import Run
from pipeline.decoder import Decoder
from pipeline.video import ClipError


def report(run: Run) -> None:
    frames, fps, height, width = run.geometry
    with Decoder(run.data.decode_timeout) as decoder:

        def frames_of(row):
            try:
                return decoder.frames(row["uri"], row["start_frame"], frames, fps, height, width)
            except ClipError:
                return None

        page.write(run, frames_of)
    print(f"page: {tables.join(run.root, 'report', 'index.html')}")


if __name__ == "__main__":
    command.main(report, __doc__)
