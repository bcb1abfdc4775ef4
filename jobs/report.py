"""The page of a run: report/index.html and summary.json."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":
    command.main("pipeline.stages.report:report", __doc__)
