"""A run on the workbench: its index, what people say of it, its views and films. Reloaded as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import threading
from typing import Any

from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.tables import purge_list
from pipeline.workbench import duplicates, index, made_queries
from pipeline.workbench.duplicates import Copies
from pipeline.workbench.made_queries import Made, Prompted
from pipeline.workbench.people import People, ReadOnlyError
from pipeline.workbench.previews import Previews
from pipeline.workbench.scores import Scores
from pipeline.workbench.views import Views

GB = 1_000_000_000


class Bench:
    """Raises UsageError where the run has no clips yet, or its tables are of no use at all."""

    def __init__(self, run: Run) -> None:
        self._run, self._lock = run, threading.Lock()
        self.name = hashlib.blake2b(run.root.encode(), digest_size=8).hexdigest()
        self.folder = private_folder(self.name)
        films = os.path.join(self.folder, f"films-{os.getpid()}")
        self._load()
        self.previews = Previews(run, films, run.workbench.cache * GB, run.workbench.decoders)

    def _load(self) -> None:
        self.index = index.read(self._run)
        self.index.prepare()
        self.people = People(self.index, self._run.workbench.write)
        self.scores = Scores(self.index, self.people)
        own = {"weighted": self.scores.of_people, "like": self.scores.liked}
        self.views = Views(self.index, self.people, own)
        self._duplicates: dict[float, list[dict[str, Any]]] = {}
        self._copies: Copies | None = None

    def reload(self) -> None:
        """Read the run anew, if it has been ranked anew."""
        with self._lock:
            if index.ranking_state(self._run.root)[0] != self.index.ranking:
                self._load()

    def state(self) -> dict[str, Any]:
        """What changes while a page is open."""
        self.people.refresh()
        ranking, written = index.ranking_state(self._run.root)
        return {
            "ranking": self.index.ranking,
            "newer": written if ranking != self.index.ranking else None,
            "said": self.people.decisions.rows.num_rows,
            "read_only": self.people.read_only,
        }

    def film(self, kind: str, clip_id: str) -> bytes | None:
        """A film; None where the run has no such clip or query, or shows no pictures. Raises ClipError."""
        if not self._run.report.pictures:
            return None
        if kind == "queries":
            row = next((query for query in self.index.queries if query["clip_id"] == clip_id), None)
        elif kind == "clips":
            at = int(self.index.places([clip_id])[0])
            row = None if at < 0 else self.index.rows([at], self.index.clips.column_names)[0]
        else:
            raise ValueError(f"kind={kind!r}: it is clips or queries")
        return None if row is None else self.previews.film(kind, row)

    def make_query(self, asked: Made, path: str | None = None) -> dict[str, Any]:
        """Make a query out of a clip, or of a local video, and write the manifest anew. Raises ClipError, and
        ValueError where the run has no such clip."""
        if self.people.read_only is not None:
            raise ReadOnlyError(self.people.read_only)
        with self.previews.decoder() as decoder:
            if path is not None:
                record = made_queries.of_file(self._run, path, asked, decoder)
            else:
                clip_id = asked.clip or ""
                at = int(self.index.places([clip_id])[0])
                if at < 0 or purge_list.digest(clip_id) in purge_list.digests(self._run.root):  # since this began
                    raise ValueError(f"the run has no clip {asked.clip!r}")
                row = self.index.rows([at], self.index.clips.column_names)[0]
                record = made_queries.of_clip(self._run, row, asked, decoder)
        with self._lock:
            made_queries.write_manifest(self._run, self.index.queries)
        return record

    def prompt_query(self, asked: Prompted) -> dict[str, Any]:
        """Write down that the base model is to make a query of a caption."""
        if self.people.read_only is not None:
            raise ReadOnlyError(self.people.read_only)
        return made_queries.of_prompt(self._run.root, asked)

    def duplicates(self, threshold: float) -> list[dict[str, Any]]:
        threshold = round(threshold, 4)
        if threshold not in self._duplicates:
            self._duplicates[threshold] = duplicates.groups(self.index, self.scores.features(), threshold)
        return self._duplicates[threshold]

    def copies(self) -> Copies:
        """Clips of the same bytes. Files of one size are read once."""
        if self._copies is None:
            self._copies = duplicates.copies(self.index)
        return self._copies

    def close(self) -> None:
        """End the decoders and remove the films."""
        self.previews.close()
        shutil.rmtree(os.path.join(self.folder, f"films-{os.getpid()}"), ignore_errors=True)


def private_folder(name: str) -> str:
    """A folder of this user alone below TMPDIR, without what servers left that are no more. Raises ConfigError where
    somebody else has made one of its name."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    home = os.path.join(tempfile.gettempdir(), f"motion-curation-workbench-{user}")
    folder = os.path.join(home, name)
    for path in (home, folder):
        os.makedirs(path, mode=0o700, exist_ok=True)
        about = os.lstat(path)
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != user or stat.S_IMODE(about.st_mode) & 0o077:
            raise ConfigError(
                f"{path}: this folder is not this user's alone, and a token would lie in it. Remove it, or set TMPDIR."
            )
    for entry in os.listdir(folder):
        if entry.startswith("films-") and not os.path.exists(f"/proc/{entry.removeprefix('films-')}"):
            shutil.rmtree(os.path.join(folder, entry), ignore_errors=True)
    return folder


def token(folder: str) -> str:
    """The token of a run's workbench, the same for every start of it, in a file that nobody else can read."""
    path = os.path.join(folder, "token")
    if not os.path.exists(path):
        handle, draft = tempfile.mkstemp(dir=folder)  # which nobody else can read
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(24))
        with contextlib.suppress(FileExistsError):  # of two that start at once, the first one's counts
            os.link(draft, path)
        os.unlink(draft)
    with open(path, encoding="utf-8") as file:
        return file.read()
