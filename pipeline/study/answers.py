"""Answers of a blind study: JSON lines, one answer each, as the page downloads them, or rows of a server's database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from pipeline.errors import ConfigError, InputError, NothingUsableError
from pipeline.inputs.folders import file_tree
from pipeline.storage import stores
from pipeline.study import sqlite_answers
from pipeline.study.pairs import Key, Pair

LONGEST = 4096  # bytes of one answer
NAMED_PROBLEMS = 5  # problems that a message names

Which = tuple[str, str, int]  # person, pair, revision
Name = Annotated[str, Field(pattern=r"^[^\s\p{Cc}]([^\p{Cc}]*[^\s\p{Cc}])?$", max_length=80)]  # it is printed


class Answer(BaseModel, frozen=True, extra="forbid"):
    """What one person said of one pair. Who thinks better of it answers again with the next revision, which counts."""

    study: str
    person: Name
    pair: str
    revision: int = Field(ge=0, lt=2**63)  # as SQLite's integers
    left: str
    right: str
    choice: Literal["left", "tie", "right"]
    seconds: float = Field(ge=0, allow_inf_nan=False)
    at: AwareDatetime

    @property
    def which(self) -> Which:
        """No two answers have the same."""
        return self.person, self.pair, self.revision

    @property
    def chosen(self) -> str | None:
        """The video that was chosen; None for a tie."""
        return {"left": self.left, "right": self.right, "tie": None}[self.choice]


def parse(line: bytes | str) -> Answer:
    """Raises ValueError with one sentence on what is wrong with it."""
    try:
        return Answer.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"it is damaged ({where + ': ' if where else ''}{first['msg']})") from None


def check(answer: Answer, study: str, pairs: Mapping[str, Pair]) -> None:
    """Raise ValueError with one sentence for an answer that is none of this study's."""
    if answer.study != study:
        raise ValueError(f"it is of another study ({answer.study!r}; this one is {study!r})")
    pair = pairs.get(answer.pair)
    if pair is None:
        raise ValueError(f"this study has no pair {answer.pair!r}")
    if sorted((answer.left, answer.right)) != sorted(side.video for side in pair.sides):
        raise ValueError(f"its videos are not those of the pair {answer.pair!r}")


def read(place: str, key: Key) -> list[Answer]:
    """Every answer of a file, a folder (its .jsonl and .sqlite files) or a glob, the last revision of each, by person
    and pair.

    Raises InputError that names file and line of whatever is damaged, of another study, of no pair, or given twice
    with two contents.
    """
    paths = _files(place)
    collected, wrong = collect((line for path in paths for line in _lines(path)), key)
    if wrong:
        raise InputError(
            f"study.answers={place!r}: {problems(wrong, len(collected))}. Take these lines or files out, or score them "
            "with their own study; nothing was written."
        )
    if not collected:
        raise NothingUsableError(f"study.answers={place!r}: the {len(paths)} files found there hold no answer.")
    by_revision = sorted(collected.values(), key=lambda answer: answer.which)
    last = {(answer.person, answer.pair): answer for answer in by_revision}
    return list(last.values())


def collect(lines: Iterable[tuple[str, bytes]], key: Key) -> tuple[dict[Which, Answer], list[str]]:
    """The answers of these lines, and a sentence for each line that holds none of this study. A line comes with the
    words that say where it stands.

    An answer that is there again, word for word, is one: who goes back from the last screen downloads a second file."""
    pairs = {pair.pair: pair for pair in key.pairs}
    collected: dict[Which, Answer] = {}
    places: dict[Which, str] = {}
    wrong = []
    for place, line in lines:
        if not line.strip():
            continue
        try:
            answer = parse(line)
            check(answer, key.study, pairs)
        except ValueError as error:
            wrong.append(f"{place}: {error}")
            continue
        if collected.setdefault(answer.which, answer) != answer:
            wrong.append(f"{place}: it answers once more, and otherwise, what {places[answer.which]} answers")
        places.setdefault(answer.which, place)
    return collected, wrong


def numbered(path: str, unit: str, lines: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """Lines with the words that say where each stands: the file, the unit ("line" or "row") and its number from 1."""
    return [(f"{path}, {unit} {number}", line) for number, line in enumerate(lines, 1)]


def _lines(path: str) -> list[tuple[str, bytes]]:
    data = stores.read_bytes(path)
    if data.startswith(sqlite_answers.MAGIC):
        return numbered(path, "row", sqlite_answers.read_lines(path))
    return numbered(path, "line", data.split(b"\n"))


def problems(wrong: Sequence[str], fine: int) -> str:
    """A sentence on what `collect` found wrong."""
    more = f"; and {len(wrong) - NAMED_PROBLEMS} more" if len(wrong) > NAMED_PROBLEMS else ""
    return f"{len(wrong)} of {len(wrong) + fine} answers cannot be scored: {'; '.join(wrong[:NAMED_PROBLEMS])}{more}"


def _files(place: str) -> Sequence[str]:
    fs, bare = stores.place(place)
    if fs.isfile(bare):
        names = [bare]
    elif fs.isdir(bare):
        names = [path for path in stores.files(place) if path.endswith((".jsonl", sqlite_answers.SUFFIX))]
    else:
        names = sorted(path for path in file_tree.matching(fs, bare)[1].entries if fs.isfile(path))
    if not names and fs.exists(bare + sqlite_answers.IMPORTED):
        raise ConfigError(
            f"study.answers={place!r}: its answers were moved to the {sqlite_answers.SUFFIX} file beside it when the "
            "study was served again; score that one."
        )
    if not names:
        raise ConfigError(
            f"study.answers={place!r}: there is no such file, and no .jsonl or {sqlite_answers.SUFFIX} file in a "
            "folder or glob of that name."
        )
    return [name if "file" in fs.protocol else fs.unstrip_protocol(name) for name in names]
