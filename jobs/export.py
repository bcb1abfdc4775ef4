"""Hand an arm's clips on as a trainer reads them (`export.format`, `export.arm`), or the videos that it generated as an
evaluation suite does; `export.results` reads what the suite says of them."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.export:export", __doc__, of_roots=True)

import os
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.cluster import resources, streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.errors import MissingTableError, NothingUsableError
from pipeline.exports import checks, clip_rows, destination, provenance, suite_results, suites
from pipeline.exports.formats import Format
from pipeline.exports.suites import SUITES
from pipeline.exports.worker import ExportWorker
from pipeline.ranking import decisions, partitions
from pipeline.stages import budget, run_record
from pipeline.stages.progress import Progress, achieved, counts
from pipeline.storage import stores
from pipeline.storage.named_files import read_text
from pipeline.storage.parallel import in_order
from pipeline.tables import retries, schemas


def export(run: Run) -> None:
    if run.export.format not in SUITES:
        export_clips(run)
    elif run.export.results:
        read_results(run)
    else:
        export_videos(run)


# --- clips for trainers ----------------------------------------------------------------------------------------------


def export_clips(run: Run) -> None:
    layout = checks.layout(run)
    partitions.check(run)
    for root in run.clip_roots:
        tables.check(stores.join(root, "clips"), fingerprints.clips(run))
    for sentence in checks.frames(run, layout):
        print(f"warning: {sentence}")
    rows = clip_rows.clip_rows(run, layout)
    _print_plan(run, layout, rows)
    home = stores.join(run.root, "exports", name(run))
    folder = run.export.to or stores.join(home, "files")
    digest = clip_rows.digest(run, layout, rows)
    state = destination.state(folder, digest)
    if state == "whole" and not _is_to_be_tried_again(home):
        print(f"export: {folder} is whole already")
        return
    record = _record(run, layout, rows, digest)
    run_record.record(run)
    if state != "continued":
        destination.claim(folder, record)
    fingerprint = {"export": digest, "to": folder}
    _drop_other_rows(home, fingerprint)
    if layout.clips == "none":
        exported = _list(rows, home, fingerprint)
    else:
        exported = _cut(run, layout, rows, home, folder, fingerprint)
    _complete(run, layout, exported, folder, record)


def name(run: Run) -> str:
    """The export's name below ROOT/exports."""
    e = run.export
    group = "" if e.group == "all" else f"-{clip_rows.file_stems([e.group])[0]}"
    return e.name or f"{e.format}-{e.arm}{group}"


def _print_plan(run: Run, layout: Format, rows: pa.Table) -> None:
    d, empty = run.data, int(pc.sum(pc.equal(rows.column("caption"), "")).as_py() or 0)
    print(
        f"export: {rows.num_rows} clips of the arm {run.export.arm} for {layout.trainer}, {d.frames} frames at "
        f"{d.fps:g} a second, {d.width} x {d.height}; {empty} of them have no caption"
    )
    if layout.weighting == "column":
        return
    off = checks.deviation(rows, layout)
    how = {"none": "cannot be had", "rows": "are repeated rows"}.get(
        layout.weighting, f"are the {'probability' if layout.probability else 'repeats'} of data sets"
    )
    print(f"export: weights {how}; the share of a clip is off by {100 * off:.3g} % at most")


def _record(run: Run, layout: Format, rows: pa.Table, digest: str) -> dict[str, Any]:
    d, e = run.data, run.export
    geometry = {"frames": d.frames, "fps": d.fps, "height": d.height, "width": d.width}
    about = {"format": layout.name, "arm": e.arm, "group": e.group, "model": e.model, "root": run.root}
    words = pa.concat_tables([decisions.read(root) for root in run.clip_roots]) if e.arm == "curated" else None
    people = {} if words is None else {"decisions": decisions.digest(words)}
    return {**about, **geometry, **people, "digest": digest, "clips": rows.num_rows}


def _is_to_be_tried_again(home: str) -> bool:
    """Whether an export lacks clips because of errors that a later run may not have."""
    table = tables.read(home, ["clip_id", "problem"])
    return table is not None and bool(pc.any(retries.retried(table.column("problem"))).as_py())


def _drop_other_rows(home: str, fingerprint: dict[str, str]) -> None:
    """Empty the export's table where it is of another export of this name, which has been deleted or moved."""
    if tables.metadata(home).get("fingerprint") != fingerprint:
        for path in tables.parts(home):
            stores.remove_file(stores.join(home, os.path.basename(path)))


def _list(rows: pa.Table, home: str, fingerprint: dict[str, str]) -> pa.Table:
    """Write the rows of an export without clips, so that a purge knows whom it names."""
    listed = [{"clip_id": row["clip_id"], "version": row["version"]} for row in rows.to_pylist()]
    tables.append(home, pa.Table.from_pylist(listed, schema=schemas.EXPORTS), fingerprint)
    return rows


