"""Take clips out of a run: out of every table below its root, and of all that was derived from them but the weights.

What a model learnt from a clip cannot be taken out of its weights; the models that were trained on purged clips are
named, and carry a note of it, until they are trained again without them.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.models.promoted import PROMOTED
from pipeline.storage import stores
from pipeline.tables import purge_list, registry, schemas
from pipeline.tables.part_files import opened
from pipeline.tables.registry import Table
from pipeline.training import training_set

CURATED = ("curated/segments.jsonl", "curated/metadata.jsonl")  # the second: in runs of before it was renamed
NOTES = (PROMOTED, "done.json")  # where a model says what it was trained on
ROWS = 1 << 16
GENERATED = (registry.EVALUATION, registry.DESCRIPTIONS)  # their `uri` may be that of a video that a model generated
# They show other clips beside their own, or repeat what a job said of some.
PAGES = ("explain/", "comparison/index.html", "comparison/comparison.json", "completion/")


@dataclass
class Removed:
    """What went: rows by table, files by folder (both relative to the root), and the models trained on the clips."""

    rows: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    models: dict[str, int] = field(default_factory=dict)  # folder -> how many of the clips
    exports: dict[str, int] = field(default_factory=dict)  # folder outside the root -> how many of the clips it has


@dataclass(frozen=True)
class _Part:
    path: str
    table: Table
    query_ids: tuple[str, ...]  # those that its metadata names, which are the columns of `influence`


def known(root: str, ids: Collection[str]) -> set[str]:
    """Those of the ids that some table below the root still has. Raises InputError as `purge` does."""
    fs, bare = stores.place(root)
    asked, existing_ids = set(ids), set[str]()
    for part in _parts(fs, bare):
        for batch in _batches(fs, part, part.table.ids):
            for column in part.table.ids:
                existing_ids.update(asked & set(batch.column(column).to_pylist()))
        existing_ids.update(asked & set(part.query_ids))
    return existing_ids


def purge(root: str, ids: Collection[str]) -> Removed:
    """Remove clips (or queries, or held-out clips) from everything below a root. Run again, it goes on.

    The ids are remembered first, so that no later run brings them back, whatever becomes of this one. The page is for
    `report` to write anew; rankings of the remaining clips still stem from the old corpus until they are made again.

    Raises InputError, before anything is removed, where a folder holds a table that the registry does not know: which
    of its columns name clips nobody can tell.
    """
    fs, bare = stores.place(root)
    parts = [part for part in _parts(fs, bare) if not _relative(part.path, bare).startswith(PAGES)]
    gone = set(ids)
    gone |= _made_of(fs, bare, gone)
    purge_list.remember(root, gone)
    removed = Removed()
    for path in _files(fs, bare):
        if _relative(path, bare).startswith(PAGES):
            _remove(fs, bare, path, removed)
        if path.endswith(tuple(f"/{name}" for name in CURATED)):
            _from_list(fs, bare, path, gone, removed)
    _packs(fs, bare, parts, gone, removed)
    homes = _exports(fs, bare, parts, gone, removed)
    _generated(fs, bare, gone, _videos(fs, parts, gone), removed)  # while there are rows that say which they are
    for part in parts:
        if posixpath.dirname(part.path) not in homes:
            _from_part(fs, bare, part, gone, removed)
    _made_queries(fs, bare, gone, removed)  # last: their records say which rows go with a clip
    _latents(fs, bare, removed)
    for path in _files(fs, bare):
        name = posixpath.basename(path)
        if name.startswith(".") and name.endswith(".tmp"):  # what a killed writer left
            _remove(fs, bare, path, removed)
    checkpoints = stores.join(bare, "finetuned", ".train")
    if any(path.startswith(f"{checkpoints}/") for path in _files(fs, bare)):
        removed.files["finetuned/.train"] += 1  # of trainings that have not ended, on clips that nothing names
        stores.remove(stores.join(root, "finetuned", ".train"))
    return removed


def _files(fs: fsspec.AbstractFileSystem, bare: str) -> list[str]:
    fs.invalidate_cache()
    return sorted(str(path) for path in fs.find(bare))


def _relative(path: str, bare: str) -> str:
    return path.removeprefix(bare.rstrip("/") + "/")


def _remove(fs: fsspec.AbstractFileSystem, bare: str, path: str, removed: Removed) -> None:
    fs.rm_file(path)
    removed.files[posixpath.dirname(_relative(path, bare))] += 1


# --- tables ----------------------------------------------------------------------------------------------------------


def _parts(fs: fsspec.AbstractFileSystem, bare: str) -> list[_Part]:
    parts = []
    for path in _files(fs, bare):
        name = posixpath.basename(path)
        if not (name.startswith("part-") and name.endswith(".parquet")):
            continue
        with opened(path, fs) as file:
            schema = file.schema_arrow
        try:
            table = registry.table_of(posixpath.dirname(path), schema.names)
        except ValueError as error:
            raise InputError(f"{error} If another program wrote it, move it out of the root: {bare}.") from error
        queries = json.loads((schema.metadata or {}).get(b"query_ids", b"[]"))
        parts.append(_Part(path, table, tuple(queries)))
    return [part for part in parts if part.table.holds_clips]


def _batches(fs: fsspec.AbstractFileSystem, part: _Part, columns: Collection[str] | None) -> Any:
    with opened(part.path, fs) as file:
        schemas.plain(file.schema_arrow.empty_table())  # no pickles: a part of another hand is not opened further
        yield from file.iter_batches(ROWS, columns=None if columns is None else list(columns))


def _gone(batch: pa.RecordBatch, columns: Collection[str], ids: pa.Array) -> pa.Array:
    """Whether each row names one of the ids in one of the columns."""
    mask = pa.array(np.zeros(batch.num_rows, bool))
    for column in columns:
        mask = pc.or_(mask, pc.fill_null(pc.is_in(batch.column(column), ids), False))
    return mask


def _videos(fs: fsspec.AbstractFileSystem, parts: Collection[_Part], ids: Set[str]) -> set[str]:
    """The uris of the rows that name one of the ids, where a model may have generated their videos."""
    id_array, uris = pa.array(sorted(ids), pa.string()), set[str]()
    for part in parts:
        if part.table in GENERATED:
            for batch in _batches(fs, part, (*part.table.ids, "uri")):
                uris |= set(batch.column("uri").filter(_gone(batch, part.table.ids, id_array)).to_pylist())
    return uris


def _from_part(fs: fsspec.AbstractFileSystem, bare: str, part: _Part, ids: Set[str], removed: Removed) -> None:
    """Rewrite a part without the clips."""
    id_array = pa.array(sorted(ids), pa.string())
    columns = part.table.ids
    queries = [i for i, q in enumerate(part.query_ids) if q in ids]
    count, rows = 0, 0
    for batch in _batches(fs, part, columns):
        count += int(pc.sum(_gone(batch, columns, id_array)).as_py() or 0)
        rows += batch.num_rows
    if not count and not queries:
        return
    removed.rows[posixpath.dirname(_relative(part.path, bare))] += count
    with opened(part.path, fs) as file:
        schema = _without_queries(file.schema_arrow, part, queries)
    if count == rows:
        fs.rm_file(part.path)
        return
    with (
        stores.writing(_whole(fs, part.path)) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for batch in _batches(fs, part, None):
            table = pa.Table.from_batches([batch.filter(pc.invert(_gone(batch, columns, id_array)))])
            writer.write_table(_narrowed(table, schema, part, queries))


def _whole(fs: fsspec.AbstractFileSystem, path: str) -> str:
    return path if "file" in fs.protocol else str(fs.unstrip_protocol(path))


def _without_queries(schema: pa.Schema, part: _Part, queries: list[int]) -> pa.Schema:
    if not queries:
        return schema
    query_ids = [q for i, q in enumerate(part.query_ids) if i not in queries]
    if part.table is registry.INFLUENCE:
        at = schema.get_field_index("influence")
        schema = schema.set(at, pa.field("influence", pa.list_(pa.float32(), len(query_ids))))
    return schema.with_metadata({**(schema.metadata or {}), b"query_ids": json.dumps(query_ids).encode()})


def _narrowed(table: pa.Table, schema: pa.Schema, part: _Part, queries: list[int]) -> pa.Table:
    """Rows with the metadata of a schema; those of influence without some queries' columns."""
    if queries and part.table is registry.INFLUENCE:
        column = table.column("influence").combine_chunks()
        width = column.type.list_size
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        values = np.ascontiguousarray(np.delete(values, queries, axis=1))
        rows = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        table = table.set_column(table.column_names.index("influence"), schema.field("influence"), rows)
    return table.replace_schema_metadata(schema.metadata)


