"""An export of a small run: the clips show the ranked frames, the folder is whole or not there, and nobody else's."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs import export as job
from pipeline import config, tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.errors import ClipError, ConfigError, InputError, UsageError
from pipeline.exports import clip_rows, destination
from pipeline.exports.formats import FORMATS
from pipeline.exports.frame_rules import read_clip
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.tables.throughput import Figures
from pipeline.video.cut_clips import clip_file, encode_clip
from pipeline.video.decoder import Decoder
from pipeline.video.frames import segments, write_mp4
from pipeline.video.packets import read_packets
from tests.support.s3_store import BUCKET, Store

FRAMES, FPS, SIDE = 9, 8.0, 32
BROKEN = "broken"
MakeRun = Callable[..., Run]


def film(shift: int, count: int = 60) -> np.ndarray:
    """A soft spot that goes to the right, on a slope: no two frames are alike."""
    y, x = np.mgrid[0:48, 0:64]
    pictures = []
    for n in range(count):
        spot = 160 * np.exp(-((x - 4 - n - shift) ** 2 + (y - 20) ** 2) / 60)
        pictures.append(np.stack([40 + spot, 60 + x, 200 - spot], -1))
    return np.clip(np.array(pictures), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        write_mp4(str(folder / f"{number}.mp4"), film(3 * number), 24.0)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def make_run(tmp_path: Path, videos: Path) -> MakeRun:
    """A run whose table clips/ has two segments of each of two videos, and one of a video that is broken by now."""
    root = tmp_path / "run"
    rows = []
    for path in sorted(videos.glob("[0-9].mp4")):
        for segment in segments(str(path), FRAMES, FPS)[:2]:
            about = {"uri": str(path), "version": "1", "source": "films", "caption": f"spot {path.stem}"}
            rows.append({**segment, **about, "clip_id": f"{path.stem}-{segment['start_frame']}", "license": "CC0"})
    rows.append({**rows[0], "clip_id": BROKEN, "uri": str(videos / "broken.mp4")})
    schema = schemas.CLIPS.append(pa.field("license", pa.string()))
    run = config.load("demo", {"root": str(root)})
    tables.append(str(root / "clips"), pa.Table.from_pylist(rows, schema=schema), fingerprints.clips(run))
    decided = [{"clip_id": row["clip_id"], "group": "all", "rank": n} for n, row in enumerate(rows)]
    decided = [{**row, "decision": "selected", "mean_influence": 1.0 / (n + 1)} for n, row in enumerate(decided)]
    tables.append(str(root / "selection"), pa.Table.from_pylist(decided, schema=schemas.SELECTION), {})

    def make(name: str, **changes: Any) -> Run:
        values = {"root": str(root), "export.format": name, "export.arm": "all", "data.decode_timeout": 60}
        return config.load("demo", {**values, **{key.replace("__", "."): value for key, value in changes.items()}})

    return make


@pytest.fixture(autouse=True)
def _without_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage's worker is called here, with two clips at a time; slow tests have actors."""
    if "cluster" in request.fixturenames:
        return

    def stream(stage: Any, blocks: list[pa.Table], total: int, *_: Any) -> Figures:
        worker = stage.worker()
        for block in blocks:
            for start in range(0, block.num_rows, 2):
                for part in worker(block.slice(start, 2)):
                    tables.append(stage.folders["exports"], part["exports"], stage.fingerprints["exports"])
        worker.decoder.close()
        return Figures()

    monkeypatch.setattr(job.streaming, "stream", stream)
    monkeypatch.setattr(job.streaming, "connect", lambda: None)
    monkeypatch.setattr(job.resources, "check", lambda *_: None)


def whole(run: Run) -> Path:
    job.export(run)
    return Path(run.export.to or stores.join(run.root, "exports", job.name(run), "files"))


def provenance(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in pq.read_table(folder / "provenance.parquet").to_pylist()}


