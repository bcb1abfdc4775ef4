"""What the studies share: the sets, the base model, fine-tunings and gradients. What is on disk is not done again."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import WanTransformer3DModel

from jobs.benchmarks.quality import kernels, problem, retraining
from jobs.benchmarks.quality.kernels import Grams
from jobs.benchmarks.quality.retraining import AT_A_TIME, FIRST_NOISE, Losses, Recipe, Retraining
from jobs.benchmarks.quality.tasks import PAPER, each
from jobs.benchmarks.real import footage, people, versions
from jobs.benchmarks.real.footage import Footage, Segment
from jobs.benchmarks.real.layouts import Video
from jobs.benchmarks.real.options import Real
from jobs.benchmarks.real.people import Part
from jobs.benchmarks.real.versions import Directions
from jobs.weights.training import average_of_training
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.config import Run, VideoModelConfig
from pipeline.errors import InputError
from pipeline.models import VideoModel
from pipeline.models.loss import drawn_uniforms, loss_map, masked_mean, own_noise
from pipeline.projection import Projection
from pipeline.storage import stores

CHUNK = 25  # segments that one task encodes
PAIRS = ("motion", "none", "crossed")
BASE_FILE = "diffusion_pytorch_model.safetensors"

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Folders = tuple[str, ...]
Place = tuple[float, int]


# --- the sets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sets:
    """The folders of every set's encoded segments; `spoiled` are versions of clips of the corpus, `looks` of the
    queries, `twins` of the held-out clips."""

    base: Folders
    corpus: Folders
    queries: Folders
    held_out: Folders
    spoiled: Folders
    looks: Folders
    twins: Folders


def people_of(videos: Sequence[Video], seed: int) -> dict[str, Part]:
    """The part of every person. Raises InputError for too few of them."""
    actions: dict[str, set[str]] = {}
    for video in videos:
        actions.setdefault(video.person, set()).add(video.action)
    return people.split({person: frozenset(shown) for person, shown in actions.items()}, seed)


def prepare(run: Run, settings: Real, parts: Mapping[Part, Sequence[Segment]]) -> Sets:
    """Encode every set of segments and the versions of some."""
    rows: dict[str, Sequence[Segment]] = {str(part): segments for part, segments in parts.items()}
    rows["spoiled"] = footage.spoil(parts["corpus"], settings.spoiled)
    rows["looks"] = versions.in_looks(parts["queries"])
    rows["twins"] = versions.twins(parts["held_out"])
    folders: dict[str, Folders] = {}
    waiting = []
    for name, segments in rows.items():
        chunks = [segments[start : start + CHUNK] for start in range(0, len(segments), CHUNK)]
        folders[name] = tuple(f"{run.root}/encoded/{footage.name_of(run, chunk)}" for chunk in chunks)
        pairs = zip(chunks, folders[name], strict=True)
        waiting += [(run, chunk, folder) for chunk, folder in pairs if not footage.encoded(folder)]
    each("encode", footage.encode, waiting)
    return Sets(**folders)


# --- the base model ---------------------------------------------------------------------------------------------------


def taught(run: Run, settings: Real, sets: Sets, actions: Sequence[str]) -> str:
    """The folder of a base model that was trained on the base people's clips of some actions."""
    folder = f"{run.root}/bases/{footage.digest(sets.base, list(actions), settings.base_steps)}"
    if not Path(folder, BASE_FILE).exists():
        each("base", _teach, [(run, settings.base_steps, sets.base, tuple(actions), folder)])
    return folder


def _teach(run: Run, steps: int, folders: Folders, actions: Sequence[str], folder: str) -> None:
    of_base = footage.load(folders)
    rows = np.flatnonzero(np.isin(of_base.clips.motions, actions))
    if not len(rows):
        raise InputError(
            f"real.base_actions={list(actions)}: the base people have no clip of these actions, so no base can be "
            f"trained. They have {', '.join(sorted(set(of_base.clips.motions.tolist())))}."
        )
    model = footage.opened(run.model)
    # Half of the steps' weights where there are few: the first ones are random.
    torch.manual_seed(1)
    empty, net = model.blank()["text"], problem.make(model)
    latents, texts = of_base.clips.latent[rows], of_base.clips.text[rows]
    net = average_of_training(net, empty, latents, texts, steps, min(100, steps / 6))
    unfinished = f"{folder}.part"
    net.save_pretrained(unfinished)
    Path(unfinished).replace(folder)


def fresh(model: VideoModelConfig, folder: str) -> VideoModel:
    """The base model as it is on disk."""
    base = copy.copy(footage.opened(model))  # its pipeline keeps the demo's transformer, and generates nothing here
    base.trained = WanTransformer3DModel.from_pretrained(folder, use_safetensors=True).eval()
    return base


