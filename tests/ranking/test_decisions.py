"""People's decisions: a function of the set of rows in any order and parts; undo takes back one batch alone."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.errors import ConfigError, FingerprintError, InputError
from pipeline.ranking import decisions, query_weights
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.tables.merging import merge
from tests.support.s3_store import BUCKET, seen_by, served

START = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)
VERSIONS = pa.table({"clip_id": ["a", "b", "c"], "version": ["1", "1", "2"]})


def row(batch: str, clip: str, say: str, by: str = "ann", at: int = 0, **more: Any) -> dict[str, Any]:
    row = dict.fromkeys(schemas.DECISIONS.names) | {"batch": batch, "clip_id": clip, "say": say, "by": by}
    version = "2" if clip == "c" else "1"
    return {**row, "version": version, "group": "all", "at": START + datetime.timedelta(seconds=at), **more}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schemas.DECISIONS)


def said(rows: list[dict[str, Any]] | pa.Table, group: str = "all") -> dict[str, tuple[str, str]]:
    records = rows if isinstance(rows, pa.Table) else table(rows)
    verdicts = decisions.verdicts(records, group, VERSIONS).to_pylist()
    return {r["clip_id"]: (r["verdict"], r["by"]) for r in verdicts}


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Batches of several people on three clips and two groups, some of one moment, some on an older version."""
    rows = []
    for n in range(draw(st.integers(1, 8))):
        by, at, group = draw(st.sampled_from("xyz")), draw(st.integers(0, 4)), draw(st.sampled_from(["all", "roll"]))
        for clip in draw(st.sets(st.sampled_from("abc"), min_size=1)):
            say, version = draw(st.sampled_from(["keep", "drop", "clear"])), draw(st.sampled_from("12"))
            rows.append(row(f"b{n}", clip, say, by, at, group=group, version=version))
    return rows


