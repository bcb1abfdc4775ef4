"""What this recipe will cost on these videos, by a pilot of `plan.clips` random ones through every stage.

Prints seconds a clip, GPU-hours, storage, and money at the recipe's `prices`, for the recipe as it stands; the same in
ROOT/plan/plan.json. The same command with a `--set` more says what another setting takes. Nothing else of the run is
touched.
"""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.plan:plan", __doc__, lists_videos=True)

import json
from dataclasses import replace
from math import prod

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import models, tables
from pipeline.cluster import resources, streaming
from pipeline.config import Run
from pipeline.config.caveats import advice
from pipeline.errors import NothingUsableError
from pipeline.inputs.changes import blocks_of
from pipeline.operations import costs, pilot
from pipeline.ranking import shortlist
from pipeline.stages import attribution, pilots, run_record, video_sets
from pipeline.storage import stores

_UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}
CHEAPER = (
    "\nThe same command with a --set more says what another attribution takes, for example with fewer\n"
    "attribution.settings, a smaller attribution.frames, height or width, with attribution.parameters of the last\n"
    "blocks alone, or with an attribution.shortlist."
)


def plan(run: Run) -> None:
    attribution.check(run, "index_clips", video_sets.names(run))
    chosen, videos = pilots.drawn(video_sets.asked(run, "clips"), run.plan.clips, run.seed)
    streaming.connect()
    run = pilots.with_pools(run, ["extract_features", "finetune"])
    run_record.record(run)
    resources.check(run, ["extract_features", "finetune"])
    folder = stores.join(run.root, "plan")
    stores.remove(folder)
    pool = run.resources.extract_features
    pilots.pilot_of(run, folder, chosen, pool, pilot.AttributionPilot, "pilot, attribution", ("clips", "pilot"))
    clips = tables.read(stores.join(folder, "clips"))
    good = None if clips is None else clips.filter(pc.is_null(clips.column("error")))
    if good is None or not good.num_rows:
        raise NothingUsableError(
            f"data.videos={run.data.videos!r}: none of the pilot's {chosen.num_rows} videos could be used; the table "
            f"{folder}/pilot says why, one by one. Run index_clips to see all of them, or raise plan.clips."
        )
    pilots.training_pilot(run, folder, good)
    _tell(run, _size(run, videos, good.num_rows / chosen.num_rows), folder)


def _size(run: Run, videos: int, segments: float) -> costs.Size:
    """What there is to do. The held-out videos are listed; of clips, a video has as many as one of the pilot's."""
    family = models.family(run.model)
    module = family.skeleton()

    def grid(frames: int, height: int, width: int) -> int:
        return prod(models.grid_of(family, frames, height, width).shape)

    d, (frames, _, height, width) = run.data, run.geometry
    held_out, cheaper = run.evaluate.videos, shortlist.variant(run)
    other = None if cheaper is None or cheaper.geometry == run.geometry else cheaper.geometry
    return costs.Size(
        videos=videos,
        clips=videos * segments,
        held_out=sum(rows.num_rows for rows in blocks_of(video_sets.asked(run, "held_out"))[1]) if held_out else 0,
        parameters=sum(p.numel() for p in module.parameters()),
        latent_numbers=family.channels * grid(d.frames, d.height, d.width),
        mask_numbers=grid(frames, height, width),
        cheaper_mask_numbers=None if other is None else grid(other[0], *other[2:]),
    )