def _exports(
    fs: fsspec.AbstractFileSystem, bare: str, parts: Collection[_Part], ids: Set[str], removed: Removed
) -> set[str]:
    """Remove every export that has one of the clips, as a whole: its lists and shards name or hold several. Returns the
    folders of their tables. An export that lies outside the root stays, and is named."""
    id_array, counts, places = pa.array(sorted(ids), pa.string()), Counter[str](), dict[str, str]()
    for part in parts:
        if part.table is not registry.EXPORTS:
            continue
        home = posixpath.dirname(part.path)
        for batch in _batches(fs, part, part.table.ids):
            counts[home] += int(pc.sum(_gone(batch, part.table.ids, id_array)).as_py() or 0)
        with opened(part.path, fs) as file:
            metadata = file.schema_arrow.metadata or {}
        places[home] = json.loads(metadata.get(b"fingerprint", b"{}")).get("to", "")
    homes = {home for home, count in counts.items() if count}
    for home in homes:
        removed.rows[_relative(home, bare)] += counts[home]
        if places[home] and not stores.place(places[home])[1].startswith(f"{bare.rstrip('/')}/"):
            removed.exports[places[home]] = counts[home]
        for path in _files(fs, home):
            if not posixpath.basename(path).startswith("part-"):
                removed.files[posixpath.dirname(_relative(path, bare))] += 1
            fs.rm_file(path)
    return homes


