"""The page of a run: its numbers add up, its text is escaped, its pictures are aligned, and it needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import config, tables
from pipeline.config import operations
from pipeline.evaluation import comparison
from pipeline.pages import charts, funnel, gallery, pictures, report
from pipeline.ranking import controls
from pipeline.ranking.mask_overlap import mask_overlaps
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.tables import schemas

EVIL = """<script>alert(1)</script>"&'{{ 7 * 7 }}"""
FRAMES, SIZE, CLIPS = 9, 32, 120
GROUPS = ("bounce", "roll", "spin")
FINGERPRINT = {"model": "abc", "geometry": [FRAMES, 8.0, SIZE, SIZE]}
Row = dict[str, Any]


def _clip(clip_id: str, source: str, caption: str, error: str | None = None) -> Row:
    fields = {"fps": 8.0, "num_frames": FRAMES, "height": SIZE, "width": SIZE, "start_frame": 0, "cuts": []}
    fields |= {"uri": f"{source}/{clip_id}.mp4", "version": "1", "source": source}
    return {"clip_id": clip_id, "caption": caption, "error": error, **fields}


def _moved(row: Row, scene: world.Scene, error: str | None) -> Row:
    amount = np.linalg.norm(world.flow(scene, SIZE, SIZE), axis=-1)
    amount = np.concatenate([amount, amount[-1:]])
    latent = np.stack([amount[0], amount[1:5].mean(0), amount[5:].mean(0)]).reshape(3, 8, 4, 8, 4).mean((2, 4))
    mask = np.rint(255 * (latent - latent.min()) / (np.ptp(latent) + 1e-6)).astype(np.uint8)
    fields = {"mask": None if error else mask.tobytes(), "mask_shape": None if error else list(mask.shape)}
    return {
        **row,
        **fields,
        "motion_mean": float(amount.mean()),
        "motion_p95": 1.0,
        "camera_share": 0.1,
        "error": error,
    }


def _scenes() -> dict[str, world.Scene]:
    scenes = {f"clip-{s.name}": s for s in world.corpus(3, CLIPS)}
    for group in GROUPS:
        scenes |= {f"query-{group}-{i}": world.scene(3, f"{group}-{i}", "real", group) for i in range(6)}
    return scenes


SCENES = _scenes()


def _features(rows: list[Row]) -> pa.Table:
    records = [{**{k: r[k] for k in ("clip_id", "version", "error")}, "num_frames": FRAMES} for r in rows]
    return pa.Table.from_pylist(records, schema=schemas.features_schema(1, 8))


def _index_and_motion(root: str, kind: str, schema: pa.Schema, rows: list[Row]) -> list[Row]:
    tables.append(stores.join(root, kind), pa.Table.from_pylist(rows, schema=schema), FINGERPRINT)
    moved = []
    for n, row in enumerate(r for r in rows if r["error"] is None):
        scene = SCENES[row["clip_id"]]
        broken = "decode: frame 3 is damaged." if kind == "clips" and n % 40 == 7 else None
        still = "no_motion: nothing moves." if scene.kind == "still" else None
        moved.append(_moved(row, scene, broken or still))
    table = pa.Table.from_pylist(moved, schema=schemas.motion_schema(schema))
    tables.append(stores.join(root, "motion", kind), table, FINGERPRINT)
    return [m for m in moved if m["error"] is None]


