"""Clips as files of their own, which every reader takes for the same frames at the same times."""

from __future__ import annotations

import os
import tempfile
from fractions import Fraction

import av
import numpy as np

from pipeline.video.orientation import Frames

BT601, LIMITED = 6, 1  # FFmpeg's numbers of the matrix by which it converts RGB by default, and of its range


def encode_clip(frames: Frames, fps: float, crf: int = 14, preset: str = "medium") -> bytes:
    """An mp4 file of frames [F, H, W, 3]: H.264 yuv420p, square pixels, F frames at a constant rate, F / fps seconds.

    No frame is predicted from a later one. So no reader has to sort frames or to follow an edit list, which some do
    not, and the first frame has the time 0. Equal frames give equal bytes.
    Raises ValueError for anything but uint8 frames of even height and width.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames: {frames.dtype} {list(frames.shape)}; they must be uint8 [F, H, W, 3], F at least 1")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"frames: {frames.shape[1]} x {frames.shape[2]}; H.264 needs an even height and width")
    container_options = {"fflags": "+bitexact", "movflags": "+faststart", "use_editlist": "0"}
    # Threads and x264's macroblock tree make two encodings of the same frames differ.
    codec_options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "mbtree=0:bframes=0"}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip.mp4")
        with av.open(path, "w", options=container_options) as container:
            rate = Fraction(fps).limit_denominator(65535)
            stream = container.add_stream("libx264", rate=rate, options=codec_options)
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            stream.codec_context.sample_aspect_ratio = Fraction(1, 1)
            stream.codec_context.colorspace, stream.codec_context.color_range = BT601, LIMITED
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        with open(path, "rb") as file:
            return file.read()
