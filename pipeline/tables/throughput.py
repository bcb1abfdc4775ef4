"""What the stages of a run achieved, job by job: ``stats/STAGE-*.json`` under its root, and their sums.

Every job writes files of its own, so that no two jobs write one file and a killed job's figures remain.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.storage import stores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figures:
    """What a stage did in one job. Of several jobs, the sums hold."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # of a file that is read

    seconds: float = 0.0
    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0  # of video files
    actors: int = 0
    actor_seconds: float = 0.0  # that actors were up
    busy_seconds: float = 0.0  # of those, in batches
    deaths: int = 0  # of actors, for whatever reason

    def __add__(self, other: Figures) -> Figures:
        added = {name: value + getattr(other, name) for name, value in asdict(self).items() if name != "errors"}
        most = {"actors": max(self.actors, other.actors)}
        return Figures(**{**added, **most}, errors=dict(Counter(self.errors) + Counter(other.errors)))

    @property
    def rows_per_second(self) -> float | None:
        return self.rows / self.seconds if self.seconds > 0 else None

    @property
    def busy_share(self) -> float | None:
        """Of the time that the pool's actors were up, the share that they spent in batches."""
        return self.busy_seconds / self.actor_seconds if self.actor_seconds > 0 else None

    def line(self) -> str:
        """For the log: clips a second, busy share, bytes, errors by code, deaths."""
        shown = [f"{self.rows} rows in {self.seconds:.0f} s"]
        if self.rows_per_second:
            shown.append(f"{self.rows_per_second:.2f} a second")
        if self.busy_share is not None:
            shown.append(f"{self.actors} actors {self.busy_share:.0%} busy")
        shown.append(f"{self.bytes_read / 1e6:.1f} MB of video read")
        shown += [f"{count} {code}" for code, count in self.errors.items()]
        if self.deaths:
            shown.append(f"{self.deaths} actors died and were replaced")
        return ", ".join(shown)


def new_file(root: str, stage: str) -> str:
    """A place for the figures of a stage in this job."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return stores.join(root, "stats", f"{stage.replace(' ', '_')}-{now}-{uuid.uuid4().hex[:8]}.json")


def save(path: str, stage: str, figures: Figures) -> None:
    stores.write_bytes(path, json.dumps({"stage": stage, **asdict(figures)}).encode())


def sums(root: str) -> dict[str, Figures]:
    """What each stage of a run achieved over all of its jobs. A damaged file is left out, with a warning."""
    folder = stores.join(root, "stats")
    fs, _ = stores.place(folder)
    totals: dict[str, Figures] = {}
    for path in stores.files(folder):
        if not path.endswith(".json"):
            continue
        try:
            stage, figures = _read(fs.cat_file(path))
        except ValueError as error:
            log.warning("%s: the file is damaged, so its figures are left out (%s)", path, error)
            continue
        totals[stage] = totals.get(stage, Figures()) + figures
    return totals


def _read(data: bytes) -> tuple[str, Figures]:
    """The stage and its figures that a file of `stats/` holds. Raises ValueError for a damaged one."""
    record = json.loads(data)
    stage = record.pop("stage", None) if isinstance(record, dict) else None
    if not isinstance(stage, str):
        raise ValueError("it names no stage")
    try:
        return stage, TypeAdapter(Figures).validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def by_stage(root: str) -> dict[str, dict[str, Any]]:
    """The sums over all jobs of a run for each stage, with rows a second and the busy share; for summary.json."""
    return {
        stage: {**asdict(f), "rows_per_second": f.rows_per_second, "busy_share": f.busy_share}
        for stage, f in sorted(sums(root).items())
    }
