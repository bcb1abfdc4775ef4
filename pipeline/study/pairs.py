"""The pairs that people judge: whose videos, under which names, and which of them are catch trials.

Everything here is pure. A name that people may see is a digest keyed with a salt that stays behind: neither the names,
nor their order, nor the page's source tell which arm made a video, which pairs share an arm, or which are catch trials.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.config.study import Study

Kind = Literal["arms", "identical", "broken"]
Film = tuple[str, int]  # the clip_id of the query whose caption it is, and the seed of its generation


class Side(BaseModel, frozen=True, extra="forbid"):
    video: str  # the name of its file, without .mp4
    arm: str


class Pair(BaseModel, frozen=True, extra="forbid"):
    """Two videos of one caption and seed. `arms`: the first is the arm whose wins are counted. `identical`: the same
    video twice. `broken`: the second is the first one spoiled."""

    pair: str
    kind: Kind
    clip_id: str
    seed: int
    caption: str
    sides: tuple[Side, Side]


class Key(BaseModel, frozen=True, extra="forbid"):
    """What turns answers into scores, and stays with whoever runs the study."""

    study: str
    salt: str
    asked: dict[str, Any]  # what of the configuration the study was built from
    arms: tuple[str, ...]
    versions: dict[str, str]  # which training of each arm was shown
    pairs: tuple[Pair, ...]


def asked(settings: Study) -> dict[str, Any]:
    """What makes it another study if it changes. How answers are collected and scored does not."""
    return settings.model_dump(mode="json", include={"arms", "subject", "question", "seed", "catch"})


def digest(salt: str, *words: str | int) -> str:
    """A name for words that nobody can guess who does not know the salt (keyed BLAKE2b, RFC 7693)."""
    return hashlib.blake2b(json.dumps(words).encode(), key=bytes.fromhex(salt), digest_size=12).hexdigest()


def matches(settings: Study) -> list[tuple[str, str]]:
    """The arms that are held against each other; first the one whose wins are counted, which was named later."""
    if settings.subject is not None:
        return [(settings.subject, arm) for arm in settings.arms if arm != settings.subject]
    return [(later, earlier) for earlier, later in itertools.combinations(settings.arms, 2)]


def plan(films: Sequence[Film], captions: Mapping[str, str], settings: Study, salt: str) -> list[Pair]:
    """Every pair of the study, catch trials among them, ordered by name."""

    def pair(kind: Kind, film: Film, *arms: str) -> Pair:
        sides = [Side(video=digest(salt, kind, *film, *arms, place), arm=arm) for place, arm in enumerate(arms)]
        name = digest(salt, kind, *film, *arms)
        return Pair(pair=name, kind=kind, clip_id=film[0], seed=film[1], caption=captions[film[0]], sides=tuple(sides))

    pairs = [pair("arms", film, *arms) for arms in matches(settings) for film in films]
    pairs += [pair(kind, film, arm, arm) for kind, film, arm in _caught(films, settings, len(pairs))]
    return sorted(pairs, key=lambda p: p.pair)


def _caught(films: Sequence[Film], settings: Study, pairs: int) -> list[tuple[Kind, Film, str]]:
    """The catch trials, both kinds by turns, at most one of each kind for a video; which ones belongs to the seed."""
    if not settings.catch:
        return []

    def by_hash(word: str) -> str:
        return hashlib.blake2b(f"{settings.seed} {word}".encode(), digest_size=16).hexdigest()

    count = max(2, round(pairs * settings.catch / (1 - settings.catch)))
    order = sorted(films, key=lambda film: by_hash(f"{film}"))
    arms = {film: sorted(settings.arms, key=lambda arm: by_hash(f"{film} {arm}")) for film in films}
    videos = [(film, arms[film][turn]) for turn in range(len(settings.arms)) for film in order]  # captions by turns too
    kinds: tuple[Kind, Kind] = ("identical", "broken")
    return [(kinds[(n + lap) % 2], *video) for lap in range(2) for n, video in enumerate(videos)][:count]
