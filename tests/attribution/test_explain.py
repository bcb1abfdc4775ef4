"""Why a clip has its influence: the parts add up, ranks are the ranking's, and every clip gets an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import markupsafe
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor

from jobs import explain as job
from jobs.explain import explain
from pipeline import config, ranking, tables
from pipeline.attribution import decomposition
from pipeline.attribution.decomposition import LayeredGradient, by_frame, layer
from pipeline.attribution.gradients import ProjectedGradients, restrict, take_clip
from pipeline.config import Run
from pipeline.config.attribution import Kind, Setting
from pipeline.errors import ConfigError, FingerprintError
from pipeline.models.adapters.wan import Wan
from pipeline.pages import explain as explain_page
from pipeline.pages import explain_links
from pipeline.projection import Projection
from pipeline.ranking import one_clip
from pipeline.ranking.feature_table import under_mask
from pipeline.ranking.influence_table import influence_columns
from pipeline.stages import attribution, indexing
from pipeline.stages.ranking import rank_clips
from pipeline.storage import stores
from pipeline.tables import schemas
from tests.support import tiny_wan
from tests.support.registered import unregistered

DIM, MASKED = 16, Setting(mask="motion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.folder(tmp_path_factory)


def clip() -> tuple[Tensor, dict[str, Tensor], Tensor]:
    drawn = torch.Generator().manual_seed(5)
    latent, text = torch.randn(8, 3, 4, 4, generator=drawn), torch.randn(6, 64, generator=drawn)
    return latent, {"text": text}, torch.rand(3, 4, 4, generator=drawn)


def whole(model: Wan, kind: Kind, setting: Setting) -> tuple[Tensor, float]:
    latent, text, mask = clip()
    gradients = ProjectedGradients(model.trained, Projection(kind, DIM, seed=4))
    losses = take_clip(gradients, model, [setting], latent, text, mask, seed=0)
    feature = gradients.collect()[0][0]
    gradients.close()
    return feature, float(losses[0])


def in_parts(model: Wan, kind: Kind, setting: Setting, layers: bool) -> tuple[list[str], Tensor, float]:
    latent, text, mask = clip()
    gradient = LayeredGradient(model.trained, Projection(kind, DIM, seed=4), layers)
    frames = by_frame(gradient, model, setting, latent, text, mask, seed=0)
    gradient.close()
    return gradient.names, torch.stack([features for _, features in frames]), sum(loss for loss, _ in frames)


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("mask", ["motion", "none"])
def test_frames_and_layers_add_up_to_the_feature_and_the_loss(folder: Path, kind: Kind, mask: Any) -> None:
    model = tiny_wan.opened(folder)
    feature, loss = whole(model, kind, Setting(mask=mask))
    for layers in (False, True):
        names, parts, losses = in_parts(model, kind, Setting(mask=mask), layers)
        assert parts.shape == (3, len(names), DIM)
        off = float((parts.double().sum((0, 1)) - feature.double()).norm() / feature.double().norm())
        assert off < 1e-5, f"the parts differ from the feature by {off:.1g} of its length"
        assert losses == pytest.approx(loss, rel=1e-5)
        assert float(parts.norm(dim=-1).min()) > 0, "a part is empty"


def test_checkpointing_changes_no_part(folder: Path) -> None:
    plain, checked = tiny_wan.opened(folder), tiny_wan.opened(folder, gradient_checkpointing=True)
    one, other = (in_parts(model, "gaussian", MASKED, True)[1] for model in (plain, checked))
    assert float((one - other).norm() / one.norm()) < 1e-5


def test_a_frame_without_mask_has_no_share(folder: Path) -> None:
    model = tiny_wan.opened(folder)
    latent, text, mask = clip()
    mask[1] = 0
    gradient = LayeredGradient(model.trained, Projection("gaussian", DIM), layers=False)
    frames = by_frame(gradient, model, MASKED, latent, text, mask, seed=0)
    gradient.close()
    assert [float(features.norm()) > 0 for _, features in frames] == [True, False, True]


def test_layers_are_blocks_and_those_that_count(folder: Path) -> None:
    assert layer("blocks.11.attn1.to_q.weight") == "blocks.11"
    assert layer("proj_out.bias") == "proj_out"
    assert layer("scale_shift_table") == "scale_shift_table"
    model = tiny_wan.opened(folder)
    restrict(model.trained, r"^blocks\.1\.|^proj_out")
    names, parts, _ = in_parts(model, "gaussian", MASKED, True)
    assert sorted(names) == ["blocks.1", "proj_out"]
    assert float((parts.sum((0, 1)) - whole(model, "gaussian", MASKED)[0]).norm()) < 1e-5 * float(parts.norm())


def test_shares_add_up_to_the_influence_whitened_or_not() -> None:
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((2, 3, 4, 8)).astype(np.float32)
    corpus = rng.standard_normal((50, 16)).astype(np.float32)
    corpus[7] = parts.sum((1, 2)).reshape(-1)
    phi = ranking.unit_settings(corpus, 2)
    queries = ranking.unit_settings(rng.standard_normal((5, 16)).astype(np.float32), 2)
    for rows in (queries, ranking.whitened(queries, ranking.second_moment(phi), 50, 0.01)):
        shares = decomposition.shares(parts, rows)
        assert shares.shape == (2, 3, 4, 5)
        np.testing.assert_allclose(shares.sum((0, 1, 2)), phi[7] @ rows.T, rtol=1e-4, atol=1e-5)
    assert decomposition.agreement(parts, phi[7]) == pytest.approx(1)
    assert decomposition.agreement(parts, phi[8]) < 0.9


# --- the standing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ranked(tmp_path: Path) -> tuple[str, list[str], np.ndarray]:
    rng = np.random.default_rng(1)
    ids, influence = [f"c{n:03d}" for n in range(60)], rng.standard_normal((60, 3)).astype(np.float32)
    influence[20:24, 1] = influence[20, 1]  # a tie
    table = pa.table([pa.array(ids), tables.vectors(influence)], schema=schemas.influence_schema(3))
    tables.replace(stores.join(str(tmp_path), "influence"), table, {}, query_ids=["q0", "q1", "q2"])
    return str(tmp_path), ids, influence


def test_ranks_are_those_of_the_ranking(ranked: tuple[str, list[str], np.ndarray]) -> None:
    root, ids, influence = ranked
    votes, voted = {q: ranking.votes(influence[:, [q]], 0.1) for q in range(3)}, ranking.share(0.1, 60)
    for n in (0, 21, 22, 59):
        standing = one_clip.standing(root, ids[n], {"q1": "roll"}, voted)
        assert standing is not None
        rows = standing[0].to_pylist()
        assert [r["group"] for r in rows] == ["all", "roll", "all"]
        for q, row in enumerate(rows):
            order = ranking.order(influence[:, [q]], ids, "mean").tolist()
            assert row["rank"] == order.index(n), f"clip {n}, query {q}"
            assert row["percentile"] == pytest.approx(100 * (59 - order.index(n)) / 59)
            assert row["votes"] == bool(votes[q][n])
    assert one_clip.standing(root, "nobody", {}, voted) is None


@pytest.mark.parametrize("whiten", [None, 0.01])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_queries_rows_give_the_clips_influence(tmp_path: Path, whiten: float | None, weighted: bool) -> None:
    rng, ids = np.random.default_rng(2), [f"c{n:02d}" for n in range(40)]
    values, ones = rng.standard_normal((40, 16)).astype(np.float32), np.ones((40, 1), np.float32)
    values[5] = 2 * values[4] + 0.01 * values[3]
    columns = [pa.array(ids), pa.array(["1"] * 40), *map(tables.vectors, (values, ones, ones))]
    columns += [pa.array([9] * 40, pa.int32()), pa.nulls(40, pa.string())]
    table = pa.table(columns, schema=schemas.features_schema(1, 16))
    tables.append(str(tmp_path / "features" / "clips"), table, {}, settings=[{"mask": "motion"}])
    clips = under_mask(str(tmp_path), "clips", "motion")
    weights = rng.choice([1.0, 4.0], 40) if weighted else None
    queries = ranking.unit_settings(rng.standard_normal((3, 16)).astype(np.float32), 1)
    expected = influence_columns(clips, queries, whiten, None, weights)
    for n in (4, 5, 39):
        cosines = one_clip.cosines_of(clips, ids[n], queries, whiten, weights)
        own = ranking.unit_settings(values[[n]], 1)[0]
        np.testing.assert_allclose(cosines.queries @ own, [expected[q][n] for q in range(3)], rtol=1e-4, atol=1e-5)
    near = one_clip.nearest(clips, one_clip.cosines_of(clips, "c04", queries, None, None).to_clips, "c04", 3)
    assert len(near) == 3
    assert near[0][0] == "c05"
    assert near[0][1] > 0.999


def test_any_id_has_a_folder_of_its_own() -> None:
    ids = ["", "a", "a/b", "a_b", "../a", ".a", "..", "é", "x" * 200, "x" * 201, "a b"]
    names = [explain_links.name(i) for i in ids]
    assert len(set(names)) == len(ids)
    assert all("/" not in n and not n.startswith(".") and 0 < len(n) < 100 for n in names)


@pytest.mark.parametrize(("given", "option"), [("1234", "'explain.clip=\"1234\"'"), ("ab12", "explain.clip=ab12")])
def test_ids_that_yaml_takes_for_numbers_are_quoted(given: str, option: str) -> None:
    assert explain_links.option(given) == f"--set {option}"
    assert config.load("demo", {"explain.clip": given}).explain.clip == given
    with pytest.raises(ConfigError, match=r"explain\.clip=1234.*quote it"):
        config.load("demo", {"explain.clip": 1234})


@pytest.mark.parametrize("clip_id", [None, ""])
def test_an_empty_id_is_a_missing_one(clip_id: str | None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the clip that is to be explained"):
        explain(config.load("demo", {"root": str(tmp_path), "explain.clip": clip_id}))


# --- the job ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_run: Any, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made: Run = tiny_run(tmp_path_factory.mktemp("explain") / "run")
    for name in ("queries", "clips"):
        indexing.index(made, name)
        attribution.attribute(made, name)
    rank_clips(made)
    return made


def asked(run: Run, clip_id: str | None, **changes: Any) -> Run:
    return run.model_copy(update={"explain": run.explain.model_copy(update={"clip": clip_id, **changes})})


def selected(run: Run) -> str:
    table = tables.read(stores.join(run.root, "selection"))
    assert table is not None
    clip_id: str = table.filter(pc.equal(table.column("decision"), "selected")).column("clip_id")[0].as_py()
    return clip_id


def test_a_clip_is_explained(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    clip_id = selected(run)
    row = {"clip_id": clip_id, "group": "fall", "distance": 2.5, "quantile": 0.02, "law": "jerk"}
    row |= {"named_by": "caption", "flaw": "cut", "flaw_measure": 9.0}
    tables.replace(stores.join(run.root, "lawfulness"), pa.Table.from_pylist([row], schema=schemas.LAWFULNESS), {})
    explain(asked(run, clip_id, layers=True))
    folder = Path(run.root, "explain", clip_id)
    shares, queries, near = (tables.read(str(folder / name)) for name in ("shares", "queries", "near"))
    assert shares is not None
    assert queries is not None
    assert near is not None
    sums = shares.group_by("query_id").aggregate([("share", "sum")]).to_pylist()
    influence = {q["query_id"]: q["influence"] for q in queries.to_pylist()}
    assert {s["query_id"]: pytest.approx(s["share_sum"], abs=1e-5) for s in sums} == influence
    assert set(shares.column("latent_frame").to_pylist()) == set(range(5))
    assert "blocks.0" in shares.column("layer").to_pylist()
    assert near.num_rows == job.NEAR
    assert clip_id not in near.column("near_id").to_pylist()
    assert not (folder / "parts").exists()
    assert unregistered(run.root) == []
    page, printed = (folder / "index.html").read_text(), capsys.readouterr().out
    assert f"{clip_id} is selected" in page
    assert "data:image/webp" in page
    assert "share of the mean influence" in printed
    lawfulness = (
        "unlike the queries of 'fall': distance 2.50, quantile 0.020 (unlawful up to 0.05), farthest off by its jerk"
    )
    assert lawfulness in printed
    assert "flaw cut: it jumps: a change 9.0 times the usual one" in printed
    assert str(markupsafe.escape(lawfulness)) in page
    assert explain_links.links(run.root, [clip_id, "other"]) == {clip_id: f"../explain/{clip_id}/index.html"}


@pytest.mark.parametrize(
    ("table", "error", "said"),
    [
        ("clips", "decode: frame 3 is damaged", ["undecodable", "frame 3 is damaged", "Make the video again"]),
        ("motion/clips", "no_motion: its flow spans less.", ["without motion", "motion.still"]),
        ("features/clips", "memory: it took too much.", ["out of memory", "tries it once more"]),
    ],
)
def test_a_clip_with_an_error_has_its_error_explained(
    small_run: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, error: str, said: Any
) -> None:
    fields = dict.fromkeys(schemas.CLIPS.names) | {"clip_id": "a/b", "uri": "/gone.mp4", "version": "1"}
    fields |= {"start_frame": 0, "motion_mean": 1.5}
    kinds = {"clips": schemas.CLIPS, "motion/clips": schemas.motion_schema(schemas.CLIPS)}
    for name, schema in {**kinds, "features/clips": schemas.features_schema(2, 8)}.items():
        row = {key: fields.get(key) for key in schema.names} | {"error": error if name == table else None}
        tables.append(stores.join(str(tmp_path), name), pa.Table.from_pylist([row], schema=schema), {})
    explain(asked(small_run(tmp_path, ranking__mask="motion"), "a/b"))
    printed = capsys.readouterr().out
    page = Path(explain_links.folder(str(tmp_path), "a/b"), "index.html").read_text()
    for text in said:
        assert text in printed
        assert text in page
    assert f". {explain_page.Problem(table, error).remedy}" in printed, "one sentence, then the next"
    assert ".." not in printed
    assert "a/b has no influence" in page
    assert "its lawfulness is not known: " in printed
    assert "Its lawfulness is not known: " in page


def test_the_page_of_a_ranked_clip_without_motion_says_why_it_has_no_mask(
    small_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = small_run(tmp_path, ranking__mask="queries", report__pictures=False)
    clip = dict.fromkeys(schemas.CLIPS.names) | {"clip_id": "a", "uri": "/a.mp4"}
    motion = dict.fromkeys(schemas.motion_schema(schemas.CLIPS).names) | {"error": "no_motion: its flow spans less."}
    page = Path(explain_page.write(run, explain_page.Explanation(clip, motion, None), lambda row: None)).read_text()
    assert "It has no mask: its flow spans less. The ranking compares its unmasked feature" in page


NAMES = [
    "01",
    "1",
    "v1.0",
    "../x",
    "a/b",
    "",
    " ",
    "items",
    "__class__",
    "<b>&'\"",
    "{{ 7 * 7 }}",
    "\N{FIRE}",
    "x" * 5000,
]


def test_a_group_may_have_any_name(small_run: Callable[..., Run], tmp_path: Path) -> None:
    """A group is neither a path nor an attribute; the template's own filter once read 01 and v1.0 so."""
    run = small_run(tmp_path, report__pictures=False)
    row = dict.fromkeys(schemas.CLIPS.names) | {"clip_id": "a/../<i>", "uri": "/a.mp4"}
    motion = dict.fromkeys(schemas.motion_schema(schemas.CLIPS).names)
    standings = [
        {"query_id": f"q{name}", "group": name, "influence": 0.5 - n, "rank": n, "percentile": 50.0, "votes": True}
        for n, name in enumerate(NAMES)
    ]
    decision = {"decision": "selected", "rank": 0, "mean_influence": 0.1, "votes": 1, "weight": 0.1, "reason": "x"}
    explanation = explain_page.Explanation(
        row, motion, None, [{**decision, "group": name} for name in ("all", *NAMES)], standings, len(NAMES)
    )
    shares = np.arange(2 * 3 * len(NAMES), dtype=float).reshape(1, 2, 3, -1) - 30
    explanation = explanation.split(run, shares, ["a", "b", "c"], NAMES)
    page = Path(explain_page.write(run, explanation, lambda row: None)).read_text()
    assert "<i>" not in page
    assert "{{ 7 * 7 }}" in page, "a name was taken for a template"
    for g in explain_page._groups(explanation):
        total = shares.sum((0, 1, 2))[NAMES.index(g)]
        assert f'<td class="cell">{total:+.3f}</td>'.replace("-", "\N{MINUS SIGN}") in page
        assert f'<th scope="col" class="cell">{markupsafe.escape(g)}</th>' in page
    assert len(explain_page._groups(explanation)) == explain_page.GROUPS


