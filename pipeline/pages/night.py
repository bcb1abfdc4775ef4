"""The page of a night, ``ROOT/nights/DATE/index.html``: what it changed, and how it compares with the nights before.

It holds numbers alone, no clip's id, caption or picture; those are on the run's page, which it links to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.config import Run
from pipeline.evaluation.comparison import LOSSES
from pipeline.operations import nights, reattribution
from pipeline.pages import charts
from pipeline.pages.charts import Point
from pipeline.pages.report import environment
from pipeline.storage import stores

Record = Mapping[str, Any]


def write(run: Run, records: Sequence[Record]) -> None:
    """Write the page of the last of these nights; the others are those before it, in order."""
    night = records[-1]
    page = (
        environment()
        .get_template("night.html")
        .render(
            run=run,
            night=night,
            nights=list(reversed(records)),
            price=reattribution.sentence(night["price"]),
            losses=[_losses(records, metric) for metric in LOSSES],
            moves=_moves(records),
            drift=_drift(records),
        )
    )
    stores.write_bytes(stores.join(nights.folder(run.root, night["date"]), "index.html"), page.encode())


def _over(records: Sequence[Record], point: Callable[[Record], Point | None]) -> list[Point | None]:
    return [point(record) for record in records]


def _labels(records: Sequence[Record]) -> list[str]:
    return [record["date"][5:] for record in records]


def _losses(records: Sequence[Record], metric: str) -> Any:
    """The held-out loss of the base, of the model in use when a night began, and of the night's own."""

    def of(model: str) -> Callable[[Record], Point | None]:
        def point(record: Record) -> Point | None:
            value = record["losses"].get(model, {}).get(metric)
            return None if value is None else (value, None, None)

        return point

    models = {"neutral": "base", "selected": "in_use", "harmful": "candidate"}
    series = {css: _over(records, of(model)) for css, model in models.items()}
    return charts.lines(_labels(records), series, f"mean held-out {metric}")


def _moves(records: Sequence[Record]) -> Any:
    """How much of the selection stayed, and how the influence of the same clips agrees, from each night to the next."""

    def stayed(record: Record) -> Point | None:
        chosen = record["selection"]
        if chosen["added"] is None or not chosen["selected"]:
            return None
        return 1 - chosen["added"] / chosen["selected"], None, None

    def influence(record: Record) -> Point | None:
        return _spearman(record["selection"]["influence"])

    series = {"selected": _over(records, stayed), "neutral": _over(records, influence)}
    return charts.lines(_labels(records), series, "agreement with the night before")


def _drift(records: Sequence[Record]) -> Any:
    """How the ranking by the model in use agrees with the ranking by the checkpoint that attributes."""

    def overlap(record: Record) -> Point | None:
        drift = record["drift"]
        return None if drift is None or drift["overlap"] is None else (drift["overlap"], *drift["overlap_interval"])

    series = {"neutral": _over(records, lambda r: _spearman(r["drift"])), "selected": _over(records, overlap)}
    return charts.lines(_labels(records), series, "agreement with the model in use")


def _spearman(drift: Mapping[str, Any] | None) -> Point | None:
    return None if drift is None or drift["spearman"] is None else (drift["spearman"], *drift["spearman_interval"])
