"""Answers are neither lost nor doubled: by two who write at once, by a full disk, by a restart, or on the way out of
the files that servers wrote before there was a database."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import threading
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.study import answers, sqlite_answers
from pipeline.study.answer_log import AnswerLog, ConflictError
from pipeline.study.answers import Answer
from pipeline.study.pairs import Key
from tests.support.studies import answer, known, lines, paper_key, recorded_answers

KEY = paper_key(5)


def posted(given: Answer) -> bytes:
    return given.model_dump_json().encode()


def given_by(person: str, key: Key = KEY) -> list[Answer]:
    return [answer(key, pair, person, known(pair)) for pair in key.pairs]


def test_a_log_goes_on_after_a_restart_and_knows_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    one, two, three, *_ = given_by("Änna")
    with contextlib.closing(AnswerLog(str(path), KEY)) as log:
        assert log.add(posted(one))
    with contextlib.closing(AnswerLog(str(path), KEY)) as log:
        assert not log.add(posted(one)), "known since before the restart"
        assert log.add(posted(two))
        turned = two.model_copy(update={"left": two.right, "right": two.left})
        with pytest.raises(ConflictError):
            log.add(posted(turned))
        assert log.add(posted(two.model_copy(update={"revision": 3})))
        assert log.add(posted(three.model_copy(update={"person": "Bert"})))
        assert log.revisions("Änna") == {one.pair: 0, two.pair: 3}
        assert log.revisions("Bert") == {three.pair: 0}
        assert log.revisions("nobody") == {}
        assert log.counts() == (3, 2)
    assert recorded_answers(path)[:2] == [one, two]
    last = {(one.person, one.pair): one.revision for one in answers.read(str(path), KEY)}
    assert last == {("Änna", one.pair): 0, ("Änna", two.pair): 3, ("Bert", three.pair): 0}


def test_one_answer_that_comes_many_times_at_once_is_one_row(tmp_path: Path) -> None:
    """Two connections to one database, as two servers have, and four threads on each."""
    path, given = tmp_path / "answers.sqlite", given_by("Anna")
    logs = [AnswerLog(str(path), KEY) for _ in range(2)]
    start = threading.Barrier(8)
    recorded: list[tuple[str, bool]] = []

    def add(log: AnswerLog) -> None:
        start.wait()
        recorded.extend((one.pair, log.add(posted(one))) for one in given)

    threads = [threading.Thread(target=add, args=(log,)) for log in logs for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        assert log.counts() == (len(given), 1)
        log.close()
    assert len(recorded) == 8 * len(given)
    assert sorted(pair for pair, new in recorded if new) == sorted(one.pair for one in given)
    assert recorded_answers(path) == given


def test_an_answer_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    log = AnswerLog(str(path), KEY)
    first = given_by("Anna")[0]
    acknowledged: list[Answer] = []

    def fill_up() -> None:
        for revision in range(1000):
            one = first.model_copy(update={"revision": revision})
            assert log.add(posted(one))
            acknowledged.append(one)

    log._database.execute("PRAGMA max_page_count = 6")  # a disk that is full, as SQLite sees it
    with pytest.raises(OSError, match="full"):
        fill_up()
    assert len(acknowledged) > 10
    assert recorded_answers(path) == acknowledged
    log._database.execute("PRAGMA max_page_count = 1000000")
    refused = first.model_copy(update={"revision": len(acknowledged)})
    assert log.add(posted(refused))
    log.close()
    assert recorded_answers(path) == [*acknowledged, refused]


@pytest.mark.parametrize("revision", [-1, 2**63, 10**30])
def test_a_revision_that_no_database_holds_is_damaged(tmp_path: Path, revision: int) -> None:
    line = posted(given_by("Anna")[0]).replace(b'"revision":0', f'"revision":{revision}'.encode())
    with (
        contextlib.closing(AnswerLog(str(tmp_path / "answers.sqlite"), KEY)) as log,
        pytest.raises(ValueError, match="damaged"),
    ):
        log.add(line)


def test_a_half_character_in_a_name_is_damaged(tmp_path: Path) -> None:
    line = posted(given_by("Anna")[0]).replace(b'"Anna"', b'"\\ud800"')
    with (
        contextlib.closing(AnswerLog(str(tmp_path / "answers.sqlite"), KEY)) as log,
        pytest.raises(ValueError, match="damaged"),
    ):
        log.add(line)


# --- databases that are refused --------------------------------------------------------------------------------------


def test_a_database_of_a_newer_schema_is_refused_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with contextlib.closing(AnswerLog(str(path), KEY)) as log:
        log.add(posted(given_by("Anna")[0]))
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE answers ADD COLUMN mood TEXT")
        database.execute(f"PRAGMA user_version = {sqlite_answers.SCHEMA + 1}")
    before = path.read_bytes()
    sentence = r"answers\.sqlite: its schema is number 2, .* a newer version of the program wrote it\. Use that version"
    with pytest.raises(UsageError, match=sentence):
        AnswerLog(str(path), KEY)
    with pytest.raises(UsageError, match=sentence):
        answers.read(str(path), KEY)
    assert path.read_bytes() == before


def test_what_is_no_database_of_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="answers cannot be written there"):
        AnswerLog(str(tmp_path), KEY)
    other = tmp_path / "other.sqlite"
    with contextlib.closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE answers (x)")
    text = tmp_path / "text.sqlite"
    text.write_text("no database, but long enough to be taken for one" * 100)
    for path, sentence in ((other, "not one of a study's answers"), (text, "file is not a database")):
        before = path.read_bytes()
        with pytest.raises(UsageError, match=sentence):
            AnswerLog(str(path), KEY)
        assert path.read_bytes() == before
    with pytest.raises(UsageError, match="not one of a study's answers"):
        answers.read(str(other), KEY)
    cut = tmp_path / "cut.sqlite"
    with contextlib.closing(AnswerLog(str(cut), KEY)) as log:
        for one in given_by("Anna"):
            log.add(posted(one))
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(UsageError, match=r"cut\.sqlite: .*malformed"):
        answers.read(str(cut), KEY)


def test_rows_of_another_study_or_changed_by_hand_are_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with contextlib.closing(AnswerLog(str(path), KEY)) as log:
        for one in given_by("Anna")[:3]:
            log.add(posted(one))
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE answers SET study = 'other' WHERE rowid = 1")
        database.execute("UPDATE answers SET choice = x'00' WHERE rowid = 2")
    for call in (lambda: AnswerLog(str(path), KEY), lambda: answers.read(str(path), KEY)):
        with pytest.raises(UsageError) as error:
            call()
        assert "answers.sqlite, row 1: it is of another study ('other'; this one is 's')" in str(error.value)
        assert "answers.sqlite, row 2: it is damaged (choice" in str(error.value)


# --- files of JSON lines that earlier servers wrote -------------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The file of an earlier server, whose last line a power cut left unfinished."""
    path = tmp_path / "answers.jsonl"
    one, two, three, *_ = given_by("Anna")
    path.write_text(lines([one, two]) + lines([three])[:-30])
    return path


