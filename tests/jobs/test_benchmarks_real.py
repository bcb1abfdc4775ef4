"""The benchmark on real videos: what it reads of a folder, how it splits, spoils and judges; and all of it on a folder
in KTH's layout whose people are looks of the synthetic world."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from jobs.benchmarks.matching import matched_halves
from jobs.benchmarks.quality import datamodel
from jobs.benchmarks.real import __main__ as job
from jobs.benchmarks.real import (
    bench,
    criteria,
    footage,
    layouts,
    options,
    people,
    puppets,
    scores,
    spoiling,
    studies,
    versions,
)
from jobs.benchmarks.real.options import Real
from pipeline.errors import ConfigError, InputError
from pipeline.models.schedule import Schedule
from pipeline.synthetic import shifted as shifted_world
from pipeline.synthetic import world
from pipeline.video.frames import write_mp4

SEQUENCES = "KTH's list\n\nperson01_boxing_d1\t\tframes\t1-95, 96-185\nperson13_handclapping_d3\t*missing*\n"


def touch(folder: Path, *names: str) -> str:
    """Files that are listed and never decoded."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")
    return str(folder)


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_kth_is_known_by_its_names_and_its_list(tmp_path: Path) -> None:
    where = touch(tmp_path, "person01_boxing_d1_uncomp.avi", "person02_running_d4_uncomp.avi", "trailer.avi")
    (tmp_path / layouts.SEQUENCES).write_text(SEQUENCES)
    listing = layouts.listed(where, Real())
    assert listing.layout == "kth"
    assert [(v.action, v.person, v.scene, v.spans) for v in listing.videos] == [
        ("boxing", "person01", "d1", ((0, 95), (95, 185))),
        ("running", "person02", "d4", ()),
    ]
    assert listing.videos[0].caption == "a person boxing"
    assert not listing.videos[0].captioned
    assert listing.unlabelled == ("trailer.avi",)


def test_weizmann_is_known_by_its_names(tmp_path: Path) -> None:
    listing = layouts.listed(touch(tmp_path, "daria_walk.avi", "lena_run2.avi", "ido_wave1.avi"), Real())
    assert listing.layout == "weizmann"
    assert {(v.person, v.action) for v in listing.videos} == {("daria", "walk"), ("lena", "run"), ("ido", "wave1")}


