"""The tables of a run whose clips lie in several roots (`ranking.roots`): each worked by jobs of its own, all ranked
together.

A clip belongs to one of the roots, by its id. The run's own root holds the ranking and what follows from it; where it
is none of the roots, its queries are those of the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.errors import ConfigError, MissingTableError
from pipeline.storage import lease, stores
from pipeline.storage.stores import join
from pipeline.tables import scanning
from pipeline.tables.ids import IdSet

QUERY_TABLES = ("queries", "motion/queries", "movement/queries", "features/queries")


# --- reading ----------------------------------------------------------------------------------------------------------


def folders(run: Run, name: str) -> list[str]:
    """The table of this name in every root that has it."""
    return [folder for root in run.clip_roots if tables.parts(folder := join(root, name))]


def blocks(run: Run, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of the clips' table of this name, in bounded blocks, root by root."""
    for folder in folders(run, name):
        yield from scanning.blocks(folder, columns)


# --- queries ----------------------------------------------------------------------------------------------------------


def query_root(run: Run) -> str:
    """The root that the queries come from: the run's own, or the first of the roots where it is none of them."""
    own = {spelling(run.root)} & {spelling(root) for root in run.clip_roots}
    return run.root if own else run.clip_roots[0]


def copy_queries(run: Run) -> None:
    """Put the tables of the queries into the run's own root, so that all that follows finds them there."""
    source = query_root(run)
    if source == run.root:
        return
    for name in QUERY_TABLES:
        paths = tables.parts(join(source, name))
        names = [path.rsplit("/", 1)[-1] for path in paths]
        lease.check(run.root)
        for file in names:
            stores.write_bytes(join(run.root, name, file), stores.read_bytes(join(source, name, file)))
        for path in tables.parts(join(run.root, name)):
            if path.rsplit("/", 1)[-1] not in names:
                stores.remove_file(join(run.root, name, path.rsplit("/", 1)[-1]))


# --- what is wrong with them ------------------------------------------------------------------------------------------


def check(run: Run) -> None:
    """Raise UsageError for roots that cannot be ranked together: one that is named twice, that has no features, whose
    features were computed otherwise, or that has a clip of another. Nothing is written."""
    roots = run.ranking.roots
    _check_distinct(roots)
    for root in roots:
        if not tables.parts(join(root, "features", "clips")):
            raise MissingTableError(
                f"ranking.roots: the root {root!r} has no table features/clips. Run `python -m jobs.curate --set "
                f"root={root}` for it first, or leave it out."
            )
        tables.check(join(root, "features", "clips"), fingerprints.features(run.of("clips")))
        tables.check(join(root, "movement", "clips"), fingerprints.movement(run))
        tables.check(join(root, "clips"), fingerprints.clips(run))
    if roots:
        _check_queries(run)
        _check_disjoint(roots)


def _check_queries(run: Run) -> None:
    source = query_root(run)
    if not tables.parts(join(source, "features", "queries")):
        raise MissingTableError(
            f"ranking.roots: the queries are those of root={source!r}, which has no table features/queries. Run "
            "extract_features for it first, or name a root with queries first."
        )
    tables.check(join(source, "features", "queries"), fingerprints.features(run.of("queries")))


def spelling(root: str) -> str:
    """One spelling of a place that can be written in many: links followed, no slash too many."""
    fs, bare = stores.place(root)
    if "file" in fs.protocol:
        return os.path.realpath(bare)
    return f"s3://{'/'.join(part for part in bare.split('/') if part)}"


def _check_distinct(roots: Sequence[str]) -> None:
    places: dict[str, str] = {}
    for root in roots:
        place = spelling(root)
        if place in places:
            other = places[place]
            again = f"{root!r} twice" if other == root else f"one root twice, as {other!r} and as {root!r}"
            raise ConfigError(f"ranking.roots names {again}: its clips would count double. Name each root once.")
        places[place] = root


def _check_disjoint(roots: Sequence[str]) -> None:
    """Raise ConfigError where two roots have a clip of one id. Memory holds 16 bytes a clip."""
    sets = [_ids(root) for root in roots]
    every = np.concatenate([ids.digests[:, 0] for ids in sets])
    every.sort()
    repeats = np.unique(every[1:][every[1:] == every[:-1]])
    if not len(repeats):
        return
    for n, ids in enumerate(sets):
        for earlier in range(n):
            both = ids.has_set(sets[earlier])
            if both.any():
                shared = sets[earlier].subset(both)
                raise ConfigError(_shared(roots[earlier], roots[n], shared))


def _ids(root: str) -> IdSet:
    """The ids of a root's clips, each once though it has two rows."""
    ids = IdSet.of(rows.column("clip_id") for rows in scanning.blocks(_listing(root), ["clip_id"]))
    digests = ids.digests
    new = np.ones(len(digests), bool)
    new[1:] = (digests[1:] != digests[:-1]).any(1)
    return ids.subset(new)


def _listing(root: str) -> str:
    """The table that lists a root's clips; with features alone, that of these."""
    folder = join(root, "clips")
    return folder if tables.parts(folder) else join(root, "features", "clips")


def _shared(first: str, second: str, ids: IdSet) -> str:
    examples = (_example(root, ids) for root in (first, second))
    (clip_id, uri), (_, other) = examples
    what = f"; {clip_id!r} is {uri} in the one and {other} in the other" if uri else f", such as {clip_id!r}"
    return (
        f"ranking.roots: {first!r} and {second!r} have {len(ids)} clips of the same ids{what}. Let each video be in "
        "one root alone; where different videos share an id, give them ids of their own (column `id` of the manifest)."
    )


def _example(root: str, ids: IdSet) -> tuple[str, str | None]:
    """The first id of the set in a root's listing, and where its video lies, if that is known."""
    folder, shared = _listing(root), list[tuple[str, str | None]]()
    columns = ["clip_id", *(["uri"] if folder == join(root, "clips") else [])]
    for rows in scanning.blocks(folder, columns):
        some = rows.filter(pa.array(ids.has(rows.column("clip_id")))).to_pylist()
        shared = sorted([*shared, *((row["clip_id"], row.get("uri")) for row in some)], key=lambda pair: pair[0])[:1]
    if not shared:
        raise RuntimeError(f"root={root!r}: its clips changed while they were read: is another job writing it?")
    return shared[0]
