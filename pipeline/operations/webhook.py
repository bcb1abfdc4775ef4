"""A small JSON to a URL when a job has failed, when its budget is spent, or when a night is done. A webhook that fails
is a warning, no failure.

The URL, which is a secret, stands in an environment variable; the configuration names the variable only.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pipeline.config import Run
from pipeline.config.credentials import HIDDEN, scrubbed
from pipeline.errors import ConfigError, SpentError, UsageError, first_line

log = logging.getLogger(__name__)

TRIES = 3
TIMEOUT = 10.0  # seconds of one try
WAIT = 2.0  # seconds before the second try; twice as long before each further one


def address(run: Run) -> str | None:
    """Where to post; None if nowhere. ConfigError if the variable that the configuration names holds no URL."""
    name = run.webhook.variable
    if name is None:
        return None
    url = os.environ.get(name, "")
    if not url.startswith(("https://", "http://")):
        raise ConfigError(
            f"webhook.variable={name!r}: the environment variable {name} {'holds no URL' if url else 'is not set'}; "
            "set it to an address that begins with https:// or http://, or webhook.variable to null."
        )
    return url


@contextmanager
def on_failure(run: Run, job: str) -> Iterator[None]:
    """Tell the webhook if the body fails; not of wrong usage or configuration (exit 2), which who typed it reads.

    A budget that is spent is no failure (exit 0), but work is left that nobody does unasked: the state is "spent", and
    `error` says what is finished.
    """
    address(run)
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        state = "spent" if isinstance(error, SpentError) else "failed"
        post(run, job, state, stage=stage(error), error=first_line(error))
        raise


WORKFLOW = ("jobs.", "pipeline.stages.")  # modules whose functions are named as stages are


def stage(error: BaseException) -> str:
    """The innermost function of jobs/ or pipeline/stages/ that an error passed."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [f.f_code.co_name for f in frames if str(f.f_globals.get("__name__", "")).startswith(WORKFLOW)]
    named = [name for name in names if not name.startswith("<")]  # a comprehension, a lambda
    return named[-1] if named else ""


def post(run: Run, job: str, state: str, **facts: str) -> bool:
    """Post {job, root, state, time} and the first lines of what else is told, `stage` and `error` of a failure, `night`
    and `headline` of a night that is done, a bounded number of times; whether it was taken."""
    url = address(run)
    if url is None:
        return False
    lines = {key: (value.splitlines() or [""])[0] for key, value in facts.items()}
    fields = {"job": job, "root": run.root, "state": state, **lines}
    safe = {key: scrubbed(value).replace(url, HIDDEN)[:500] for key, value in fields.items()}
    body = json.dumps({**safe, "time": datetime.now(UTC).isoformat(timespec="seconds")}).encode()
    for number in range(TRIES):
        if number:
            time.sleep(WAIT * 2 ** (number - 1))
        why, final = _try(url, body)
        if why is None:
            return True
        if final:
            break
    log.warning("webhook of %s: %s; nobody was told that %s %s", run.webhook.variable, why, job, state)
    return False


def _try(url: str, body: bytes) -> tuple[str | None, bool]:
    """Why a try failed, without the URL, None if it did not; and whether another would fail as well."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return None, True
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}", error.code < 500 and error.code != 429
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"it cannot be reached ({type(error).__name__})", False
