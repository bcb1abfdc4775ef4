"""What every job's command line shares: ``python -m jobs.NAME [--config FILE_OR_RECIPE] [--set key=value ...]``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

from pipeline import config
from pipeline.cluster.loading import collector_at_rest
from pipeline.config import Run
from pipeline.config.caveats import caveats
from pipeline.config.credentials import scrubbed
from pipeline.errors import ConfigError, LostError, SpentError, StageError, UsageError, store_failure
from pipeline.inputs.places import check_places
from pipeline.operations import webhook
from pipeline.stages import budget
from pipeline.storage import lease, stores

log = logging.getLogger(__name__)

PASSING = ("pipeline.cluster.", "pipeline.storage.")  # their warnings are of how a job went, and not of what it made
CONTINUED = "Once that is mended, the same command goes on from here."


Job = Callable[[Run], None]


def main(
    job: Job | str,
    description: str | None,
    default: str | None = None,
    afterwards: Job | str | None = None,
    lists_videos: bool = False,
    of_run: bool = False,
    of_roots: bool = False,
    leased: bool = True,
    completes: bool = False,
) -> None:
    """Parse the command line, run the job while holding the run's lease, and exit: 0 done, or as much of it as
    the budget lets, 1 failed or stopped, 2 wrong usage or configuration, among it a run that another job holds.

    A job may be named as "module:function". Its module, with all that takes seconds to import, is then imported once
    the configuration has been read. `lists_videos`: the job needs the places of videos, model and weights, and those
    that are not there end it as early. `afterwards` runs when the lease has been given back: for what may take days
    and writes none of the run's tables. `of_run`: the job is of a run that is there, and needs no `--config` but the
    run's own. `of_roots`: the job also works a run whose clips lie in several roots (`ranking.roots`). Not `leased`: it
    holds no lease, because it writes nothing but what people say. `completes`: the job does what is missing and no
    more, so that where nothing has changed since it ended well (`run_record`) it is not even imported.
    """
    arguments = parser(description, "" if of_run else default).parse_args()
    handler = _Handler()
    handler.setFormatter(_Plain("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.excepthook = _print_traceback
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` ends a job as Ctrl-C does
    is_done = False
    with exit_statuses():
        run, submitted = _configured(arguments, of_run), submission()
        if submitted and "://" not in run.root and not os.path.isabs(run.root):
            raise ConfigError(
                f"root={run.root!r}: a submitted job runs in a copy of its working directory that Ray deletes with the "
                "cluster; give an absolute path that every node reaches, or s3://."
            )
        lease.check_root(run.root)
        if not of_roots:
            check_one_root(run)
        if lists_videos:
            check_places(run)
        for sentence in caveats(run):
            log.warning(sentence)
        if leased:
            is_done = _work(run, job, afterwards, submitted, completes, handler.lines)
        else:
            _imported(job)(run)
    if is_done:
        sys.exit(0)  # before the imports below the call of this function


def _configured(arguments: argparse.Namespace, of_run: bool) -> Run:
    """The configuration that a command line asks for. Raises UsageError."""
    if of_run and not arguments.config:
        return of_root(arguments.set)
    return config.load_line(arguments.config, arguments.set)


@contextlib.contextmanager
def exit_statuses() -> Iterator[None]:
    """End the process as an exception of the body asks for: 2 where the command has to change, 0 where the budget is
    spent, 1 for a store that fails, a lease that is lost and a job that is stopped. Others surface."""
    try:
        yield
    except UsageError as error:
        print(f"error: {scrubbed(str(error))}", file=sys.stderr)
        sys.exit(2)
    except SpentError as spent:
        print(scrubbed(str(spent)))
    except LostError as error:
        print(f"error: {scrubbed(str(error))}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        failure = store_failure(error)
        if failure is None:
            raise
        failed = StageError(error.stage, str(failure)) if isinstance(error, StageError) else failure
        print(f"error: {scrubbed(str(failed))}\n{CONTINUED}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit):  # Ray Train ends the process with status 0 at Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ray still has to end, and a second Ctrl-C would break that off
        print("stopped; the same command continues from here", file=sys.stderr)
        sys.exit(1)


def _work(
    run: Run,
    job: Job | str,
    afterwards: Job | str | None,
    submitted: str | None,
    completes: bool,
    said: Sequence[str],
) -> bool:
    """Do the job while holding the lease, and what comes afterwards; `said` are the warnings of this process. Returns
    whether there was nothing to do for a job that `completes`."""
    from pipeline.stages import run_record  # here for speed: --help and mistakes need no listing of videos

    name = job.split(":")[1] if isinstance(job, str) else job.__name__
    with webhook.on_failure(run, name):
        key = run_record.completion_key(run, name) if completes else None
        if key is not None and run_record.is_done(run, name, key, said):
            return True
        work = _imported(job)
        with (
            lease.hold(run.root, name, submitted),
            budget.one_job(run.budget),
            run_record.completing(run, name, key, said),
        ):
            stores.sweep(run.root)
            work(run)
        if afterwards is not None:
            _imported(afterwards)(run)
    return False


def check_one_root(run: Run) -> None:
    """Raise ConfigError for a run whose clips lie in several roots."""
    if run.ranking.roots:
        raise ConfigError(
            f"ranking.roots={list(run.ranking.roots)}: this job works the clips of one root. Run it for each of these "
            "roots, with root=... and ranking.roots=[]; for a purge, then also for the root of the joint ranking. Jobs "
            "that work on all of them together are rank_clips, finetune, evaluate, compare, export and study."
        )


def of_root(pairs: Sequence[str]) -> Run:
    """The configuration that the run at `--set root=...` recorded, with what else is set. Raises ConfigError."""
    roots = [value for key, value in map(config.override, pairs) if key == "root"]
    if not roots:
        raise ConfigError("root: name the run, for example --set root=runs/mine; its own config.yaml says the rest.")
    path = stores.join(str(roots[-1]), "config.yaml")
    if not stores.exists(path):
        raise ConfigError(f"root={roots[-1]!r}: there is no {path}, so this is no run. Name the root of one.")
    return config.load_record(path, stores.read_bytes(path), pairs)


def _imported(job: Job | str) -> Job:
    if not isinstance(job, str):
        return job
    module, name = job.split(":")
    with collector_at_rest():
        function: Job = getattr(importlib.import_module(module), name)
    return function


def parser(description: str | None, default: str | None = None) -> argparse.ArgumentParser:
    """The command line of a job; without a default, `--config` must be given."""
    words = _Parser(description=description)
    words.add_argument("--config", default=default, required=default is None, help="a YAML file or a recipe's name")
    words.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="override one key; may be repeated"
    )
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(scrubbed(message))


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python prints of an error that surfaces, without secrets."""
    print(scrubbed("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


class _Handler(logging.Handler):
    """Messages on stderr, above the line of a stage that renews itself; `lines` are those so far, but for PASSING."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if not record.name.startswith(PASSING):
            self.lines.append(line)
        tqdm.write(line, file=sys.stderr)


class _Plain(logging.Formatter):
    """Messages without secrets, whoever logs them."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def submission() -> str | None:
    """The id under which `ray job submit` started this process."""
    job_config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job_id: str | None = job_config.get("metadata", {}).get("job_submission_id")
    return job_id