def test_folders_a_pattern_and_columns_say_action_and_person(tmp_path: Path) -> None:
    where = touch(tmp_path / "a", "jump/ann/1.mp4", "jump/bob/1.mp4", "run/ann/1.mp4")
    listing = layouts.listed(where, Real())
    assert listing.layout == "folders"
    assert [(v.action, v.person) for v in listing.videos] == [("jump", "ann"), ("jump", "bob"), ("run", "ann")]
    turned = layouts.listed(where, Real(folders="person/action"))
    assert turned.videos[0].person == "jump"
    by_pattern = layouts.listed(
        touch(tmp_path / "b", "ann-jump-3.mp4"), Real(pattern=r"(?P<person>\w+)-(?P<action>\w+)-")
    )
    assert (by_pattern.layout, by_pattern.videos[0].action) == ("pattern", "jump")
    folder = Path(touch(tmp_path / "c", "1.mp4", "2.mp4"))
    rows = [{"file_name": f"{n}.mp4", "does": "jump", "who": f"p{n}", "caption": "up"} for n in (1, 2)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    by_column = layouts.listed(str(folder), Real(action="does", person="who"))
    assert (by_column.layout, [v.person for v in by_column.videos]) == ("columns", ["p1", "p2"])
    assert by_column.videos[0].captioned


def test_what_says_no_person_is_refused_with_what_to_do(tmp_path: Path) -> None:
    where = touch(tmp_path, "one.mp4", "two.mp4")
    with pytest.raises(InputError, match=r"hardly one says its action and its person.*ACTION/PERSON/VIDEO"):
        layouts.listed(where, Real())
    with pytest.raises(ConfigError, match="no columns 'action' and 'person'"):
        layouts.listed(where, Real(layout="columns"))
    with pytest.raises(ConfigError, match="groups named action and person"):
        layouts.listed(where, Real(pattern="x"))


def test_own_keys_are_the_benchmarks_and_the_others_the_products() -> None:
    pairs = ["data.videos=x", "real.steps=7", "real.base_actions=[walk, run]", "data.height=64"]
    run, settings = options.read("tiny", pairs, short=True)
    assert (settings.steps, settings.base_actions, settings.subsets) == (7, ("walk", "run"), 6)
    assert (run.data.height, run.data.width, run.data.fps) == (64, 48, 8.33)
    with pytest.raises(ConfigError, match=r"real\.stepz.*Did you mean `steps`"):
        options.read("tiny", ["data.videos=x", "real.stepz=7"], short=False)


# --- people -----------------------------------------------------------------------------------------------------------


def test_kths_people_are_split_as_laid_down_and_fewer_in_proportion() -> None:
    assert people.quotas(25, 1) == {"base": 9, "corpus": 10, "queries": 3, "held_out": 3}
    assert people.quotas(8, 1) == {"base": 3, "corpus": 3, "queries": 1, "held_out": 1}
    for count in range(4, 60):
        assert sum(people.quotas(count, 1).values()) == count
    assert min(people.quotas(10, 2).values()) == 2
    with pytest.raises(InputError, match="show 3 persons, and 4 are the fewest"):
        people.quotas(3, 1)


def test_every_part_has_every_action_and_nobody_is_in_two() -> None:
    actions = {f"p{n}": frozenset({"jump" if n % 2 else "run"}) for n in range(10)}
    part_of = people.split(actions)
    assert part_of.keys() == actions.keys()
    for part in people.PARTS:
        shown = frozenset[str]().union(*(actions[person] for person, p in part_of.items() if p == part))
        assert shown == {"jump", "run"}, f"{part} lacks an action that people could have given it"
    turned = {person: actions[person] for person in reversed(actions)}
    assert people.split(turned) == part_of, "the order of the videos has no say"
    assert people.split(actions, seed=1) != part_of


# --- spoiling and designs ---------------------------------------------------------------------------------------------


def test_every_way_spoils_by_known_means() -> None:
    rng = np.random.default_rng(0)
    frames, other = (rng.integers(0, 255, (9, 12, 16, 3), dtype=np.uint8) for _ in range(2))
    of = {way: spoiling.spoiled(frames, way, "c", other) for way in spoiling.WAYS}
    assert all(changed.shape == frames.shape for changed in of.values())
    assert (of["frozen half"][4:] == frames[4]).all()
    assert (of["dropped and doubled frames"][1::2] == frames[:-1:2]).all()
    spliced = of["spliced with another clip"]
    assert (spliced[:5] == frames[:5]).all()
    assert (spliced[5:] == other[5:]).all()
    assert sorted(map(bytes, of["shuffled"])) == sorted(map(bytes, frames))
    assert (of["time to the power 3"][[0, -1]] == frames[[0, -1]]).all()
    assert (of["time to the power 3"][4] == frames[1]).all()
    pan = of["a still with a pan"]
    assert set(np.unique(pan)) <= set(np.unique(frames[0]))
    assert (pan[0] != pan[-1]).any()
    assert (of[spoiling.CAPTION] == frames).all()


def test_a_wrong_caption_is_one_of_another_action() -> None:
    corpus = [
        footage.Segment(f"c{n}", "u", "v", 0, "jump" if n % 2 else "run", f"p{n}", "", f"caption {n % 2}")
        for n in range(20)
    ]
    spoiled = footage.spoil(corpus, 0.5)
    assert len(spoiled) == 10
    assert {segment.way for segment in spoiled} == set(spoiling.WAYS)
    by_id = {segment.clip_id: segment for segment in corpus}
    for segment in spoiled:
        original = by_id[segment.clip_id.removesuffix(f":{segment.way}")]
        assert (segment.action != original.action) == (segment.way == spoiling.CAPTION)
        assert (segment.caption != original.caption) == (segment.way == spoiling.CAPTION)
    assert footage.spoil(corpus, 0.5) == spoiled


def test_matched_halves_have_equally_many_of_each_action_and_person() -> None:
    rng = np.random.default_rng(1)
    cells = [("run", "a")] * 5 + [("run", "b")] * 4 + [("jump", "a")] * 2 + [("jump", "b")]
    ids = [f"c{n}" for n in range(len(cells))]
    score = rng.standard_normal(len(cells))
    score[0] = np.nan
    upper, lower = matched_halves(score, cells, ids)
    assert len(upper) == len(lower) == 5
    assert not set(upper) & set(lower)
    assert sorted(cells[n] for n in upper) == sorted(cells[n] for n in lower)
    for cell in set(cells):
        above, below = ([score[n] for n in side if cells[n] == cell] for side in (upper, lower))
        assert not above or min(above) >= max(below)
    assert 0 not in {*upper, *lower}, "a clip without a score is in neither half"


def test_a_ridge_predicts_what_composition_tells_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    labels = np.array(["a", "b", "c"])[rng.integers(0, 3, 90)]
    members = [np.sort(rng.choice(90, 27, replace=False)) for _ in range(30)]
    shares = datamodel.composition([labels], members)
    assert np.allclose(shares.sum(1), 1)
    gains = shares @ rng.standard_normal((3, 2))
    predicted = datamodel.ridge(shares, gains)
    assert min(np.corrcoef(predicted[:, n], gains[:, n])[0, 1] for n in (0, 1)) > 0.8
    assert not datamodel.ridge(np.ones((30, 1)), gains).any(), "one scene for all tells nothing"


def test_the_yardstick_takes_each_stratum_of_training_once() -> None:
    class Even:
        schedule = Schedule()

    moments = bench.times(Even(), "clip", 8).numpy()  # type: ignore[arg-type]
    assert (moments // 125).tolist() == list(range(8))
    assert (bench.times(Even(), "clip", 8).numpy() == moments).all()  # type: ignore[arg-type]
    assert (bench.times(Even(), "other", 8).numpy() != moments).all()  # type: ignore[arg-type]


def test_an_embedding_knows_looks_and_neither_place_nor_time() -> None:
    rng = torch.Generator().manual_seed(0)
    latent = torch.randn(3, 8, 5, 4, 4, generator=rng)
    elsewhere = SimpleNamespace(latent=latent.flip(2).roll(2, 4))
    queries = SimpleNamespace(latent=latent, of=lambda action: np.array([int(action)]))
    cosines = scores.embeddings(elsewhere, queries, ("0", "1", "2"))  # type: ignore[arg-type]
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)
    assert (cosines - np.eye(3) < 1 - 1e-3).all()


# --- looks, twins and puppets -----------------------------------------------------------------------------------------


def test_every_query_and_each_of_its_twins_is_shown_in_every_look() -> None:
    query = footage.Segment("q", "u", "v", 3, "jump", "p", "", "a jump")
    shown = versions.in_looks([query])
    assert len({segment.clip_id for segment in shown}) == len(shown) == versions.LOOKS * 3
    assert {(segment.twin, segment.look) for segment in shown} == {
        (twin, look) for twin in ("", "backwards", "slow_start") for look in range(versions.LOOKS)
    }
    assert {(s.source, s.start_frame, s.action) for s in shown} == {("q", 3, "jump")}
    assert [s.twin for s in versions.twins([query])] == ["backwards", "slow_start"]


def of_clips(sources: list[str], twins: list[str], gradients: np.ndarray) -> Any:
    """Encoded clips of which no more is asked than whose version they are and whether they move."""
    moving = gradients.any(1)
    clips = SimpleNamespace(clip_ids=tuple(sources), moving=moving)
    return SimpleNamespace(sources=np.array(sources), twins=np.array(twins), clips=clips)


def test_a_query_asks_for_its_looks_without_what_its_twins_share() -> None:
    looks, motion, other = np.eye(versions.DIM, dtype=np.float32)[:3]
    names = ["q"] * 4 + ["still"] * 2
    twins = ["", "backwards", "", "backwards", "", "backwards"]
    gradients = np.stack([looks + motion, looks + other, looks + motion, looks + other, 0 * looks, 0 * looks])
    queries = of_clips(["q", "still"], ["", ""], gradients[[0, 4]])
    asked = versions.asked(gradients, of_clips(names, twins, gradients), queries)
    assert asked[0] @ motion > 1.5 * asked[0] @ looks > 0
    assert asked[0] @ other < 0
    assert not asked[1].any(), "a still query asks for nothing"


def test_a_puppet_keeps_its_looks_and_what_it_does_is_another_in_every_take() -> None:
    first, again = (puppets.scene(0, "person01", "roll", take, is_shifted=False) for take in (0, 1))
    assert (first.bodies[0].texture.base == again.bodies[0].texture.base).all()
    assert first.background is not again.background
    assert (first.background.wave == again.background.wave).all()
    assert not np.allclose(first.bodies[0].poses, again.bodies[0].poses)
    assert first.caption == again.caption
    assert first.caption.endswith(" rolling")
    other = puppets.scene(0, "person02", "roll", 0, is_shifted=False)
    assert not np.array_equal(other.bodies[0].texture.wave, first.bodies[0].texture.wave)
    shifted = puppets.scene(0, "person01", "roll", 0, is_shifted=True)
    assert (shifted.bodies[0].power, shifted.bodies[0].lobes) in {(p, lobes) for p, lobes, _ in shifted_world.OUTLINES}
    assert shifted.caption == "a shape rolling"


def test_puppets_are_a_folder_that_the_benchmark_reads(tmp_path: Path) -> None:
    assert puppets.write(tmp_path / "w", 0, people=4, takes=1, is_shifted=False) == 24
    listing = layouts.listed(str(tmp_path / "w"), Real())
    assert listing.layout == "columns"
    assert {video.action for video in listing.videos} == set(puppets.ACTIONS)
    assert {video.person for video in listing.videos} == {f"person{n:02d}" for n in range(1, 5)}


# --- criteria ---------------------------------------------------------------------------------------------------------

BEST = "best"


def tables(**changes: float) -> Mapping[str, Any]:
    """What the studies of a base on which influence adds something say, with some figures changed."""
    best = {"over_random": -0.03, "over_random_low": -0.04, "over_random_high": -0.02, "masked_target": -0.05,
            "masked_others": -0.01, "plain_target": 0.0} | changes  # fmt: skip
    lds = {BEST: changes.get("lds", 0.6), "untrained, as best": 0.1, "ridge: caption and person": 0.4}
    return {
        "first tenth": [
            {"arm": BEST, **best},
            {"arm": "caption", "masked_target": -0.02},
            {"arm": "nearest flow", "masked_target": changes.get("flow", -0.03)},
        ],
        "lds": [{"design": "skewed", "score": name, "specific": value} for name, value in lds.items()],
        "halves": [
            {"score": BEST, "difference": changes.get("halves", 0.03)},
            {"score": "own loss", "difference": -0.02},
        ],
    }


@pytest.mark.parametrize(
    ("changes", "criterion"),
    [
        ({"over_random_high": 0.001}, "random"),
        ({"lds": 0.3}, "controls"),
        ({"masked_others": -0.06}, "specific"),
        ({"plain_target": 0.011}, "specific"),
        ({"flow": -0.06}, "search"),
        ({"halves": 0.01}, "halves"),
    ],
)
def test_each_criterion_of_failure_ends_in_the_sentence_that_was_said_before(
    changes: dict[str, float], criterion: str
) -> None:
    good = criteria.verdicts(tables(), captioned=False, best=BEST)
    assert [verdict.criterion for verdict in good] == list(criteria.CRITERIA)
    assert criteria.sentence(good, 200, 25, 6) == criteria.ADDS
    bad = criteria.verdicts(tables(**changes), captioned=False, best=BEST)
    assert [verdict.criterion for verdict in bad if verdict.failed] == [criterion]
    assert criteria.sentence(bad, 200, 25, 6) == criteria.NOTHING


def test_where_captions_were_written_caption_search_is_the_rival() -> None:
    by_caption = criteria.verdicts(tables(flow=-0.06), captioned=True, best=BEST)
    assert not any(verdict.failed for verdict in by_caption)


def test_of_few_clips_nothing_is_concluded_and_a_missing_study_is_no_success() -> None:
    good = criteria.verdicts(tables(), captioned=False, best=BEST)
    assert "Nothing can be concluded" in criteria.sentence(good, 52, 10, 2)
    without = criteria.verdicts({**tables(), "halves": []}, captioned=False, best=BEST)
    assert without[-1].failed is None
    assert criteria.sentence(without, 200, 25, 6) == criteria.NOTHING


# --- the whole --------------------------------------------------------------------------------------------------------


def kth_folder(folder: Path) -> str:
    """Five persons, who are colours and textures, each doing three motions of the synthetic world, named as KTH's."""
    folder.mkdir()
    lines = []
    for n in range(1, 6):
        person = f"person{n:02d}"
        looks = world.scene(5, person, "still")
        for action in ("bounce", "slide", "spin"):
            name = f"{person}_{action}_d1"
            moves = world.scene(6, name, "real", action, frames=18, pan=0.0)
            bodies = tuple(replace(body, texture=looks.bodies[0].texture) for body in moves.bodies)
            scene = replace(moves, background=looks.background, bodies=bodies)
            write_mp4(str(folder / f"{name}_uncomp.avi"), world.render(scene, 48, 48), 8)
            lines.append(f"{name}\t\tframes\t1-9, 10-18")
    (folder / layouts.SEQUENCES).write_text("\n".join(lines))
    return str(folder)


@pytest.mark.benchmark
def test_a_folder_in_kths_layout_goes_from_videos_to_a_sentence_and_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = kth_folder(tmp_path / "videos")
    pairs = [f"data.videos={where}", f"root={tmp_path}/run", "data.fps=8", "real.base_steps=4", "real.subsets=4",
             "real.steps=2", "real.strata=2", "real.batch=4"]  # fmt: skip
    words = [word for pair in pairs for word in ("--set", pair)]
    monkeypatch.setattr(sys, "argv", ["real", "--short", *words])
    monkeypatch.setattr(versions, "LOOKS", 2)  # eight take a minute more and show nothing else
    assert studies.TOPS == (0.01, 0.05, 0.1)
    monkeypatch.setattr(studies, "LEFT_OUT", (scores.RANDOM, scores.EMBEDDING))
    monkeypatch.setattr(studies, "TOPS", (0.1,))
    job.main()
    said = capsys.readouterr().out
    figures = json.loads(said.splitlines()[-1])
    assert said.index("Failure, said before any result") < said.index("first tenth (first)")
    assert figures["segments"] == {"queries": 6, "held_out": 6, "corpus": 12, "base": 6}
    everyone = [person for part in figures["people"].values() for person in part]
    assert len(everyone) == len(set(everyone)) == 5
    of = figures["bases"]["first"]
    assert of["knows"] == ["bounce"]
    assert len(of["tables"]["first tenth"]) == 7
    assert [(row["score"], row["left out"]) for row in of["tables"]["left out"]] == [
        ("random", 0.1),
        ("embedding", 0.1),
    ]
    assert all(0 <= row["preferred"] <= 1 for row in of["tables"]["removal"])
    assert {row["design"] for row in of["tables"]["lds"]} == {"skewed", "random"}
    assert len(of["verdicts"]) == len(criteria.CRITERIA)
    assert "Nothing can be concluded" in figures["sentence"]
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.parquet")}
    job.main()
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["bases"] == figures["bases"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.parquet")} == results


def test_too_few_people_end_early_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = touch(tmp_path, "daria_walk.avi", "ido_walk.avi")
    monkeypatch.setattr(sys, "argv", ["real", "--list", "--set", f"data.videos={where}"])
    with pytest.raises(SystemExit, match="2"):
        job.main()
    said = capsys.readouterr()
    assert "2 videos by layout weizmann: 1 actions, 2 persons" in said.out
    assert "4 are the fewest that can be split" in said.err
