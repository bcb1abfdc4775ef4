"""How fast videos are indexed, decoded and exported, beside FFmpeg, PyAV and torchcodec on the same films:
``python -m jobs.benchmarks.decoding``.

Each way runs in a process of its own, turn by turn; a ratio is of the median of its rounds to FFmpeg's in the same
rounds, by the clock and by processor seconds, which other work on the machine disturbs less. What is not installed is
left out. --quick is a short form on small films, for the tests.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.decoding import films, ways
from jobs.benchmarks.decoding.ways import Figures, in_a_process
from pipeline.config.run import Scaler

BUCKET = "decoding"


@dataclass(frozen=True)
class Sizes:
    """How much is measured: the films' height, width and frames of a piece, repeats of a piece in a long film (of H.264
    and of the others), clips of a folder, segments of a film, frames and size of a segment, rounds."""

    height: int = 1080
    width: int = 1920
    piece: int = 120
    long: int = 60
    long_others: int = 12
    clips: int = 500
    segments: int = 5
    frames: int = 77
    size: tuple[int, int] = (480, 832)
    rounds: int = 3


QUICK = Sizes(144, 256, 64, 3, 3, 6, 2, 33, (72, 128), 1)


def make(folder: Path, sizes: Sizes, codecs: tuple[films.Codec, ...]) -> dict[str, tuple[Path, Path]]:
    """The short and the long film of each codec."""
    scene, made = films.Scene(sizes.height, sizes.width), {}
    for codec in codecs:
        stem = codec.encoder
        short, long = folder / f"{stem}.{codec.end}", folder / f"{stem}-long.{codec.end}"
        films.write_piece(short, codec, scene, sizes.piece)
        films.repeat(short, long, sizes.piece, sizes.long if codec.encoder == "libx264" else sizes.long_others)
        made[codec.name] = short, long
    return made


def median(rounds: list[Figures]) -> Figures:
    return {
        key: statistics.median(figures[key] for figures in rounds)
        for key, value in rounds[0].items()
        if isinstance(value, int | float)
    }


def in_turns(names: list[str], sizes: Sizes, arguments: dict[str, dict[str, Any]]) -> dict[str, Figures]:
    """The medians of each way, measured turn by turn."""
    rounds: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(sizes.rounds):
        for name in names:
            way = arguments[name].get("function", name)
            named = {key: value for key, value in arguments[name].items() if key != "function"}
            rounds[name].append(in_a_process(way, **named))
    return {name: median(figures) for name, figures in rounds.items()}


def compared(what: str, figures: dict[str, Figures], reference: str, seconds: float) -> list[Figures]:
    """Rows of ways that did the same: `speed` in times real time, and its ratios to the reference's."""
    base = figures[reference]
    return [
        {
            "film": what,
            "way": name,
            **one,
            "speed": seconds / one["seconds"],
            "ratio": base["seconds"] / one["seconds"],
            "cpu_ratio": base["cpu_seconds"] / one["cpu_seconds"],
        }
        for name, one in figures.items()
    ]


