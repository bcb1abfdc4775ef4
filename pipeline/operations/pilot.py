"""A pilot: a few clips through every stage, each part timed alone. What it takes is multiplied out in `costs`. No Ray.

The parts are timed one after the other on an actor of the stage's own size, so that a sum of parts is what an actor
needs for a clip, but for decoding, which runs beside the rest in processes of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import torch

from pipeline import models, motion
from pipeline.attribution.attributed_model import open_attributed, projected_gradients
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.config import Finetune, Run
from pipeline.errors import ClipError
from pipeline.models import VideoModel, open_model
from pipeline.models.conditioning import split
from pipeline.models.device import device_for
from pipeline.motion.worker import MotionWorker
from pipeline.tables import schemas
from pipeline.training import loop
from pipeline.training.training_set import ClipSet, encode_set, kept_in
from pipeline.video.decoders import decoder_for
from pipeline.video.indexing import clip_id, index

Row = dict[str, Any]
T = TypeVar("T")

AS_IT_IS, SHORTLIST = "as it stands", "the shortlist's variant"
SCHEMA = schemas.PILOT
ENERGY, CELLS = "mask_energy", "mask_cells"  # what a mask keeps on the model's grid, and how many of its cells move
VARIED = 3  # clips of a batch that the variant of a shortlist is timed on
STEPS = 4  # of fine-tuning; the first warms up and does not count
DENOISING = (2, 4)  # steps of the two videos whose difference is the price of a step


def variants(run: Run) -> dict[str, Run]:
    """The recipe as it stands, and the variant of its shortlist where it has one."""
    runs = {AS_IT_IS: run}
    cheaper = run.attribution.cheaper
    if cheaper is not None:
        runs[SHORTLIST] = run.model_copy(update={"attribution": cheaper})
    return runs


class AttributionPilot:
    """Videos -> their clips, and seconds of indexing, decoding, motion, encoding, captions and gradients of one clip of
    each."""

    def __init__(self, run: Run) -> None:
        pool = run.resources.extract_features
        self.runs, self.device = variants(run), device_for(pool.gpus)
        settings = [setting for r in self.runs.values() for setting in r.attribution.settings]
        self.model, self.host = open_attributed(run, self.device, settings)
        self.motion = {name: MotionWorker(r, models.grid(r), pool.gpus, 1) for name, r in self.runs.items()}

    def __call__(self, videos: pa.Table) -> Iterator[dict[str, pa.Table]]:
        run = self.runs[AS_IT_IS]
        rows, clips_by_video = list[Row](), list[list[Row]]()
        with decoder_for(run) as decoder:
            for video in videos.to_pylist():
                clips, seconds = timed(partial(index, video, run.data, decoder, run.seed), self.device)
                rows.append(line(clips[0]["clip_id"], AS_IT_IS, "index", seconds, clips[0]["error"]))
                clips_by_video.append(clips)
        every = pa.Table.from_pylist([clip for clips in clips_by_video for clip in clips], schema=schemas.CLIPS)
        yield {"clips": every, "pilot": table(rows)}
        first = [clips[0] for clips in clips_by_video if clips[0]["error"] is None]
        shares = {name: first if name == AS_IT_IS else first[:VARIED] for name in self.runs}
        yield {"pilot": table([row for name, share in shares.items() for row in self._attributed(name, share)])}

    def refuse(self, videos: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        """Rows of videos whose pilot killed its process."""
        named = [clip_id(video, 0) for video in videos.to_pylist()]
        return {"pilot": table([line(name, AS_IT_IS, "index", 0.0, str(error)) for name in named])}

    def _attributed(self, name: str, clips: list[Row]) -> list[Row]:
        """Each clip's parts under a variant. The last stage of the projection is shared by them."""
        gradients = projected_gradients(self.runs[name], self.model, self.host)
        rows, clip_ids = list[Row](), list[str]()
        for clip in clips:
            try:
                seconds = self._parts(name, clip, gradients, warm=bool(clip_ids))
            except ClipError as error:
                rows.append(line(clip["clip_id"], name, "decode", 0.0, str(error)))
                continue
            if seconds["gradient"] > 0:
                clip_ids.append(clip["clip_id"])
            rows += [line(clip["clip_id"], name, part, taken_by) for part, taken_by in seconds.items()]
            rows += self._energy(name, clip)
        if clip_ids:
            _, last = timed(gradients.collect, self.device)
            rows += [line(i, name, "projection", last / len(clip_ids)) for i in clip_ids]
        gradients.close()
        return rows

    def _energy(self, name: str, clip: Row) -> list[Row]:
        """What the clip's mask keeps on the model's grid; nothing for a still clip."""
        frames, fps, height, width = self.runs[name].geometry
        worker = self.motion[name]
        video = worker.decoder.submit_frames(clip["uri"], clip["start_frame"], frames, fps, height, width).result()
        energy = worker.energy(video)
        if energy is None:
            return []
        values = zip((ENERGY, CELLS), energy, strict=True)
        return [line(clip["clip_id"], name, metric, None, value=float(value)) for metric, value in values]

    def _parts(self, name: str, clip: Row, gradients: ProjectedGradients, warm: bool) -> dict[str, float]:
        """Seconds of every part of a clip. A still clip that has no unmasked setting takes no time for gradients. One
        look is measured, and counts as often as the clip has looks."""
        run, worker = self.runs[name], self.motion[name]
        looks, _ = run.of("clips").looks
        seconds: dict[str, float] = {}

        def clock(part: str, call: Callable[..., T], *inputs: Any) -> T:
            result, seconds[part] = timed(partial(call, *inputs), self.device)
            return result

        frames, fps, height, width = run.geometry
        where = (clip["uri"], clip["start_frame"], frames, fps, height, width)
        video = clock("decode", lambda: worker.decoder.submit_frames(*where).result())
        measured = clock("motion", worker.measure, clip, video)
        latent, of_clip = split(clock("encode", self.model.encode, video, fps))
        conditioning = {**of_clip, **clock("caption", self.model.text, clip["caption"] or "")}
        mask = None
        if measured["mask"] is not None:
            mask = motion.decode_mask(measured["mask"], measured["mask_shape"]).to(self.device)
        take = partial(
            take_clip, gradients, self.model, run.of("clips").attribution.settings, latent, conditioning, mask, run.seed
        )
        if not warm and take():  # compiles, and chooses algorithms
            gradients.collect()
        if not clock("gradient", take):
            seconds["gradient"] = 0.0
        return {part: each * looks if part in ("encode", "gradient") else each for part, each in seconds.items()}


