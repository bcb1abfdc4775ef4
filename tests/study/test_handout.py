"""The blind study: nothing given away tells the arms, answers are neither lost nor doubled, scores recover what people
prefer, and what cannot be judged or scored is refused before anything is written."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs import study as job
from pipeline import tables
from pipeline.config import Run
from pipeline.config.study import Study
from pipeline.errors import ConfigError, InputError, MissingTableError, UsageError
from pipeline.storage import stores
from pipeline.study import answers, handout, pairs, preferences, results
from pipeline.study.answer_log import AnswerLog
from pipeline.study.answers import Answer
from pipeline.study.handout import spoiled
from pipeline.study.pairs import Key
from pipeline.video.frames import write_mp4
from tests.support.registered import unregistered
from tests.support.s3_store import BUCKET, Store
from tests.support.studies import EVIL, FPS, answer, key_of, known, lines, paper_key, run_of

ARMS = ("base", "motive", "no_mask")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_of(tmp_path_factory.mktemp("study"), ARMS, captions=4, catch=0.3)
    job.study(run)
    return run


# --- what is given away ----------------------------------------------------------------------------------------------


def test_nothing_in_the_handout_tells_the_arms(built: Run) -> None:
    folder, key = Path(built.root) / "study" / "handout", key_of(built)
    given = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert given[0] == "index.html"
    assert all(re.fullmatch(r"videos/[0-9a-f]{24}\.mp4", name) for name in given[1:])
    assert sorted(given[1:]) == sorted(f"videos/{s.video}.mp4" for p in key.pairs for s in p.sides)
    page = (folder / "index.html").read_text()
    data = json.loads(re.search(r'id="study">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    for word in (*ARMS, key.salt, "identical", "broken", "generated", built.root):
        assert word not in json.dumps(data), f"the page's data say {word}"
        assert not any(word in (folder / name).read_bytes().decode("latin-1") for name in given[1:]), word
    for word in ("motive", "no_mask", key.salt, built.root):
        assert word not in page
    assert not (folder / "key.json").exists()
    assert len(set(given)) == 1 + 2 * len(data["trials"]), "pairs share a video, which tells who is often seen"
    modified = [(folder / name).stat().st_mtime_ns for name in given[1:]]
    assert modified == sorted(modified), "the order in which videos were written tells the arms"


def test_the_order_of_a_pair_in_the_source_belongs_to_no_arm() -> None:
    films = [(f"q{n}", 0) for n in range(400)]
    planned = pairs.plan(films, {f[0]: "" for f in films}, Study(arms=("base", "motive")), "ab" * 32)
    first = sum(sorted(s.video for s in p.sides)[0] == p.sides[0].video for p in planned)
    assert abs(first / len(planned) - 0.5) < 0.1
    names = [p.pair for p in planned]
    assert names == sorted(names)
    catch = [n for n, p in enumerate(planned) if p.kind != "arms"]
    assert abs(np.mean(catch) / len(planned) - 0.5) < 0.2, "catch trials lie together in the source"


def test_pairs_are_those_asked_for_and_catch_trials_their_share() -> None:
    films = [(f"q{n:02d}", seed) for n in range(25) for seed in (0, 1)]
    captions = {f[0]: "" for f in films}
    every = pairs.plan(films, captions, Study(arms=("base", "random", "motive"), catch=0), "01")
    assert len(every) == 3 * 50
    arm_pairs = {tuple(s.arm for s in p.sides) for p in every}
    assert arm_pairs == {("motive", "base"), ("motive", "random"), ("random", "base")}, "wins count for the later arm"
    settings = Study(arms=("base", "random", "motive"), subject="random", catch=0.1)
    some = pairs.plan(films, captions, settings, "01")
    kinds = [p.kind for p in some]
    assert kinds.count("arms") == 100
    assert kinds.count("identical") + kinds.count("broken") == 11
    assert abs(kinds.count("identical") - kinds.count("broken")) <= 1
    assert len({p.pair for p in some}) == len(some)
    again = pairs.plan(films, captions, settings, "02")
    caught = [{(p.kind, p.clip_id, p.seed, p.sides[0].arm) for p in plan if p.kind != "arms"} for plan in (some, again)]
    assert caught[0] == caught[1], "catch trials belong to the seed"
    assert not {p.pair for p in some} & {p.pair for p in again}, "names belong to the salt"


def test_a_broken_video_is_broken_even_where_nothing_moves(built: Run) -> None:
    still = np.repeat(np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3), dtype=np.uint8), 9, 0)
    broken = spoiled(still, "a")
    assert np.abs(np.diff(broken.astype(int), axis=0)).mean() > 20
    assert np.array_equal(broken, spoiled(still, "a"))
    assert np.array_equal(np.sort(broken.sum((1, 2, 3))), np.sort(still.sum((1, 2, 3)))), "other frames than its own"
    folder = Path(built.root) / "study" / "handout" / "videos"
    for pair in key_of(built).pairs:
        same = len({(folder / f"{s.video}.mp4").read_bytes() for s in pair.sides}) == 1
        assert same == (pair.kind == "identical")


def test_words_from_data_stay_words(built: Run) -> None:
    page = (Path(built.root) / "study" / "handout" / "index.html").read_text()
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "{{ 7 * 7 }}" in page, "a caption was taken for a template"
    assert not re.findall(r'(?:src|href|action)="(?!data:,)[^"]*"', page), "the page needs something else"


def test_captions_stay_off_the_page_where_the_configuration_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path, captions=2)
    job.study(run.model_copy(update={"report": run.report.model_copy(update={"captions": False})}))
    assert {p.caption for p in key_of(run).pairs} == {""}


def test_the_same_command_again_keeps_the_study_and_another_is_refused(built: Run) -> None:
    before = key_of(built)
    job.study(built)
    assert key_of(built) == before
    job.study(_asking(built, arms=()))
    for name, value in (("arms", ("base", "motive")), ("seed", 7), ("catch", 0.0), ("question", "Which?")):
        with pytest.raises(ConfigError, match=rf"study\.{name}=.*holds a study with {name}=.*move that folder away"):
            job.study(_asking(built, **{name: value}))
    assert key_of(built) == before


def test_a_build_that_was_killed_is_made_anew(tmp_path: Path) -> None:
    run = run_of(tmp_path, captions=2)
    left = Path(handout.place(run.root, "handout", "videos", "0123.mp4"))
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    job.study(run)
    assert not left.exists()
    assert len(list(left.parent.iterdir())) == 2 * len(key_of(run).pairs)


def test_a_handout_that_lost_files_is_neither_served_nor_built_over(tmp_path: Path) -> None:
    run = run_of(tmp_path, captions=2)
    job.study(run)
    videos = Path(handout.place(run.root, "handout", "videos"))
    gone = sorted(videos.iterdir())[1]
    gone.unlink()
    with pytest.raises(MissingTableError, match=rf"lacks 1 of its files, such as videos/{gone.name}, but its key"):
        job.study(run)
    shutil.rmtree(videos.parent)
    with pytest.raises(MissingTableError, match=r"lacks 9 of its files, such as index\.html"):
        job.study(_asking(run, serve=True))
    assert key_of(run)


def _asking(run: Run, **study: Any) -> Run:
    return run.model_copy(update={"study": run.study.model_copy(update=study)})


# --- what cannot be judged -------------------------------------------------------------------------------------------


def _refused(run: Run, *words: str) -> None:
    """The job refuses with these words, in one paragraph, and writes nothing."""
    before = sorted(Path(run.root).rglob("*"))
    with pytest.raises(UsageError) as error:
        job.study(run)
    for word in words:
        assert word in str(error.value), str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(Path(run.root).rglob("*")) == before


def test_bad_arms_and_videos_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    run = run_of(tmp_path, ARMS, captions=3)
    _refused(_asking(run, arms=()), "study.arms=[]", "at least two arms")
    _refused(_asking(run, arms=("base",)), "study.arms=['base']", "at least two arms")
    _refused(_asking(run, arms=("base", "oracle")), "oracle", "it has those of base, motive, no_mask", "jobs.finetune")
    place = sorted((tmp_path / "generated" / "motive").iterdir())[1]
    whole = place.read_bytes()
    frames = np.zeros((7, 32, 32, 3), np.uint8)
    write_mp4(str(place), frames, FPS)
    _refused(run, "differ in length or size", "motive: 7 frames of 32 x 32", "base: 9 frames of 32 x 32")
    write_mp4(str(place), np.zeros((9, 32, 48, 3), np.uint8), FPS)
    _refused(run, "motive: 9 frames of 32 x 48")
    write_mp4(str(place), np.zeros((18, 32, 32, 3), np.uint8), 2 * FPS)
    _refused(run, "does not run at data.fps=8")
    place.write_bytes(whole[: len(whole) // 2])
    _refused(run, str(place), "cannot be shown")
    place.unlink()
    _refused(run, "of the 9 videos", "1 are missing: motive of query", "jobs.evaluate")
    place.write_bytes(whole)
    folder = stores.join(run.root, "evaluation")
    tables.drop_where(folder, lambda t: pc.equal(t.column("arm"), "no_mask"), ["arm"])
    _refused(run, "no_mask", "it has those of base, motive")
    assert not (tmp_path / "study").exists()
    _refused(_asking(run, answers=str(tmp_path)), "holds no study")


def test_arms_from_two_trainings_are_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, captions=2)
    table = tables.read(stores.join(run.root, "evaluation"))
    assert table is not None
    rows = [{**r, "version": "another"} for r in table.to_pylist() if r["arm"] == "motive"][:2]
    tables.append(stores.join(run.root, "evaluation"), pa.Table.from_pylist(rows, schema=table.schema), {})
    _refused(run, "arm motive come from 2 trainings")


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers_that_cannot_be_scored_are_named_with_file_and_line(built: Run, tmp_path: Path) -> None:
    key = key_of(built)
    one, two, three, *_ = (answer(key, p, "Anna", known(p)) for p in key.pairs)
    (tmp_path / "a.jsonl").write_text(lines([one, two]))
    wrong = [
        lines([two.model_copy(update={"choice": "tie" if two.choice != "tie" else "left"})]),
        lines([three.model_copy(update={"study": "f" * 24})]),
        lines([three.model_copy(update={"pair": "0" * 24})]),
        lines([three.model_copy(update={"left": one.left})]),
        lines([three])[:-20] + "\n",
        lines([three]).replace("3.5", "NaN"),
        lines([three]).replace('"Anna"', '" "'),
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "\n",
    ]
    (tmp_path / "b.jsonl").write_text("\n" + "".join(wrong), encoding="latin-1")
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError) as error:
        job.study(_asking(built, answers=str(tmp_path)))
    message = str(error.value)
    assert "8 of 10 answers cannot be scored" in message
    b = tmp_path / "b.jsonl"
    for word in (
        f"{b}, line 2: it answers once more, and otherwise, what {tmp_path / 'a.jsonl'}, line 2 answers",
        f"{b}, line 3: it is of another study ('ffffffffffffffffffffffff'; this one is '{key.study}')",
        f"{b}, line 4: this study has no pair '000000000000000000000000'",
        f"{b}, line 5: its videos are not those of the pair",
        f"{b}, line 6: it is damaged",
        "and 3 more",
        "nothing was written",
    ):
        assert word in message, message
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert not Path(handout.place(built.root, "results.json")).exists()
    for place in ("nothing", "*.json", "a.jsonl/x"):
        with pytest.raises(ConfigError, match="there is no such file"):
            job.study(_asking(built, answers=str(tmp_path / place)))


@pytest.mark.parametrize(
    ("person", "accepted"), [("Ö", True), ("a 1", True), ("a\x1b[2J", False), ("\x07", False), (" a", False)]
)
def test_a_name_is_printable(built: Run, person: str, accepted: bool) -> None:
    key = key_of(built)
    line = answer(key, key.pairs[0], "x", None).model_copy(update={"person": person}).model_dump_json()
    if accepted:
        assert answers.parse(line).person == person
        return
    with pytest.raises(ValueError, match=r"damaged \(person"):
        answers.parse(line)


def test_files_folders_and_globs_hold_the_same_and_the_last_revision_counts(built: Run, tmp_path: Path) -> None:
    key = key_of(built)
    pair = next(p for p in key.pairs if p.kind == "arms")
    first = answer(key, pair, "Anna", pair.sides[1].video)
    second = answer(key, pair, "Anna", pair.sides[0].video, revision=1)
    other = answer(key, pair, "Bert", None)
    (tmp_path / "a.jsonl").write_text(lines([second, first]))
    (tmp_path / "b.jsonl").write_text(lines([other]).rstrip("\n"))  # an editor took the last line's end away
    (tmp_path / "c.jsonl").write_text(lines([second, other]))  # downloaded once more, after going back
    (tmp_path / "notes.txt").write_text("no answers")
    counted_answers = answers.read(str(tmp_path), key)
    assert counted_answers == answers.read(str(tmp_path / "*.jsonl"), key)
    assert [(a.person, a.chosen) for a in counted_answers] == [("Anna", pair.sides[0].video), ("Bert", None)]
    assert answers.read(str(tmp_path / "b.jsonl"), key) == [other]


# --- scores ----------------------------------------------------------------------------------------------------------


def crowd(key: Key, people: int, shares: tuple[float, float], careless: int = 0, spread: float = 0.3) -> list[Answer]:
    """People who prefer the first arm with probability shares[0] and see no difference with shares[1], each leaning a
    little, as do the videos; `careless` more choose at random, also in catch trials."""
    rng = np.random.default_rng(11)
    lean = {pair.pair: rng.normal(0, spread) for pair in key.pairs}
    crowd_answers = []
    for n in range(people + careless):
        own = rng.normal(0, spread)
        for pair in key.pairs:
            logit = np.log(np.array([shares[0], shares[1], 1 - sum(shares)]))
            logit[0] += own + lean[pair.pair]
            p = np.exp(logit) / np.exp(logit).sum()
            if n >= people:
                said = rng.choice(3)
            elif pair.kind != "arms":
                said = 1 if pair.kind == "identical" else 0
            else:
                said = rng.choice(3, p=p)
            video = (pair.sides[0].video, None, pair.sides[1].video)[said]
            name = f"person {n:02d}" if n < people else f"careless {n:02d}"
            crowd_answers.append(answer(key, pair, name, video, flip=bool(rng.integers(2))))
    return crowd_answers


def test_seventeen_people_and_fifty_videos_recover_the_preference(built: Run) -> None:
    """The paper's figures against base: 74.1 % wins, 12.3 % ties, 13.6 % losses, of 850 judgements."""
    key = paper_key()
    given = crowd(key, 17, (0.741, 0.123), careless=3)
    summary = results.score(built, key, given)
    row = summary["scores"]["passed"][0]
    assert (row["arm_a"], row["arm_b"]) == ("motive", "base")
    assert (row["judgements"], row["people"], row["videos"]) == (850, 17, 50)
    assert row["win"] + row["tie"] + row["loss"] == pytest.approx(1)
    assert row["win_low"] < 0.741 < row["win_high"]
    assert row["tie_low"] < 0.123 < row["tie_high"]
    assert row["loss_low"] < 0.136 < row["loss_high"]
    assert row["net_low"] > 0.3
    assert 0.05 < row["win_high"] - row["win_low"] < 0.25
    assert [p["person"] for p in summary["people"] if not p["counts"]] == [f"careless {n}" for n in (17, 18, 19)]
    everyone = summary["scores"]["everyone"][0]
    assert everyone["judgements"] == 1000
    assert everyone["win"] < row["win"], "those who choose at random dilute it"
    assert summary["left"]["left_low"] < 0.5 < summary["left"]["left_high"]
    assert 0 <= row["alpha"] < 0.4, "people agree little beyond chance where one arm nearly always wins"


