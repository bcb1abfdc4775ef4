"""Purging: no byte of a clip is left below the root but the weights, and nothing brings it back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import purge as job
from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ConfigError, InputError, UsageError
from pipeline.inputs import videos
from pipeline.operations import in_use, purge
from pipeline.storage import stores
from pipeline.tables import purge_list, registry, schemas
from pipeline.training import training_set
from pipeline.video.indexing import IndexWorker
from tests.support.s3_store import BUCKET, seen_by, served

MakeRun = Callable[..., Run]
CLIPS, QUERIES = [f"clip-{i}" for i in range(8)], ["query-a", "query-b"]
GONE = "clip-3"
PRINT = {"model": "abc"}


def row(clip_id: str, **more: object) -> dict[str, object]:
    columns = dict.fromkeys(schemas.CLIPS.names) | {"clip_id": clip_id, "uri": f"/videos/{clip_id}.mp4", "version": "1"}
    return {**columns, "caption": f"about {clip_id}", "source": "s", "start_frame": 0, "num_frames": 9, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with everything that names a clip."""
    at = tmp_path / "root"

    def put(
        name: str, rows: list[dict[str, object]] | pa.Table, schema: pa.Schema | None = None, **metadata: object
    ) -> None:
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema)
        tables.append(str(at / name), table, PRINT, **metadata)

    clips = [row(i) for i in CLIPS]
    put("clips", clips[:4], schemas.CLIPS)
    put("clips", clips[4:], schemas.CLIPS)
    put("queries", [{**row(i), "group": "roll"} for i in QUERIES], schemas.QUERIES)
    vectors = np.arange(len(CLIPS) * 2, dtype=np.float32).reshape(-1, 2)
    columns = [pa.array(CLIPS), tables.vectors(vectors)]
    put("influence", pa.table(columns, schema=schemas.influence_schema(2)), query_ids=QUERIES)
    by_setting = {"query_ids": QUERIES, "groups": ["roll"] * 2, "settings": 2}
    put("influence_by_setting", pa.table(columns, schema=schemas.influence_schema(2)), **by_setting)
    near = [{"query_id": q, "clip_id": i, "rank": n} for q in QUERIES for n, i in enumerate(CLIPS)]
    put("neighbors", near, schemas.NEIGHBORS, query_ids=QUERIES)
    decided = [{"clip_id": i, "group": "all", "rank": n} for n, i in enumerate(CLIPS)]
    put("selection", decided, schemas.SELECTION, query_ids=QUERIES)
    video = at / "generated" / "base" / "about query-a-0.mp4"
    lines = [{"arm": "base", "clip_id": "query-a", "uri": str(video), "seed": 0, "metric": "m", "value": 1.0}]
    put("evaluation", lines, schemas.EVALUATION)
    stores.write_bytes(str(video), b"a video")
    stores.write_bytes(str(at / "generated" / "prompts.json"), json.dumps({str(video): "about query-a"}).encode())
    put("nights/2026-01-02/selection", [{"clip_id": i, "rank": n} for n, i in enumerate(CLIPS)])
    old, new = purge.CURATED[::-1]
    for model, note, name in (
        ("finetuned/motive", "done.json", new),
        ("nights/2026-01-02/model", in_use.PROMOTED, old),
    ):
        listed = "".join(json.dumps({"file_name": f"/videos/{i}.mp4", "clip_id": i}) + "\n" for i in CLIPS[2:6])
        stores.write_bytes(str(at / model / name), listed.encode())
        record = {"name": "x", "version": "x", "base": "b", "weights": "w"}
        stores.write_bytes(str(at / model / note), json.dumps(record).encode())
    for name in training_set.encodings(clips):
        stores.write_bytes(str(at / "finetuned" / ".latents" / "abc" / name), b"latents")
    stores.write_bytes(str(at / "clips" / ".part-x.parquet.0.tmp"), f"half a part with {GONE}".encode())
    for page in (f"explain/{CLIPS[0]}/index.html", "comparison/index.html"):
        stores.write_bytes(str(at / page), f"it stands beside {GONE}".encode())
    in_use.put(str(at), "2026-01-02", "x")
    words = [{"batch": f"b{i}", "clip_id": i, "say": "keep", "note": f"about {i}"} for i in CLIPS]
    for word in words:
        put("decisions", [word], schemas.DECISIONS)
        put("likes", [{k: word[k] for k in ("batch", "clip_id")}], schemas.LIKES)
    put("query_weights", [{"batch": q, "query_id": q, "weight": 0.5} for q in QUERIES], schemas.QUERY_WEIGHTS)
    put("duplicates", [{"batch": "d", "group": "g", "clip_id": i} for i in CLIPS], schemas.DUPLICATES)
    for pack, ids in (("one", CLIPS[:4]), ("two", CLIPS[4:])):
        put("previews", [{"clip_id": i, "version": "1", "pack": pack} for i in ids], schemas.PREVIEWS)
        stores.write_bytes(str(at / "previews" / "packs" / pack), f"films of {ids}".encode())
    return at


