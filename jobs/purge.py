"""Take clips out of a run by id (`purge.clips`, `purge.file`): out of every table, cache and page, and for good."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.purge:purge", __doc__)

from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.operations import in_use
from pipeline.operations import purge as purging
from pipeline.stages.report import report
from pipeline.storage import stores
from pipeline.storage.named_files import read_text
from pipeline.tables import purge_list


def purge(run: Run) -> None:
    ids = named_ids(run)
    before = purge_list.digests(run.root)
    unknown = sorted(i for i in ids - purging.known(run.root, ids) if purge_list.digest(i) not in before)
    if unknown:
        raise ConfigError(
            f"purge: {len(unknown)} of the {len(ids)} ids, such as {unknown[0]!r}, are in no table of "
            f"root={run.root!r}; nothing was removed. Correct them, or leave them out."
        )
    now = in_use.in_use(run.root)
    counts = purging.purge(run.root, ids)
    for table, rows in sorted(counts.rows.items()):
        print(f"{table}: {rows} rows")
    for folder, count in sorted(counts.files.items()):
        print(f"{folder}: {count} files")
    for model, count in sorted(counts.models.items()):
        used = " (in use)" if now.night is not None and model == f"nights/{now.night}/model" else ""
        print(f"{model}{used}: trained on {count} of these clips. Weights cannot forget them: train it again.")
    for folder, count in sorted(counts.exports.items()):
        print(f"{folder}: an export outside the root, with {count} of these clips. Delete it and export again.")
    if stores.exists(stores.join(run.root, "report", "index.html")):
        report(run)
    print(
        f"purged: {len(ids)} ids; no later run of this root will have them. The ranking still stems from the clips as "
        "they were: run the same curate or nightly again. Source videos are yours to delete."
    )


def named_ids(run: Run) -> set[str]:
    """The ids that the configuration names. Raises ConfigError where there are none."""
    ids = set(run.purge.clips)
    if run.purge.file is not None:
        text = read_text("purge.file", run.purge.file)
        ids |= {line.strip() for line in text.split("\n")} - {""}
    if not ids:
        raise ConfigError("purge.clips is empty and purge.file names none: name the ids of the clips that are to go.")
    return ids
