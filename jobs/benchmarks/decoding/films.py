"""Films that the benchmark makes: a camera over a textured plane, with grain and cuts; every frame shows its number.

A piece of a few seconds is encoded; a longer film repeats its packets, so that an hour takes seconds to make.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

RATE = 24  # frames a second
SHOT = 40  # frames from one cut to the next
_BITS = 8  # of the number that a frame shows

Plane = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Codec:
    """An encoder of PyAV's wheels, and how it is told to be quick."""

    name: str
    encoder: str
    pix_fmt: str
    end: str
    options: tuple[tuple[str, str], ...]


CODECS = (
    Codec("H.264", "libx264", "yuv420p", "mp4", (("preset", "veryfast"), ("crf", "24"), ("g", "48"))),
    Codec("HEVC 10 bit", "libx265", "yuv420p10le", "mp4", (("preset", "ultrafast"), ("x265-params", "log-level=none"))),
    Codec("AV1", "libsvtav1", "yuv420p", "mp4", (("preset", "8"), ("g", "60"))),
    Codec("VP9", "libvpx-vp9", "yuv420p", "webm", (("deadline", "realtime"), ("cpu-used", "8"), ("b", "6M"))),
    Codec("MPEG-4", "mpeg4", "yuv420p", "mp4", (("b", "8M"),)),
)


class Scene:
    """The pictures of a piece, [height, width], drawn from a fixed seed."""

    def __init__(self, height: int, width: int) -> None:
        rng = np.random.default_rng(0)
        self.height, self.width = height, width
        self._luma = _texture(rng, height * 4 // 3, width * 4 // 3, 50.0)
        self._chroma = [_texture(rng, height * 2 // 3, width * 2 // 3, 25.0) for _ in range(2)]
        self._grain = rng.integers(-4, 5, (8, height, width)).astype(np.int16)

    def frame(self, number: int) -> Any:
        """The frame of this number, yuv420p."""
        shot = number // SHOT
        left = (number * 5 + shot * 131) % (self.width // 3) // 2 * 2
        top = (number * 3 + shot * 77) % (self.height // 3) // 2 * 2
        luma = self._luma[top : top + self.height, left : left + self.width]
        if shot % 2:
            luma = 255 - luma
        luma = np.clip(luma + self._grain[number % 8], 0, 255).astype(np.uint8)
        _write_number(luma, number)
        rows, columns = slice(top // 2, (top + self.height) // 2), slice(left // 2, (left + self.width) // 2)
        planes = [luma, *(plane[rows, columns] for plane in self._chroma)]
        packed = np.concatenate([plane.reshape(-1) for plane in planes]).reshape(self.height * 3 // 2, self.width)
        return av.VideoFrame.from_ndarray(packed, format="yuv420p")


def _texture(rng: np.random.Generator, height: int, width: int, contrast: float) -> Plane:
    """A picture with the spectrum of photographs, amplitude falling with frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    noise = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    picture = np.fft.irfft2(noise / frequency**1.3, (height, width))
    plane: Plane = np.clip(128 + contrast * (picture - picture.mean()) / picture.std(), 16, 235).astype(np.uint8)
    return plane


def _write_number(luma: Plane, number: int) -> None:
    """Eight black or white squares in the middle of the lower edge, the lowest bit on the left."""
    side = luma.shape[0] // 16
    left = (luma.shape[1] - _BITS * side) // 2
    for bit in range(_BITS):
        luma[-side:, left + bit * side : left + (bit + 1) * side] = 235 if number >> bit & 1 else 16


def read_numbers(frames: Plane) -> list[int]:
    """The numbers that RGB frames [F, H, W, 3] show, scaled to any size and cropped about the centre."""
    height, width = frames.shape[1:3]
    side = height / 16
    row = round(height - side / 2)
    columns = [round(width / 2 + (bit - _BITS / 2 + 0.5) * side) for bit in range(_BITS)]
    bits = frames[:, row - 1 : row + 1, columns].mean(axis=(1, 3)) > 127
    return [int(number) for number in bits @ (1 << np.arange(_BITS))]


def write_piece(path: Path, codec: Codec, scene: Scene, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec.encoder, rate=RATE, options=dict(codec.options))
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, codec.pix_fmt
        for number in range(frames):
            frame = scene.frame(number)
            container.mux(stream.encode(frame.reformat(format=codec.pix_fmt)))
        container.mux(stream.encode(None))


def repeat(piece: Path, path: Path, frames: int, times: int) -> None:
    """A film that shows a piece of so many frames again and again: the same packets, each time later."""
    with av.open(str(path), "w") as film:
        written: Any = None
        for turn in range(times):
            with av.open(str(piece)) as source:
                stream = source.streams.video[0]
                if written is None:
                    written = film.add_stream_from_template(stream, opaque=True)
                later = round(turn * frames / RATE / stream.time_base)
                for packet in source.demux(stream):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + later, packet.dts + later
                        packet.stream = written
                        film.mux(packet)


def copies(piece: Path, folder: Path, count: int) -> None:
    """A folder of so many copies of one short film."""
    folder.mkdir()
    for number in range(count):
        shutil.copyfile(piece, folder / f"{number:05d}{piece.suffix}")