def untrained(model: VideoModelConfig) -> VideoModel:
    """A model of the base's architecture whose weights are random."""
    blank = copy.copy(footage.opened(model))
    torch.manual_seed(3)
    blank.trained = problem.make(blank).eval()
    return blank


@functools.cache
def base_digest(folder: str) -> str:
    return hashlib.blake2b(Path(folder, BASE_FILE).read_bytes(), digest_size=8).hexdigest()


# --- the yardstick ----------------------------------------------------------------------------------------------------


def times(model: VideoModel, clip_id: str, strata: int) -> torch.Tensor:
    """Timesteps at which a clip's loss is taken, drawn as training draws them, one from each of `strata` equal parts:
    [strata]. They belong to the clip and are the same for every model."""
    return model.schedule.times(drawn_uniforms(clip_id, strata))


@torch.no_grad()
def losses(model: VideoModel, of: Footage, strata: int) -> Losses:
    """Mean losses of clips at times drawn as training draws them, each under noises of its own: [N, 2], masked and
    plain. No time is one of the settings', unless by chance. A version of a clip has the clip's times and noises."""
    model.trained.eval()
    clips = of.clips
    means = np.zeros((len(clips), 2))
    for start in range(0, len(clips), AT_A_TIME):
        here = slice(start, start + AT_A_TIME)
        latent, ids = clips.latent[here], of.sources[here].tolist()
        moments = torch.stack([times(model, clip_id, strata) for clip_id in ids])
        for index in range(strata):
            shape = tuple(latent.shape[1:])
            noise = torch.stack([own_noise(clip_id, FIRST_NOISE + index, shape) for clip_id in ids])
            errors = loss_map(model, latent, {"text": clips.text[here]}, moments[:, index], noise)
            means[here, 0] += [float(masked_mean(e, m)) for e, m in zip(errors, clips.mask[here], strict=True)]
            means[here, 1] += errors.mean((1, 2, 3)).numpy()
    return means / strata


# --- a bench: one base, and what is measured on it --------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """A base model and the sets that it is fine-tuned on and measured with."""

    run: Run
    settings: Real
    sets: Sets
    base: str

    @functools.cached_property
    def corpus(self) -> Footage:
        return footage.load(self.sets.corpus)

    @functools.cached_property
    def joined(self) -> Footage:
        """The corpus, then the spoiled versions of some of its clips."""
        return footage.load(self.sets.corpus + self.sets.spoiled)

    @functools.cached_property
    def queries(self) -> Footage:
        return footage.load(self.sets.queries)

    @functools.cached_property
    def held_out(self) -> Footage:
        return footage.load(self.sets.held_out)

    @functools.cached_property
    def targets(self) -> tuple[str, ...]:
        """The actions that every study is about: those with moving clips among corpus, queries and held-out clips."""
        shown = [set(of.clips.motions[of.clips.moving].tolist()) for of in (self.corpus, self.queries, self.held_out)]
        return tuple(sorted(set.intersection(*shown)))

    # --- fine-tunings

    def retrained(self, title: str, tasks: Sequence[Retraining]) -> list[Losses]:
        """Held-out losses [N, 2] after each of these fine-tunings on rows of `joined`; on nothing, the base's."""
        measured = self._measured(title, tasks, self.sets.held_out + self.sets.twins)
        return [losses[: len(self.held_out)] for losses in measured]

    def margins(self, title: str, tasks: Sequence[Retraining]) -> list[Floats]:
        """How much higher the masked loss of every twin in `twinned` is than the clip's own, as a share of it [W],
        after each of these fine-tunings: what `retrained` measured too."""
        measured = self._measured(title, tasks, self.sets.held_out + self.sets.twins)
        rows, own = self.twinned
        return [losses[rows, 0] / losses[own, 0] - 1 for losses in measured]

    @functools.cached_property
    def twinned(self) -> tuple[Rows, Rows]:
        """The rows of moving twins behind the held-out clips, and those of the clips that they are of, which move."""
        both = footage.load(self.sets.held_out + self.sets.twins)
        place = {clip_id: row for row, clip_id in enumerate(self.held_out.clips.clip_ids)}
        twins = np.flatnonzero((both.twins != "") & both.clips.moving)
        own = np.array([place[source] for source in both.sources[twins].tolist()], np.int64)
        moving = both.clips.moving[own]
        return twins[moving], own[moving]

    @functools.cached_property
    def before(self) -> Losses:
        return self.retrained("base", [Retraining((), 0)])[0]

    @functools.cached_property
    def own(self) -> Losses:
        """Losses of the clips of `joined` themselves under the base."""
        return self._measured("own losses", [Retraining((), 0)], self.sets.corpus + self.sets.spoiled)[0]

    def _measured(self, title: str, tasks: Sequence[Retraining], on: Folders) -> list[Losses]:
        problem_name = footage.digest(
            base_digest(self.base), self.sets.corpus, self.sets.spoiled, on, self.settings.strata
        )
        recipe = self.settings.recipe
        places = [f"{self.run.root}/retrained/{task.digest(recipe, problem_name)}.parquet" for task in tasks]
        waiting = {place: (self, task, on, place) for place, task in zip(places, tasks, strict=True)}
        each(title, _retrain, [call for place, call in waiting.items() if not Path(place).exists()])
        tables = [pq.read_table(place) for place in places]
        return [torch.tensor([t["masked"].to_pylist(), t["plain"].to_pylist()]).double().T.numpy() for t in tables]

    # --- gradients

    def grams(self, kind: str) -> dict[Place, Grams]:
        """Inner products of the gradients of `joined` and the queries under "base" or "untrained", by place."""
        places: list[Place] = list(dict.fromkeys([*((t, 0) for t in self.settings.timesteps), PAPER]))
        name = footage.digest(base_digest(self.base) if kind == "base" else kind, self.sets.corpus, self.sets.spoiled,
                              self.sets.queries)  # fmt: skip
        files = {place: f"{self.run.root}/kernels/{name}-{place[0]:g}.npz" for place in places}
        waiting = [(self, kind, place, file) for place, file in files.items() if not Path(file).exists()]
        each(f"gradients, {kind}", _grams, waiting)
        return {place: kernels.read(file) for place, file in files.items()}

    @functools.cached_property
    def directions(self) -> Directions:
        """What clips of `joined` and queries in looks and twins say, by the product's own rule."""
        name = footage.digest(base_digest(self.base), versions.SETTING.record(), versions.DIM, "blank captions")
        folders = self.sets.corpus + self.sets.spoiled + self.sets.looks
        files = [f"{self.run.root}/projected/{footage.digest(name, folder)}.npy" for folder in folders]
        waiting = [(self, folder, file) for folder, file in zip(folders, files, strict=True)]
        each("gradients of looks and twins", _project, [task for task in waiting if not Path(task[2]).exists()])
        rows = np.concatenate([np.load(file) for file in files])
        clips = len(self.joined)
        return Directions(rows[:clips], versions.asked(rows[clips:], footage.load(self.sets.looks), self.queries))

    def __reduce__(self) -> tuple[type[Bench], tuple[Run, Real, Sets, str]]:
        """Another process loads the sets itself."""
        return Bench, (self.run, self.settings, self.sets, self.base)


