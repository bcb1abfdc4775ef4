"""The page of a run: one self-contained ``report/index.html`` for people, one ``summary.json`` for programs.

``write`` reads a run's tables (DESIGN.md) and needs no network, no GPU and no Ray. Tables that do not exist yet, from
ranking on, leave a line that says so. Everything that comes from data is escaped; what is missing is an en dash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from pipeline import config, tables
from pipeline.config.caveats import advice, caveats
from pipeline.evaluation import comparison
from pipeline.pages import charts, explain_links, funnel, gallery, lawfulness, sections
from pipeline.pages.gallery import FramesOf, VideoOf
from pipeline.ranking import choosing, controls
from pipeline.ranking.likeness import likenesses
from pipeline.ranking.mask_overlap import Alike, mask_overlaps
from pipeline.ranking.rules import strata
from pipeline.storage import stores
from pipeline.tables import figures, throughput

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("torch", "diffusers", "transformers", "torchvision", "ray", "av", "numpy", "pyarrow", "pillow")
SUMMARY = "summary.json"
FINGERPRINTED = ("motion/clips", "features/clips", "shortlist/features/clips", "selection")
DASH = "\N{EN DASH}"
REASONS = {
    "pending": "not processed yet",
    "outdated": "of another version of the video",
    "no_motion": "without motion",
    "decode": "undecodable",
    "too_short": "too short",
    "not_shortlisted": "not on the shortlist",
    "not_finite": "not finite",
    "read": "unreadable",
    "crashed": "crashed",
    "memory": "out of memory",
    "crashed again": "crashed twice",
    "memory again": "out of memory twice",
    "timeout": "timed out",
    "refused": "refused",
}


def write(run: config.Run, frames_of: FramesOf, video_of: VideoOf = lambda uri: None) -> dict[str, Any]:
    """Write ``report/index.html`` and ``summary.json`` under the run's root and return the summary.

    ``frames_of`` takes a row of ``clips/`` or ``queries/`` and gives its frames, uint8 [F, H, W, 3], in the geometry
    of attribution (``run.geometry``), so that the mask is of these very frames; ``video_of`` does so for a generated
    video's uri. Either gives None for a video that cannot be decoded.

    The summary (its keys are stable): ``root``, ``model``, ``written`` (UTC), ``headline``; ``caveats``:
    sentences on what these results do not mean; ``funnel``: for "clips" and
    "queries" a list of {name, entered, dropped: {code: n}, left, still, adds_up}, with entered = left + sum(dropped);
    ``decisions``: selected, neutral, harmful and not_ranked of the clips with features, for group "all"; ``problems``:
    sentences on rows that contradict one another (empty: everything adds up); ``shortlist``: what `choosing.quality`
    found on it, or null; ``selection``: group -> source ->
    decision -> n; ``strata``: column -> value -> {corpus, before, selected}, clips as `rules.strata` has them;
    ``overlap``: group -> {selected, ranked, chance, chance_sd, magnitude: {share, spearman},
    and the same of mask_overlap, colours and movement, as far as they are known}; ``looks``: a warning where looks
    explain more of the ranking than motion does, else empty; ``lawfulness``: the counts of `lawfulness.measured`, or
    null; ``evaluation``: the records of `comparison.comparison`;
    ``held_out``: whether videos were held out; ``errors``: "clips" and "queries" -> stage -> code -> n;
    ``fingerprint``: table -> fingerprint; ``versions``; ``page``: a digest of what the page says and shows, null where
    it lacks a picture. Unknown: null.

    A page that would say and show what is there already is left as it is, and its summary is returned.
    """
    contents = _contents(run)
    numbers, masks = contents.numbers, contents.masks
    without_pictures = gallery.Studio(run, None, masks, contents.pictures)
    words = _rendered(contents, {**numbers, "written": ""}, without_pictures, video_of)
    digest = _digest(words, masks, run.report.pictures)
    before = _summary(run.root)
    if before.get("page") == digest and stores.exists(_place(run.root)):
        return before
    studio = gallery.Studio(run, frames_of, masks, contents.pictures)
    page = _rendered(contents, numbers, studio, video_of)
    numbers["page"] = None if studio.missing else digest  # a page that lacks a picture is made anew
    stores.write_bytes(_place(run.root), page.encode())
    stores.write_bytes(stores.join(run.root, SUMMARY), json.dumps(numbers, indent=2, allow_nan=False).encode())
    return numbers


@dataclass(frozen=True)
class _Contents:
    """What a page shows of a run. Its pictures are not here: a studio takes them while the page is rendered."""

    run: config.Run
    plan: gallery.Plan
    funnels: Mapping[str, funnel.Funnel]
    groups: Mapping[str, str]  # of queries, by id
    selected: figures.Selected | None
    moves: lawfulness.Measured | None
    clips: Mapping[str, dict[str, Any]]  # rows of clips/, by id
    decisions: Mapping[tuple[str, str], str]  # by group and clip_id
    masks: Mapping[gallery.Key, npt.NDArray[np.uint8]]
    arms: Sequence[str]  # that have generated videos
    generated: Sequence[tuple[str, Mapping[str, str]]]  # a caption's clip_id, and its videos' uris by arm
    pictures: int  # how many the page will hold
    numbers: dict[str, Any]  # the summary


def _contents(run: config.Run) -> _Contents:
    """Read the tables of a run."""
    root, plan = run.root, gallery.plan(run.root, run.report.captions)
    funnels = {kind: funnel.funnel(run, kind) for kind in ("clips", "queries")}
    selected = figures.selected(root, funnels["clips"].clips)
    evaluation = tables.read(stores.join(root, "evaluation"))
    groups = figures.query_groups(root)
    moves = lawfulness.measured(run)
    unlawful_ids = [] if moves is None else moves.ids
    alike, masks = mask_overlaps(root, groups, plan.keys() | {("clips", clip_id) for clip_id in unlawful_ids})
    numbers = _numbers(run, funnels, selected, evaluation, {"mask_overlap": alike, **likenesses(root, groups)}, moves)
    arms, generated = comparison.videos(evaluation) if evaluation is not None else ([], [])
    clips = plan.clips | gallery.clip_rows(root, unlawful_ids, run.report.captions)
    return _Contents(
        run=run,
        plan=plan,
        funnels=funnels,
        groups=groups,
        selected=selected,
        moves=moves,
        clips=clips,
        decisions=gallery.decisions(root, frozenset(clips)),
        masks=masks,
        arms=arms,
        generated=generated,
        pictures=gallery.count(plan, evaluation) + len(unlawful_ids),
        numbers=numbers,
    )


def _rendered(contents: _Contents, summary: Mapping[str, Any], studio: gallery.Studio, video_of: VideoOf) -> str:
    """The page, with the studio's pictures. They are taken in the order of these lines, until its bytes are spent."""
    run, plan, numbers, moves = contents.run, contents.plan, contents.numbers, contents.moves
    clips, decisions = contents.clips, contents.decisions
    ranked = _ranked(numbers)
    cards = gallery.cards(plan, studio, decisions, ranked)
    lawless = [] if moves is None else lawfulness.spoiled(moves.lawless, clips, decisions, studio)
    flawed = [] if moves is None else lawfulness.spoiled(moves.flawed, clips, decisions, studio)
    generated = gallery.generated(contents.generated, contents.arms, run.root, studio, video_of)
    return (
        environment()
        .get_template("report.html")
        .render(
            run=run,
            summary=summary,
            advice=advice(run),
            failures={kind: f.failures for kind, f in contents.funnels.items()},
            cards=cards,
            ranked=ranked,
            plan=plan,
            studio=studio,
            lawless=lawless,
            flawed=flawed,
            explained=explain_links.links(run.root, sorted(clips)),
            groups=sorted(set(contents.groups.values())),
            queries=len(contents.groups),
            arms=contents.arms,
            generated=generated,
            histogram=None if contents.selected is None else sections.histogram(contents.selected),
            verdicts=sections.verdicts(numbers["overlap"].get("all")),
            sources=sections.sources(numbers["selection"]),
            matrix=sections.matrix(numbers["selection"]),
            metrics=sections.metrics(numbers["evaluation"]),
            preference=sections.preference(numbers["evaluation"]),
            shortlist=choosing.sentences(numbers["shortlist"]),
            configuration=_configuration(run),
            reasons=REASONS,
        )
    )


