"""The ways to read a film that the benchmark compares, each in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from jobs.benchmarks.decoding.films import RATE, read_numbers
from pipeline import config, tables
from pipeline.config import Run
from pipeline.inputs.videos import videos
from pipeline.tables import schemas
from pipeline.video.decoder import Decoder
from pipeline.video.indexing import IndexWorker, JoinWorker, StretchWorker

Figures = dict[str, Any]
FPS = 16.0  # of a segment, as Wan's
STRETCH = 1440  # frames: a minute of film
BATCH = 4  # videos that an actor is handed at a time, as the recipes have it
_peaks = list[float]()  # MiB of the largest child so far


def available() -> list[str]:
    """The ways to read a whole film that are installed here, the reference first."""
    others = ["torchcodec"] if importlib.util.find_spec("torchcodec") is not None else []
    return [*(["ffmpeg"] if shutil.which("ffmpeg") else []), "pyav", *others, "index"]


class Clock:
    """Seconds by the clock, and of this process's and its ended children's processor, since it was made."""

    def __init__(self) -> None:
        self._begin, self._cpu, self._children = time.perf_counter(), time.process_time(), _children()

    def stop(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._begin
        return {"seconds": seconds, "cpu_seconds": time.process_time() - self._cpu + _children() - self._children}


def _children() -> float:
    import resource  # Unix alone has it

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# --- a whole film ----------------------------------------------------------------------------------------------------


def ffmpeg(path: str, threads: int) -> Figures:
    """FFmpeg's null decode."""
    command = ["ffmpeg", "-loglevel", "error", "-nostdin", "-threads", str(threads), "-i", path, "-map", "0:v"]
    clock = Clock()
    subprocess.run([*command, "-f", "null", "-"], check=True)
    return clock.stop()


def pyav(path: str, threads: int) -> Figures:
    """PyAV, frame by frame."""
    clock = Clock()
    frames = _pyav_frames(path, threads)
    return {**clock.stop(), "frames": frames}


def _pyav_frames(path: str, threads: int) -> int:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "AUTO"
        return sum(1 for _ in container.decode(stream))


def torchcodec(path: str, threads: int) -> Figures:
    """torchcodec, 16 frames at a time; it converts each to RGB."""
    from torchcodec.decoders import VideoDecoder

    clock = Clock()
    decoder = VideoDecoder(path, num_ffmpeg_threads=threads, seek_mode="approximate")
    frames = int(decoder.metadata.num_frames)
    for start in range(0, frames, 16):
        decoder.get_frames_in_range(start, min(start + 16, frames))
    return {**clock.stop(), "frames": frames}


def index(path: str, threads: int, frames: int) -> Figures:
    """The product's index of a file or a folder of clips, with an actor for each thread; long films in stretches."""
    run = _run(frames)
    listed = videos(path)
    passed = (field for field in listed.schema if field.name not in schemas.CLIPS.names)
    schema = pa.schema([*schemas.CLIPS, *passed])
    clock = Clock()
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(threads) as pool:
        changes = f"{root}/changes/clips"
        first = _through(pool, [IndexWorker(run, schema, ()) for _ in range(threads)], listed, BATCH)
        clips, stretches = _table(first, "clips"), _table(first, "stretches")
        if stretches.num_rows:
            for part in _through(pool, [StretchWorker(run) for _ in range(threads)], stretches):
                tables.append(changes, part["changes"], {})
            long = pa.array([uri in stretches.column("uri").to_pylist() for uri in listed.column("uri").to_pylist()])
            joined = _through(pool, [JoinWorker(run, schema, changes)], listed.filter(long))
            clips = pa.concat_tables([clips, _table(joined, "clips")]) if clips.num_rows else _table(joined, "clips")
    failed = clips.column("error").drop_null().to_pylist()
    if failed:
        raise RuntimeError(f"{path}: {failed[0]}")
    return {**clock.stop(), "clips": clips.num_rows, "peak_mib": max(_peaks)}


def _through(
    pool: ThreadPoolExecutor, workers: Sequence[Any], rows: pa.Table, batch: int = 1
) -> list[dict[str, pa.Table]]:
    """What workers make of rows, handed to them in batches, as to actors; then their children end."""
    waiting = deque(range(0, rows.num_rows, batch))

    def work(worker: Any) -> list[dict[str, pa.Table]]:
        parts = list[dict[str, pa.Table]]()
        with contextlib.suppress(IndexError):  # another worker had the last one
            while True:
                parts += worker(rows.slice(waiting.popleft(), batch))
        return parts

    parts = [part for of_worker in pool.map(work, workers) for part in of_worker]
    _peaks.append(_peak_mib())
    for worker in workers:
        worker.decoder.close()
    return parts


