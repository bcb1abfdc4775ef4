"""How much clips look like the queries, and how much they move like them, with no video model: controls of a ranking.

Looks are the colours of what moves. Movement is the judge's distance of optical flow. Both are in movement/.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.motion import colours, judge
from pipeline.ranking.mask_overlap import Alike
from pipeline.storage import stores
from pipeline.tables import scanning

Array = npt.NDArray[np.float32]
COLUMNS = ["clip_id", "description", "colours"]
CHUNK = 4096  # clips that are held against all queries at a time
LOOKS, MOVEMENT = "colours", "movement"


def likenesses(root: str, query_groups: Mapping[str, str]) -> dict[str, Alike]:
    """How alike the clips of a root's movement/ are to every group of queries and to "all", by COLOURS and by MOVEMENT;
    nothing where no movement is known.

    By colours it is the mean over the group's queries of the Bhattacharyya coefficient, by movement less the distance
    from the nearest query.
    """
    folders = {name: stores.join(root, "movement", name) for name in ("queries", "clips")}
    if not all(tables.parts(folder) for folder in folders.values()):
        return {}
    table = tables.read(folders["queries"], [*COLUMNS, "error"])
    assert table is not None, "it has parts"
    rows = table.filter(pc.is_valid(table.column("description")))
    rows = rows.filter(pc.is_in(rows.column("clip_id"), pa.array(list(query_groups), pa.string())))
    if not rows.num_rows:
        return {}
    groups = [query_groups[query_id] for query_id in rows.column("clip_id").to_pylist()]
    measure = _Measure(groups, *_numbers(rows))
    ids, values = list[pa.Array](), {name: list[Array]() for name in (LOOKS, MOVEMENT)}
    for block in scanning.blocks(folders["clips"], COLUMNS):
        measured = block.filter(pc.is_valid(block.column("description")))
        for start in range(0, measured.num_rows, CHUNK):
            clips = measured.slice(start, CHUNK)
            ids.extend(clips.column("clip_id").chunks)
            for name, likeness in measure(*_numbers(clips)).items():
                values[name].append(likeness)
    listed = pa.chunked_array(ids, pa.string()).combine_chunks()
    none = np.empty((0, len(measure.names)), np.float32)
    columns = {name: np.concatenate([none, *parts]).T for name, parts in values.items()}
    return {name: Alike(listed, dict(zip(measure.names, by_group, strict=True))) for name, by_group in columns.items()}


def _numbers(rows: pa.Table) -> tuple[judge.Floats, judge.Floats]:
    """Descriptions [n, NUMBERS] and histograms of colours [n, colours]."""
    description, histogram = (tables.matrix(rows, name).astype(np.float64) for name in COLUMNS[1:])
    return description, histogram


class _Measure:
    """The queries, against which clips are held a few at a time."""

    def __init__(self, groups: list[str], descriptions: judge.Floats, histograms: judge.Floats) -> None:
        self.judge = judge.taught(list(zip(groups, descriptions, strict=True)))
        self.own = list(self.judge.queries)
        self.names = ["all", *(name for name in self.own if name != "all")]
        self.members = {name: np.array([name in ("all", group) for group in groups], bool) for name in self.names}
        self.histograms = histograms

    def __call__(self, descriptions: judge.Floats, histograms: judge.Floats) -> dict[str, Array]:
        """Likeness by name: [clips, names] each."""
        coefficients = colours.alike(histograms, self.histograms)
        looks = [coefficients[:, self.members[name]].mean(1) for name in self.names]
        near = {name: -self.judge.courses(name, descriptions).mean(1) for name in self.own}
        nearest = np.max(list(near.values()), axis=0)
        moves = [nearest if name == "all" else near[name] for name in self.names]
        return {LOOKS: np.stack(looks, 1).astype(np.float32), MOVEMENT: np.stack(moves, 1).astype(np.float32)}