def _selection(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    decisions = []
    for group in ("all", *GROUPS):
        influence = np.sort(rng.normal(0.01, 0.06, len(rows)))[::-1]
        order = rng.permutation(len(rows))
        for rank, (n, value) in enumerate(zip(order, influence, strict=True)):
            tenth = len(rows) // 10
            decision = "selected" if rank < tenth else "harmful" if rank >= len(rows) - tenth else "neutral"
            fields = {"votes": 1, "rank": rank, "weight": 1.0, "reason": "", "decision": decision}
            decisions.append({"clip_id": rows[n]["clip_id"], "group": group, "mean_influence": float(value), **fields})
        decisions.append(
            {"clip_id": "clip-unranked", "group": group, "decision": "neutral", "reason": "not ranked: still"}
        )
    return decisions


def _ranked(root: str, rows: list[Row], queries: list[str]) -> None:
    rng = np.random.default_rng(0)
    chosen = pa.Table.from_pylist(_selection(rows, rng), schema=schemas.SELECTION)
    tables.replace(stores.join(root, "selection"), chosen, FINGERPRINT)
    near = []
    for query in queries:
        order = rng.permutation(len(rows))[:16]
        for i, n in enumerate(order):
            sign, rank = ("positive", i) if i < 8 else ("negative", i - 8)
            value = (0.4 - 0.02 * rank) * (1 if sign == "positive" else -1)
            clip_id = rows[n]["clip_id"]
            near.append({"query_id": query, "clip_id": clip_id, "rank": rank, "influence": value, "sign": sign})
    table = pa.Table.from_pylist(near, schema=schemas.NEIGHBORS)
    tables.replace(stores.join(root, "neighbors"), table, FINGERPRINT, query_ids=queries)


def _evaluated(root: str, queries: list[str]) -> None:
    rng, rows = np.random.default_rng(1), []
    effect = {"base": 0.0, "random": 0.002, "selected": -0.02}
    for arm, shift in effect.items():
        for n in range(30):
            value = 0.5 + 0.1 * np.sin(n) + shift + rng.normal(0, 0.004)
            held_out = {"arm": arm, "clip_id": f"held-{n}", "uri": f"held/{n}.mp4", "seed": 0, "version": "v"}
            rows.append({**held_out, "metric": "masked_loss", "value": value})
            rows.append({**held_out, "metric": "plain_loss", "value": 0.4 * value + 0.2})
        for query in queries[:4]:
            for metric in ("vbench_dynamic_degree (not comparable)", "temporal_flickering", EVIL):
                value = float("nan") if metric == EVIL else rng.uniform()
                sample = {"arm": arm, "clip_id": query, "uri": f"evaluation/{arm}/{query}", "seed": 0, "version": "v"}
                rows.append({**sample, "metric": metric, "value": value})
    tables.append(stores.join(root, "evaluation"), pa.Table.from_pylist(rows, schema=schemas.EVALUATION), FINGERPRINT)


def build(root: str, until: str = "evaluation") -> config.Run:
    """A small run: real pictures and masks, invented influence."""
    captions = {i: EVIL if i.endswith("0") else s.caption for i, s in SCENES.items()}
    clips = [_clip(i, f"shelf {s.kind}", captions[i]) for i, s in SCENES.items() if i.startswith("clip")]
    clips += [_clip("clip-x", EVIL, "", f"read: {EVIL} is gone.")]
    clips += [_clip(f"clip-short-{n}", "shelf real", "", "too_short: 3 frames, 9 are needed.") for n in range(25)]
    queries = [{**_clip(i, "q", captions[i]), "group": i.split("-")[1]} for i in SCENES if i.startswith("query")]
    evaluate = {"videos": "held", "arms": ["base", "random", "selected"]}
    data = {"videos": "s3://bucket/clips", "frames": FRAMES, "fps": 8, "height": SIZE, "width": SIZE}
    values = {"root": root, "data": data, "queries": {"videos": "q"}, "model": {"id": "demo"}, "evaluate": evaluate}
    values["finetune"] = {"arm": "selected"}
    moved = _index_and_motion(root, "clips", schemas.CLIPS, clips)
    asked = _index_and_motion(root, "queries", schemas.QUERIES, queries)
    if until != "motion":
        bad = "not_finite: the loss is not finite."
        featured = [{**r, "error": bad if n == 5 else None} for n, r in enumerate(moved)]
        tables.append(stores.join(root, "features", "clips"), _features(featured[:-2]), FINGERPRINT)  # two are pending
        tables.append(stores.join(root, "features", "queries"), _features(asked), FINGERPRINT)
        if until == "evaluation":
            ids = [r["clip_id"] for r in asked]
            _ranked(root, [r for r in featured[:-2] if r["error"] is None], ids)
            _evaluated(root, ids)
    return config.parse(values, "test")


def frames_of(row: Row) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    return None if row["clip_id"].endswith("7") else world.render(SCENES[row["clip_id"]], SIZE, SIZE)


def video_of(uri: str) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    return world.render(SCENES[uri.split("/")[-1]], SIZE, SIZE)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    root = tmp_path_factory.mktemp("run")
    summary = report.write(build(str(root)), frames_of, video_of)
    return summary, (root / "report" / "index.html").read_text(), root


def test_a_page_that_would_say_the_same_is_left_as_it_is(tmp_path: Path) -> None:
    run = build(str(tmp_path))
    asked: list[str] = []

    def frames(row: Row) -> np.ndarray[Any, np.dtype[np.uint8]]:
        asked.append(row["clip_id"])
        return world.render(SCENES[row["clip_id"]], SIZE, SIZE)

    first = report.write(run, frames, video_of)
    page = tmp_path / "report" / "index.html"
    before, pictures = page.stat().st_mtime_ns, len(asked)
    assert pictures
    assert report.write(run, frames, video_of) == first
    assert page.stat().st_mtime_ns == before
    assert len(asked) == pictures, "pictures were taken of a page that stays"
    page.unlink()
    report.write(run, frames, video_of)
    assert page.exists()
    without = run.model_copy(update={"report": run.report.model_copy(update={"captions": False})})
    before = page.stat().st_mtime_ns
    report.write(without, frames, video_of)
    assert page.stat().st_mtime_ns > before, "it says something else"


def test_a_page_that_lacks_a_picture_is_made_anew(written: tuple[dict[str, Any], str, Path], tmp_path: Path) -> None:
    summary, _, _ = written
    assert summary["page"] is None, "a tenth of its clips cannot be decoded"
    run = build(str(tmp_path))
    report.write(run, lambda row: None, video_of)
    page = tmp_path / "report" / "index.html"
    lacking = len(page.read_bytes())
    report.write(run, frames_of, video_of)
    assert len(page.read_bytes()) > lacking


def text_of(page: str) -> str:
    """The page without styles, pictures and tags."""
    page = re.sub(r"<style>.*?</style>", " ", page, flags=re.S)
    return re.sub(r"<[^>]*>", " ", re.sub(r'"data:[^"]*"', '""', page))


def test_every_clip_is_accounted_for_at_every_stage(written: tuple[dict[str, Any], str, Path]) -> None:
    summary, page, _ = written
    stages = summary["funnel"]["clips"]
    assert [s["name"] for s in stages] == ["index", "motion", "features"]
    assert stages[0]["entered"] == CLIPS + 26
    assert stages[0]["dropped"] == {"read": 1, "too_short": 25}
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        assert stage["entered"] == stage["left"] + sum(stage["dropped"].values())
        assert following is None or following["entered"] == stage["left"]
    assert stages[2]["dropped"] == {"not_finite": 1, "pending": 2}
    assert stages[2]["left"] == sum(summary["decisions"].values())
    assert summary["problems"] == []
    assert "do not add up" not in page


def test_numbers_that_do_not_add_up_are_said_so(tmp_path: Path) -> None:
    run = build(str(tmp_path))
    stray = {**_clip("stray", "shelf", ""), "error": None}
    tables.append(stores.join(run.root, "features", "clips"), _features([stray]), FINGERPRINT)
    summary = report.write(run, frames_of, video_of)
    assert len(summary["problems"]) == 1
    assert "stray" in summary["problems"][0]
    assert "do not add up" in (tmp_path / "report" / "index.html").read_text()


def test_a_still_clip_with_an_unmasked_feature_stays_in_and_an_outdated_row_does_not(tmp_path: Path) -> None:
    root = str(tmp_path)
    rows = [_clip(i, "s", "") for i in ("a", "b", "c")]
    tables.append(stores.join(root, "clips"), pa.Table.from_pylist(rows, schema=schemas.CLIPS), {})
    moved = [{**rows[0], "error": "no_motion: still."}, rows[1], {**rows[2], "version": "old"}]
    schema = schemas.motion_schema(schemas.CLIPS)
    tables.append(stores.join(root, "motion", "clips"), pa.Table.from_pylist(moved, schema=schema), {})
    tables.append(stores.join(root, "features", "clips"), _features(rows[:2]), {})
    clip_funnel = funnel.funnel(config.load("demo", {"root": root, "motion.of": "all"}))
    assert [(s.entered, s.left, s.still) for s in clip_funnel.stages] == [(3, 3, 0), (3, 2, 1), (2, 2, 0)]
    assert clip_funnel.stages[1].dropped == {"outdated": 1}
    assert clip_funnel.problems == []


def test_text_from_data_is_escaped(written: tuple[dict[str, Any], str, Path]) -> None:
    _, page, _ = written
    assert "<script" not in page, "a caption became markup"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page, "the caption is not shown"
    assert "{{ 7 * 7 }}" in page, "a caption was taken for a template"
    assert not re.search(r'alt="[^"]*<', page)


def test_the_page_needs_nothing_else_and_is_small(written: tuple[dict[str, Any], str, Path]) -> None:
    _, page, _ = written
    loaded = re.findall(r'(?:src|href|xlink:href|action|srcset)="([^"]*)"|url\(([^)]*)\)|@import (\S+)', page)
    assert all(any(a.startswith(("data:", "#")) for a in addresses if a) for addresses in loaded), loaded[:3]
    assert "http://" not in page
    assert "https://" not in page
    assert len(page) < 10_000_000


def test_nothing_is_called_nan(written: tuple[dict[str, Any], str, Path]) -> None:
    summary, page, root = written
    assert not re.search(r"\b(nan|NaN|inf|None|undefined)\b", text_of(page))  # "none" is a word of the recipe
    assert json.loads((root / "summary.json").read_text()) == summary
    nothing = [r for r in summary["evaluation"] if r["metric"] == EVIL]
    assert all(r["mean"] is None and r["n"] == 0 and r["missing"] == 4 for r in nothing)


class _Balance(HTMLParser):
    VOID = frozenset({"img", "br", "meta", "link", "input", "rect", "line", "circle", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.unnamed = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.unnamed += tag == "img" and "alt" not in dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_markup_is_balanced_and_every_picture_is_named(written: tuple[dict[str, Any], str, Path]) -> None:
    parser = _Balance()
    parser.feed(written[1])
    assert parser.open == []
    assert parser.unnamed == 0


@pytest.mark.parametrize("until", ["motion", "features"])
def test_missing_tables_are_one_line_each(tmp_path: Path, until: str) -> None:
    summary = report.write(build(str(tmp_path), until), frames_of)
    text = text_of((tmp_path / "report" / "index.html").read_text())
    assert "not ranked yet" in text
    assert "Nothing is evaluated yet" in text
    assert summary["decisions"] == {}
    assert summary["overlap"] == {}
    assert "nothing is ranked yet" in summary["headline"]


def test_an_empty_root_gives_a_page_and_nothing_held_out_is_said(tmp_path: Path) -> None:
    run = build(str(tmp_path / "other"), "motion")
    run = run.model_copy(update={"root": str(tmp_path / "empty"), "evaluate": config.Evaluate.model_validate({})})
    report.write(run, frames_of)
    text = text_of((tmp_path / "empty" / "report" / "index.html").read_text())
    assert "No clips are indexed yet" in text
    assert "Nothing was held out" in text


def test_what_the_results_do_not_mean_is_said_on_the_page(tmp_path: Path) -> None:
    run = build(str(tmp_path), "motion")
    model = run.model.model_copy(update={"id": str(config.PACKAGE / "weights/wan-demo")})
    sampled = run.queries.model_copy(update={"videos": None, "sample": 7})
    summary = report.write(run.model_copy(update={"model": model, "queries": sampled}), frames_of)
    text = html.unescape(text_of((tmp_path / "report" / "index.html").read_text()))
    assert len(summary["caveats"]) == 3, "provisional queries, the toy model, 32 pixels"
    for sentence in summary["caveats"]:
        assert sentence in text
    assert "provisional: clips of the data" in text


def test_frames_are_laid_under_the_latent_frame_that_folds_them() -> None:
    assert pictures.latent_frames(9, 3) == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert pictures.latent_frames(5, 5) == [0, 1, 2, 3, 4]
    assert pictures.latent_frames(81, 21)[-5:] == [19, 20, 20, 20, 20]
    assert pictures.latent_frames(4, 1) == [0, 0, 0, 0]


def _open(uri: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_the_mask_strip_runs_with_the_frames() -> None:
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8) * 20
    mask = np.zeros((3, 8, 8), np.uint8)
    mask[2, :, :4] = 255  # moves in the last latent frame, on the left
    picture = pictures.picture(frames, (128, 128), 50_000, 1.0, mask)
    assert (picture.count, picture.width, picture.height, picture.pixelated) == (9, 128, 128, True)
    strip, over = _open(picture.strip), _open(picture.mask or "")
    assert strip.shape == (32, 9 * 32, 3)
    assert over.shape == (8, 9 * 8, 4)
    assert [int(strip[0, 32 * i, 0]) for i in range(9)] == [20 * i for i in range(9)]
    shown = (over[..., 3] > 0).reshape(8, 9, 8).transpose(1, 0, 2)
    assert [bool(s.any()) for s in shown] == [False] * 5 + [True] * 4
    assert shown[8, :, :4].all()
    assert not shown[8, :, 4:].any()
    few = pictures.picture(frames, (128, 128), 50_000, 1.0, mask, most=3)  # frames 0, 4, 8
    assert [bool(s.any()) for s in (_open(few.mask or "")[..., 3] > 0).reshape(8, 3, 8).transpose(1, 0, 2)] == [0, 0, 1]


def test_a_picture_keeps_to_its_limit() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (81, 240, 416, 3), np.uint8)
    picture = pictures.picture(frames, (256, 224), 60_000, 5.0)
    assert len(base64.b64decode(picture.strip.split(",")[1])) <= 60_000
    assert (picture.width, picture.height, picture.pixelated) == (256, 148, False)
    with pytest.raises(ValueError, match="float64"):
        pictures.picture(frames[:1].astype(float), (64, 64), 1000, 1.0)


def test_every_group_is_shown_before_a_second_of_any() -> None:
    queries = [{"clip_id": f"{g}{i}", "group": g} for g in "abcde" for i in range(4)]
    shown = gallery.choose(queries, 7)
    assert [q["clip_id"] for q in shown] == ["a0", "a1", "b0", "b1", "c0", "d0", "e0"]


def test_spearman_and_overlap() -> None:
    a = np.array([1.0, 2.0, 2.0, 4.0])
    assert controls.spearman(a, a**3) == pytest.approx(1.0)
    assert controls.spearman(a, -a) == pytest.approx(-1.0)
    assert controls.spearman(a, np.ones(4)) is None
    assert controls.spearman(a, np.full(4, np.nan)) is None
    chosen = np.array([True, True, False, False])
    assert controls.compare(a, np.array([9.0, 1.0, 8.0, np.nan]), chosen)["share"] == 0.5
    assert controls.compare(a, np.full(4, np.nan), chosen)["share"] is None


def test_mask_overlap_is_the_mean_cosine_with_a_groups_queries(tmp_path: Path) -> None:
    def put(kind: str, masks: dict[str, list[int]], schema: pa.Schema) -> None:
        rows = [{**_clip(i, "s", ""), "mask": bytes(m), "mask_shape": [1, 1, len(m)]} for i, m in masks.items()]
        table = pa.Table.from_pylist(rows, schema=schemas.motion_schema(schema))
        tables.append(stores.join(str(tmp_path), "motion", kind), table, {})

    put("queries", {"p": [255, 0], "q": [0, 255]}, schemas.QUERIES)
    put("clips", {"a": [100, 0], "b": [50, 50], "other": [1, 2, 3]}, schemas.CLIPS)
    overlaps, shown_masks = mask_overlaps(str(tmp_path), {"p": "x", "q": "y"}, frozenset({("clips", "b")}))
    by_group = {
        g: dict(zip(overlaps.clip_ids.to_pylist(), v.tolist(), strict=True)) for g, v in overlaps.groups.items()
    }
    assert np.isnan(by_group["all"].pop("other"))
    assert np.isnan(by_group["x"].pop("other"))
    assert by_group["all"] == pytest.approx({"a": 0.5, "b": 0.5**0.5})
    assert by_group["x"] == pytest.approx({"a": 1, "b": 0.5**0.5})
    assert list(shown_masks) == [("clips", "b")]
    assert shown_masks["clips", "b"].shape == (1, 1, 2)


def test_differences_to_base_are_paired() -> None:
    lines = [("base", "a", 1.0), ("base", "b", 10.0)]
    lines += [("motive", "a", 1.5), ("motive", "b", 10.5), ("motive", "c", 99.0)]
    rows = [{"arm": a, "clip_id": c, "seed": 0, "metric": "plain_loss", "value": v} for a, c, v in lines]
    base, motive = comparison.comparison(pa.Table.from_pylist(rows, schema=schemas.EVALUATION))
    assert base["difference"] is None
    assert (base["mean"], base["n"]) == (5.5, 2)
    assert (motive["pairs"], motive["n"], motive["difference"]) == (2, 3, 0.5)
    assert motive["difference_standard_error"] == 0
    assert motive["relative"] == pytest.approx(0.5 / 5.5)


def test_a_card_says_the_clips_place_on_this_query_the_groups_decision_and_the_file(
    written: tuple[dict[str, Any], str, Path],
) -> None:
    summary, page, root = written
    ranked = sum(summary["decisions"][decision] for decision in ("selected", "neutral", "harmful"))
    neighbors = tables.read(str(root / "neighbors"))
    assert neighbors is not None
    assert f'>no. 1</b> <span class="soft">of {ranked}</span>' in page
    assert f'>no. {ranked}</b> <span class="soft">of {ranked}</span>' in page, "the lowest is the last"
    assert re.search(rf'<span class="tag \w+">{GROUPS[0]}: (selected|neutral|harmful)</span>', page)
    assert not re.search(r'<span class="tag \w+">(selected|neutral|harmful)</span>', page), "a decision of no group"
    assert "It has no unit and is no cosine" in page
    plain = config.load("demo", {"ranking.whiten": None})
    assert report.influence_words(plain) == "Influence is the cosine of two projected gradients."


def test_a_file_is_named_without_its_signature() -> None:
    assert gallery.file_name({"uri": "https://host/a/b.mp4?signature=secret"}) == "b.mp4"
    assert gallery.file_name({"uri": "/videos/what?.mp4"}) == "what?.mp4"
    assert gallery.file_name({"uri": None}) == "\N{EN DASH}"


def test_a_funnel_in_which_all_came_through_is_folded(
    written: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    assert '<details class="panel" open><summary>What dropped out where</summary>' in written[1]
    run = config.load("demo", {"root": str(tmp_path)})
    rows = [_clip(f"clip-{n}", "shelf", "") for n in range(3)]
    tables.append(str(tmp_path / "clips"), pa.Table.from_pylist(rows, schema=schemas.CLIPS), FINGERPRINT)
    tables.append(str(tmp_path / "features/clips"), _features(rows), FINGERPRINT)
    moved = [
        {**row, **dict.fromkeys(("mask", "mask_shape", "motion_mean", "motion_p95", "camera_share"))} for row in rows
    ]
    table = pa.Table.from_pylist(moved, schema=schemas.motion_schema(schemas.CLIPS))
    tables.append(str(tmp_path / "motion/clips"), table, FINGERPRINT)
    report.write(run, lambda row: None)
    page = (tmp_path / "report/index.html").read_text()
    assert '<details class="panel"><summary>All 3 clips came through</summary>' in page


def test_the_result_is_in_the_headline(written: tuple[dict[str, Any], str, Path]) -> None:
    summary, page, _ = written
    change = re.search(r"base model: (.)\d\.\d ± 0\.\d % on the masked loss and ", summary["headline"])
    assert re.search(r"\d ± 0\.\d % on the plain loss after fine-tuning on selected", summary["headline"])
    assert change, summary["headline"]
    assert change[1] == "\N{MINUS SIGN}"
    assert "18 queries of 3 motions" in summary["headline"]
    assert page.count('class="panel query"') == 12
    assert "6 more queries" in page
    assert page.count("cannot be decoded") > 0  # some clips cannot


def test_influence_is_called_an_estimate_and_the_controls_are_named(written: tuple[dict[str, Any], str, Path]) -> None:
    text = html.unescape(text_of(written[1]))
    assert "It is no proof" in text
    assert "Hold the selection against the arms caption and random before you trust it" in text
    assert "evaluate.arms has no caption." in text
    assert not re.search(r"[Tt]eaches|[Ww]orks against", text), "the page takes influence for a proof"


def test_ticks_are_round_and_inside() -> None:
    assert charts.ticks(-0.07, 0.21, 6) == [-0.05, 0.0, 0.05, 0.1, 0.15, 0.2]
    assert charts.ticks(3, 3) == [3]


def test_a_page_without_pictures_and_captions_has_none(tmp_path: Path) -> None:
    def no_frames(of: object) -> None:
        raise AssertionError("a video was decoded for a page without pictures")

    run = build(str(tmp_path))
    run = run.model_copy(update={"report": operations.Report(pictures=False, captions=False)})
    report.write(run, no_frames, no_frames)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "data:image" not in page
    captions = {r["caption"] for n in ("clips", "queries") for r in tables.read(str(tmp_path / n)).to_pylist()}
    shown = [c for c in captions if c and c in text_of(page)]
    assert not shown, f"captions on the page: {shown[:3]}"


@pytest.mark.parametrize("odd", [("01", "v1.0", "../x"), ("items", "<b>\"'", "{{ 7 }}"), ("\N{FIRE}", " ", "g" * 3000)])
def test_groups_may_have_any_name(tmp_path: Path, odd: tuple[str, str, str]) -> None:
    run = build(str(tmp_path))
    names = dict(zip(GROUPS, odd, strict=True))
    for folder in ("queries", "selection"):
        place = stores.join(run.root, folder)
        table = tables.read(place)
        assert table is not None
        renamed = pa.array([names.get(g, g) for g in table.column("group").to_pylist()], pa.string())
        at = table.schema.get_field_index("group")
        tables.replace(place, table.set_column(at, table.schema.field(at), renamed), FINGERPRINT)
    summary = report.write(run, frames_of, video_of)
    page = (tmp_path / "report" / "index.html").read_text()
    assert set(summary["selection"]) == {"all", *odd}
    for name in odd:
        assert f"<h3>{markupsafe.escape(name)}</h3>" in page
