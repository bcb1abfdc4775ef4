"""Mutated videos and shards: no worker dies, every file ends as a row, and good files beside them decode as ever.

FUZZ_FILES names a folder whose videos are mutated as well; FUZZ_SEEDS is how many mutants the long form makes.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import config
from pipeline.errors import ClipError, InputError
from pipeline.inputs import extensions
from pipeline.inputs.videos import videos
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.frames import write_mp4
from pipeline.video.indexing import IndexWorker

CODECS = {"mkv": "libx264", "webm": "libvpx", "avi": "mpeg4", "mov": "mpeg4", "gif": "gif", "m4v": "libx264"}
CODES = {"decode", "too_short", "read", "crashed", "memory", "timeout", "refused"}
LONG = int(os.environ.get("FUZZ_SEEDS", "2500"))
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Good videos in every container, by name."""
    folder: Path = tmp_path_factory.mktemp("whole")
    frames = world.render(world.scene(0, "fuzz", "real", "spin"), 48, 64)
    write_mp4(str(folder / "a.mp4"), frames, 8.0)
    for end, codec in CODECS.items():
        kind = {"mkv": "matroska", "m4v": "mp4"}.get(end, end)
        with av.open(str(folder / f"a.{end}"), "w", format=kind) as container:
            stream: Any = container.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8" if codec == "gif" else "yuv420p"
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    more = os.environ.get("FUZZ_FILES")
    if more:
        files |= {p.name: p.read_bytes() for p in sorted(Path(more).iterdir()) if p.suffix in extensions.VIDEOS}
    return files


def mutant(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The data with one to eight wounds, half of them where its headers are."""
    buffer = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        size = len(buffer)
        if size < 16:
            break
        at = int(rng.integers(0, min(size, 2048) if rng.random() < 0.5 else size))
        length = int(min(2 ** rng.integers(0, 12), size - at))
        match int(rng.integers(0, 8)):
            case 0 | 1:
                buffer[at] ^= 1 << int(rng.integers(0, 8))
            case 2 | 3:
                width = int(rng.choice([1, 2, 4, 8]))
                extreme = int(rng.choice(len(_EXTREMES)))
                value = (_EXTREMES[extreme] & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(["big", "little"]))
                buffer[at : at + width] = value
            case 4:
                del buffer[at : at + length]
            case 5:
                buffer[at:at] = buffer[at : at + length]
            case 6:
                buffer[at : at + length] = rng.bytes(length)
            case _:
                cut = int(rng.integers(0, len(other)))
                buffer[at:] = other[cut:] if rng.random() < 0.3 else buffer[at : max(at + 1, size - length)]
    return bytes(buffer)


def _mutants(whole: dict[str, bytes], folder: Path, count: int, first: int = 0) -> Path:
    """A folder of `count` mutants and, last, a good video."""
    names = list(whole)
    folder.mkdir()
    for seed in range(first, first + count):
        rng = np.random.default_rng(seed)
        name, other = names[seed % len(names)], names[int(rng.integers(len(names)))]
        (folder / f"{seed:06d}-{name}").write_bytes(mutant(whole[name], whole[other], rng))
    (folder / "zz-good.mp4").write_bytes(whole["a.mp4"])
    return folder


def _rows(listed: pa.Table, tmp_path: Path) -> list[dict[str, Any]]:
    """The rows that a worker makes of videos; those without an error have been decoded, or have the error of that."""
    run = config.load("demo", {"root": str(tmp_path), "data.frames": 5, "data.decode_timeout": 10})
    schema = pa.schema([*schemas.CLIPS, *(f for f in listed.schema if f.name not in schemas.CLIPS.names)])
    worker = IndexWorker(run, schema)
    rows = [row for part in worker(listed) for row in part["clips"].to_pylist()]
    for row in rows:
        if row["error"] is None:
            try:
                frames = worker.decoder.frames(row["uri"], row["start_frame"], 5, run.data.fps, 32, 32)
                assert frames.shape == (5, 32, 32, 3)
            except ClipError as error:
                row["error"] = str(error)
    worker.decoder.close()
    return rows


def _check(rows: list[dict[str, Any]], listed: pa.Table) -> None:
    """Every video has a row, every error a code that is known, and the good video came through."""
    assert {row["uri"] for row in rows} == set(listed["uri"].to_pylist()), "a video left no row"
    codes = Counter("" if row["error"] is None else str(row["error"]).split(": ")[0] for row in rows)
    assert set(codes) <= {"", *CODES}, f"errors without a known code: {codes}"
    assert [row["error"] for row in rows if row["uri"].endswith("zz-good.mp4")] == [None], "the good video is lost"
    print(f"{len(listed)} videos, {len(rows)} rows: {dict(codes)}")


def test_mutants_end_as_rows(whole: dict[str, bytes], tmp_path: Path) -> None:
    listed = videos(str(_mutants(whole, tmp_path / "mutants", 100)))
    _check(_rows(listed, tmp_path), listed)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_many_mutants_end_as_rows(whole: dict[str, bytes], tmp_path: Path) -> None:
    listed = videos(str(_mutants(whole, tmp_path / "mutants", LONG, 1_000_000)))
    _check(_rows(listed, tmp_path), listed)


def _tar(whole: dict[str, bytes], path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in [*whole.items(), ("a" * 120 + "é.mp4", whole["a.mp4"])]:
            for member, data in ((name, content), (f"{name}.json".replace(".", "-", 1), b'{"caption": ["x", "y"]}')):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _parquet(whole: dict[str, bytes], path: Path) -> None:
    column = pa.array([{"bytes": data, "path": name} for name, data in whole.items()])
    pq.write_table(pa.table({"video": column, "caption": list(whole)}), path, row_group_size=2)


def _shards(whole: dict[str, bytes], tmp_path: Path, write: Callable[..., None], end: str, seeds: range) -> None:
    """Mutants of a shard, each beside a good video: rows, or a clear error on words that are no table."""
    small = {name: data for name, data in whole.items() if len(data) < 50_000}
    write(small, tmp_path / f"whole.{end}")
    data, refused = (tmp_path / f"whole.{end}").read_bytes(), 0
    for seed in seeds:
        folder = tmp_path / f"{end}-{seed}"
        folder.mkdir()
        (folder / "zz-good.mp4").write_bytes(whole["a.mp4"])
        (folder / f"s.{end}").write_bytes(mutant(data, data, np.random.default_rng(seed)))
        try:
            listed = videos(str(folder))
        except InputError:
            refused += 1
            continue
        assert listed.num_rows > 1, "a damaged shard left no row"
        _check(_rows(listed, tmp_path), listed)
    assert refused <= len(seeds) / 2


@pytest.mark.parametrize(("write", "end"), [(_tar, "tar"), (_parquet, "parquet")], ids=["tar", "parquet"])
def test_mutants_of_shards(whole: dict[str, bytes], tmp_path: Path, write: Callable[..., None], end: str) -> None:
    _shards(whole, tmp_path, write, end, range(12))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("write", "end"), [(_tar, "tar"), (_parquet, "parquet")], ids=["tar", "parquet"])
def test_many_mutants_of_shards(whole: dict[str, bytes], tmp_path: Path, write: Callable[..., None], end: str) -> None:
    _shards(whole, tmp_path, write, end, range(1000, 1000 + LONG // 10))
