"""What people say about clips, and what follows: one pure function of the set of rows of decisions/.

A person's word on a clip for a group of queries is the latest that the person said of it, by (at, batch). `clear` takes
it back. A word on one motion counts for that motion before the same person's word on all of them. Only words on the
clip's present version count. All who speak agree: the clip is kept or dropped; two differ: it is disputed, and not
in the selection until one of them clears or changes the word.

Rows may come in any order, in any parts, and twice: the verdicts are the same.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.errors import InputError
from pipeline.storage.stores import join
from pipeline.tables import scanning, schemas

Say = Literal["keep", "drop", "clear"]
Verdict = Literal["keep", "drop", "disputed"]
KEEP, DROP, CLEAR, DISPUTED = "keep", "drop", "clear", "disputed"
ALL = "all"
FOLDER = "decisions"
VERDICTS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("verdict", pa.string()),
        ("by", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
        ("note", pa.string()),
    ]
)
_ORDER = ("at", "batch", "say", "note", "version")  # the last three: rows of one moment, which no server writes


def read(root: str) -> pa.Table:
    """The rows of decisions/, each once; none where nobody has decided yet.

    Raises FingerprintError where a part is about clips of another geometry, InputError for a word that is none.
    """
    folder = join(root, FOLDER)
    rows = tables.read(folder)
    if rows is None or not rows.num_rows:
        return schemas.DECISIONS.empty_table()
    check(root)
    words = pc.fill_null(pc.is_in(rows.column("say"), pa.array(get_args(Say))), False)
    if not pc.all(words).as_py():
        word = rows.column("say").filter(pc.invert(words))[0].as_py()
        raise InputError(
            f"{folder}: a row says {word!r}, and a decision is one of {', '.join(get_args(Say))}. Take the part that "
            "holds it out of that folder."
        )
    return rows.select(schemas.DECISIONS.names).cast(schemas.DECISIONS)


def fingerprint(root: str) -> dict[str, Any]:
    """What decisions of a run are about: its clips' geometry."""
    written: dict[str, Any] = tables.metadata(join(root, "clips")).get("fingerprint", {})
    return written


def digest(rows: pa.Table) -> str:
    """A hash of a set of rows, whatever their order: which words something was made of."""
    keys = sorted((row["batch"], row["group"], row["clip_id"], row["say"], row["by"]) for row in rows.to_pylist())
    return hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).hexdigest()


def check(root: str) -> None:
    """Raise FingerprintError where a part of decisions/ is of a run with other segments."""
    tables.check(join(root, FOLDER), fingerprint(root))


def versions(root: str) -> pa.Table:
    """Columns clip_id and version of every clip of a run."""
    folder = join(root, "clips")
    blocks = [pa.table({"clip_id": pa.array([], pa.string()), "version": pa.array([], pa.string())})]
    if tables.parts(folder):
        blocks += [rows.cast(blocks[0].schema) for rows in scanning.blocks(folder, ["clip_id", "version"])]
    return pa.concat_tables(blocks)


def latest_words(rows: pa.Table, group: str, version_of: pa.Table | None = None) -> pa.Table:
    """Each person's latest row on each clip for exactly this group, `clear` included; by clip_id, then person."""
    rows = rows.filter(pc.equal(rows.column("group"), group))
    if version_of is not None:
        at = pc.index_in(rows.column("clip_id"), version_of.column("clip_id").combine_chunks())
        present = version_of.column("version").take(at)
        same = pc.or_(
            pc.fill_null(pc.equal(rows.column("version"), present), False),
            pc.and_(pc.is_null(rows.column("version")), pc.is_null(present)),
        )
        rows = rows.filter(pc.and_(pc.is_valid(at), same))
    ordered = rows.sort_by([(name, "ascending") for name in _ORDER])
    keyed = ordered.select(["clip_id", "by"]).append_column("row", pa.array(np.arange(ordered.num_rows)))
    last = keyed.group_by(["clip_id", "by"], use_threads=False).aggregate([("row", "last")])
    words = ordered.take(last.column("row_last").combine_chunks())
    return words.sort_by([("clip_id", "ascending"), ("by", "ascending")])


