"""`motion-curation`: the jobs by name. Without arguments it lists them; `motion-curation JOB ...` is
`python -m jobs.JOB ...`; `motion-curation keys [SECTION]` lists the keys of a configuration; `motion-curation init FILE
--videos FOLDER` writes a first one."""

from __future__ import annotations

import ast
import difflib
import os
import runpy
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

from jobs import init
from pipeline.config import Run, keys

_WIDTH = 120


def main() -> None:
    """Exit status 2 for what is no job, else that of the job."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        _say(listing())
    elif name == "keys":
        _print_keys(rest)
    elif name == "init":
        from jobs import command  # here for speed: a list of jobs needs nothing of them

        arguments = init.parser().parse_args(rest)
        with command.exit_statuses():
            init.init(arguments)
    elif name in summaries():
        sys.argv = [f"motion-curation {name}", *rest]
        runpy.run_module(f"jobs.{name}", run_name="__main__")
    else:
        near = difflib.get_close_matches(name, [*summaries(), "keys", "init"], 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        _refuse(f"there is no job {name!r}.{hint} `motion-curation` without arguments lists them.")


def _source(name: str) -> str:
    return (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")


def summaries() -> dict[str, str]:
    """The first sentence of every job, by name. The jobs are read and not imported, which would take seconds."""
    sentences = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        source = _source(path.stem)
        if '\nif __name__ == "__main__":' in source:
            text = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
            sentences[path.stem] = text.split(". ")[0].rstrip(".")
    return sentences


def listing() -> str:
    lines = ["motion-curation JOB [--config FILE_OR_RECIPE] [--set key=value ...]", ""]
    for name, sentence in summaries().items():
        lines += textwrap.wrap(sentence, _WIDTH, initial_indent=f"  {name:<18} ", subsequent_indent=" " * 21)
    lines += [
        "",
        "motion-curation keys [SECTION]   the keys of a configuration: type, default, meaning",
        f"{init.USAGE}   a configuration that fits videos and machine",
    ]
    return "\n".join(lines)


def _print_keys(sections: list[str]) -> None:
    name = sections[0] if sections else None
    model = Run if name is None else keys.section(Run, name)
    if model is None or len(sections) > 1:
        names = ", ".join(keys.sections(Run))
        _refuse(f"keys {' '.join(sections)}: name one section, or none for all: {names}.")
    lines = []
    for key in keys.keys(model, name or ""):
        lines.append(f"{key.name}: {key.kind}" + ("" if key.default is None else f" = {key.default}"))
        lines += textwrap.wrap(key.meaning, _WIDTH - 6, initial_indent="      ", subsequent_indent="      ")
    _say("\n".join(lines))


def _say(text: str) -> None:
    """Print, also where the reader has enough before the end, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else closing it would raise once more


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