def _tell(run: Run, size: costs.Size, folder: str) -> None:
    rows = tables.read(stores.join(folder, "pilot"))
    assert rows is not None
    parts = costs.seconds_by_part(rows, pilot.AS_IT_IS)
    attributed = attributions(run, rows, size.clips)
    now = attributed[-1]
    own = costs.stages(run, size, parts, replace(now, what="estimate_motion, extract_features"))
    storage = costs.storage(run, size)
    print(f"{size.videos:,} videos, about {size.clips:,.0f} clips; a pilot of {len(parts.get('gradient', []))} clips\n")
    each = {part: sum(parts[part]) / len(parts[part]) for part in costs.PARTS if part in parts}
    print("a clip, part by part: " + ", ".join(f"{part} {seconds:.3g} s" for part, seconds in each.items()))
    for sentence in [*model_sentences(run, rows), lawfulness_sentence(run, size.clips)]:
        print(sentence)
    print()
    pilots.print_table([*costs.table(own, run.prices), costs.total(own, run.prices)])
    if len(attributed) > 1:
        print("\nattribution (motion and features), without the shortlist and with it")
        pilots.print_table(costs.table(attributed, run.prices))
    print(CHEAPER)
    print(f"\n{advice(run)}")
    print("\nstorage, before compression")
    pilots.print_table([[name, _bytes(value)] for name, value in [*storage.items(), ("all", sum(storage.values()))]])
    if run.prices.gb_month:
        print(f"storage costs {sum(storage.values()) / 1e9 * run.prices.gb_month:,.2f} {run.prices.currency} a month")
    frozen = costs.frozen_weights(run, models.family(run.model), models.family(run.model).skeleton())
    if frozen:
        listed = ", ".join(f"{_bytes(count)} with {how}" for how, count in frozen.items())
        print(f"\nfrozen weights on the device of a fine-tuning worker, by finetune.frozen_weights: {listed}")
    summary = costs.summary([*own, *(cost for cost in attributed if cost is not now)], storage, frozen, run.prices)
    stores.write_bytes(stores.join(folder, "plan.json"), json.dumps(summary, indent=1).encode())


def model_sentences(run: Run, rows: pa.Table) -> list[str]:
    """What the settings' times mean to the model, and what masks keep on its grid."""
    family, grid = models.family(run.model), models.grid(run)
    sentences = [f"model: {family.name}, latent grid {'x'.join(map(str, grid.shape))}"]
    for timestep in dict.fromkeys(s.timestep for s in run.attribution.settings):
        expert = next(e for e in family.experts if e.has(timestep))
        asked = f", asks the {expert.name}-noise expert" if len(family.experts) > 1 else ""
        sentences.append(f"t = {timestep:g}: a share of noise of {family.schedule.level(timestep):.2f}{asked}")
    values = {
        metric: [r["value"] for r in rows.to_pylist() if r["metric"] == metric and r["variant"] == pilot.AS_IT_IS]
        for metric in (pilot.ENERGY, pilot.CELLS)
    }
    if values[pilot.ENERGY]:
        energy, cells = (sum(values[m]) / len(values[m]) for m in (pilot.ENERGY, pilot.CELLS))
        sentences.append(
            f"masks: on this grid they keep {energy:.0%} of the energy that they have at {run.motion.height}x"
            f"{run.motion.width}; {cells:,.0f} of {prod(grid.shape):,} cells move"
        )
    return sentences


def lawfulness_sentence(run: Run, clips: float) -> str:
    """Of how many clips flow will be known, so that lawfulness/ can tell which of them are harmful."""
    if run.motion.of == "all":
        return "lawfulness: flow will be known of every clip that can be decoded (motion.of=all)"
    sample = min(run.motion.sample, round(clips))
    return (
        f"lawfulness: flow will be known of {sample:,} of about {clips:,.0f} clips (motion.of=queries, motion.sample="
        f"{run.motion.sample}); of the others nobody will know whether they are harmful"
    )


def attributions(run: Run, pilots: pa.Table, clips: float) -> list[costs.Cost]:
    """What attribution of all clips costs: the full setting of every clip, and after it the recipe's two stages where
    it has a shortlist. The last is what the recipe does."""
    pool, every = run.resources.extract_features, pilot.variants(run)
    parts = costs.seconds_by_part(pilots, pilot.AS_IT_IS)
    full = costs.attribution("the full setting of every clip", parts, clips, pool)
    shortlist_config = run.attribution.shortlist
    if shortlist_config is None:
        return [full]
    first = costs.attribution(pilot.SHORTLIST, costs.seconds_by_part(pilots, pilot.SHORTLIST), clips, pool)
    if every[pilot.SHORTLIST].geometry == run.geometry:
        parts.pop("motion", None)  # the variant's serves both
    second = costs.attribution("", parts, clips, pool)
    return [full, costs.two_stages("two stages, as it stands", first, second, shortlist_config.share)]


def _bytes(count: float) -> str:
    unit = next(u for u in ("TB", "GB", "MB", "kB") if count >= _UNITS[u] or u == "kB")
    return f"{count / _UNITS[unit]:,.1f} {unit}"
