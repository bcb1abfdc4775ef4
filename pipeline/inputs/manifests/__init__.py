"""Manifests: JSON lines, CSV, TSV and Parquet, read as typed rows in bounded blocks. `reader` is the entrance."""
