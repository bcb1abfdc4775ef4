"""Two stages: who is chosen, what the chosen stand for, and what follows for whitening, shares and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from pipeline import config, tables
from pipeline.config import Ranking, Run
from pipeline.config.attribution import Shortlist
from pipeline.errors import ConfigError, MissingTableError
from pipeline.ranking import (
    Population,
    choosing,
    own_part,
    second_moment,
    selection,
    selection_blocks,
    shortlist,
    unit_settings,
    whitened,
)
from pipeline.ranking.choosing import chosen
from pipeline.tables import schemas

Array = npt.NDArray[np.float32]
N, K = 600, 16
SETTINGS = [{"timestep": 751, "noise": 0, "mask": "motion"}]

# Every clip's motion and both masks: the demo's recipe takes no more than its ranking compares.
EVERY: dict[str, Any] = {
    "motion.of": "all",
    "attribution.settings": [{"timestep": 751, "noise": 0, "mask": mask} for mask in ("motion", "none")],
}


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ids(count: int) -> list[str]:
    return [f"clip{i:05d}" for i in range(count)]


def choice(count: int, seed: int = 0, **shares: float) -> pa.Table:
    """shortlist/chosen/ of clips whose order by the cheaper variant is that of their ids."""
    names = pa.array(ids(count), pa.large_string())
    return pa.concat_tables(chosen(names, -np.arange(count, dtype=np.float32), Shortlist(**shares), seed))


# --- choosing --------------------------------------------------------------------------------------------------------


def test_first_last_and_a_random_audit_of_all_are_chosen() -> None:
    rows = choice(1000, top=0.2, bottom=0.05, audit=0.1).to_pylist()
    reasons = [row["reason"] for row in rows]
    assert reasons[:200] == ["top"] * 200
    assert reasons[950:] == ["bottom"] * 50
    audited = [row for row in rows if row["audited"]]
    assert len(audited) == 100
    assert {row["reason"] for row in audited} == {"top", "bottom", "audit"}, "the audit is not of all clips"
    assert all((row["reason"] == "audit") == row["audited"] for row in rows[200:950])
    assert 10 <= sum(row["reason"] == "top" for row in audited) <= 32, "not the share of a random draw"


def test_the_audit_belongs_to_seed_and_id() -> None:
    def drawn(count: int, seed: int) -> set[str]:
        return {row["clip_id"] for row in choice(count, seed, audit=0.1).to_pylist() if row["audited"]}

    assert drawn(1000, 0) == drawn(1000, 0)
    assert len(drawn(1000, 0) & drawn(1000, 1)) < 30, "another seed draws the same clips"
    assert len(drawn(1000, 0) & drawn(1100, 0)) >= 80, "a night's new clips change the audit of the old ones"


def test_shares_of_few_clips_do_not_meet() -> None:
    rows = choice(3, top=0.5, bottom=0.5, audit=0.01).to_pylist()
    assert [row["reason"] for row in rows] == ["top", "top", "bottom"]
    assert sum(row["audited"] for row in rows) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"top": 0.7, "bottom": 0.4, "frames": 5}, "more than all clips"),
        ({}, "changes nothing of attribution"),
        ({"frames": 17}, r"attribution\.shortlist\.frames=17"),
        ({"fps": 2}, r"attribution\.shortlist\.fps=2"),
        ({"parameters": "(a", "frames": 5}, "no regular expression"),
        ({"settings": [{"mask": "none"}]}, r"attribution\.shortlist\.settings: there is no setting of queries"),
        ({"top": 0.05, "frames": 5}, r"ranking\.fraction=0\.1 .* attribution\.shortlist\.top=0\.05"),
        ({"frame": 5}, "Did you mean `frames`"),
        ({"audit": 0, "frames": 5}, "greater than 0"),
    ],
)
def test_wrong_shortlists_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config.load("demo", {**EVERY, "attribution.shortlist": given})


def test_the_variant_has_what_it_names_and_the_rest_of_the_full_attribution() -> None:
    masked = {**EVERY, "ranking.mask": "motion"}
    masked["attribution.shortlist"] = {"frames": 5, "settings": [{"timestep": 501}]}
    run = config.load("demo", masked)
    cheaper = shortlist.variant(run)
    assert cheaper is not None
    assert cheaper.geometry == (5, 8.0, 32, 32)
    assert [s.timestep for s in cheaper.attribution.settings] == [501]
    assert cheaper.attribution.projection == run.attribution.projection
    assert cheaper.attribution.shortlist is None
    assert run.geometry == (9, 8.0, 32, 32)
    assert shortlist.motion_root(run) == cheaper.root, "motion is of one geometry"
    same = config.load("demo", masked | {"attribution.shortlist": {"settings": [{"timestep": 501}]}})
    assert shortlist.motion_root(same) == same.root, "motion of the same geometry is estimated twice"


# --- what the chosen stand for ---------------------------------------------------------------------------------------


def test_a_score_counts_its_own_row_once_however_many_it_stands_for() -> None:
    phi, queries = unit_settings(normal(0, 40, K) + normal(1, K), 1), unit_settings(normal(2, 3, K), 1)
    weights = np.array([1.0] * 20 + [25.0] * 15 + [0.0] * 5)
    total, whiten = float(weights.sum()), 0.01
    moment = second_moment(phi * np.sqrt(weights)[:, None].astype(np.float32))
    inverse = np.linalg.inv(moment / total + whiten * np.eye(K)).astype(np.float32)
    scores = phi @ whitened(queries, moment, total, whiten).T / own_part(phi, weights, inverse, total)[:, None]
    for n, row in enumerate(phi):
        once = moment + (1 - weights[n]) * np.outer(row, row)
        naive = row @ np.linalg.solve(once / total + whiten * np.eye(K), queries.T)
        assert np.allclose(scores[n], naive, rtol=1e-3, atol=1e-3), f"row {n} of weight {weights[n]}"


def write(run: Run, features: Array, queries: Array, on: list[str]) -> None:
    """Features of these clips in full, those of all queries, and the index."""
    clips = dict(zip(ids(len(features)), features, strict=True))
    for name, named in (("clips", {i: clips[i] for i in on}), ("queries", {f"q{n}": q for n, q in enumerate(queries)})):
        ones = np.ones((len(named), 1), np.float32)
        arrays = [
            pa.array(list(named)),
            pa.array(["v"] * len(named)),
            tables.vectors(np.stack(list(named.values()))),
            tables.vectors(ones),
            tables.vectors(ones),
            pa.array([9] * len(named), pa.int32()),
            pa.nulls(len(named), pa.string()),
        ]
        rows = pa.table(arrays, schema=schemas.features_schema(1, K))
        tables.append(f"{run.root}/features/{name}", rows, {}, settings=SETTINGS)
    index = {n: [None] * len(features) for n in schemas.CLIPS.names}
    tables.append(f"{run.root}/clips", pa.table({**index, "clip_id": list(clips)}, schema=schemas.CLIPS), {})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    shares = {"top": 0.2, "bottom": 0.1, "audit": 0.2, "frames": 5}
    return config.load("demo", {**EVERY, "root": str(tmp_path), "attribution.shortlist": shares})


def put(run: Run, table: pa.Table) -> list[str]:
    """Write shortlist/chosen/; the ids of the clips that are on it."""
    tables.replace(f"{run.root}/shortlist/chosen", table, {}, group="all")
    return [row["clip_id"] for row in table.to_pylist() if row["reason"]]


def test_whitening_and_shares_are_of_all_clips(run: Run) -> None:
    """The first and last have a direction of their own: a moment of the chosen alone would take it for common."""
    features = normal(0, N, K) + 3 * normal(1, K)
    features[: N // 5] += 4 * normal(2, K)
    queries = normal(3, 4, K) + 3 * normal(1, K)
    assert run.attribution.shortlist is not None
    shares = run.attribution.shortlist.model_dump(include={"top", "bottom", "audit"})
    table = choice(N, **shares)
    on = put(run, table)
    write(run, features, queries, on)
    ranked = selection.rank(run, "motion", 0.01)
    population = ranked.population
    assert population.count == N
    assert population.weights is not None
    assert population.weights.sum() == pytest.approx(N)
    by_id = dict(zip(ranked.clip_ids.to_pylist(), population.weights.tolist(), strict=True))
    reasons = {row["clip_id"]: row["reason"] for row in table.to_pylist()}
    assert {by_id[i] for i in on if reasons[i] != "audit"} == {1.0}, "first and last stand for others"
    between = 1 - shares["top"] - shares["bottom"]
    assert by_id[next(i for i in on if reasons[i] == "audit")] == pytest.approx(
        between * N / sum(r == "audit" for r in reasons.values())
    )
    phi = unit_settings(features, 1)
    chosen_rows = phi[[ids(N).index(i) for i in on]]
    weights = np.array([by_id[i] for i in on])
    estimated = second_moment(chosen_rows * np.sqrt(weights)[:, None].astype(np.float32)) / N
    whole, naive = second_moment(phi) / N, second_moment(chosen_rows) / len(on)
    assert np.linalg.norm(estimated - whole) < 0.5 * np.linalg.norm(naive - whole), "no better than the chosen's own"
    influences = np.stack([ranked.influence[q] for q in range(4)], 1)
    here, asked = phi[[ids(N).index(i) for i in ranked.clip_ids.to_pylist()]], unit_settings(queries, 1)
    full, alone = (here @ whitened(asked, moment, 1, 0.01).T for moment in (whole, naive))
    assert np.corrcoef(influences.ravel(), full.ravel())[0, 1] > 0.97
    assert np.abs(influences - full).mean() < 0.8 * np.abs(alone - full).mean(), (
        "no better than the chosen's own whitening"
    )
    others = selection.unranked(run, ranked)
    marks = ranked.marks(0.1)
    given = ranked.score("all", marks)[1]
    assert given.sum() == 4 * round(0.1 * N), "votes are a share of all clips"
    decided = pa.concat_tables(selection.selection_tables(ranked, Ranking(), marks, others)).to_pylist()
    assert len(decided) == N
    assert sum(row["decision"] == "selected" for row in decided) == round(0.1 * N), "not the share of all clips"
    left = {row["clip_id"]: row for row in decided if row["rank"] is None}
    assert len(left) == N - len(on)
    assert left["clip00300"]["decision"] == "neutral"
    assert (
        left["clip00300"]["reason"] == f"not ranked: not on the shortlist, rank 300 of {N} by the cheaper attribution"
    )


def test_the_estimate_is_free_of_bias() -> None:
    """Over 300 audits the weighted moments of the chosen have the mean of the whole, within four standard errors."""
    phi = unit_settings(normal(0, 400, 8) + np.linspace(-2, 2, 400, dtype=np.float32)[:, None] * normal(1, 8), 1)
    moments = []
    for seed in range(300):
        table = choice(400, seed, top=0.2, bottom=0.05, audit=0.1).to_pylist()
        reasons = [row["reason"] for row in table]
        between = 400 - reasons.count("top") - reasons.count("bottom")
        stands = {"top": 1.0, "bottom": 1.0, "audit": between / reasons.count("audit"), None: 0.0}
        weights = np.array([stands[r] for r in reasons], np.float32)
        moments.append(second_moment(phi * np.sqrt(weights)[:, None]))
    error = np.abs(np.mean(moments, 0) - second_moment(phi))
    assert (error < 4 * np.std(moments, 0) / 300**0.5 + 1e-3).all()


def test_what_failed_or_was_not_reached_is_made_up_for(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    table = choice(N, top=0.2, bottom=0.1, audit=0.2)
    on = put(run, table)
    features, queries = normal(0, N, K), normal(1, 4, K)
    write(run, features, queries, on[::2])  # the others were not reached
    half = selection.rank(run, "motion", None).population
    assert half.count == pytest.approx(N / 2, abs=2)
    assert half.weights is not None
    assert half.weights.sum() == pytest.approx(N / 2, abs=2)
    failed = pa.table({"clip_id": on[1::2], "version": ["v"] * len(on[1::2]), "error": ["decode: x"] * len(on[1::2])})
    tables.append(f"{run.root}/motion/clips", failed, {})
    whole = selection.rank(run, "motion", None).population
    assert whole.count == N, "clips that failed are not missing"
    assert whole.weights is not None
    assert whole.weights.sum() == pytest.approx(N)
    assert not caplog.records
    reasons = {row["clip_id"]: row["reason"] for row in table.to_pylist()}
    tables.drop(f"{run.root}/features/clips", [i for i in on if reasons[i] == "audit"])
    alone = selection.rank(run, "motion", None).population.weights
    assert alone is not None
    assert set(alone.tolist()) == {1.0}
    assert "no audited one has features" in caplog.text


def test_earlier_chosen_clips_are_ranked_and_stand_for_nobody(run: Run) -> None:
    on = put(run, choice(N, top=0.2, bottom=0.1, audit=0.2))
    before = next(i for i in ids(N) if i not in on)
    write(run, normal(0, N, K), normal(1, 4, K), [*on, before])
    ranked = selection.rank(run, "motion", 0.01)
    names = ranked.clip_ids.to_pylist()
    assert before in names
    assert ranked.population.weights is not None
    assert ranked.population.weights[names.index(before)] == 0
    assert ranked.population.weights.sum() == pytest.approx(N)


def test_the_share_of_the_harmful_is_of_all_clips_and_not_of_the_chosen() -> None:
    """Eight rows stand for twenty clips."""
    mean, names = np.arange(8, 0, -1).astype(np.float32), pa.array(ids(8), pa.large_string())
    rule, votes = Ranking(fraction=0.1, harmful=0.1), np.zeros(8, np.int32)
    unlawful = pa.table({"clip_id": ids(8)[4:], "reason": ["law"] * 4})
    population = Population(20, np.array([1, 1, 1, 1, 7, 7, 1, 1.0]))
    table = pa.concat_tables(selection_blocks(mean, votes, names, 1, rule, population, unlawful))
    expected = ["selected"] * 2 + ["neutral"] * 2 + ["harmful"] * 2 + ["neutral"] * 2
    assert table.column("decision").to_pylist() == expected
    alone = pa.concat_tables(selection_blocks(mean, votes, names, 1, rule, None, unlawful))
    assert alone.column("decision").to_pylist().count("harmful") == 1


# --- how good it is --------------------------------------------------------------------------------------------------


def test_the_audit_tells_how_good_the_shortlist_is(run: Run) -> None:
    """Cheaper and full agree but for one audited clip of the middle, which the full setting has first."""
    table = choice(N, top=0.2, bottom=0.1, audit=0.2)
    on = put(run, table)
    odd = next(row["clip_id"] for row in table.to_pylist() if row["reason"] == "audit")
    order = [odd, *(i for i in on if i != odd)]
    columns = {"votes": 0, "group": "all", "decision": "neutral", "weight": 0.0, "reason": ""}
    rows = [{**columns, "clip_id": i, "rank": n, "mean_influence": -float(n)} for n, i in enumerate(order)]
    tables.replace(f"{run.root}/selection", pa.Table.from_pylist(rows, schema=schemas.SELECTION), {})
    quality = choosing.quality(run)
    assert quality is not None
    assert (quality["clips"], quality["top"], quality["bottom"]) == (600, 120, 60)
    assert (quality["audited"], quality["compared"]) == (120, 120)
    assert 0.9 < quality["spearman"] < 1
    assert (quality["found_top"]["count"], quality["found_top"]["found"]) == (12, 11)
    low, high = quality["found_top"]["interval"]
    assert low < quality["found_top"]["share"] < high < 1
    assert quality["found_bottom"]["count"] == 12
    assert quality["found_bottom"]["found"] == min(12, sum(r["audited"] for r in table.to_pylist()[540:]))
    said = choosing.sentences(quality)
    assert "of 600 clips 120 first, 60 last and 120 audited" in said[0]
    assert "of their 12 first by the full setting 11 are on the shortlist" in said[1]
    assert len(said) == 2, "a warning for 120 audited clips"
    few = choosing.sentences({**quality, "compared": 19})
    assert "say next to nothing" in few[-1]
    assert "nothing is known" in choosing.sentences({**quality, "compared": 0})[-1]


def test_without_a_shortlist_nothing_changes(tmp_path: Path) -> None:
    plain = config.load("demo", {"root": str(tmp_path)})
    assert choosing.quality(plain) is None
    assert shortlist.variant(plain) is None
    assert shortlist.population(plain, pa.array(["a"], pa.large_string())) is None
    asked = config.load("demo", {**EVERY, "root": str(tmp_path), "attribution.shortlist": {"frames": 5}})
    with pytest.raises(MissingTableError, match=r"shortlist/chosen.*extract_features"):
        shortlist.chosen(asked)
