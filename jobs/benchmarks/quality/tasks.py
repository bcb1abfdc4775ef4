"""Ray's tasks: a chunk of clips to encode, a kernel, a fine-tuning. What is on disk is not done again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from jobs.benchmarks import ceilings, unlearning
from jobs.benchmarks.quality import kernels, laws, metagradient, problem, retraining, versions
from jobs.benchmarks.quality.lessons import Lessons, train
from jobs.benchmarks.quality.problem import SETS, Clips, World
from jobs.benchmarks.quality.retraining import Losses, Recipe, Retraining, on
from pipeline.cluster import streaming
from pipeline.evaluation.comparison import BANDS, banded
from pipeline.models import VideoModel
from pipeline.stages.progress import Progress
from pipeline.storage import stores
from pipeline.synthetic.world import Scene

EXACT = 48  # clips of the problem whose influence is computed exactly
CHUNK = 50  # clips that one task encodes
PAPER = (751.0, 0)  # timestep and noise
WHOLE = ("masked", "plain")  # losses over all times


def each(title: str, call: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Call it with each of the arguments, as many at a time as there are cores; in this process on a single one."""
    if not arguments:
        return
    cores, progress = ceilings.usable_cores(), Progress(title)
    if cores == 1:
        for number, one in enumerate(arguments, 1):
            _alone(call, one)
            progress(number, len(arguments), {})
        return
    streaming.connect()
    remote = ray.remote(num_cpus=1)(_alone)
    waiting, under_way = list(arguments), list[Any]()
    while waiting or under_way:
        while waiting and len(under_way) < cores:
            under_way.append(remote.remote(call, waiting.pop(0)))
        done, under_way = ray.wait(under_way, num_returns=1)
        ray.get(done)
        progress(len(arguments) - len(waiting) - len(under_way), len(arguments), {})


