"""Every table of a run: its folders, its columns, what makes a row, and which of its columns name clips.

A table is known by its folder's last names: ``.../features/clips`` holds features wherever the run's root lies. Readers
and writers of `rows`, a purge, the page's counts and docs/tables.md all ask here; a folder that is not here is an
error. To add a table, declare it below, and write docs/tables.md anew (`tables.documentation`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.tables import meanings, schemas


@dataclass(frozen=True, eq=False)
class Table:
    """What every part of a table has in common.

    `folders` lie below a run's root, or below another root inside it (`ROOTS`); ``*`` stands for any one name. `schema`
    has the columns that every row has; the fixed sizes of its lists differ from run to run, and `sizes` says what they
    are. `columns` is the meaning of each column.
    """

    folders: tuple[str, ...]
    row: str
    schema: pa.Schema
    columns: Mapping[str, str]
    key: tuple[str, ...]  # columns whose values tell one row from another; none: rows are never the same
    error: str | None = None  # the column that says why there is no result
    ids: tuple[str, ...] = ()  # columns that name a clip or a query: a purge takes these rows
    replaced: bool = False  # written as a whole every time, so that no row can be there twice
    passes_columns: bool = False  # whether a manifest's other columns come along
    sizes: Mapping[str, str] = field(default_factory=dict)
    named_by: str | None = None  # a column whose values name a part; null: the columns that rows.py lists

    @property
    def holds_clips(self) -> bool:
        """Whether a purge has to empty it."""
        return bool(self.ids)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that say which rows count."""
        return self.key if self.error is None else (*self.key, self.error)


@dataclass(frozen=True)
class Files:
    """A folder of a run that holds files and no table."""

    folder: str
    content: str


LIKED = "liked"  # the set of clips that are attributed as queries are

# The roots inside a run's root, below which tables lie as they do below the run's own.
ROOTS = ("", "shortlist", "nights/*/drift", "plan", "comparison/pilot")