class TrainingPilot:
    """Clips -> seconds of a step of fine-tuning, of a forward pass, of a generated video and of a step of denoising."""

    def __init__(self, run: Run) -> None:
        self.run, self.device = run, device_for(run.resources.finetune.gpus)
        self.model: VideoModel = open_model(run.model, self.device)
        self.decoder = decoder_for(run)

    def __call__(self, clips: pa.Table) -> Iterator[dict[str, pa.Table]]:
        rows = clips.to_pylist()
        yield {"pilot": table([*self.generated(rows[0]), *self.trained(rows)])}

    def refuse(self, clips: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        """Rows that say that the steps could not be timed."""
        return {"pilot": table([line(row["clip_id"], AS_IT_IS, "step", 0.0, str(error)) for row in clips.to_pylist()])}

    def generated(self, row: Row) -> list[Row]:
        """Seconds of a step of denoising, and of what a generated video takes beside its steps."""
        d, e = self.run.data, self.run.evaluate
        size, caption = (d.frames, d.height, d.width), row["caption"] or ""
        image = None
        if self.model.family.image:
            image = self.decoder.frames(row["uri"], row["start_frame"], 1, d.fps, d.height, d.width)[0]

        def generate(steps: int) -> None:
            self.model.generate(caption, size, d.fps, 0, steps, e.guidance, image)

        generate(1)
        durations = [timed(partial(generate, n), self.device)[1] for n in DENOISING]
        step = max(0.0, durations[1] - durations[0]) / (DENOISING[1] - DENOISING[0])
        parts = {"denoising": step, "video": max(0.0, durations[0] - DENOISING[0] * step)}
        return [line(row["clip_id"], AS_IT_IS, part, seconds) for part, seconds in parts.items()]

    def trained(self, rows: list[Row]) -> list[Row]:
        """Steps of one worker with its own batch; gradients of several workers are not averaged here."""
        d = self.run.data
        alone = {"steps": STEPS, "workers": 1, "min_workers": None, "sharding": "none"}
        config: Finetune = self.run.finetune.model_copy(update=alone)

        def frames_of(row: Mapping[str, Any]) -> Any:
            return self.decoder.frames(row["uri"], row["start_frame"], d.frames, d.fps, d.height, d.width)

        with tempfile.TemporaryDirectory() as cache:
            encode_set(self.model, rows, frames_of, cache, d.fps)
            clips = ClipSet(self.model, rows, kept_in(cache))
            training = loop.begin(self.model, config, self.run.seed)
            lines = list(loop.train(training, clips, config, self.run.seed))
        return [line(rows[0]["clip_id"], AS_IT_IS, "step", step.seconds) for step in lines[1:]]


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What a call returns and its seconds, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start


def line(
    clip_id: str,
    variant: str,
    part: str,
    seconds: float | None,
    problem: str | None = None,
    value: float | None = None,
) -> Row:
    keys = {"clip_id": clip_id, "variant": variant, "metric": part}
    return {**keys, "seconds": seconds, "value": value, "problem": problem}


def table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)
