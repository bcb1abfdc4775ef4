"""The SQLite database of a served study's answers: its table, how it is opened, and its rows as JSON lines.

The rollback journal is kept rather than a write-ahead log: between two answers the database is one file that can be
copied. ``synchronous = EXTRA`` syncs the folder too when a transaction ends, so that a power cut does not undo it.
Source: https://sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError, InputError
from pipeline.storage import stores

SUFFIX = ".sqlite"
IMPORTED = ".imported"  # ends the name of a file of JSON lines whose answers are in the database of its folder
APPLICATION = 0x4D6F7469  # of PRAGMA application_id: it tells these files from other databases
SCHEMA = 1  # of PRAGMA user_version: raise it when the table changes
PATIENCE = 30.0  # seconds for which a transaction waits for another process's
MAGIC = b"SQLite format 3\0"  # https://sqlite.org/fileformat.html

COLUMNS = ("study", "person", "pair", "revision", "left", "right", "choice", "seconds", "at")
NAMES = ", ".join(f'"{column}"' for column in COLUMNS)  # left and right are words of SQL
TABLE = """
CREATE TABLE answers (
    study TEXT NOT NULL,
    person TEXT NOT NULL,
    pair TEXT NOT NULL,
    revision INTEGER NOT NULL,
    "left" TEXT NOT NULL,
    "right" TEXT NOT NULL,
    choice TEXT NOT NULL,
    seconds REAL NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (person, pair, revision)
)
"""


def connect(path: str) -> sqlite3.Connection:
    """Open a local database to write answers to it; make it where there is none. Threads may share the connection if
    they use it one at a time.

    Raises UsageError where it cannot be written, is not a database of answers, or has a newer schema.
    """
    try:
        database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA synchronous = EXTRA")
            with transaction(database):  # also where the table exists: a file that is read-only fails here
                if database.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                    database.execute(TABLE)
                    database.execute(f"PRAGMA application_id = {APPLICATION}")
                    database.execute(f"PRAGMA user_version = {SCHEMA}")
                check_schema(database, path)
        except BaseException:
            database.close()
            raise
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: answers cannot be written there ({error}).") from error
    return database


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of the block is on disk when it ends, or nothing of it. Raises sqlite3.Error where it cannot be written."""
    with database:  # commits, or rolls back where the block or the commit raises
        database.execute("BEGIN IMMEDIATE")
        yield


def check_schema(database: sqlite3.Connection, path: str) -> None:
    """Raise InputError for a database that is none of answers, or that a newer version of this program wrote."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION:
        raise InputError(f"{path}: this is a database, but not one of a study's answers.")
    (schema,) = database.execute("PRAGMA user_version").fetchone()
    if schema > SCHEMA:
        raise ConfigError(
            f"{path}: its schema is number {schema}, and this program knows schemas up to {SCHEMA}: a newer version of "
            "the program wrote it. Use that version; nothing was changed."
        )


def read_lines(path: str) -> list[bytes]:
    """Every row of a database, local or remote, as a JSON line, in the order in which they were written.

    A local one is opened in place: a server may write to it meanwhile, and what a killed one left half-written is
    undone. Raises InputError for a database that is damaged or none of answers.
    """
    try:
        with contextlib.closing(_connect_to_read(path)) as database:
            check_schema(database, path)
            return lines(database)
    except sqlite3.Error as error:
        raise InputError(f"{path}: this database of answers cannot be read ({error}).") from error


def lines(database: sqlite3.Connection) -> list[bytes]:
    """Every row as a JSON line. A value of a type that JSON lacks becomes a text, which no answer has in its place."""
    rows = database.execute(f"SELECT {NAMES} FROM answers ORDER BY rowid").fetchall()
    return [json.dumps(dict(zip(COLUMNS, row, strict=True)), default=repr).encode() for row in rows]


def _connect_to_read(path: str) -> sqlite3.Connection:
    fs, bare = stores.place(path)
    if "file" in fs.protocol:
        return sqlite3.connect(f"{Path(os.path.abspath(bare)).as_uri()}?mode=rw", uri=True, timeout=PATIENCE)
    database = sqlite3.connect(":memory:")
    database.deserialize(stores.read_bytes(path))
    return database
