"""Each arm's fine-tuning as a run of MLflow or Weights & Biases, whichever `tracking.kind` names.

The configuration, the loss of each step and, once there is one, the arm's part of the evaluation go there; keys and
addresses come from the environment (MLFLOW_TRACKING_URI, WANDB_API_KEY ...) alone. Everything is sent from the job's
own process, out of the arm's metrics.jsonl, so that a run that goes on later adds what is missing and nothing twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from pipeline.config import Run
from pipeline.config.credentials import scrubbed
from pipeline.errors import ConfigError, first_line
from pipeline.storage import stores

log = logging.getLogger(__name__)

Values = Mapping[str, float]
LONGEST = 500  # characters of a parameter's value


class Tracked(Protocol):
    """A run of a tracking server, new or gone on with."""

    url: str
    last: int  # the last step that it holds, 0 if none

    def steps(self, lines: Sequence[tuple[int, Values]]) -> None: ...

    def result(self, values: Values, records: Sequence[Mapping[str, Any]]) -> None: ...

    def close(self, failed: bool) -> None: ...


def check(run: Run) -> None:
    """Raise ConfigError if what `tracking.kind` needs is not installed or not told by the environment."""
    kind = run.tracking.kind
    if kind == "none":
        return
    if importlib.util.find_spec(kind) is None:
        raise ConfigError(
            f"tracking.kind={kind!r}: the package {kind} is not installed; install it "
            f"(pip install '.[{kind}]'), or set tracking.kind=none."
        )
    offline = os.environ.get("WANDB_MODE") in ("offline", "disabled")
    if kind == "wandb" and re.search(r"[/\\#?%:]", run.tracking.project):
        raise ConfigError(
            f"tracking.project={run.tracking.project!r}: Weights & Biases takes no project name with one of "
            r"/ \ # ? % :; name another."
        )
    needed = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_API_KEY"}[kind]
    if needed not in os.environ and not (kind == "wandb" and offline):
        raise ConfigError(f"tracking.kind={kind!r}: the environment variable {needed} is not set; set it.")


@contextmanager
def opened(run: Run, arm: str, version: str) -> Iterator[Tracked | None]:
    """The tracked run of one training of an arm, which its root and version name; None without tracking.

    A server that fails is a warning: what it missed is sent when the same command runs again.
    """
    tracked: Tracked | None = None
    if run.tracking.kind != "none":
        check(run)
        with _warned("could not be reached"):
            kinds: dict[str, Callable[[Run, str, str], Tracked]] = {"mlflow": MLflow, "wandb": WandB}
            tracked = kinds[run.tracking.kind](run, arm, _id(run, version))
    failed = True
    try:
        yield tracked
        failed = False
    finally:
        if tracked is not None:
            with _warned("could not be closed"):
                tracked.close(failed)


def follow(tracked: Tracked | None, metrics: str) -> None:
    """Send the lines of an arm's metrics.jsonl that a tracked run lacks."""
    if tracked is None or not stores.exists(metrics):
        return
    lines = [json.loads(line) for line in stores.read_bytes(metrics).decode().splitlines()]
    new = [(line["step"], {"loss": line["loss"], "seconds": line["seconds"]}) for line in lines]
    new = [one for one in new if one[0] > tracked.last]
    if new:
        with _warned("did not take the loss"):
            tracked.steps(new)
            tracked.last = new[-1][0]


def evaluated(run: Run, versions: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> None:
    """Send each arm's records of the evaluation (`comparison.comparison`), and the table of all of them."""
    for arm, version in versions.items() if run.tracking.kind != "none" else ():
        mine = {r["metric"]: r["mean"] for r in records if r["arm"] == arm and r["mean"] is not None}
        with opened(run, arm, version) as tracked:
            if tracked is not None and mine:
                with _warned("did not take the evaluation"):
                    tracked.result(mine, records)


@contextmanager
def _warned(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whatever library is configured; tracking must not end hours of work
        reason = f"{type(error).__name__}: {scrubbed(first_line(error))}"
        log.warning("tracking %s: %s; run the job again to send it", what, reason)


def _id(run: Run, version: str) -> str:
    return hashlib.blake2b(f"{run.root} {version}".encode(), digest_size=8).hexdigest()


def parameters(run: Run, arm: str) -> dict[str, str]:
    """The configuration by dotted key, and where the run's page will be."""
    values = {"arm": arm, "page": scrubbed(stores.join(run.root, "report", "index.html"))}

    def add(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{key}.{name}" if key else name, inner)
        elif key != "finetune.arm":
            values[key] = scrubbed(str(value))[:LONGEST]

    add("", run.model_dump(mode="json", exclude={"webhook", "tracking"}))
    return values


class MLflow:
    """A run of MLflow, found again by a tag."""

    def __init__(self, run: Run, arm: str, identity: str) -> None:
        import mlflow
        from mlflow.entities import Param

        self._client = client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(run.tracking.project)
        id = experiment.experiment_id if experiment else client.create_experiment(run.tracking.project)
        runs = client.search_runs([id], f"tags.identity = '{identity}'")
        values = parameters(run, arm)
        tags = {"identity": identity, "page": values["page"]}
        self._run = runs[0] if runs else client.create_run(id, tags=tags, run_name=f"{arm} {identity[:6]}")
        self._id = self._run.info.run_id
        client.set_terminated(self._id, "RUNNING")
        fresh = [Param(key, value) for key, value in values.items() if key not in self._run.data.params]
        client.log_batch(self._id, params=fresh[:100])
        for first in range(100, len(fresh), 100):  # of which a request may hold so many
            client.log_batch(self._id, params=fresh[first : first + 100])
        history = client.get_metric_history(self._id, "loss")
        self.last = max((metric.step for metric in history), default=0)
        self.url = f"{mlflow.get_tracking_uri().rstrip('/')}/#/experiments/{id}/runs/{self._id}"

    def steps(self, lines: Sequence[tuple[int, Values]]) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for step, values in lines for key, value in values.items()]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(self._id, metrics=metrics[first : first + 1000])

    def result(self, values: Values, records: Sequence[Mapping[str, Any]]) -> None:
        for key, value in values.items():
            self._client.log_metric(self._id, f"evaluation/{_metric_name(key)}", value)
        self._client.log_dict(self._id, {"rows": [dict(r) for r in records]}, "evaluation.json")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def _metric_name(metric: str) -> str:
    """A metric's name without what MLflow refuses in one: brackets, among others."""
    return re.sub(r"[^\w.\- /]", "", metric, flags=re.ASCII)


class WandB:
    """A run of Weights & Biases, found again by its id."""

    def __init__(self, run: Run, arm: str, identity: str) -> None:
        import wandb

        self._run = wandb.init(
            project=run.tracking.project,
            id=identity,
            name=f"{arm} {identity[:6]}",
            config=parameters(run, arm),
            resume="allow",
            settings=wandb.Settings(silent=True, disable_git=True, save_code=False),
        )
        self.last, self.url = max(int(self._run.step) - 1, 0), self._run.url or "offline"

    def steps(self, lines: Sequence[tuple[int, Values]]) -> None:
        for step, values in lines:
            self._run.log(dict(values), step=step)

    def result(self, values: Values, records: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        columns = list(records[0])
        table = wandb.Table(columns=columns, data=[[r[c] for c in columns] for r in records])
        self._run.log({"evaluation_table": table, **{f"evaluation/{key}": value for key, value in values.items()}})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
