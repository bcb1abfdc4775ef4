"""The features of a run under one mask, streamed from their table part by part.

Memory holds the clips' ids and one flag a row; of the features themselves a few parts' worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config.attribution import mask_of
from pipeline.errors import ConfigError, MissingTableError
from pipeline.ranking import unit_settings
from pipeline.storage.parallel import in_order
from pipeline.storage.stores import join, place
from pipeline.tables import registry
from pipeline.tables.part_files import opened
from pipeline.tables.schemas import plain

Array = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
R = TypeVar("R")

BATCH = 4096  # rows decoded at a time


class Part(NamedTuple):
    """A part of a table, and which of its rows are among the clips."""

    fs: fsspec.AbstractFileSystem
    path: str
    flags: Flags


@dataclass(frozen=True)
class FeatureTable:
    """The clips of one or several roots that have features under a mask: one row each, the row that counts where there
    are two."""

    settings: int  # of a row of the table
    members: tuple[int, ...]  # those of them under the mask
    parts: tuple[Part, ...]
    clip_ids: pa.LargeStringArray  # of those rows, in the parts' order
    start: int = 0  # where it is the end of a table that was split: how many clips came before

    def split(self, rows: int) -> tuple[FeatureTable, FeatureTable]:
        """The first parts with no more than so many clips in all, and the others."""
        ends = np.cumsum([part.flags.sum() for part in self.parts])
        first = int(np.searchsorted(ends, rows, "right"))
        count = int(ends[first - 1]) if first else 0
        return (
            replace(self, parts=self.parts[:first], clip_ids=self.clip_ids[:count]),
            replace(self, parts=self.parts[first:], clip_ids=self.clip_ids[count:], start=self.start + count),
        )

    def among(self, ids: Sequence[str] | pa.Array) -> FeatureTable:
        """Those of the clips that `ids` names."""
        array = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
        membership = pc.is_in(self.clip_ids, array.cast(pa.large_string()))
        flags, parts, start = membership.to_numpy(zero_copy_only=False), [], 0
        for part in self.parts:
            chosen, count = part.flags.copy(), int(part.flags.sum())
            chosen[part.flags] = flags[start : start + count]
            start += count
            if chosen.any():
                parts.append(part._replace(flags=chosen))
        return replace(self, parts=tuple(parts), clip_ids=self.clip_ids.filter(membership), start=0)

    def rows(self) -> dict[str, Array]:
        """The unit row [members * k] of every clip, all of them in memory."""
        rows = [row for phi in self.map(lambda phi: phi) for row in phi]
        return dict(zip(self.clip_ids.to_pylist(), rows, strict=True))

    def map(self, call: Callable[[Array], R]) -> Iterator[R]:
        """`call` of the unit rows [n, members * k] of these clips, in the order of `clip_ids`, over all cores."""
        return self.map_rows(lambda phi, _: call(phi))

    def map_rows(self, call: Callable[[Array, slice], R]) -> Iterator[R]:
        """The same; `call` is told as well which of the clips they are."""
        first = self.start + np.cumsum([0, *(part.flags.sum() for part in self.parts)])

        def of_part(pair: tuple[Part, int]) -> list[R]:
            part, at = pair
            outputs, start = [], 0
            # A buffer, or a whole row group's bytes would be held.
            with opened(part.path, part.fs, buffer_size=1 << 20) as file:
                for batch in file.iter_batches(BATCH, columns=["feature"], use_threads=False):
                    here = part.flags[start : start + batch.num_rows]
                    start += batch.num_rows
                    if here.any():
                        phi = self._unit(batch.column(0), here)
                        self._check(phi, part.path, at)
                        end = at + len(phi)
                        outputs.append(call(phi, slice(at, end)))
                        at = end
            return outputs

        for results in in_order(of_part, zip(self.parts, first.tolist(), strict=False)):
            yield from results

    def losses(self) -> Array:
        """The model's own loss on every clip, the mean over the settings under the mask: [n], in the order of
        `clip_ids`."""
        losses = [np.empty(0, np.float32)]
        for part in self.parts:
            with opened(part.path, part.fs) as file:
                column = file.read(["loss"]).column(0).combine_chunks().filter(pa.array(part.flags))
            values = column.flatten().to_numpy().reshape(-1, self.settings)
            losses.append(values[:, list(self.members)].mean(1))
        return np.concatenate(losses)

    def _check(self, phi: Array, path: str, at: int) -> None:
        """Raise MissingTableError where a row has no direction under one of the settings; NaN has none either."""
        parts = phi.reshape(len(phi), len(self.members), -1)
        good = (np.vecdot(parts, parts) > 0.5 / len(self.members)).all(1)
        if not good.all():
            row = int(np.argmin(good))
            flaw = "is zero under one of its settings" if np.isfinite(phi[row]).all() else "is not finite"
            raise _unusable(path, self.clip_ids[at - self.start + row].as_py(), f"its feature {flaw}")

    def _unit(self, column: pa.FixedSizeListArray, flags: Flags) -> Array:
        rows = column if flags.all() else column.filter(pa.array(flags))
        width = rows.type.list_size // self.settings
        values = rows.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.settings, width)
        values = values.astype(np.float32, copy=False)  # stored as float16 or int8 where attribution.storage says so
        if rows.null_count:  # a row without a feature is none of numbers, and `_check` names it
            valid_values, values = values, np.full((len(rows), self.settings, width), np.nan, np.float32)
            values[rows.is_valid().to_numpy(zero_copy_only=False)] = valid_values
        chosen = values if len(self.members) == self.settings else values[:, list(self.members)]
        return unit_settings(np.ascontiguousarray(chosen).reshape(len(rows), -1), len(self.members))


def _unusable(path: str, clip_id: str, flaw: str) -> MissingTableError:
    kind = "query" if "/queries/" in path else "clip"
    return MissingTableError(
        f"{path}: the row of {kind} {clip_id!r} has no error, but {flaw}, so it cannot be ranked. Delete this file: "
        "extract_features then computes its rows anew."
    )


def members(settings: Sequence[Mapping[str, Any]], mask: str) -> tuple[int, ...]:
    """The settings under a mask. Raises ConfigError where there is none."""
    indices = tuple(i for i, setting in enumerate(settings) if setting["mask"] == mask)
    if not indices:
        raise ConfigError(f"attribution.settings has no setting with mask: {mask}; add one and extract features again.")
    return indices


def under_mask(root: str | Sequence[str], name: str, mask: str) -> FeatureTable:
    """The features of `clips` or `queries` of a root, or of several that share no id, for a ranking's mask. A still
    clip has none under "motion".

    Raises MissingTableError where a root has no such table, ConfigError where there is no such setting.
    """
    first, *others = (_of_root(one, name, mask) for one in ((root,) if isinstance(root, str) else root))
    every = (first, *others)
    clip_ids = pa.concat_arrays([table.clip_ids for table in every]) if others else first.clip_ids
    return replace(first, parts=tuple(part for table in every for part in table.parts), clip_ids=clip_ids)


def _of_root(root: str, name: str, mask: str) -> FeatureTable:
    folder = join(root, "features", name)
    paths = tables.parts(folder)
    if not paths:
        raise MissingTableError(f"root={root!r} has no table features/{name}; run extract_features first, or curate.")
    settings = tables.metadata(folder)["settings"]
    chosen, (fs, _) = members(settings, mask_of(mask, name)), place(folder)

    def of_part(path: str) -> tuple[pa.Table, Flags]:
        with opened(path, fs) as file:
            plain(file.schema_arrow.empty_table())
            table = file.read(["clip_id", "error", "norm"], use_threads=False)
        norm = table.column("norm").combine_chunks()
        usable = table.column("error").is_null().to_numpy().copy()
        values = norm.filter(pa.array(usable)).flatten().to_numpy().reshape(-1, len(settings))
        finite = np.isfinite(values).all(1)
        if not finite.all():
            row = np.flatnonzero(usable)[int(np.argmin(finite))]
            raise _unusable(path, table.column("clip_id")[int(row)].as_py(), "a norm of its gradients is not finite")
        usable[usable] = (values[:, list(chosen)] > 0).all(1)
        return table.select(["clip_id", "error"]).replace_schema_metadata(), usable

    pairs = list(in_order(of_part, paths))
    rows = pa.concat_tables([table for table, _ in pairs])
    flags = np.concatenate([usable for _, usable in pairs]) & _counting(rows)
    starts = np.cumsum([0, *(len(usable) for _, usable in pairs)])
    ids = rows.column("clip_id").filter(pa.array(flags)).cast(pa.large_string()).combine_chunks()
    parts = tuple(Part(fs, path, flags[a:b]) for path, a, b in zip(paths, starts[:-1], starts[1:], strict=True))
    return FeatureTable(len(settings), chosen, tuple(part for part in parts if part.flags.any()), ids)


def _counting(rows: pa.Table) -> Flags:
    """Which rows count. A clip has two where a run was killed between writing a merged part and removing the old ones;
    else they need not be sorted to know it."""
    if pc.count_distinct(rows.column("clip_id")).as_py() == rows.num_rows:
        return np.ones(rows.num_rows, bool)
    flags = np.zeros(rows.num_rows, bool)
    flags[tables.latest_rows(rows, registry.FEATURES).to_numpy()] = True
    return flags
