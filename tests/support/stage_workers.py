"""Bodies of actors that tests stream rows through. Each actor that starts imports this module, so it imports little."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from pipeline.errors import ClipError, StoreError
from pipeline.tables import schemas

ERRORS = pa.schema([("clip_id", pa.string()), ("error", pa.string())])


class RenamedError(StoreError):
    """A store's failure of a module that the product does not know by name."""


def no_room() -> NoReturn:
    """A store's failure behind another error."""
    try:
        raise RenamedError("/a: it cannot be written (No space left)")
    except RenamedError as error:
        raise ValueError("no part") from error


class Mortal:
    """Clips whose name says what they do to their process; the others take a moment."""

    def __init__(self, folder: str, start: str) -> None:
        self.folder = Path(folder)
        if start == "dies" or (start == "dies_once" and self.first("start")):
            os.kill(os.getpid(), signal.SIGKILL)
        if start == "raises":
            raise ValueError("no such weights")
        if start == "full":
            no_room()

    def first(self, name: str) -> bool:
        marker = self.folder / name
        is_first = not marker.exists()
        marker.touch()
        return is_first

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        """A part for each clip, so that a batch leaves parts behind when a later clip of it ends the process."""
        for name in rows.column("clip_id").to_pylist():
            if name == "raises":
                raise ValueError("this is a mistake of ours")
            if name == "full":
                no_room()
            if name.startswith("segfault") or (name.startswith("once") and self.first(name)):
                signal.raise_signal(signal.SIGSEGV)  # in this thread: of a kill, another may take its time to die
            time.sleep(0.05)
            yield {"found": pa.Table.from_pylist([{"clip_id": name, "error": None}], ERRORS)}

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        return {"found": pa.Table.from_pylist([{**r, "error": str(error)} for r in rows.to_pylist()], ERRORS)}


class Hog:
    """Clips named `hog` take memory until somebody stops it."""

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        memory_blocks = []
        while "hog" in rows.column("clip_id").to_pylist():
            memory_blocks.append(b"x" * (64 << 20))
            time.sleep(0.02)
        yield {"found": pa.Table.from_pylist([{**row, "error": None} for row in rows.to_pylist()], ERRORS)}

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        return {"found": pa.Table.from_pylist([{**r, "error": str(error)} for r in rows.to_pylist()], ERRORS)}


class Hungry:
    """Clips -> rows of movement/, each a part of its own. A clip whose id ends with a number needs parts of this size
    at most; those that end with 0 never have enough."""

    def __init__(self, size: int) -> None:
        self.size = size

    def shrink(self) -> bool:
        if self.size == 1:
            return False
        self.size //= 2
        return True

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        for clip_id in rows.column("clip_id").to_pylist():
            if self.size > int(clip_id[-1]):
                raise MemoryError(f"parts of {self.size}")
            yield {"movement": self._rows([clip_id], None)}

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        return {"movement": self._rows(rows.column("clip_id").to_pylist(), str(error))}

    @staticmethod
    def _rows(ids: list[str], error: str | None) -> pa.Table:
        schema = schemas.movement_schema(1, 1, 1)
        return pa.Table.from_pylist([{"clip_id": i, "version": "1", "error": error} for i in ids], schema=schema)


class Placed:
    """Clips -> the node that they were worked on, once there are workers on two."""

    def __init__(self, folder: str) -> None:
        import ray

        self.folder, self.node = Path(folder), ray.get_runtime_context().get_node_id()
        (self.folder / f"{self.node}.node").touch()

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("*.node"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        yield {"placed": pa.table({"clip_id": rows.column("clip_id"), "node": [self.node] * rows.num_rows})}

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        raise AssertionError
