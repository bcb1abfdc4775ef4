"""Who is on the shortlist, by the cheaper variant's ranking; and how good it is, by the audit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.config.attribution import Shortlist
from pipeline.errors import ConfigError
from pipeline.ranking import CHUNK, placed, share, shortlist
from pipeline.ranking.influence_table import Progress
from pipeline.ranking.selection import rank
from pipeline.ranking.shortlist import AUDIT, BOTTOM, TOP
from pipeline.statistics.correlations import spearman, spearman_interval
from pipeline.statistics.intervals import wilson
from pipeline.storage.stores import join
from pipeline.tables import scanning, schemas

ENOUGH = 20  # audited clips, below which they say nothing

Lots = npt.NDArray[np.uint64]


# --- choosing --------------------------------------------------------------------------------------------------------


def choose(run: Run, progress: Progress | None = None) -> None:
    """Rank all clips by the cheaper variant, as `ranking` says and for the group that is trained for, and write
    shortlist/chosen/. Raises UsageError where there is nothing to rank, or no such group."""
    cheaper, config, r = shortlist.variant(run), run.attribution.shortlist, run.ranking
    assert cheaper is not None, "called where there is a shortlist"
    assert config is not None, "the same"
    ranked, group = rank(cheaper, r.mask, r.whiten, progress, index=run.root), run.finetune.group
    if group not in ranked.all_groups:
        raise ConfigError(
            f"finetune.group={group!r}: no query is of this group, so there is nothing to choose a shortlist for. "
            f"There are: {', '.join(ranked.all_groups)}."
        )
    mean, votes = ranked.score(group, ranked.marks(r.vote_fraction))
    order = placed(mean, votes if r.by == "votes" else None, ranked.clip_ids)
    ids = ranked.clip_ids.take(pa.array(order))
    fingerprint = {**fingerprints.features(cheaper), "ranking": r.rule, "shortlist": config.model_dump()}
    rows = chosen(ids, mean[order], config, run.seed)
    tables.replace_streamed(join(shortlist.home(run.root), "chosen"), schemas.CHOSEN, rows, fingerprint, group=group)


def chosen(clip_ids: pa.Array, mean: npt.NDArray[np.float32], config: Shortlist, seed: int) -> Iterator[pa.Table]:
    """Rows of shortlist/chosen/ for clips in their order by the cheaper variant, CHUNK at a time.

    Audited are the max(1, round(audit * N)) clips that a hash of seed and clip_id draws from all N: nothing else bears
    on it, so that most of them stay from night to night.
    """
    count = len(clip_ids)
    first = share(config.top, count)
    last = min(round(config.bottom * count), count - first)
    audited = np.zeros(count, bool)
    audited[np.argsort(lots(seed, clip_ids), kind="stable")[: share(config.audit, count)]] = True
    ranks = np.arange(count)
    reasons = np.select([ranks < first, ranks >= count - last, audited], [0, 1, 2], -1)
    words = pa.array([TOP, BOTTOM, AUDIT])
    for start in range(0, count, CHUNK):
        here = slice(start, start + CHUNK)
        index = pa.array(reasons[here].astype(np.int8), mask=reasons[here] < 0)
        columns = [
            clip_ids[start : start + CHUNK].cast(pa.string()),
            pa.array(ranks[here], pa.int64()),
            pa.array(mean[here], pa.float32()),
            pa.DictionaryArray.from_arrays(index, words).cast(pa.string()),
            pa.array(audited[here]),
        ]
        yield pa.table(columns, schema=schemas.CHOSEN)


def lots(seed: int, clip_ids: pa.Array) -> Lots:
    """A number for each clip by which the audit is drawn."""
    digest, start = hashlib.blake2b, f"audit {seed} ".encode()
    drawn = b"".join(digest(start + i.encode(), digest_size=8).digest() for i in clip_ids.to_pylist())
    return np.frombuffer(drawn, "<u8")


# --- how good it is --------------------------------------------------------------------------------------------------


def quality(run: Run) -> dict[str, Any] | None:
    """What the audit says of the shortlist; None without one, or before a ranking of it.

    `clips` that the cheaper variant ranked, `top`, `bottom` and `audited` of them; `compared`: audited clips that both
    rank. On those `spearman`, of the mean influence by either, and `found_top` and `found_bottom`: of the first
    `ranking.fraction` and the last `ranking.harmful` by the full setting, `count`, how many are `found` among the
    shortlist's first and last, as a `share`. Intervals are of 95 %; what is not defined is None.
    """
    ranked = join(run.root, "selection")
    if run.attribution.shortlist is None or not tables.parts(ranked):
        return None
    sizes, audited = {TOP: 0, BOTTOM: 0}, list[pa.Table]()
    every = 0
    for rows in shortlist.blocks(run, "mean_influence", "reason", "audited"):
        every += rows.num_rows
        for reason in sizes:
            sizes[reason] += pc.sum(pc.equal(rows.column("reason"), reason)).as_py() or 0
        audited.append(rows.filter(rows.column("audited")))
    audit = pa.concat_tables(audited)
    group = tables.metadata(shortlist.folder(run))["group"]
    both = _both(audit, ranked, group)
    cheaper, full = (both.column(name).to_numpy().astype(np.float64) for name in ("cheaper", "full"))
    agreed, n = spearman(cheaper, full), both.num_rows
    flags = pc.not_equal(both.sort_by("rank").column("reason"), AUDIT).to_numpy(zero_copy_only=False)
    last = round(run.ranking.harmful * n)
    return {
        "clips": every,
        **sizes,
        "audited": audit.num_rows,
        "group": group,
        "compared": n,
        "spearman": agreed,
        "spearman_interval": None if agreed is None else spearman_interval(agreed, n),
        "found_top": _share_of(flags[: share(run.ranking.fraction, n)]),
        "found_bottom": _share_of(flags[n - last :]),
    }


def _both(audit: pa.Table, selection: str, group: str) -> pa.Table:
    """The audited clips that are ranked in full: columns reason, cheaper, full (mean influences), rank (in full)."""
    ids = audit.column("clip_id").combine_chunks()
    rows = [
        pa.table(
            {"clip_id": pa.array([], pa.string()), "full": pa.array([], pa.float32()), "rank": pa.array([], pa.int64())}
        )
    ]
    for block in scanning.blocks(selection, ["clip_id", "group", "mean_influence", "rank"]):
        mask = pc.and_(pc.equal(block.column("group"), group), pc.is_valid(block.column("rank")))
        mask = pc.and_(mask, pc.is_in(block.column("clip_id"), ids))
        rows.append(
            block.filter(mask).select(["clip_id", "mean_influence", "rank"]).rename_columns(["clip_id", "full", "rank"])
        )
    table = pa.concat_tables(rows)
    here = audit.take(pc.index_in(table.column("clip_id"), ids))
    return table.append_column("cheaper", here.column("mean_influence")).append_column("reason", here.column("reason"))


def _share_of(flags: npt.NDArray[np.bool_]) -> dict[str, Any]:
    count, n = int(flags.sum()), len(flags)
    return {
        "count": n,
        "found": count,
        "share": count / n if n else None,
        "interval": wilson(count, n)[1:] if n else None,
    }


def sentences(quality: Mapping[str, Any] | None) -> list[str]:
    """What `quality` found, for people; the last one is a warning where the audit is too small."""
    if quality is None:
        return []
    first = (
        f"of {quality['clips']:,} clips {quality[TOP]:,} first, {quality[BOTTOM]:,} last and {quality['audited']:,} "
        "audited ones get the full setting"
    )
    if not quality["compared"]:
        return [first, "no audited clip is ranked in full: nothing is known of the shortlist's quality"]
    agreed = (
        "unknown"
        if quality["spearman"] is None
        else f"{quality['spearman']:.2f}{_reach(quality['spearman_interval'], '.2f')}"
    )
    clauses = [f"on {quality['compared']:,} audited clips the rank correlation of the two influences is {agreed}"]
    for name, words in (("found_top", "first"), ("found_bottom", "last")):
        entry = quality[name]
        if entry["count"]:
            reach = _reach(entry["interval"], ".0%")
            clauses.append(
                f"of their {entry['count']:,} {words} by the full setting {entry['found']:,} are on the shortlist for "
                f"their rank, {entry['share']:.0%}{reach}"
            )
    few = quality["compared"] < ENOUGH
    warning = (
        [f"fewer than {ENOUGH} audited clips say next to nothing; raise attribution.shortlist.audit"] if few else []
    )
    return [first, "; ".join(clauses), *warning]


def _reach(interval: tuple[float, float], kind: str) -> str:
    return f" ({interval[0]:{kind}} to {interval[1]:{kind}})"