def _alone(call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    call(*arguments)


# --- the problem ------------------------------------------------------------------------------------------------------


def encoded(folder: str, world: World) -> tuple[Clips, Clips, Clips]:
    """Clips, queries and held-out clips."""
    places = {name: _chunks(folder, world, name) for name in SETS}
    missing = [(world, name, n, place) for name in SETS for n, place in enumerate(places[name])]
    each("encode", _encode, [m for m in missing if not problem.encoded(m[-1])])
    clips, queries, held_out = (problem.load(places[name]) for name in SETS)
    return clips, queries, held_out


def _chunks(folder: str, world: World, name: str) -> tuple[str, ...]:
    count = len(world.scenes(name))
    return tuple(f"{folder}/encoded/{world.corpus}{name}-{count}/{n:03d}" for n in range(-(-count // CHUNK)))


def _encode(world: World, name: str, chunk: int, place: str) -> None:
    problem.encode(_chunk(world, name, chunk), place)


def _chunk(world: World, name: str, number: int) -> list[Scene]:
    return world.scenes(name)[number * CHUNK : (number + 1) * CHUNK]


def in_versions(folder: str, world: World) -> tuple[str, ...]:
    """The folders of the queries' looks and twins."""
    places = tuple(f"{place}/versions" for place in _chunks(folder, world, "queries"))
    missing = [(world, n, place) for n, place in enumerate(places) if not versions.encoded(place)]
    each("encode looks and twins", _encode_versions, missing)
    return places


def _encode_versions(world: World, chunk: int, place: str) -> None:
    versions.encode(_chunk(world, "queries", chunk), place)


def loaded(folder: str, world: World, name: str) -> Clips:
    return problem.load(_chunks(folder, world, name))


def taught(folder: str, lessons: Lessons) -> Path:
    """The folder of a base model that was taught so."""
    place = Path(folder, "bases", lessons.name)
    if not (place / problem.WEIGHTS).exists():
        each("base", _teach, [(lessons, place)])
    return place


def _teach(lessons: Lessons, place: Path) -> None:
    unfinished = place.with_name(f"{place.name}.part")
    train(lessons, unfinished)
    unfinished.replace(place)


# --- fine-tunings -----------------------------------------------------------------------------------------------------


def digest(task: Retraining, recipe: Recipe, world: World) -> str:
    """Names what a fine-tuning left: it depends on this and on nothing else."""
    return task.digest(recipe, f"{world.trained} {problem.base_digest(world.base)}")


def measured(
    folder: str, world: World, recipe: Recipe, title: str, trainings: Sequence[Retraining], of: str = "held_out"
) -> list[Losses]:
    """Losses of a set [N, 2] after each of these fine-tunings; a fine-tuning on nothing is the base."""
    places = _measured(folder, world, recipe, title, trainings, of, WHOLE)
    return [_columns(pq.read_table(place), WHOLE) for place in places]


def measured_in_bands(
    folder: str, world: World, recipe: Recipe, title: str, trainings: Sequence[Retraining]
) -> dict[str, list[Losses]]:
    """The losses of the held-out clips as `measured` has them, by BANDS: at the times of each alone. No weights are
    kept, so what an earlier benchmark measured without bands is fine-tuned again."""
    names = {band: tuple(banded(name, band) for name in WHOLE) for band in BANDS}
    every = (*WHOLE, *(name for of_band in names.values() for name in of_band))
    places = _measured(folder, world, recipe, title, trainings, "held_out", every)
    tables = [pq.read_table(place) for place in places]
    return {band: [_columns(table, of_band) for table in tables] for band, of_band in names.items()}


def _measured(
    folder: str,
    world: World,
    recipe: Recipe,
    title: str,
    trainings: Sequence[Retraining],
    of: str,
    columns: Sequence[str],
) -> list[str]:
    """The files of the losses after these fine-tunings. A file that lacks one of the columns is written anew."""
    home = f"{folder}/retrained" if of == "held_out" else f"{folder}/retrained/{of}"
    places = [f"{home}/{digest(task, recipe, world)}.parquet" for task in trainings]
    calls = {place: (folder, world, recipe, task, of, place) for place, task in zip(places, trainings, strict=True)}
    each(title, _retrain, [calls[place] for place in calls if not _has(place, columns)])
    return places


def _has(place: str, columns: Sequence[str]) -> bool:
    return Path(place).exists() and set(columns) <= set(pq.read_schema(place).names)


def _columns(table: pa.Table, names: Sequence[str]) -> Losses:
    return np.stack([table.column(name).to_numpy() for name in names], 1)


def _retrain(folder: str, world: World, recipe: Recipe, task: Retraining, of: str, place: str) -> None:
    measured_clips = loaded(folder, world, of)
    by_time = retraining.losses(_fine_tuned(folder, world, recipe, task), measured_clips, recipe)
    columns: dict[str, Any] = {"clip_id": list(measured_clips.clip_ids)}
    columns |= dict(zip(WHOLE, by_time.mean(1).T, strict=True))
    for band, losses in zip(BANDS, retraining.in_bands(by_time), strict=True):
        columns |= {banded(name, band): values for name, values in zip(WHOLE, losses.T, strict=True)}
    with stores.writing(place) as file:
        pq.write_table(pa.table(columns), file)


def _fine_tuned(folder: str, world: World, recipe: Recipe, task: Retraining) -> VideoModel:
    base = retraining.fresh(world.base)
    return retraining.fine_tuned(task, loaded(folder, world, "clips"), recipe, base) if task.weights else base


def generated(
    folder: str, world: World, recipe: Recipe, trainings: Sequence[tuple[Retraining, str]], films: int
) -> list[list[float]]:
    """How far the videos that each fine-tuned model makes of a motion's captions are from its law (`laws`)."""
    places = [f"{folder}/generated/{digest(task, recipe, world)}-{motion}-{films}.json" for task, motion in trainings]
    missing = {p: (folder, world, recipe, *training, films, p) for p, training in zip(places, trainings, strict=True)}
    each("generate", _generate, [call for place, call in missing.items() if not Path(place).exists()])
    return [json.loads(stores.read_bytes(place)) for place in places]


def _generate(folder: str, world: World, recipe: Recipe, task: Retraining, motion: str, films: int, place: str) -> None:
    model = _fine_tuned(folder, world, recipe, task)
    model.trained.eval()
    captions = [scene.caption for scene in world.scenes("held_out") if scene.motion == motion][:films]
    deviations = [laws.deviation(motion, flow) for flow in problem.filmed(model, captions)]
    stores.write_bytes(place, json.dumps(deviations).encode())


def exact(folder: str, world: World, targets: tuple[str, ...], subsets: int) -> metagradient.Exact:
    """`metagradient.exact` of the first clips that move, a quarter of which each subset lacks."""
    place = f"{folder}/exact/{world.trained}-{problem.base_digest(world.base)}-{'-'.join(targets)}-{subsets}-drawn.npz"
    if not Path(place).exists():
        each("exact influence", _exact, [(folder, world, targets, subsets, place)])
    with np.load(io.BytesIO(stores.read_bytes(place))) as arrays:
        return metagradient.Exact(*(arrays[name] for name in metagradient.Exact._fields))


def exact_rows(clips: Clips) -> tuple[int, ...]:
    """The rows of the corpus that the small problem is made of."""
    return tuple(np.flatnonzero(clips.moving)[:EXACT].tolist())


def _exact(folder: str, world: World, targets: tuple[str, ...], subsets: int, place: str) -> None:
    clips, held_out = loaded(folder, world, "clips"), loaded(folder, world, "held_out")
    small = metagradient.Problem(clips, exact_rows(clips))
    influence = metagradient.exact(retraining.fresh(world.base), held_out, targets, small, subsets, EXACT // 4)
    buffer = io.BytesIO()
    np.savez(buffer, **influence._asdict())
    stores.write_bytes(place, buffer.getvalue())


# --- kernels ----------------------------------------------------------------------------------------------------------


def _home(folder: str, world: World, untrained: bool = False) -> str:
    """Where what a model's gradients say is kept. Bases share the untrained model."""
    model = "untrained" if untrained else problem.base_digest(world.base)
    return f"{folder}/kernels/{world.name}-{model}"


def grams(folder: str, world: World, recipe: Recipe, kinds: Sequence[tuple[float, int, str]]) -> list[kernels.Grams]:
    """Kernels of (timestep, noise, name of a variant)."""

    def home(name: str) -> str:
        return _home(folder, world, untrained=kernels.VARIANTS[name].model == "untrained")

    places = [f"{home(name)}/{name}-{t:g}-{n}.npz" for t, n, name in kinds]
    missing = [(folder, world, recipe, *kind, place) for kind, place in zip(kinds, places, strict=True)]
    each("kernels", _grams, [call for call in missing if not Path(call[-1]).exists()])
    return [kernels.read(place) for place in places]


def _grams(folder: str, world: World, recipe: Recipe, timestep: float, noise: int, name: str, place: str) -> None:
    clips, queries = loaded(folder, world, "clips"), loaded(folder, world, "queries")
    variant = kernels.VARIANTS[name]
    if variant.model == "untrained":
        model = retraining.untrained()
    elif variant.model == "tuned":
        model = retraining.fine_tuned(on(np.arange(len(clips)), 0), clips, recipe, retraining.fresh(world.base))
        model.trained.eval()
    else:
        model = retraining.fresh(world.base)
    videos = variant.clips(clips), variant.queries(queries)
    kernels.write(place, dict(kernels.grams(model, *videos, timestep, noise, variant.own_noise, variant.pairs)))


# --- the queries in other looks and as twins, and their unlearning ----------------------------------------------------


def version_grams(folder: str, world: World) -> kernels.Grams:
    """`versions.grams` of the world's clips and queries."""
    timestep, noise = versions.PLACE
    place, places = f"{_home(folder, world)}/versions-{timestep:g}-{noise}.npz", in_versions(folder, world)
    if not Path(place).exists():
        each("gradients of looks and twins", _version_grams, [(folder, world, places, place)])
    return kernels.read(place)


def _version_grams(folder: str, world: World, places: tuple[str, ...], place: str) -> None:
    model, clips = retraining.fresh(world.base), loaded(folder, world, "clips")
    kernels.write(place, versions.grams(model, clips, versions.load(places)))


def unlearnt(folder: str, world: World) -> npt.NDArray[np.float32]:
    """`unlearning.differences` of the world's clips, for each query that moves: [2, N, Q]."""
    place = f"{_home(folder, world)}/unlearning-{unlearning.TIMESTEP:g}.npz"
    if not Path(place).exists():
        each("unlearning", _unlearn, [(folder, world, place)])
    return kernels.read(place)["differences"]


def _unlearn(folder: str, world: World, place: str) -> None:
    model = retraining.fresh(world.base)
    clips, queries = loaded(folder, world, "clips"), loaded(folder, world, "queries")
    blank = model.blank()
    of_clips, of_queries = (
        unlearning.Encoded(side.latent, [blank] * len(side), side.mask) for side in (clips, queries)
    )
    motions = np.where(queries.moving, queries.motions, "").tolist()
    kernels.write(place, {"differences": unlearning.differences(model, of_clips, of_queries, motions)})
