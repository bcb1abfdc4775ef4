"""Which clips each arm trains on. Arms differ in this alone: same steps, same noise, and, where they pick a part of the
clips, the same number of them.

base                nothing; the model as it is
all                 every decodable clip
all_minus_harmful   those that the selection does not call harmful
weighted            those it ranks and does not call harmful, drawn by their positive mean influence
random              by a hash of seed and clip_id
magnitude           the fastest (mean flow)
mask_overlap        whose motion mask overlaps most with the queries': no model, a control for the mask's position
no_mask             cosine of unmasked features, votes, then mean: the paper's control
motive              cosine of masked features, votes, then mean: the paper
motive_whitened     masked features, whitened, by mean
oracle              whose column `data.oracle` names the queries' motion

With `attribution.shortlist` no_mask, motive and motive_whitened are of the shortlist, and magnitude and mask_overlap
see every clip at the cheaper variant's geometry.
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

from pipeline import schemas, shortlist, stores, tables
from pipeline.config import Arm, ConfigError, Run
from pipeline.feature_table import under_mask
from pipeline.ranking import share
from pipeline.selection import rank

WHITEN = 0.01  # for motive_whitened where ranking.whiten is null

NEEDED_MASK: Mapping[str, str] = {"no_mask": "none", "motive": "motion", "motive_whitened": "motion"}
PICKING = ("random", "magnitude", "mask_overlap", "no_mask", "motive", "motive_whitened", "oracle")


def check(run: Run, arms: Iterable[Arm] | None = None) -> None:
    """Raise ConfigError for an arm that this configuration cannot have; by default its own and those it evaluates."""
    masks = {setting.mask for setting in run.attribution.settings}
    for arm in dict.fromkeys(arms or [run.finetune.arm, *run.evaluate.arms]):
        needed = NEEDED_MASK.get(arm)
        if needed is not None and needed not in masks:
            raise ConfigError(
                f"finetune.arm={arm!r} compares features under mask {needed!r}, but attribution.settings has none with "
                f"mask: {needed}. Add one (it shares the forward pass of one with the same timestep and noise) and "
                "extract features again in a new root, or leave this arm out of finetune.arm and evaluate.arms."
            )
        if arm == "oracle" and run.data.oracle is None:
            raise ConfigError(
                "finetune.arm='oracle' needs to know each clip's true group, but data.oracle is null. Set data.oracle "
                "to the manifest's column that holds it, or leave this arm out of finetune.arm and evaluate.arms."
            )


def training_set(run: Run) -> pa.Table | None:
    """The clips that `run.finetune.arm` trains on, by clip_id: columns of clips/ and `weight` float64, which sums to 1.

    None for base. Raises ConfigError where the run lacks a table, a column or a group that the arm needs, or where its
    rule leaves no clip.
    """
    arm = run.finetune.arm
    if arm == "base":
        return None
    check(run, [arm])
    clips = decodable(run)
    weights = _weights(run, clips)
    total = sum(weights.values())
    if not total > 0:
        raise ConfigError(
            f"finetune.arm={arm!r}, finetune.group={run.finetune.group!r}: its rule leaves none of the "
            f"{clips.num_rows} decodable clips to train on. Take another arm or group, or more clips."
        )
    kept = clips.filter(pa.array([weights.get(i, 0) > 0 for i in clips.column("clip_id").to_pylist()], pa.bool_()))
    found = [weights[i] / total for i in kept.column("clip_id").to_pylist()]
    return kept.append_column("weight", pa.array(found, pa.float64()))


def decodable(run: Run) -> pa.Table:
    """The rows of clips/ that no stage failed to read, by clip_id. A clip without motion, or whose gradient was not
    finite, is among them."""
    clips = _table(run, "clips", None, "index_clips")
    clips = clips.filter(pc.is_null(clips.column("error")))
    homes = (run.root,) if run.attribution.shortlist is None else (shortlist.home(run.root), run.root)
    for folder in (stores.join(home, stage, "clips") for home in homes for stage in ("motion", "features")):
        table = tables.read(folder, ["clip_id", "error"])
        if table is not None:
            errors = table.column("error").to_pylist()
            unread = [e is not None and not e.startswith(("no_motion", "not_finite")) for e in errors]
            failed = table.column("clip_id").filter(pa.array(unread, pa.bool_()))
            clips = clips.filter(pc.invert(pc.is_in(clips.column("clip_id"), failed.combine_chunks())))
    if not clips.num_rows:
        raise ConfigError(f"root={run.root!r}: clips/ has no clip that could be decoded: nothing to train on.")
    return clips


def _weights(run: Run, clips: pa.Table) -> dict[str, float]:
    """Each chosen clip's weight, before they are made to sum to 1."""
    arm, ids = run.finetune.arm, clips.column("clip_id").to_pylist()
    if arm == "all":
        return dict.fromkeys(ids, 1.0)
    if arm in ("all_minus_harmful", "weighted"):
        return _by_decision(run, ids)
    known, count = set(ids), tenth(run)
    return dict.fromkeys([i for i in _order(run, clips) if i in known][:count], 1.0)


