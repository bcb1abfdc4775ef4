"""Influence of every clip on every query, and what follows from it: tables influence/, neighbors/, selection/."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":
    command.main("pipeline.stages.ranking:rank_clips", __doc__, of_roots=True, completes=True)