def _made_of(fs: fsspec.AbstractFileSystem, bare: str, ids: Set[str]) -> set[str]:
    """The queries that people made of some clips: their rows go with the clips."""
    paths = [path for path in _files(fs, stores.join(bare, "made_queries")) if path.endswith(".json")]
    records = [json.loads(fs.cat_file(path)) for path in paths]
    return {record["id"] for record in records if record.get("clip") in ids}


def _made_queries(fs: fsspec.AbstractFileSystem, bare: str, ids: Set[str], removed: Removed) -> None:
    """Remove the queries that people made of purged clips, and purged queries out of the manifest of all."""
    folder = stores.join(bare, "made_queries")
    gone = set(ids)
    for path in _files(fs, folder):
        if path.endswith(".json"):
            record = json.loads(fs.cat_file(path))
            if record.get("clip") in gone or record["id"] in gone:
                gone.add(record["id"])
                film = stores.join(folder, f"{record['id']}.mp4")
                for file in (film, path) if fs.exists(film) else (path,):  # a prompt's may not be made yet
                    _remove(fs, bare, file, removed)
    manifest = stores.join(folder, "manifest.jsonl")
    if fs.exists(manifest):
        lines = [line for line in fs.cat_file(manifest).decode().split("\n") if line]
        rest = [line for line in lines if json.loads(line)["id"] not in gone]
        if len(rest) < len(lines):
            stores.write_bytes(_whole(fs, manifest), "".join(f"{line}\n" for line in rest).encode())


