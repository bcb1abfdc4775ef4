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
            f"{path}: this part of a table is damaged ({' '.join(str(error).split()).rstrip('.')}). Delete the file, "
            "and its rows are computed anew."
        ) from error