def test_one_moment_that_carries_the_influence_is_warned_of(small_run: Callable[..., Run], tmp_path: Path) -> None:
    run = small_run(tmp_path, report__pictures=False)
    row = dict.fromkeys(schemas.CLIPS.names) | {"clip_id": "a", "uri": "/a.mp4"}
    standing = {"query_id": "q", "group": "g", "influence": 1.0, "rank": 0, "percentile": 50.0, "votes": True}
    blank = explain_page.Explanation(row, None, None, (), [standing], 1, near=[("b", 0.96), ("c", 0.94)])

    def page(shares: list[float]) -> str:
        explanation = blank.split(run, np.array(shares).reshape(1, -1, 1, 1), ["x"], ["g"])
        return Path(explain_page.write(run, explanation, lambda row: None)).read_text()

    warned = page([0.7, 0.2, 0.1])
    assert "70% of its influence comes from frame 0 alone. One moment has no motion" in warned
    assert "One moment has no motion" not in page([0.5, 0.3, 0.2])
    assert "One moment has no motion" not in page([-0.7, -0.2, -0.1]), "it teaches nothing, by whatever frame"
    assert warned.count(">near-duplicate<") == 1, "a clip below the threshold is called one"


@pytest.mark.parametrize("change", [{}, {"clip_id": "nobody"}, {"cut": True}])
def test_clips_that_are_not_there(run: Run, change: dict[str, Any]) -> None:
    clip_id = selected(run)[:-1] if change.get("cut") else change.get("clip_id")
    before = sorted(Path(run.root, "explain").rglob("*"))
    with pytest.raises(ConfigError, match=r"explain\.clip") as error:
        explain(asked(run, clip_id))
    assert (selected(run) in str(error.value)) == bool(change.get("cut")), "close ids are named"
    assert sorted(Path(run.root, "explain").rglob("*")) == before


def test_parts_of_another_feature_are_refused_and_the_earlier_page_stays(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_id = selected(run)
    explain(asked(run, clip_id))
    page = Path(run.root, "explain", clip_id, "index.html")
    before = page.read_bytes()
    as_array = decomposition.as_array

    def turned(parts: pa.Table) -> Any:
        array, settings, layers = as_array(parts)
        return -array, settings, layers

    monkeypatch.setattr(decomposition, "as_array", turned)
    with pytest.raises(FingerprintError, match=r"explain\.clip: the parts of this clip's feature have a cosine of -1"):
        explain(asked(run, clip_id))
    assert page.read_bytes() == before
    assert (page.parent / "shares").is_dir()


def test_a_ranking_of_other_features_is_refused(run: Run, tiny_run: Callable[..., Run]) -> None:
    other = asked(run, selected(run)).model_copy(update={"ranking": run.ranking.model_copy(update={"whiten": None})})
    with pytest.raises(FingerprintError, match="whiten"):
        explain(other)