CLIPS = Table(
    folders=("clips", "held_out"),
    row="a segment of a video",
    schema=schemas.CLIPS,
    columns=meanings.CLIPS,
    key=("clip_id",),
    error="error",
    ids=("clip_id",),
    passes_columns=True,
)
QUERIES = Table(
    folders=("queries", LIKED),
    row="a segment of a query video; in liked/ a clip that is attributed as queries are",
    schema=schemas.QUERIES,
    columns=meanings.QUERIES,
    key=("clip_id",),
    error="error",
    ids=("clip_id",),
    passes_columns=True,
)
STRETCHES = Table(
    folders=("stretches/clips", "stretches/queries", "stretches/held_out"),
    row="a stretch of a long video that is being indexed; the row goes when the video has its clips",
    schema=schemas.STRETCHES,
    columns=meanings.STRETCHES,
    key=("stretch",),
    named_by="stretch",
)
CHANGES = Table(
    folders=("changes/clips", "changes/queries", "changes/held_out"),
    row="what was noted of the frames of a stretch; the row goes when its video has its clips",
    schema=schemas.CHANGES,
    columns=meanings.CHANGES,
    key=("stretch",),
    named_by="stretch",
)
MOTION = Table(
    folders=("motion/clips", "motion/queries", "motion/held_out", "motion/liked"),
    row="the motion of a clip that could be indexed, beside all that its own table says of it; with "
    "`motion.of: queries`, of a sample of the clips",
    schema=schemas.motion_schema(schemas.CLIPS),
    columns=meanings.MOTION,
    key=("clip_id",),
    error="error",
    ids=("clip_id",),
    passes_columns=True,
)
MOVEMENT = Table(
    folders=("movement/clips", "movement/queries", "movement/held_out", "movement/liked"),
    row="how a clip of motion/ moves, and what colours move in it",
    schema=schemas.movement_schema(1, 1, 1),
    columns=meanings.MOVEMENT,
    key=("clip_id",),
    error="error",
    ids=("clip_id",),
    sizes={"description": "numbers", "flaws": "flaws", "colours": "colours"},
)
PICTURES = Table(
    folders=("pictures/clips", "pictures/queries", "pictures/held_out", "pictures/liked"),
    row="what a clip looks like, in a few hundred bytes",
    schema=schemas.PICTURES,
    columns=meanings.PICTURES,
    key=("clip_id",),
    error="error",
    ids=("clip_id",),
)
FEATURES = Table(
    folders=("features/clips", "features/queries", "features/liked"),
    row="the projected gradients of a clip",
    schema=schemas.features_schema(1, 1),
    columns=meanings.FEATURES,
    key=("clip_id",),
    error="error",
    ids=("clip_id",),
    sizes={"feature": "settings x k", "norm": "settings", "loss": "settings"},
)
CHOSEN = Table(
    folders=("shortlist/chosen",),
    row="a clip that the cheaper attribution ranked",
    schema=schemas.CHOSEN,
    columns=meanings.CHOSEN,
    key=("clip_id",),
    ids=("clip_id",),
    replaced=True,
)
INFLUENCE = Table(
    folders=("influence", "influence_liked"),
    row="a clip with features; in influence_liked/ the queries are the liked clips",
    schema=schemas.influence_schema(1),
    columns=meanings.INFLUENCE,
    key=("clip_id",),
    ids=("clip_id",),
    replaced=True,
    sizes={"influence": "queries"},
)
INFLUENCE_BY_SETTING = Table(
    folders=("influence_by_setting",),
    row="a clip with features, where the ranking compares two settings or more",
    schema=schemas.influence_schema(1),
    columns=meanings.INFLUENCE_BY_SETTING,
    key=("clip_id",),
    ids=("clip_id",),
    replaced=True,
    sizes={"influence": "settings x groups"},
)
NEIGHBORS = Table(
    folders=("neighbors",),
    row="one of the nearest or farthest clips of a query",
    schema=schemas.NEIGHBORS,
    columns=meanings.NEIGHBORS,
    key=("query_id", "sign", "rank"),
    ids=("query_id", "clip_id"),
    replaced=True,
)
LAWFULNESS = Table(
    folders=("lawfulness",),
    row="how far a clip moves from the queries of its motion",
    schema=schemas.LAWFULNESS,
    columns=meanings.LAWFULNESS,
    key=("clip_id",),
    ids=("clip_id",),
    replaced=True,
)
SELECTION = Table(
    folders=("selection",),
    row="the decision on a clip for a group of queries",
    schema=schemas.SELECTION,
    columns=meanings.SELECTION,
    key=("group", "clip_id"),
    ids=("clip_id",),
    replaced=True,
)
TIMES = Table(
    folders=("finetuned/*/times", "nights/*/model/times"),
    row="how often training draws a clip in a band of times, for the arms timed, timed_random, little_noise and "
    "little_noise_random; in nights/ with the model that was promoted",
    schema=schemas.TIMES,
    columns=meanings.TIMES,
    key=("clip_id", "band"),
    ids=("clip_id",),
    replaced=True,
)
EVALUATION = Table(
    folders=("evaluation", "nights/*/evaluation"),
    row="a metric of a held-out clip, or of a video that an arm generated",
    schema=schemas.EVALUATION,
    columns=meanings.EVALUATION,
    key=("arm", "clip_id", "seed", "metric", "version"),
    ids=("clip_id",),
)
DESCRIPTIONS = Table(
    folders=("comparison/motion",),
    row="the motion of a query, or of a video that an arm generated, as the judge sees it",
    schema=schemas.descriptions_schema(1),
    columns=meanings.DESCRIPTIONS,
    key=("arm", "clip_id", "seed", "version"),
    error="problem",
    ids=("clip_id",),
    sizes={"description": "numbers"},
)
VERDICTS = Table(
    folders=("comparison/verdicts",),
    row="a judge's verdict on two arms, of one clip or caption and seed",
    schema=schemas.VERDICTS,
    columns=meanings.VERDICTS,
    key=("judge", "ours", "theirs", "clip_id", "seed"),
    ids=("clip_id",),
    replaced=True,
)
CONTESTS = Table(
    folders=("comparison/contests",),
    row="the verdicts of a judge on two arms, counted",
    schema=schemas.CONTESTS,
    columns=meanings.CONTESTS,
    key=("judge", "ours", "theirs"),
    replaced=True,
)
METRICS = Table(
    folders=("comparison/metrics",),
    row="a metric of an arm",
    schema=schemas.METRICS,
    columns=meanings.METRICS,
    key=("metric", "arm"),
    replaced=True,
)
NIGHT_SELECTION = Table(
    folders=("nights/*/selection",),
    row="a clip in the selection of a night",
    schema=schemas.NIGHT_SELECTION,
    columns=meanings.NIGHT_SELECTION,
    key=("clip_id",),
    ids=("clip_id",),
    replaced=True,
)
EXPLAINED_QUERIES = Table(
    folders=("explain/*/queries",),
    row="where the explained clip stands for a query",
    schema=schemas.EXPLAINED_QUERIES,
    columns=meanings.EXPLAINED_QUERIES,
    key=("clip_id", "query_id"),
    ids=("clip_id", "query_id"),
    replaced=True,
)
NEAREST = Table(
    folders=("explain/*/near",),
    row="a clip whose feature lies nearest to the explained clip's",
    schema=schemas.NEAREST,
    columns=meanings.NEAREST,
    key=("clip_id", "near_id"),
    ids=("clip_id", "near_id"),
    replaced=True,
)
SHARES = Table(
    folders=("explain/*/shares",),
    row="the share of a latent frame and layer in the explained clip's influence on a query",
    schema=schemas.SHARES,
    columns=meanings.SHARES,
    key=("clip_id", "query_id", "setting", "latent_frame", "layer"),
    ids=("clip_id", "query_id"),
    replaced=True,
)
PARTS = Table(
    folders=("explain/*/parts",),
    row="the share of a latent frame and layer in the explained clip's feature; the table goes when the job is done",
    schema=schemas.parts_schema(1),
    columns=meanings.PARTS,
    key=("clip_id", "setting", "latent_frame", "layer"),
    error="error",
    ids=("clip_id",),
    sizes={"feature": "k"},
)
PILOT = Table(
    folders=("plan/pilot", "comparison/pilot/pilot"),
    row="what one part of a stage took for a clip",
    schema=schemas.PILOT,
    columns=meanings.PILOT,
    key=(),  # a step of fine-tuning is timed several times
    error="problem",
    ids=("clip_id",),
)
EXPORTS = Table(
    folders=("exports/*",),
    row="a clip that an export has cut out of its video",
    schema=schemas.EXPORTS,
    columns=meanings.EXPORTS,
    key=("clip_id",),
    error="problem",
    ids=("clip_id",),
)
DECISIONS = Table(
    folders=("decisions",),
    row="a person's word on a clip",
    schema=schemas.DECISIONS,
    columns=meanings.DECISIONS,
    key=("batch", "group", "clip_id"),
    ids=("clip_id",),
    named_by="batch",
)
QUERY_WEIGHTS = Table(
    folders=("query_weights",),
    row="the weight that a person gave a query",
    schema=schemas.QUERY_WEIGHTS,
    columns=meanings.QUERY_WEIGHTS,
    key=("batch", "query_id"),
    ids=("query_id",),
    named_by="batch",
)
LIKES = Table(
    folders=("likes",),
    row="a clip that a person wants more of, or less",
    schema=schemas.LIKES,
    columns=meanings.LIKES,
    key=("batch", "group", "clip_id"),
    ids=("clip_id",),
    named_by="batch",
)
DUPLICATES = Table(
    folders=("duplicates",),
    row="a clip of a group that resemble one another",
    schema=schemas.DUPLICATES,
    columns=meanings.DUPLICATES,
    key=("batch", "group", "clip_id"),
    ids=("clip_id",),
    named_by="batch",
)
PREVIEWS = Table(
    folders=("previews",),
    row="a film of a clip or a query, in a pack of them",
    schema=schemas.PREVIEWS,
    columns=meanings.PREVIEWS,
    key=("clip_id", "version", "pack"),
    ids=("clip_id",),
    named_by="pack",
)
JUDGEMENTS = Table(
    folders=("study/judgements",),
    row="a person's answer to a pair of videos of two arms",
    schema=schemas.JUDGEMENTS,
    columns=meanings.JUDGEMENTS,
    key=("person", "pair"),
    ids=("clip_id",),
    replaced=True,
)
SCORES = Table(
    folders=("study/scores",),
    row="the judgements on two arms, counted over people and captions",
    schema=schemas.SCORES,
    columns=meanings.SCORES,
    key=("who", "arm_a", "arm_b"),
    replaced=True,
)

