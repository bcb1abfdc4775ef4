"""The index and its views against what the tables say, read plainly."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ConfigError, MissingTableError
from pipeline.ranking import decisions
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.training import arms
from pipeline.workbench import duplicates, facts, index, review, search, views
from pipeline.workbench.overview import commands, overview
from pipeline.workbench.people import Decision, Like, People, ReadOnlyError, Undo, Weighing
from pipeline.workbench.scores import Scores
from pipeline.workbench.views import SORTS, Spec, Views
from tests.support.workbenches import (
    COPY,
    CUT_OFF,
    GONE,
    GROUPS,
    LAWFUL,
    PRINT,
    START,
    names,
    run_of,
    words,
    write_lawfulness,
)

BATCH = "batch-{:04d}"


class Opened:
    def __init__(self, run: Run) -> None:
        self.run, self.index = run, index.read(run)
        self.people = People(self.index, True)
        self.scores = Scores(self.index, self.people)
        self.views = Views(self.index, self.people, {"weighted": self.scores.of_people, "like": self.scores.liked})
        self.said = 0

    def view(self, **spec: Any) -> list[str]:
        places = self.views.view(Spec(stamp=self.said, **spec)).places
        return self.index.ids.take(pa.array(places)).to_pylist()

    def say(self, word: str, *clips: str, by: str = "ann", **more: Any) -> str:
        self.said += 1
        batch = BATCH.format(self.said)
        self.people.decide(Decision(batch=batch, by=by, say=word, clips=list(clips), **more))
        return batch


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(run_of(tmp_path / "run"))


def selection(opened: Opened, group: str = "all") -> list[dict[str, Any]]:
    table = tables.read(stores.join(opened.run.root, "selection"))
    assert table is not None
    return sorted((r for r in table.to_pylist() if r["group"] == group), key=lambda r: r["rank"])


def test_views_are_in_the_order_of_the_tables(opened: Opened) -> None:
    for group in ("all", *GROUPS):
        ranked = [row["clip_id"] for row in selection(opened, group)]
        assert opened.view(group=group) == ranked
        assert opened.view(group=group, down=False) == ranked[::-1]
        chosen = [row["clip_id"] for row in selection(opened, group) if row["decision"] == "selected"]
        assert opened.view(group=group, where={"decision": ["selected"]}) == chosen
    assert opened.view(sort="name") == names(24)
    for sort in SORTS:
        assert sorted(opened.view(sort=sort)) == names(24), f"{sort} loses clips"
    assert opened.view(sort="random", seed=1) != opened.view(sort="random", seed=2)


def test_search_finds_captions_and_file_names_whatever_their_case(opened: Opened) -> None:
    assert sorted(opened.view(text="BLUE ball")) == names(24)[1::2]
    assert opened.view(text="clip-04.MP4") == ["clip-04"]
    assert opened.view(text="nothing of the kind") == []


def test_facets_count_what_their_own_filter_would_leave(opened: Opened) -> None:
    view = opened.views.view(Spec(where={"source": ["source 1"], "decision": ["selected"]}))
    rows = {row["clip_id"]: row["decision"] for row in selection(opened)}
    sources = {clip: f"source {n % 3}" for n, clip in enumerate(names(24))}
    assert view.facets["decision"] == {
        word: count
        for word in ("selected", "neutral", "harmful")
        if (count := sum(sources[i] == "source 1" and rows[i] == word for i in rows))
    }
    assert view.facets["source"] == {
        name: count
        for name in sorted(set(sources.values()))
        if (count := sum(sources[i] == name and rows[i] == "selected" for i in rows))
    }


def test_the_brush_keeps_what_lies_between(opened: Opened) -> None:
    values = {row["clip_id"]: row["mean_influence"] for row in selection(opened)}
    low, high = sorted(values.values())[5], sorted(values.values())[15]
    assert sorted(opened.view(low=low, high=high)) == sorted(i for i, v in values.items() if low <= v <= high)
    histogram = opened.views.view(Spec(low=low, high=high)).histogram
    assert sum(histogram["counts"]) == 24, "the histogram shows what the brush leaves out as well"


def test_a_view_in_pieces_is_what_a_plain_computation_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (index, views, search):
        monkeypatch.setattr(module, "STEP", 5)
    opened = Opened(run_of(tmp_path / "run"))
    rows = {row["clip_id"]: row for row in selection(opened, "roll")}
    captions = {row["clip_id"]: row["caption"] for row in opened.index.clips.to_pylist()}
    values = np.array([row["mean_influence"] for row in rows.values()], np.float32)
    low, high = np.sort(values)[[3, 20]].tolist()
    asked = {"group": "roll", "text": "BLUE ball", "where": {"decision": ["neutral", "harmful"]}, "low": low}
    blue = [i for i in rows if "blue ball" in captions[i].lower()]
    neutral = [i for i in blue if rows[i]["decision"] in ("neutral", "harmful")]
    assert opened.view(**asked, limit=2) == [i for i in neutral if low <= rows[i]["mean_influence"]][:2]
    view = opened.views.view(Spec(**asked, high=high))
    assert view.facets["decision"] == Counter(
        rows[i]["decision"] for i in blue if low <= rows[i]["mean_influence"] <= high
    )
    shown = [i for i in neutral if low <= rows[i]["mean_influence"] <= high]
    assert view.facets["source"] == Counter(f"source {names(24).index(i) % 3}" for i in shown)
    assert view.facets["people"] == {"nobody has said": len(shown)}
    assert opened.view(**asked, high=high) == shown
    first, last = np.quantile(values, (0.0005, 0.9995)).tolist()
    inside = np.clip([rows[i]["mean_influence"] for i in neutral], first, last)
    assert view.histogram["counts"] == np.histogram(inside, np.linspace(first, last, index.BINS + 1))[0].tolist()
    assert view.histogram["cut"] == min(row["mean_influence"] for row in rows.values() if row["decision"] == "selected")


@pytest.mark.parametrize("down", [True, False])
def test_an_order_by_score_is_that_of_a_stable_sort(down: bool) -> None:
    drawn = np.random.default_rng(0).standard_normal(1000).round(1)
    score = np.concatenate([drawn, [np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45] * 2]).astype(np.float32)
    plain = np.argsort(np.where(np.isnan(score), np.inf, -score if down else score), kind="stable")
    assert views.from_best(score, down).tolist() == plain.tolist()


@pytest.mark.parametrize(
    "spec", [{"group": "swim"}, {"sort": "luck"}, {"where": {"colour": ["red"]}}, {"sort": "like"}]
)
def test_what_no_view_can_be_is_said(opened: Opened, spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"swim|luck|colour|name a clip"):
        opened.view(**spec)


def test_an_index_without_a_ranking_shows_its_clips_and_damage_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    for name in ("selection", "influence"):
        stores.remove(stores.join(run.root, name))
    bare = Opened(run)
    assert sorted(bare.view()) == names(24)
    bare.say("keep", "clip-01")
    assert bare.view(where={"people": ["kept"]}) == ["clip-01"]
    damaged = run_of(tmp_path / "damaged")
    part = Path(tables.parts(stores.join(damaged.root, "selection"))[0])
    part.write_bytes(part.read_bytes()[:200])
    broken = Opened(damaged)
    assert any("part-all.parquet" in problem for problem in broken.index.problems)
    assert sorted(broken.view()) == names(24)


def test_a_root_without_clips_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    stores.remove(stores.join(run.root, "clips"))
    with pytest.raises(MissingTableError, match=r"no table clips/.*jobs\.index_clips"):
        index.read(run)


def test_file_names_are_without_folders_and_signatures() -> None:
    uris = {
        "/videos/a b/c.mp4": "c.mp4",
        "/videos/what?#1.mp4": "what?#1.mp4",
        "s3://bucket/x/d.mp4?X-Amz-Signature=secret/e.mp4": "d.mp4",
        "s3://bucket/shard.tar": "shard.tar",
        "plain.mp4": "plain.mp4",
        None: "",
    }
    names_of = index.file_names(pa.chunked_array([pa.array(list(uris), pa.string())]))
    assert names_of.to_pylist() == list(uris.values())


# --- people ----------------------------------------------------------------------------------------------------------


def test_what_is_said_stands_at_once_on_disk_and_in_views(opened: Opened) -> None:
    opened.say("keep", "clip-01", "clip-02", note="good")
    opened.say("drop", "clip-01", by="ben")
    assert opened.view(where={"people": ["kept"]}) == ["clip-02"]
    assert opened.view(where={"people": ["disputed"]}) == ["clip-01"]
    assert opened.view(where={"mine": ["said"]}, by="ben") == ["clip-01"]
    rows = words(opened.run.root)
    assert {(r["clip_id"], r["by"], r["say"]) for r in rows} == {
        ("clip-01", "ann", "keep"),
        ("clip-02", "ann", "keep"),
        ("clip-01", "ben", "drop"),
    }
    ranks = {row["clip_id"]: row["rank"] for row in selection(opened)}
    assert all(row["seen_rank"] == ranks[row["clip_id"]] and row["ranking"] for row in rows)
    again = Opened(opened.run)
    assert again.view(where={"people": ["disputed"]}) == ["clip-01"]


def test_two_servers_read_what_each_other_wrote(opened: Opened) -> None:
    other = Opened(opened.run)
    opened.say("keep", "clip-01")
    other.people.decide(Decision(batch="of-another-1", by="ben", say="drop", clips=["clip-01"]))
    for one in (opened, other):
        one.people.refresh()
        assert one.people.said(["clip-01"], "all")["clip-01"]["verdict"] == "disputed"


def test_a_batch_that_is_sent_twice_is_one_and_undo_takes_back_one_batch(opened: Opened) -> None:
    first = Decision(batch="sent-twice", by="ann", say="drop", clips=["clip-01"])
    opened.people.decide(first)
    opened.people.decide(first)
    second = opened.say("keep", "clip-01", "clip-04")
    opened.people.undo(Undo(batch="taken-back", by="ann", undone=second))
    opened.people.undo(Undo(batch="taken-back", by="ann", undone=second))
    assert len(words(opened.run.root)) == 5
    assert opened.people.said(["clip-01", "clip-04"], "all").keys() == {"clip-01"}
    assert opened.people.said(["clip-01"], "all")["clip-01"]["verdict"] == "drop"
    with pytest.raises(ValueError, match="is ann's"):
        opened.people.undo(Undo(batch="by-another-1", by="ben", undone=second))


def test_what_cannot_be_said(opened: Opened) -> None:
    with pytest.raises(ValueError, match="no clip 'nowhere'"):
        opened.say("keep", "nowhere")
    with pytest.raises(ValueError, match="no motion is called 'swim'"):
        opened.say("keep", "clip-01", group="swim")
    with pytest.raises(ValueError, match="named twice"):
        opened.say("keep", "clip-01", "clip-01")
    with pytest.raises(ValueError, match="no query 'q'"):
        opened.people.weigh(Weighing(batch="weights-1", by="ann", weights={"q": 0.5}))
    guest = People(opened.index, False)
    with pytest.raises(ReadOnlyError, match=r"workbench\.write"):
        guest.decide(Decision(batch="of-a-guest", by="ann", say="keep", clips=["clip-01"]))
    assert words(opened.run.root) == []


def test_decisions_of_another_run_and_damaged_ones_are_named_and_nothing_is_written(opened: Opened) -> None:
    opened.say("keep", "clip-01")
    folder = Path(opened.run.root) / "decisions"
    good = next(folder.iterdir()).read_bytes()
    foreign = tables.read(str(folder)).set_column(0, "batch", pa.array(["foreign-1"]))
    tables.append(str(folder), foreign, {"data.fps": 99.0})
    (folder / "part-x.parquet").write_bytes(good[:100])
    again = Opened(opened.run)
    assert len(again.people.problems) == 2
    assert any("data.fps=99.0" in problem for problem in again.people.problems)
    assert any("part-x.parquet" in problem for problem in again.people.problems)
    assert again.view(where={"people": ["kept"]}) == ["clip-01"]
    with pytest.raises(ReadOnlyError, match="cannot be read"):
        again.say("drop", "clip-02")
    alarms = overview(again.index, again.people, 6, "ann", None)["alarms"]
    assert sum(alarm.get("kind") == "damage" for alarm in alarms) == 2


# --- what follows ----------------------------------------------------------------------------------------------------


def curated(opened: Opened, group: str = "all") -> set[str]:
    """The clips of the arm, as fine-tuning takes them."""
    finetune = opened.run.finetune.model_copy(update={"arm": "curated", "group": group})
    ranking = opened.run.ranking.model_copy(update={"whiten": None, "fraction": 0.25})
    table = arms.training_set(opened.run.model_copy(update={"finetune": finetune, "ranking": ranking}))
    return set(table.column("clip_id").to_pylist())


def shown(opened: Opened, group: str, weights: dict[str, float]) -> set[str]:
    """The clips that the page says the arm has, under the weights that count now."""
    flags = opened.scores.curated(group, weights)
    return set(opened.index.ids.filter(pa.array(flags)).to_pylist())


@pytest.fixture
def quarter(tmp_path: Path) -> Opened:
    return Opened(run_of(tmp_path / "run", **{"ranking.fraction": 0.25, "ranking.whiten": None}))


def test_the_page_and_the_arm_take_the_same_clips(quarter: Opened) -> None:
    for group in ("all", *GROUPS):
        assert shown(quarter, group, {}) == curated(quarter, group)
    best, worst = selection(quarter)[0]["clip_id"], selection(quarter)[-1]["clip_id"]
    quarter.say("drop", best)
    quarter.say("keep", worst, "clip-10")
    assert {worst, "clip-10"} < curated(quarter)
    assert best not in curated(quarter)
    assert len(curated(quarter)) == quarter.scores.size("all") == 6
    assert shown(quarter, "all", {}) == curated(quarter)
    quarter.people.weigh(Weighing(batch="weights-1", by="ann", weights={"query-00": -1.0, "query-02": 0.25}))
    for group in ("all", *GROUPS):
        assert shown(quarter, group, quarter.people.query_weights()) == curated(quarter, group)


def test_weights_say_what_they_change_before_they_are_saved(quarter: Opened) -> None:
    before = curated(quarter, "roll")
    weights = {"query-00": -1.0}
    changes = quarter.scores.changes("roll", weights)
    assert changes["in"] == changes["out"] == len(changes["came"]) > 0
    assert set(changes["went"]) <= before
    assert not set(changes["came"]) & before
    assert set(quarter.scores.alone("roll", weights)) == {"query-00", "query-02"}
    quarter.people.weigh(Weighing(batch="weights-1", by="ann", weights=weights))
    assert curated(quarter, "roll") == before - set(changes["went"]) | set(changes["came"])
    with pytest.raises(ConfigError, match="weight 0"):
        quarter.scores.changes("roll", {"query-00": 0.0, "query-02": 0.0})


def test_likeness_is_the_cosine_of_features(opened: Opened) -> None:
    near = opened.view(sort="like", like={COPY: 1})
    assert set(near[:2]) == {COPY, "clip-08"}
    assert opened.view(sort="like", like={COPY: -1})[-2:] == near[:2][::-1]
    opened.people.like(Like(batch="likes-001", by="ann", clip=COPY, sign=1))
    assert opened.people.liked("ann", "all") == {COPY: 1}
    opened.people.like(Like(batch="likes-002", by="ann", clip=COPY, sign=0))
    assert opened.people.liked("ann", "all") == {}


def test_copies_are_grouped_with_the_better_ranked_as_the_best(opened: Opened) -> None:
    groups = duplicates.groups(opened.index, opened.scores.features(), 0.97)
    assert [{clip["clip_id"] for clip in group["clips"]} for group in groups] == [{COPY, "clip-08"}]
    ranks = {row["clip_id"]: row["rank"] for row in selection(opened)}
    best = next(clip["clip_id"] for clip in groups[0]["clips"] if clip["best"])
    assert best == min((COPY, "clip-08"), key=lambda clip: ranks[clip])
    duplicates.write(opened.run.root, groups, "feature")
    assert tables.read(stores.join(opened.run.root, "duplicates")).num_rows == 2
    with pytest.raises(ValueError, match="threshold"):
        duplicates.groups(opened.index, opened.scores.features(), 0.5)


def test_clips_that_features_have_and_the_index_lacks_change_no_score_and_are_no_copies(opened: Opened) -> None:
    before = opened.scores.liked(Spec(like={"clip-09": 1}))
    rows = tables.read(stores.join(opened.run.root, "clips"))
    assert rows is not None
    absent = pa.array(["clip-04", COPY])
    present = rows.filter(pc.invert(pc.is_in(rows.column("clip_id"), absent)))
    tables.replace(stores.join(opened.run.root, "clips"), present, PRINT)
    reindexed = Opened(opened.run)
    features = reindexed.scores.features()
    assert (features.places >= 0).all()
    ids = reindexed.index.ids.to_pylist()
    after = dict(zip(ids, reindexed.scores.liked(Spec(like={"clip-09": 1})).tolist(), strict=True))
    expected = dict(zip(opened.index.ids.to_pylist(), before.tolist(), strict=True))
    assert after == pytest.approx({clip_id: expected[clip_id] for clip_id in ids})
    assert duplicates.groups(reindexed.index, features, 0.97) == []


def test_copies_by_bytes_are_the_same_file_under_several_names(opened: Opened) -> None:
    copies = duplicates.copies(opened.index)
    of_films = [{name for n, name in enumerate(names(24)) if n % 3 == film} - {GONE, CUT_OFF} for film in range(3)]
    assert sorted(sorted(clip["clip_id"] for clip in group["clips"]) for group in copies.groups) == sorted(
        sorted(one) for one in of_films
    )
    assert copies.unread == 1, "a video that is not there"
    ranks = {row["clip_id"]: row["rank"] for row in selection(opened)}
    for group in copies.groups:
        ranked = [ranks[clip["clip_id"]] for clip in group["clips"] if clip["clip_id"] in ranks]
        assert [clip["best"] for clip in group["clips"]] == [True] + [False] * (len(group["clips"]) - 1)
        assert ranked[0] == min(rank for rank in ranked if rank is not None)


def test_files_of_one_size_are_copies_only_if_every_byte_is_the_same(opened: Opened, tmp_path: Path) -> None:
    data = bytearray(np.random.default_rng(0).bytes(3 * duplicates.ENDS))
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(data)
    data[len(data) // 2] ^= 1
    (tmp_path / "c").write_bytes(data)  # another one, though both of its ends are the same
    copies = duplicates.copies(addressed(opened, [str(tmp_path / name) for name in "abc"]))
    assert [[clip["clip_id"] for clip in group["clips"]] for group in copies.groups] == [sorted_by_rank(opened, 0, 1)]


def test_in_a_store_equal_etags_are_copies_and_dates_say_nothing(opened: Opened) -> None:
    uris = [f"s3://bucket/{n}.mp4" for n in range(6)] + [
        "s3://bucket/a.tar#512+99:0.mp4",
        "s3://bucket/a.tar#9999+99:1.mp4",
    ]
    versions = ["a" * 32, "a" * 32, f"{'b' * 32}-2", f"{'b' * 32}-2", "2026-11-28", "2026-11-28", "c" * 32, "c" * 32]
    copies = duplicates.copies(addressed(opened, uris, versions))
    listed = [sorted(clip["clip_id"] for clip in group["clips"]) for group in copies.groups]
    assert sorted(listed) == [["clip-00", "clip-01"], ["clip-02", "clip-03"]]
    assert copies.unread == 4
    same = duplicates.copies(addressed(opened, ["s3://bucket/a.mp4"] * 2, ["2026", "2026"]))
    assert len(same.groups) == 1, "one address under two ids"


def addressed(opened: Opened, uris: list[str], versions: list[str] | None = None) -> index.Index:
    """The index with its first clips at these addresses, and no others."""
    clips = opened.index.clips.slice(0, len(uris))
    for name, values in (("uri", uris), ("version", versions or ["1"] * len(uris))):
        clips = clips.set_column(clips.column_names.index(name), name, pa.chunked_array([values], pa.string()))
    standings = {
        name: index.Standing(*(column[: len(uris)] for column in (one.rank, one.influence, one.decision, one.barred)))
        for name, one in opened.index.standings.items()
    }
    return dataclasses.replace(opened.index, clips=clips, standings=standings)


def sorted_by_rank(opened: Opened, *places: int) -> list[str]:
    rank = opened.index.standing("all").rank
    return [names(24)[at] for at in sorted(places, key=lambda at: rank[at])]


def test_queues_leave_out_what_one_has_spoken_of(opened: Opened) -> None:
    def queue(name: str, by: str = "ann") -> list[str]:
        return opened.view(**review.spec(name, "all", by, 5, 0, opened.said).model_dump(exclude={"stamp"}))

    near = queue("near")
    size = sum(row["decision"] == "selected" for row in selection(opened))
    ranks = {row["clip_id"]: row["rank"] for row in selection(opened)}
    assert all(abs(ranks[clip] - size) <= 6 for clip in near)
    opened.say("keep", near[0])
    assert near[0] not in queue("near")
    assert near[0] in queue("near", "ben")
    assert queue("disputed") == []
    opened.say("drop", near[0], by="ben")
    assert queue("disputed") == [near[0]]
    assert set(queue("harmful")) <= {"clip-10", "clip-11"}
    with pytest.raises(ValueError, match="no queue"):
        queue("luck")


def test_agreement_counts_blind_words_alone_and_all(opened: Opened) -> None:
    top, low = selection(opened)[0]["clip_id"], selection(opened)[-1]["clip_id"]
    for by in ("ann", "ben"):
        opened.say("keep", top, by=by, blind=True)
        opened.say("drop", low, by=by, blind=True)
    opened.say("drop", "clip-04")
    agreements = review.agreements(opened.index, opened.people, "all")
    assert (agreements["blind"]["words"], agreements["blind"]["twice"], agreements["blind"]["alpha"]) == (4, 2, 1.0)
    assert agreements["blind"]["with_ranking"] == 1.0
    assert agreements["all"]["words"] == 5


def test_a_clip_is_told_with_all_that_is_known(opened: Opened) -> None:
    opened.say("keep", "clip-04", note="of use", group="roll")
    clip_facts = facts.clip(opened.index, opened.people, "clip-04", "roll")
    assert clip_facts is not None
    assert [one["group"] for one in clip_facts["motions"]] == ["all", *GROUPS]
    assert [query["influence"] for query in clip_facts["queries"]] == sorted(
        (query["influence"] for query in clip_facts["queries"]), reverse=True
    )
    assert clip_facts["words"][0]["note"] == "of use"
    assert not clip_facts["words"][0]["outdated"]
    assert facts.clip(opened.index, opened.people, "nowhere", "all") is None


def test_captions_that_must_not_be_shown_are_not(tmp_path: Path) -> None:
    hidden = Opened(run_of(tmp_path / "run", **{"report.captions": False}))
    assert hidden.view(text="blue") == []
    clip_facts = facts.clip(hidden.index, hidden.people, "clip-04", "all")
    assert "ball" not in str(clip_facts)


def test_commands_name_the_run_and_the_arm(opened: Opened) -> None:
    lines = [one["line"] for one in commands(opened.index)]
    assert any("finetune.arm=curated" in line for line in lines)
    assert any("export.format=musubi" in line for line in lines)
    assert all(str(opened.run.root) in line for line in lines)


def test_decisions_on_an_older_version_are_asked_again(opened: Opened) -> None:
    old = {"batch": "old-batch", "clip_id": "clip-04", "version": "0", "group": "all", "say": "drop", "by": "ann"}
    row = dict.fromkeys(schemas.DECISIONS.names) | old
    table = pa.Table.from_pylist([{**row, "at": START}], schema=schemas.DECISIONS)
    tables.append(stores.join(opened.run.root, "decisions"), table, decisions.fingerprint(opened.run.root))
    again = Opened(opened.run)
    assert again.view(where={"people": ["dropped"]}) == []
    assert "clip-04" in again.view(where={"mine": ["not said"]}, by="ann")
    assert facts.clip(again.index, again.people, "clip-04", "all")["words"][0]["outdated"]


def test_clips_are_filtered_by_the_law_that_they_break_and_sorted_by_how_far_they_are(tmp_path: Path) -> None:
    opened = Opened(write_lawfulness(run_of(tmp_path / "run")))
    counts = opened.views.view(Spec()).facets["law or flaw"]
    assert counts == {"frozen": 1, "jerk": 1, "neither": 2, "turning": 1}
    assert sorted(opened.view(where={"law or flaw": ["jerk", "frozen"]})) == ["clip-02", "clip-09"]
    far = ["clip-06", "clip-04", "clip-02", "clip-09", "clip-01"]
    assert opened.view(sort="distance")[:5] == far, "the farthest first, and clips of unknown flow last"
    quantiles = [LAWFUL[clip][1] for clip in far]
    assert quantiles == sorted(quantiles), "the order is that of quantiles"


def test_a_clip_says_its_lawfulness_or_why_it_is_not_known(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    bare = facts.clip(Opened(run).index, Opened(run).people, "clip-02", "all")
    assert bare is not None
    assert (bare["quantile"], bare["violation"]) == (None, None)
    assert bare["lawfulness"].startswith("its lawfulness is not known: ")
    assert "law or flaw" not in Opened(run).views.view(Spec()).facets
    opened = Opened(write_lawfulness(run))
    cards = {row["clip_id"]: row for row in facts.cards(opened.index, opened.people, range(10), "all")}
    said = {clip: (cards[clip]["quantile"], cards[clip]["violation"]) for clip in ("clip-02", "clip-03", "clip-06")}
    assert said == {"clip-02": (0.02, "jerk"), "clip-03": (None, None), "clip-06": (0.02, "neither")}
    clip_facts = facts.clip(opened.index, opened.people, "clip-09", "all")
    assert clip_facts is not None
    assert "quantile 0.300" in clip_facts["lawfulness"]
    assert "flaw frozen: its picture stands still for 40% of the clip" in clip_facts["lawfulness"]
    assert "law or flaw" not in clip_facts["columns"], "it is said once"