def _table(parts: list[dict[str, pa.Table]], name: str) -> pa.Table:
    named = [part[name] for part in parts if name in part and part[name].num_rows]
    return pa.concat_tables(named) if named else pa.table({"uri": pa.array([], pa.string()), "error": []})


def _peak_mib() -> float:
    """The largest resident set until now of a child of this process: the decoders (Linux)."""
    peaks = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # of a thread or a child that ends meanwhile
            for child in (thread / "children").read_text().split():
                lines = Path(f"/proc/{child}/status").read_text().splitlines()
                peaks += [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return max(peaks, default=0) / 1024


def _run(frames: int) -> Run:
    sizes = {"data.frames": frames, "data.fps": FPS, "data.height": 480, "data.width": 832, "data.stretch": STRETCH}
    return config.load("demo", {"root": "/nowhere/decoding", **sizes})


# --- many short clips ------------------------------------------------------------------------------------------------


def pyav_many(folder: str, threads: int) -> Figures:
    """The decoder's own speed: PyAV with one thread in as many processes, file after file."""
    paths = sorted(str(path) for path in Path(folder).iterdir())
    clock = Clock()
    with get_context("fork").Pool(threads) as pool:
        frames = sum(pool.starmap(_pyav_frames, [(path, 1) for path in paths], chunksize=4))
        pool.close()
        pool.join()
    return {**clock.stop(), "frames": frames}


def index_many(folder: str, threads: int, frames: int) -> Figures:
    return index(folder, threads, frames)


def export_many(folder: str, threads: int, frames: int) -> Figures:
    """Clips cut out and encoded by one actor, into a folder that is removed."""
    from pipeline.exports.formats import FORMATS  # here, because the other ways need no torch
    from pipeline.exports.worker import ExportWorker

    run, target = _run(frames), f"{folder}-export"
    paths = sorted(Path(folder).iterdir())
    nothing = {"source": ".", "caption": "", "weight": 1.0, "rank": 0, "influence": 0.0, "num_frames": frames}
    clips = [
        {"clip_id": path.stem, "uri": str(path), "version": "", "start_frame": 0, "fps": FPS, **nothing}
        | {"file": f"clips/{path.stem}.mp4"}
        for path in paths
    ]
    worker = ExportWorker(run, FORMATS["videofolder"], target)
    clock = Clock()
    rows = [row for part in worker(pa.Table.from_pylist(clips)) for row in part["exports"].to_pylist()]
    worker.decoder.close()
    figures = clock.stop()
    shutil.rmtree(target)
    failed = [row["problem"] for row in rows if row["problem"] is not None]
    if failed:
        raise RuntimeError(f"{folder}: {failed[0]}")
    return {**figures, "clips": len(rows)}


# --- segments --------------------------------------------------------------------------------------------------------


def segments(
    way: str,
    path: str,
    threads: int,
    starts: list[int],
    frames: int,
    size: list[int],
    piece: int,
    scaler: str = "pillow",
    decoders: int = 1,
) -> Figures:
    """The segments that begin at these frames: the median seconds of one, the processor seconds of each, and how many
    show exactly their frames. Where the product has several `decoders` they take segments side by side, and the seconds
    of one are those of all over their number."""
    read = {"product": _product, "pyav": _pyav_segment, "torchcodec": _torchcodec_segment, "ffmpeg": _ffmpeg_segment}
    area, waiting = (size[0], size[1]), deque(starts)
    seconds = list[float]()

    def work(decoder: Decoder) -> list[tuple[int, list[int]]]:
        shown = []
        with contextlib.suppress(IndexError):  # another decoder had the last one
            while True:
                start = waiting.popleft()
                begin = time.perf_counter()
                pictures = read[way](decoder, path, threads, start, frames, area)
                seconds.append(time.perf_counter() - begin)
                shown.append((start, read_numbers(pictures)))
        return shown

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(decoders) as pool:
        every = [stack.enter_context(Decoder(scaler=scaler)) for _ in range(decoders)]
        for decoder in every:
            read[way](decoder, path, threads, 0, 2, area)  # what is loaded once is loaded then
        before = sum(_processor_seconds(decoder) for decoder in every)
        clock = Clock()
        shown = [one for of_decoder in pool.map(work, every) for one in of_decoder]
        figures = clock.stop()
        used = sum(_processor_seconds(decoder) for decoder in every) - before
    exact = sum(_is_exact(numbers, start, frames, piece) for start, numbers in shown)
    median = figures["seconds"] / len(starts) if decoders > 1 else float(np.median(seconds))
    of_each = (figures["cpu_seconds"] + used) / len(starts)
    return {"seconds": median, "cpu_seconds": of_each, "exact": exact, "of": len(starts)}


def _processor_seconds(decoder: Decoder) -> float:
    """Of a decoder's child until now; 0 before it has one (Linux)."""
    if decoder.pid is None:
        return 0.0
    fields = Path(f"/proc/{decoder.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _is_exact(numbers: list[int], start: int, frames: int, piece: int) -> bool:
    """Whether each frame is the nearest to its time. Of two equally near ones a container's rounded stamps may make
    either the nearer one: times in WebM are in milliseconds."""
    exact = start + np.arange(frames) * RATE / FPS
    off = (np.array(numbers) - exact + piece / 2) % piece - piece / 2
    return len(numbers) == frames and bool((np.abs(off) <= 0.52).all())


def _product(decoder: Decoder, path: str, threads: int, start: int, frames: int, size: tuple[int, int]) -> Any:
    return decoder.frames(path, start, frames, FPS, *size)


def _nearest_frames(start: int, frames: int) -> Any:
    """Numbers of the frames nearest to the wanted times, the earlier one of two, at a constant rate."""
    return np.ceil(start + np.arange(frames) * RATE / FPS - 0.5 - 1e-6).astype(int)


def _pyav_segment(decoder: Decoder, path: str, threads: int, start: int, frames: int, size: tuple[int, int]) -> Any:
    """Seek, decode, and let FFmpeg's scaler make each wanted frame small."""
    numbers, shown = _nearest_frames(start, frames), list[Any]()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = threads, "AUTO"
        container.seek(int(start / RATE / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            number = round(float(frame.pts * stream.time_base) * RATE)
            if len(shown) < frames and number == numbers[len(shown)]:
                shown.append(frame.to_ndarray(format="rgb24", width=size[1], height=size[0]))
            if len(shown) == frames:
                break
    return np.stack(shown)


def _torchcodec_segment(
    decoder: Decoder, path: str, threads: int, start: int, frames: int, size: tuple[int, int]
) -> Any:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    reader = VideoDecoder(
        path, num_ffmpeg_threads=threads, transforms=[Resize(size=size)], dimension_order="NHWC", seek_mode="exact"
    )
    return reader.get_frames_at(_nearest_frames(start, frames).tolist()).data.numpy()


def _ffmpeg_segment(decoder: Decoder, path: str, threads: int, start: int, frames: int, size: tuple[int, int]) -> Any:
    # Rounded up, a frame's time is that of the step at which it is the nearest one, or the earlier of two.
    scale = f"setpts=PTS-STARTPTS,fps={FPS:g}:round=up,scale={size[1]}:{size[0]}"
    before = f"{max(start - 0.4, 0) / RATE:.6f}"
    command = ["ffmpeg", "-loglevel", "error", "-nostdin", "-threads", str(threads), "-ss", before]
    command += ["-i", path, "-vf", scale, "-frames:v", str(frames), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, *size, 3)


# --- a process of its own --------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[..., Figures]] = {
    function.__name__: function
    for function in (ffmpeg, pyav, torchcodec, index, pyav_many, index_many, export_many, segments)
}


def in_a_process(name: str, **arguments: Any) -> Figures:
    """What a way measured in a process of its own. RuntimeError where it failed."""
    code = "from jobs.benchmarks.decoding import ways; ways.main()"
    command = [sys.executable, "-c", code, name, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} {arguments} failed: {done.stderr.strip().splitlines()[-1]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(name: str, **arguments: Any) -> Figures:
    """What a way measures here and now."""
    return WAYS[name](**arguments)


def main() -> None:
    print(json.dumps(measure(sys.argv[1], **json.loads(sys.argv[2]))))
