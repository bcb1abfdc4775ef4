"""Look at videos and at this machine, and write a configuration that fits both: `motion-curation init FILE --videos
FOLDER [--queries FOLDER]`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from pipeline import config
from pipeline.config.caveats import advice, caveats
from pipeline.config.faults import Faults
from pipeline.errors import ConfigError

USAGE = "motion-curation init FILE --videos FOLDER [--queries FOLDER]"


def init(arguments: argparse.Namespace) -> None:
    """Write FILE and say what to type next. Raises ConfigError where FILE is there, or nothing can be read."""
    path = Path(arguments.file)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: a configuration is a YAML file; give it a name that ends in .yaml.")
    _refuse_to_overwrite(path)
    from pipeline.operations import new_config, survey  # torch among what they need: after the words are checked

    faults = Faults()
    with faults.collected():
        videos = survey.survey(arguments.videos, "--videos")
    queries = None
    if arguments.queries is not None:
        with faults.collected():
            queries = survey.survey(arguments.queries, "--queries")
    faults.check()
    machine = survey.machine()
    text = new_config.text(f"runs/{path.stem}", arguments.videos, arguments.queries, videos, machine, queries)
    _write(path, text)
    print(f"videos: {videos.sentence()}")
    if queries is not None:
        print(f"queries: {queries.sentence()}")
    print(f"machine: {machine.sentence()}")
    _say_next(str(path))


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(prog="motion-curation init", description=__doc__, usage=USAGE)
    words.add_argument("file", metavar="FILE", help="the YAML file to write; it must not be there yet")
    words.add_argument(
        "--videos", required=True, metavar="FOLDER", help="folder, glob, manifest or shards; local or s3://"
    )
    words.add_argument("--queries", metavar="FOLDER", help="videos of the motions that you look for, a folder a motion")
    return words


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path} is there already and is not overwritten; give another name, or remove it first.")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _refuse_to_overwrite(path)
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be written ({error.strerror}); give another place.") from error


def _say_next(path: str) -> None:
    """What was written, what it does not show, what its selection is to be held against, and the next two commands."""
    run = config.load(path)
    d = run.data
    print(f"model: {run.model.id}")
    print(f"segments: {d.frames} frames at {d.fps:g} a second, {d.height} x {d.width} pixels")
    for sentence in caveats(run):
        print(f"WARNING {sentence}", file=sys.stderr)
    print(f"controls: {advice(run)}")
    quoted = shlex.quote(path)
    print(f"\nwritten: {path}. Read it through, then type")
    print(f"  motion-curation plan --config {quoted}     what it will take, by a pilot")
    print(f"  motion-curation curate --config {quoted}   the whole of it")
