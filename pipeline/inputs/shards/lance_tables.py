"""Lance datasets with the bytes of videos in a column, plain or as blobs. They need the extra `lance`.

A dataset is a folder. A video's uri is `train.lance#317:video_blob`: row and column.
"""

from __future__ import annotations

import logging
import os
import posixpath
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa

from pipeline.errors import ClipError, InputError
from pipeline.inputs import refusals
from pipeline.inputs.shards import parquet_files
from pipeline.inputs.video_columns import Part, of_table

log = logging.getLogger(__name__)

END = ".lance"
MARK = "_versions"  # a folder that every dataset has
COLUMNS = (*parquet_files.COLUMNS, "video_blob")
WIDEST = 64  # numbers of a list that passes through; embeddings have more

Row = dict[str, Any]


def datasets(fs: fsspec.AbstractFileSystem, folder: str, names: set[str]) -> list[str]:
    """The datasets that a folder with files and folders of these names is, or has in itself or in its folder `data`."""
    if MARK in names:
        return [folder]
    within = [folder] if any(name.endswith(END) for name in names) else []
    within += [f"{folder}/data"] if "data" in names and fs.isdir(f"{folder}/data") else []
    paths = [str(entry["name"]).rstrip("/") for place in within for entry in fs.ls(place, detail=True)]
    return sorted(path for path in paths if path.endswith(END) and fs.isdir(f"{path}/{MARK}"))


def listed(fs: fsspec.AbstractFileSystem, path: str, below: str, base: str | None) -> Part:
    """A row for each row of a dataset, and its other columns. Raises InputError without the library, or where no column
    holds videos."""
    uri = path if "file" in fs.protocol else str(fs.unstrip_protocol(path))
    refused = refusals.of_place(f"{uri}/any", base)
    if refused:
        row = {"uri": uri, "relative": below, "version": "", "size": 0, "error": f"refused: {refused}"}
        return Part([row], {})
    dataset = _opened(uri)
    column = next(
        (name for name in COLUMNS if name in dataset.schema.names and _holds_bytes(dataset.schema, name)), None
    )
    if column is None:
        raise InputError(f"{uri}: it has no column with the bytes of videos ({', '.join(COLUMNS)}).")
    others = [field.name for field in dataset.schema if field.name != column and not _is_wide(field.type)]
    left_out = [name for name in dataset.schema.names if name not in (*others, column)]
    if left_out:
        log.warning("%s: columns of embeddings are left out: %s.", uri, ", ".join(left_out))
    table = dataset.to_table(columns=others)
    shared = {"version": str(dataset.version), "size": 0, "error": None, "folder": posixpath.dirname(below)}
    rows = [
        {"uri": f"{uri}#{row}:{column}", "relative": f"{below}/{row}", **shared} for row in range(dataset.count_rows())
    ]
    return of_table(rows, table)


def fetch(uri: str, row: int, column: str, file: BinaryIO, largest: int) -> None:
    """Write the video in a row to a local file. Raises ClipError."""
    dataset = _opened(uri)
    if row >= dataset.count_rows():
        raise OSError("its dataset has fewer rows by now")
    if _is_blob(dataset.schema.field(column)):
        blobs = dataset.take_blobs(column, indices=[row])
        data = blobs[0].readall() if blobs else None
    else:
        data = dataset.take([row], columns=[column]).column(0)[0].as_py()
    if data is None:
        raise ClipError("decode", "its row holds no bytes")
    if len(data) > largest:
        raise ClipError("refused", f"it has {len(data)} bytes; a video in a shard may have {largest}")
    file.write(data)


def _opened(uri: str) -> Any:
    try:
        import lance  # an extra
    except ImportError as error:
        raise InputError(
            f"{uri}: Lance datasets are read by the library of the extra `lance`, which is not installed: "
            "pip install 'motion-curation[lance]'."
        ) from error
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    options = {"endpoint": endpoint, "allow_http": "true"} if endpoint and uri.startswith("s3") else None
    try:
        return lance.dataset(uri, storage_options=options)
    except (OSError, ValueError) as error:
        raise InputError(f"{uri}: the dataset cannot be read: {error}.") from error


def _is_blob(field: pa.Field) -> bool:
    return "lance.blob" in str(field.type) or (field.metadata or {}).get(b"lance-encoding:blob") == b"true"


def _holds_bytes(schema: pa.Schema, name: str) -> bool:
    field = schema.field(name)
    return _is_blob(field) or bool(pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))


def _is_wide(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) and kind.list_size > WIDEST)