def test_answers_of_an_earlier_server_are_moved_and_the_file_kept(
    earlier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, text = tmp_path / "answers.sqlite", earlier.read_text()
    one, two, three, *_ = given_by("Anna")
    for _ in range(2):  # the second time as after a kill between the transaction and the renaming
        earlier.write_text(text)
        with contextlib.closing(AnswerLog(str(path), KEY)) as log:
            log.import_lines(str(earlier))
            log.import_lines(str(earlier))
            assert log.revisions("Anna") == {one.pair: 0, two.pair: 0}
            assert not log.add(posted(two))
    assert not earlier.exists()
    assert (tmp_path / "answers.jsonl.imported").read_text() == text
    assert "its last line is unfinished and was left out" in caplog.text
    assert f"answers.jsonl are in {path} now; the file is kept as {earlier}.imported" in caplog.text
    with contextlib.closing(AnswerLog(str(path), KEY)) as log:
        assert log.add(posted(three))
    assert recorded_answers(path) == [one, two, three]
    assert len(answers.read(str(tmp_path), KEY)) == 3
    with pytest.raises(UsageError, match=r"were moved to the \.sqlite file beside it"):
        answers.read(str(earlier), KEY)


def test_a_file_of_an_earlier_server_is_scored_without_being_served(tmp_path: Path) -> None:
    path, given = tmp_path / "answers.jsonl", given_by("Anna")
    path.write_text(lines(given))
    assert answers.read(str(path), KEY) == sorted(given, key=lambda one: one.which)
    assert path.read_text() == lines(given)


def test_a_file_that_an_earlier_server_still_appends_to_is_refused(earlier: Path, tmp_path: Path) -> None:
    before = earlier.read_bytes()
    with (
        earlier.open("rb") as file,
        contextlib.closing(AnswerLog(str(tmp_path / "answers.sqlite"), KEY)) as log,
    ):
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process is serving this study; stop that one first"):
            log.import_lines(str(earlier))
        assert log.counts() == (0, 0)
    assert earlier.read_bytes() == before


def test_a_disk_that_is_full_moves_nothing(tmp_path: Path) -> None:
    earlier = tmp_path / "answers.jsonl"
    text = lines([given_by("Anna")[0].model_copy(update={"revision": n}) for n in range(1000)])
    earlier.write_text(text)
    with contextlib.closing(AnswerLog(str(tmp_path / "answers.sqlite"), KEY)) as log:
        log._database.execute("PRAGMA max_page_count = 6")
        with pytest.raises(UsageError, match=r"answers\.jsonl: its answers cannot be moved to .* \(.*full\)"):
            log.import_lines(str(earlier))
        assert log.counts() == (0, 0)
    assert earlier.read_text() == text


def test_lines_that_cannot_be_taken_are_named_and_nothing_is_moved(tmp_path: Path) -> None:
    earlier, path = tmp_path / "answers.jsonl", tmp_path / "answers.sqlite"
    one, two, *_ = given_by("Anna")
    otherwise = two.model_copy(update={"choice": "tie"})
    with contextlib.closing(AnswerLog(str(path), KEY)) as log:
        assert log.add(posted(two))
        for text, sentence in (
            (lines([one]) + "damaged\n" + lines([two]), r"answers\.jsonl, line 2: it is damaged"),
            (lines([one, otherwise]), rf"answers\.jsonl: it answers pair '{two.pair}' as 'Anna' otherwise than"),
        ):
            earlier.write_text(text)
            with pytest.raises(UsageError, match=sentence):
                log.import_lines(str(earlier))
            assert earlier.read_text() == text
        assert log.counts() == (1, 1)
