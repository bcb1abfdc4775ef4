"""Why this clip? `explain.clip` names it: its influence on each query, the frames (and, with `explain.layers`, the
layers) that it comes from, and the clips that teach the same. A page and tables in ROOT/explain/CLIP/."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.explain:explain", __doc__)

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline import tables
from pipeline.attribution import decomposition, fingerprints
from pipeline.attribution.decomposition import Array, DecompositionWorker, Sums
from pipeline.attribution.workers import FeatureWorker, featured
from pipeline.cluster import resources, streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.config.attribution import mask_of
from pipeline.errors import ConfigError, FingerprintError, MissingTableError
from pipeline.pages import explain as explain_page
from pipeline.pages import explain_links
from pipeline.pages.explain import Explanation, Lawfulness, Problem
from pipeline.ranking import Population, lawfulness, one_clip, share, shortlist
from pipeline.ranking.feature_table import under_mask
from pipeline.ranking.one_clip import Row
from pipeline.ranking.selection import query_rows
from pipeline.stages import attribution, pilots, progress
from pipeline.stages.report import frames_by
from pipeline.storage import stores
from pipeline.storage.stores import join
from pipeline.tables import scanning, schemas
from pipeline.video.decoders import decoder_for

NEAR = 10  # near-duplicates that are shown
CLOSE = 0.9999  # cosine that the features of one clip have on two machines: that of the canary clip
SHARES = schemas.SHARES
NEAREST = schemas.NEAREST


def explain(run: Run) -> None:
    clip = _asked(run)
    _measure(run, clip)
    motion, problem = _state(run, clip)
    if problem is None and motion is not None:
        explanation = _explained(run, clip, motion)
    else:
        stores.remove(explain_links.folder(run.root, clip["clip_id"]))
        explanation = Explanation(clip, motion, problem)
    explanation = replace(explanation, lawfulness=_lawfulness(run, clip, motion))
    with decoder_for(run) as decoder:
        page = explain_page.write(run, explanation, frames_by(run, decoder))
    _tell(explanation)
    print(f"page: {page}")


# --- what is known ---------------------------------------------------------------------------------------------------


def _asked(run: Run) -> Row:
    """The row of clips/ that `explain.clip` names. Raises UsageError."""
    clip_id = run.explain.clip
    if not clip_id:
        raise ConfigError("explain.clip: name the clip that is to be explained, --set explain.clip=ID.")
    if not tables.parts(join(run.root, "clips")):
        raise MissingTableError(f"root={run.root!r} has no table clips; run curate first.")
    row = one_clip.row_of(join(run.root, "clips"), clip_id)
    if row is None:
        close = one_clip.resembling(run.root, clip_id)
        hint = f" Did you mean {', '.join(close)}?" if close else " The ids are in clips/ and selection/."
        raise ConfigError(f"explain.clip={clip_id!r}: {join(run.root, 'clips')} has no clip of this id.{hint}")
    return row


def _state(run: Run, clip: Row) -> tuple[Row | None, Problem | None]:
    """The clip's row of motion/, with its mask, and why it has no influence, if so."""
    if clip["error"] is not None:
        return None, Problem("clips", clip["error"])
    clip_id, roots = clip["clip_id"], dict.fromkeys([run.root, shortlist.motion_root(run)])
    motion_rows = (one_clip.row_of(join(root, "motion", "clips"), clip_id, FeatureWorker.LOOKED_UP) for root in roots)
    motion = next((row for row in motion_rows if row is not None), None)
    if (
        motion is not None
        and motion["error"] is not None
        and (mask_of(run.ranking.mask, "clips") == "motion" or not featured(motion["error"]))
    ):
        return motion, Problem("motion/clips", motion["error"])
    feature = _feature_row(run, clip_id)
    if feature is None and run.attribution.shortlist is not None:
        decision = one_clip.row_of(join(run.root, "selection"), clip_id)
        if decision is not None:
            why = decision["reason"].removeprefix("not ranked: ").removeprefix("not on the shortlist, ")
            return motion, Problem("selection", f"not_shortlisted: {why}")
    for stage, job, row in (("motion", "estimate_motion", motion), ("features", "extract_features", feature)):
        if row is None or row["version"] != clip["version"]:
            raise MissingTableError(
                f"explain.clip={clip_id!r}: {stage}/clips/ has no row of this clip as it is now; run {job} and "
                "rank_clips first, or curate."
            )
        if row["error"] is not None and row is feature:
            return motion, Problem("features/clips", row["error"])
    return motion, None


def _lawfulness(run: Run, clip: Row, motion: Row | None) -> Lawfulness:
    """What lawfulness/ says of the clip, or why it says nothing."""
    row = one_clip.row_of(join(run.root, "lawfulness"), clip["clip_id"])
    if row is not None:
        return Lawfulness(row, lawfulness.sentence(row, run.ranking.unlawful))
    error = clip["error"] or (None if motion is None else motion["error"])
    now = "; it is measured now, and rank_clips holds it against the queries" if run.motion.of == "queries" else ""
    return Lawfulness(None, lawfulness.unknown(run, error) + (now if error is None else ""))


