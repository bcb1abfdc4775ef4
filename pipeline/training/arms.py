"""Which clips each arm trains on. Arms differ in this alone, but for those that draw each clip at times of its own:
same steps, same noise, and, where they pick a part of the clips, the same number of them.

base                nothing; the model as it is
all                 every decodable clip
all_minus_harmful   those that the selection does not call harmful
weighted            those it ranks and does not call harmful, drawn by their positive mean influence
random              by a hash of seed and clip_id
magnitude           the fastest (mean flow)
mask_overlap        whose motion mask overlaps most with the queries': no model, a control for the mask's position
lawful              named for the group and nearest to its queries by their movement, as lawfulness/ has it
caption             whose caption names the group, by a hash: no model, a control for what words find
own_loss            on which the base's loss is highest: a control for clips that are merely hard
embedding           nearest to the queries by the embeddings that a curator's model wrote: a control for looks
no_mask             cosine of unmasked features, votes, then mean: the paper's control
motive              cosine of masked features, votes, then mean: the paper
motive_whitened     masked features, whitened, by mean
selected            by the recipe's own ranking, without what a rule bars, as selection/ has it
timed               the same clips, each at the times where its influence is good (`time_bands`)
timed_random        those of random at such times: a control for the times
little_noise        those of selected where there is little noise, and all clips at the other times (`time_bands`)
little_noise_random  the same with those of random: a control for what little_noise selects
curated             the same after people's word: what they keep, filled up by rank without what they drop or dispute;
                    ranked by the weights that they gave the queries, where they gave some
oracle              whose column `data.oracle` names the queries' motion

With `attribution.shortlist` own_loss, no_mask, motive, motive_whitened, selected, timed, what little_noise picks and
curated are of the shortlist (but for clips that people keep), and magnitude, mask_overlap and lawful see every clip at
the cheaper variant's geometry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import LITTLE_NOISE, TIMED, Arm, Run
from pipeline.config.attribution import compared
from pipeline.errors import ConfigError, MissingTableError, NothingUsableError
from pipeline.ranking import decisions, lawfulness, mask_overlap, partitions, placed, query_weights, share, shortlist
from pipeline.ranking.feature_table import under_mask
from pipeline.ranking.selection import Ranked, rank, recorded
from pipeline.storage import stores
from pipeline.tables import scanning, schemas
from pipeline.training import embedding_order, time_bands

Weights = npt.NDArray[np.float64]

LINES = 10_000  # of a list that are in memory at a time
WHITEN = 0.01  # for motive_whitened where ranking.whiten is null

NEEDED_MASK: Mapping[str, str] = {"no_mask": "none", "motive": "motion", "motive_whitened": "motion"}


def check(run: Run, arms: Iterable[Arm] | None = None) -> None:
    """Raise ConfigError for an arm that this configuration cannot have; by default its own and those it evaluates."""
    for arm in dict.fromkeys(arms or [run.finetune.arm, *run.evaluate.arms]):
        try:
            compared(NEEDED_MASK.get(arm, run.ranking.mask), run.attribution.settings)
        except ValueError as error:
            raise ConfigError(
                f"the arm {arm!r} compares features under mask {NEEDED_MASK[arm]!r}, and in attribution.settings "
                f"{error} (it shares the forward pass of one with the same timestep and noise) and extract features "
                "again in a new root, or leave this arm out of finetune.arm and evaluate.arms."
            ) from error
        if arm == "oracle" and run.data.oracle is None:
            raise ConfigError(
                "the arm 'oracle' needs to know each clip's true group, but data.oracle is null. Set data.oracle "
                "to the manifest's column that holds it, or leave this arm out of finetune.arm and evaluate.arms."
            )
        if arm == "embedding":
            embedding_order.places(run)
        if arm in TIMED:
            time_bands.check(run, arm)


def training_set(run: Run) -> pa.Table | None:
    """The clips that `run.finetune.arm` trains on, by clip_id: columns of clips/ and `weight` float64, which sums to 1;
    of an arm of TIMED those of `time_bands.with_times` as well.

    None for base. Raises UsageError where the run lacks a table, a column or a group that the arm needs, or where its
    rule leaves no clip.
    """
    arm = run.finetune.arm
    if arm == "base":
        return None
    check(run, [arm])
    clips = decodable(run)
    weights = _weights(run, clips)
    total = weights.sum()
    if not total > 0:
        raise NothingUsableError(
            f"finetune.arm={arm!r}, finetune.group={run.finetune.group!r}: its rule leaves none of the "
            f"{clips.num_rows} decodable clips to train on. Take another arm or group, or more clips."
        )
    row_mask = weights > 0
    of_manifest = [name for name in ("weight", *time_bands.COLUMNS) if name in clips.column_names]
    clips = clips.drop_columns(of_manifest)
    if arm in LITTLE_NOISE:
        return time_bands.at_little_noise(run, clips, row_mask)
    rows = clips.filter(pa.array(row_mask))
    rows = rows.append_column("weight", pa.array(weights[row_mask] / total, pa.float64()))
    return time_bands.with_times(run, rows, _by_setting(run)) if arm in TIMED else rows


def decodable(run: Run) -> pa.Table:
    """The rows of clips/ that no stage failed to read, by clip_id. A clip without motion, or whose gradient was not
    finite, is among them."""
    clips = _of_clips(run, "clips", None, "index_clips")
    clips = clips.filter(pc.is_null(clips.column("error")))
    homes = run.clip_roots if run.attribution.shortlist is None else (shortlist.home(run.root), run.root)
    for folder in (stores.join(home, stage, "clips") for home in homes for stage in ("motion", "features")):
        table = tables.read(folder, ["clip_id", "error"])
        if table is not None:
            read = pc.match_substring_regex(table.column("error"), "^(no_motion|not_finite)")
            failed = table.column("clip_id").filter(pc.fill_null(pc.invert(read), False))
            clips = clips.filter(pc.invert(pc.is_in(clips.column("clip_id"), failed.combine_chunks())))
    if not clips.num_rows:
        raise NothingUsableError(f"root={run.root!r}: clips/ has no clip that could be decoded: nothing to train on.")
    return clips


def _weights(run: Run, clips: pa.Table) -> Weights:
    """Every clip's weight [N], before they are made to sum to 1; 0 for what is not chosen."""
    arm, ids = run.finetune.arm, clips.column("clip_id").combine_chunks()
    if arm == "all":
        return np.ones(len(ids))
    if arm in ("all_minus_harmful", "weighted"):
        return _by_decision(run, ids)
    ordered, count = _order(run, clips).cast(ids.type), tenth(run)
    first = ordered.filter(pc.is_in(ordered, ids))[:count]
    chosen: Weights = pc.is_in(ids, first).to_numpy(zero_copy_only=False).astype(np.float64)
    return chosen


