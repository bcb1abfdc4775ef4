"""The canary clip's feature, which actors that start together compare: whoever is first, all compare with the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.attribution import canary
from pipeline.errors import StoreError
from pipeline.storage import stores
from tests.support.s3_store import BUCKET, Store

SAME, OTHER = torch.arange(1.0, 9.0), torch.arange(8.0, 0.0, -1.0)


def together(count: int, call: Callable[[int], Any]) -> list[Any]:
    """`call` of 0 ... count-1, begun at once; exceptions are results."""
    gate = threading.Barrier(count)

    def one(n: int) -> Any:
        gate.wait()
        try:
            return call(n)
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def check_race(path: str) -> None:
    made = together(8, lambda n: stores.create_bytes(path, json.dumps([n] * 50_000).encode()))
    assert made.count(True) == 1, "a file was created by several at once"
    assert json.loads(stores.read_bytes(path)) == [made.index(True)] * 50_000


def check_canaries(folder: str) -> None:
    """Of two kinds of machines one is refused, whoever comes first."""
    for attempt in range(5):
        path = stores.join(folder, f"{attempt}.json")
        results = together(8, lambda n, path=path: canary.check_canary(path, SAME if n % 2 else OTHER))  # type: ignore[misc]
        kinds = [{type(result) for result in results[kind::2]} for kind in (0, 1)]
        assert sorted(kinds, key=str) == sorted([{type(None)}, {RuntimeError}], key=str), results


def test_of_several_writers_one_creates_a_local_file(tmp_path: Path) -> None:
    check_race(str(tmp_path / "made" / "here" / "a.json"))
    assert os.listdir(tmp_path / "made" / "here") == ["a.json"], "a temporary file was left"


def test_actors_of_two_kinds_do_not_pass_together(tmp_path: Path) -> None:
    check_canaries(str(tmp_path))


def _create(path: str, n: int, gate: Any, made: Any) -> None:
    gate.wait()
    made.put((n, stores.create_bytes(path, json.dumps([n] * 50_000).encode())))


def test_of_several_processes_one_creates_a_local_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, made = context.Barrier(4), context.Queue()
    path = str(tmp_path / "a.json")
    started = [context.Process(target=_create, args=(path, n, gate, made)) for n in range(4)]
    for process in started:
        process.start()
    outcomes = dict(made.get(timeout=60) for _ in started)
    for process in started:
        process.join()
    first = [n for n, created in outcomes.items() if created]
    assert len(first) == 1
    assert json.loads(Path(path).read_bytes()) == first * 50_000


def test_without_hard_links_one_creates_it_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    check_canaries(str(tmp_path))


def test_of_several_writers_one_creates_an_object(store: Store) -> None:
    check_race(f"s3://{BUCKET}/run/a.json")
    check_canaries(f"s3://{BUCKET}/run/canary")


@pytest.fixture
def unconditional(store: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of a store that knows no conditional writes."""
    from pipeline.storage import s3

    put = s3.S3._pipe_file

    async def refuse_conditions(self: Any, path: str, data: bytes, **named: Any) -> Any:
        if named.pop("mode", None) == "create":
            raise StoreError("put_object s3://x: NotImplemented: A header you provided implies functionality")
        return await put(self, path, data, **named)

    monkeypatch.setattr(s3.S3, "_pipe_file", refuse_conditions)
    return f"s3://{BUCKET}"


def test_a_store_without_conditional_writes_is_read_back(unconditional: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of those that came together counts, and all compare with it."""
    everyone = threading.Barrier(8)
    monkeypatch.setattr(stores, "_let_writers_finish", lambda: everyone.wait(timeout=60))
    check_canaries(f"{unconditional}/run/canary")


def test_who_finds_a_file_waits_for_those_who_did_not(unconditional: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{unconditional}/run/a.json"
    stores.write_bytes(path, b"first")
    monkeypatch.setattr(stores, "_let_writers_finish", lambda: stores.write_bytes(path, b"replaced"))
    assert not stores.create_bytes(path, b"mine")
    assert stores.read_bytes(path) == b"replaced"


@pytest.mark.parametrize("feature", [torch.full((8,), torch.nan), torch.zeros(8)])
def test_a_broken_actor_leaves_no_canary_behind(tmp_path: Path, feature: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="not finite, or zero"):
        canary.check_canary(str(tmp_path / "a.json"), feature)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("content", "says"), [("[1.0, 2", "no feature"), ("{}", "no feature"), ("[1.0]", "1 numbers")])
def test_a_damaged_canary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, says: str) -> None:
    monkeypatch.setattr(canary, "READS", 1)
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(RuntimeError, match=rf"a\.json: .*{says}.*Delete the file"):
        canary.check_canary(str(path), SAME)