def _place(root: str) -> str:
    return stores.join(root, "report", "index.html")


def _summary(root: str) -> dict[str, Any]:
    """What was last written of this run; empty where nothing was, or where it cannot be read."""
    place = stores.join(root, SUMMARY)
    try:
        summary = json.loads(stores.read_bytes(place)) if stores.exists(place) else {}
    except ValueError:  # a file that somebody edited is written anew
        return {}
    return summary if isinstance(summary, dict) else {}


def _digest(words: str, masks: Mapping[gallery.Key, npt.NDArray[np.uint8]], pictures: bool) -> str:
    """What a page says and shows, its pictures by the masks over them: clips themselves do not change under their
    ids."""
    state = hashlib.blake2b(f"{pictures} {words}".encode(), digest_size=16)
    for key in sorted(masks):
        state.update(f"{key} {masks[key].shape}".encode())
        state.update(masks[key].tobytes())
    return state.hexdigest()


# --- numbers ---------------------------------------------------------------------------------------------------------


def _numbers(
    run: config.Run,
    funnels: Mapping[str, funnel.Funnel],
    selected: figures.Selected | None,
    evaluation: pa.Table | None,
    alike: Mapping[str, Alike],
    moves: lawfulness.Measured | None,
) -> dict[str, Any]:
    root = run.root
    decisions, problems = figures.decided(selected, funnels["clips"].remaining)
    named = [f"{kind}, {p}" for kind, f in funnels.items() for p in f.problems]
    named += [] if evaluation is None else comparison.mixtures(evaluation)
    overlap = {} if selected is None else controls.overlaps(selected, alike, run.motion.of == "queries")
    numbers: dict[str, Any] = {
        "root": root,
        "model": run.model.id,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "caveats": caveats(run),
        "funnel": {kind: [_stage(s) for s in f.stages] for kind, f in funnels.items()},
        "decisions": decisions,
        "problems": named + problems,
        "shortlist": choosing.quality(run),
        "selection": {} if selected is None else figures.by_source(selected),
        "strata": strata.strata(run),
        "overlap": overlap,
        "looks": sections.looks(overlap),
        "lawfulness": None if moves is None else moves.counts,
        "evaluation": [] if evaluation is None else comparison.comparison(evaluation),
        "held_out": run.evaluate.videos is not None,
        "errors": {kind: {s.name: s.dropped for s in f.stages if s.dropped} for kind, f in funnels.items()},
        "throughput": throughput.by_stage(root),
        "fingerprint": {name: _fingerprint(root, name) for name in FINGERPRINTED},
        "versions": _versions(),
    }
    summary: dict[str, Any] = _finite(
        {"headline": sections.headline(numbers, run.finetune.arm, figures.query_groups(root)), **numbers}
    )
    return summary


