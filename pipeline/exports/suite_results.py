"""What evaluation suites say of exported videos, as rows of the table evaluation/."""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import InputError

Row = Mapping[str, Any]  # of an export's provenance: file, arm, clip_id, seed, version, uri
_PATHS = ("videopath", "video_path", "video", "path", "file")
_SCORES = ("score", "value", "video_results")
_PHYGROUND = ("SA", "PTV", "persistence")  # rated of every video; laws of physics of some, of which it has the mean
AGREES = 4.0  # VideoPhy-2's joint score: both the caption and physics are rated 4 or more of 5


def read_results(suite: str, files: Mapping[str, str], videos: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows of evaluation/ from a suite's result files, by their names, for the videos of an export.

    A CSV has a row for each video with its path and `score`; VBench-2.0's JSON has {dimension: [mean, [{video_path,
    video_results}]]}, PhyGround's `results` a record for each video. A metric is called by the suite and the dimension,
    or the file. Where VideoPhy-2's ratings of caption (sa) and physics (pc) are both given, `videophy2_joint` follows.
    Raises InputError for a video that is not in the export, a score that is no number, and a file of another layout.
    """
    by_name = {row["file"]: row for row in videos}
    scores: dict[str, dict[str, float]] = {}
    for path, text in files.items():
        for metric, file, value in _scores(suite, path, text):
            video = _match(file, by_name)
            if video is None:
                raise InputError(f"{path}: it names {file!r}, which is no video of this export.")
            scores.setdefault(metric, {})[video] = _number(value, path, file)
    if suite == "videophy2" and {"videophy2_sa", "videophy2_pc"} <= scores.keys():
        meaning, physics = scores["videophy2_sa"], scores["videophy2_pc"]
        scores["videophy2_joint"] = {
            file: float(min(meaning[file], physics[file]) >= AGREES) for file in meaning if file in physics
        }
    columns = ("arm", "clip_id", "uri", "seed", "version")
    return [
        {**{column: by_name[file][column] for column in columns}, "metric": metric, "value": value}
        for metric, values in sorted(scores.items())
        for file, value in sorted(values.items())
    ]


def _scores(suite: str, path: str, text: str) -> list[tuple[str, str, Any]]:
    """Metric, video and score of each line."""
    stem = posixpath.basename(path).rsplit(".", 1)[0]
    if path.endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO(text)))
        named = list(rows[0]) if rows else []
        file = next((name for name in _PATHS if name in named), None)
        score = next((name for name in _SCORES if name in named), None)
        if file is None or score is None:
            raise InputError(
                f"{path}: a table of results has a column of {', '.join(_PATHS)} and one of {', '.join(_SCORES)}; it "
                f"has {', '.join(named) or 'none'}."
            )
        words = re.split(r"[^a-z]+", stem.lower())
        task = next((word for word in ("sa", "pc", "rule") if word in words), stem)
        return [(f"{suite}_{task}", row[file], row[score]) for row in rows]
    try:
        content = json.loads(text)
        if suite == "phyground":
            return [score for one in content["results"] for score in _of_phyground(one)]
        return [
            (f"{suite}_{dimension}", one["video_path"], one["video_results"])
            for dimension, (_, listed) in content.items()
            for one in listed
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: it is neither a table (.csv) of paths and scores, nor a JSON of dimensions, each with its "
            f"mean and the results of its videos ({type(error).__name__}: {error})."
        ) from error


def _of_phyground(one: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """The ratings of a video that were made."""
    ratings = {dimension: one.get(dimension) for dimension in _PHYGROUND}
    ratings["physical"] = (one.get("physical") or {}).get("avg")
    return [(f"phyground_{name}", f"{one['video']}.mp4", value) for name, value in ratings.items() if value is not None]


def _match(file: str, by_name: Mapping[str, Row]) -> str | None:
    """The video of an export that a suite's path ends with: by as many of its last names as tell it apart."""
    names = str(file).split("/")
    for start in range(len(names)):
        tail = "/".join(names[start:])
        if tail in by_name:
            return tail
    same = [name for name in by_name if posixpath.basename(name) == names[-1]]
    return same[0] if len(same) == 1 else None


def _number(value: Any, path: str, file: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{path}: the score of {file!r} is {value!r} and no number.")
    return number
