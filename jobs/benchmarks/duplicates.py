"""How well near-duplicates are told from distinct clips, by their pictures and by their features.

Clips of the synthetic world, and windows of real videos with `--videos FOLDER`, are copied by PyAV: re-encoded, scaled,
cropped, re-timed. A copy counts as recognised where it and the clip that it was made of are alike enough. Beside copies
stand clips that are none: all other clips, the next window of the same video, the same scene with the motion of another
one, the clip backwards. Features are those of the demo's model, of the synthetic clips alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from pipeline import config, tables
from pipeline.attribution import fingerprints
from pipeline.attribution.workers import FeatureWorker
from pipeline.motion.signature import NUMBERS, signature, unit_rows
from pipeline.synthetic import world
from pipeline.video.cut_clips import encode_clip

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]
Array = npt.NDArray[np.float32]
Rows = Callable[[Sequence[Frames]], Array]  # clips -> unit rows; of a clip that has none, zeros

THRESHOLDS = {"picture": (0.8, 0.85, 0.9, 0.95), "feature": (0.9, 0.95, 0.98)}
SEED, CLIPS = 31, 160
REAL_FRAMES, REAL_SIDES = 17, (96, 160)


# --- copies -----------------------------------------------------------------------------------------------------------


def coded(frames: Frames, crf: int) -> Frames:
    """As a decoder gives back what was written as H.264."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(encode_clip(np.ascontiguousarray(frames), 8.0, crf))
        file.flush()
        with av.open(file.name) as container:
            return np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)])


def scaled(frames: Frames, height: int, width: int) -> Frames:
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=True)
    copy: Frames = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return copy


def cropped(frames: Frames, share: float) -> Frames:
    """Without so much of each side, at the old size."""
    height, width = frames.shape[1:3]
    top, left = max(1, round(height * share)), max(1, round(width * share))
    return scaled(frames[:, top : height - top, left : width - left], height, width)


def at_rate(frames: Frames, count: int, rate: float, start: int = 0) -> Frames:
    moments = np.rint(start + np.arange(count) * rate).astype(np.int64)
    copy: Frames = frames[moments]
    return copy


