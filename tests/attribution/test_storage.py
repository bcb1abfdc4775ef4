"""Features in half the bytes, or a quarter: their direction stays, whatever their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import config, tables
from pipeline.attribution import fingerprints
from pipeline.attribution.workers import stored_as
from pipeline.config.attribution import Storage
from pipeline.errors import FingerprintError
from pipeline.operations.costs import Size, storage
from pipeline.ranking import influence, unit_settings
from pipeline.ranking.feature_table import under_mask
from pipeline.statistics.correlations import spearman
from pipeline.tables import schemas

K, N = 512, 400
SETTINGS = [{"timestep": 751, "noise": 0, "mask": "motion"}, {"timestep": 501, "noise": 0, "mask": "motion"}]
KINDS: list[Storage] = ["float32", "float16", "int8"]
LARGEST_ERROR = {"float32": 0.0, "float16": 3e-4, "int8": 1.5e-2}  # of a unit row's length


def features(scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    common = rng.standard_normal((2, K))
    values: np.ndarray = ((rng.standard_normal((N, 2, K)) + common) * scale).astype(np.float32)
    return values


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_the_direction_stays_whatever_the_size(kind: Storage, scale: float) -> None:
    """A gradient may be far above what float16 holds, or below."""
    values = features(scale)
    stored = stored_as(values, kind)
    assert stored.dtype == np.dtype(kind)
    assert np.isfinite(stored.astype(np.float32)).all()
    exact, rounded = (unit_settings(v.astype(np.float32).reshape(N, -1), 2) for v in (values, stored))
    error = np.linalg.norm(exact - rounded, axis=1).max()
    assert error <= LARGEST_ERROR[kind], f"{kind}: a unit row is off by {error:g}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_of_zeros_stays_one(kind: Storage) -> None:
    """A still clip's, under the motion mask."""
    values = features()[:2]
    values[0, 1] = 0
    stored = stored_as(values, kind)
    assert not stored[0, 1].any()
    assert stored[0, 0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_ranking_reads_every_kind(kind: Storage, tmp_path: Path) -> None:
    values, folder = features(), str(tmp_path / "features/clips")
    ids = [f"c{n:03d}" for n in range(N)]
    valid = np.arange(N) != 7
    one = tables.vectors(np.ones((N, 2), np.float32), valid)
    columns = [
        *(pa.array(ids), pa.array(["v"] * N)),
        *(tables.vectors(stored_as(values, kind).reshape(N, -1), valid, kind), one, one),
        *(pa.array([9] * N, pa.int32()), pa.array([None if v else "not_finite: NaN" for v in valid])),
    ]
    table = pa.table(columns, schema=schemas.features_schema(2, K, kind))
    tables.append(folder, table, {}, settings=SETTINGS)
    read = under_mask(str(tmp_path), "clips", "motion")
    rows = np.stack(list(read.rows().values()))
    assert rows.dtype == np.float32
    assert len(rows) == N - 1
    exact = unit_settings(values.reshape(N, -1)[valid], 2)
    by_mean = [influence(clips, exact[:5], 0.01).mean(1) for clips in (exact, rows)]
    assert spearman(*by_mean) > 0.999
    each = pq.ParquetFile(tables.parts(folder)[0]).metadata.row_group(0)
    size = sum(
        c.total_compressed_size for c in map(each.column, range(each.num_columns)) if "feature" in c.path_in_schema
    )
    assert size / N / K / 2 < {"float32": 5.5, "float16": 2.75, "int8": 1.4}[kind]


def test_another_storage_is_another_table(tmp_path: Path) -> None:
    """The default leaves fingerprints as they were."""
    runs = {kind: config.load("demo", {"root": str(tmp_path), "attribution.storage": kind}) for kind in KINDS}
    prints = {kind: fingerprints.features(run) for kind, run in runs.items()}
    assert "attribution.storage" not in prints["float32"]
    tables.append(
        str(tmp_path / "clips"), pa.Table.from_pylist([{"clip_id": "a"}], schema=schemas.CLIPS), prints["int8"]
    )
    with pytest.raises(FingerprintError, match=r"attribution\.storage='int8', but this run has .*='float16'"):
        tables.check(str(tmp_path / "clips"), prints["float16"])


def test_a_plan_counts_the_bytes(tmp_path: Path) -> None:
    sizes = {}
    for kind in KINDS:
        run = config.load("demo", {"root": str(tmp_path), "attribution.storage": kind})
        sizes[kind] = storage(
            run, Size(videos=1000, clips=1000, held_out=0, parameters=0, latent_numbers=0, mask_numbers=0)
        )["features"]
    assert sizes["float32"] > 1.9 * sizes["float16"] > 3.6 * sizes["int8"]
