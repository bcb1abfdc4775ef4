"""A Ray that starts on this machine: folders that are too long for its sockets, and an agent that loads slowly."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster import local_ray
from pipeline.errors import ConfigError

# --- folders ---------------------------------------------------------------------------------------------------------


def long_folder(base: Path, length: int) -> Path:
    return base / ("x" * max(1, length - len(str(base)) - 1))


def test_a_short_tmpdir_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for name in ("/tmp", "/var/tmp"):
        monkeypatch.setenv("TMPDIR", name)
        assert local_ray.folders() == {}
    monkeypatch.delenv("TMPDIR")
    assert local_ray.folders() == {}


def test_a_long_tmpdir_keeps_the_objects_and_not_the_sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    given = tmp_path / "job_123456" / "local_scratch_directory"
    monkeypatch.setenv("TMPDIR", str(given))
    with caplog.at_level(logging.WARNING):
        options = local_ray.folders()
    assert options["object_spilling_directory"] == str(given / "ray")
    own = Path(options["_temp_dir"]).parent
    assert own.name == f"ray-{os.getuid()}"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert str(own) in caplog.text
    assert str(given) in caplog.text
    assert local_ray.folders() == options, "a second run on this machine has another folder"


def test_a_long_ray_tmpdir_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = str(long_folder(tmp_path, 60))
    monkeypatch.setenv("RAY_TMPDIR", given)
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=.*Ray's sockets need a folder of at most \d\d"):
        local_ray.folders()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_tmpdir_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"TMPDIR=.*cannot keep its files there"):
        local_ray.folders()


def test_a_tmpdir_that_is_a_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"TMPDIR=.*cannot keep its files there"):
        local_ray.folders()


def test_a_folder_that_others_may_enter_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.mkdir(mode=0o755)
    monkeypatch.setattr(local_ray, "SHORT", (str(tmp_path / "a"), str(tmp_path / "b")))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"ray-{os.getuid()}").symlink_to(link)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / f"ray-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="Set RAY_TMPDIR to a short one"):
        local_ray._short_folder()


A_RAY = """
import os

import ray

from pipeline.cluster import connection, streaming

streaming.connect()
spilling = ray._private.worker._global_node._object_spilling_config
os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
print(ray.get(ray.remote(lambda: os.environ["TMPDIR"]).remote()))
print(spilling)
print(connection.cluster_address() == os.environ["RAY_ADDRESS"])
ray.shutdown()
"""


def test_ray_runs_with_a_long_tmpdir_and_can_be_joined(tmp_path: Path) -> None:
    """In a process of its own: Ray waits for its own processes in native code, which no time limit of a test ends."""
    given = tmp_path / "slurm" / "job_123456" / "local_scratch_directory"
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment |= {"TMPDIR": str(given), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", A_RAY], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen, spilling, joined = done.stdout.splitlines()[-3:]
    assert seen == str(given)
    assert str(given / "ray") in spilling
    assert joined == "True"


# --- an agent that loads slowly --------------------------------------------------------------------------------------

SLOW_AGENT = """
import time
from pathlib import Path

if "dashboard/agent.py" in Path("/proc/self/cmdline").read_text():
    starts = Path(__file__).with_name("starts")
    with starts.open("a") as file:
        file.write("a start\\n")
    if len(starts.read_text().splitlines()) <= {slow}:
        time.sleep(25)
"""
A_TASK = """
import logging
logging.basicConfig(format="%(message)s")
import ray
from pipeline.cluster import local_ray
{changes}
local_ray.start(log_to_driver=False, logging_level=logging.ERROR)
print(ray.get(ray.remote(lambda: "it works").remote()))
"""


def started(folder: Path, slow: int, changes: str = "") -> tuple[subprocess.CompletedProcess[str], int]:
    """A process that starts a Ray whose agent loads too slowly so many times, and the starts of agents."""
    (folder / "sitecustomize.py").write_text(SLOW_AGENT.format(slow=slow))
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "RAY_BACKEND_LOG_LEVEL": "fatal"}
    line = [sys.executable, "-c", A_TASK.format(changes=changes)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    return done, len((folder / "starts").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc")
def test_a_ray_whose_agent_loads_slowly_is_tried_again(tmp_path: Path) -> None:
    done, starts = started(tmp_path, slow=1)
    assert (done.returncode, done.stdout, starts) == (0, "it works\n", 2), done.stderr
    assert "Ray did not start within 30 s, as on a busy machine; tries left: 2" in done.stderr


@pytest.mark.whole
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc")
def test_a_ray_that_never_starts_says_why(tmp_path: Path) -> None:
    done, starts = started(tmp_path, slow=9, changes="local_ray.STARTS = 1")
    assert (done.returncode, starts) == (1, 1)
    said = done.stderr.splitlines()[-1]
    assert "stage connect failed: Ray did not start on this machine in 30 s, 1 times." in said
    log = said.partition("the disk with Python's packages too slow. ")[2].split()[0]
    assert "metrics_agent_port" in Path(log).read_text()
