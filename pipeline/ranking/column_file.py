"""A matrix too large for memory, written by rows and read by columns."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import numpy.typing as npt

from pipeline.storage.stores import writable

Array = npt.NDArray[np.float32]


class Columns:
    """Float32 [rows, columns] in an unnamed temporary file (TMPDIR), which goes with the object or the process.

    ``columns[q]`` is a copy of column q, as ``a.T[q]`` is of an array `a`. Rows are added from the first to the last.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns, self.filled = rows, columns, 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)

    def __len__(self) -> int:
        return self.columns

    def __getitem__(self, column: int) -> Array:
        return self.read(column, 0, self.rows)

    def read(self, column: int, start: int, stop: int) -> Array:
        """Rows start ... stop-1 of a column. Safe from several threads."""
        values = np.empty(stop - start, np.float32)
        at, view = 4 * (column * self.rows + start), memoryview(values.data).cast("B")
        while view:
            got = os.preadv(self._file.fileno(), [view], at)
            if not got:
                raise EOFError(f"column {column}: rows {start} to {stop} were not all written")
            at, view = at + got, view[got:]
        return values

    def add(self, values: Array) -> None:
        """The next rows [n, columns]."""
        for column, column_values in enumerate(np.ascontiguousarray(values.T)):
            at, view = 4 * (column * self.rows + self.filled), memoryview(column_values.data).cast("B")
            while view:
                with writable():
                    put = os.pwrite(self._file.fileno(), view, at)
                at, view = at + put, view[put:]
        self.filled += len(values)