def _retrain(bench: Bench, task: Retraining, on: Folders, place: str) -> None:
    recipe: Recipe = bench.settings.recipe
    model = fresh(bench.run.model, bench.base)
    if task.weights:
        model = retraining.fine_tuned(task, bench.joined.clips, recipe, model)
    measured = footage.load(on)
    after = losses(model, measured, bench.settings.strata)
    columns = {"clip_id": list(measured.clips.clip_ids), "masked": after[:, 0], "plain": after[:, 1]}
    with stores.writing(place) as file:
        pq.write_table(pa.table(columns), file)


def _grams(bench: Bench, kind: str, place: Place, file: str) -> None:
    model = untrained(bench.run.model) if kind == "untrained" else fresh(bench.run.model, bench.base)
    of = kernels.grams(model, bench.joined.clips, bench.queries.clips, *place, pairs=PAIRS)
    kernels.write(file, dict(of))


def _project(bench: Bench, folder: str, file: str) -> None:
    """The projected gradients of a folder's clips under `versions.SETTING` and empty captions: [N, DIM]."""
    model, clips = fresh(bench.run.model, bench.base), footage.load((folder,)).clips
    gradients = ProjectedGradients(model.trained, Projection("gaussian", versions.DIM, 0), hold=25)
    for latent, mask, moves in zip(clips.latent, clips.mask, clips.moving.tolist(), strict=True):
        take_clip(gradients, model, [versions.SETTING], latent, model.blank(), mask if moves else None, 0)
    rows = np.zeros((len(clips), versions.DIM), np.float32)
    rows[clips.moving] = gradients.collect()[0].numpy()
    with stores.writing(file) as target:
        np.save(target, rows)


def rows_of_grams(grams: Mapping[Place, Grams], rows: npt.NDArray[np.int64], clips: int) -> dict[Place, Grams]:
    """The same of some of the clips, whose number is `clips`, and all queries."""
    chosen: dict[Place, Grams] = {}
    for place, of in grams.items():
        chosen[place] = {}
        for name, gram in of.items():
            if name == "seconds":
                chosen[place][name] = gram
                continue
            both = np.concatenate([rows, np.arange(clips, gram.shape[1])])
            chosen[place][name] = gram[:, both][:, :, both]
    return chosen
