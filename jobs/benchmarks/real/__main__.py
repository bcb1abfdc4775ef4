"""Does influence add anything on real videos? ``python -m jobs.benchmarks.real --set data.videos=FOLDER``.

FOLDER holds labelled clips of people: KTH, Weizmann, folders ACTION/PERSON, or a manifest with the columns action and
person. People are split into base, corpus, queries and held out, nobody in two. What failure is, is printed before any
result. What is in `root` is not computed again, so that the same command goes on. The last line is JSON, and `root` has
it as real.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.benchmarks import ceilings
from jobs.benchmarks.quality import report
from jobs.benchmarks.real import bench, criteria, footage, layouts, options, scores
from jobs.benchmarks.real.bench import Bench
from jobs.benchmarks.real.footage import Segment
from jobs.benchmarks.real.layouts import Listing, Video
from jobs.benchmarks.real.options import Real
from jobs.benchmarks.real.people import PARTS, Part
from jobs.benchmarks.real.studies import Studies
from jobs.benchmarks.verdicts import Verdict
from pipeline.config import Run
from pipeline.config.credentials import scrubbed
from pipeline.errors import InputError, UsageError
from pipeline.stages.progress import duration
from pipeline.storage import stores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny", help="a YAML file or a recipe's name")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="override one key; real.NAME are this benchmark's",
    )
    parser.add_argument("--quick", "--short", action="store_true", help="small sizes: some minutes")
    parser.add_argument("--list", action="store_true", help="say what is understood of the folder, and stop")
    arguments = parser.parse_args()
    try:
        run, settings = options.read(arguments.config, arguments.set, arguments.quick)
        listing = layouts.listed(run.data.videos, settings, run.data.base)
        for line in layouts.summary(listing):
            print(line)
        part_of = bench.people_of(listing.videos, run.seed)
        print(split_line(listing.videos, part_of), flush=True)
        if not arguments.list:
            report_on(run, settings, listing, part_of)
    except UsageError as error:
        print(f"error: {scrubbed(str(error))}", file=sys.stderr)
        sys.exit(2)


def split_line(videos: Sequence[Video], part_of: Mapping[str, Part]) -> str:
    counts = Counter(part_of.values())
    clips = Counter(part_of[video.person] for video in videos)
    return "split by person: " + ", ".join(f"{part} {counts[part]} persons, {clips[part]} videos" for part in PARTS)


def report_on(run: Run, settings: Real, listing: Listing, part_of: Mapping[str, Part]) -> None:
    """Run every study on every base, print its table, write real.json."""
    machine = ceilings.machine()
    ceilings.print_machine(machine)
    print("Failure, said before any result:")
    for name, text in criteria.CRITERIA.items():
        print(f"  {name}: {text}")
    print(f'Then the sentence is: "{criteria.NOTHING}"\n', flush=True)
    start = time.monotonic()
    parts = segments_of(run, settings, listing, part_of)
    sets = bench.prepare(run, settings, parts)
    figures: dict[str, Any] = {}
    verdicts: list[Verdict] = []
    captioned = all(video.captioned for video in listing.videos)
    for name, actions in bases(settings, parts["base"]).items():
        made = Bench(run, settings, sets, bench.taught(run, settings, sets, actions))
        check_targets(made)
        print(f"\nbase {name}: knows {', '.join(actions)}; targets {', '.join(made.targets)}", flush=True)
        tables = Studies(made).tables()
        for title, rows in tables.items():
            if rows:
                report.show(f"{title} ({name})", rows)
        of_base = criteria.verdicts(tables, captioned, scores.BEST)
        report.show(f"failure ({name})", [verdict.row for verdict in of_base])
        figures[name] = {"knows": actions, "targets": made.targets, "tables": tables,
                         "verdicts": [verdict.row for verdict in of_base]}  # fmt: skip
        verdicts += of_base
    corpus = parts["corpus"]
    clips = [segment for part in PARTS for segment in parts[part]]
    says = criteria.sentence(verdicts, len(clips), len({c.person for c in clips}), len({c.action for c in corpus}))
    print(says)
    seconds = time.monotonic() - start
    print(f"{duration(seconds)} in this call; everything is in {run.root}")
    of_run = {
        "benchmark": "real",
        "machine": machine,
        "seconds": round(seconds, 1),
        "settings": settings.model_dump(mode="json"),
        "segments": {part: len(parts[part]) for part in PARTS},
        "people": {part: sorted({s.person for s in parts[part]}) for part in PARTS},
        "criteria": dict(criteria.CRITERIA),
        "bases": figures,
        "sentence": says,
    }
    stores.write_bytes(f"{run.root}/real.json", json.dumps(of_run, indent=1, allow_nan=False).encode())
    ceilings.print_json(of_run)


def segments_of(run: Run, settings: Real, listing: Listing, part_of: Mapping[str, Part]) -> dict[Part, list[Segment]]:
    """The segments of every part. Raises InputError where one has none."""
    rows, left_out = footage.segments(run, listing.videos, settings)
    for sentence in left_out:
        print(f"left out: {sentence}")
    parts: dict[Part, list[Segment]] = {part: [] for part in PARTS}
    for row in rows:
        parts[part_of[row.person]].append(row)
    for part in PARTS:
        actions = Counter(row.action for row in parts[part])
        print(f"{part}: {len(parts[part])} segments: {', '.join(f'{a} {n}' for a, n in sorted(actions.items()))}")
        if not parts[part]:
            raise InputError(
                f"data.videos={run.data.videos!r}: no segment is left for {part}: every video of its persons is too "
                "short, damaged or cut. Give longer videos, or lower data.frames, or raise data.fps."
            )
    return parts


def bases(settings: Real, segments: Sequence[Segment]) -> dict[str, list[str]]:
    """The actions that each base knows, by its name: those that are named or the first half, and the others. Raises
    InputError for an action that the base people do not show."""
    shown = sorted({segment.action for segment in segments})
    strange = sorted(set(settings.base_actions) - set(shown))
    if strange:
        raise InputError(
            f"real.base_actions: the base people do not show {', '.join(strange)}; they show {', '.join(shown)}."
        )
    first = sorted(settings.base_actions) or shown[: max(1, len(shown) // 2)]
    second = [action for action in shown if action not in first]
    named = {"first": first, "second": second}
    return {name: actions for name, actions in list(named.items())[: settings.bases] if actions}


def check_targets(made: Bench) -> None:
    """Raise InputError where there are too few actions for any comparison."""
    if len(made.targets) < 2:
        raise InputError(
            f"data.videos={made.run.data.videos!r}: {len(made.targets)} actions have moving clips among corpus, queries"
            " and held-out clips, and two are the fewest that can be compared. Give more people for each action, or "
            "fewer actions."
        )


if __name__ == "__main__":
    main()
