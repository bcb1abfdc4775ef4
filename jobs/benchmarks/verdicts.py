"""What a study says of a criterion of failure that was printed before its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """A criterion: whether failure came true, None where it could not be measured, and its figures."""

    criterion: str
    failed: bool | None
    figures: str

    @property
    def row(self) -> dict[str, Any]:
        says = {True: "failed", False: "passed", None: "not measured"}[self.failed]
        return {"criterion": self.criterion, "verdict": says, "figures": self.figures}
