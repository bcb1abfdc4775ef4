"""Influence, votes and selection against naive computations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from pipeline import ranking, tables
from pipeline.config import Ranking
from pipeline.errors import ConfigError
from pipeline.ranking import influence, order, select, unit_settings, votes
from pipeline.ranking.column_file import Columns
from pipeline.ranking.feature_table import under_mask
from pipeline.ranking.selection import Ranked, neighbors_table, selection_tables
from pipeline.tables import schemas

Array = npt.NDArray[np.float32]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ids(count: int) -> list[str]:
    return [f"clip{i:03d}" for i in range(count)]


def cosine(a: Array, b: Array) -> float:
    return float(a.astype(float) @ b.astype(float) / (np.linalg.norm(a) * np.linalg.norm(b)))


# --- influence -------------------------------------------------------------------------------------------------------


def test_influence_is_the_cosine_of_every_pair() -> None:
    clips, queries = normal(0, 9, 16) * 100, normal(1, 4, 16) / 100
    scores = influence(clips, queries)
    for n in range(9):
        for q in range(4):
            assert math.isclose(scores[n, q], cosine(clips[n], queries[q]), abs_tol=1e-6), f"pair {n, q} is no cosine"


def test_whitened_influence_is_the_formula_of_trak() -> None:
    clips, queries, weight = normal(0, 30, 8), normal(1, 3, 8), 0.05
    phi = [c.astype(float) / np.linalg.norm(c) for c in clips]
    covariance = sum(np.outer(p, p) for p in phi) / len(phi) + weight * np.eye(8)
    inverse = np.linalg.inv(covariance)
    scores = influence(clips, queries, whiten=weight)
    for n in range(30):
        for q in range(3):
            expected = phi[n] @ inverse @ (queries[q] / np.linalg.norm(queries[q]))
            assert math.isclose(scores[n, q], expected, rel_tol=1e-4, abs_tol=1e-4), f"pair {n, q}"


@pytest.mark.parametrize("whiten", [None, 0.01])
def test_influence_does_not_depend_on_the_scale_of_a_clip_or_query(whiten: float | None) -> None:
    clips, queries = normal(0, 20, 8), normal(1, 3, 8)
    scales = np.random.default_rng(2).uniform(0.01, 100, (20, 1)).astype(np.float32)
    scores = influence(clips * scales, queries * 7, whiten)
    assert np.allclose(scores, influence(clips, queries, whiten), rtol=1e-3, atol=1e-3), "long gradients count for more"


def test_whitening_with_a_large_lambda_is_the_cosine_up_to_scale() -> None:
    clips, queries = normal(0, 20, 8), normal(1, 3, 8)
    assert np.allclose(influence(clips, queries, whiten=1e4) * 1e4, influence(clips, queries), atol=1e-3)


def test_whitening_removes_a_direction_that_every_clip_shares() -> None:
    """All gradients share a large component; the one clip that has the query's own direction must come first."""
    common, own = normal(3, 1, 64), normal(4, 64)
    clips, query = normal(0, 200, 64) + 6 * common, (6 * common + own)[:1]
    clips[17] += 0.7 * own
    assert int(influence(clips, query, whiten=0.01)[:, 0].argmax()) == 17, "the planted clip is not found"


def test_cosines_over_settings_are_means_of_their_cosines() -> None:
    clips, queries = normal(0, 5, 3 * 8), normal(1, 2, 3 * 8)
    clips[:, 8:16] *= 1000  # one setting's gradients are much longer
    scores = influence(unit_settings(clips, 3), unit_settings(queries, 3))
    for n in range(5):
        for q in range(2):
            parts = [cosine(clips[n, s : s + 8], queries[q, s : s + 8]) for s in (0, 8, 16)]
            assert math.isclose(scores[n, q], np.mean(parts), abs_tol=1e-6), "a long setting drowns the others"


def test_unit_settings_leaves_parts_of_zeros_alone() -> None:
    features = normal(0, 2, 16)
    features[0, :8] = 0
    unit = unit_settings(features, 2)
    assert np.isfinite(unit).all(), "a clip with a zero gradient becomes NaN and spoils the whitening of all"
    assert not unit[0, :8].any()
    assert np.allclose(np.linalg.norm(unit.reshape(2, 2, 8), axis=2), [[0, 0.5**0.5], [0.5**0.5, 0.5**0.5]])


