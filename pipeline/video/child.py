"""The decoder's child process: answers calls until its parent is gone. It imports no more than it needs to decode."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import av
import numpy as np

from pipeline.errors import ClipError
from pipeline.video import seccomp
from pipeline.video.orientation import Frames

PING = b"ready?"
PULSE = b"going on"  # sent about once a second while an answer is being made and frames or packets come
_PAUSE = 1.0  # seconds between two of them, or a quarter of the time limit where that is less
GRACE = 10.0  # seconds after the time limit at which a child whose parent is gone ends itself


def serve(handle: int, memory: int, functions: str) -> None:
    """The child's loop: answer calls until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    av.logging.set_level(None)
    module = importlib.import_module(functions)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    link: Connection[Any, Any] = Connection(handle)
    pulse = _Pulse(link)
    open_because = seccomp.seal()
    gc.freeze()  # what has been imported stays, so that looking for garbage takes no time
    link.send_bytes(PING if open_because is None else open_because.encode())
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent closed or is gone
        while True:
            message = link.recv_bytes()
            if message == PING:
                link.send_bytes(PING)
                continue
            request = json.loads(message)
            pulse.begin(request["timeout"])
            answer, frames = _answer(getattr(module, request["function"]), {**request["wanted"], "pulse": pulse})
            link.send_bytes(json.dumps(answer).encode())
            if frames is not None:
                _write(handle, frames)
            signal.setitimer(signal.ITIMER_REAL, 0)
            del answer, frames
            gc.collect()


class _Pulse:
    """Tells the parent that the answer is being worked on, whenever it is called and the last time is a while ago."""

    def __init__(self, link: Connection[Any, Any]) -> None:
        self._link, self._timeout, self._last = link, 0.0, 0.0

    def begin(self, timeout: float) -> None:
        """Begin an answer: the process ends itself if nothing is heard of it for so many seconds and a grace."""
        self._timeout, self._last = timeout, time.monotonic()
        # The default action of SIGALRM ends the process: should the parent die meanwhile, nothing else would.
        signal.setitimer(signal.ITIMER_REAL, timeout + GRACE)

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last < min(_PAUSE, self._timeout / 4):
            return
        self._last = now
        signal.setitimer(signal.ITIMER_REAL, self._timeout + GRACE)
        self._link.send_bytes(PULSE)


def _answer(function: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Frames | None]:
    try:
        result = function(**arguments)
    except ClipError as error:
        return {"code": error.code, "sentence": error.sentence}, None
    except MemoryError:
        return {"code": "memory", "sentence": "the decoder's memory limit is too small for it"}, None
    except (av.FFmpegError, OSError, ValueError, ArithmeticError) as error:
        # PyAV's own errors, and what a hostile header makes of its numbers (a rate of 0, a size of 2^31).
        return {"code": "decode", "sentence": f"it cannot be decoded ({type(error).__name__}: {_plain(error)})"}, None
    return ({"bytes": result.nbytes}, result) if isinstance(result, np.ndarray) else ({"rows": result}, None)


def _write(handle: int, frames: Frames) -> None:
    """Frames as bare bytes, without a Connection's header: the answer before them says how many there are."""
    rest = frames.data.cast("B")
    while rest:
        rest = rest[os.write(handle, rest) :]


def _plain(error: Exception) -> str:
    """An error's text without the path of the file, which may be a temporary one."""
    return str(error.strerror or type(error).__name__) if isinstance(error, OSError | av.FFmpegError) else str(error)