def _cut(run: Run, layout: Format, rows: pa.Table, home: str, folder: str, fingerprint: dict[str, str]) -> pa.Table:
    """Cut the clips that are not yet there; the rows of those that are there then, with the file that holds each."""
    pending, tried = _pending(rows, home, folder)
    pool = run.resources.export
    if pending.num_rows:
        streaming.connect()
        resources.check(run, ["export"])
        stage = Stage(
            title="export",
            root=run.root,
            pool=pool,
            worker=partial(ExportWorker, run, layout, folder),
            folders={"exports": home},
            fingerprints={"exports": fingerprint},
        )
        checkpoint = budget.spending(run.budget).checkpoint(stage.title, pool)
        figures = streaming.stream(stage, [pending], pending.num_rows, Progress(stage.title), tried, checkpoint)
        achieved(stage.title, figures)
    names = ["clip_id", "file", "bytes", *(["copied"] if run.export.video == "copy" else []), "problem"]
    table = tables.read(home, names)
    assert table is not None, "every clip has a row"
    failed = table.filter(table.column("problem").is_valid())
    counts("export", table.num_rows, tables.errors_by_code(failed.rename_columns([*names[:-1], "error"])))
    if run.export.video == "copy":
        copied = pc.sum(table.column("copied")).as_py() or 0
        print(f"export: {copied} of them are copied as they are, the others are encoded")
    table = table.filter(table.column("problem").is_null())
    if not table.num_rows:
        raise NothingUsableError(
            f"export: not one of the {rows.num_rows} clips could be cut out of its video. The table {home} says why."
        )
    destination.remove_strays(folder, set(table.column("file").to_pylist()))
    places = pc.index_in(table.column("clip_id"), rows.column("clip_id").combine_chunks())
    exported = rows.take(places.combine_chunks())
    return exported.set_column(exported.column_names.index("file"), "file", table.column("file"))


def _pending(rows: pa.Table, home: str, folder: str) -> tuple[pa.Table, set[str]]:
    """The clips without a file and without an error that stands, and those of them that are tried for the last time.

    Rows go whose file somebody took away.
    """
    table = tables.read(home, ["clip_id", "file", "problem"])
    if table is None:
        return rows, set()
    problems = table.column("problem")
    present = pa.array(sorted(destination.listing(folder)), pa.string())
    again = pc.or_(
        retries.retried(problems), pc.and_(problems.is_null(), pc.invert(pc.is_in(table.column("file"), present)))
    )
    tried = set(table.filter(retries.tried_once(problems)).column("clip_id").to_pylist())
    tables.drop(home, table.filter(again).column("clip_id").to_pylist())
    done = table.filter(pc.invert(again)).column("clip_id").combine_chunks()
    return rows.filter(pc.invert(pc.is_in(rows.column("clip_id"), done))), tried


def _complete(run: Run, layout: Format, rows: pa.Table, folder: str, record: dict[str, Any]) -> None:
    clips = checks.exported_set(run, rows, folder)
    texts: dict[str, str | bytes] = {**layout.write(clips), "provenance.parquet": provenance.parquet(rows, record)}
    texts["README.txt"] = provenance.readme(layout, clips, run)
    destination.complete(folder, texts, {**record, "cut": rows.num_rows, "files": sorted(texts)})
    print(f"export: {rows.num_rows} clips in {folder}")


# --- generated videos for evaluation suites --------------------------------------------------------------------------


def export_videos(run: Run) -> None:
    """Copy the videos that an arm generated to the names under which a suite looks for them."""
    e, suite = run.export, suites.check(run)
    videos = suites.generated_videos(run)
    prompts = [] if e.suite is None else suites.read_prompts(read_text("export.suite", e.suite), e.suite)
    files = suite.files(e.arm, videos, prompts)
    if not files:
        raise NothingUsableError(
            f"export.suite={e.suite!r}: not one of its {len(prompts)} prompts is the caption of a video that {e.arm} "
            f"generated, such as {videos[0].caption!r}. Evaluate with queries whose captions are the suite's prompts."
        )
    missing = len({p.caption for p in prompts} - {video.caption for video in videos})
    if missing:
        print(f"warning: {missing} of the {len(prompts)} prompts of {suite.title} have no video of {e.arm}")
    home = stores.join(run.root, "exports", name(run))
    folder = e.to or stores.join(home, "files")
    rows = pa.Table.from_pylist(
        [{"file": path, "arm": e.arm, **asdict(video)} for path, video in sorted(files.items())]
    )
    digest = clip_rows.rows_digest([e.format, e.path], rows)
    if destination.state(folder, digest) == "whole":
        print(f"export: {folder} is whole already")
        return
    record = {"format": e.format, "arm": e.arm, "root": run.root, "digest": digest, "clips": rows.num_rows}
    destination.claim(folder, record)
    fingerprint = {"export": digest, "to": folder}
    _drop_other_rows(home, fingerprint)
    for _ in in_order(lambda each: _copy(each[1].uri, stores.join(folder, each[0])), sorted(files.items())):
        pass
    _list(
        rows.group_by("clip_id").aggregate([("version", "min")]).rename_columns(["clip_id", "version"]),
        home,
        fingerprint,
    )
    written = suites.texts(str(e.format), checks.base(run, folder), files)
    destination.complete(folder, {**written, "provenance.parquet": provenance.parquet(rows, record)}, record)
    print(f"export: {rows.num_rows} videos of {e.arm} for {suite.title} in {folder}")


def _copy(uri: str, path: str) -> None:
    stores.write_bytes(path, stores.read_bytes(uri))


def read_results(run: Run) -> None:
    """Read a suite's results into evaluation/, by the names that the export gave the videos."""
    e, evaluation = run.export, stores.join(run.root, "evaluation")
    path = stores.join(e.to or stores.join(run.root, "exports", name(run), "files"), "provenance.parquet")
    if not stores.exists(path):
        raise MissingTableError(
            f"export.results: {path} is not there; export the videos with this configuration first."
        )
    videos = pq.read_table(pa.BufferReader(stores.read_bytes(path))).to_pylist()
    texts = {file: read_text("export.results", file) for file in e.results}
    rows = suite_results.read_results(str(e.format), texts, videos)
    metadata = tables.metadata(evaluation)
    tables.append(evaluation, pa.Table.from_pylist(rows, schema=schemas.EVALUATION), metadata.get("fingerprint", {}))
    metrics = sorted({row["metric"] for row in rows})
    print(f"evaluation: {len(rows)} values of {e.arm} read ({', '.join(metrics)})")
