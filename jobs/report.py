"""The page of a run: report/index.html and summary.json."""

from __future__ import annotations

from jobs import command
from pipeline.stages.report import report

if __name__ == "__main__":
    command.main(report, __doc__)