def tenth(run: Run) -> int:
    """How many clips an arm that picks gets: max(1, round(fraction * N)) of the N with features under ranking.mask, or
    that the shortlist of them stands for."""
    clip_ids = under_mask(run.clip_roots, "clips", run.ranking.mask).clip_ids
    stood = shortlist.population(run, clip_ids)
    return share(run.ranking.fraction, len(clip_ids) if stood is None else stood.count)


def _order(run: Run, clips: pa.Table) -> pa.Array:
    """Clips from first to last choice of an arm that picks."""
    arm, ids = TIMED.get(run.finetune.arm, run.finetune.arm), clips.column("clip_id").combine_chunks()
    if arm == "random":
        return by_hash(run.seed, ids)
    if arm == "oracle":
        return by_hash(run.seed, _of_true_group(run, clips))
    if arm == "magnitude":
        table = _motion(run, ["clip_id", "motion_mean"])
        table = table.filter(pc.is_finite(table.column("motion_mean")))  # null stays null, and filter drops it
        return _descending(table.column("clip_id").combine_chunks(), table.column("motion_mean").to_numpy())
    if arm == "mask_overlap":
        return _descending(*_overlaps(run))
    if arm == "lawful":
        return _lawful(run)
    if arm == "caption":
        return by_hash(run.seed, _named(run, clips))
    if arm == "own_loss":
        return _descending(*_losses(run))
    if arm == "embedding":
        return _descending(*embedding_order.similarities(run, clips, _queries(run)))
    if arm == "motive_whitened":
        return _ranked(run, "motion", run.ranking.whiten or WHITEN, "mean")
    if arm == "selected":
        ordered = _ranked(run, run.ranking.mask, run.ranking.whiten, run.ranking.by, run.ranking.spare)
        return ordered.filter(pc.invert(pc.is_in(ordered, _barred(run).cast(ordered.type))))
    if arm == "curated":
        verdicts = [decisions.run_verdicts(root, run.finetune.group) for root in run.clip_roots]
        return decisions.curated_order(_weighted(run), _barred(run), pa.concat_tables(verdicts))
    return _ranked(run, NEEDED_MASK[arm], None, "votes")


