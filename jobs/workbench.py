"""The curator's workbench: every clip of a run (`root`) sorted, seen, decided on and handed over, in a browser."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.workbench:workbench", __doc__, of_run=True, leased=False)

import contextlib
import os
import socket

from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.stages.progress import Progress
from pipeline.workbench import bench, previews


def workbench(run: Run) -> None:
    """Serve until Ctrl-C. No lease is held: people's words are tables of their own, and several may serve one run."""
    with contextlib.closing(bench.Bench(run)) as opened:
        write_ahead(run, opened)
        serve(run, opened)


def write_ahead(run: Run, opened: bench.Bench) -> None:
    if not run.workbench.ahead:
        return
    index, films = opened.index, Progress("films")
    rows = previews.best_first(index.clips, index.standing("all").order.tolist(), run.workbench.ahead)
    failed = previews.write_ahead(run, rows, run.workbench.decoders, lambda done, of: films(done, of, {}))
    opened.previews.refresh()
    print(f"films: {len(rows) - failed} clips have one in {run.root}/previews, {failed} cannot be decoded")


def serve(run: Run, opened: bench.Bench) -> None:
    # Here, because `--help` and a root that is none need no server.
    from pipeline.pages.loopback import LOOPBACK, Server
    from pipeline.workbench.routes import protected

    token = bench.token(opened.folder)
    try:
        server = Server(run.workbench.port, protected(opened, token))
    except OSError as error:
        raise ConfigError(
            f"workbench.port={run.workbench.port}: nothing can be served there ({os.strerror(error.errno or 0)}); name "
            "another port, or 0 for any that is free."
        ) from error
    for problem in [*opened.index.problems, *opened.people.problems]:
        print(f"warning: {problem}")
    host, port = socket.gethostname(), server.port
    print(f"{len(opened.index):,} clips of {run.root}; nobody but you may read this address:")
    print(f"  http://{LOOPBACK}:{port}/{token}/")
    print("from another machine, one of these first, and then the same address:")
    print(f"  ssh -L {port}:{LOOPBACK}:{port} {host}")
    print(f"  kubectl port-forward pod/{host} {port}:{port}", flush=True)
    print("Ctrl-C ends it; the same command goes on, at the same address", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        said = opened.people.decisions.rows.num_rows
        print(
            f"\n{said:,} words are in {run.root}/decisions; `finetune.arm=curated` and `export.arm=curated` follow them"
        )
