"""What a row of each table of a run is: plain Arrow types, no Ray extensions, no pickles."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

CAPTIONS = ("caption", "text", "prompt", "cap")  # what a manifest may call it
# A row of `videos.videos`, before the columns that pass through.
VIDEOS = pa.schema(
    [(name, pa.string()) for name in ("uri", "relative", "version")]
    + [("size", pa.int64())]
    + [(name, pa.string()) for name in ("source", "caption", "id", "group", "error")]
)
CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("source", pa.string()),
        ("start_frame", pa.int32()),
        ("num_frames", pa.int32()),
        ("fps", pa.float32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("caption", pa.string()),
        ("cuts", pa.list_(pa.int32())),
        ("error", pa.string()),
    ]
)
# A stretch of a long video that is being indexed: what is to be decoded, and what was noted of its frames.
STRETCHES = pa.schema(
    [
        ("stretch", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("number", pa.int32()),
        ("count", pa.int32()),
        ("start_frame", pa.int32()),
        ("num_frames", pa.int32()),
        ("seconds", pa.float64()),
    ]
)
CHANGES = pa.schema(
    [
        ("stretch", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("number", pa.int32()),
        ("count", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("times", pa.list_(pa.float64())),
        ("pixels", pa.list_(pa.float64())),
        ("colours", pa.list_(pa.float64())),
        ("first", pa.string()),
        ("last", pa.string()),
        ("problem", pa.string()),
    ]
)
MASK_BOX = "mask_box"  # what a manifest says of its rows' masks; motion/ reads it
QUERIES = pa.schema([*CLIPS, ("group", pa.string()), (MASK_BOX, pa.string())])
_MOTION = [
    ("mask", pa.binary()),
    ("mask_shape", pa.list_(pa.int32())),
    ("motion_mean", pa.float32()),
    ("motion_p95", pa.float32()),
    ("camera_share", pa.float32()),
]
NEIGHBORS = pa.schema(
    [
        ("query_id", pa.string()),
        ("clip_id", pa.string()),
        ("rank", pa.int32()),
        ("influence", pa.float32()),
        ("sign", pa.string()),
    ]
)
SELECTION = pa.schema(
    [
        ("clip_id", pa.string()),
        ("group", pa.string()),
        ("votes", pa.int32()),
        ("mean_influence", pa.float32()),
        ("rank", pa.int64()),
        ("decision", pa.string()),
        ("weight", pa.float32()),
        ("reason", pa.string()),
        ("rule", pa.string()),
        ("choice", pa.int64()),
        ("duplicate_of", pa.string()),
        ("rank_low", pa.int64()),
        ("rank_high", pa.int64()),
    ]
)
# How often a clip of an arm is drawn at which times.
TIMES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("band", pa.int32()),
        ("first", pa.float32()),
        ("last", pa.float32()),
        ("score", pa.float32()),
        ("weight", pa.float32()),
    ]
)
PICTURES = pa.schema(
    [("clip_id", pa.string()), ("version", pa.string()), ("signature", pa.binary()), ("error", pa.string())]
)
# How a clip moves, held against the queries of its motion.
LAWFULNESS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("group", pa.string()),
        ("distance", pa.float64()),
        ("quantile", pa.float64()),
        ("law", pa.string()),
        ("named_by", pa.string()),
        ("flaw", pa.string()),
        ("flaw_measure", pa.float64()),
    ]
)
CHOSEN = pa.schema(
    [
        ("clip_id", pa.string()),
        ("rank", pa.int64()),  # by the cheaper variant
        ("mean_influence", pa.float32()),  # the same
        ("reason", pa.string()),  # why it is on the shortlist; null: it is not
        ("audited", pa.bool_()),  # drawn at random, for whatever other reason it is on it
    ]
)
EVALUATION = pa.schema(
    [
        ("arm", pa.string()),
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("seed", pa.int32()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("version", pa.string()),  # which training of the arm was evaluated
        ("content", pa.string()),  # on what: it changes with the clip's video, caption and mask; null in older rows
    ]
)


# Every clip of a night's selection, kept beside the night.
NIGHT_SELECTION = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("mean_influence", pa.float32()),
        ("rank", pa.int64()),
        ("decision", pa.string()),
        ("by", pa.string()),
    ]
)
STANDING = pa.schema(
    [
        ("query_id", pa.string()),
        ("group", pa.string()),
        ("influence", pa.float32()),
        ("rank", pa.int64()),
        ("percentile", pa.float64()),
        ("votes", pa.bool_()),
    ]
)
EXPLAINED_QUERIES = pa.schema([("clip_id", pa.string()), *STANDING])
SHARES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("query_id", pa.string()),
        ("setting", pa.int32()),
        ("latent_frame", pa.int32()),
        ("layer", pa.string()),
        ("share", pa.float32()),
    ]
)
NEAREST = pa.schema([("clip_id", pa.string()), ("near_id", pa.string()), ("cosine", pa.float32())])
PILOT = pa.schema(
    [
        ("clip_id", pa.string()),
        ("variant", pa.string()),
        ("metric", pa.string()),
        ("seconds", pa.float64()),
        ("value", pa.float64()),
        ("problem", pa.string()),
    ]
)
# What the judge is asked about: a query, or a video that an arm generated.
JUDGED = pa.schema(
    [
        ("kind", pa.string()),
        ("arm", pa.string()),
        ("clip_id", pa.string()),
        ("seed", pa.int32()),
        ("version", pa.string()),
        ("uri", pa.string()),
        ("start_frame", pa.int32()),
    ]
)
VERDICTS = pa.schema(
    [
        ("judge", pa.string()),
        ("ours", pa.string()),
        ("theirs", pa.string()),
        ("clip_id", pa.string()),
        ("seed", pa.int32()),
        ("score_ours", pa.float64()),
        ("score_theirs", pa.float64()),
        ("verdict", pa.int8()),
    ]
)
CONTESTS = pa.schema(
    [
        ("judge", pa.string()),
        ("ours", pa.string()),
        ("theirs", pa.string()),
        ("pairs", pa.int32()),
        ("clips", pa.int32()),
        ("wins", pa.int32()),
        ("ties", pa.int32()),
        ("losses", pa.int32()),
        ("win", pa.float64()),
        ("win_low", pa.float64()),
        ("win_high", pa.float64()),
        ("tie", pa.float64()),
        ("tie_low", pa.float64()),
        ("tie_high", pa.float64()),
        ("loss", pa.float64()),
        ("loss_low", pa.float64()),
        ("loss_high", pa.float64()),
    ]
)
METRICS = pa.schema(
    [
        ("metric", pa.string()),
        ("arm", pa.string()),
        ("n", pa.int32()),
        ("missing", pa.int32()),
        ("pairs", pa.int32()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("standard_error", pa.float64()),
        ("difference", pa.float64()),
        ("difference_low", pa.float64()),
        ("difference_high", pa.float64()),
        ("difference_standard_error", pa.float64()),
        ("relative", pa.float64()),
        ("relative_low", pa.float64()),
        ("relative_high", pa.float64()),
    ]
)
EXPORTS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("version", pa.string()),
        ("file", pa.string()),
        ("bytes", pa.int64()),
        ("copied", pa.bool_()),
        ("problem", pa.string()),
    ]
)
# What curators say, a row for each word of a person; nothing of it is ever changed.
DECISIONS = pa.schema(
    [
        ("batch", pa.string()),
        ("clip_id", pa.string()),
        ("version", pa.string()),
        ("group", pa.string()),
        ("say", pa.string()),
        ("note", pa.string()),
        ("by", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
        ("blind", pa.bool_()),
        ("seen_rank", pa.int64()),
        ("seen_decision", pa.string()),
        ("ranking", pa.string()),
    ]
)
QUERY_WEIGHTS = pa.schema(
    [
        ("batch", pa.string()),
        ("query_id", pa.string()),
        ("weight", pa.float32()),
        ("by", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
    ]
)
LIKES = pa.schema(
    [
        ("batch", pa.string()),
        ("clip_id", pa.string()),
        ("group", pa.string()),
        ("sign", pa.int8()),
        ("by", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
        ("state", pa.string()),
    ]
)
DUPLICATES = pa.schema(
    [
        ("batch", pa.string()),
        ("group", pa.string()),
        ("clip_id", pa.string()),
        ("kind", pa.string()),
        ("similarity", pa.float32()),
        ("best", pa.bool_()),
    ]
)
PREVIEWS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("version", pa.string()),
        ("pack", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("frames", pa.int32()),
        ("fps", pa.float32()),
    ]
)
JUDGEMENTS = pa.schema(
    [
        ("person", pa.string()),
        ("arm_a", pa.string()),
        ("arm_b", pa.string()),
        ("clip_id", pa.string()),
        ("seed", pa.int64()),
        ("pair", pa.string()),
        ("outcome", pa.string()),
        ("left", pa.string()),
        ("seconds", pa.float64()),
        ("counts", pa.bool_()),
    ]
)
SCORES = pa.schema(
    [
        ("who", pa.string()),
        ("arm_a", pa.string()),
        ("arm_b", pa.string()),
        ("judgements", pa.int64()),
        ("people", pa.int64()),
        ("videos", pa.int64()),
        ("win", pa.float64()),
        ("win_low", pa.float64()),
        ("win_high", pa.float64()),
        ("tie", pa.float64()),
        ("tie_low", pa.float64()),
        ("tie_high", pa.float64()),
        ("loss", pa.float64()),
        ("loss_low", pa.float64()),
        ("loss_high", pa.float64()),
        ("net", pa.float64()),
        ("net_low", pa.float64()),
        ("net_high", pa.float64()),
        ("agreed", pa.float64()),
        ("alpha", pa.float64()),
        ("alpha_low", pa.float64()),
        ("alpha_high", pa.float64()),
    ]
)


def caption_column(names: Iterable[str]) -> str | None:
    """The column of a manifest or shard that holds the captions, as it is written there: `Caption` is `caption`."""
    written = {name.strip().casefold(): name for name in reversed(list(names))}
    return next((written[name] for name in CAPTIONS if name in written), None)


def motion_schema(clips: pa.Schema) -> pa.Schema:
    """The motion table's schema: the columns of its clips, then the mask and statistics, `error` last."""
    columns = [field for field in clips if field.name != "error"]
    return pa.schema([*columns, *(pa.field(*f) for f in _MOTION), pa.field("error", pa.string())])