def by_hash(seed: int, clip_ids: pa.Array) -> pa.Array:
    """Clips in an order that belongs to seed and ids: neither other clips nor their order change who comes first."""
    digest, start = hashlib.blake2b, f"{seed} ".encode()
    drawn = b"".join(digest(start + i.encode(), digest_size=16).digest() for i in clip_ids.to_pylist())
    words = np.frombuffer(drawn, ">u8").reshape(-1, 2)
    return clip_ids.take(pa.array(np.lexsort((words[:, 1], words[:, 0]))))


def _descending(clip_ids: pa.Array, score: npt.NDArray[np.floating]) -> pa.Array:
    return clip_ids.take(pa.array(placed(score.astype(np.float32), None, clip_ids)))


def _ranked(run: Run, mask: str, whiten: float | None, by: Literal["mean", "votes"], spare: float = 0.0) -> pa.Array:
    ranked = recorded(run, mask, whiten) or rank(run, mask, whiten)
    return ranked.order(_known_group(run, ranked.groups), by, run.ranking.vote_fraction, spare)


def _by_setting(run: Run) -> Ranked:
    """The recipe's ranking with the influence by setting, which tables of an earlier version lack."""
    mask, whiten = run.ranking.mask, run.ranking.whiten
    ranked = recorded(run, mask, whiten)
    if ranked is None or ranked.by_setting is None:
        ranked = rank(run, mask, whiten)
    _known_group(run, ranked.groups)
    return ranked


def _weighted(run: Run) -> pa.Array:
    """Clips by the recipe's ranking, or by mean influence on the queries as people weigh them."""
    r = run.ranking
    ranked = recorded(run, r.mask, r.whiten) or rank(run, r.mask, r.whiten)
    group = _known_group(run, ranked.groups)
    query_ids = [ranked.query_ids[query] for query in ranked.of(group)]
    rows = pa.concat_tables([query_weights.read(root) for root in run.clip_roots])
    weights = query_weights.of_queries(query_weights.weights(rows), query_ids, group)
    if weights is None:
        return ranked.order(group, r.by, r.vote_fraction, r.spare)
    return ranked.weighted_order(group, weights)


def _lawful(run: Run) -> pa.Array:
    """The ids of the clips that are named for the group, the most lawful first."""
    table = _table(run, "lawfulness", None, "rank_clips")
    group = _known_group(run, table.column("group").unique().to_pylist())
    named = pc.not_equal(table.column("named_by"), lawfulness.FLOW)
    rows = table.filter(named if group == "all" else pc.and_(named, pc.equal(table.column("group"), group)))
    return rows.sort_by([("distance", "ascending"), ("clip_id", "ascending")]).column("clip_id").combine_chunks()


def _named(run: Run, clips: pa.Table) -> pa.Array:
    """The ids of the clips whose caption names the group, or any group of the queries."""
    names = sorted(set(_query_groups(run).values()))
    group = _known_group(run, names)
    named = [lawfulness.named_group(caption or "", names) for caption in clips.column("caption").to_pylist()]
    flags = [name is not None if group == "all" else name == group for name in named]
    return clips.column("clip_id").filter(pa.array(flags, pa.bool_())).combine_chunks()