def test_a_tie_between_arms_is_found_to_be_one(built: Run) -> None:
    row = results.score(built, paper_key(), crowd(paper_key(), 17, (0.44, 0.12)))["scores"]["passed"][0]
    assert row["net_low"] < 0 < row["net_high"]


def test_scores_belong_to_the_answers_and_not_to_their_order_or_sides(built: Run) -> None:
    key = paper_key(12)
    given = crowd(key, 5, (0.6, 0.2), careless=1)
    turned = [replace_sides(a) for a in reversed(given)]
    ours, theirs = (results.score(built, key, g) for g in (given, sorted(turned, key=lambda a: a.which)))
    assert ours["scores"] == theirs["scores"]
    assert ours["left"]["left"] == pytest.approx(1 - theirs["left"]["left"])


def replace_sides(a: Answer) -> Answer:
    other = {"left": "right", "right": "left", "tie": "tie"}[a.choice]
    return a.model_copy(update={"left": a.right, "right": a.left, "choice": other})


def crossed(people: int, captions: int) -> tuple[list[str], list[str]]:
    return [f"p{n}" for n in range(people) for _ in range(captions)], [f"c{n}" for n in range(captions)] * people


def test_what_nobody_said_may_still_be_said() -> None:
    persons, clips = crossed(17, 50)
    never, always = (preferences.interval([v] * 850, persons, clips, 0, 0) for v in (0.0, 1.0))
    assert never is not None
    assert always is not None
    assert (never.mean, never.low) == (0, 0)
    assert 1 / 17 < never.high < 4 / 17, "an interval of no width for what was never seen"
    assert (always.low, always.high) == pytest.approx((1 - never.high, 1))
    net = preferences.interval([1.0] * 850, persons, clips, 0, -1)
    assert net is not None
    assert net.low == pytest.approx(2 * always.low - 1), "wins less losses, where every other answer may be a loss"
    ties = preferences.interval([0.0] * 850, persons, clips, 0, -1)
    assert ties is not None
    assert ties.low == pytest.approx(-never.high) == -ties.high