def movement_schema(numbers: int, flaws: int, colours: int) -> pa.Schema:
    """How a clip moves, in the `numbers` numbers that the judge compares, what breaks it, and the colours of what
    moves."""
    return pa.schema(
        [
            ("clip_id", pa.string()),
            ("version", pa.string()),
            ("description", pa.list_(pa.float32(), numbers)),
            ("flaws", pa.list_(pa.float32(), flaws)),
            ("colours", pa.list_(pa.float32(), colours)),
            ("error", pa.string()),
        ]
    )


# How a feature's numbers may be stored (`attribution.storage`).
STORED_AS = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}


def features_schema(settings: int, dim: int, storage: str = "float32") -> pa.Schema:
    return pa.schema(
        [
            ("clip_id", pa.string()),
            ("version", pa.string()),
            ("feature", pa.list_(STORED_AS[storage], settings * dim)),
            ("norm", pa.list_(pa.float32(), settings)),
            ("loss", pa.list_(pa.float32(), settings)),
            ("num_frames", pa.int32()),
            ("error", pa.string()),
        ]
    )


def influence_schema(queries: int) -> pa.Schema:
    return pa.schema([("clip_id", pa.string()), ("influence", pa.list_(pa.float32(), queries))])


def parts_schema(dim: int) -> pa.Schema:
    """A row for each setting, latent frame and layer of a clip's gradient, with `dim` numbers of its projection."""
    return pa.schema(
        [
            ("clip_id", pa.string()),
            ("setting", pa.int32()),
            ("latent_frame", pa.int32()),
            ("layer", pa.string()),
            ("feature", pa.list_(pa.float32(), dim)),
            ("loss", pa.float32()),
            ("error", pa.string()),
        ]
    )