def _losses(run: Run) -> tuple[pa.Array, npt.NDArray[np.floating]]:
    """The base's own loss on each clip, over the settings that the ranking compares."""
    features = under_mask(run.clip_roots, "clips", run.ranking.mask)
    return features.clip_ids, features.losses()


def _barred(run: Run) -> pa.Array:
    """The ids of the clips that a rule of the selection bars: harmful ones, near-duplicates, those above a cap."""
    folder, ids = stores.join(run.root, "selection"), [pa.array([], pa.string())]
    columns = ["clip_id", "group", "decision", "rank", "choice"]
    if not any("choice" in schema.names for schema in tables.columns(folder)):  # written before there were other rules
        columns.remove("choice")
    for rows in scanning.blocks(folder, columns) if tables.parts(folder) else ():
        barred = pc.equal(rows.column("decision"), "harmful")
        if "choice" in columns:
            barred = pc.or_(barred, pc.and_(pc.is_valid(rows.column("rank")), pc.is_null(rows.column("choice"))))
        of_group = pc.equal(rows.column("group"), run.finetune.group)
        ids.extend(rows.filter(pc.and_(of_group, barred)).column("clip_id").chunks)
    return pa.concat_arrays(ids)


def _by_decision(run: Run, clip_ids: pa.Array) -> Weights:
    """all_minus_harmful: 1 for what is not harmful. weighted: the positive mean influence of what is ranked as well."""
    folder, groups, parts = stores.join(run.root, "selection"), set[str](), list[pa.Table]()
    _there(run, "selection", "rank_clips")
    for rows in scanning.blocks(folder, ["clip_id", "group", "decision", "mean_influence"]):
        groups.update(rows.column("group").unique().to_pylist())
        parts.append(rows.filter(pc.equal(rows.column("group"), run.finetune.group)))
    _known_group(run, groups)
    table = pa.concat_tables(parts)
    rows = table.take(pc.index_in(clip_ids, table.column("clip_id").combine_chunks()))
    fine: Weights = pc.fill_null(pc.not_equal(rows.column("decision"), "harmful"), True).to_numpy().astype(np.float64)
    if run.finetune.arm == "all_minus_harmful":
        return fine
    positive: Weights = fine * np.maximum(pc.fill_null(rows.column("mean_influence"), 0.0).to_numpy(), 0.0)
    return positive


def _of_true_group(run: Run, clips: pa.Table) -> pa.Array:
    column = str(run.data.oracle)
    if column not in clips.column_names:
        others = [c for c in clips.column_names if c not in schemas.CLIPS.names]
        raise ConfigError(
            f"data.oracle={column!r}: the manifest {run.data.videos!r} gave no such column; beside the usual ones it "
            f"has {', '.join(others) or 'none'}. Name one of them, or leave the arm oracle out."
        )
    groups = _query_groups(run)
    group = _known_group(run, groups.values())
    group_names = set(groups.values()) if group == "all" else {group}
    true = clips.column(column)
    named = [value for value in true.unique().to_pylist() if value is not None and str(value) in group_names]
    return clips.column("clip_id").filter(pc.is_in(true, pa.array(named, true.type))).combine_chunks()


def _overlaps(run: Run) -> tuple[pa.Array, npt.NDArray[np.floating]]:
    """Mean cosine of each clip's mask with the queries' masks of its shape; clips of no query's shape are out."""
    groups, root = _query_groups(run), _query_motion_root(run)
    group, clip_roots = _known_group(run, groups.values()), _motion_roots(run)
    _there(run, "motion/queries", "estimate_motion", root)
    for clip_root in clip_roots:
        _there(run, "motion/clips", "estimate_motion", clip_root)
    alike, _ = mask_overlap.mask_overlaps(root, groups, clip_roots=clip_roots)
    score = alike.groups.get(group, np.full(len(alike.clip_ids), np.nan))
    row_mask = np.isfinite(score)
    return alike.clip_ids.filter(pa.array(row_mask)), score[row_mask]