def _packs(fs: fsspec.AbstractFileSystem, bare: str, parts: Collection[_Part], ids: Set[str], removed: Removed) -> None:
    """Remove every pack of previews that holds a film of one of the clips, as a whole: films of others are made again
    when somebody looks at them. Their rows that are left name a pack that is not there, which counts as no preview."""
    id_array, names = pa.array(sorted(ids), pa.string()), set[str]()
    for part in parts:
        if part.table is registry.PREVIEWS:
            for batch in _batches(fs, part, ("clip_id", "pack")):
                names.update(batch.column("pack").filter(_gone(batch, ("clip_id",), id_array)).to_pylist())
    for path in _files(fs, stores.join(bare, "previews", "packs")):
        if posixpath.basename(path) in names:
            _remove(fs, bare, path, removed)


# --- files -----------------------------------------------------------------------------------------------------------


def _from_list(fs: fsspec.AbstractFileSystem, bare: str, path: str, ids: Set[str], removed: Removed) -> None:
    """Take clips out of the list of what a model was trained on, once the model carries a note of it."""
    lines = [line for line in fs.cat_file(path).decode().split("\n") if line]
    line_ids = [json.loads(line).get("clip_id") for line in lines]
    gone = {i for i in line_ids if i in ids}
    if not gone:
        return
    model = posixpath.dirname(posixpath.dirname(path))
    for note in (n for n in NOTES if fs.exists(stores.join(model, n))):
        place = stores.join(model, note)
        record: dict[str, Any] = json.loads(fs.cat_file(place))
        record["purged"] = sorted({*record.get("purged", []), *map(purge_list.digest, gone)})
        stores.write_bytes(_whole(fs, place), json.dumps(record).encode())
    removed.models[_relative(model, bare)] = len(gone)
    text = "".join(f"{line}\n" for line, i in zip(lines, line_ids, strict=True) if i not in gone)
    stores.write_bytes(_whole(fs, path), text.encode())


def _generated(
    fs: fsspec.AbstractFileSystem, bare: str, ids: Set[str], videos: Collection[str], removed: Removed
) -> None:
    """Videos generated from a purged query's caption, and query videos made from prompts."""
    folder = stores.join(bare, "generated")
    names = {f"{i}.mp4" for i in ids}
    paths = {stores.place(uri)[1] for uri in videos if uri}

    def goes(path: str) -> bool:
        of_query = posixpath.dirname(path) == f"{folder}/queries" and posixpath.basename(path) in names
        return of_query or path in paths

    for path in _files(fs, folder):
        if goes(path):
            _remove(fs, bare, path, removed)
    prompts = f"{folder}/prompts.json"
    if fs.exists(prompts):
        captions: Mapping[str, str] = json.loads(fs.cat_file(prompts))
        rest = {uri: caption for uri, caption in captions.items() if not goes(stores.place(uri)[1])}
        if len(rest) < len(captions):
            stores.write_bytes(_whole(fs, prompts), json.dumps(rest, indent=1, ensure_ascii=False).encode())
    made_from = f"{folder}/queries/metadata.jsonl"
    if fs.exists(made_from):
        lines = [line for line in fs.cat_file(made_from).decode().split("\n") if line]
        other_lines = [line for line in lines if json.loads(line).get("id") not in ids]
        if len(other_lines) < len(lines):
            stores.write_bytes(_whole(fs, made_from), "".join(f"{line}\n" for line in other_lines).encode())


def _latents(fs: fsspec.AbstractFileSystem, bare: str, removed: Removed) -> None:
    """Encoded clips, and twins of them, that neither the index nor held_out/ names any more: those of purged ones are
    among them."""
    cache = [path for path in _files(fs, bare) if path.startswith(stores.join(bare, "finetuned", ".latents/"))]
    if not cache:
        return
    named = training_set.encodings([])
    named_by = {"clips": ("clip_id", "version", "caption", "captions"), "held_out": ("clip_id", "version", "caption")}
    for name, columns in named_by.items():
        for part in _parts(fs, stores.join(bare, name)):
            with opened(part.path, fs) as file:
                there = [column for column in columns if column in file.schema_arrow.names]
            for batch in _batches(fs, part, there):
                named |= training_set.encodings(batch.to_pylist())
    for path in cache:
        if training_set.encoding_of_clip(posixpath.basename(path)) not in named:
            _remove(fs, bare, path, removed)