TABLES = (
    *(CLIPS, QUERIES, STRETCHES, CHANGES),
    *(MOTION, MOVEMENT, PICTURES, FEATURES),
    *(CHOSEN, INFLUENCE, INFLUENCE_BY_SETTING, NEIGHBORS, LAWFULNESS, SELECTION, TIMES, EVALUATION),
    *(DESCRIPTIONS, VERDICTS, CONTESTS, METRICS, NIGHT_SELECTION),
    *(EXPLAINED_QUERIES, NEAREST, SHARES, PARTS, PILOT, EXPORTS, JUDGEMENTS, SCORES),
    *(DECISIONS, QUERY_WEIGHTS, LIKES, DUPLICATES, PREVIEWS),
)
FILES = (
    Files("canary", "the feature of one clip, against which every actor checks its own"),
    Files("resources", "`pilot.json`: what a pilot measured for `resources: auto`, and the pools that were chosen"),
    Files("completion", "what a job that ended well depended on, and what it said"),
    Files("stats", "what each job of a stage achieved, a JSON file each"),
    Files("generated", "the videos that arms generated from captions, a folder an arm, and query videos from prompts"),
    Files("finetuned", "the model of each arm: weights, `metrics.jsonl`, `done.json` and the list of its clips"),
    Files("explain/*", "the page that explains a clip"),
    Files("comparison", "the page that compares arms"),
    Files("exports/*/files", "what an export wrote, where `export.to` names no other folder"),
    Files("nights/*", "the page and the record of a night; `model/` is its model, if it was promoted"),
    Files("plan", "`plan.json`: what the recipe costs on these videos"),
    Files("made_queries", "queries that people made: a video and a record each, and a manifest of all queries"),
    Files("previews/packs", "films of clips, many in a file; `previews/` says where each one lies"),
    Files("report", "the page of the run"),
    Files("study", "the handout, the answers and the results of a blind study"),
)


