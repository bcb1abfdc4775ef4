"""The webhook, against an HTTP server on loopback."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs import command
from pipeline import config
from pipeline.config import Run
from pipeline.errors import ConfigError, SpentError
from pipeline.operations import webhook
from pipeline.stages import run_record

SECRET = "T0KEN-in-the-path"


class Listener:
    """Keeps what is posted; answers with `answers` in turn, then 200."""

    def __init__(self) -> None:
        self.got: list[dict[str, str]] = []
        self.answers: list[int] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                recorder.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(recorder.answers.pop(0) if recorder.answers else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hooks/{SECRET}"


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    hook_listener = Listener()
    monkeypatch.setenv("CURATION_HOOK", hook_listener.url)
    monkeypatch.setattr(webhook, "WAIT", 0.01)
    yield hook_listener
    hook_listener.server.shutdown()
    hook_listener.server.server_close()


def configured(**overrides: object) -> Run:
    return config.load("demo", {"root": "runs/x", "webhook.variable": "CURATION_HOOK", **overrides})


def test_a_failure_is_told_with_its_first_line_and_no_secret(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    with pytest.raises(RuntimeError, match="broke"), webhook.on_failure(configured(), "curate"):
        raise RuntimeError(f"broke at {listener.url} with 0123456789abcdef0123\nand more lines")
    (message,) = listener.got
    assert {k: message[k] for k in ("job", "root", "state")} == {"job": "curate", "root": "runs/x", "state": "failed"}
    assert message["error"] == "broke at **** with ****"
    assert set(message) == {"job", "root", "state", "stage", "error", "time"}
    assert SECRET not in json.dumps(message) + caplog.text


def test_a_spent_budget_is_no_failure(listener: Listener) -> None:
    with pytest.raises(SpentError), webhook.on_failure(configured(), "curate"):
        raise SpentError("attribute clips: budget.gpu_hours=1 is spent after 60 of 100")
    (message,) = listener.got
    assert (message["state"], message["error"]) == (
        "spent",
        "attribute clips: budget.gpu_hours=1 is spent after 60 of 100",
    )


def test_what_is_wrong_usage_is_not_told(listener: Listener) -> None:
    with pytest.raises(ConfigError), webhook.on_failure(configured(), "curate"):
        raise ConfigError("data.videos: nothing there")
    with webhook.on_failure(configured(), "curate"):
        pass
    assert listener.got == []


@pytest.mark.parametrize(
    ("answers", "tries", "delivered"), [([503, 429], 3, True), ([503, 503, 503], 3, False), ([404], 1, False)]
)
def test_it_tries_a_bounded_number_of_times_and_then_warns(
    listener: Listener, caplog: pytest.LogCaptureFixture, answers: list[int], tries: int, delivered: bool
) -> None:
    listener.answers = list(answers)
    with caplog.at_level(logging.WARNING):
        assert webhook.post(configured(), "nightly", "finished") is delivered
    assert len(listener.got) == tries
    assert ("CURATION_HOOK" in caplog.text) is not delivered
    assert SECRET not in caplog.text


def test_nobody_there_leaves_the_job_its_own_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CURATION_HOOK", f"http://127.0.0.1:9/{SECRET}")
    monkeypatch.setattr(webhook, "WAIT", 0.01)
    with pytest.raises(RuntimeError, match="its own"), webhook.on_failure(configured(), "curate"):
        raise RuntimeError("its own")
    assert "cannot be reached" in caplog.text
    assert SECRET not in caplog.text


def test_a_job_tells_its_stage(listener: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["job", "--config", "demo", "--set", f"root={tmp_path}", "--set", "webhook.variable=CURATION_HOOK"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(run_record, "PACKAGES", ("no-such-package",))
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        command.main(run_record.record, None)
    (message,) = listener.got
    assert (message["job"], message["stage"], message["root"]) == ("record", "record", str(tmp_path))
    assert "no-such-package" in message["error"]


@pytest.mark.parametrize("value", [None, "", "ftp://x", "file:///etc/passwd"])
def test_a_variable_without_a_url_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("CURATION_HOOK", raising=False)
    if value is not None:
        monkeypatch.setenv("CURATION_HOOK", value)
    with pytest.raises(ConfigError, match="CURATION_HOOK"), webhook.on_failure(configured(), "curate"):
        pass


def test_a_url_in_the_configuration_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="not the URL") as error:
        configured(**{"webhook.variable": f"https://hooks.example.com/{SECRET}"})
    assert SECRET not in str(error.value)