def _measure(run: Run, clip: Row) -> None:
    """The motion of the clip, where that of a sample was enough for the run."""
    if run.motion.of == "all" or clip["error"] is not None:
        return
    streaming.connect()
    run = pilots.with_pools(run, ["estimate_motion"])
    one = run.model_copy(update={"motion": run.motion.model_copy(update={"of": "all"})})
    among = tables.IdSet.of([pa.array([clip["clip_id"]], pa.string())])
    attribution.estimate_motion(one, "clips", attribution.Scope(run.root, run.root, among=among))


def _feature_row(run: Run, clip_id: str) -> Row | None:
    """The clip's row of features/ without its numbers."""
    table = one_clip.rows_of(join(run.root, "features", "clips"), [clip_id])
    rows = [] if table is None else table.select(["clip_id", "version", "error"]).to_pylist()
    return rows[0] if rows else None


class Ranked(NamedTuple):
    """Where the clip stands: columns of STANDING, and among how many clips; the queries' groups and their rows [Q, k],
    whitened where the ranking is; the clip's own unit row; the nearest clips and their cosines."""

    table: pa.Table
    among: int
    groups: list[str]
    queries: Array
    own: Array
    near: list[tuple[str, float]]


def _ranked(run: Run, clip_id: str) -> Ranked:
    """Raises MissingTableError where the ranking is not of the features that there are."""
    rule = run.ranking
    for name in ("clips", "queries"):
        tables.check(join(run.root, "features", name), fingerprints.features(run.of(name)))
    tables.check(join(run.root, "influence"), fingerprints.ranking(run))
    clips = under_mask(run.root, "clips", rule.mask)
    ids, groups, rows = query_rows(run, run.root, under_mask(run.root, "queries", rule.mask))
    population = shortlist.population(run, clips.clip_ids) or Population(len(clips.clip_ids))
    voted = min(share(rule.vote_fraction, population.count), len(clips.clip_ids))
    standing = one_clip.standing(run.root, clip_id, dict(zip(ids, groups, strict=True)), voted)
    if standing is None or standing[1] != len(clips.clip_ids) or standing[0].column("query_id").to_pylist() != ids:
        raise MissingTableError(
            f"explain.clip={clip_id!r}: {join(run.root, 'influence')} is not of the clips and queries that features/ "
            "has now; run rank_clips first."
        )
    cosines = one_clip.cosines_of(clips, clip_id, rows, rule.whiten, population.weights)
    own, near = clips.among([clip_id]).rows()[clip_id], one_clip.nearest(clips, cosines.to_clips, clip_id, NEAR)
    return Ranked(*standing, groups, cosines.queries, own, near)


# --- taking it apart -------------------------------------------------------------------------------------------------


def _explained(run: Run, clip: Row, motion: Row) -> Explanation:
    clip_id, folder = clip["clip_id"], explain_links.folder(run.root, clip["clip_id"])
    ranked = _ranked(run, clip_id)
    stores.remove(join(folder, "parts"))  # what a killed job left
    parts, undivided = _parts(run, clip_id, folder)
    divided = None if parts is None else decomposition.as_array(parts)
    shares = None if divided is None else _shares(divided[0], ranked)
    stores.remove(folder)  # an earlier page stays until all is known that this one says
    fingerprint = fingerprints.ranking(run)
    near = [{"clip_id": clip_id, "near_id": i, "cosine": cosine} for i, cosine in ranked.near]
    tables.replace(join(folder, "near"), pa.Table.from_pylist(near, schema=NEAREST), fingerprint)
    named = ranked.table.add_column(0, "clip_id", pa.array([clip_id] * ranked.table.num_rows, pa.string()))
    tables.replace(join(folder, "queries"), named, fingerprint)
    decisions = one_clip.rows_of(join(run.root, "selection"), [clip_id])
    explanation = Explanation(
        clip,
        motion,
        None,
        decisions=sorted(decisions.to_pylist() if decisions else [], key=lambda d: (d["group"] != "all", d["group"])),
        queries=sorted(ranked.table.to_pylist(), key=lambda q: (-q["influence"], q["query_id"])),
        ranked=ranked.among,
        motion_percentile=one_clip.percentile(shortlist.motion_root(run), "motion_mean", motion["motion_mean"]),
        near=ranked.near,
        undivided=undivided,
    )
    if divided is None or shares is None:
        return explanation
    _, settings, layers = divided
    tables.replace(join(folder, "shares"), _table(clip_id, shares, settings, layers, ranked), fingerprint)
    return explanation.split(run, shares, layers, ranked.groups)