def descriptions_schema(numbers: int) -> pa.Schema:
    """A row for each video that the judge is asked about, with the `numbers` numbers that describe its motion."""
    return pa.schema([*JUDGED, ("description", pa.list_(pa.float32(), numbers)), ("problem", pa.string())])


# What code adds to rows on their way, beside the tables' own columns.
_ADDED = (
    "captions",
    "span",
    "part",
    "row",
    "settings",
    "query_ids",
    "losses",
    "full",
    "cheaper",
    "_first",
    "_second",
    "_failed",
)
# Names that a column of a manifest cannot keep, whatever their case: to SQL Weight is weight.
RESERVED = frozenset(
    name.casefold()
    for names in (
        VIDEOS.names,
        QUERIES.names,
        motion_schema(CLIPS).names,
        features_schema(1, 1).names,
        influence_schema(1).names,
        NEIGHBORS.names,
        SELECTION.names,
        CHOSEN.names,
        EVALUATION.names,
        _ADDED,
    )
    for name in names
    if name != MASK_BOX
)


def plain(table: pa.Table) -> pa.Table:
    """The table, if every value in it is what it looks like. Raises ValueError as `check_plain` does."""
    check_plain(table.schema)
    return table


def without_views(schema: pa.Schema) -> pa.Schema:
    """A schema with Arrow's older types in place of views, which Parquet files of some writers have and few functions
    take."""
    return pa.schema([field.with_type(_without_views(field.type)) for field in schema])


def _without_views(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_views(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([inner.with_type(_without_views(inner.type)) for inner in kind])
    return kind


def check_plain(schema: pa.Schema) -> None:
    """Raise ValueError for Arrow's extension types, which some readers unpickle into Python objects."""
    for field in schema:
        if _extended(field):
            raise ValueError(
                f"its column {field.name!r} has the extension type {field.type}; tables hold plain types only"
            )


def _extended(field: pa.Field) -> bool:
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return True
    if pa.types.is_dictionary(kind):
        return _extended(pa.field("", kind.value_type))
    return any(_extended(kind.field(i)) for i in range(kind.num_fields))
