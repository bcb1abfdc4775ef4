"""The page of a run: report/index.html and summary.json."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.pages import report as page
from pipeline.pages.gallery import FramesOf, VideoOf
from pipeline.stages import run_record
from pipeline.storage import lease, stores
from pipeline.video.decoder import Decoder
from pipeline.video.decoders import decoder_for
from pipeline.video.orientation import Frames


def frames_by(run: Run, decoder: Decoder) -> FramesOf:
    """Frames of a row of clips/ or queries/ at the attribution geometry; None where they cannot be decoded."""
    frames, fps, height, width = run.geometry

    def frames_of(row: Mapping[str, Any]) -> Frames | None:
        try:
            return decoder.frames(row["uri"], row["start_frame"], frames, fps, height, width)
        except ClipError:
            return None

    return frames_of


def video_by(run: Run, decoder: Decoder) -> VideoOf:
    """Frames of a generated video, likewise."""
    d = run.data

    def video_of(uri: str) -> Frames | None:
        try:
            return decoder.frames(uri, 0, d.frames, d.fps, d.height, d.width)
        except ClipError:
            return None

    return video_of


def report(run: Run) -> None:
    lease.check(run.root)
    with decoder_for(run) as decoder:
        summary = page.write(run, frames_by(run, decoder), video_by(run, decoder))
    if summary["page"] is None:
        run_record.note_retry("the page lacks a picture")
    place = stores.join(run.root, "report", "index.html")
    run_record.note_last_words(f"page: {place}")
    print(f"page: {place}")
    if place.startswith("s3://"):
        print(f"  one file; to look at it: aws s3 cp {shlex.quote(place)} page.html, and open page.html in a browser")
