"""The whole of curate with everything on s3://, through a store that fails now and then: rows, bytes, page, secrets."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.config import Run
from pipeline.storage import stores
from tests.support.s3_store import BUCKET, KEY, SECRET, TOKEN, Request, Store, environment, forget, seen_by, served

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]  # three runs; a busy machine takes minutes for each

ROOT = f"s3://{BUCKET}/runs/a run [1]"
CHECKOUT = Path(__file__).parents[2]
TABLES = ("clips", "queries", "motion/clips", "motion/queries", "features/clips", "features/queries", "influence")
OWN = ("uri", "version")  # what differs between a disk and a bucket


@dataclass(frozen=True)
class Done:
    store: Store
    local: str  # the root of the same run on disk
    broken: subprocess.CompletedProcess[str]  # a first run, whose features the store did not take
    output: str
    logs: list[Path]  # Ray's
    failed: int  # requests


def flaky(every: int, after: int) -> Callable[[Request], str | None]:
    """One request in `every` fails, each time in another way."""
    number, faults = itertools.count(), itertools.cycle(["reset", "500", "cut", "500", "503"])

    def plan(request: Request) -> str | None:
        count = next(number)
        return next(faults) if count > after and count % every == 0 else None

    return plan


def curate(run: Run, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = folder / "run.yaml"
    path.write_text(json.dumps(run.model_dump(mode="json")))  # JSON is YAML
    return subprocess.run(
        [sys.executable, "-m", "jobs.curate", "--config", str(path)],
        cwd=CHECKOUT,
        env={**os.environ, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
    )


@pytest.fixture(scope="module")
def done(small_run: Callable[..., Run], small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder, ray = tmp_path_factory.mktemp("s3"), tempfile.mkdtemp(prefix="r")  # sockets want a short path
    small = {"evaluate__arms": ["base"], "evaluate__generate": 1, "finetune__steps": 2, "finetune__checkpoint_every": 1}
    with served() as store:
        raw = store.client()
        for file in (p for p in small_world.rglob("*") if p.is_file()):
            raw.upload_file(str(file), BUCKET, f"data/{file.relative_to(small_world)}")
        raw.put_object(Bucket=BUCKET, Key="data/clips/", Body=b"")  # a directory marker
        places = {
            "data__videos": f"s3://{BUCKET}/data/clips",
            "queries__videos": f"s3://{BUCKET}/data/queries",
            "evaluate__videos": f"s3://{BUCKET}/data/held_out",
        }
        run, variables = small_run(ROOT, **places, **small), {"RAY_TMPDIR": ray, **environment(store)}
        store.fault = lambda request: "403" if request.method == "PUT" and "/features/" in request.path else None
        broken = curate(run, folder, **variables)
        store.requests.clear()
        store.fault = flaky(40, 20)
        remote = curate(run, folder, **variables)
        store.fault = lambda request: None
        local = curate(small_run(folder / "local", **small), folder)
        assert remote.returncode == 0, remote.stdout
        assert local.returncode == 0, local.stdout
        failed = len(store.requests) // 40
        output = broken.stdout + remote.stdout
        yield Done(store, str(folder / "local"), broken, output, list(Path(ray).rglob("*.*")), failed)
    shutil.rmtree(ray)


@pytest.fixture
def store(done: Done, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    seen_by(monkeypatch, done.store)
    yield done.store
    forget()


def rows(root: str, name: str) -> pa.Table:
    table = tables.read(stores.join(root, name))
    assert table is not None, f"{root} has no table {name}"
    return table.select([c for c in table.column_names if c not in OWN]).sort_by("clip_id").combine_chunks()


def test_a_table_that_cannot_be_written_ends_the_run_with_one_sentence(done: Done) -> None:
    assert done.broken.returncode == 1, done.broken.stdout
    last = done.broken.stdout.strip().splitlines()[-2:]
    sentence = r"error: stage [\w ]+ failed: put_object s3://bucket/runs/a run \[1\]/features/queries/part-"
    assert re.match(sentence, last[0]), done.broken.stdout
    assert "AccessDenied" in last[0]
    assert "the same command goes on from here" in last[1]
    assert "Traceback" not in done.broken.stdout


@pytest.mark.parametrize("name", TABLES)
def test_rows_and_bytes_are_those_of_the_run_on_disk(done: Done, store: Store, name: str) -> None:
    assert done.failed > 5, "the store was meant to fail now and then"
    here, there = rows(done.local, name), rows(ROOT, name)
    assert here.num_rows > 3
    assert there.equals(here), f"{name} differs between s3:// and the disk"


def test_everything_of_the_run_lies_in_the_bucket(done: Done, store: Store) -> None:
    there = {key.removeprefix("runs/a run [1]/") for key in store.keys("runs/")}
    for name in ("report/index.html", "summary.json", "config.yaml", "finetuned/selected/done.json"):
        assert name in there, sorted(there)
    assert any(key.startswith("generated/base/") and key.endswith(".mp4") for key in there)
    assert any(key.startswith("finetuned/.latents/") for key in there)
    assert any(key.startswith("finetuned/selected/transformer/") for key in there)
    assert not [key for key in there if key.startswith("finetuned/.train/")], "checkpoints of a finished arm are kept"
    assert store.asked(r"^PUT .*finetuned/\.train/.*state-\d+-of-\d+\.safetensors"), "checkpoints went elsewhere"
    assert not [key for key in there if key.endswith("/")], "directory markers"
    page = stores.read_bytes(f"{ROOT}/report/index.html").decode()
    assert "<img" in page or "<video" in page or "data:image" in page


def test_no_secret_is_in_anything_that_the_run_wrote(done: Done, store: Store) -> None:
    raw = store.client()
    written = {key: raw.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in store.keys("runs/")}
    logs = {str(path): path.read_bytes() for path in done.logs if path.is_file()}
    assert any("worker" in path for path in logs), "Ray's logs were meant to be looked at too"
    for where, data in {**written, **logs, "output": done.output.encode()}.items():
        for secret in (SECRET, TOKEN, KEY, "feedc0ffee"):
            assert secret.encode() not in data, f"{where} holds {secret}"