def texts(root: Path) -> str:
    """All that the files below a root say, tables decoded."""
    contents = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        table = pq.read_table(path) if path.suffix == ".parquet" else None
        said = path.read_text(errors="replace") if table is None else f"{table.to_pylist()} {table.schema.metadata}"
        contents.append(f"{path.relative_to(root)}: {said}")
    return "\n".join(contents)


def test_nothing_of_a_purged_clip_is_left(root: Path) -> None:
    before = {name: tables.read(str(root / name)).num_rows for name in ("clips", "influence", "neighbors", "selection")}
    assert GONE in texts(root)
    purged = purge.purge(str(root), {GONE})
    assert GONE not in texts(root)
    assert dict(purged.rows) == {
        "clips": 1,
        "influence": 1,
        "influence_by_setting": 1,
        "neighbors": 2,
        "selection": 1,
        "nights/2026-01-02/selection": 1,
        "decisions": 1,
        "likes": 1,
        "duplicates": 1,
        "previews": 1,
    }
    assert [path.name for path in (root / "previews" / "packs").iterdir()] == ["two"], "a pack has its film"
    after = {name: tables.read(str(root / name)).num_rows for name in before}
    assert {name: before[name] - after[name] for name in before} == {name: purged.rows[name] for name in before}
    assert tables.metadata(str(root / "influence"))["query_ids"] == QUERIES
    assert tables.metadata(str(root / "clips"))["fingerprint"] == PRINT
    latents = {p.name for p in (root / "finetuned" / ".latents" / "abc").iterdir()}
    assert latents == training_set.encodings(row(i) for i in CLIPS if i != GONE)


def test_encodings_of_held_out_clips_stay_until_they_are_purged_themselves(root: Path) -> None:
    held_out = [row("held-out-a"), row("held-out-b")]
    tables.append(str(root / "held_out"), pa.Table.from_pylist(held_out, schema=schemas.CLIPS), PRINT)
    cache = root / "finetuned" / ".latents" / "abc"
    for name in training_set.encodings(held_out):
        stores.write_bytes(str(cache / name), b"latents")
    purge.purge(str(root), {GONE})
    assert training_set.encodings(held_out) <= {p.name for p in cache.iterdir()}
    purge.purge(str(root), {"held-out-a"})
    left = {p.name for p in cache.iterdir()}
    assert left == training_set.encodings([row(i) for i in CLIPS if i != GONE] + held_out[1:])


def test_models_trained_on_it_are_named_and_carry_a_note(root: Path) -> None:
    purged = purge.purge(str(root), {GONE, CLIPS[4], CLIPS[7]})
    assert purged.models == {"finetuned/motive": 2, "nights/2026-01-02/model": 2}
    assert in_use.in_use(str(root)).purged == 2
    again = purge.purge(str(root), {GONE, CLIPS[4], CLIPS[7]})
    assert not again.models
    assert not again.rows
    assert in_use.in_use(str(root)).purged == 2, "the note was lost or doubled"


