"""Videos whose frames show their own numbers, in every container and codec that PyAV writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.video.orientation import Frames

FORMATS = {"mkv": "matroska", "m4v": "mp4", "mpg": "mpeg", "vob": "vob", "ts": "mpegts", "wmv": "asf", "3gp": "3gp"}
OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "fast"},
    "libx265": {"preset": "fast", "x265-params": "log-level=0:pools=1:frame-threads=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "6"},
    "libsvtav1": {"preset": "10", "svtav1-params": "lp=1"},
}


def picture(number: int, height: int = 32, width: int = 64) -> Frames:
    """A frame that shows its number in eight stripes, black or white: the lowest bit is on the left."""
    bits = (number >> np.arange(8)) & 1
    return np.repeat(np.tile(np.repeat(bits, width // 8), (height, 1))[..., None], 3, 2).astype(np.uint8) * 255


def numbers(frames: Frames) -> list[int]:
    """The numbers that frames [F, H, W, 3] show."""
    stripes = frames.mean(axis=(1, 3)).reshape(len(frames), 8, -1).mean(axis=2) > 127
    return [int(n) for n in stripes @ (1 << np.arange(8))]


def write(
    path: Path | str,
    codec: str,
    stamps: Sequence[int],
    *,
    rate: int = 25,
    keys: int = 10,
    b_frames: int = 0,
    size: tuple[int, int] = (32, 64),
    pix_fmt: str = "yuv420p",
    change: Callable[[Any], None] | None = None,
    options: dict[str, str] | None = None,
    stream_changes: Callable[[Any], None] | None = None,
) -> str:
    """A file whose frame i shows the number i at stamps[i] / rate seconds. `change` alters each packet before it is
    written, `stream_changes` the stream before the first one."""
    end = str(path).rsplit(".", 1)[1]
    with av.open(str(path), "w", format=FORMATS.get(end, end)) as container:
        stream: Any = container.add_stream(codec, rate=rate, options={**OPTIONS.get(codec, {}), **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size = keys
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.bit_rate = 2_000_000
        stream.codec_context.max_b_frames = b_frames
        if stream_changes is not None:
            stream_changes(stream)
        frames = [av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24") for i in range(len(stamps))]
        for frame, stamp in zip(frames, stamps, strict=True):
            shown = frame.reformat(format=pix_fmt)
            shown.pts, shown.time_base = stamp, Fraction(1, rate)
            _mux(container, stream.encode(shown), change)
        _mux(container, stream.encode(None), change)
    return str(path)


def _mux(container: Any, packets: list[Any], change: Callable[[Any], None] | None) -> None:
    for packet in packets:
        if change is not None:
            change(packet)
        container.mux(packet)