def table_of(folder: str, columns: Collection[str]) -> Table:
    """The table that a folder holds, whose rows have these columns. Of several that the folder's names fit, it is the
    one that says most of them and whose key the rows have. Raises ValueError where there is none."""
    names = _names(folder)
    fitting = [(size, table) for table in TABLES if (size := _fit(table, names))]
    if not fitting:
        raise ValueError(
            f"{folder}: no table of a run lies in a folder of this name. Declare it in pipeline/tables/registry.py "
            "(its columns, its key, which of them name clips), or write to the folder of a table that is there."
        )
    fitting.sort(key=lambda fit: -fit[0])
    for _, table in fitting:
        if set(table.needed) <= set(columns):
            return table
    missing = [name for name in fitting[0][1].needed if name not in columns]
    raise ValueError(
        f"{folder}: its rows lack the column {', '.join(missing)}, by which they are told apart. Add it, or declare "
        "the folder's table in pipeline/tables/registry.py."
    )


def content(path: str) -> Table | Files | None:
    """What a folder at this path below a run's root is for; None where nothing says so. A folder inside one of FILES
    belongs to it."""
    names = _names(path)
    for root in ROOTS:
        for table in TABLES:
            if any(_match(_names(posixpath.join(root, folder)), names) for folder in table.folders):
                return table
    for files in FILES:
        for root in ROOTS:
            pattern = _names(posixpath.join(root, files.folder))
            if _match(pattern, names[: len(pattern)]):
                return files
    return None


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _fit(table: Table, names: list[str]) -> int:
    """How many of a path's last names a table's folder says; 0 where it says others."""
    patterns = (_names(folder) for folder in table.folders)
    return max((len(p) for p in patterns if _match(p, names[-len(p) :])), default=0)


def _match(pattern: list[str], names: list[str]) -> bool:
    return len(pattern) == len(names) and all(part in ("*", name) for part, name in zip(pattern, names, strict=True))
