"""Memory of a long run is flat, and no frame enters the object store: `make soak`."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from pipeline import tables
from pipeline.config import Run
from pipeline.stages import attribution, indexing

CLIPS = 2000
MIB = 1 << 20


class Memory:
    """Bytes of this process, of Ray, of its actors, of their decoders and of the object store, every half second."""

    def __init__(self) -> None:
        self.samples: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        this = psutil.Process()
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        while not self._ended.wait(0.5):
            now, sums = time.monotonic(), defaultdict(int)
            sums["driver"] = this.memory_info().rss - this.memory_info().shared
            for process in this.children(recursive=True):
                try:
                    line = " ".join(process.cmdline())
                    kind = "decoders" if "pipeline.video.child" in line else "actors" if "_Actor" in line else "ray"
                    # What a process shares with others, the object store above all, is not its own.
                    memory = process.memory_info()
                    sums[kind] += memory.rss - memory.shared
                except psutil.NoSuchProcess:
                    continue  # it has just ended
            sums["store"] = get_memory_info_reply(state).store_stats.object_store_bytes_used
            for kind, size in sums.items():
                self.samples[kind].append((now, size))

    def growth(self, kind: str) -> float:
        """Bytes that the last fifth of the time has more than the second fifth: medians, by which all is loaded."""
        sizes = np.array([size for _, size in self.samples[kind]], float)
        fifth = len(sizes) // 5
        return float(np.median(sizes[-fifth:]) - np.median(sizes[fifth : 2 * fifth]))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_memory_of_a_long_run_is_flat(
    small_run: Callable[..., Run], small_world: Path, cluster: None, tmp_path: Path
) -> None:
    files = sorted((small_world / "clips").rglob("*.mp4"))
    lines = [{"file_name": str(files[i % len(files)]), "caption": f"take {i}", "id": f"clip-{i}"} for i in range(CLIPS)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = small_run(
        tmp_path / "run",
        data__videos=str(tmp_path / "metadata.jsonl"),
        attribution__hold=1,
        attribution__projection__kind="sketched_gaussian",  # a dense one would take hours
        resources__extract_features__batch=16,
    )
    for stage in (indexing.index, attribution.attribute):
        with Memory() as memory:
            stage(run, "clips")
        for kind, sizes in memory.samples.items():
            print(
                f"{stage.__name__}: {kind} {sizes[-1][1] / MIB:.0f} MiB at the end, at most "
                f"{max(size for _, size in sizes) / MIB:.1f}, grown by {memory.growth(kind) / MIB:+.1f} MiB in "
                f"{sizes[-1][0] - sizes[0][0]:.0f} s"
            )
        for kind in ("driver", "actors", "decoders"):
            assert len(memory.samples[kind]) > 10, f"{stage.__name__}: this was too short to tell"
            assert memory.growth(kind) < 24 * MIB, f"{stage.__name__}: {kind} grow with every clip"
        most = max(size for _, size in memory.samples["store"])
        assert most < 16 * MIB, f"{stage.__name__}: {most / MIB:.0f} MiB in the object store, where only rows belong"
    for name in ("clips", "motion/clips", "features/clips"):
        table = tables.read(f"{run.root}/{name}", ["clip_id"])
        assert table is not None
        assert table.num_rows == CLIPS, f"{name} has {table.num_rows} of {CLIPS} rows"
