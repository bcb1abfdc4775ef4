"""The studies' tables, as Parquet and as text, and their plots as PNG. A figure has its interval beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq

matplotlib.use("agg")
import matplotlib.pyplot as plt

from jobs.benchmarks import ceilings
from pipeline.storage import stores

Rows = list[dict[str, Any]]
APART = 0.022  # of labels, in LDS
CONTROL, OURS, KNOWN = "#b0b0b0", "#2b6cb0", "#2f855a"


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


def draw(results: Mapping[str, Rows], folder: str) -> None:
    """lds.png, cost.png and counterfactual.png in a local folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = results["lds"]
    ceiling = results["ceiling"][0]["specific_of_mean"] if results["ceiling"] else None
    _bars([(r["method"], r["specific"], r["specific_low"], r["specific_high"]) for r in rows],
          "LDS, target-specific", f"{folder}/lds.png", ceiling)  # fmt: skip
    _cost(rows, f"{folder}/cost.png")
    arms = results["counterfactual"]
    name = "masked_target"
    _bars([(r["arm"], 100 * r[name], 100 * r[f"{name}_low"], 100 * r[f"{name}_high"]) for r in arms],
          "held-out masked loss on the target after fine-tuning, %", f"{folder}/counterfactual.png")  # fmt: skip


def _colour(name: str) -> str:
    if name.startswith("oracle"):
        return KNOWN
    return CONTROL if name.startswith("control") or name in ("random", "magnitude", "mask_overlap", "all") else OURS


def _bars(values: list[tuple[str, float, float, float]], title: str, path: str, ceiling: float | None = None) -> None:
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(values) + 1.2), layout="constrained")
    names = [name for name, *_ in values]
    at = range(len(values))
    axes.barh(at, [v for _, v, *_ in values], color=[_colour(n) for n in names])
    spread = [[v - low for _, v, low, _ in values], [high - v for _, v, _, high in values]]
    axes.errorbar([v for _, v, *_ in values], at, xerr=spread, fmt="none", color="black", linewidth=1)
    if ceiling is not None:
        axes.axvline(ceiling, color="black", linestyle=":", label="as many other fine-tunings on the same subset")
        axes.legend(loc="lower right")
    axes.set_yticks(at, names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _cost(rows: Rows, path: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    points = sorted((row["gradients"], row["specific"], row["method"]) for row in rows if row["gradients"])
    before, at = 0, 0.0
    for cost, value, name in points:
        axes.plot(cost, value, "o", color=_colour(name))
        at = max(value, at + APART) if cost == before else value  # labels must not lie upon one another
        axes.annotate(name, (cost, at), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8)
        before = cost
    costs = sorted({cost for cost, *_ in points})
    axes.set_xlabel("backward passes a clip")
    axes.set_ylabel("LDS, target-specific")
    axes.set_xlim(0, 2 * costs[-1])
    axes.set_xticks(costs)
    figure.savefig(path, dpi=120)
    plt.close(figure)
