"""Where one clip stands in a run: its row in every table, its influence and rank for every query, and the clips nearest
to it by feature. Tables are streamed; what is kept of them is a few numbers a clip."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.ranking import Sums, second_moment, whitened
from pipeline.ranking.feature_table import FeatureTable
from pipeline.storage.stores import join
from pipeline.tables import scanning, schemas
from pipeline.tables.registry import table_of

Array = npt.NDArray[np.float32]
Row = dict[str, Any]

STANDING = schemas.STANDING


# --- rows ------------------------------------------------------------------------------------------------------------


def rows_of(folder: str, ids: Iterable[str], without: Sequence[str] = ()) -> pa.Table | None:
    """The rows of these clips, one each, as `tables.read` gives them; None where there is no table. Large columns can
    be left out, for `scanning.lookup`."""
    if not tables.parts(folder):
        return None
    clip_ids = pa.array(sorted(set(ids)), pa.string())
    rows = tables.Scan(folder, lambda block: pc.is_in(block.column("clip_id"), clip_ids), without)
    return tables.once(pa.concat_tables([rows.schema.empty_table(), *rows]), table_of(folder, rows.schema.names))


def row_of(folder: str, clip_id: str, lookup: Sequence[str] = ()) -> Row | None:
    """A clip's row; None where the table, or the clip in it, is missing. Large columns named in `lookup` are read for
    this row alone."""
    rows = rows_of(folder, [clip_id], lookup)
    if rows is None or not rows.num_rows:
        return None
    row: Row = (scanning.lookup(rows, lookup) if lookup else rows).to_pylist()[0]
    return row


def resembling(root: str, name: str, most: int = 5) -> list[str]:
    """Ids of clips that `name` may mean: those whose id or video has it in its name, else those spelt alike."""
    ids, matches = list[str](), list[str]()
    for block in scanning.blocks(join(root, "clips"), ["clip_id", "uri"]):
        named = [pc.match_substring(block.column(c), name) for c in block.column_names]
        matches += block.column("clip_id").filter(pc.or_kleene(*named)).to_pylist()
        ids += block.column("clip_id").to_pylist()
    return matches[:most] or difflib.get_close_matches(name, sorted(set(ids)), most)


# --- influence -------------------------------------------------------------------------------------------------------


def standing(root: str, clip_id: str, groups: dict[str, str], voted: int) -> tuple[pa.Table, int] | None:
    """A clip's influence on every query, from influence/, in the order of its queries: columns of STANDING; and among
    how many clips. None where the clip has no row there. A query votes for the first `voted` of its order, ties too.

    `rank` counts from 0, by influence, then clip_id. `percentile` is the share of the other clips that rank lower.
    """
    folder = join(root, "influence")
    own = row_of(folder, clip_id)
    if own is None:
        return None
    values = np.asarray(own["influence"], np.float32)
    above, before, count = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64), 0
    for block in scanning.blocks(folder, ["clip_id", "influence"]):
        others, count = tables.matrix(block, "influence"), count + block.num_rows
        above += (others > values).sum(0)
        first = pc.less(block.column("clip_id"), clip_id).to_numpy()
        before += (others[first] == values).sum(0)
    ranks, queries = above + before, tables.metadata(folder)["query_ids"]
    columns = [
        pa.array(queries, pa.string()),
        pa.array([groups.get(q) or "all" for q in queries], pa.string()),
        pa.array(values),
        pa.array(ranks),
        pa.array(100.0 * (count - 1 - ranks) / max(count - 1, 1)),
        pa.array(above < voted),  # as in ranking.votes: at or above the last clip voted for
    ]
    return pa.table(columns, schema=STANDING), count


@dataclass(frozen=True)
class Cosines:
    """A clip's cosines with all clips that have features [N], in their order, and the queries' rows [Q, k] whose inner
    product with the clip's row is its influence."""

    to_clips: Array
    queries: Array


def cosines_of(
    clips: FeatureTable, clip_id: str, queries: Array, whiten: float | None, weights: Sums | None
) -> Cosines:
    """One pass over the features. `weights` are those of a shortlist's clips, of which this one's counts as one
    (`ranking.own_part`)."""
    own = clips.among([clip_id]).rows()[clip_id]
    cosines, moment = list[Array](), np.zeros((len(own), len(own)))

    def cosines_and_moment(phi: Array, rows: slice) -> tuple[Array, Sums]:
        scaled = phi if weights is None else phi * np.sqrt(weights[rows], dtype=np.float32)[:, None]
        return phi @ own, second_moment(scaled)

    for part_cosines, part in clips.map_rows(cosines_and_moment):
        cosines.append(part_cosines)
        moment += part
    if whiten is not None:
        if weights is not None:
            weight = weights[pc.index(clips.clip_ids, pa.scalar(clip_id, pa.large_string())).as_py()]
            moment += (1 - weight) * np.outer(own, own)
        queries = whitened(queries, moment, len(clips.clip_ids) if weights is None else float(weights.sum()), whiten)
    return Cosines(np.concatenate(cosines), queries)


def nearest(clips: FeatureTable, cosines: Array, clip_id: str, most: int) -> list[tuple[str, float]]:
    """The clips with the highest cosines, but for the clip itself: (clip_id, cosine), by cosine, then clip_id."""
    ends = np.argsort(-cosines, kind="stable")[: most + 1]
    pairs = [(clips.clip_ids[i].as_py(), float(cosines[i])) for i in ends.tolist()]
    return sorted((f for f in pairs if f[0] != clip_id), key=lambda f: (-f[1], f[0]))[:most]


def percentile(root: str, column: str, value: float) -> float | None:
    """Which share of the clips of motion/clips has less of a motion statistic; None where none has any."""
    folder, below, count = join(root, "motion", "clips"), 0, 0
    for block in scanning.blocks(folder, [column]) if tables.parts(folder) else ():
        values = block.column(column).drop_null()
        below += pc.sum(pc.less(values, value)).as_py() or 0
        count += len(values)
    return 100.0 * below / count if count else None