def _query_groups(run: Run) -> dict[str, str]:
    table = _table(run, "queries", ["clip_id", "group"], "index_clips", partitions.query_root(run))
    return {r["clip_id"]: r["group"] or "all" for r in table.to_pylist()}


def _queries(run: Run) -> pa.Table:
    """The rows of queries/ of the arm's group."""
    table = _table(run, "queries", None, "index_clips", partitions.query_root(run))
    group = _known_group(run, _query_groups(run).values())
    of_group = pc.equal(pc.fill_null(table.column("group"), "all"), group)
    return table if group == "all" else table.filter(of_group)


def _known_group(run: Run, groups: Iterable[str]) -> str:
    group, names = run.finetune.group, sorted({"all", *groups})
    if group not in names:
        raise ConfigError(f"finetune.group={group!r}: no query is of this group. There are: {', '.join(names)}.")
    return group


def _motion_roots(run: Run) -> tuple[str, ...]:
    """The roots whose motion/ has every clip: with a shortlist, that of the cheaper variant."""
    return run.clip_roots if run.attribution.shortlist is None else (shortlist.motion_root(run),)


def _query_motion_root(run: Run) -> str:
    return partitions.query_root(run) if run.attribution.shortlist is None else shortlist.motion_root(run)


def _motion(run: Run, columns: Sequence[str]) -> pa.Table:
    return _of_clips(run, "motion/clips", columns, "estimate_motion", _motion_roots(run))


def _of_clips(
    run: Run, name: str, columns: Sequence[str] | None, job: str, roots: Sequence[str] | None = None
) -> pa.Table:
    """The rows of a table of clips, of all roots that the run's clips lie in, by clip_id."""
    parts = [_table(run, name, columns, job, root) for root in roots or run.clip_roots]
    return parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="default").sort_by("clip_id")


def _table(run: Run, name: str, columns: Sequence[str] | None, job: str, root: str | None = None) -> pa.Table:
    _there(run, name, job, root)
    table = tables.read(stores.join(root or run.root, name), columns)
    assert table is not None, "it was there"
    return table


def _there(run: Run, name: str, job: str, root: str | None = None) -> None:
    root = root or run.root
    if not tables.parts(stores.join(root, name)):
        raise MissingTableError(
            f"finetune.arm={run.finetune.arm!r} needs the table {name}/, which root={root!r} has not yet; run "
            f"`python -m jobs.{job}` with this configuration first, or `python -m jobs.curate`."
        )


SEGMENTS = "segments.jsonl"  # no loader reads a file of this name
CURATED_README = """\
segments.jsonl lists the segments of videos that this model was fine-tuned on. A line is a segment:

  clip_id      its id in the tables of the run
  file_name    its video, as it was indexed: a path of the machine that did so, or an address
  caption      the caption that it was trained with
  start_frame  its first frame, counted in the video
  num_frames   how many frames it has, after resampling
  fps          frames a second, after resampling
  weight       its share of what training draws

This is a list and not a data set, and no trainer takes a file of this name for its own. A trainer would read every
video whole, from its first frame, and train on other frames than these. `python -m jobs.export` cuts the segments out
of the videos and writes them as the trainer of your choice reads them.
"""


def write_curated(folder: str, rows: pa.Table) -> str:
    """Write rows of `training_set` as a list of segments, segments.jsonl; returns its path. README.txt says what it is.

    `file_name` is a video's place as indexed; a clip is `num_frames` frames at `fps` from source frame `start_frame`.
    """
    columns = ["clip_id", "caption", "start_frame", "num_frames", "fps", "weight"]
    path = stores.join(folder, SEGMENTS)
    stores.write_bytes(stores.join(folder, "README.txt"), CURATED_README.encode())
    with stores.writing(path) as file:
        for batch in rows.select(["uri", *columns]).to_batches(LINES):
            lines = ({"file_name": r["uri"], **{c: r[c] for c in columns}} for r in batch.to_pylist())
            file.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())
    return path