# --- votes and order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "fraction", "count"), [(20, 0.1, 2), (30, 0.1, 3), (5, 0.1, 1), (7, 1.0, 7), (40, 0.25, 10)]
)
def test_every_query_gives_exactly_its_share_of_votes(n: int, fraction: float, count: int) -> None:
    scores = normal(0, n, 6)
    clip_votes = votes(scores, fraction)
    assert int(clip_votes.sum()) == 6 * count, f"{clip_votes.sum()} votes, not 6 x {count}"
    naive = [sum(scores[i, q] >= sorted(scores[:, q])[-count] for q in range(6)) for i in range(n)]
    assert clip_votes.tolist() == naive


def test_a_query_votes_by_its_own_cutoff() -> None:
    """One query's scores are all high; with a common cutoff it alone would vote."""
    scores = normal(0, 20, 2) + np.array([0, 100], np.float32)
    assert votes(scores, 0.1)[np.argsort(-scores[:, 0])[:2]].min() >= 1, "a query with low scores cannot vote"


def test_order_is_by_mean_or_by_votes_then_mean_then_id() -> None:
    scores = np.array([[5, 0, 0], [1, 1, 1], [2, 2, 2], [5, 0, 0], [0, 5, 0]], np.float32)
    names = ["d", "b", "c", "a", "e"]
    placed = [names[i] for i in order(scores, names, "mean")]
    assert placed == ["c", "a", "d", "e", "b"], f"equal means are not in the order of their ids: {placed}"
    placed = [names[i] for i in order(scores, names, "votes", 0.2)]
    assert placed == ["c", "a", "d", "e", "b"], f"votes, then mean, then id: {placed}"
    scores = np.array([[9, -9, -9], [1, 1, 1], [0, 0, 0]], np.float32)
    assert [int(i) for i in order(scores, ["x", "y", "z"], "votes", 0.3)] == [1, 0, 2], "votes do not come first"


@pytest.mark.parametrize("by", ["mean", "votes"])
def test_the_order_is_total_whatever_order_the_rows_come_in(by: str) -> None:
    scores = np.random.default_rng(0).integers(0, 3, (40, 3)).astype(np.float32)  # full of ties
    names = ids(40)
    first = [names[i] for i in order(scores, names, by)]  # type: ignore[arg-type]
    assert sorted(first) == names, "a clip is lost or doubled"
    for seed in range(5):
        mixed = np.random.default_rng(seed).permutation(40)
        again = order(scores[mixed], [names[i] for i in mixed], by)  # type: ignore[arg-type]
        assert [names[mixed[i]] for i in again] == first, "ties are broken by the order of the rows"


# --- selection -------------------------------------------------------------------------------------------------------


def column(table: pa.Table, name: str) -> list[object]:
    return list(table.column(name).to_pylist())


def decided(table: pa.Table, decision: str) -> list[str]:
    return [i for i, d in zip(column(table, "clip_id"), column(table, "decision"), strict=True) if d == decision]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("n", "fraction", "count"), [(20, 0.1, 2), (5, 0.1, 1), (30, 0.5, 15), (4, 1.0, 4), (1, 0.1, 1)]
)
def test_the_selected_are_the_first_of_the_order(n: int, fraction: float, count: int) -> None:
    scores = normal(0, n, 3)
    table = select(scores, ids(n), fraction=fraction, harmful=0.0)
    assert decided(table, "selected") == [ids(n)[i] for i in order(scores, ids(n), "mean")[:count]]
    assert column(table, "rank") == list(range(n)), "the table is not in the order of the rank"
    means = scores.mean(1)[order(scores, ids(n), "mean")]
    assert np.allclose(column(table, "mean_influence"), means), "a clip has another clip's influence"  # type: ignore[arg-type]


def test_influence_alone_calls_no_clip_harmful() -> None:
    scores = np.linspace(1, -1, 20, dtype=np.float32)[:, None]
    assert decided(select(scores, ids(20), harmful=0.5), "harmful") == []


def test_harmful_are_the_unlawful_ones_up_to_their_share() -> None:
    scores = np.linspace(1, -1, 20, dtype=np.float32)[:, None]
    unlawful = {ids(20)[n]: f"law {n}" for n in (7, 19, 0)}
    table = select(scores, ids(20), harmful=0.5, unlawful=unlawful)
    assert sorted(decided(table, "harmful")) == [ids(20)[n] for n in (0, 7, 19)]
    assert str(column(table, "reason")[7]).startswith("law 7: rank 7, mean influence +")
    assert decided(table, "selected") == ids(20)[1:3], "what is unlawful is not selected; the next ones are"
    few = select(scores, ids(20), harmful=0.1, unlawful=unlawful)
    assert sorted(decided(few, "harmful")) == [ids(20)[n] for n in (7, 19)], "not the first of them, in their order"
    assert decided(select(scores, ids(20), harmful=0.0, unlawful=unlawful), "harmful") == []
    assert decided(select(scores, ids(20), harmful=0.5, unlawful={"nobody": "law"}), "harmful") == []