def test_an_export_with_it_goes_as_a_whole(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "given away"
    homes = {"inside": (root / "exports" / "inside" / "files", CLIPS), "outside": (outside, CLIPS)}
    homes["without"] = (root / "exports" / "without" / "files", CLIPS[:2])
    for name, (folder, ids) in homes.items():
        rows = [{"clip_id": i, "version": "1", "file": f"clips/{i}.mp4", "bytes": 1} for i in ids]
        table = pa.Table.from_pylist(rows, schema=schemas.EXPORTS)
        tables.append(str(root / "exports" / name), table, {"export": "x", "to": str(folder)})
        stores.write_bytes(str(folder / "metadata.csv"), "\n".join(ids).encode())
    removed = purge.purge(str(root), {GONE})
    assert GONE not in texts(root)
    assert removed.exports == {str(outside): 1}, "nobody says that it still has the clip"
    assert (removed.rows["exports/inside"], removed.files["exports/inside/files"]) == (1, 1)
    assert (root / "exports" / "without" / "files" / "metadata.csv").is_file()
    assert tables.read(str(root / "exports" / "without")).num_rows == 2


def test_a_purged_query_takes_its_column_and_its_generated_video(root: Path) -> None:
    purge.purge(str(root), {"query-a"})
    assert "query-a" not in texts(root)
    influence = tables.read(str(root / "influence"))
    assert tables.metadata(str(root / "influence"))["query_ids"] == ["query-b"]
    assert tables.matrix(influence, "influence").tolist() == [[2.0 * i + 1] for i in range(len(CLIPS))]
    assert tables.read(str(root / "evaluation")) is None
    assert not list((root / "generated").rglob("*.mp4"))


def test_a_table_that_nobody_registered_stops_a_purge(root: Path) -> None:
    """Which of its columns name clips nobody can tell."""
    there = pa.table({"name": [GONE]})
    (root / "snippets").mkdir()
    pq.write_table(there, root / "snippets" / "part-0.parquet")
    before = texts(root)
    for ask in (purge.known, purge.purge):
        with pytest.raises(InputError, match=r"snippets: no table.*registry\.py.*move it out of the root"):
            ask(str(root), {GONE})
    assert texts(root) == before, "a purge that was refused changed something"


def test_every_table_that_holds_clips_is_emptied(root: Path) -> None:
    """One row of each table in the registry, with the purged id in every column that names a clip."""
    for table in registry.TABLES:
        lists = {f.name: [0.0] for f in table.schema if pa.types.is_fixed_size_list(f.type)}
        row = dict.fromkeys(table.schema.names) | lists | dict.fromkeys(table.ids, GONE)
        for folder in table.folders:
            name = str(root / folder.replace("*", "2026-01-09"))
            tables.append(name, pa.Table.from_pylist([row], schema=table.schema), PRINT)
            assert (GONE in str(tables.read(name).to_pylist())) == table.holds_clips, folder
    purge.purge(str(root), {GONE})
    assert GONE not in texts(root)
    for table in registry.TABLES:
        if not table.holds_clips:
            assert tables.read(str(root / table.folders[0])) is not None, "a table without clips lost rows"


STEPS = ["_from_list", "_packs", "_exports", "_generated", "_from_part", "_made_queries", "_latents"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_purge_is_continued(root: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str) -> None:
    """A clip, a query that somebody made of it, and a query from whose caption a video was generated."""
    record = {"id": "made-of-it", "clip": GONE, "caption": "", "group": "roll", "by": "x"}
    stores.write_bytes(str(root / "made_queries" / "made-of-it.json"), json.dumps(record).encode())
    queries = [{**row("made-of-it"), "group": "roll"}]
    tables.append(str(root / "queries"), pa.Table.from_pylist(queries, schemas.QUERIES), PRINT)
    real = getattr(purge, step)

    def killed(*arguments: object) -> None:
        if when == "after":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(purge, step, killed)
    with pytest.raises(KeyboardInterrupt):
        purge.purge(str(root), {GONE, "query-a"})
    monkeypatch.undo()
    purge.purge(str(root), {GONE, "query-a"})
    assert not [name for name in (GONE, "query-a", "made-of-it") if name in texts(root)]
    assert not list((root / "generated").rglob("*.mp4"))


def test_a_root_on_s3_is_purged_likewise(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as store:
        seen_by(monkeypatch, store)
        there = f"s3://{BUCKET}/a run [1]"
        fs, bare = stores.place(there)
        for path in (p for p in root.rglob("*") if p.is_file()):
            fs.put_file(str(path), f"{bare}/{path.relative_to(root)}")
        expected = purge.purge(str(root), {GONE})
        purged = purge.purge(there, {GONE})
        assert (purged.rows, purged.models) == (expected.rows, expected.models)
        stores.fetch_folder(there, str(tmp_path / "back"))
        assert GONE not in texts(tmp_path / "back")
        assert purge.known(there, {GONE, CLIPS[0]}) == {CLIPS[0]}


def test_the_index_does_not_bring_it_back(small_run: MakeRun, small_world: Path, tmp_path: Path) -> None:
    run = small_run(tmp_path)
    listed = videos.videos(str(small_world / "queries"), "data.videos")
    worker = IndexWorker(run, schemas.CLIPS)
    ids = pa.concat_tables([t["clips"] for t in worker(listed)]).column("clip_id").to_pylist()
    purge_list.remember(str(tmp_path), [ids[1]])
    again = pa.concat_tables([t["clips"] for t in IndexWorker(run, schemas.CLIPS)(listed)])
    assert again.column("clip_id").to_pylist() == [i for i in ids if i != ids[1]]
    assert ids[1] not in (tmp_path / purge_list.FILE).read_text(), "the list of purged ids names them"


def test_the_job_refuses_unknown_ids_and_reads_a_file(
    root: Path, small_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def digest() -> str:
        return hashlib.sha256(texts(root).encode()).hexdigest()

    before = digest()
    with pytest.raises(ConfigError, match="clip-99"):
        job.purge(small_run(root, purge__clips=[GONE, "clip-99"]))
    with pytest.raises(ConfigError, match="name the ids"):
        job.purge(small_run(root))
    assert digest() == before, "a refused purge changed something"
    (tmp_path / "ids.txt").write_text(f"{GONE}\n\n")
    job.purge(small_run(root, purge__file=str(tmp_path / "ids.txt")))
    said = capsys.readouterr().out
    assert "nights/2026-01-02/model (in use): trained on 1 of these clips" in said
    assert "clips: 1 rows" in said
    job.purge(small_run(root, purge__clips=[GONE]))  # known to be purged: no error


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_ids_is_read_with_its_byte_order_mark(
    small_run: Callable[..., Run], tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "ids.txt").write_bytes("a\r\né\n".encode(encoding))
    assert job.named_ids(small_run(tmp_path, purge__file=str(tmp_path / "ids.txt"))) == {"a", "é"}


def test_a_file_of_ids_that_cannot_be_read_is_refused(small_run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes("é\n".encode("latin-1"))
    for place, says in ((tmp_path / "ids.txt", "not UTF-8"), (tmp_path, "Is a directory|directory")):
        with pytest.raises(InputError, match=rf"purge\.file=.*({says})"):
            job.named_ids(small_run(tmp_path, purge__file=str(place)))


def test_a_damaged_list_of_purged_clips_is_refused_and_not_taken_for_a_short_one(tmp_path: Path) -> None:
    purge_list.remember(str(tmp_path), ["a clip"])
    path = tmp_path / purge_list.FILE
    assert len(purge_list.digests(str(tmp_path))) == 1
    path.write_bytes(path.read_bytes() + b"\xff\x00garbage\n")
    with pytest.raises(UsageError, match=r"purged\.txt: this file is damaged \(1 of its 2 lines"):
        purge_list.digests(str(tmp_path))