def test_a_clip_shows_the_ranked_frames_at_a_constant_rate(make_run: MakeRun) -> None:
    folder = whole(make_run("musubi"))
    rows = provenance(folder)
    assert set(rows) == {"0-0", "0-27", "1-0", "1-27"}, "the broken one is a row of the table and no clip"
    with Decoder() as decoder:
        for clip_id, row in rows.items():
            path = folder / "clips" / f"{clip_id}.mp4"
            ranked = decoder.frames(row["uri"], row["start_frame"], FRAMES, FPS, SIDE, SIDE)
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                facts = (stream.frames, stream.average_rate, stream.duration * stream.time_base, stream.start_time)
                assert facts == (FRAMES, FPS, FRAMES / FPS, 0)
                assert stream.sample_aspect_ratio == 1
                assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
                pictures = list(container.decode(stream))
            assert [frame.pts * frame.time_base for frame in pictures] == [n / FPS for n in range(FRAMES)]
            assert b"elst" not in path.read_bytes(), "an edit list"
            frames = np.array([frame.to_ndarray().astype(int) for frame in pictures])
            planes = [av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p") for frame in ranked]
            off = np.array([[np.abs(frame - p.to_ndarray().astype(int)).mean() for p in planes] for frame in frames])
            assert off.argmin(1).tolist() == list(range(FRAMES)), "its frames are others"
            assert off.diagonal().max() < 1, "grey levels of 255"
            assert (folder / "clips" / f"{clip_id}.txt").read_text() == row["caption"] == f"spot {clip_id[0]}"
            assert (row["license"], row["num_frames"], row["fps"]) == ("CC0", FRAMES, FPS)


@pytest.mark.parametrize("name", FORMATS)
def test_each_rule_reads_the_exported_file_whole(name: str, tmp_path: Path) -> None:
    """What the rules are given is what the file says of itself, at rates that are no whole numbers too."""
    layout = FORMATS[name]
    for fps in (8.0, 23.976, 29.97):
        (tmp_path / "clip.mp4").write_bytes(encode_clip(film(0, 17), fps))
        with av.open(str(tmp_path / "clip.mp4")) as container:
            stream = container.streams.video[0]
            count, rate = stream.frames, float(stream.average_rate)
        assert read_clip(layout.rule, layout.knows_rate, count, rate, fps).indices.tolist() == list(range(17))


def test_an_export_is_whole_or_goes_on(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("diffsynth")
    home = Path(run.root) / "exports" / "diffsynth-all"
    with monkeypatch.context() as killed:
        killed.setattr(job, "_complete", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job.export(run)
    assert (home / "files" / destination.UNFINISHED).is_file()
    assert not (home / "files" / "metadata.json").exists(), "what a trainer reads comes last"
    (home / "files" / "clips" / "0-0.mp4").unlink()
    before = (home / "files" / "clips" / "1-0.mp4").stat().st_mtime_ns
    folder = whole(run)
    assert (folder / "clips" / "1-0.mp4").stat().st_mtime_ns == before, "a clip was cut again"
    assert (folder / "clips" / "0-0.mp4").is_file(), "a file that was taken away is not made again"
    assert not (folder / destination.UNFINISHED).exists()
    record = json.loads((folder / destination.WHOLE).read_text())
    assert (record["clips"], record["cut"], record["frames"]) == (5, 4, FRAMES)
    problems = tables.read(str(home), ["clip_id", "problem"]).to_pylist()
    assert [(row["clip_id"], row["problem"][:7]) for row in problems if row["problem"]] == [(BROKEN, "decode:")]


def test_a_whole_export_is_left_alone(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("ids")
    folder = whole(run)
    first = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    whole(run)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == first
    assert "is whole already" in capsys.readouterr().out
    assert set(first) == {"ids.txt", "provenance.parquet", "README.txt", "export.json"}
    table = tables.read(stores.join(run.root, "exports", "ids-all"))
    assert table.num_rows == 5, "a purge would not know that ids.txt names clips"


def test_a_folder_of_anothers_is_not_touched(make_run: MakeRun, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty, and no export made what lies in it"):
        job.export(make_run("ids", export__to=str(theirs)))
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
    ours = tmp_path / "ours"
    whole(make_run("ids", export__to=str(ours)))
    before = (ours / "ids.txt").read_bytes()
    with pytest.raises(InputError, match=r"holds an export of other clips.*export\.name or export\.to"):
        job.export(make_run("table", export__to=str(ours)))
    assert (ours / "ids.txt").read_bytes() == before


def test_a_video_that_could_not_be_read_is_tried_again(make_run: MakeRun, videos: Path, tmp_path: Path) -> None:
    run = make_run("fastvideo")
    absent = tmp_path / "absent.mp4"
    clips = tables.read(stores.join(run.root, "clips"))
    is_absent = pc.equal(clips.column("clip_id"), "1-27")
    uris = pc.if_else(is_absent, str(absent), clips.column("uri"))
    clips = clips.set_column(clips.column_names.index("uri"), "uri", uris)
    for path in (Path(run.root) / "clips").iterdir():
        path.unlink()
    tables.append(stores.join(run.root, "clips"), clips, fingerprints.clips(run))
    folder = whole(run)
    assert len(json.loads((folder / "videos2caption.json").read_text())) == 3
    absent.write_bytes((videos / "1.mp4").read_bytes())
    whole(run)
    assert len(json.loads((folder / "videos2caption.json").read_text())) == 4
    assert json.loads((folder / destination.WHOLE).read_text())["cut"] == 4


def test_a_bucket_gets_the_same_files(make_run: MakeRun, store: Store) -> None:
    local = whole(make_run("finetrainers"))
    run = make_run("finetrainers", export__name="away", export__to=f"s3://{BUCKET}/out", export__path="/mnt/out")
    job.export(run)
    names = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
    assert destination.listing(run.export.to) == names
    clip = stores.read_bytes(f"s3://{BUCKET}/out/clips/0-0.mp4")
    assert clip == (local / "clips" / "0-0.mp4").read_bytes(), "two encodings of the same frames differ"
    config_text = stores.read_bytes(f"s3://{BUCKET}/out/training.json")
    assert json.loads(config_text)["datasets"][0]["data_root"] == "/mnt/out"
    job.export(run)


@pytest.mark.slow
def test_actors_cut_clips_and_go_on(make_run: MakeRun, cluster: None) -> None:
    run = make_run("simpletuner", export__arm="weighted", resources__export={"actors": 2, "cpus": 1, "batch": 1})
    folder = whole(run)
    assert len(list(folder.glob("*/*.mp4"))) == len(provenance(folder)) == 4
    backends = json.loads((folder / "multidatabackend.json").read_text())
    assert sum(len(list(Path(b["instance_data_dir"]).glob("*.mp4"))) for b in backends[:-1]) == 4
    (folder / destination.WHOLE).rename(folder / destination.UNFINISHED)
    next(folder.glob("*/*.mp4")).unlink()
    whole(run)
    assert len(list(folder.glob("*/*.mp4"))) == 4


def test_tars_have_each_clip_once(make_run: MakeRun) -> None:
    run = make_run("webdataset")
    folder = Path(run.root) / "exports" / "webdataset-all" / "files"
    job_folder = whole(run)
    assert job_folder == folder
    shards = (folder / "shards.txt").read_text().split()
    assert sorted(shards) == sorted(path.name for path in folder.glob("*.tar"))
    members: dict[str, bytes] = {}
    for shard in shards:
        with tarfile.open(folder / shard) as tar:
            for member in tar.getmembers():
                assert member.name not in members
                members[member.name] = tar.extractfile(member).read()
    assert {name.split(".")[0] for name in members} == {"0-0", "0-27", "1-0", "1-27"}
    assert members["1-27.txt"] == b"spot 1"
    assert json.loads(members["1-27.json"])["start_frame"] == 27
    with av.open(io.BytesIO(members["1-27.mp4"])) as container:
        assert container.streams.video[0].frames == FRAMES


def test_a_shard_of_a_killed_attempt_goes(make_run: MakeRun, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run = make_run("webdataset", export__to=str(folder))
    rows = clip_rows.clip_rows(run, FORMATS["webdataset"])
    destination.claim(str(folder), {"digest": clip_rows.digest(run, FORMATS["webdataset"], rows)})
    (folder / "clips-0000.tar").write_bytes(b"half")
    whole(run)
    assert not (folder / "clips-0000.tar").exists()


def test_the_base_has_no_clips(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"export\.arm='base' trains on no clips"):
        job.export(make_run("musubi", export__arm="base"))


def test_what_an_arm_lacks_is_said_by_the_keys_of_exports(make_run: MakeRun) -> None:
    with pytest.raises(UsageError, match=r"^export\.group='roll': no query is of this group"):
        job.export(make_run("musubi", export__arm="weighted", export__group="roll"))
    with pytest.raises(UsageError, match=r"^export\.arm='magnitude' needs the table motion/clips"):
        job.export(make_run("musubi", export__arm="magnitude", motion__of="all"))


def test_weights_become_data_sets(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = whole(make_run("diffusion-pipe", export__arm="weighted", export__datasets=2))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["clips-0", "clips-1"]
    assert "the share of a clip is off by" in capsys.readouterr().out
    rows = provenance(folder)
    assert {row["dataset"] for row in rows.values()} == {0, 1}
    assert rows["0-0"]["repeats"] > rows["1-27"]["repeats"]
    assert (rows["0-0"]["rank"], rows["0-0"]["influence"]) == (0, 1.0)


def test_names_of_files_are_ids_or_tell_them_apart() -> None:
    ids = ["0b67cd5727522e22", "dQw4w9WgXcQ", "a/b", "a.b", "a_b", "../etc", "É", "x" * 300, "Aa", "aA"]
    stems = clip_rows.file_stems(ids)
    assert stems[:2] == ids[:2]
    assert stems[4] == "a_b"
    assert len({stem.casefold() for stem in stems}) == len(ids)
    assert all(stem and len(stem) < 100 and not set(stem) & set("/.\\ ") for stem in stems)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="Hugging Face datasets is not installed")
def test_the_real_loader_reads_the_videofolder(make_run: MakeRun, tmp_path: Path) -> None:
    import datasets

    folder = whole(make_run("videofolder"))
    rows = datasets.load_dataset("videofolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.cast_column("video", datasets.Video(decode=False))
    assert sorted(row["clip_id"] for row in rows) == ["0-0", "0-27", "1-0", "1-27"]
    for row in rows:
        assert Path(row["video"]["path"]).name == f"{row['clip_id']}.mp4"
        assert row["caption"] == f"spot {row['clip_id'][0]}"


# --- clips that already are files ------------------------------------------------------------------------------------


def _differences(path: Path) -> str | None:
    (row,) = clip_file(str(path), FRAMES, FPS, SIDE, SIDE)
    difference: str | None = row["difference"]
    return difference


def test_a_video_that_is_the_clip_is_copied_and_every_other_one_encoded(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = whole(make_run("videofolder"))
    run = make_run("data-juicer", export__video="copy")
    clips = tables.read(f"{run.root}/clips")
    assert clips is not None
    rows = [row for row in clips.to_pylist() if row["clip_id"] in ("0-0", "1-0")]
    own = encoded / "clips" / "0-0.mp4"
    rows[0] |= {"clip_id": "same", "uri": str(own), "start_frame": 0}
    rows[1] |= {"clip_id": "other"}
    tables.append(f"{run.root}/clips", pa.Table.from_pylist(rows, schema=clips.schema), fingerprints.clips(run))
    folder = whole(run)
    assert "export: 1 of them are copied as they are" in capsys.readouterr().out
    assert (folder / "clips" / "same.mp4").read_bytes() == own.read_bytes()
    table = tables.read(f"{run.root}/exports/{job.name(run)}", ["clip_id", "copied", "bytes"])
    assert table is not None
    by_id = {row["clip_id"]: row for row in table.to_pylist()}
    assert by_id["same"]["copied"] is True
    assert by_id["same"]["bytes"] == own.stat().st_size
    assert by_id["other"]["copied"] is False
    assert by_id[BROKEN]["copied"] is None
    assert (folder / "clips" / "other.mp4").read_bytes() == (folder / "clips" / "1-0.mp4").read_bytes()


def test_only_the_very_clip_is_one(tmp_path: Path) -> None:
    pictures = film(0, FRAMES)[:, :SIDE, :SIDE]
    path = tmp_path / "a.mp4"

    def difference(data: bytes) -> str | None:
        path.write_bytes(data)
        return _differences(path)

    assert difference(encode_clip(pictures, FPS)) is None
    assert difference(encode_clip(pictures[:-1], FPS)) == "it has another number of frames"
    assert difference(encode_clip(pictures, 24.0)) == "its frames have other times"
    assert difference(encode_clip(film(0, FRAMES), FPS)) == "it has another size"
    write_mp4(str(path), pictures, FPS)  # with frames that are predicted from later ones
    assert _differences(path) in ("its frames are reordered", "its frames have other times")
    changes: list[tuple[str, dict[str, Any]]] = [
        ("it has another codec", {"codec": "mpeg4"}),
        ("its pixels are not square", {"aspect": Fraction(4, 3)}),
        ("it has another codec", {"pix_fmt": "yuv444p"}),
        ("it is no mp4", {"format": "matroska"}),
    ]
    for expected, change in changes:
        with av.open(str(path), "w", format=change.get("format", "mp4")) as container:
            stream = container.add_stream(change.get("codec", "libx264"), rate=8, options={"bf": "0"})
            stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, change.get("pix_fmt", "yuv420p")
            if "aspect" in change:
                stream.codec_context.sample_aspect_ratio = change["aspect"]
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        assert _differences(path) == expected


def test_a_damaged_clip_is_not_copied(tmp_path: Path) -> None:
    data = bytearray(encode_clip(film(0, FRAMES)[:, :SIDE, :SIDE], FPS))
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    table = read_packets(str(path))
    at = int(table.position[4])
    data[at + 4 : at + int(table.size[4])] = bytes(int(table.size[4]) - 4)
    path.write_bytes(data)
    with pytest.raises(ClipError, match="is damaged"):
        clip_file(str(path), FRAMES, FPS, SIDE, SIDE)
