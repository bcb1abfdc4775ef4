"""The generated videos that a study shows: those of every arm for the same captions and seeds, and whether they are
alike in all but what they show."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ClipError, ConfigError, InputError, MissingTableError
from pipeline.evaluation.comparison import is_held_out, mixtures
from pipeline.storage import stores
from pipeline.study.pairs import Film
from pipeline.video.decoder import Decoder

log = logging.getLogger(__name__)

NAMED_VIDEOS = 3  # missing videos that a message names

Videos = Mapping[Film, Mapping[str, str]]  # arm -> place


class Shape(NamedTuple):
    frames: int
    height: int
    width: int


class Generated(NamedTuple):
    videos: Videos
    captions: dict[str, str]  # by clip_id
    versions: dict[str, str]  # which training of each arm


def generated(run: Run) -> Generated:
    """The videos of `study.arms`. Raises UsageError where there are none, or not the same ones of every arm."""
    arms = run.study.arms
    if len(arms) < 2:
        raise ConfigError(
            f"study.arms={list(arms)}: people judge two videos at a time, so name at least two arms that "
            "`python -m jobs.evaluate` has generated videos of, for example --set study.arms='[base, motive_whitened]'."
        )
    rows = _rows(run)
    names = sorted({row["arm"] for row in rows})
    absent = [arm for arm in arms if arm not in names]
    if absent:
        raise MissingTableError(
            f"study.arms={list(arms)}: evaluation/ of root={run.root!r} has no generated videos of "
            f"{', '.join(absent)}; it has those of {', '.join(names) or 'no arm'}. Run `python -m jobs.finetune --set "
            f"finetune.arm={absent[0]}` (but for base), then `python -m jobs.evaluate` with evaluate.arms="
            f"{list(arms)} and evaluate.generate above zero, or leave the arm out."
        )
    videos: dict[Film, dict[str, str]] = {}
    for row in rows:
        if row["arm"] in arms:
            name = posixpath.basename(row["uri"])  # a root may have been moved since
            place = stores.join(run.root, "generated", row["arm"], name)
            videos.setdefault((row["clip_id"], row["seed"]), {})[row["arm"]] = place
    captions = _captions(run, videos)
    films = {film: videos[film] for film in sorted(videos) if film[0] in captions}
    _complete(run, films)
    versions = {row["arm"]: row["version"] for row in rows if row["arm"] in arms}
    return Generated(films, captions, versions)


def _rows(run: Run) -> list[dict[str, Any]]:
    """The rows of evaluation/ on generated videos."""
    folder = stores.join(run.root, "evaluation")
    table = tables.read(folder, ["arm", "clip_id", "seed", "uri", "metric", "version"])
    if table is None:
        return []
    mixed = mixtures(table.filter(pc.is_in(table.column("arm"), pa.array(run.study.arms, pa.string()))))
    if mixed:
        raise MissingTableError(
            f"root={run.root!r}: {' '.join(mixed)} Run `python -m jobs.evaluate` with these arms again."
        )
    return [row for row in table.to_pylist() if not is_held_out(row["metric"])]


def _captions(run: Run, films: Mapping[Film, Any]) -> dict[str, str]:
    """The captions by clip_id, empty where the configuration keeps them off pages."""
    queries = tables.read(stores.join(run.root, "queries"), ["clip_id", "caption"])
    captions = {} if queries is None else {row["clip_id"]: row["caption"] or "" for row in queries.to_pylist()}
    clip_ids = {film[0] for film in films}
    if clip_ids - captions.keys():
        log.warning("videos of %d captions are left out: queries/ no longer has them", len(clip_ids - captions.keys()))
    return {clip_id: captions[clip_id] if run.report.captions else "" for clip_id in sorted(clip_ids & captions.keys())}


def _complete(run: Run, videos: Videos) -> None:
    """Raise MissingTableError where a video that one arm has is missing in another, as a row or as a file."""
    files = {
        arm: {posixpath.basename(path) for path in stores.files(stores.join(run.root, "generated", arm))}
        for arm in run.study.arms
    }
    missing = [
        f"{arm} of query {film[0]}, seed {film[1]}"
        for film, places in videos.items()
        for arm in run.study.arms
        if arm not in places or posixpath.basename(places[arm]) not in files[arm]
    ]
    if missing or not videos:
        named = "; ".join(missing[:NAMED_VIDEOS]) + (
            f"; and {len(missing) - NAMED_VIDEOS} more" if len(missing) > NAMED_VIDEOS else ""
        )
        raise MissingTableError(
            f"study.arms={list(run.study.arms)}: of the {len(videos) * len(run.study.arms)} videos that should lie "
            f"below {stores.join(run.root, 'generated')}, {len(missing)} are missing{': ' + named if named else ''}. "
            "Every arm needs a video of every caption and seed. Run `python -m jobs.evaluate` with all of these arms "
            "again; of videos that were deleted, delete the rows too (the folder evaluation/)."
        )


def shapes(run: Run, videos: Videos, decoder: Decoder, progress: Callable[[int, int], None]) -> dict[Film, Shape]:
    """Frames, height and width of the videos of each film. Raises InputError for one that cannot be decoded, that does
    not run at data.fps, or that differs from its companions: what differs in length or size would tell the arms apart.
    """
    of_film: dict[Film, Shape] = {}
    for done, (film, places) in enumerate(videos.items()):
        progress(done, len(videos))
        of_arm = {arm: _shape(run, place, decoder) for arm, place in places.items()}
        if len(set(of_arm.values())) > 1:
            sizes = "; ".join(f"{arm}: {s.frames} frames of {s.height} x {s.width}" for arm, s in of_arm.items())
            raise InputError(
                f"study.arms={list(run.study.arms)}: the videos of query {film[0]}, seed {film[1]}, differ in length "
                f"or size ({sizes}), by which people would tell the arms apart. Delete those of one arm in generated/ "
                "with their rows in evaluation/, and run `python -m jobs.evaluate` again."
            )
        of_film[film] = next(iter(of_arm.values()))
    progress(len(videos), len(videos))
    return of_film


def _shape(run: Run, place: str, decoder: Decoder) -> Shape:
    fps = run.data.fps
    try:
        rows = decoder.index(place, 1, fps, 1)  # a segment for each frame at this rate
    except ClipError as error:
        raise InputError(f"{place}: this video cannot be shown ({error}). Generate it again.") from error
    if [row["start_frame"] for row in rows] != list(range(len(rows))):
        raise InputError(
            f"{place}: this video does not run at data.fps={fps:g}. Give the configuration that it was made under, or "
            "generate it again."
        )
    return Shape(len(rows), rows[0]["height"], rows[0]["width"])


def frames_of(run: Run, place: str, shape: Shape, decoder: Decoder) -> Any:
    """Every frame of a video, uint8 [F, H, W, 3], at its own size. Raises InputError where it cannot be decoded."""
    try:
        return decoder.frames(place, 0, shape.frames, run.data.fps, shape.height, shape.width)
    except ClipError as error:
        raise InputError(f"{place}: this video cannot be shown ({error}). Generate it again.") from error