def _parts(run: Run, clip_id: str, folder: str) -> tuple[pa.Table | None, str | None]:
    """The clip's feature in parts, or why there are none: computed by one actor, as its feature was."""
    if run.attribution.looks > 1:
        return None, f"its feature is the mean of {run.attribution.looks} looks (attribution.looks), and has no frames"
    streaming.connect()
    run = pilots.with_pools(run, ["extract_features"])
    pool = run.resources.extract_features.model_copy(update={"actors": 1, "batch": 1})
    alone = run.of("clips").model_copy(
        update={"resources": run.resources.model_copy(update={"extract_features": pool})}
    )
    resources.check(alone, ["extract_features"])
    rows = one_clip.rows_of(join(run.root, "motion", "clips"), [clip_id], FeatureWorker.LOOKED_UP)
    assert rows is not None, "its row has just been read"
    fingerprint, place = fingerprints.features(alone), join(folder, "parts")
    stage = Stage(
        title="explain",
        root=run.root,
        pool=pool,
        worker=partial(DecompositionWorker, alone, fingerprint),
        folders={"parts": place},
        fingerprints={"parts": fingerprint},
    )
    whole = scanning.lookup(rows, FeatureWorker.LOOKED_UP)
    streaming.stream(stage, [whole], whole.num_rows, progress.Progress(stage.title))
    parts = tables.read(place)
    stores.remove(place)
    if parts is None:
        raise RuntimeError(f"explain.clip={clip_id!r}: its actor left no rows; run the same command again.")
    problems = parts.column("error").drop_null().to_pylist()
    return (None, str(problems[0])) if problems else (parts, None)


def _shares(parts: Array, ranked: Ranked) -> Sums:
    """The parts' shares. UsageError where they do not add up to the feature and the influence of the tables."""
    cosine = decomposition.agreement(parts, ranked.own)
    if not cosine >= CLOSE:
        raise FingerprintError(
            f"explain.clip: the parts of this clip's feature have a cosine of {cosine:.6f} with the one in features/: "
            "they were computed on another kind of machine, or the video has changed. Explain it where features are "
            "extracted, or run curate again."
        )
    shares = decomposition.shares(parts, ranked.queries)
    off = np.abs(shares.sum((0, 1, 2)) - ranked.table.column("influence").to_numpy())
    allowed = np.sqrt(2 - 2 * CLOSE) * np.linalg.norm(ranked.queries, axis=1) + 1e-5
    if not (off <= allowed).all():
        raise MissingTableError(
            f"explain.clip: the shares differ from influence/ by up to {off.max():.2g}: it is not of these features; "
            "run rank_clips."
        )
    print(f"explain: the shares add up to the influence, within {off.max():.1g} (cosine of the features {cosine:.7f})")
    return shares


def _table(clip_id: str, shares: Sums, settings: list[int], layers: list[str], ranked: Ranked) -> pa.Table:
    queries = ranked.table.column("query_id").to_pylist()
    rows = [
        {"clip_id": clip_id, "query_id": q, "setting": s, "latent_frame": f, "layer": name, "share": shares[a, f, b, c]}
        for a, s in enumerate(settings)
        for f in range(shares.shape[1])
        for b, name in enumerate(layers)
        for c, q in enumerate(queries)
    ]
    return pa.Table.from_pylist(rows, schema=SHARES)


# --- words -----------------------------------------------------------------------------------------------------------


def _tell(facts: Explanation) -> None:
    clip_id = _printed(facts.clip["clip_id"])
    if facts.problem is not None:
        print(f"clip {clip_id} has no influence: {str(facts.problem).rstrip('.')}. {facts.problem.remedy}")
        if facts.lawfulness is not None:
            print(_printed(facts.lawfulness.words))
        return
    for d in facts.decisions[:1]:
        print(f"clip {clip_id}: {d['decision']}, {d['reason']}")
        if d.get("rank_low") is not None:
            print(f"with other draws like these its rank would lie between {d['rank_low']:,} and {d['rank_high']:,}")
    if facts.motion is not None and facts.motion_percentile is not None:
        print(f"mean motion {facts.motion['motion_mean']:.3g} pixels a frame, above {facts.motion_percentile:.0f} %")
    if facts.lawfulness is not None:
        print(_printed(facts.lawfulness.words))
    shown = facts.queries if len(facts.queries) <= 10 else [*facts.queries[:5], *facts.queries[-5:]]
    print(f"\n{'query':<20} {'group':<14} {'influence':>10} {'rank':>9} {'percentile':>11}  votes")
    for q in shown:
        named = f"{_printed(q['query_id']):<20} {_printed(q['group']):<14}"
        line = f"{named} {q['influence']:>+10.4f} {q['rank']:>9,} {q['percentile']:>11.1f}"
        print(f"{line}  {'yes' if q['votes'] else 'no'}")
    for title, parts in (("latent frame", facts.frames), ("layer", facts.layers)):
        if parts:
            print(f"\n{title:<24} {'share of the mean influence':>30}")
            for part in parts:
                print(f"{f'{part.name}  {part.note}':<24} {part.share:>+30.5f}")
            print(f"{'sum':<24} {sum(part.share for part in parts):>+30.5f}")
    if facts.undivided:
        print(f"\nits frames cannot be told apart now: {facts.undivided}")
    print("\nnearest by feature: " + ", ".join(f"{_printed(i)} {cosine:+.3f}" for i, cosine in facts.near[:5]))


def _printed(name: str) -> str:
    """A name without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
