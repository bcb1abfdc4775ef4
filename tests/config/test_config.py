"""Configurations: what loads, what is refused, and whether the refusal says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipeline import config
from pipeline.attribution import fingerprints
from pipeline.config import Run, load, parse
from pipeline.errors import ConfigError
from pipeline.stages import run_record

MINIMAL: dict[str, Any] = {
    "root": "runs/x",
    "data": {"videos": "clips"},
    "queries": {"videos": "queries"},
    "model": {"id": "some/folder"},
}


def refused(overrides: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load("demo", overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", config.recipes())
def test_every_recipe_loads(name: str) -> None:
    run = load(name)
    assert run.geometry[0] >= 2, f"recipe {name} has no usable geometry: {run.geometry}"


@pytest.mark.parametrize("name", config.recipes())
def test_packaged_files_that_a_recipe_names_are_in_the_package(name: str) -> None:
    run = load(name)
    for value in (run.model.id, run.motion.weights):
        assert not value.startswith("package:"), f"{name}: {value} was not turned into a path"
        if value.startswith(str(config.PACKAGE)):
            assert Path(value).exists(), f"{name} names {value}, which the package does not hold"


def test_the_demo_recipe_exists() -> None:
    assert "demo" in config.recipes(), "the recipe `demo`, which the README starts with, is gone"


def test_a_file_and_a_recipe_load_alike(tmp_path: Path) -> None:
    file = tmp_path / "copy.yaml"
    file.write_text((config.RECIPES / "demo.yaml").read_text())
    assert load(str(file)) == load("demo"), "a copy of a recipe is not the same configuration"


def test_an_unknown_key_is_refused_with_the_near_match_and_the_allowed_keys() -> None:
    text = refused({"motion.camara": "keep"})
    for part in ("demo.yaml", "`motion.camara`", "Did you mean `camera`?", "quantile", "normalise"):
        assert part in text, f"the message on an unknown key lacks {part!r}: {text}"
    assert "learning_rate" not in text, "the message lists keys of another stage as allowed here"


def test_an_unknown_key_without_a_near_match_still_lists_what_is_allowed() -> None:
    text = refused({"zzz": 1})
    assert "`zzz`" in text, text
    assert "Did you mean" not in text, f"a far-fetched suggestion: {text}"
    assert "attribution" in text, f"the top level's keys are not listed: {text}"


def test_an_unknown_key_inside_a_list_is_named_with_its_place() -> None:
    text = refused({"attribution.settings": [{"timestep": 751, "maks": "none"}]})
    for part in ("attribution.settings.0.maks", "Did you mean `mask`?"):
        assert part in text, f"lacks {part!r}: {text}"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("data.frames", "many", "integer"),
        ("data.frames", 1, "greater than or equal to 2"),
        ("data.fps", 0, "greater than 0"),
        ("motion.height", 120, "128"),
        ("motion.height", 130, "multiple of 8"),
        ("motion.camera", "pan", "'keep' or 'subtract'"),
        ("attribution.projection.dim", 12, "multiple of 8"),
        ("attribution.projection.kind", "srht", "'gaussian'"),
        ("attribution.settings", [], "at least 1"),
        ("attribution.settings", [{"timestep": 1000}], "less than 1000"),
        ("ranking.fraction", 0, "greater than 0"),
        ("ranking.whiten", -1, "greater than 0"),
        ("finetune.arm", "best", "'motive_whitened'"),
        ("finetune.learning_rate", "fast", "number"),
        ("model.dtype", "float16", "'bfloat16'"),
        ("resources.extract_features.gpus", -1, "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    text = refused({key: value})
    assert key in text, f"the message does not name {key}: {text}"
    assert value == [] or str(value if not isinstance(value, list) else 1000) in text, f"without the value: {text}"
    assert allowed in text, f"the message does not say what is allowed ({allowed}): {text}"


@pytest.mark.parametrize(
    ("key", "value", "written"),
    [
        ("purge.clips", "nope", "in brackets: [nope]"),
        ("ranking.roots", {"a": 1}, "in brackets: [ONE, TWO]"),
        ("ranking.duplicates", True, "in braces: {KEY: VALUE}, or {} for an empty one. Its keys are "),
        ("attribution.settings", ["x"], "in braces: {KEY: VALUE}, or {} for an empty one. Its keys are timestep"),
        ("ranking.caps", 4, "in braces: {KEY: VALUE}, or {} for an empty one."),
        ("data", 3, "Its keys are videos"),
        ("export.name", "a/../../b", "letters, digits, dots, dashes and underscores, no slash"),
        ("export.name", "a" * 101, "at most 100 characters"),
        ("study.arms", ["a/b", "c"], "no slash"),
        ("model.adapter", "x y", "package.module:Family"),
    ],
)
def test_a_value_of_the_wrong_form_is_refused_with_how_it_is_written(key: str, value: Any, written: str) -> None:
    text = refused({key: value})
    assert f"{key}" in text
    assert written in text, text
    for word in ("tuple", "dictionary", "instance of", "pattern", "^"):
        assert word not in text.replace("Tuple should have at least 1 item after validation", ""), text


@pytest.mark.parametrize("value", ["null", "'null'"])
def test_a_root_named_null_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"root='null': a run needs a folder; .*\./null"):
        config.load_line("demo", [f"root={value}"])
    assert config.load_line("demo", ["root=./null"]).root == "./null"


def test_all_mistakes_are_told_at_once() -> None:
    text = refused({"data.frames": 0, "ranking.fraction": 7})
    for key in ("data.frames", "ranking.fraction"):
        assert key in text, f"only one of two mistakes is told: {text}"


def test_mistakes_of_every_kind_are_one_list() -> None:
    pairs = ["seed.x=1", "novalue", "data.frames=0", "motion.camara=keep", "evaluate.arms=[base"]
    with pytest.raises(ConfigError) as caught:
        config.load_line("demo", pairs)
    text = str(caught.value)
    for named in ("seed.x", "novalue", "data.frames=0", "`motion.camara`", "evaluate.arms"):
        assert text.count(named) >= 1, f"{named} is not told: {text}"
    assert "demo.yaml, --set included: 5 things are wrong:" in text, text
    assert "\n\n" not in text


def test_faults_between_sections_are_told_together() -> None:
    text = refused({"attribution.frames": 17, "ranking.fraction": 0.5, "attribution.shortlist": {"top": 0.2}})
    for named in ("attribution.frames=17", "ranking.fraction=0.5", "would be no cheaper"):
        assert named in text, f"{named} is not told: {text}"


def test_missing_keys_are_named_with_the_remedy() -> None:
    values = {k: v for k, v in MINIMAL.items() if k != "model"}
    with pytest.raises(ConfigError, match=r"`model` is missing.*--set model="):
        parse(values, "here")


@pytest.mark.parametrize("queries", [{}, {"videos": "a", "prompts": [{"prompt": "a ball"}]}])
def test_queries_are_videos_or_prompts_and_not_both(queries: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"queries\.videos.*queries\.prompts"):
        parse({**MINIMAL, "queries": queries}, "here")


def test_queries_left_out_are_a_choice_of_three() -> None:
    text = refused({"queries.videos": None})
    for named in ("queries.videos=", "queries.prompts", "queries.sample=20"):
        assert named in text, f"{named} is not offered: {text}"


def test_a_sample_serves_where_no_queries_are_given() -> None:
    assert load("demo", {"queries.videos": None, "queries.sample": 3}).queries.source == "sample"
    assert load("demo", {"queries.sample": 3}).queries.source == "videos"
    assert load("demo", {"queries": {"sample": 3, "prompts": [{"prompt": "a ball"}]}}).queries.source == "prompts"
    assert "queries.sample=0" in refused({"queries.sample": 0})


def test_the_ranked_mask_must_be_among_the_settings() -> None:
    only_masked = [{"timestep": 751, "mask": "motion"}]
    text = refused({"ranking.mask": "none", "attribution.settings": only_masked})
    assert "ranking.mask='none', attribution.settings: there is no setting of clips with mask: none" in text, text
    asked = {"motion.of": "all", "ranking.mask": "motion", "attribution.settings": only_masked}
    assert load("demo", asked).ranking.mask == "motion"


def test_queries_masked_and_clips_plain_need_every_setting_under_both_masks() -> None:
    one = {"timestep": 751, "noise": 0, "mask": "motion"}
    with pytest.raises(ConfigError, match="mask: none"):
        load("demo", {"ranking.mask": "queries", "attribution.settings": [one]})
    other = {"timestep": 251, "noise": 0, "mask": "none"}
    with pytest.raises(ConfigError, match="one timestep and noise"):
        load("demo", {"ranking.mask": "queries", "attribution.settings": [one, other]})
    assert load("demo", {"ranking.mask": "queries"}).ranking.mask == "queries"


def test_a_setting_of_one_side_is_no_setting_of_the_other() -> None:
    masked, plain = {"mask": "motion", "of": "queries"}, {"mask": "none", "of": "clips"}
    run = load("demo", {"ranking.mask": "queries", "attribution.settings": [masked, plain]})
    masks = {name: [s.mask for s in run.of(name).attribution.settings] for name in ("clips", "queries")}
    assert masks == {"clips": ["none"], "queries": ["motion"]}
    assert fingerprints.features(run.of("clips")) != fingerprints.features(run.of("queries"))
    both = load("demo", {"ranking.mask": "none", "attribution.settings": [{"mask": "none"}]})
    assert fingerprints.features(run.of("clips")) == fingerprints.features(both.of("clips")), "its table still fits"
    for mask in ("motion", "none"):
        with pytest.raises(ConfigError, match=f"ranking.mask='{mask}', attribution.settings: there is no setting of"):
            load("demo", {"ranking.mask": mask, "attribution.settings": [masked, plain]})
    with pytest.raises(ConfigError, match="two settings of clips are the same"):
        load("demo", {"attribution.settings": [{"mask": "none"}, plain]})


def test_attribution_must_not_outlast_a_segment() -> None:
    text = refused({"attribution.frames": 17})
    for part in ("attribution.frames=17", "data.frames=9"):
        assert part in text, f"lacks {part!r}: {text}"
    text = refused({"attribution.fps": 4})
    assert "attribution.fps=4" in text, text
    assert load("demo", {"attribution.frames": 5, "attribution.fps": 4}).geometry[:2] == (5, 4)


def test_two_equal_settings_and_a_broken_expression_are_refused() -> None:
    twice = [{"timestep": 751}, {"timestep": 751.0}]
    assert "two settings of clips are the same" in refused({"attribution.settings": twice})
    assert "no regular expression" in refused({"attribution.parameters": "(attn"})


def test_overrides_reach_any_depth_and_leave_the_rest() -> None:
    plain = load("demo")
    changed = load("demo", {"root": "elsewhere", "attribution.projection.dim": 64, "motion.camera": "subtract"})
    assert (changed.root, changed.attribution.projection.dim, changed.motion.camera) == ("elsewhere", 64, "subtract")
    assert changed.attribution.projection.seed == plain.attribution.projection.seed
    assert changed.data == plain.data, "an override of one stage changed another"
    assert load("demo") == plain, "an override stayed behind for the next load"


def test_overrides_make_sections_that_the_file_leaves_out(tmp_path: Path) -> None:
    file = tmp_path / "minimal.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    assert load(str(file), {"ranking.fraction": 0.5}).ranking.fraction == 0.5


def test_an_override_below_a_plain_value_is_refused() -> None:
    assert "`root`" in refused({"root.folder": "x"})


def test_configurations_are_frozen_at_every_level() -> None:
    run = load("demo")
    for model, key, value in (
        (run, "seed", 1),
        (run.data, "frames", 5),
        (run.attribution.settings[0], "timestep", 1.0),
        (run.resources.finetune, "gpus", 1.0),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, key, value)
    assert isinstance(run.attribution.settings, tuple), "settings can be appended to although the run is frozen"


def test_the_resolved_configuration_loads_again_as_itself() -> None:
    run = load("demo", {"ranking.above": 0.25})
    assert Run.model_validate(yaml.safe_load(yaml.safe_dump(run.model_dump(mode="json")))) == run


def test_attribution_takes_the_training_geometry_unless_told_otherwise() -> None:
    assert load("demo").geometry == (9, 8.0, 32, 32)
    assert load("demo", {"attribution.height": 16, "attribution.frames": 5}).geometry == (5, 8.0, 16, 32)


@pytest.mark.parametrize(("content", "says"), [("a: [1", "not valid YAML"), ("- a\n- b", "mapping")])
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=says):
        load(str(file))


def test_a_missing_file_is_refused_with_the_recipes_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no_such\.yaml.*recipes:.*demo"):
        load("no_such.yaml")


# --- files -----------------------------------------------------------------------------------------------------------

DEMO = (config.RECIPES / "demo.yaml").read_text()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "demo.yaml"
    file.write_bytes(DEMO.replace("runs/demo", "runs/d\u00e9mo").encode(encoding))
    assert load(str(file)).root == "runs/d\u00e9mo"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("# a\nroot: caf\u00e9\n".encode("latin-1"), "line 2: it is not UTF-8 (byte 0xe9"),
        (DEMO.encode("utf-16-le"), "UTF-16 without a byte-order mark"),
        (b"a: 1\nb: \0\n", "line 2: it has a NUL"),
        (b"a: 1\nb: \x07\n", "line 2: it holds the character U+0007"),
        (b"data:\n\tvideos: a\n", "line 2: this is not valid YAML"),
        (b"root: a\nseed: 1\nroot: b\n", "line 3: this is not valid YAML: the key `root` stands on line 1 already"),
        (b"data:\n  fps: 1\n  fps: 2\n", "line 3: this is not valid YAML: the key `fps` stands on line 2 already"),
        (b"data: {fps: 1, fps: 2}\n", "the key `fps` stands on line 1 already"),
        (b"", "the file is empty"),
        (b"# nothing\n", "the file is empty"),
        (b"a: &a [*a]\n", "within themselves"),
        (b"root: x\nday: 2024-13-45\n", "line 2: this is not valid YAML: '2024-13-45' is no timestamp"),
        (b"root: !!bool x\n", "line 1: this is not valid YAML: 'x' is no bool"),
        (b"1: x\n", "a key of a configuration is a text, and 1 is none"),
        (b"a: 1\n---\nb: 2\n", "another document"),
    ],
)
def test_a_file_that_is_not_certain_is_refused_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load(str(file))
    assert str(file) in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_merge_key_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "merged.yaml"
    pools = "resources:\n  index_clips: &pool {actors: 2, batch: 3}\n  evaluate: {<<: *pool, batch: 4}\n"
    file.write_text(yaml.safe_dump(MINIMAL) + pools)
    evaluate = load(str(file)).resources.evaluate.model_dump(exclude_none=True)
    assert evaluate == {"actors": 2, "cpus": 1, "gpus": 0, "batch": 4}


def test_a_folder_or_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"this is a folder.*config\.yaml"):
        load(str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be read \(File name too long\)"):
        load("x" * 300)


@pytest.mark.parametrize("name", config.recipes())
def test_the_record_of_a_run_is_a_configuration(name: str, tmp_path: Path) -> None:
    root = str(tmp_path / "try #2: d\u00e9mo")
    run = load(name, {"root": root, "finetune.group": "yes", "nightly.date": "2024-01-02", "ranking.above": 1e-7})
    run_record.record(run)
    assert load(f"{root}/config.yaml") == run
    assert load(f"{root}/config.yaml", {"seed": 3}).seed == 3


def test_a_record_that_is_cut_short_is_refused_with_its_place(tmp_path: Path) -> None:
    run = load("demo", {"root": str(tmp_path)})
    run_record.record(run)
    whole = (tmp_path / "config.yaml").read_bytes()
    assert config.load_record("there/config.yaml", whole, []) == run
    end = whole.index(b"versions:\n")
    for size in (whole.index(b"ranking:\n"), end, end + len("versions:\n")):
        with pytest.raises(ConfigError, match=r"^there/config\.yaml is cut short.*Run curate with the recipe again"):
            config.load_record("there/config.yaml", whole[:size], [])
    for size in range(0, end, 50):
        with pytest.raises(ConfigError, match=r"^there/config\.yaml"):
            config.load_record("there/config.yaml", whole[:size], [])


def test_faults_of_a_record_name_its_place(tmp_path: Path) -> None:
    run_record.record(load("demo", {"root": str(tmp_path)}))
    data = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"^s3://b/run/config\.yaml, --set included: workbench\.port=99999"):
        config.load_record("s3://b/run/config.yaml", data, ["workbench.port=99999"])


def test_a_key_named_versions_that_no_job_wrote_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({**MINIMAL, "versions": 3}))
    with pytest.raises(ConfigError, match="`versions` is no configuration key"):
        load(str(file))