@settings(max_examples=40)
@given(histories(), st.randoms(use_true_random=False), st.lists(st.integers(0, 60), max_size=3))
def test_any_order_and_split_of_the_rows_give_one_state(
    rows: list[dict[str, Any]], random: Any, cuts: list[int]
) -> None:
    first = {group: decisions.verdicts(table(rows), group, VERSIONS) for group in ("all", "roll", "fall")}
    mixed = [*rows, *random.sample(rows, len(rows) // 2)]  # some come twice
    random.shuffle(mixed)
    ends = sorted(cut % (len(mixed) + 1) for cut in cuts)
    parts = [mixed[a:b] for a, b in zip([0, *ends], [*ends, len(mixed)], strict=True)]
    again = pa.concat_tables([table(part) for part in parts])
    for group, state in first.items():
        assert decisions.verdicts(again, group, VERSIONS).equals(state)


def test_a_digest_is_of_the_set_of_rows() -> None:
    rows = [row("1", "a", "keep"), row("2", "b", "drop")]
    assert decisions.digest(table(rows)) == decisions.digest(table(rows[::-1]))
    assert decisions.digest(table(rows)) != decisions.digest(table(rows[:1]))


def by_hand(rows: list[dict[str, Any]], group: str) -> dict[str, tuple[str, str]]:
    """The rule in plain words, as an oracle."""
    present = dict(zip(VERSIONS["clip_id"].to_pylist(), VERSIONS["version"].to_pylist(), strict=True))
    words: dict[tuple[str, str], str] = {}
    for about in dict.fromkeys(("all", group)):
        latest: dict[tuple[str, str], dict[str, Any]] = {}
        for r in sorted(rows, key=lambda r: (r["at"], r["batch"])):
            if r["group"] == about and present[r["clip_id"]] == r["version"]:
                latest[r["clip_id"], r["by"]] = r
        words |= {key: r["say"] for key, r in latest.items() if r["say"] != "clear"}
    state = {}
    for clip in sorted({clip for clip, _ in words}):
        people = sorted(by for c, by in words if c == clip)
        says = {words[clip, by] for by in people}
        state[clip] = (says.pop() if len(says) == 1 else "disputed", ", ".join(people))
    return state


@settings(max_examples=40)
@given(histories())
def test_the_state_is_that_of_the_rule(rows: list[dict[str, Any]]) -> None:
    for group in ("all", "roll", "fall"):
        assert said(rows, group) == by_hand(rows, group)


@settings(max_examples=40)
@given(histories(), st.integers(0, 7))
def test_undo_is_exact(rows: list[dict[str, Any]], which: int) -> None:
    batch = f"b{which}"
    without = [r for r in rows if r["batch"] != batch]
    taken_back = decisions.undo(table(rows), batch).to_pylist()
    later = [{**r, "batch": "undo", "at": START + datetime.timedelta(days=1)} for r in taken_back]
    for group in ("all", "roll", "fall"):
        assert said([*rows, *later], group) == said(without, group)


def test_two_who_differ_are_in_dispute_until_one_clears() -> None:
    rows = [row("1", "a", "keep", "ann", 1), row("2", "a", "drop", "ben", 2)]
    assert said(rows) == {"a": ("disputed", "ann, ben")}
    assert said([*rows, row("3", "a", "clear", "ann", 3)]) == {"a": ("drop", "ben")}
    assert said([*rows, row("3", "a", "keep", "ben", 3)]) == {"a": ("keep", "ann, ben")}


def test_a_decision_on_an_older_version_does_not_count_and_is_not_lost() -> None:
    old = row("1", "c", "drop", version="1")
    assert said([old]) == {}
    assert said([old, row("2", "c", "keep", at=1)]) == {"c": ("keep", "ann")}
    assert decisions.verdicts(table([old]), "all").to_pylist()[0]["verdict"] == "drop", "without versions all count"


def test_a_word_on_one_motion_counts_for_it_before_that_on_all() -> None:
    rows = [row("1", "a", "keep", group="roll"), row("2", "a", "drop", at=9)]
    assert said(rows, "roll") == {"a": ("keep", "ann")}
    assert said(rows, "fall") == said(rows) == {"a": ("drop", "ann")}


def test_the_order_of_the_curated() -> None:
    ordered = pa.array(["best", "second", "third", "harm", "fourth"], pa.large_string())
    rows = [row("1", "third", "keep"), row("2", "second", "drop"), row("3", "harm", "keep"), row("4", "best", "keep")]
    rows += [row("5", "best", "drop", "ben"), row("6", "unranked", "keep")]
    order = decisions.curated_order(ordered, pa.array(["harm"]), decisions.verdicts(table(rows), "all"))
    assert order.to_pylist() == ["third", "harm", "unranked", "fourth"]


# --- on disk ---------------------------------------------------------------------------------------------------------


def write(root: str, *batches: list[dict[str, Any]], fingerprint: dict[str, Any] | None = None) -> None:
    for rows in batches:
        tables.append(stores.join(root, "decisions"), table(rows), fingerprint or {"data.fps": 8.0})


def clips(root: str) -> None:
    rows = [dict.fromkeys(schemas.CLIPS.names) | r for r in VERSIONS.to_pylist()]
    tables.append(stores.join(root, "clips"), pa.Table.from_pylist(rows, schema=schemas.CLIPS), {"data.fps": 8.0})


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "local":
        clips(str(tmp_path))
        yield str(tmp_path)
        return
    with served() as store:
        seen_by(monkeypatch, store)
        at = f"s3://{BUCKET}/runs/mine"
        clips(at)
        yield at


def test_several_write_at_once_nothing_is_lost_and_a_batch_sent_twice_is_one(root: str) -> None:
    ann, ben = [row("1", "a", "keep"), row("1", "b", "keep")], [row("2", "a", "drop", "ben", 1)]
    again = [row("3", "a", "keep", "ann", 2), row("3", "b", "keep", "ann", 2)]
    write(root, ann, ben, again, ann)
    assert len(tables.parts(stores.join(root, "decisions"))) == 3, "the same clips in another batch are another part"
    assert decisions.read(root).num_rows == 5
    state = decisions.run_verdicts(root, "all")
    merge(stores.join(root, "decisions"))
    assert len(tables.parts(stores.join(root, "decisions"))) == 1
    write(root, ann)
    assert decisions.run_verdicts(root, "all").equals(state)


def test_nobody_has_decided_yet(tmp_path: Path) -> None:
    assert decisions.run_verdicts(str(tmp_path), "all").num_rows == 0


def test_decisions_of_another_run_are_refused_by_name(tmp_path: Path) -> None:
    clips(str(tmp_path))
    write(str(tmp_path), [row("1", "a", "keep")], fingerprint={"data.fps": 16.0})
    with pytest.raises(FingerprintError, match=r"decisions.*data\.fps=16\.0.*8\.0"):
        decisions.read(str(tmp_path))


def test_a_word_that_is_none_is_refused(tmp_path: Path) -> None:
    clips(str(tmp_path))
    write(str(tmp_path), [row("1", "a", "perhaps")])
    with pytest.raises(InputError, match=r"'perhaps'.*keep, drop, clear"):
        decisions.read(str(tmp_path))


# --- weights of queries ----------------------------------------------------------------------------------------------


def weight(batch: str, query: str, value: float, by: str = "ann", at: int = 0) -> dict[str, Any]:
    when = START + datetime.timedelta(seconds=at)
    return {"batch": batch, "query_id": query, "weight": value, "by": by, "at": when}


def weighed(rows: list[dict[str, Any]]) -> dict[str, float]:
    return query_weights.weights(pa.Table.from_pylist(rows, schema=schemas.QUERY_WEIGHTS))


def test_the_latest_weight_of_each_person_counts_and_people_are_averaged() -> None:
    rows = [weight("1", "q", 0.0), weight("2", "q", -1.0, at=1), weight("3", "q", 0.5, "ben"), weight("4", "p", 0.5)]
    assert weighed(rows) == weighed(rows[::-1]) == {"q": -0.25, "p": 0.5}


def test_weights_of_one_change_nothing_and_weights_of_nothing_are_refused() -> None:
    assert query_weights.of_queries({"other": 0.0}, ["p", "q"], "all") is None
    assert query_weights.of_queries({"q": -1.0}, ["p", "q"], "all").tolist() == [1, -1]
    with pytest.raises(ConfigError, match="every query of 'all' has the weight 0"):
        query_weights.of_queries({"p": 0.0, "q": 0.0}, ["p", "q"], "all")
