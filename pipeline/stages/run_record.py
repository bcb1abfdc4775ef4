"""What a root says of its jobs: the resolved configuration, ``ROOT/config.yaml``, and whether a job would find
everything done, ``ROOT/completion/JOB.json``, written when the job has ended well.

A completion holds hashes of all that the job's outcome depends on: the configuration, the code and the libraries, the
weights, the listings of the videos as the job worked them, and the size and times of every file below the root. Where
all of them are still the same, the same command has nothing to do, and is told so without Ray, without the model and
without reading a table. Whatever else changes anything below the root, another job, a purge, a person's decision or a
deleted file, makes it void, and the job runs as ever.

There is none where the next run would try something again: a row whose error is tried again, a held-out clip that was
left out, a page without one of its pictures, words of people that came while the job ran. Nor is there one where
nothing here can see what the job depends on: a tracking server, a model of the hub, an adapter of one's own.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import posixpath
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc
import yaml

from pipeline.config import Run
from pipeline.config.operations import Model
from pipeline.errors import ConfigError, DamagedError, UsageError
from pipeline.inputs import changes
from pipeline.stages import video_sets
from pipeline.storage import lease, stores
from pipeline.storage.stamps import stamps
from pipeline.tables import parts, registry, retries, scanning

PACKAGES = ("torch", "torchvision", "ray", "diffusers", "transformers", "peft", "accelerate", "numpy", "pyarrow", "av")
COMPLETION = "completion"
PEOPLE_TABLES = ("decisions", "query_weights", "likes")  # tables that people write to while a job runs
RETRIED_TABLES = (
    registry.CLIPS,
    registry.QUERIES,
    registry.MOTION,
    registry.MOVEMENT,
    registry.PICTURES,
    registry.FEATURES,
)
HOMES = ("", "shortlist")  # below the root, where tables lie whose rows the stages try again


def record(run: Run) -> None:
    """Write the resolved configuration, with the versions it runs under, beside the tables."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    content = {**run.model_dump(mode="json"), "versions": {"python": platform.python_version(), **versions}}
    try:
        stores.write_bytes(stores.join(run.root, "config.yaml"), yaml.safe_dump(content, sort_keys=False).encode())
    except OSError as error:
        raise ConfigError(
            f"root={run.root!r}: nothing can be written there ({error}). Mend that, or choose another root."
        ) from error


class Completion(Model):
    """What a job that ended well found and left: hashes, and what it had to say."""

    job: str
    ended: datetime.datetime
    key: str  # of configuration, software and weights when it began
    listings: dict[str, str]  # of the sets of videos that it indexed
    state: str  # of every file below the root when it ended
    rows: dict[str, int]  # of the tables that hold clips, by name
    last_words: tuple[str, ...]
    warnings: tuple[str, ...]


# --- what a job notes while it works ---------------------------------------------------------------------------------


@dataclass
class _Notes:
    listings: dict[str, str] = field(default_factory=dict)
    retries: list[str] = field(default_factory=list)  # what the next run would try again
    last_words: list[str] = field(default_factory=list)


_of_job: ContextVar[_Notes | None] = ContextVar("notes", default=None)


def note_listing(name: str, digest: str) -> None:
    """The videos of a set were indexed as they are listed under this digest (`changes.digest_of`)."""
    notes = _of_job.get()
    if notes is None:
        return
    if notes.listings.setdefault(name, digest) != digest:
        notes.retries.append(f"the videos of {name} changed while they were indexed")


def note_retry(sentence: str) -> None:
    """Something is left that the next run of the same command would try again."""
    notes = _of_job.get()
    if notes is not None:
        notes.retries.append(sentence)


def note_last_words(text: str) -> None:
    """What the job has to say at its end, and what a run that finds everything done repeats; each text once."""
    notes = _of_job.get()
    if notes is not None and text not in notes.last_words:
        notes.last_words.append(text)


@contextmanager
def completing(run: Run, job: str, key: str | None, said: Sequence[str]) -> Iterator[None]:
    """Write the completion of a job, the body, once it has ended well. `said` are the warnings of this process; those
    of the body are kept. Nothing is written where `key` is None. The run's lease has to be held."""
    notes, first = _Notes(), len(said)
    before = {} if key is None else {folder: stamps(folder) for folder in _of_others(run)}
    token = _of_job.set(notes)
    try:
        yield
    finally:
        _of_job.reset(token)
    if key is None:
        return
    is_over = not notes.retries and not any(_retries(run, before))
    state = _state(run, is_holder=True) if is_over else None
    if state is None:
        stores.remove_file(completion_place(run, job))
        return
    completion = Completion(
        job=job,
        ended=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        key=key,
        listings=notes.listings,
        state=state,
        rows=_rows(run.root),
        last_words=tuple(notes.last_words),
        warnings=tuple(dict.fromkeys(said[first:])),
    )
    stores.write_bytes(completion_place(run, job), completion.model_dump_json(indent=1).encode())


def _of_others(run: Run) -> list[str]:
    """Where others may write while the job runs: what people say, and the other roots that are ranked together."""
    people = [stores.join(run.root, name) for name in PEOPLE_TABLES]
    return people + [root for root in run.ranking.roots if root != run.root]