def _ranked(numbers: Mapping[str, Any]) -> int:
    """How many clips have a place in the ranking."""
    return sum((numbers["decisions"] or {}).get(decision, 0) for decision in ("selected", "neutral", "harmful"))


def _stage(stage: funnel.Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "entered": stage.entered,
        "dropped": stage.dropped,
        "left": stage.left,
        "still": stage.still,
        "adds_up": stage.adds_up,
    }


def _finite(value: Any) -> Any:
    """The same value with None for every number that is not finite."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fingerprint(root: str, name: str) -> dict[str, Any]:
    fingerprint: dict[str, Any] = tables.metadata(stores.join(root, name)).get("fingerprint", {})
    return fingerprint


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _configuration(run: config.Run) -> str:
    path = stores.join(run.root, "config.yaml")
    written = stores.read_bytes(path).decode("utf-8", "replace") if stores.exists(path) else None
    if written is not None and run.report.captions:
        return written
    settings = run.model_dump(mode="json") if written is None else yaml.safe_load(written)
    if not run.report.captions:
        for prompt in settings["queries"]["prompts"]:
            prompt["prompt"] = DASH
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


# --- the page --------------------------------------------------------------------------------------------------------


def environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"count": _count, "percent": _percent, "signed": _signed, "number": _number}
    env.filters |= {"plain_uri": _plain_uri, "signed_percent": _signed_percent}
    env.globals |= {"bar": charts.bar, "interval": charts.interval, "direction": comparison.direction}
    env.globals |= {"signed_bar": charts.signed, "explain_option": explain_links.option}
    env.globals |= {"influence_words": influence_words, "file_name": gallery.file_name}
    return env


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _count(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None and _known(value) else DASH


def influence_words(run: config.Run) -> str:
    """What an influence is, under this run's ranking."""
    if run.ranking.whiten is None:
        return "Influence is the cosine of two projected gradients."
    return (
        "Influence is the product of two projected gradients after whitening over the corpus. It has no unit and is no "
        "cosine: what it gives is an order."
    )


def _percent(value: float | None, digits: int = 1) -> str:
    return charts.minus(f"{100 * value:.{digits}f} %") if value is not None and _known(value) else DASH


def _signed_percent(value: float | None) -> str:
    return charts.minus(f"{100 * value:+.1f} %") if value is not None and _known(value) else DASH


def _signed(value: float | None, digits: int = 3) -> str:
    return charts.minus(f"{value:+.{digits}f}") if value is not None and _known(value) else DASH


def _number(value: float | None, digits: int = 4) -> str:
    return charts.minus(f"{value:.{digits}g}") if value is not None and _known(value) else DASH


def _plain_uri(uri: str | None) -> str:
    """A uri without its query: presigned addresses carry a signature that no page should repeat."""
    return (uri or DASH).split("?")[0] if "://" in (uri or "") else uri or DASH
