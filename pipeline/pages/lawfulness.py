"""The section of the page on clips that move unlike their queries: how many break which law, and the worst of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.pages.gallery import Row, Studio, decision_of
from pipeline.pages.pictures import Picture
from pipeline.ranking import lawfulness
from pipeline.storage.stores import join
from pipeline.tables import scanning, schemas

WORST = 5  # clips that are shown of those that break a law, and of those with a flaw


@dataclass(frozen=True)
class Spoiled:
    """A clip that breaks a law or has a flaw: its rows of clips/ and of lawfulness/, and the decision on it for which
    group."""

    clip: Row
    row: Row
    decision: str | None
    group: str
    picture: Picture | None


@dataclass(frozen=True)
class Measured:
    """What lawfulness/ says of a run: `counts`, as the summary has them, and the rows of the worst clips."""

    counts: dict[str, Any]
    lawless: list[Row]  # that break a law and have no flaw, the farthest from their queries first
    flawed: list[Row]  # that have a flaw, likewise

    @property
    def ids(self) -> list[str]:
        return [row["clip_id"] for row in (*self.lawless, *self.flawed)]


def measured(run: Run) -> Measured | None:
    """Read lawfulness/; None where it has no rows. No more of it is in memory than a block.

    Counts: `measured` clips; of them `named`, whose motion somebody names; `laws` and `flaws`, how many break which. A
    clip with a flaw counts by its flaw alone.
    """
    folder, count, named = join(run.root, "lawfulness"), 0, 0
    laws, flaws = Counter[str](), Counter[str]()
    lawless, flawed = schemas.LAWFULNESS.empty_table(), schemas.LAWFULNESS.empty_table()
    for rows in scanning.blocks(folder, schemas.LAWFULNESS.names) if tables.parts(folder) else ():
        count += rows.num_rows
        named += pc.sum(pc.not_equal(rows.column("named_by"), lawfulness.FLOW)).as_py() or 0
        spoiled = lawfulness.unlawful(rows, run.ranking.unlawful)
        has_flaw = pc.is_valid(spoiled.column("flaw"))
        with_flaw, without = spoiled.filter(has_flaw), spoiled.filter(pc.invert(has_flaw))
        flaws.update(with_flaw.column("flaw").to_pylist())
        laws.update(without.column("law").to_pylist())
        lawless, flawed = _worst([lawless, without]), _worst([flawed, with_flaw])
    if not count:
        return None
    counts = {"measured": count, "named": named, "laws": dict(laws.most_common()), "flaws": dict(flaws.most_common())}
    return Measured(counts, lawless.to_pylist(), flawed.to_pylist())


def _worst(parts: Iterable[pa.Table]) -> pa.Table:
    rows = pa.concat_tables(list(parts))
    return rows.sort_by([("distance", "descending"), ("clip_id", "ascending")]).slice(0, WORST)


def spoiled(
    rows: Sequence[Row], clips: Mapping[str, Row], decisions: Mapping[tuple[str, str], str], studio: Studio
) -> list[Spoiled]:
    """The cards of these rows; `decisions` maps (group, clip_id) to the decision."""
    cards = []
    for row in rows:
        clip = clips.get(row["clip_id"])
        decision, group = decision_of(decisions, row["group"], row["clip_id"])
        shown = clip or {"clip_id": row["clip_id"], "source": None, "caption": None}
        cards.append(Spoiled(shown, row, decision, group, None if clip is None else studio.clip(clip)))
    return cards
