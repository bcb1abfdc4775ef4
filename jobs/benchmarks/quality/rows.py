"""Rows of tables: figures with their intervals beside them, written as Parquet and shown as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmarks import ceilings
from jobs.benchmarks.quality import datamodel
from jobs.benchmarks.quality.datamodel import Floats
from pipeline.statistics.intervals import Interval
from pipeline.storage import stores

Rows = list[dict[str, Any]]


def both_lds(predicted: Floats, gains: Floats) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, target_specific in (("plain", False), ("specific", True)):
        score = datamodel.lds(predicted, gains, target_specific)
        found |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return found


def told(name: str, found: Interval) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def write(path: str, rows: Rows) -> None:
    with stores.writing(path) as file:
        pq.write_table(pa.Table.from_pylist(rows), file)


def show(title: str, rows: Rows) -> None:
    """A table: words, then every figure that has an interval with it."""
    print(f"\n{title}")
    names = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
    ceilings.print_table(names, [[_cell(row, name) for name in names] for row in rows])


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, float):
        return str(value)
    low = row.get(f"{name}_low")
    return f"{value:+.3f}" if low is None else f"{value:+.3f} [{low:+.3f}, {row[f'{name}_high']:+.3f}]"
