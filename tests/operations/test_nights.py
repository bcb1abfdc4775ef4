"""A night's selection after people's word."""

from __future__ import annotations

import pyarrow as pa

from pipeline.operations import nights
from pipeline.ranking import decisions
from pipeline.tables import schemas


def test_what_people_say_stands_in_the_nights_selection() -> None:
    machine = {"a": "selected", "b": "selected", "c": "harmful", "d": "neutral", "e": "selected", "f": "neutral"}
    rows = [{"clip_id": i, "decision": word, "by": "ranking"} for i, word in machine.items()]
    table = pa.Table.from_pylist(rows, schema=schemas.NIGHT_SELECTION)
    said = [("a", "drop", "ann"), ("b", "disputed", "ann, ben"), ("c", "keep", "ben")]
    verdicts = pa.Table.from_pylist(
        [{"clip_id": i, "verdict": v, "by": by} for i, v, by in said], schema=decisions.VERDICTS
    )
    after = nights.with_people(table, pa.array(["c", "d"]), verdicts)
    assert {row["clip_id"]: (row["decision"], row["by"]) for row in after.to_pylist()} == {
        "a": ("dropped", "ann"),
        "b": ("disputed", "ann, ben"),
        "c": ("selected", "ben"),
        "d": ("selected", "ranking"),
        "e": ("neutral", "ranking"),
        "f": ("neutral", "ranking"),
    }
    assert nights.changes(table, after)["selected"] == 2