def halved(frames: Frames) -> Frames:
    height, width = frames.shape[1:3]
    return scaled(coded(scaled(frames, height // 4 * 2, width // 4 * 2), 18), height, width)


# A clip of 2 F frames, of which the first F are the one that is copied, and F -> the copy.
COPIES: Mapping[str, Callable[[Frames, int], Frames]] = {
    "re-encoded, CRF 28": lambda clip, n: coded(clip[:n], 28),
    "re-encoded, CRF 38": lambda clip, n: coded(clip[:n], 38),
    "half the size": lambda clip, n: halved(clip[:n]),
    "cropped by 3 % a side": lambda clip, n: coded(cropped(clip[:n], 0.03), 18),
    "cropped by 10 % a side": lambda clip, n: coded(cropped(clip[:n], 0.1), 18),
    "one frame later": lambda clip, n: coded(at_rate(clip, n, 1.0, 1), 18),
    "1.25 times as fast": lambda clip, n: coded(at_rate(clip, n, 1.25), 18),
    "0.8 times as fast": lambda clip, n: coded(at_rate(clip, n, 0.8), 18),
    "every second frame twice": lambda clip, n: coded(clip[np.arange(n) // 2 * 2], 18),
}
DISTINCT: Mapping[str, Callable[[Frames, int], Frames]] = {
    "backwards": lambda clip, n: coded(clip[:n][::-1], 18),
    "the next window": lambda clip, n: coded(clip[n : 2 * n], 18),
}


# --- clips ------------------------------------------------------------------------------------------------------------


def synthetic(count: int, frames: int, side: int) -> tuple[list[Frames], list[str], dict[str, Frames]]:
    """Clips of 2 x `frames` frames that move, their names, and some of the scenes with the motion of another one."""
    scenes = [scene for scene in world.corpus(SEED, count, 2 * frames) if scene.kind != "still"]
    single, moved = [scene for scene in scenes if len(scene.bodies) == 1], dict[str, Frames]()
    for n, scene in enumerate(single):
        poses = single[n - 1].bodies[0].poses
        other = replace(scene, bodies=(replace(scene.bodies[0], poses=poses),))
        moved[scene.name] = world.render(other, side, side)
    return [world.render(scene, side, side) for scene in scenes], [scene.name for scene in scenes], moved


def real(folder: str) -> tuple[list[Frames], list[str]]:
    """Windows of real videos, one after the other, of every second frame; and the video of each."""
    clips, names, step = list[Frames](), list[str](), 2 * REAL_FRAMES
    for path in sorted(p for p in Path(folder).iterdir() if p.suffix in (".mp4", ".mov", ".mkv", ".webm")):
        with av.open(str(path)) as container:
            height, width = REAL_SIDES
            pictures = (p.reformat(width, height, "rgb24").to_ndarray() for p in container.decode(video=0))
            frames = np.stack([picture for n, picture in enumerate(pictures) if n % 2 == 0])
        for start in range(0, len(frames) - step + 1, step):
            clips.append(frames[start : start + step])
            names.append(path.name)
    return clips, names


# --- how alike they are -----------------------------------------------------------------------------------------------


def picture_rows(clips: Sequence[Frames]) -> Array:
    rows: Array = np.zeros((len(clips), NUMBERS), np.float32)
    for n, clip in enumerate(clips):
        numbers = signature(clip)
        if numbers is not None:
            rows[n] = unit_rows([numbers])[0]
    return rows


def feature_rows(root: str) -> Rows:
    """Features of the demo's model, clips plain, at the demo's geometry."""
    run = config.load("demo", {"root": root}).of("clips")
    worker = FeatureWorker(run, fingerprints.features(run))

    def rows(clips: Sequence[Frames]) -> Array:
        about = {"version": "1", "num_frames": run.data.frames, "caption": "", "error": None, "mask": None}
        gradients = [worker.take({"clip_id": f"{n}", **about}, clip) for n, clip in enumerate(clips)]
        features = tables.matrix(worker.finish(gradients), "feature")
        unit: Array = features / np.linalg.norm(features, axis=1, keepdims=True)
        return unit

    return rows


def shares(values: Array, thresholds: Sequence[float]) -> list[float]:
    return [float((values >= threshold).mean()) for threshold in thresholds]


def measure(clips: list[Frames], names: list[str], count: int, rows: Rows, kind: str) -> dict[str, dict[str, Any]]:
    """Kind of copy, or of clips that are none -> how many pairs, their median, the share at each threshold."""
    base = rows([coded(clip[:count], 10) for clip in clips])
    pairs = {name: np.vecdot(base, rows([copy(clip, count) for clip in clips])) for name, copy in COPIES.items()}
    pairs |= {name: np.vecdot(base, rows([other(clip, count) for clip in clips])) for name, other in DISTINCT.items()}
    first, second = np.triu_indices(len(base), 1)
    cosines, same = np.vecdot(base[first], base[second]), np.array(names)[first] == np.array(names)[second]
    pairs["two clips, of two videos"] = cosines[~same]
    return {name: described(values, kind) for name, values in pairs.items()}


def described(values: Array, kind: str) -> dict[str, Any]:
    return {"pairs": len(values), "median": float(np.median(values)), "shares": shares(values, THRESHOLDS[kind])}


def printed(title: str, shares: Mapping[str, Mapping[str, Any]], kind: str) -> None:
    header = [title, "pairs", "median", *(f"at {threshold:g} or more" for threshold in THRESHOLDS[kind])]
    lines = [
        [name, f"{one['pairs']:,}", f"{one['median']:.3f}", *(f"{100 * share:.4g} %" for share in one["shares"])]
        for name, one in shares.items()
    ]
    print_table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few synthetic clips")
    parser.add_argument("--videos", help="a folder of real videos, which are compared by their pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    hardware, run, start = machine(), config.load("demo"), time.monotonic()
    print_machine(hardware)
    clips, names, moved = synthetic(24 if options.quick else CLIPS, run.data.frames, run.data.height)
    count, results = run.data.frames, dict[str, Any]()
    single = [clip for clip, name in zip(clips, names, strict=True) if name in moved]
    others = [coded(moved[name][:count], 18) for name in names if name in moved]
    with tempfile.TemporaryDirectory() as root:
        for kind, rows in (("picture", picture_rows), ("feature", feature_rows(root))):
            shares = measure(clips, names, count, rows, kind)
            other = np.vecdot(rows([coded(clip[:count], 10) for clip in single]), rows(others))
            shares["the same scene, another motion"] = described(other, kind)
            results[f"synthetic, by {kind}"] = shares
            printed(f"synthetic clips, by {kind}", shares, kind)
    if options.videos:
        windows, videos = real(options.videos)
        results["real, by picture"] = measure(windows, videos, REAL_FRAMES, picture_rows, "picture")
        printed("real clips, by picture", results["real, by picture"], "picture")
    seconds = round(time.monotonic() - start, 1)
    print_json({"benchmark": "duplicates", "machine": hardware, "seconds": seconds, "results": results})


if __name__ == "__main__":
    main()
