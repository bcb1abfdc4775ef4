"""Values of --set: text is what was typed, whatever YAML would make of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config
from pipeline.config import Run, overrides
from pipeline.errors import ConfigError
from pipeline.pages import explain_links

TYPED = [
    "/runs/try #2",
    "#2",
    "a: b",
    "*x",
    "&x",
    "!x",
    "%x",
    "@x",
    "`x`",
    "- a",
    "? a",
    "| a",
    "[a",
    "{a",
    "yes",
    "off",
    "1e5",
    "007",
    "1:30",
    "2024-01-01",
    "null",
    "~",
    " a ",
    "a=b",
    'say "x"',
    "it's",
]


@pytest.mark.parametrize("text", TYPED)
def test_text_is_taken_as_it_is_typed(text: str) -> None:
    assert config.override(f"root={text}") == ("root", text)
    assert config.load_line("demo", [f"tracking.project={text}"]).tracking.project == text


@pytest.mark.parametrize("text", [t for t in TYPED if t != "null"])
@pytest.mark.parametrize("key", ["data.base", "evaluate.videos", "explain.clip", "data.oracle"])
def test_text_or_null_is_null_by_the_word_alone(key: str, text: str) -> None:
    assert config.override(f"{key}={text}") == (key, text)
    assert config.override(f"{key}=null") == (key, None)
    assert config.override(f'{key}="null"') == (key, "null")


@pytest.mark.parametrize("quoted", ["'a #1'", '"a #1"'])
def test_quotes_around_the_whole_value_are_removed(quoted: str) -> None:
    assert config.override(f"root={quoted}") == ("root", "a #1")


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("finetune.steps=010", 10),
        ("finetune.learning_rate=1e-5", 1e-5),
        ("data.fps=30", 30),
        ("ranking.whiten=null", None),
        ("attribution.shortlist=null", None),
        ("evaluate.seeds=[010, 1]", [10, 1]),
        ("evaluate.arms=[base, random]", ["base", "random"]),
        ("purge.clips=[007, yes, null, 2024-01-01, 1e5, 'a #1']", ["007", "yes", "null", "2024-01-01", "1e5", "a #1"]),
        ("queries={prompts: [{prompt: 007, seed: 010}]}", {"prompts": [{"prompt": "007", "seed": 10}]}),
        ("attribution.shortlist={top: 0.5, frames: null}", {"top": 0.5, "frames": None}),
        ("attribution.settings=[{timestep: 251, mask: none}]", [{"timestep": 251.0, "mask": "none"}]),
    ],
)
def test_numbers_lists_and_mappings_are_read_by_their_fields(pair: str, value: Any) -> None:
    key = pair.split("=")[0]
    assert config.override(pair) == (key, value)


def test_dates_and_truths_are_read_by_validation() -> None:
    run = config.load_line("demo", ["nightly.date=2024-01-02", "study.serve=yes", "report.captions=off"])
    assert (str(run.nightly.date), run.study.serve, run.report.captions) == ("2024-01-02", True, False)


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        ("evaluate.arms=[base, random] # two", "begins a comment"),
        ("purge.clips=[a #1]", "begins a comment"),
        ("purge.clips=[*a]", "Quote the text"),
        ("purge.clips=[!!str 1]", "Quote the text"),
        ("attribution.shortlist={top: 0.1, top: 0.2}", "'top' twice"),
        ("evaluate.arms=[base", "not valid YAML"),
        ("root=\udcff", "no text"),
        ("root=", "at least 1 character"),
        ("data.fps=1:30", "data.fps='1:30'"),
        ("finetune.steps=100 # few", "finetune.steps='100 # few'"),
        ("ranking.above=nan", "finite"),
        ("finetune.learning_rate=inf", "finite"),
    ],
)
def test_what_would_be_dropped_or_changed_is_refused(pair: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load_line("demo", [pair])
    assert named in str(error.value)
    assert pair.split("=")[0] in str(error.value)
    assert "\n" not in str(error.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(TEXT)
def test_whatever_a_name_is_it_can_be_typed(name: str) -> None:
    assert overrides.read(Run, "explain.clip", overrides.written(name)) == name
    assert overrides.read(Run, "root", f"'{name}'") == name


@given(TEXT)
def test_the_pages_option_names_the_very_clip(name: str) -> None:
    import shlex

    _, pair = shlex.split(explain_links.option(name))
    assert config.override(pair) == ("explain.clip", name)
