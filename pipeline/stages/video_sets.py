"""The sets of videos that a run knows: its clips, its queries, and those held out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import InputError
from pipeline.inputs import spans
from pipeline.inputs.folders.files import is_etag
from pipeline.inputs.video_set import VideoSet
from pipeline.storage import stores
from pipeline.tables import scanning

SETS = {"clips": "data.videos", "queries": "queries.videos", "held_out": "evaluate.videos"}


def names(run: Run) -> tuple[str, ...]:
    return ("queries", "clips", *(("held_out",) if run.evaluate.videos else ()))


def where(run: Run, name: str) -> str | None:
    """The place of a set's videos. Queries made from prompts lie under the run's root."""
    if name == "queries" and run.queries.videos is None:
        return stores.join(run.root, "generated", "queries", "metadata.jsonl")
    return {"clips": run.data.videos, "queries": run.queries.videos, "held_out": run.evaluate.videos}[name]


def asked(run: Run, name: str) -> VideoSet:
    """A set as the configuration asks for it. Queries made from prompts lie under the run's own root, and may have no
    captions."""
    d, place = run.data, str(where(run, name))
    if name == "queries" and run.queries.videos is None:
        return VideoSet(place, SETS[name], fps=d.fps)
    files = {"clips": d.files, "queries": run.queries.files, "held_out": run.evaluate.files}[name]
    return VideoSet(place, SETS[name], d.base, files, d.camera, d.fps, d.empty_captions)


def check_disjoint(run: Run) -> None:
    """Raise InputError where a held-out video is among the data or the queries: by its place, or its etag. Where both
    have spans of one file, these must not overlap. The data are read in blocks: memory is that of the held-out set."""
    folder = stores.join(run.root, "held_out")
    held_out = [row for rows in _blocks(folder) for row in rows.to_pylist()]
    for name in ("clips", "queries"):
        roots = run.clip_roots if name == "clips" else (run.root,)
        uris = _shared(held_out, (rows for root in roots for rows in _blocks(stores.join(root, name))))
        if uris:
            raise InputError(
                f"evaluate.videos={run.evaluate.videos!r}: {len(uris)} of its videos are in {SETS[name]} as well, such "
                f"as {uris[0]}. Clips that took part in the selection cannot judge it; leave them out."
            )


def _blocks(folder: str) -> Iterator[pa.Table]:
    """The uri, version and span of each clip of a set; nothing where it was not indexed."""
    if not tables.parts(folder):
        return
    has_spans = any("span" in schema.names for schema in tables.columns(folder))
    yield from scanning.blocks(folder, ["uri", "version", *(["span"] if has_spans else [])])


def _shared(held_out: Sequence[Mapping[str, Any]], blocks: Iterable[pa.Table]) -> list[str]:
    """The uris of held-out rows whose file is among the rows of the blocks too, in order."""
    spans_of: dict[str, set[str | None]] = defaultdict(set)
    for row in held_out:
        spans_of[row["uri"]].add(row.get("span"))
    etags = {row["version"]: row["uri"] for row in held_out if "://" in row["uri"] and is_etag(row["version"])}
    known = pa.array(list(spans_of), pa.string()), pa.array(list(etags), pa.string())
    same_place, same_etag, shared = set[str](), set[str](), set[str]()
    for rows in blocks:
        both = pc.or_(*(pc.is_in(rows.column(n), of) for n, of in zip(("uri", "version"), known, strict=True)))
        for row in rows.filter(both).to_pylist():
            uri = row["uri"]
            if uri not in spans_of:
                same_etag.add(etags[row["version"]])
                continue
            same_place.add(uri)
            if any(spans.overlap(span, row.get("span")) for span in spans_of[uri]):
                shared.add(uri)
    return sorted(shared | (same_etag - same_place))
