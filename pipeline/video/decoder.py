"""A kept child process that decodes: a hostile file can neither hang nor kill the caller.

The child has no credentials, a memory limit and a time limit per call, and can neither open a socket nor start a
program (`pipeline.video.seccomp`); it is asked and answers in JSON, frames follow
as raw bytes, so that nothing it sends is ever executed here. When it dies or runs late the call is a `ClipError` and
the next call gets a fresh child. A pool whose workers share a pipe (pebble's, concurrent.futures') does not do: a
child killed in the middle of an answer leaves half a message in it, and every later call waits for ever.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from multiprocessing import ProcessError
from multiprocessing.connection import Connection, Pipe
from typing import Any, ClassVar, Self

import numpy as np

from pipeline.config.credentials import scrubbed
from pipeline.errors import ClipError
from pipeline.video.child import PING, PULSE
from pipeline.video.orientation import Frames

log = logging.getLogger(__name__)

MEMORY = 4 << 30  # bytes of address space of the child
_START = 120.0  # seconds in which a child must have imported what it needs
_LONGEST = 256 << 20  # bytes of an answer without its frames
# Of the environment; the rest may hold secrets.
_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")


class Decoder:
    """Decodes in a child process, one call after the other; `submit_frames` lets the next clip decode meanwhile.

    `timeout` is seconds in which not a packet or frame comes: it ends a call that stands still, however long its file.
    `memory` is bytes, `scaler` one of `orientation.SCALERS`. Nothing starts before the first call. Every method raises
    ClipError for a bad clip (a future's `result` does); a child that cannot start at all is a RuntimeError.

    The last remote file lies in a temporary folder, which goes with `close`, or else when the process exits.
    """

    _bytes_read: ClassVar[int] = 0
    _counting: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        timeout: float = 120.0,
        memory: int = MEMORY,
        functions: str = "pipeline.video.frames",
        scaler: str = "pillow",
    ) -> None:
        self._timeout, self._memory, self._functions, self._scaler = timeout, memory, functions, scaler
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoder")
        self._child: subprocess.Popen[bytes] | None = None
        self._link: Connection[Any, Any] | None = None
        self._folder: str | None = None  # of remote files, from the first of them on
        self._delete_folder: Callable[[], object] = lambda: None
        self._fetched: tuple[str, str] | None = None  # the last remote file: its uri and its local copy
        self._read: str | None = None  # the last file that was counted as read

    def index(
        self, uri: str, frames: int, fps: float, stride: int | None = None, span: str | None = None
    ) -> list[dict[str, Any]]:
        """`video.segments` of a local or remote file, or of a span of it."""
        arguments: dict[str, Any] = {"frames": frames, "fps": fps, "stride": stride}
        if span is not None:
            arguments["span"] = span
        rows: list[dict[str, Any]] = self._thread.submit(self._call, "segments", uri, arguments).result()
        return rows

    def index_or_plan(
        self, uri: str, frames: int, fps: float, stride: int | None, length: int
    ) -> dict[str, list[dict[str, Any]]]:
        """`video.segments_or_stretches` of a local or remote file."""
        arguments = {"frames": frames, "fps": fps, "stride": stride, "length": length}
        row: dict[str, Any] = self._thread.submit(self._call, "segments_or_stretches", uri, arguments).result()[0]
        return row

    def stretch(self, uri: str, start_frame: int, num_frames: int) -> dict[str, Any]:
        """`video.stretch` of a local or remote file."""
        arguments = {"start_frame": start_frame, "num_frames": num_frames}
        row: dict[str, Any] = self._thread.submit(self._call, "stretch", uri, arguments).result()[0]
        return row

    def look(self, uri: str) -> dict[str, Any]:
        """`video.look` at a local or remote file: its height, width, fps and seconds."""
        row: dict[str, Any] = self._thread.submit(self._call, "look", uri, {}).result()[0]
        return row

    def frames(self, uri: str, start_frame: int, count: int, fps: float, height: int, width: int) -> Frames:
        """`video.decode` of a local or remote file: uint8 [count, height, width, 3]."""
        return self.submit_frames(uri, start_frame, count, fps, height, width).result()

    def submit_frames(
        self, uri: str, start_frame: int, count: int, fps: float, height: int, width: int
    ) -> Future[Frames]:
        arguments: dict[str, Any] = {"start_frame": start_frame, "count": count, "fps": fps}
        arguments |= {"height": height, "width": width, "scaler": self._scaler}
        return self._thread.submit(self._call, "decode", uri, arguments)

    def clip_bytes(self, uri: str, frames: int, fps: float, height: int, width: int) -> bytes | None:
        """The bytes of a local or remote file that already is this clip (`cut_clips.clip_file`); None of another."""
        arguments = {"frames": frames, "fps": fps, "height": height, "width": width}
        return self._thread.submit(self._clip_bytes, uri, arguments).result()

    def _clip_bytes(self, uri: str, arguments: Mapping[str, Any]) -> bytes | None:
        if self._call("clip_file", uri, arguments)[0]["difference"] is not None:
            return None
        with open(self._local(uri), "rb") as file:
            return file.read()

    @classmethod
    def bytes_read(cls) -> int:
        """Bytes of the video files that this process's decoders opened or fetched; segments of one file in a row count
        once."""
        return cls._bytes_read

    @property
    def pid(self) -> int | None:
        """The child's process, while there is one."""
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """End the child. Calls that have not begun are cancelled."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._stop()
        self._fetched = None
        self._delete_folder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, function: str, uri: str, arguments: Mapping[str, Any]) -> Any:
        path = self._local(uri)
        self._count(uri, path)
        if not self._alive():
            self._start()
        assert self._child is not None
        assert self._link is not None
        request = {"function": function, "timeout": self._timeout, "wanted": {"path": path, **arguments}}
        try:
            self._send(json.dumps(request).encode())
            answer = json.loads(self._answer())
            error = ClipError(answer["code"], answer["sentence"]) if "code" in answer else None
            frames = self._receive(arguments, answer["bytes"]) if "bytes" in answer else None
        except _StillError as still:
            self._stop()
            raise ClipError("timeout", f"decoding it stood still for {self._timeout:g} seconds") from still
        except (EOFError, OSError, ProcessError, LookupError, TypeError, ValueError, AttributeError) as garbled:
            # The pipe ended, or what came is no answer of ours: either way this child is no use any more.
            raise ClipError("crashed", f"the decoder ended with {_name(self._stop())} while reading it") from garbled
        if error is not None:
            if error.code == "memory":
                self._stop()  # what is left of its memory is in pieces
            raise error
        return answer["rows"] if frames is None else frames

    def _send(self, message: bytes) -> None:
        assert self._child is not None
        assert self._link is not None
        with _limited(self._child, self._timeout):
            self._link.send_bytes(message)

    def _answer(self) -> bytes:
        """The child's answer, as long as it takes: each pulse of the child's gives it the whole time limit again."""
        while True:
            message = self._message()
            if message != PULSE:
                return message

    def _message(self) -> bytes:
        assert self._child is not None
        assert self._link is not None
        with _limited(self._child, self._timeout):
            return self._link.recv_bytes(_LONGEST)

    def _count(self, uri: str, path: str) -> None:
        if uri == self._read:
            return
        with contextlib.suppress(OSError), Decoder._counting:  # that it is not there is for the child to find
            Decoder._bytes_read += os.path.getsize(path)
            self._read = uri

    def _alive(self) -> bool:
        """Whether the child answers: that it was killed since the last call is no fault of the next clip."""
        if self._child is None or self._link is None:
            return False
        try:
            with _limited(self._child, _START):
                self._link.send_bytes(PING)
                return self._link.recv_bytes() == PING
        except (_StillError, EOFError, OSError):
            return False

    def _receive(self, arguments: Mapping[str, Any], size: int) -> Frames:
        """The frames of an answer, which the child says are so many bytes."""
        assert self._child is not None
        assert self._link is not None
        frames = np.empty((arguments["count"], arguments["height"], arguments["width"], 3), np.uint8)
        if size != frames.nbytes:
            raise EOFError
        rest = frames.data.cast("B")
        with _limited(self._child, self._timeout):
            while rest:  # straight into the array: a Connection copies each message twice, for a third of the time
                count = os.readv(self._link.fileno(), [rest])
                if count == 0:
                    raise EOFError
                rest = rest[count:]
        return frames

    def _start(self) -> None:
        self._stop()
        self._link, theirs = Pipe()
        code = f"from pipeline.video.child import serve; serve({theirs.fileno()}, {self._memory}, {self._functions!r})"
        variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        # One thread for numpy too: every thread of its BLAS takes address space.
        environment = {**variables, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-c", code], env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        with _limited(self._child, _START):
            try:
                said = self._link.recv_bytes()  # when it has imported everything
                if said != PING:
                    _warn_of_network(said.decode("utf-8", "replace"))
            except (EOFError, OSError) as error:
                raise RuntimeError(
                    f"the decoder process did not start: it ended with {_name(self._stop())}; its message is on stderr"
                ) from error

    def _stop(self) -> int:
        """End the child if there is one; its exit status (negative: a signal)."""
        if self._link is not None:
            self._link.close()
            self._link = None
        code = 0
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(0.5)  # it sees the end of its pipe, or is dead already and its status tells of what
            self._child.kill()
            code = self._child.wait()
            self._child = None
        return code

    def _local(self, uri: str) -> str:
        """A local path to a file; remote ones are fetched, and the last one is kept for its next segment."""
        from pipeline.inputs.shards import members
        from pipeline.storage import stores

        if self._fetched is not None and self._fetched[0] == uri:
            return self._fetched[1]
        inside = members.inside(uri)
        if inside is None:
            fs, bare = stores.place(uri)
            if "file" in fs.protocol:
                return bare
        self._forget()
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="clips-")
            # Also when the process exits: actors close no decoder.
            self._delete_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        handle, local = tempfile.mkstemp(dir=self._folder, suffix=_extension(inside or uri))
        os.close(handle)
        try:
            if inside is None:
                stores.fetch(uri, local)
            else:
                members.fetch(uri, local)
        except ClipError:
            os.unlink(local)
            raise
        except Exception as error:  # every store has its own exceptions; whichever it is, this clip cannot be read
            os.unlink(local)
            raise ClipError("read", f"it cannot be fetched ({type(error).__name__}: {scrubbed(str(error))})") from error
        self._fetched = (uri, local)
        return local

    def _forget(self) -> None:
        if self._fetched is not None:
            os.unlink(self._fetched[1])
            self._fetched = None


@lru_cache(maxsize=1)
def _warn_of_network(why: str) -> None:
    log.warning("decoders are not kept from the network: %s. Their other limits hold.", why)


class _StillError(Exception):
    """A child was killed because nothing was heard of it."""


@contextlib.contextmanager
def _limited(child: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Kill the child after so many seconds, which ends any read from it. Raises _StillError then, whatever came."""
    late = threading.Event()

    def kill() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (EOFError, OSError, ProcessError, ValueError, AttributeError) as error:
        if late.is_set():
            raise _StillError from error
        raise
    finally:
        timer.cancel()
        timer.join()  # it has killed the child by now, or never will
    if late.is_set():  # the message came at the last moment, and the child is gone
        raise _StillError


def _extension(name: str) -> str:
    end = os.path.splitext(name)[1]
    return end if end[1:].isalnum() else ""


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"status {code}"
