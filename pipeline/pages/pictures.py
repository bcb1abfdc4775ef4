"""Clips as small self-contained pictures: one film strip that the page plays, and the motion mask laid over it.

A picture is a strip of frames side by side. The page shows one frame of it at a time, by a stepped animation, so that
the clip loops, can be paused, and its mask (a strip of as many frames, moved by the same animation) never runs apart.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.video.cut_clips import encode_clip

Frames = npt.NDArray[np.uint8]  # [frames, height, width, 3]
Mask = npt.NDArray[np.uint8]  # [latent frames, h, w], W x 255

TINY = 64  # clips up to this many pixels wide are enlarged without smoothing and kept without loss where that fits
MASK_WIDTH = 56  # latent grids wider than this are averaged: the page is no wider
FILM_QUALITIES = (26, 31, 36)  # of x264: the higher, the smaller
ATTEMPTS = ((24, 80), (24, 60), (16, 60), (16, 40), (10, 40), (8, 25), (5, 20), (3, 10))  # frames, WebP quality


@dataclass(frozen=True)
class Picture:
    """A strip of `count` frames, shown `width` x `height` CSS pixels large and played in `seconds`; data URIs.

    Where a strip cannot hold every frame, `film` is an H.264 film of all `frames` of them; the strip is then its first
    frame, and the mask a strip of its `count` latent frames.
    """

    strip: str
    mask: str | None
    count: int
    width: int
    height: int
    seconds: float
    pixelated: bool
    film: str | None = None
    frames: int = 0


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` frames, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [int(i) for i in np.unique(np.rint(np.linspace(0, count - 1, most)).astype(int))]


def latent_frames(frames: int, latents: int) -> list[int]:
    """The latent frame that holds each of a clip's pixel frames (METHOD.md, step 2).

    Latent frame 0 is pixel frame 0; each later one folds the next `stride` pixel frames, the last one perhaps fewer.
    """
    if latents == 1:
        return [0] * frames
    stride = max(1, -(-(frames - 1) // (latents - 1)))
    return [min(-(-frame // stride), latents - 1) for frame in range(frames)]


def heat(mask: Mask, latents: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The mask as colours over a picture, RGBA [frames, h, w, 4]: none where nothing moves, amber, then red."""
    w = np.rint(mask[list(latents)].astype(np.float64) / 17) / 15  # 16 levels keep the file small
    colours = np.stack([np.full_like(w, 255.0), 196 * (1 - w) ** 0.8 + 12, 40 * (1 - w) + 48 * w, 215 * w**0.75], -1)
    colours[w == 0] = 0
    pixels: npt.NDArray[np.uint8] = np.rint(colours).astype(np.uint8)
    return pixels


def picture(
    frames: Frames,
    box: tuple[int, int],
    limit: int,
    seconds: float,
    mask: Mask | None = None,
    most: int = 24,
    film: bool = False,
) -> Picture:
    """A clip's picture of at most `limit` bytes (before base64), fitted into a box of CSS pixels (width, height).

    The mask, if any, is of these very frames. Frames are left out, evenly, and quality is lowered, as far as the limit
    asks. With `film`, frames are not left out: a film holds them all, as long as it keeps to the limit at a quality
    that shows anything. Raises ValueError for frames that are no uint8 [F, H, W, 3].
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames of {frames.dtype} {frames.shape}: a picture takes uint8 [frames, height, width, 3]")
    indices = evenly(len(frames), min(most, ATTEMPTS[0][0]))
    latents = [latent_frames(len(frames), len(mask))[i] for i in indices] if mask is not None else []
    width, height, pixels, pixelated = _fit(frames[indices], box)
    for most_frames, quality in ATTEMPTS:
        chosen = evenly(len(pixels), most_frames)
        over = _mask_strip(mask, [latents[i] for i in chosen]) if mask is not None else None
        room = limit - len(over or b"")
        strip = _encode(_side_by_side(pixels[chosen]), room, quality, pixelated)
        if len(strip) <= room:
            break
    if film and len(chosen) < len(frames):
        whole = _film(frames, (width, height), limit, seconds, mask)
        if whole is not None:
            return whole
    mask_uri = None if over is None else _uri(over)
    return Picture(_uri(strip), mask_uri, len(chosen), width, height, seconds, pixelated)


def _film(frames: Frames, shown: tuple[int, int], limit: int, seconds: float, mask: Mask | None) -> Picture | None:
    """A picture whose film has every frame; None where the limit leaves no room for one."""
    width, height = (max(2, side // 2 * 2) for side in shown)
    small = np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS)) for f in frames])
    over = None if mask is None else _mask_strip(mask, range(len(mask)))
    poster = _webp(Image.fromarray(small[0]), quality=60)
    room = limit - len(over or b"") - len(poster)
    for crf in FILM_QUALITIES:
        data = encode_clip(small, len(frames) / seconds, crf)
        if len(data) <= room:
            uri = "data:video/mp4;base64," + base64.b64encode(data).decode()
            latents = 1 if mask is None else len(mask)
            mask_uri = None if over is None else _uri(over)
            return Picture(_uri(poster), mask_uri, latents, *shown, seconds, False, uri, len(frames))
    return None


def _fit(frames: Frames, box: tuple[int, int]) -> tuple[int, int, Frames, bool]:
    """Shown width and height, the pixels to keep, and whether they are enlarged (by a whole factor)."""
    height, width = frames.shape[1:3]
    scale = min(box[0] / width, box[1] / height)
    if scale >= 1 and width <= TINY:
        whole = int(scale)
        return width * whole, height * whole, frames, True
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    if scale >= 1:
        return *shown, frames, False
    small = [np.asarray(Image.fromarray(f).resize(shown, Image.Resampling.LANCZOS)) for f in frames]
    return *shown, np.stack(small), False


def _side_by_side(frames: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.concatenate(list(frames), axis=1))


def _mask_strip(mask: Mask, latents: Sequence[int]) -> bytes:
    if mask.shape[2] > MASK_WIDTH:
        size = MASK_WIDTH, max(1, round(mask.shape[1] * MASK_WIDTH / mask.shape[2]))
        mask = np.stack([np.asarray(Image.fromarray(m).resize(size, Image.Resampling.BOX)) for m in mask])
    return _webp(_side_by_side(heat(mask, latents)), lossless=True)


def _encode(image: Image.Image, room: int, quality: int, tiny: bool) -> bytes:
    if tiny:
        exact = _webp(image, lossless=True)
        if len(exact) <= room:
            return exact
    return _webp(image, quality=quality)


def _webp(image: Image.Image, quality: int = 80, lossless: bool = False) -> bytes:
    buffer = io.BytesIO()
    # Lossless, more thorough methods take three times as long, and make strips of small pictures no smaller.
    image.save(buffer, "WEBP", quality=quality, lossless=lossless, method=2 if lossless else 4)
    return buffer.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()
