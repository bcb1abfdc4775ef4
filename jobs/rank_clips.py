"""Influence of every clip on every query, and what follows from it: tables influence/, neighbors/, selection/."""

from __future__ import annotations

from jobs import command
from pipeline.stages.ranking import rank_clips

if __name__ == "__main__":
    command.main(rank_clips, __doc__)
