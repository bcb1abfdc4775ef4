"""Influence by each setting alone against plain numpy, and what its spread says of a clip's rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy import stats

from pipeline import config, tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.ranking import influence_table, selection, unit_settings, whitened
from pipeline.ranking.feature_table import under_mask
from pipeline.ranking.rules.intervals import half_width, squared_error
from pipeline.stages.ranking import rank_clips
from pipeline.tables import schemas

N, K, S = 900, 16, 3
GROUPS = ["spin"] * 4 + ["roll"] * 3
QUERY_IDS = [f"q{n}" for n in range(len(GROUPS))]
IDS = [f"clip{n:03d}" for n in np.random.default_rng(5).permutation(N)]
MASKS = ("motion",) * S + ("none",)
SETTINGS = [{"timestep": 751 - 100 * n, "noise": n, "mask": mask} for n, mask in enumerate(MASKS)]
Array = npt.NDArray[np.float32]
Make = Callable[..., Run]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rows_of(kind: str) -> dict[str, Array]:
    """Features of all settings by id; all have a direction in common."""
    ids, seed = (IDS, 0) if kind == "clips" else (QUERY_IDS, 1)
    values = normal(seed, len(ids), len(SETTINGS) * K) + normal(3, len(SETTINGS) * K)
    return dict(zip(ids, values, strict=True))


def put(run: Run, kind: str, ids: Sequence[str]) -> None:
    rows = rows_of(kind)
    ones = tables.vectors(np.ones((len(ids), len(SETTINGS)), np.float32))
    columns = [pa.array(ids), pa.array(["1"] * len(ids)), tables.vectors(np.stack([rows[i] for i in ids])), ones, ones]
    columns += [pa.array([9] * len(ids), pa.int32()), pa.nulls(len(ids), pa.string())]
    table = pa.table(columns, schema=schemas.features_schema(len(SETTINGS), K))
    fingerprint = fingerprints.features(run.of("clips" if kind == "clips" else "queries"))
    tables.append(f"{run.root}/features/{kind}", table, fingerprint, settings=SETTINGS)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run in a root of this name with these clips; of several roots, where they are given."""

    def made(name: str, ids: Sequence[str] = (), roots: Sequence[str] = (), **ranking: object) -> Run:
        keys = {f"ranking.{key}": value for key, value in {"mask": "motion", "whiten": 0.01, **ranking}.items()}
        keys |= {"ranking.roots": [str(tmp_path / one) for one in roots]}
        keys |= {"attribution.settings": SETTINGS, "motion.of": "all"}
        projection = {"kind": "gaussian", "dim": K, "seed": 0}
        run = config.load("demo", {"root": str(tmp_path / name), "attribution.projection": projection, **keys})
        if ids:
            empty = dict.fromkeys(schemas.QUERIES.names)
            queries = [{**empty, "clip_id": i, "group": g} for i, g in zip(QUERY_IDS, GROUPS, strict=True)]
            clips = [{**empty, "clip_id": i} for i in ids]
            clip_table = pa.Table.from_pylist(clips, schema=schemas.CLIPS)
            tables.append(f"{run.root}/clips", clip_table, fingerprints.clips(run))
            query_table = pa.Table.from_pylist(queries, schema=schemas.QUERIES)
            tables.append(f"{run.root}/queries", query_table, fingerprints.clips(run))
            for start in range(0, len(ids), 350):
                put(run, "clips", ids[start : start + 350])
            put(run, "queries", QUERY_IDS)
        return run

    return made


