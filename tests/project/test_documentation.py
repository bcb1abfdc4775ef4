"""What README and docs/ say: links lead somewhere, names exist, examples run and print what stands below them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs import __main__ as entry
from pipeline import config, errors, tables
from pipeline.attribution import fingerprints
from pipeline.config import Run, documentation, keys
from pipeline.stages.ranking import rank_clips
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.training import arms
from pipeline.video.frames import write_mp4
from tests.project.test_layers import LAYERS
from tests.support.documents import PAGES, ROOT, Block, anchors, blocks, code, links, prose, spans

LANGUAGES = {"bash", "python", "text", "mermaid", "yaml", "json", "sql"}
MARKS = {
    "",
    "browser",
    "cluster",
    "gpu",
    "minutes",
    "network",
    "videos",
}  # what a shell block needs that a test does not have
PREPARED = 20  # clips of the small run


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=name)


# --- what can be looked up --------------------------------------------------------------------------------------------


@pages
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name(page)}: {link} leads nowhere"
        assert ROOT in file.parents, f"{name(page)}: {link} leads out of the repository"
        assert not anchor or anchor in anchors(file), (
            f"{name(page)}: {link}: no such heading, there are {anchors(file)}"
        )


@pages
def test_blocks_say_what_they_are(page: Path) -> None:
    assert page.read_text().count("\n```") == 2 * len(blocks(page)), f"{name(page)}: a fence that is not closed"
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: ```{block.language}"
        assert block.mark in (MARKS if block.language == "bash" else {""}), f"{block.place}: ```bash {block.mark}"


@pages
def test_jobs_and_modules_exist(page: Path) -> None:
    known = {*entry.summaries(), *entry_words()}
    for text in code(page):
        for module in re.findall(r"python -m ((?:jobs|pipeline)(?:\.[a-z_]\w*)+)", text):
            path = ROOT / module.replace(".", "/")
            runnable = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
            assert runnable, f"{name(page)}: python -m {module} does not exist"
        for word in re.findall(r"(?<![\w/.-])motion-curation ([a-z]\w*)", text):
            assert word in known, f"{name(page)}: motion-curation {word} does not exist"


def entry_words() -> set[str]:
    """The words of `motion-curation` that are no job: the lines of its list below the jobs."""
    return set(re.findall(r"^motion-curation ([a-z]+)", entry.listing(), re.MULTILINE))


@pages
def test_keys_exist(page: Path) -> None:
    existing = {key.name for key in keys.keys(Run)}
    existing |= {".".join(key.split(".")[:n]) for key in existing for n in range(1, key.count(".") + 1)}
    sections = "|".join(keys.sections(Run))
    for text in code(page):
        named = re.findall(r"--set ['\"]?([\w.]+)=", text)
        named += re.findall(rf"^((?:{sections})\.[a-z_][a-z_.]*[a-z])(?:[:=].*)?$", text)
        for key in named:
            module = key.endswith((".py", ".js", ".html", ".json"))
            assert module or key in existing | {"key"}, f"{name(page)}: there is no key {key}"


@pages
def test_commands_are_accepted(page: Path) -> None:
    """Every whole command of a shell block, whatever it needs: its recipe, its keys and their values, its arms."""
    for block in blocks(page):
        for command in commands(block):
            words = shlex.split(command, comments=True)
            recipe = words[words.index("--config") + 1] if "--config" in words else "demo"
            if recipe in config.recipes():
                pairs = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
                arms.check(config.load(recipe, dict(config.override(pair) for pair in pairs)))
            else:
                assert recipe.endswith(".yaml"), f"{block.place}: there is no recipe {recipe}"


def commands(block: Block) -> Iterator[str]:
    """The jobs that a shell block runs, one a line."""
    if block.language == "bash":
        for line in block.text.replace("\\\n", " ").splitlines():
            match = re.search(rf"python -m jobs\.({'|'.join(entry.summaries())})\b.*", line)
            if match:
                yield match[0]


def test_the_pages_name_many_commands() -> None:
    assert len([c for page in PAGES for block in blocks(page) for c in commands(block)]) >= 10


@pages
def test_paths_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(r"(?:pipeline|jobs|tests|docs|docker|kubernetes|\.ci)/[a-z_0-9./-]*", span):
            assert (ROOT / span).exists(), f"{name(page)}: there is no {span}"
        elif re.fullmatch(r"[a-z_]+(?:/[a-z_]+)*/[a-z_0-9]+\.py", span):
            assert (ROOT / "pipeline" / span).exists(), f"{name(page)}: there is no pipeline/{span}"
        elif re.fullmatch(r"pipeline(?:\.[a-z_]+)+", span):
            path = ROOT / span.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), f"{name(page)}: there is no {span}"


@pages
def test_make_has_the_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in code(page):
        for target in re.findall(r"(?:^|\s)make ([a-z-]+)", text):
            assert target in targets, f"{name(page)}: make {target} does not exist"


# --- what is held equal to the code -----------------------------------------------------------------------------------


def test_the_page_of_the_keys_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == documentation.markdown(), (
        "docs/configuration.md is not that of pipeline/config; write it anew: "
        "python -m pipeline.config.documentation > docs/configuration.md"
    )


def test_every_key_has_a_meaning() -> None:
    assert [key.name for key in keys.keys(Run) if not key.meaning] == []


def test_the_page_of_the_keys_lists_every_recipe() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| [^|]* \|$", documentation.markdown(), re.MULTILINE)
    assert rows == config.recipes()


def test_every_key_stands_on_the_page_once() -> None:
    sections, _, _ = documentation.markdown().partition("## A ")  # below it are the members of lists
    rows = re.findall(r"^\| `([\w.]+)` \|", sections, re.MULTILINE)
    for key in keys.keys(Run):
        assert rows.count(key.name) == 1, f"{key.name} has {rows.count(key.name)} rows"


def test_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def packages() -> list[str]:
    """The packages of the library, and the modules beside them, in the order of the layers."""
    places = {package: ROOT / "pipeline" / package for package in LAYERS}
    return [p for p, place in places.items() if place.is_dir() or place.with_suffix(".py").is_file()]


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_map_of_the_code_has_every_package(page: str) -> None:
    rows = re.findall(r"^\| `pipeline/(\w+)(?:\.py)?` \|", (ROOT / page).read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(packages())
    assert page == "README.md" or rows == packages(), "the layers stand in another order than in test_layers.py"


def test_the_table_of_error_codes_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \|$", page, re.MULTILINE)
    assert rows == list(errors.CODES), "the codes stand in another order, or one is missing"
    for each in errors.CODES.values():
        row = f"| `{each.name}` | {each.meaning} | {each.retry.value} | {each.remedy} |"
        assert row in page, f"docs/troubleshooting.md lacks the row {row}"


def test_every_page_can_be_reached_from_readme() -> None:
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md") if "://" not in link}
    assert {page.resolve() for page in PAGES[1:]} <= reached


def test_the_page_of_the_jobs_has_every_job() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", prose(ROOT / "docs" / "jobs.md"), re.MULTILINE)
    assert set(entry.summaries()) <= set(rows)


# --- what runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `runs/demo`: 20 clips and 4 queries that are indexed and ranked, their features drawn at
    random; and with two folders of videos, `clips` and `motions`."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, scenes in (("clips", world.corpus(1, 4)), ("motions/roll", world.queries(2, 1)[:2])):
        for scene in scenes:
            write_mp4(str(folder / name / f"{scene.name}.mp4"), world.render(scene, 64, 96), scene.fps)
    root = str(folder / "runs" / "demo")
    run = config.load("demo", {"root": root})
    draw = np.random.default_rng(0)
    for kind, count in (("clips", PREPARED), ("queries", 4)):
        ids = [f"{'clip' if kind == 'clips' else 'query'}-{n:04}" for n in range(count)]
        rows = [{"clip_id": i, "uri": f"{i}.mp4", "version": "1", "group": "roll", "cuts": []} for i in ids]
        schema = schemas.QUERIES if kind == "queries" else schemas.CLIPS
        index = pa.Table.from_pylist([{k: v for k, v in row.items() if k in schema.names} for row in rows], schema)
        tables.append(f"{root}/{kind}", index, fingerprints.clips(run))
        settings = run.of(kind).attribution.settings
        vectors = draw.standard_normal((count, len(settings) * run.attribution.projection.dim)).astype(np.float32)
        lengths = [[1.0] * len(settings)] * count
        columns = {"clip_id": ids, "version": ["1"] * count, "feature": list(vectors), "norm": lengths, "loss": lengths}
        columns |= {"num_frames": [9] * count, "error": [None] * count}
        schema = schemas.features_schema(len(settings), run.attribution.projection.dim)
        records = [setting.record() for setting in settings]
        features = pa.table(columns, schema=schema)
        tables.append(f"{root}/features/{kind}", features, fingerprints.features(run.of(kind)), settings=records)
    rank_clips(run)
    return folder


def runnable(page: Path) -> list[Block]:
    return [b for b in blocks(page) if b.language == "python" or (b.language == "bash" and not b.mark)]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name)
def test_examples_run_and_print_what_stands_below_them(page: Path, prepared: Path, tmp_path: Path) -> None:
    """The blocks of a page one after the other, as a reader runs them."""
    folder, programs = tmp_path / "reader", tmp_path / "bin"
    shutil.copytree(prepared, folder)
    programs.mkdir()
    for program, arguments in (("python", ""), ("motion-curation", "-m jobs ")):
        script = programs / program
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        script.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}
    for block in runnable(page):
        shell = ["bash", "-euo", "pipefail", "-c", block.text]
        command = [sys.executable, "-c", block.text] if block.language == "python" else shell
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{block.place}: {ended.stderr}"
        assert block.output is None or ended.stdout == block.output, f"{block.place} prints\n{ended.stdout}"


def test_readme_has_an_example_with_its_output() -> None:
    assert any(block.output for block in runnable(ROOT / "README.md") if block.language == "python")
