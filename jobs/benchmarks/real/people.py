"""Which people teach the base, make up the corpus, are queries, are held out: nobody in two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from jobs.benchmarks.matching import by_hash
from pipeline.errors import InputError

Part = Literal["base", "corpus", "queries", "held_out"]
PARTS: tuple[Part, ...] = ("queries", "held_out", "corpus", "base")
SHARES: Mapping[Part, int] = {"base": 9, "corpus": 10, "queries": 3, "held_out": 3}  # of 25 people


def split(actions: Mapping[str, frozenset[str]], seed: int = 0) -> dict[str, Part]:
    """The part of every person, by the actions that they show.

    The parts in turn take the person who adds most actions that the part lacks, so that each has every action as far as
    people allow. Raises InputError for too few people.
    """
    counts = quotas(len(actions), _cover(actions, seed))
    waiting = by_hash(seed, sorted(actions))
    part_of: dict[str, Part] = {}
    shown: dict[Part, set[str]] = {part: set() for part in PARTS}
    while waiting:
        for part in PARTS:
            if counts[part] and waiting:
                person = max(waiting, key=lambda name: len(actions[name] - shown[part]))  # the first of equals
                waiting.remove(person)
                part_of[person] = part
                shown[part] |= actions[person]
                counts[part] -= 1
    return part_of


def quotas(people: int, least: int) -> dict[Part, int]:
    """How many people each part has: as 9, 10, 3 and 3 of 25, and no part fewer than `least`. Raises InputError."""
    if people < len(PARTS) * least:
        raise InputError(
            f"data.videos: the videos show {people} persons, and {len(PARTS) * least} are the fewest that can be split "
            f"into base, corpus, queries and held out with nobody in two: {least} of them show all actions between "
            "them. Give videos of more people (8 with 4 actions each are the fewest that can show anything), or name "
            "the persons right: a video whose person is not told needs a manifest's column or real.pattern."
        )
    total = sum(SHARES.values())
    exact = {part: people * share / total for part, share in SHARES.items()}
    counts = {part: max(least, int(exact[part])) for part in SHARES}
    while sum(counts.values()) > people:
        largest = max(SHARES, key=lambda part: (counts[part] > least, counts[part] - exact[part]))
        counts[largest] -= 1
    while sum(counts.values()) < people:
        counts[max(SHARES, key=lambda part: exact[part] - counts[part])] += 1
    return counts


def _cover(actions: Mapping[str, frozenset[str]], seed: int) -> int:
    """How many people show all actions between them, taken greedily."""
    missing, people = set().union(*actions.values()), 0
    for _ in range(len(actions)):
        if not missing:
            break
        person = max(by_hash(seed, sorted(actions)), key=lambda name: len(actions[name] & missing))
        missing -= actions[person]
        people += 1
    return max(1, people)