def test_a_clip_is_never_selected_and_harmful() -> None:
    table = select(-np.ones((4, 2), np.float32), ids(4), fraction=1.0, harmful=0.9, unlawful={ids(4)[2]: "law"})
    assert decided(table, "selected") == [ids(4)[n] for n in (0, 1, 3)]
    assert decided(table, "harmful") == [ids(4)[2]]


def test_a_threshold_takes_the_place_of_the_fraction() -> None:
    scores = np.linspace(1, -1, 21, dtype=np.float32)[:, None]
    table = select(scores, ids(21), fraction=0.9, harmful=0.9, above=0.75, unlawful={ids(21)[1]: "law"})
    assert decided(table, "selected") == [ids(21)[0], ids(21)[2]], "above does not select by mean influence"
    assert decided(select(scores, ids(21), above=7), "selected") == [], "nothing is above, but something is selected"


def test_weights_sum_to_one_and_are_zero_for_negative_influence() -> None:
    scores = normal(0, 50, 4)
    table = select(scores, ids(50))
    weight, mean = np.array(column(table, "weight")), np.array(column(table, "mean_influence"))
    assert math.isclose(weight.sum(), 1, rel_tol=1e-5), f"the weights sum to {weight.sum()}"
    assert (weight[mean <= 0] == 0).all(), "a clip with negative influence is trained on"
    useful = mean > 0
    assert np.allclose(weight[useful] / mean[useful], weight[useful][0] / mean[useful][0], rtol=1e-4)
    none = select(-np.ones((3, 1), np.float32), ids(3))
    assert column(none, "weight") == [0, 0, 0], "without any positive influence the weights are not zero"


def test_reasons_say_rule_rank_influence_and_votes() -> None:
    scores = np.linspace(1, -1, 20, dtype=np.float32)[:, None].repeat(3, 1)
    reasons = column(select(scores, ids(20)), "reason")
    assert reasons[0] == "first 2 of 20 by mean: rank 0, mean influence +1.0000, 3 of 3 votes"
    assert reasons[19] == "not selected: rank 19, mean influence -1.0000, 0 of 3 votes"
    assert "mean influence above 0.5" in str(column(select(scores, ids(20), above=0.5), "reason")[0])


def test_nothing_to_select_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no clip"):
        select(np.zeros((0, 3), np.float32), [])


@pytest.mark.parametrize("whiten", [None, 0.01])
@pytest.mark.parametrize("by", ["mean", "votes"])
def test_a_planted_answer_is_found(whiten: float | None, by: str) -> None:
    """Sixty of 600 clips share the queries' direction, sixty have its opposite, the others neither."""
    direction, clips = normal(7, 64), normal(0, 600, 64)
    clips[:60] += direction
    clips[60:120] -= direction
    queries = normal(1, 8, 64) + direction
    table = select(influence(clips, queries, whiten), ids(600), by=by)  # type: ignore[arg-type]
    # By chance six are found. Whitening divides by the spread, which the planted clips themselves make larger.
    least = 54 if whiten is None else 36
    assert len(set(decided(table, "selected")) & set(ids(600)[:60])) >= least, "planted clips are not selected"
    if by == "mean":  # votes say nothing about the bottom of the order
        last = [str(clip_id) for clip_id in column(table, "clip_id")[-60:]]
        assert len(set(last) & set(ids(600)[60:120])) >= least, "opposing clips are not last"


# --- from tables -----------------------------------------------------------------------------------------------------

SETTINGS = [{"timestep": 751, "mask": m} for m in ("motion", "none", "motion")]


def features_table() -> tuple[pa.Table, Array]:
    """Four clips under three settings: b is still (no masked features), c failed."""
    features, norm = normal(0, 4, 3, 8), np.ones((4, 3), np.float32)
    norm[1, [0, 2]] = features[1, [0, 2]] = 0
    valid = np.array([True, True, False, True])
    arrays = [
        pa.array(["a", "b", "c", "d"]),
        pa.array(["v"] * 4),
        tables.vectors(features.reshape(4, -1), valid),
        tables.vectors(norm, valid),
        tables.vectors(norm, valid),
        pa.array([9] * 4, pa.int32()),
        pa.array([None, None, "decode: x", None], pa.string()),
    ]
    return pa.table(arrays, schema=schemas.features_schema(3, 8)), features