def _retries(run: Run, before: Mapping[str, Mapping[str, str] | None]) -> Iterator[str]:
    """What the next run would try again, by the tables, and by the stamps of others' folders `before` the job."""
    for folder, stamps_before in before.items():
        if stamps(folder) != stamps_before:
            yield f"{folder} changed while the job ran"
    folders = [posixpath.join(home, folder) for home in HOMES for table in RETRIED_TABLES for folder in table.folders]
    for folder in folders:
        try:
            for rows in scanning.blocks(stores.join(run.root, folder), ["error"]) if _exists(run, folder) else ():
                if pc.any(retries.retried(rows.column("error"))).as_py():
                    yield f"{folder}/ has errors that are tried again"
                    break
        except DamagedError as error:
            yield str(error)


def _exists(run: Run, folder: str) -> bool:
    return bool(parts(stores.join(run.root, folder)))


def _rows(root: str) -> dict[str, int]:
    """How many rows the tables of a run's sets have."""
    footers = {name: scanning.footers(stores.join(root, name)) for name in video_sets.SETS}
    counts = {name: sum(part.rows for part in listed) for name, listed in footers.items()}
    return {name: count for name, count in counts.items() if count}


# --- whether anything has changed ------------------------------------------------------------------------------------


def completion_place(run: Run, job: str) -> str:
    return stores.join(run.root, COMPLETION, f"{job}.json")


def completion_key(run: Run, job: str) -> str | None:
    """A hash of the job, its configuration, the software and the weights. None where nothing here can see all that the
    job depends on."""
    arms = (run.finetune.arm, *run.evaluate.arms)
    embeddings = (run.data.embeddings, run.queries.embeddings) if "embedding" in arms else ()
    is_stored = run.model.id.startswith(stores.S3) or Path(run.model.id).is_dir()
    if run.tracking.kind != "none" or run.model.adapter is not None or not is_stored or None in embeddings:
        return None
    named = (run.model.id, run.motion.weights, run.attribution.weights, run.attribution.lora, *embeddings)
    files = {path: stamps(path) for path in named if path is not None}
    if None in files.values():
        return None
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    everything = [job, run.model_dump(mode="json"), platform.python_version(), versions, _sources(), files]
    return hashlib.blake2b(json.dumps(everything, sort_keys=True).encode(), digest_size=16).hexdigest()


def _sources() -> dict[str, str]:
    """A hash of each file of the code, by its path."""
    hashes = {}
    for package in ("pipeline", "jobs"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        home = Path(spec.origin).parent
        for file in sorted(home.rglob("*")):
            if file.suffix in (".py", ".html", ".css", ".js"):
                name = f"{package}/{file.relative_to(home)}"
                hashes[name] = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    return hashes


def valid_completion(run: Run, job: str, key: str) -> Completion | None:
    """The completion of a job, where nothing has changed since; None where it has, where there is none, and
    while another job holds the run. Videos that cannot be listed are for the job itself to tell of."""
    try:
        completion = Completion.model_validate_json(stores.read_bytes(completion_place(run, job)))
    except (FileNotFoundError, ValueError):  # one that somebody edited, or of another version, counts for nothing
        return None
    if completion.key != key or completion.state != _state(run, is_holder=False):
        return None
    try:
        now = {name: changes.digest_of(video_sets.asked(run, name)) for name in completion.listings}
    except (UsageError, OSError):
        return None
    return completion if now == completion.listings else None


def _state(run: Run, is_holder: bool) -> str | None:
    """A hash of all files below the root, and below those that are ranked together, but for completions and this job's
    own lease. None while another job holds one of them, and where a store gives no etags."""
    digest = hashlib.blake2b(digest_size=16)
    for root in dict.fromkeys((run.root, *run.ranking.roots)):
        files = stamps(root)
        if files is None:
            return None
        for path, stamp in sorted(files.items()):
            if path.startswith(lease.PREFIX) and not (is_holder and root == run.root):
                return None
            if not path.startswith((lease.PREFIX, f".{lease.PREFIX}", f"{COMPLETION}/")):
                digest.update(f"{root}\0{path}\0{stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def is_done(run: Run, job: str, key: str, said: Sequence[str]) -> bool:
    """Whether the job has nothing to do. Then it is said here, with what the job said when it ran; its warnings but for
    those that were `said` already."""
    completion = valid_completion(run, job, key)
    if completion is None:
        return False
    warnings = [line for line in completion.warnings if line not in said]
    if warnings:
        print("\n".join(["when it ran, it warned:", *warnings]), file=sys.stderr)
    counts = ", ".join(f"{count:,} in {name}/" for name, count in completion.rows.items())
    lines = [
        f"{job}: this command ended well on {completion.ended:%Y-%m-%d at %H:%M:%S} UTC, and nothing has changed "
        "since: neither videos nor configuration, weights, code or a file of the run. There is nothing to do.",
        *([f"rows: {counts}"] if counts else []),
        *completion.last_words,
        f"To have everything looked through all the same, delete {completion_place(run, job)} and give the command "
        "again.",
    ]
    print("\n".join(lines))
    return True