@pytest.mark.parametrize(("people", "captions"), [(3, 40), (40, 3)])
def test_intervals_cover_where_people_or_captions_are_few_and_differ(people: int, captions: int) -> None:
    rng, (persons, clips), covered = np.random.default_rng(3), crossed(people, captions), []
    for _ in range(100):
        levels = 1 / (1 + np.exp(-rng.normal(size=min(people, captions))))
        p = np.repeat(levels, captions) if people < captions else np.tile(levels, people)
        interval = preferences.interval((rng.random(len(p)) < p).astype(float).tolist(), persons, clips, 0, 0)
        assert interval is not None
        assert 0 <= interval.low <= interval.high <= 1
        covered.append(interval.low <= 0.5 <= interval.high)
    assert np.mean(covered) > 0.9, f"{np.mean(covered):.0%} of the intervals hold the truth"


def test_one_person_alone_has_shares_and_no_interval(built: Run) -> None:
    summary = results.score(built, paper_key(5), crowd(paper_key(5), 1, (0.7, 0.1)))
    row = summary["scores"]["everyone"][0]
    assert row["win"] is not None
    assert row["win_low"] is None
    assert row["alpha"] is None
    assert "(-)" in "".join(results.lines(summary))


def test_scoring_writes_tables_json_and_a_page(built: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = key_of(built)
    given = [a.model_copy(update={"person": EVIL[:60]}) if "02" in a.person else a for a in crowd(key, 4, (0.8, 0.1))]
    given += [a for a in crowd(key, 1, (0.5, 0.2), careless=1) if "careless" in a.person]
    (tmp_path / "answers.jsonl").write_text(lines(given))
    job.study(_asking(built, answers=str(tmp_path / "answers.jsonl"), passing=1.0))
    printed = capsys.readouterr().out
    assert "motive vs base" in printed
    assert "failed the catch trials (below 100% right): careless 01" in printed
    folder = Path(built.root) / "study"
    assert unregistered(built.root) == []
    summary = json.loads((folder / "results.json").read_text())
    judged = pq.read_table(folder / "judgements").to_pylist()
    real = [p for p in key.pairs if p.kind == "arms"]
    assert len(judged) == 5 * len(real)
    assert len(real) == 3 * 4
    scores = {(r["who"], r["arm_a"], r["arm_b"]): r for r in pq.read_table(folder / "scores").to_pylist()}
    assert len(scores) == 6
    for row in summary["scores"]["passed"]:
        mine = [j for j in judged if (j["arm_a"], j["arm_b"]) == (row["arm_a"], row["arm_b"]) and j["counts"]]
        assert row["win"] == pytest.approx(np.mean([j["outcome"] == "win" for j in mine]))
        assert scores["passed", row["arm_a"], row["arm_b"]]["win"] == row["win"]
    page = (folder / "results.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"\b(nan|None|undefined)\b", re.sub(r"<[^>]*>|<style>.*?</style>", " ", page, flags=re.S))


def test_the_wins_are_those_of_the_arm_named_later(built: Run) -> None:
    key = key_of(built)
    favourite = [answer(key, p, "Anna", next(s.video for s in p.sides if s.arm == "base")) for p in key.pairs
                 if p.kind == "arms" and "base" in {s.arm for s in p.sides}]  # fmt: skip
    rows = preferences.scores(preferences.judgements(favourite, key), key.arms, 0)
    assert {(r["arm_a"], r["arm_b"]): (r["win"], r["loss"]) for r in rows} == {
        ("motive", "base"): (0, 1),
        ("no_mask", "base"): (0, 1),
    }


def test_settings_that_contradict_each_other_are_refused() -> None:
    for wrong in (
        {"arms": ("base", "base")},
        {"arms": ("base", "../x")},
        {"arms": ("base", "motive"), "subject": "random"},
        {"serve": True, "answers": "x"},
    ):
        with pytest.raises(ValueError, match=r"study|arms|subject|serve|pattern"):
            Study.model_validate(wrong)


def test_a_study_on_s3_is_built_and_scored_there(store: Store, tmp_path: Path) -> None:
    run = run_of(f"s3://{BUCKET}/runs/[a] study", captions=2, catch=0)
    job.study(run)
    key = key_of(run)
    names = {path.rsplit("/", 1)[-1] for path in stores.files(handout.place(run.root, "handout", "videos"))}
    assert names == {f"{s.video}.mp4" for p in key.pairs for s in p.sides}
    place = stores.join(run.root, "given", "a.jsonl")
    stores.write_bytes(place, lines([answer(key, p, "Anna", known(p)) for p in key.pairs]).encode())
    for where in (place, stores.join(run.root, "given")):
        job.study(_asking(run, answers=where))
    assert json.loads(stores.read_bytes(handout.place(run.root, "results.json")))["scores"]["everyone"][0]["win"] == 1
    with contextlib.closing(AnswerLog(str(tmp_path / "answers.sqlite"), key)) as log:
        for pair in key.pairs:
            log.add(answer(key, pair, "Bert", known(pair)).model_dump_json().encode())
    stores.write_bytes(stores.join(run.root, "given", "b.sqlite"), (tmp_path / "answers.sqlite").read_bytes())
    job.study(_asking(run, answers=stores.join(run.root, "given")))
    scored = json.loads(stores.read_bytes(handout.place(run.root, "results.json")))["scores"]["everyone"][0]
    assert (scored["people"], scored["win"]) == (2, 1)
    stores.write_bytes(place, b"damaged\n")
    with pytest.raises(InputError, match=r"s3://.*given/a\.jsonl, line 1: it is damaged"):
        job.study(_asking(run, answers=stores.join(run.root, "given")))
