"""A real browser for tests of pages: Debian's chromium, driven by playwright, which needs no browser of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine; apt-get install chromium")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without its sandbox, which needs privileges that containers lack: it opens nothing but the tests' pages.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def served(server: Any) -> Thread:
    """The thread in which a server answers from now on."""
    thread = Thread(target=server.serve, daemon=True)
    thread.start()
    return thread


def stopped(server: Any, thread: Thread) -> None:
    server.stop()
    thread.join(20)
    assert not thread.is_alive(), "the server does not end"