def whole_films(made: dict[str, tuple[Path, Path]], sizes: Sizes, threads: int) -> Iterator[Figures]:
    """Every film read from its first frame to its last."""
    names = ways.available()
    for codec, pair in made.items():
        for length, path in zip(("short", "long"), pair, strict=True):
            turns = 1
            if length == "long":
                turns = sizes.long if codec == "H.264" else sizes.long_others
            common = {"path": str(path), "threads": threads}
            arguments = {name: dict(common) for name in names}
            arguments["index"]["frames"] = sizes.frames if length == "long" else min(sizes.frames, sizes.piece // 2)
            figures = in_turns(names, sizes, arguments)
            yield from compared(f"{codec}, {length}", figures, names[0], turns * sizes.piece / films.RATE)


def segments(made: dict[str, tuple[Path, Path]], sizes: Sizes, threads: int) -> Iterator[Figures]:
    """Segments of the long films, decoded and made small; each is looked at for exactly its frames.

    One decoder of the product has one thread: it is held against the others with one thread. As many decoders as there
    are threads are held against the others with those threads. A ratio is to the least of the others, by the clock and
    by processor seconds.
    """
    others, counts = [name for name in ways.available() if name != "index"], dict.fromkeys((1, threads))
    rng = np.random.default_rng(0)
    for codec, (_, path) in made.items():
        turns = sizes.long if codec == "H.264" else sizes.long_others
        last = turns * sizes.piece - int(sizes.frames * films.RATE / ways.FPS) - 2
        starts = [int(start) for start in rng.integers(0, last, sizes.segments)]
        common: dict[str, Any] = {"function": "segments", "path": str(path), "starts": starts}
        common |= {"frames": sizes.frames, "size": list(sizes.size), "piece": sizes.piece}
        arguments: dict[str, dict[str, Any]] = {}
        for count in counts:
            for name in others:
                arguments[f"{name}, {count}"] = {**common, "way": name, "threads": count}
            for scaler in get_args(Scaler):
                product = {"way": "product", "threads": 1, "scaler": scaler, "decoders": count}
                arguments[f"{scaler} scaler, {count}"] = {**common, **product}
        figures = in_turns(list(arguments), sizes, arguments)
        for way, one in figures.items():
            peers = [figures[f"{name}, {way.rsplit(', ', 1)[1]}"] for name in others]
            times = {key: one[key] / min(peer[key] for peer in peers) for key in ("seconds", "cpu_seconds")}
            yield {"film": codec, "way": way, **one, "times": times["seconds"], "cpu_times": times["cpu_seconds"]}


def many(folder: Path, short: Path, sizes: Sizes, threads: int) -> tuple[list[Figures], Figures]:
    """A folder of short clips: the index beside the decoder's own speed; and clips exported."""
    films.copies(short, folder / "many", sizes.clips)
    where, frames = str(folder / "many"), min(sizes.frames, sizes.piece // 2)
    common = {"threads": threads}
    arguments = {
        "pyav_many": {"folder": where, **common},
        "index_many": {"folder": where, "frames": frames, **common},
    }
    figures = in_turns(["pyav_many", "index_many"], sizes, arguments)
    rows = compared(f"{sizes.clips} short clips", figures, "pyav_many", sizes.clips * sizes.piece / films.RATE)
    exported = folder / "exported"
    films.copies(short, exported, min(sizes.clips, 24))
    export = in_a_process("export_many", folder=str(exported), threads=threads, frames=frames)
    return rows, {**export, "clips_per_second": export["clips"] / export["seconds"]}


@contextmanager
def store(paths: tuple[Path, ...]) -> Iterator[list[str]]:
    """The files in a bucket of moto's server on this machine; nothing where moto is not installed."""
    try:
        import boto3
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield []
        return
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        for path in paths:
            client.upload_file(str(path), BUCKET, f"{path.stem}/{path.name}")
        yield [f"s3://{BUCKET}/{path.stem}" for path in paths]
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def remote(pair: tuple[Path, Path], sizes: Sizes, threads: int) -> Iterator[Figures]:
    """The index of the same films, local and from a bucket."""
    with store(pair) as places:
        for path, place, turns in zip(pair, places, (1, sizes.long), strict=False):
            frames = sizes.frames if turns > 1 else min(sizes.frames, sizes.piece // 2)
            common = {"function": "index", "threads": threads, "frames": frames}
            arguments = {"local": {**common, "path": str(path)}, "s3://": {**common, "path": place}}
            figures = in_turns(["local", "s3://"], sizes, arguments)
            yield from compared(path.stem, figures, "local", turns * sizes.piece / films.RATE)


def table(title: str, header: list[str], rows: list[Figures], of: str = "FFmpeg's") -> None:
    print(title)
    cells = [
        [
            *(str(row[name]) for name in header),
            f"{row['seconds']:.3f}",
            f"{row['speed']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['cpu_ratio']:.2f}",
            f"{row['peak_mib']:.0f}" if "peak_mib" in row else "",
        ]
        for row in rows
    ]
    last = ["s", "x real time", f"of {of}", "CPU s", f"of {of}, CPU", "MiB"]
    print_table([*header, *last], cells)


def segments_table(title: str, rows: list[Figures]) -> None:
    print(title)
    cells = [
        [
            *(str(row[name]) for name in ("film", "way", "exact", "of")),
            f"{row['seconds']:.3f}",
            f"{row['times']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['cpu_times']:.2f}",
        ]
        for row in rows
    ]
    print_table(["film", "way, threads", "exact", "of", "s", "times the least", "CPU s", "times the least"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small films of two codecs, once")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the long film of H.264")
    parser.add_argument("--clips", type=int, default=500, help="short clips in a folder")
    parser.add_argument("--height", type=int, default=1080, help="of the films, which are 16 to 9")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores of each way")
    parser.add_argument("--only", choices=["films", "segments", "many", "s3"], nargs="*", help="these parts alone")
    arguments = parser.parse_args()
    sizes = QUICK
    if not arguments.quick:
        long = max(2, round(arguments.minutes * 60 * films.RATE / Sizes.piece))
        width = arguments.height * 16 // 9 // 2 * 2
        sizes = Sizes(arguments.height, width, long=long, clips=arguments.clips, rounds=arguments.rounds)
    parts = arguments.only or ["films", "segments", "many", "s3"]
    codecs = films.CODECS[:1] + films.CODECS[-1:] if arguments.quick else films.CODECS
    hardware = machine()
    print_machine(hardware)
    print(f"{arguments.threads} threads; left out, as not installed: {', '.join(missing()) or 'nothing'}\n")
    figures: dict[str, Any] = {"benchmark": "decoding", "machine": hardware, "threads": arguments.threads}
    with tempfile.TemporaryDirectory(prefix="decoding-") as name:
        folder = Path(name)
        made = make(folder, sizes, codecs)
        if "films" in parts:
            figures["films"] = list(whole_films(made, sizes, arguments.threads))
            table("whole films", ["film", "way"], figures["films"])
        if "segments" in parts:
            figures["segments"] = list(segments(made, sizes, arguments.threads))
            segments_table(f"segments of {sizes.frames} frames", figures["segments"])
        short = made["H.264"][0]
        if "many" in parts:
            figures["many"], figures["export"] = many(folder, short, sizes, arguments.threads)
            table("many short clips", ["film", "way"], figures["many"], "PyAV's")
            print(f"export: {figures['export']['clips_per_second']:.2f} clips a second, encoded, one actor\n")
        if "s3" in parts:
            figures["s3"] = list(remote(made["H.264"], sizes, arguments.threads))
            table("from a bucket on this machine", ["film", "way"], figures["s3"], "local")
    print_json(figures)


def missing() -> list[str]:
    return [name for name in ("ffmpeg", "torchcodec") if name not in ways.available()]


if __name__ == "__main__":
    main()
