"""Two stages of attribution: a cheaper variant of all clips, the full setting of those that it chooses.

    ROOT/shortlist/features/   clips/ and queries/ by the cheaper variant
    ROOT/shortlist/motion/     the same; where the variant's geometry is the full one's, ROOT/motion/ serves both
    ROOT/shortlist/chosen/     every clip that the variant ranked, and why it is on the shortlist, if it is

Clips on the shortlist have features in ROOT/features/clips, as all clips have without it. Those of an earlier shortlist
stay there and are ranked with the others, but stand for no clip but themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import MissingTableError
from pipeline.ranking import Population
from pipeline.storage.stores import join
from pipeline.tables import IdSet, scanning

log = logging.getLogger(__name__)

TOP, BOTTOM, AUDIT = "top", "bottom", "audit"  # why a clip is on the shortlist; audit: for no other reason


def home(root: str) -> str:
    return join(root, "shortlist")


def variant(run: Run) -> Run | None:
    """The run of the cheaper variant, in a root of its own but for the index; None without a shortlist."""
    cheaper = run.attribution.cheaper
    return None if cheaper is None else run.model_copy(update={"root": home(run.root), "attribution": cheaper})


def motion_root(run: Run) -> str:
    """The root whose motion/ has every clip of the run, not those of a shortlist alone."""
    cheaper = variant(run)
    return run.root if cheaper is None or cheaper.geometry == run.geometry else cheaper.root


def folder(run: Run) -> str:
    """Where the shortlist lies. Raises MissingTableError where nothing was chosen yet."""
    path = join(home(run.root), "chosen")
    if not tables.parts(path):
        raise MissingTableError(
            f"root={run.root!r} has no table shortlist/chosen, and attribution.shortlist asks for one; run "
            "extract_features first, or curate."
        )
    return path


def blocks(run: Run, *columns: str) -> Iterator[pa.Table]:
    """These columns of every clip that the cheaper variant ranked, from first to last."""
    yield from scanning.blocks(folder(run), ["clip_id", *columns])


def chosen(run: Run) -> IdSet:
    """The clips that are on the shortlist."""
    listed = (rows.filter(pc.is_valid(rows.column("reason"))) for rows in blocks(run, "reason"))
    return IdSet.of(rows.column("clip_id") for rows in listed)


def audited(run: Run) -> pa.Array:
    """The ids of the clips that the audit drew."""
    listed = [rows.filter(rows.column("audited")).column("clip_id") for rows in blocks(run, "audited")]
    return pa.chunked_array([chunk for column in listed for chunk in column.chunks], pa.string()).combine_chunks()


def population(run: Run, clip_ids: pa.LargeStringArray) -> Population | None:
    """What these clips, all that have features by the full setting, stand for; None without a shortlist.

    All clips that the cheaper variant ranked: the first and last stand for themselves, audited ones for all between.
    Where some of the shortlist failed, or were not reached within a budget, the others of their kind stand for them;
    of the clips that were not reached, the population then lacks as large a share.
    """
    if run.attribution.shortlist is None:
        return None
    listed, every = list[pa.Table](), 0
    for rows in blocks(run, "reason"):
        every += rows.num_rows
        listed.append(rows.filter(pc.is_valid(rows.column("reason"))))
    on = pa.concat_tables(listed)
    reached = _reached(run, on, clip_ids)
    at = pc.index_in(clip_ids, on.column("clip_id").cast(pa.large_string()).combine_chunks())
    reasons = on.column("reason").combine_chunks().take(at)
    sizes = {reason: pc.sum(pc.equal(on.column("reason"), reason)).as_py() or 0 for reason in (TOP, BOTTOM)}
    sizes[AUDIT] = every - sum(sizes.values())
    weights = np.zeros(len(clip_ids))
    for reason, size in sizes.items():
        of = pc.fill_null(pc.equal(reasons, reason), False).to_numpy(zero_copy_only=False)
        weights[of] = size * reached / max(1, of.sum())
        if size and reason == AUDIT and not of.any():
            log.warning(
                "of %d clips that are neither first nor last by the cheaper attribution, no audited one has features: "
                "whitening and the cut of the harmful know the shortlist alone. Raise attribution.shortlist.audit.",
                size,
            )
            return Population(max(1, round(every * reached)), np.ones(len(clip_ids)))
    return Population(max(1, round(every * reached)), weights)


def _reached(run: Run, on: pa.Table, clip_ids: pa.LargeStringArray) -> float:
    """The share of the shortlist that the full setting has worked, to features or to an error."""
    other_ids = on.filter(pc.invert(pc.is_in(on.column("clip_id").cast(pa.large_string()), clip_ids))).column("clip_id")
    if not len(other_ids):
        return 1.0
    ids = IdSet.of([other_ids])
    worked = np.zeros(len(ids), bool)
    for name in ("motion/clips", "features/clips"):
        table = join(run.root, name)
        for rows in scanning.blocks(table, ["clip_id", "error"]) if tables.parts(table) else ():
            failed = rows.filter(pc.is_valid(rows.column("error"))) if name == "motion/clips" else rows
            places = ids.find(failed.column("clip_id"))
            worked[places[places >= 0]] = True
    return 1.0 - int((~worked).sum()) / int(on.num_rows)


def left_out(run: Run, clip_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Why each of these clips is not on the shortlist; null for those that are, or that the variant did not rank."""
    listed, every = [pa.table({"clip_id": pa.array([], pa.string()), "rank": pa.array([], pa.int64())})], 0
    for rows in blocks(run, "rank", "reason"):
        every += rows.num_rows
        listed.append(rows.filter(pc.is_null(rows.column("reason"))).select(["clip_id", "rank"]))
    off = pa.concat_tables(listed).combine_chunks()
    ranks = off.column("rank").take(pc.index_in(clip_ids, off.column("clip_id").combine_chunks())).cast(pa.string())
    return pc.binary_join_element_wise(
        "not on the shortlist, rank ", ranks, f" of {every} by the cheaper attribution", ""
    )