def verdicts(rows: pa.Table, group: str, version_of: pa.Table | None = None) -> pa.Table:
    """What people say of clips for a group: columns of VERDICTS, by clip_id; clips of which nobody speaks have no row.

    `by` names those who speak, in order; `at` and `note` are those of the latest word. `version_of` has columns clip_id
    and version of the present clips; None: every version counts.
    """
    words = latest_words(rows, group, version_of)
    words = words.filter(pc.not_equal(words.column("say"), CLEAR))
    if group != ALL:
        general = latest_words(rows, ALL, version_of)
        general = general.filter(pc.not_equal(general.column("say"), CLEAR))
        own = _who(words).combine_chunks()
        words = pa.concat_tables([words, general.filter(pc.invert(pc.is_in(_who(general), own)))])
    words = words.sort_by([(name, "ascending") for name in ("clip_id", "by", *_ORDER)])
    numbered = words.append_column("kept", pc.equal(words.column("say"), KEEP).cast(pa.int8()))
    said = numbered.group_by("clip_id", use_threads=False).aggregate([("kept", "min"), ("kept", "max"), ("by", "list")])
    newest = words.sort_by([(name, "ascending") for name in _ORDER]).select(["clip_id", "at", "note"])
    newest = newest.group_by("clip_id", use_threads=False).aggregate([("at", "last"), ("note", "last")])
    newest = newest.take(pc.index_in(said.column("clip_id"), newest.column("clip_id").combine_chunks()))
    least, most = said.column("kept_min"), said.column("kept_max")
    verdict = pc.if_else(pc.not_equal(least, most), DISPUTED, pc.if_else(pc.equal(most, 1), KEEP, DROP))
    names = pc.binary_join(said.column("by_list").combine_chunks(), ", ")
    columns = [said.column("clip_id"), verdict, names, newest.column("at_last"), newest.column("note_last")]
    return pa.table(columns, schema=VERDICTS).sort_by("clip_id")


def _who(words: pa.Table) -> pa.ChunkedArray:
    """A person and a clip as one value."""
    return pc.binary_join_element_wise(words.column("by"), words.column("clip_id"), "\0")


def run_verdicts(root: str, group: str) -> pa.Table:
    """`verdicts` on a run's present clips for a group."""
    rows = read(root)
    return verdicts(rows, group, versions(root)) if rows.num_rows else VERDICTS.empty_table()


def curated_order(ordered: pa.Array, barred: pa.Array, verdict: pa.Table) -> pa.Array:
    """Clips from first to last choice once people have spoken.

    First the clips that people keep, in the order of the ranking, then those of them that are not ranked, by id; then
    the ranking without the clips that are dropped or disputed, and without those that a rule bars and nobody keeps.
    """
    ids = ordered.type
    clips = verdict.column("clip_id").cast(ids).combine_chunks()
    keep = clips.filter(pc.equal(verdict.column("verdict"), KEEP).combine_chunks())
    ranked = ordered.filter(pc.is_in(ordered, keep))
    unranked = keep.filter(pc.invert(pc.is_in(keep, ordered)))
    rest = ordered.filter(pc.invert(pc.or_(pc.is_in(ordered, clips), pc.is_in(ordered, barred.cast(ids)))))
    return pa.concat_arrays([ranked, unranked.take(pc.sort_indices(unranked)), rest])


def undo(rows: pa.Table, batch: str) -> pa.Table:
    """What a person has to say so that everything is as if a batch had not been said: rows of decisions/ but for
    `batch` and `at`, which are of the batch itself and for the caller to replace.

    Clips on which the same person has said something later are left alone: the batch counts no more for them.
    """
    of_batch = rows.filter(pc.equal(rows.column("batch"), batch))
    if not of_batch.num_rows:
        return of_batch
    others = rows.filter(pc.not_equal(rows.column("batch"), batch))
    restored = []
    for group in pc.unique(of_batch.column("group")).to_pylist():
        group_rows = of_batch.filter(pc.equal(of_batch.column("group"), group))
        newest = _last_of_each(_in_order(rows, group))
        before = _last_of_each(_in_order(others, group))
        for row in group_rows.to_pylist():
            key = (row["clip_id"], row["version"], row["by"])
            if newest[key]["batch"] != batch:
                continue
            earlier = before.get(key)
            restored.append({**row, "say": CLEAR, "note": None} if earlier is None else {**earlier, **_now(row)})
    return pa.Table.from_pylist(restored, schema=schemas.DECISIONS)


def _in_order(rows: pa.Table, group: str) -> list[dict[str, Any]]:
    """Rows of a group from first to last."""
    rows = rows.filter(pc.equal(rows.column("group"), group))
    listed: list[dict[str, Any]] = rows.sort_by([(name, "ascending") for name in _ORDER]).to_pylist()
    return listed


def _last_of_each(rows: list[dict[str, Any]]) -> dict[tuple[Any, Any, Any], dict[str, Any]]:
    """The last row of each clip, version and person."""
    return {(row["clip_id"], row["version"], row["by"]): row for row in rows}


def _now(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("batch", "at", "blind", "seen_rank", "seen_decision", "ranking")}