def plain(whiten: float | None, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """What every group gets of each setting, written out: [S, N] by group."""
    clips, queries = rows_of("clips"), rows_of("queries")
    phi = unit_settings(np.stack([clips[i] for i in ids])[:, : S * K], S)
    asked = unit_settings(np.stack([queries[i] for i in QUERY_IDS])[:, : S * K], S)
    if whiten is not None:
        asked = whitened(asked, phi.astype(np.float64).T @ phi, len(phi), whiten)
    parts = {}
    for group in ("all", "roll", "spin"):
        mean = asked[[group in ("all", name) for name in GROUPS]].mean(0)
        parts[group] = np.stack([S * phi[:, s * K : (s + 1) * K] @ mean[s * K : (s + 1) * K] for s in range(S)])
    return parts


@pytest.mark.parametrize("resident", [0, 1 << 30])
@pytest.mark.parametrize("whiten", [None, 0.01])
def test_each_settings_part_is_the_plain_product(
    make: Make, whiten: float | None, resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(influence_table, "RESIDENT", resident)
    monkeypatch.setattr(influence_table, "BUFFER_ROWS", 300)
    run = make("one", IDS)
    ranked = selection.rank(run, "motion", whiten)
    assert ranked.by_setting is not None
    expected = plain(whiten, ranked.clip_ids.to_pylist())
    scale = max(float(np.abs(values).max()) for values in expected.values())
    for group, values in expected.items():
        parts = np.stack(list(ranked.by_setting.scores(group)))
        np.testing.assert_allclose(parts, values, atol=2e-5 * scale, err_msg=group)
        mean, _ = ranked.score(group, ranked.marks(0.1))
        np.testing.assert_allclose(parts.mean(0), mean, atol=2e-5 * scale, err_msg="parts do not add up to influence")
    spared = np.stack(list(ranked.by_setting.scores("spin", 0.5)))
    np.testing.assert_allclose(spared, expected["spin"] - 0.5 * expected["roll"], atol=2e-5 * scale)


@pytest.mark.parametrize("spare", [0.0, 0.5])
def test_the_half_width_is_that_of_both_parts(make: Make, spare: float) -> None:
    ranked = selection.rank(make("one", IDS), "motion", 0.01)
    influence = np.stack([ranked.influence[q] for q in range(len(GROUPS))]).astype(np.float64)
    influence -= influence.mean(1, keepdims=True)
    parts = plain(0.01, ranked.clip_ids.to_pylist())
    score = parts["spin"] - spare * parts["roll"]
    score -= score.mean(1, keepdims=True)
    of_queries = influence[:4].var(0, ddof=1) / 4 + spare**2 * influence[4:].var(0, ddof=1) / 3
    of_settings = score.var(0, ddof=1) / S
    degrees = (of_queries + of_settings) ** 2 / (of_queries**2 / 3 + of_settings**2 / (S - 1))
    expected = np.sqrt(of_queries + of_settings) * stats.t.ppf(0.95, degrees)
    np.testing.assert_allclose(ranked.half_widths("spin", 0.9, spare), expected, rtol=1e-3)
    assert ranked.half_widths("spin", None) is None


def test_with_one_setting_all_is_as_it_was(make: Make) -> None:
    """To the bit, and without a table; that of another mask's ranking goes."""
    run = make("one", IDS)
    rank_clips(run)
    assert influence_table.is_written(run.root)
    single = make("one", mask="none")
    ranked = selection.rank(single, "none", 0.01)
    assert ranked.by_setting is None
    error = squared_error(ranked.influence[q] for q in range(4))
    assert error is not None
    assert np.array_equal(ranked.half_widths("spin", 0.9), half_width(*error, 0.9))  # type: ignore[arg-type]
    rank_clips(single)
    assert not influence_table.is_written(run.root)


def test_influence_is_the_same_to_the_bit_beside_its_parts(make: Make) -> None:
    run = make("one", IDS)
    clips, queries = under_mask(run.root, "clips", "motion"), under_mask(run.root, "queries", "motion").rows()
    asked, weights = np.stack([queries[i] for i in QUERY_IDS]), np.where(np.arange(N) % 3, 1.0, 4.0)
    for whiten in (None, 0.01):
        alone = influence_table.influence_columns(clips, asked, whiten, None, weights)
        both, parts = influence_table.influence_by_setting(clips, asked, GROUPS, whiten, None, weights)
        assert parts is not None
        assert all(np.array_equal(alone[q], both[q]) for q in range(len(GROUPS)))
        total = np.mean([both[q] for q in range(len(GROUPS))], 0)
        scale = np.abs(total).max()
        np.testing.assert_allclose(np.mean(list(parts.scores("all")), 0), total, atol=2e-5 * scale)


def test_several_roots_are_one(make: Make) -> None:
    one = make("one", IDS)
    make("a", IDS[:100])
    make("b", IDS[100:101])
    make("c", IDS[101:])
    joint = make("joint", roots=("c", "a", "b"))
    for run in (one, joint):
        rank_clips(run)
    actual, expected = (
        tables.read(f"{run.root}/{influence_table.BY_SETTING}").sort_by("clip_id") for run in (joint, one)
    )  # type: ignore[union-attr]
    assert actual.combine_chunks().equals(expected.combine_chunks())
    assert tables.read(f"{joint.root}/selection").equals(tables.read(f"{one.root}/selection"))


def test_it_is_read_again_and_not_where_it_is_of_another_ranking(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("one", IDS)
    rank_clips(run)
    wished = tables.read(f"{run.root}/selection")
    ranked, again = selection.rank(run, "motion", 0.01), selection.recorded(run, "motion", 0.01)
    assert again is not None
    assert np.array_equal(again.half_widths("spin", 0.9), ranked.half_widths("spin", 0.9))  # type: ignore[arg-type]
    rank_clips(run)
    said = capsys.readouterr().out
    assert "as the last ranking left it" in said
    assert "earlier version" not in said
    assert tables.read(f"{run.root}/selection").equals(wished)
    folder = f"{run.root}/{influence_table.BY_SETTING}"
    table, about = tables.read(folder), tables.metadata(folder)
    assert table is not None
    for changes in ({"features": "others"}, {"groups": ["roll"] * len(GROUPS)}, {"settings": 2}):
        tables.replace(folder, table, **{**about, **changes})
        assert selection.recorded(run, "motion", 0.01) is None, changes
    tables.replace(folder, table.take(pa.array(range(N)[::-1])), **about)
    assert selection.recorded(run, "motion", 0.01) is None, "its clips are in another order"


def test_a_ranking_of_an_earlier_version_counts_queries_alone_and_says_so(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("one", IDS)
    rank_clips(run)
    (Path(run.root) / influence_table.BY_SETTING / "part-all.parquet").unlink()
    ranked = selection.recorded(run, "motion", 0.01)
    assert ranked is not None
    assert ranked.by_setting is None
    error = squared_error(ranked.influence[q] for q in range(4))
    assert np.array_equal(ranked.half_widths("spin", 0.9), half_width(*error, 0.9))  # type: ignore[arg-type, misc]
    rank_clips(run)
    assert "intervals of ranks are over queries alone" in capsys.readouterr().out
