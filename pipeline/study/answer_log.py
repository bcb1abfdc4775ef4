"""Where a served study's answers go: a database that holds each answer once, on disk before it is acknowledged."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
from typing import BinaryIO

from pipeline.errors import ConfigError, HeldError, InputError
from pipeline.study import answers, sqlite_answers
from pipeline.study.answers import Answer
from pipeline.study.pairs import Key

log = logging.getLogger(__name__)


class ConflictError(ValueError):
    """Another choice is recorded under the same person, pair and revision."""


class AnswerLog:
    """The answers of one study in the local database `path`, which is made where there is none. Threads may share it,
    and several processes may open one database.

    Raises UsageError where it cannot be opened, or where it holds what no scoring would take.
    """

    def __init__(self, path: str, key: Key) -> None:
        self.path = path
        self._key = key
        self._pairs = {pair.pair: pair for pair in key.pairs}
        self._lock = threading.Lock()  # one transaction at a time uses the connection
        self._database = sqlite_answers.connect(path)
        try:
            rows = sqlite_answers.lines(self._database)
            self._parse(answers.numbered(path, "row", rows))
        except sqlite3.Error as error:
            self._database.close()
            raise ConfigError(f"{path}: this database of answers cannot be read ({error}).") from error
        except BaseException:
            self._database.close()
            raise

    def add(self, line: bytes) -> bool:
        """Record an answer in a transaction of its own; False where it is recorded already. When this returns, the
        answer is on disk.

        Raises ValueError for what is no answer of this study, ConflictError where another choice is recorded in its
        place, OSError where it cannot be written; then nothing of it is left.
        """
        answer = answers.parse(line)
        answers.check(answer, self._key.study, self._pairs)
        try:
            with self._lock, sqlite_answers.transaction(self._database):
                return self._insert(answer)
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: {error}") from error

    def import_lines(self, path: str) -> None:
        """Move the answers of a file of JSON lines, which servers wrote before there was a database, into this one.

        The file is renamed when they are on disk: scoring it later would miss the answers that were given since. One
        that is not there is fine. Raises UsageError where a server still appends to it, or where a line is wrong.
        """
        if not os.path.exists(path):
            return
        new_path = path + sqlite_answers.IMPORTED
        try:
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # such a server holds it for as long as it runs
                count = self._import(path, _whole_lines(path, file))
                os.replace(path, new_path)
        except BlockingIOError:
            raise HeldError(f"{path}: another process is serving this study; stop that one first.") from None
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path}: its answers cannot be moved to {self.path} ({error}).") from error
        log.warning("the %d answers of %s are in %s now; the file is kept as %s", count, path, self.path, new_path)

    def revisions(self, person: str) -> dict[str, int]:
        """The last revision of every pair that a person has answered."""
        with self._lock:
            rows = self._database.execute(
                "SELECT pair, max(revision) FROM answers WHERE person = ? GROUP BY pair", (person,)
            ).fetchall()
        return dict(rows)

    def counts(self) -> tuple[int, int]:
        """How many pairs have been judged, and by how many people."""
        with self._lock:
            judged, people = self._database.execute(
                "SELECT count(*), count(DISTINCT person) FROM (SELECT DISTINCT person, pair FROM answers)"
            ).fetchone()
        return judged, people

    def close(self) -> None:
        with self._lock:  # an answer that is being written is finished first
            self._database.close()

    def _insert(self, answer: Answer) -> bool:
        row = answer.model_dump(mode="json")
        inserted = self._database.execute(
            f"INSERT INTO answers ({sqlite_answers.NAMES}) VALUES ({', '.join('?' for _ in sqlite_answers.COLUMNS)}) "
            "ON CONFLICT (person, pair, revision) DO NOTHING",
            [row[column] for column in sqlite_answers.COLUMNS],
        )
        if inserted.rowcount:
            return True
        recorded = self._database.execute(
            'SELECT "left", "right", choice FROM answers WHERE person = ? AND pair = ? AND revision = ?', answer.which
        ).fetchone()
        if recorded != (answer.left, answer.right, answer.choice):
            raise ConflictError("this pair has been answered otherwise under the same name")
        return False

    def _import(self, path: str, lines: list[bytes]) -> int:
        """Record the answers of the lines of a file, all or none; how many they are."""
        imported = self._parse(answers.numbered(path, "line", lines))
        with self._lock, sqlite_answers.transaction(self._database):
            for answer in imported:
                try:
                    self._insert(answer)
                except ConflictError as error:
                    raise InputError(
                        f"{path}: it answers pair {answer.pair!r} as {answer.person!r} otherwise than {self.path} "
                        "does. Move that file away, or mend it; nothing of it was taken."
                    ) from error
        return len(imported)

    def _parse(self, lines: list[tuple[str, bytes]]) -> list[Answer]:
        """The answers of these lines. Raises InputError where one of them is none of this study's."""
        collected, wrong = answers.collect(lines, self._key)
        if wrong:
            raise InputError(f"{answers.problems(wrong, len(collected))}. Move that file away, or mend it.")
        return list(collected.values())


def _whole_lines(path: str, file: BinaryIO) -> list[bytes]:
    """The lines of a file without a last one that a power cut left unfinished: it was never acknowledged, and its page
    sends it again."""
    lines = file.read().split(b"\n")
    try:
        if lines[-1]:
            answers.parse(lines[-1])
    except ValueError:
        log.warning("%s: its last line is unfinished and was left out: %r", path, lines[-1])
        return lines[:-1]
    return lines
