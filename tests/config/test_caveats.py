"""A toy model, toy flow, toy geometry and provisional queries are said, and the demo on its own videos is not."""

from __future__ import annotations

import pytest
import yaml

from pipeline import config
from pipeline.config import RECIPES
from pipeline.config.caveats import advice, caveats
from pipeline.config.run import DEMO_VIDEOS
from pipeline.errors import ConfigError

OTHERS = {"data.videos": "mine", "queries.videos": "wanted", "evaluate.videos": None}
REAL = {"model.id": "some/folder", "motion.weights": "default", "data.height": 480, "data.width": 832}


def test_the_demo_on_its_own_videos_has_none() -> None:
    assert caveats(config.load("demo")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({**REAL}, []),
        ({**REAL, "queries.videos": None, "queries.sample": 5}, ["provisional"]),
        ({**REAL, "model.id": "package:weights/wan-demo"}, ["The model is a toy"]),
        ({**REAL, "motion.weights": "package:weights/raft_small_world.safetensors"}, ["The optical flow is a toy"]),
        ({**REAL, "data.height": 32}, ["The geometry is a toy: at 32 x 832"]),
        ({**REAL, "attribution.width": 32}, ["The geometry is a toy: at 480 x 32"]),
        ({}, ["The model is a toy", "The optical flow is a toy", "The geometry is a toy"]),
    ],
)
def test_each_is_said_of_other_videos(changes: dict[str, object], words: list[str]) -> None:
    sentences = caveats(config.load("demo", {**OTHERS, **changes}))
    assert len(sentences) == len(words), sentences
    for word, sentence in zip(words, sentences, strict=True):
        assert word in sentence


def test_the_demos_videos_are_those_of_its_recipe() -> None:
    recipe = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    assert {key: recipe[key.split(".")[0]]["videos"] for key in DEMO_VIDEOS} == DEMO_VIDEOS


def test_the_demos_queries_and_held_out_videos_do_not_serve_other_videos() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load_line("demo", ["data.videos=mine"])
    for named in ("queries.videos='runs/world/queries'", "evaluate.videos='runs/world/held_out'", "queries.sample=20"):
        assert named in str(caught.value)
    changes = [f"{key}={'null' if value is None else value}" for key, value in OTHERS.items()]
    assert config.load_line("demo", changes).data.videos == "mine"


@pytest.mark.parametrize(
    ("arms", "missing"),
    [
        (["base", "random", "caption", "selected"], ""),
        (["base", "random", "selected"], "evaluate.arms has no caption."),
        (["base", "selected"], "evaluate.arms has no caption and no random."),
    ],
)
def test_the_arms_that_tell_what_a_selection_is_worth_are_named(arms: list[str], missing: str) -> None:
    sentence = advice(config.load("demo", {"evaluate.arms": arms}))
    assert "the arms caption and random" in sentence
    assert sentence.endswith(missing or "(docs/results.md).")