def tenth(run: Run) -> int:
    """How many clips an arm that picks gets: max(1, round(fraction * N)) of the N with features under ranking.mask, or
    that the shortlist of them stands for."""
    clip_ids = under_mask(run.root, "clips", run.ranking.mask).clip_ids
    stood = shortlist.population(run, clip_ids)
    return share(run.ranking.fraction, len(clip_ids) if stood is None else stood.count)


def _order(run: Run, clips: pa.Table) -> list[str]:
    """Clips from first to last choice of an arm that picks."""
    arm = run.finetune.arm
    if arm == "random":
        return by_hash(run.seed, clips.column("clip_id").to_pylist())
    if arm == "oracle":
        return by_hash(run.seed, _of_true_group(run, clips))
    if arm == "magnitude":
        table = _motion(run, "clips", ["clip_id", "motion_mean"])
        table = table.filter(pc.is_finite(table.column("motion_mean")))  # null stays null, and filter drops it
        return _descending(table.column("clip_id").to_pylist(), table.column("motion_mean").to_numpy())
    if arm == "mask_overlap":
        return _descending(*_overlaps(run))
    if arm == "motive_whitened":
        return _ranked(run, "motion", run.ranking.whiten or WHITEN, "mean")
    return _ranked(run, NEEDED_MASK[arm], None, "votes")


def by_hash(seed: int, clip_ids: Iterable[str]) -> list[str]:
    """Clips in an order that belongs to seed and ids: neither other clips nor their order change who comes first."""
    return sorted(clip_ids, key=lambda i: hashlib.blake2b(f"{seed} {i}".encode(), digest_size=16).digest())


def _descending(clip_ids: Sequence[str], score: npt.NDArray[np.floating]) -> list[str]:
    return [clip_ids[i] for i in np.lexsort((np.asarray(clip_ids), -np.asarray(score, np.float64)))]


def _ranked(run: Run, mask: str, whiten: float | None, by: Literal["mean", "votes"]) -> list[str]:
    ranked = rank(run, mask, whiten)
    found: list[str] = ranked.order(_known_group(run, ranked.groups), by, run.ranking.vote_fraction).to_pylist()
    return found


def _by_decision(run: Run, clip_ids: Sequence[str]) -> dict[str, float]:
    """all_minus_harmful: 1 for what is not harmful. weighted: the positive mean influence of what is ranked as well."""
    table = _table(run, "selection", ["clip_id", "group", "rank", "decision", "mean_influence"], "rank_clips")
    group = _known_group(run, table.column("group").to_pylist())
    rows = {r["clip_id"]: r for r in table.filter(pc.equal(table.column("group"), group)).to_pylist()}
    fine = [i for i in clip_ids if i not in rows or rows[i]["decision"] != "harmful"]
    if run.finetune.arm == "all_minus_harmful":
        return dict.fromkeys(fine, 1.0)
    return {i: max(rows[i]["mean_influence"], 0.0) for i in fine if i in rows and rows[i]["rank"] is not None}


