"""Clips as files of their own, which every reader takes for the same frames at the same times."""

from __future__ import annotations

import os
import tempfile
from fractions import Fraction
from typing import Any

import av
import numpy as np

from pipeline.errors import ClipError
from pipeline.video.orientation import Frames, pose
from pipeline.video.packets import NONE, Pulse, no_pulse, open_container, read_packets
from pipeline.video.timeline import pictures

BT601, LIMITED = 6, 1  # FFmpeg's numbers of the matrix by which it converts RGB by default, and of its range


def encode_clip(frames: Frames, fps: float, crf: int = 14, preset: str = "medium") -> bytes:
    """An mp4 file of frames [F, H, W, 3]: H.264 yuv420p, square pixels, F frames at a constant rate, F / fps seconds.

    No frame is predicted from a later one. So no reader has to sort frames or to follow an edit list, which some do
    not, and the first frame has the time 0. Equal frames give equal bytes.
    Raises ValueError for anything but uint8 frames of even height and width.
    """
    return encode_mp4(frames, fps, crf, preset, plain=True)


def encode_mp4(frames: Frames, fps: float, crf: int, preset: str, plain: bool) -> bytes:
    """An mp4 file of frames [F, H, W, 3], H.264 yuv420p. Equal frames give equal bytes.

    `plain`: it is written and labelled as `encode_clip` says. Else frames may be predicted from later ones, which takes
    fewer bytes.
    Raises ValueError for anything but uint8 frames of even height and width.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames: {frames.dtype} {list(frames.shape)}; they must be uint8 [F, H, W, 3], F at least 1")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"frames: {frames.shape[1]} x {frames.shape[2]}; H.264 needs an even height and width")
    container_options = {"fflags": "+bitexact", "movflags": "+faststart"}
    # Threads and x264's macroblock tree make two encodings of the same frames differ.
    codec_options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
    if plain:
        container_options["use_editlist"] = "0"
        codec_options["x264-params"] += ":bframes=0"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip.mp4")
        with av.open(path, "w", options=container_options) as container:
            rate = Fraction(fps).limit_denominator(65535)
            stream = container.add_stream("libx264", rate=rate, options=codec_options)
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            if plain:
                stream.codec_context.sample_aspect_ratio = Fraction(1, 1)
                stream.codec_context.colorspace, stream.codec_context.color_range = BT601, LIMITED
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        with open(path, "rb") as file:
            return file.read()


def clip_file(
    path: str, frames: int, fps: float, height: int, width: int, pulse: Pulse = no_pulse
) -> list[dict[str, Any]]:
    """Whether a file already is a clip as `encode_clip` makes them, as a list of one: {difference}, None or a clause
    that says what is different. It is decoded only where all that its container says fits. Raises ClipError."""
    packets = read_packets(path, pulse)
    if len(packets) != frames or not packets.shown.all():
        return [{"difference": "it has another number of frames"}]
    with open_container(path) as container:
        stream = container.streams[packets.stream]
        codec = stream.codec_context
        rate = Fraction(fps).limit_denominator(65535)
        stamps = [None if stamp == NONE else stamp * stream.time_base for stamp in packets.pts.tolist()]
        differences = {
            "it is no mp4": "mp4" not in container.format.name.split(","),
            "it has other streams": len(container.streams) > 1,
            "it has another codec": (codec.name, codec.pix_fmt) != ("h264", "yuv420p"),
            "it has another size": (codec.height, codec.width) != (height, width),
            "its pixels are not square": stream.sample_aspect_ratio not in (None, 1),
            "its frames have other times": stamps != [number / rate for number in range(frames)],
            "its frames are reordered": packets.reorders or bool((packets.pts != packets.dts).any()),
            "it has another duration": stream.duration is None or stream.duration * stream.time_base != frames / rate,
        }
    for clause, holds in differences.items():
        if holds:
            return [{"difference": clause}]
    with open(path, "rb") as file:
        if b"elst" in file.read():
            return [{"difference": "it has an edit list"}]
    shown = 0
    for picture in pictures(path, packets, 0, pulse):
        if picture.damaged:
            raise ClipError("decode", f"its frame {shown} is damaged")
        turned = pose(picture.frame, 1.0)
        if turned.transposed or turned.reverse_rows or turned.reverse_columns:
            return [{"difference": "it is turned"}]
        shown += 1
    return [{"difference": None if shown == frames else "it has another number of frames"}]