def test_features_under_a_mask_are_those_of_its_settings_and_of_moving_clips(tmp_path: Path) -> None:
    table, features = features_table()
    tables.append(str(tmp_path / "features/clips"), table, {}, settings=SETTINGS)
    masked = under_mask(str(tmp_path), "clips", "motion")
    assert masked.clip_ids.to_pylist() == ["a", "d"], "still or failed clips have features under the motion mask"
    rows = np.concatenate(list(masked.map(lambda phi: phi)))
    assert np.allclose(rows, unit_settings(features[[0, 3]][:, [0, 2]].reshape(2, -1), 2))
    unmasked = under_mask(str(tmp_path), "clips", "none")
    assert unmasked.clip_ids.to_pylist() == ["a", "b", "d"], "still clips must keep their unmasked features"
    rows = np.concatenate(list(unmasked.map(lambda phi: phi)))
    assert np.allclose(rows, unit_settings(features[[0, 1, 3]][:, 1], 1)), "a row was joined by its position"


def test_a_mask_that_no_setting_has_is_an_error(tmp_path: Path) -> None:
    tables.append(str(tmp_path / "features/clips"), features_table()[0], {}, settings=SETTINGS[::2])
    with pytest.raises(ConfigError, match="mask: none"):
        under_mask(str(tmp_path), "clips", "none")


def ranked() -> Ranked:
    columns = Columns(12, 3)
    columns.add(normal(0, 12, 3))
    return Ranked(pa.array(ids(12), pa.large_string()), ["q0", "q1", "q2"], ["spin", "spin", "roll"], columns)


def test_neighbors_are_each_querys_nearest_and_farthest() -> None:
    for row in (rows := neighbors_table(ranked(), 4, ranked().marks(0.1, 4)).to_pylist()):
        scores = normal(0, 12, 3)[:, ["q0", "q1", "q2"].index(row["query_id"])]
        best = np.argsort(-scores) if row["sign"] == "positive" else np.argsort(scores)
        assert row["clip_id"] == ids(12)[best[row["rank"]]], f"wrong neighbour: {row}"
        assert math.isclose(row["influence"], scores[best[row["rank"]]], rel_tol=1e-6)
    assert len(rows) == 3 * 2 * 4


def test_every_clip_is_decided_on_for_every_group_and_unranked_ones_say_why() -> None:
    others = pa.table({"clip_id": ["still"], "error": ["no_motion: still"]})
    table = pa.concat_tables(selection_tables(ranked(), Ranking(fraction=0.25), ranked().marks(0.1), others))
    assert table.schema.equals(schemas.SELECTION)
    for group, queries in (("all", [0, 1, 2]), ("spin", [0, 1]), ("roll", [2])):
        rows = {row["clip_id"]: row for row in table.to_pylist() if row["group"] == group}
        assert set(rows) == {*ids(12), "still"}, f"group {group} lacks clips"
        mean = normal(0, 12, 3)[:, queries].mean(1)
        chosen = {i for i, row in rows.items() if row["decision"] == "selected"}
        assert chosen == {ids(12)[i] for i in np.argsort(-mean)[:3]}, f"group {group} is ranked by other queries"
        assert rows["still"]["decision"] == "neutral"
        assert "no_motion: still" in rows["still"]["reason"]
        assert rows["still"]["weight"] == 0


def test_spared_motions_are_taken_from_a_groups_mean_and_from_no_one_elses() -> None:
    scores, marks = normal(0, 12, 3), ranked().marks(0.1)
    mean, votes = ranked().score("spin", marks, spare=0.5)
    assert np.allclose(mean, scores[:, :2].mean(1) - 0.5 * scores[:, 2], atol=1e-6)
    assert np.array_equal(votes, ranked().score("spin", marks)[1]), "votes follow what is spared"
    for group in ("all", "spin", "roll"):
        assert np.array_equal(ranked().score(group, marks, 0.0)[0], ranked().score(group, marks)[0])
    assert np.array_equal(ranked().score("all", marks, 0.5)[0], ranked().score("all", marks)[0])
    order = [ids(12)[n] for n in np.argsort(-mean, kind="stable")]
    assert ranked().order("spin", "mean", 0.1, 0.5).to_pylist() == order, "an arm that picks does not spare"
    with pytest.raises(ValueError, match="spare is taken from mean influence"):
        Ranking(spare=0.5, by="votes")


# --- what cannot be ranked -------------------------------------------------------------------------------------------


def with_value(values: Array, row: int, column: int, value: float) -> Array:
    changed = values.copy()
    changed[row, column] = value
    return changed