def _of_true_group(run: Run, clips: pa.Table) -> list[str]:
    column = str(run.data.oracle)
    if column not in clips.column_names:
        passed = [c for c in clips.column_names if c not in schemas.CLIPS.names]
        raise ConfigError(
            f"data.oracle={column!r}: the manifest {run.data.videos!r} gave no such column; beside the usual ones it "
            f"has {', '.join(passed) or 'none'}. Name one of them, or leave the arm oracle out."
        )
    groups = _query_groups(run)
    group = _known_group(run, groups.values())
    wanted = set(groups.values()) if group == "all" else {group}
    pairs = zip(clips.column("clip_id").to_pylist(), clips.column(column).to_pylist(), strict=True)
    return [i for i, true in pairs if true is not None and str(true) in wanted]


def _overlaps(run: Run) -> tuple[list[str], npt.NDArray[np.floating]]:
    """Mean cosine of each clip's mask with the queries' masks of its shape; clips of no query's shape are out."""
    groups = _query_groups(run)
    group = _known_group(run, groups.values())
    queries: dict[tuple[int, ...], list[npt.NDArray[np.float32]]] = {}
    for query_id, shape, mask in _masks(run, "queries"):
        if group in ("all", groups.get(query_id)):
            queries.setdefault(shape, []).append(mask)
    directions = {shape: np.mean(masks, axis=0) for shape, masks in queries.items()}
    found = [(i, float(mask @ directions[shape])) for i, shape, mask in _masks(run, "clips") if shape in directions]
    return [i for i, _ in found], np.array([score for _, score in found])


def _masks(run: Run, name: str) -> Iterable[tuple[str, tuple[int, ...], npt.NDArray[np.float32]]]:
    """The id, shape and unit-length values of every mask."""
    table = _motion(run, name, ["clip_id", "mask", "mask_shape"])
    table = table.filter(pc.is_valid(table.column("mask")))
    for clip_id, mask, shape in zip(*(table.column(c) for c in ("clip_id", "mask", "mask_shape")), strict=True):
        values = np.frombuffer(mask.as_buffer(), np.uint8).astype(np.float32)
        yield clip_id.as_py(), tuple(shape.as_py()), values / max(float(np.linalg.norm(values)), 1e-12)


def _query_groups(run: Run) -> dict[str, str]:
    table = _table(run, "queries", ["clip_id", "group"], "index_clips")
    return {r["clip_id"]: r["group"] or "all" for r in table.to_pylist()}


def _known_group(run: Run, groups: Iterable[str]) -> str:
    group, there = run.finetune.group, sorted({"all", *groups})
    if group not in there:
        raise ConfigError(f"finetune.group={group!r}: no query is of this group. There are: {', '.join(there)}.")
    return group


def _motion(run: Run, name: str, columns: Sequence[str]) -> pa.Table:
    """Of every clip: with a shortlist, the table of the cheaper variant."""
    return _table(run, f"motion/{name}", columns, "estimate_motion", shortlist.motion_root(run))


def _table(run: Run, name: str, columns: Sequence[str] | None, job: str, root: str | None = None) -> pa.Table:
    root = root or run.root
    table = tables.read(stores.join(root, name), columns)
    if table is None:
        raise ConfigError(
            f"finetune.arm={run.finetune.arm!r} needs the table {name}/, which root={root!r} has not yet; run "
            f"`python -m jobs.{job}` with this configuration first, or `python -m jobs.curate`."
        )
    return table


def write_video_folder(folder: str, rows: pa.Table) -> str:
    """Write rows of `training_set` as metadata.jsonl, as HF's VideoFolder has it; returns its path.

    `file_name` is a video's place as indexed; a clip is `num_frames` frames at `fps` from source frame `start_frame`.
    """
    columns = ["clip_id", "caption", "start_frame", "num_frames", "fps", "weight"]
    lines = [json.dumps({"file_name": r["uri"], **{c: r[c] for c in columns}}) for r in rows.to_pylist()]
    path = stores.join(folder, "metadata.jsonl")
    stores.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    return path
