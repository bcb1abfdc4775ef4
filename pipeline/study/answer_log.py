"""The file that a served study's answers are appended to: one writer, each answer once, on disk before it is thanked
for."""

from __future__ import annotations

import fcntl
import logging
import os
import threading

from pipeline.errors import ConfigError
from pipeline.study import answers
from pipeline.study.pairs import Key

log = logging.getLogger(__name__)


class ConflictError(ValueError):
    """Another choice is recorded under the same person, pair and revision."""


class AnswerLog:
    """`path` is local. What it holds already is read, so that a restart goes on from there.

    Raises ConfigError where it cannot be opened, where another process has it open, or where it holds what no scoring
    would take.
    """

    def __init__(self, path: str, key: Key) -> None:
        self._key, self._pairs = key, {pair.pair: pair for pair in key.pairs}
        self._lock = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ConfigError(f"{path}: answers cannot be written there ({error.strerror}).") from error
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, however that ends
            except BlockingIOError:
                raise ConfigError(f"{path}: another process is serving this study; stop that one first.") from None
            _sync_folder(os.path.dirname(path))
            self._end_last_line(path)
            self._held, wrong = answers.collect([path], key)
            if wrong:
                raise ConfigError(f"{answers.problems(wrong, len(self._held))}. Move that file away, or mend it.")
        except BaseException:
            os.close(self._file)
            raise

    def add(self, line: bytes) -> bool:
        """Append an answer; False where it is there already. When this returns, the answer is on disk.

        Raises ValueError for what is no answer of this study, ConflictError where it says otherwise than one that has
        been recorded, OSError where it cannot be written; then nothing of it is left.
        """
        answer = answers.parse(line)
        answers.check(answer, self._key.study, self._pairs)
        with self._lock:
            there = self._held.get(answer.which)
            if there is not None:
                if (there.left, there.right, there.choice) != (answer.left, answer.right, answer.choice):
                    raise ConflictError("this pair has been answered otherwise under the same name")
                return False
            self._append(answer.model_dump_json().encode() + b"\n")
            self._held[answer.which] = answer
            return True

    def revisions(self, person: str) -> dict[str, int]:
        """The last revision of every pair that a person has answered."""
        with self._lock:
            found = sorted(answer.which for answer in self._held.values() if answer.person == person)
        return {pair: revision for _, pair, revision in found}

    def counts(self) -> tuple[int, int]:
        """How many pairs have been judged, and by how many people."""
        with self._lock:
            judged = {(answer.person, answer.pair) for answer in self._held.values()}
        return len(judged), len({person for person, _ in judged})

    def close(self) -> None:
        with self._lock:  # an answer that is being written is finished first
            os.close(self._file)

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, data) != len(data):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def _end_last_line(self, path: str) -> None:
        """A line that a power cut left unfinished was never thanked for; its page sends it again."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        tail = data.rpartition(b"\n")[2]
        if not tail:
            return
        try:
            answers.parse(tail)
            os.write(self._file, b"\n")
        except ValueError:
            log.warning("%s: its last line is unfinished and was taken out: %r", path, tail)
            os.ftruncate(self._file, len(data) - len(tail))
        os.fsync(self._file)


def _sync_folder(folder: str) -> None:
    """So that a file that has just been made is there after a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
