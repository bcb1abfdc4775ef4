"""What another model says of whole videos: Parquet of ids and embeddings, as curators write it beside their clips.

A row has `id`, the name of a video's file without its ending, and `embedding`, a list of numbers. NeMo Curator and
Cosmos-Curator write such files into a folder whose name ends in `_embd_parquet`; the id is the clip's UUID.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, InputError
from pipeline.storage import stores

Array = npt.NDArray[np.float32]

ID, EMBEDDING, CURATED_ID = "id", "embedding", "span_uuid"
CURATED = "_embd_parquet"  # the end of a curator's folder of embeddings
ROWS = 8192  # embeddings in memory at a time
_EXTENSION = r"\.[A-Za-z0-9]{1,5}$"


def located(key: str, named: str | None, videos: str | None) -> str:
    """The place of a set's embeddings: as the configuration names it, or the folder that a curator wrote into that of
    the videos. Raises ConfigError where there is none, or more than one such folder."""
    if named is not None:
        if not stores.exists(named):
            raise ConfigError(f"{key}={named!r}: there is no such file or folder. Check the path.")
        return named
    fs, bare = stores.place(videos or "")
    folders = [str(path) for path in fs.ls(bare, detail=False)] if videos and fs.isdir(bare) else []
    curated = sorted(posixpath.basename(path.rstrip("/")) for path in folders if path.rstrip("/").endswith(CURATED))
    if len(curated) == 1:
        return stores.join(str(videos), curated[0])
    lies = f"{', '.join(curated)} lie" if curated else f"no folder *{CURATED} lies"
    where = "no folder of videos is named beside which they could lie" if videos is None else f"{lies} in {videos!r}"
    raise ConfigError(
        f"{key} is null, and {where}: the arm 'embedding' needs one place with embeddings. Name a Parquet "
        f"file, or a folder of such, with the columns {ID} (a video's file name without its ending) and {EMBEDDING} (a "
        "list of numbers), or leave this arm out of finetune.arm and evaluate.arms."
    )


def video_ids(rows: pa.Table) -> pa.ChunkedArray:
    """What embeddings call the videos of rows of clips/ or queries/: a curator's own id, or the file's name."""
    stems = pc.replace_substring_regex(pc.replace_substring_regex(rows.column("uri"), r"^.*[/]", ""), _EXTENSION, "")
    if CURATED_ID not in rows.column_names:
        return stems
    return pc.coalesce(rows.column(CURATED_ID).cast(stems.type), stems)


def blocks(place: str) -> Iterator[tuple[pa.Array, Array]]:
    """Ids and unit embeddings [n, d] of a Parquet file or a folder of such, ROWS at a time. Rows whose embedding is
    null, zero or not finite are left out. Raises InputError for another table, or embeddings of several lengths."""
    width: int | None = None
    fs, bare = stores.place(place)
    paths = sorted(path for path in fs.find(bare) if path.endswith(".parquet"))
    if not paths:
        raise InputError(f"{place!r}: there is no .parquet file in it.")
    for path in paths:
        with pq.ParquetFile(path, filesystem=fs) as file:
            _check_columns(path, file.schema_arrow)
            for batch in file.iter_batches(ROWS, columns=[ID, EMBEDDING]):
                rows = batch.filter(pc.is_valid(batch.column(EMBEDDING)))
                values = _matrix(path, rows.column(EMBEDDING), width)
                width = width or values.shape[1] or None
                lengths = np.linalg.norm(values, axis=1)
                good = np.isfinite(lengths) & (lengths > 0)
                ids = rows.column(ID).cast(pa.string()).filter(pa.array(good))
                yield ids, (values[good] / lengths[good, None]).astype(np.float32)


def _check_columns(path: str, schema: pa.Schema) -> None:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    is_known = {ID, EMBEDDING} <= set(schema.names)
    if is_known and any(is_kind(schema.field(EMBEDDING).type) for is_kind in lists):
        return
    raise InputError(
        f"{path}: its columns are {', '.join(f'{field.name} ({field.type})' for field in schema) or 'none'}, and "
        f"embeddings are in the columns {ID} and {EMBEDDING}, a list of numbers. Write them under these names."
    )


def _matrix(path: str, column: pa.Array, width: int | None) -> npt.NDArray[np.float64]:
    """Lists of numbers as rows of float64 [n, d]; a null among the numbers is NaN."""
    counts = pc.list_value_length(column).unique().to_pylist() if len(column) else []
    if len(counts) > 1 or (counts and width not in (None, counts[0])):
        known = sorted({*counts, *([] if width is None else [width])})
        raise InputError(f"{path}: its embeddings have {known} numbers. Those of one model have as many each.")
    flat = pc.list_flatten(column).cast(pa.float64())
    values: npt.NDArray[np.float64] = flat.fill_null(np.nan).to_numpy(zero_copy_only=False)
    return values.reshape(len(column), counts[0] if counts else width or 0)
