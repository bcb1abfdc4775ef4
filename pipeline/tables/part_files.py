"""The files of tables, opened for reading: checksums of their pages are verified, and one that is damaged is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedError, StoreError


@contextmanager
def opened(path: str, fs: fsspec.AbstractFileSystem, **options: Any) -> Iterator[pq.ParquetFile]:
    """A part of a table. Raises DamagedError, also from what is read of it in the body."""
    with naming(path), pq.ParquetFile(path, filesystem=fs, page_checksum_verification=True, **options) as file:
        yield file


_REMEDY = "run curate, or the job that makes this table: its rows are computed anew."
_REMEDIES = {  # of tables that no job looks through for rows that are missing
    "movement": "the folder motion/ of this run, and run curate, or estimate_motion: no gradient is computed anew.",
}


def _table(path: str) -> str:
    """The table of a part at ROOT/TABLE/SET/NAME, as far as the path says it."""
    return next(iter(path.split("/")[-3:]), "")


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Damage that shows in the body is that of the part at `path`."""
    try:
        yield
    except (StoreError, FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise DamagedError(
            f"{path}: this part of a table is damaged ({' '.join(str(error).split()).rstrip('.')}). Delete the file "
            f"and {_REMEDIES.get(_table(path), _REMEDY)}"
        ) from error
