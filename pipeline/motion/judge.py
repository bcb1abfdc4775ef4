"""How far a video moves from the queries of its motion, by its optical flow alone.

A video's flow gives, over the course of the video, how much moves, how that is spread over time, how the moving mass
speeds up and how suddenly, how it spreads from its centre, and how it turns about it and in which sense. None of it
depends on where the motion is, which way it goes, or what it looks like; a mirrored video turns the other way. Each
number is divided by its spread within a group of queries. The video's distance is its mean absolute difference from the
nearest query of its group.

How often that agrees with the truth is measured where the truth is known (``jobs.benchmarks.judge``): on pairs of
videos of the synthetic world, one of which breaks the law of its motion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flow = npt.NDArray[np.float32]  # [pairs of frames, 2, h, w], pixels a frame

VERSION = 2  # raise by hand when a description changes
STRETCHES = 8  # equal parts of a video whose means describe its course
COURSES = ("amount", "timing", "acceleration", "jerk", "spreading", "turning")
NUMBERS = len(COURSES) * STRETCHES
STILL = 1e-3  # halves of the shorter side a frame: what counts as hardly any motion
NARROWEST = 0.05  # spread of a number within groups, over its spread among all queries, that is taken at least


def description(flow: Flow) -> Floats:
    """How a video moves [NUMBERS], from the flow between its frames. ValueError for no pair of frames."""
    if flow.ndim != 4 or flow.shape[1] != 2 or not len(flow):
        raise ValueError(f"flow of shape {flow.shape}: the judge takes [pairs, 2, h, w]")
    height, width = flow.shape[-2:]
    half = min(height, width) / 2
    y, x = np.mgrid[0:height, 0:width] / half
    moved = np.array([_moved(u, v, x, y) for u, v in flow.astype(np.float64) / half])
    amount, drift, scale, spreading, turning = moved[:, 0], moved[:, 1:3], moved[:, 3], moved[:, 4], moved[:, 5]
    change, typical = np.diff(drift, axis=0), scale.mean()
    courses = (
        np.log(amount + STILL),
        amount / (amount.mean() + 1e-9),
        np.linalg.norm(change, axis=1) / typical,
        np.linalg.norm(np.diff(change, axis=0), axis=1) / typical,
        spreading,
        turning,
    )
    return np.concatenate([_stretched(course) for course in courses])


def _moved(u: Floats, v: Floats, x: Floats, y: Floats) -> tuple[float, ...]:
    """Of one pair of frames: mean speed, velocity of what moves (two numbers), its root mean square speed, and how fast
    it spreads from and turns about its centre (from x towards y is positive), for its size and speed."""
    speed = np.hypot(u, v)
    mass = speed / (speed.sum() + 1e-9)  # what moves, as a distribution over the picture

    def over(values: Floats) -> float:
        return float((mass * values).sum())

    dx, dy, du, dv = x - over(x), y - over(y), u - over(u), v - over(v)
    scale = over(speed**2) ** 0.5 + 1e-6
    size = (over(dx**2 + dy**2) ** 0.5 + 1e-6) * scale
    return (
        float(speed.mean()),
        over(u),
        over(v),
        scale,
        over(dx * du + dy * dv) / size,
        over(dx * dv - dy * du) / size,
    )


def _stretched(course: Floats) -> Floats:
    """Means over STRETCHES equal parts of a course of any length; zeros for an empty one."""
    if not len(course):
        return np.zeros(STRETCHES)
    total = np.concatenate([[0.0], np.cumsum(course)])
    ends = np.interp(np.linspace(0, len(course), STRETCHES + 1), np.arange(len(course) + 1), total)
    means: Floats = np.diff(ends) * STRETCHES / len(course)
    return means


@dataclass(frozen=True)
class Judge:
    """The queries' descriptions by group, and the spread that each number is divided by."""

    queries: Mapping[str, Floats]  # group -> [queries, NUMBERS]
    spread: Floats

    def distance(self, group: str, video: Floats) -> float:
        """Of a video's description from the nearest query of a group. KeyError for a group without queries."""
        return float(self._apart(group, video[None]).mean(2).min())

    def courses(self, group: str, videos: Floats) -> Floats:
        """How far each course of some videos is from that of the nearest query, [N, NUMBERS] -> [N, COURSES]; their
        mean is the distance. KeyError for a group without queries."""
        apart = self._apart(group, videos)
        nearest = apart.mean(2).argmin(1)
        by_course: Floats = apart[np.arange(len(videos)), nearest].reshape(len(videos), len(COURSES), -1).mean(2)
        return by_course

    def _apart(self, group: str, videos: Floats) -> Floats:
        """[N, queries, numbers]"""
        apart: Floats = np.abs((self.queries[group][None] - videos[:, None]) / self.spread)
        return apart

    def without(self, group: str, query: int) -> Judge:
        """The same without one query of a group, by its place. ValueError where it is the only one."""
        if len(self.queries[group]) < 2:
            raise ValueError(f"group {group!r} has a single query, and no other to hold it against")
        return Judge({group: np.delete(self.queries[group], query, 0)}, self.spread)

    def nearest_but_itself(self, group: str, query: int) -> float:
        """How far a query of a group, by its place, is from the nearest other one. ValueError where there is none."""
        return self.without(group, query).distance(group, self.queries[group][query])


def taught(descriptions: Sequence[tuple[str, Floats]]) -> Judge:
    """The judge of these queries: (group, description) each.

    The spread of a number is its standard deviation within groups, over all groups together; among all queries where
    every group has one alone, and one where there is a single query. ValueError for none.
    """
    if not descriptions:
        raise ValueError("a judge needs queries")
    groups: dict[str, list[Floats]] = {}
    for group, numbers in descriptions:
        groups.setdefault(group, []).append(numbers)
    queries = {group: np.stack(members) for group, members in sorted(groups.items())}
    everything = np.concatenate(list(queries.values()))
    among = everything.std(0) if len(everything) > 1 else np.ones(everything.shape[1])
    free = len(everything) - len(queries)
    squares = sum(((members - members.mean(0)) ** 2).sum(0) for members in queries.values())
    within = np.sqrt(squares / free) if free else among
    return Judge(queries, np.maximum(within, np.maximum(NARROWEST * among, 1e-6)))
