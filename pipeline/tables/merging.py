"""Many small parts into few of bounded size; what is large already is not read again."""

from __future__ import annotations

import json

import pyarrow as pa

from pipeline import tables
from pipeline.storage.parallel import in_order
from pipeline.storage.stores import place
from pipeline.tables.part_files import opened
from pipeline.tables.registry import table_of
from pipeline.tables.scanning import Footer, footers

ROWS, BYTES = 50_000, 128 << 20  # a part is merged up to; bytes are those of decompressed columns


def merge(folder: str, rows: int = ROWS, size: int = BYTES) -> None:
    """Merge the parts that are smaller than half of `rows` and `size` into parts of about that; rows that give way to
    another row of the same merged part are dropped.

    A merged part is written before the small ones go, so a kill between the two leaves rows twice, which readers
    resolve; nothing is lost. What is left over, less than one whole part, is merged again the next time.
    """
    group = list[Footer]()
    for part in footers(folder):
        if part.rows * 2 >= rows or part.size * 2 >= size:
            continue
        if group and (sum(p.rows for p in group) + part.rows > rows or sum(p.size for p in group) + part.size > size):
            _into_one(folder, group)
            group = []
        group.append(part)
    if len(group) > 1:
        _into_one(folder, group)


def _into_one(folder: str, group: list[Footer]) -> None:
    fs, _ = place(folder)

    def read(part: Footer) -> pa.Table:
        with opened(part.path, fs) as file:
            return file.read().replace_schema_metadata()

    rows = pa.concat_tables(in_order(read, group), promote_options="default")
    merged = tables.once(rows, table_of(folder, rows.column_names))
    metadata = {k.decode(): json.loads(v) for k, v in (group[0].schema.metadata or {}).items()}
    tables.append(folder, merged, metadata.pop("fingerprint", {}), **metadata)
    name = tables.part(folder, merged).rsplit("/", 1)[-1]
    for _ in in_order(fs.rm_file, [part.path for part in group if not part.path.endswith(f"/{name}")]):
        pass
