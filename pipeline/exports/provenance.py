"""Where each clip of an export comes from, and a text for whoever is handed the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Run
from pipeline.exports.formats import Format
from pipeline.exports.trainers import ExportedSet


def parquet(rows: pa.Table, record: Mapping[str, Any]) -> bytes:
    """provenance.parquet: a row for each clip that could be cut. Its metadata has the export's record."""
    table = rows.replace_schema_metadata({"export": json.dumps(record, sort_keys=True)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def readme(layout: Format, clips: ExportedSet, run: Run) -> str:
    """README.txt."""
    e, start = run.export, _START.get(layout.name, "")
    lines = [
        f"{len(clips.rows)} clips for {layout.trainer}, of the arm {e.arm} (group {e.group}).",
        "",
        f"A clip is {clips.frames} frames at {clips.fps:g} a second, {clips.width} x {clips.height}, H.264, and shows "
        "the very frames",
        "by which it was ranked. provenance.parquet has a row for each clip: its video, the first frame in it, rank,",
        "influence, weight, and the licence where the videos' list named one. The rights in the videos are those of",
        "their owners.",
    ]
    if start:
        values = {"base": clips.base, "frames": clips.frames, "fps": f"{clips.fps:g}"}
        values |= {"height": clips.height, "width": clips.width}
        lines += ["", *start.format(**values).strip().splitlines()]
    return "\n".join(lines) + "\n"


# How each reader is told of the folder.
_START = {
    "videofolder": 'from datasets import load_dataset\n\nclips = load_dataset("videofolder", data_dir="{base}")',
    "webdataset": "shards.txt lists the tar files. The members of a clip are KEY.mp4, KEY.txt (caption) and KEY.json.",
    "musubi": "--dataset_config {base}/dataset.toml",
    "diffusion-pipe": "dataset = '{base}/dataset.toml'    (in the configuration of the training)",
    "diffsynth": "--dataset_base_path {base} --dataset_metadata_path {base}/metadata.json --data_file_keys video\n"
    "--height {height} --width {width} --num_frames {frames}",
    "finetrainers": "--dataset_config {base}/training.json",
    "ai-toolkit": "Put the list `datasets` of datasets.yaml into the process of the configuration.",
    "simpletuner": "--data_backend_config {base}/multidatabackend.json",
    "ltx-2": "process_dataset.py {base}/dataset.json --resolution-buckets {width}x{height}x{frames}\n"
    "The trainer encodes each file once, so weights are lost. Where you export again, use --overwrite.",
    "fastvideo": "--preprocess.dataset_path {base} --preprocess.train_fps {fps} --preprocess.num_frames {frames}",
    "data-juicer": "dataset_path: {base}/clips.jsonl",
}