@pytest.mark.parametrize("whiten", [None, 0.01])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_named(whiten: float | None, value: float) -> None:
    clips, queries = normal(0, 5, 8), normal(1, 2, 8)
    with pytest.raises(ValueError, match=r"clips: row 3, column 2 is .*not finite"):
        influence(with_value(clips, 3, 2, value), queries, whiten)
    with pytest.raises(ValueError, match=r"queries: row 1, column 7 is .*not finite"):
        influence(clips, with_value(queries, 1, 7, value), whiten)


@pytest.mark.parametrize("whiten", [None, 0.01])
def test_a_feature_without_a_direction_is_named(whiten: float | None) -> None:
    clips, queries = normal(0, 5, 8), normal(1, 2, 8)
    with pytest.raises(ValueError, match="clips: row 4 is zero in every column"):
        influence(np.concatenate([clips[:4], 0 * clips[:1]]), queries, whiten)
    with pytest.raises(ValueError, match="queries: row 0 is zero in every column"):
        influence(clips, 0 * queries, whiten)


@pytest.mark.parametrize(
    ("clips", "queries", "says"),
    [
        ((5, 8), (0, 8), "queries: there is no row"),
        ((5, 0), (2, 0), "clips: it has 5 rows without a column"),
        ((5, 8), (2, 7), "clips have 8 columns and queries 7"),
        ((8,), (2, 8), r"clips: its shape is \[8\]"),
        ((5, 8), (1, 2, 8), r"queries: its shape is \[1, 2, 8\]"),
    ],
)
def test_features_of_other_shapes_are_refused(clips: tuple[int, ...], queries: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        influence(normal(0, *clips), normal(1, *queries))


@pytest.mark.parametrize("whiten", [0, -0.1, math.nan, math.inf])
def test_a_whitening_that_cannot_be_is_refused(whiten: float) -> None:
    with pytest.raises(ValueError, match="whiten="):
        influence(normal(0, 5, 8), normal(1, 2, 8), whiten)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_longest_and_shortest_features_have_a_cosine_like_all(scale: float) -> None:
    clips, queries = normal(0, 5, 8), normal(1, 2, 8)
    assert np.allclose(influence(clips * np.float32(scale), queries * np.float32(scale)), influence(clips, queries))


def test_lists_and_whole_numbers_are_features_too() -> None:
    assert np.allclose(influence([[3, 4], [0, 1]], [[0, 2]]), [[0.8], [1.0]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "call", [votes, ranking.mean_influence, lambda i: select(i, ids(5)), lambda i: order(i, ids(5), "votes")]
)
def test_influence_that_is_not_finite_is_named(call: Callable[[Array], object], value: float) -> None:
    with pytest.raises(ValueError, match=r"influence: row 3, column 1 is .*not finite"):
        call(with_value(normal(0, 5, 2), 3, 1, value))


@pytest.mark.parametrize(
    ("shape", "says"),
    [((0, 2), "no clip with a feature"), ((5, 0), "without a query no clip can be ranked"), ((5,), "its shape is")],
)
@pytest.mark.parametrize("call", [votes, lambda i: select(i, ids(len(i))), lambda i: order(i, ids(len(i)), "mean")])
def test_influence_of_other_shapes_is_refused(
    call: Callable[[Array], object], shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        call(normal(0, *shape))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a", "b", "a"], "rows 0 and 2 have one id, 'a'"),
        (["a", "b"], "3 rows of influence need as many ids, and there are 2"),
        (["a", "b", "c", "d"], "there are 4"),
        (["a", None, "c"], "the id of row 1 is None"),
        ([1, 2, 3], "the id of row 0 is 1"),
        ("abc", "need as many ids"),
    ],
)
def test_ids_that_do_not_name_the_rows_are_refused(names: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        select(normal(0, 3, 2), names)


@pytest.mark.parametrize(
    "rule",
    [
        {"fraction": 0.0},
        {"fraction": 1.1},
        {"fraction": -0.1},
        {"fraction": math.nan},
        {"harmful": 1.0},
        {"harmful": -0.1},
        {"vote_fraction": 0.0},
        {"above": math.nan},
        {"by": "median"},
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(rule: dict[str, Any]) -> None:
    name, value = next(iter(rule.items()))
    with pytest.raises(ValueError, match=f"^{name}={value!r}: it must be"):
        select(normal(0, 3, 2), ids(3), **rule)


@pytest.mark.parametrize("fraction", [0.0, 1.5, math.nan])
def test_votes_of_no_share_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction="):
        votes(normal(0, 3, 2), fraction)
