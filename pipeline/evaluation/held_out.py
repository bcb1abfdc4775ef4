"""Base against fine-tuned: held-out losses with paired noise, whether clips are preferred to their twins, and the
metrics of videos generated from captions.

Clips and twins are encoded once for all arms, into the folder where fine-tuning keeps its own encodings.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline import motion, tables
from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.evaluation.comparison import BANDS, LOSSES, MARGINS, banded
from pipeline.evaluation.metrics import temporal_flickering, vbench_dynamic_degree
from pipeline.models import Conditioning, VideoModel, open_model
from pipeline.models.attention import fastest_attention
from pipeline.models.conditioning import Captions, batched, moved, split
from pipeline.models.device import device_for
from pipeline.models.loss import drawn_uniforms, loss_map, masked_mean, own_noise
from pipeline.models.trained_weights import load_weights
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.training import training_set
from pipeline.training.training_set import EncodedClip
from pipeline.video import looks
from pipeline.video.decoders import Row, decoded, decoder_for
from pipeline.video.frames import write_mp4

log = logging.getLogger(__name__)

FIRST_NOISE = 1 << 20  # evaluation's noises are not attribution's: those count from zero
COMPARABLE = ("raft_large", "C_T_V1", 20)


class Trained(NamedTuple):
    """A model to evaluate: its arm's name, which training of it, and the folder of its weights (empty: the base)."""

    arm: str
    version: str
    weights: str


def held_out_tasks(arms: Iterable[Trained], rows: Sequence[Row], twins: Sequence[str] = ()) -> list[Row]:
    """A task for each arm and held-out clip with a motion mask: its losses, and its margin over each of these twins."""
    columns = ("clip_id", "uri", "start_frame", "caption", "mask", "mask_shape")
    kind = {"kind": "loss", "seed": 0, "twins": list(twins)}
    return [
        {
            **arm._asdict(),
            **kind,
            **{c: row[c] for c in columns},
            "clip_version": row["version"],
            "content": _hash(row["clip_id"], row["version"], row["caption"], row["mask"]),
        }
        for arm in arms
        for row in rows
        if row["error"] is None
    ]


def _hash(*values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


def lacking(task: Row, metrics: Set[str]) -> Row | None:
    """What is left of a task of which a table has rows of these metrics; None where it has all.

    Where twins alone are lacking, the rest is a task of kind `margin`, which has no losses.
    """
    if not metrics:
        return task
    twins = [twin for twin in task.get("twins") or () if MARGINS[twin] not in metrics]
    return {**task, "kind": "margin", "twins": twins} if twins else None


def video_tasks(
    arms: Iterable[Trained], queries: Sequence[Row], count: int, seeds: Iterable[int], *, of_image: bool = False
) -> list[Row]:
    """A task for each arm, seed and one of `count` distinct query captions, taken from the groups in turn. `of_image`:
    the model makes a video of the query's first frame too."""
    turns: dict[str, int] = {}
    placed = []
    captions: set[str] = set()
    for row in sorted(queries, key=lambda r: str(r["clip_id"])):
        if row["error"] is None and row["caption"] and row["caption"] not in captions:
            captions.add(row["caption"])
            group = row["group"] or "all"
            turns[group] = turns.get(group, 0) + 1
            placed.append((turns[group], group, row))
    chosen = [row for *_, row in sorted(placed, key=lambda p: p[:2])[:count]]
    return [
        {**arm._asdict(), "kind": "video", "seed": s, "mask": None, "mask_shape": None, **_asked(r, of_image)}
        for arm in arms
        for r in chosen
        for s in seeds
    ]


def _asked(row: Row, of_image: bool) -> Row:
    """What a video is made from: a query's caption, and its first frame where the model takes one."""
    place = {"uri": row.get("uri") or "", "start_frame": row.get("start_frame") or 0}
    content = _hash(row["clip_id"], row["caption"], row.get("version") if of_image else None)
    return {"clip_id": row["clip_id"], "caption": row["caption"], **place, "content": content}


TASKS = pa.schema(
    [
        ("arm", pa.string()),
        ("version", pa.string()),
        ("weights", pa.string()),
        ("kind", pa.string()),  # loss: losses and margins of a held-out clip; margin: its margins alone; video
        ("seed", pa.int32()),
        ("clip_id", pa.string()),
        ("clip_version", pa.string()),  # of the video that it is a part of; `version` is the training's
        ("content", pa.string()),  # a hash of what is evaluated, as evaluation/ has it
        ("caption", pa.string()),
        ("uri", pa.string()),
        ("start_frame", pa.int32()),
        ("mask", pa.binary()),
        ("mask_shape", pa.list_(pa.int32())),
        ("twins", pa.list_(pa.string())),
    ]
)


class EvaluationWorker:
    """Tasks -> rows of evaluation/. The model of one arm is held at a time. `cache` is the folder of encoded clips."""

    def __init__(self, run: Run, cache: str) -> None:
        self.run, self.device = run, device_for(run.resources.evaluate.gpus)
        self.cache = cache
        self.raft = motion.load_raft(run.motion, self.device)
        self.decoder = decoder_for(run)
        self._loaded: tuple[str, VideoModel, Captions] | None = None

    def model(self, weights: str) -> tuple[VideoModel, Captions]:
        """The base, with the weights that fine-tuning wrote into a folder if one is named."""
        if self._loaded is None or self._loaded[0] != weights:
            self._loaded = None  # frees the last arm's model before the next one is there
            if self.device.type == "cuda":
                gc.collect()  # a model's hooks may refer to it
                torch.cuda.empty_cache()
            model = open_model(self.run.model, self.device)
            if weights:
                load_weights(model, weights)
            model.trained.eval()
            self._loaded = (weights, model, Captions(model.text))
        return self._loaded[1:]

    def __call__(self, tasks: pa.Table) -> Iterator[dict[str, pa.Table]]:
        for group in tables.in_parts(self._tasks(tasks.to_pylist())):
            lines = [line for task in group for line in task]
            yield {"evaluation": pa.Table.from_pylist(lines, schema=schemas.EVALUATION)}

    def _tasks(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The lines of one task after the other. They are written together, for one loss counts as all of them."""
        yield from (self._video(row) for row in rows if row["kind"] == "video")
        held_out = [row for row in rows if row["kind"] != "video"]
        cached = [all(training_set.is_kept(self.cache, one) for one in self._versions(row)) for row in held_out]
        for row, is_cached in zip(held_out, cached, strict=True):
            if is_cached:
                yield self._held_out(row, [training_set.kept_in(self.cache)(one) for one in self._versions(row)])
        missing = [row for row, is_cached in zip(held_out, cached, strict=True) if not is_cached]
        for row, frames in decoded(self.decoder, self.run, missing):
            if isinstance(frames, ClipError):
                log.warning("held-out clip %s (%s) left out: %s", row["clip_id"], row["uri"], frames)
            else:
                yield self._held_out(row, self.encoded(row, frames))

    def refuse(self, tasks: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        for row in tasks.to_pylist():
            log.warning("%s of clip %s, arm %s, left out: %s", row["kind"], row["clip_id"], row["arm"], error)
        return {"evaluation": schemas.EVALUATION.empty_table()}

    def _versions(self, row: Row) -> list[Row]:
        """A task's clip and its twins, as their encodings are named."""
        clip = {"clip_id": row["clip_id"], "version": row["clip_version"], "caption": row["caption"]}
        return [clip, *(training_set.as_twin(clip, twin, self.run.seed) for twin in row["twins"])]

    @torch.no_grad()
    def encoded(self, row: Row, frames: npt.NDArray[np.uint8]) -> list[EncodedClip]:
        """A task's clip and its twins, encoded and kept for the other arms, whose encoders are the same. What is kept
        already is read. A twin's encoding has no captions: they are its clip's."""
        model, text = self.model(row["weights"])
        key = f"{self.run.seed} {row['clip_id']}"
        clips = []
        for name, version in zip((None, *row["twins"]), self._versions(row), strict=True):
            if training_set.is_kept(self.cache, version):
                clips.append(training_set.kept_in(self.cache)(version))
                continue
            video = frames if name is None else looks.twin(frames, name, key)
            captions = (text(row["caption"] or ""),) if name is None else ()
            clips.append(EncodedClip(model.encode(video, self.run.geometry[1]), captions))
            training_set.keep(self.cache, version, clips[-1])
        return clips

    @torch.no_grad()
    def _held_out(self, row: Row, clips: Sequence[EncodedClip]) -> list[Row]:
        """The lines of a task, given its clip and its twins: the losses, where they are asked, and a margin for each
        twin."""
        clip, *twins = clips
        losses = self._losses(row, clip, clip)
        plain = losses[:, LOSSES.index("plain_loss")].mean()
        means = self._means(losses) if row["kind"] == "loss" else {}
        for name, twin in zip(row["twins"], twins, strict=True):
            of_twin = self._losses(row, twin, clip)[:, LOSSES.index("plain_loss")].mean()
            means[MARGINS[name]] = float((of_twin - plain) / plain)
        return [_line(row, row["uri"], metric, value) for metric, value in means.items()]

    @fastest_attention()
    def _losses(self, row: Row, video: EncodedClip, clip: EncodedClip) -> npt.NDArray[np.float64]:
        """LOSSES of a task's clip, or of a twin of it, at the clip's timesteps and noises, which are every arm's, and
        under the clip's caption: [passes, 2]."""
        model, _ = self.model(row["weights"])
        latent, of_clip = split(moved(video.clip, self.device))
        conditioning = batched([{**of_clip, **moved(clip.captions[0], self.device)}])
        mask = motion.decode_mask(row["mask"], row["mask_shape"]).to(self.device)[None]
        return np.array(
            [
                (float(masked_mean(errors, mask)), float(masked_mean(errors, None)))
                for errors in self._errors(model, row["clip_id"], latent, conditioning)
            ]
        )

    def _means(self, losses: npt.NDArray[np.float64]) -> dict[str, float]:
        """The mean of each loss over timesteps and noises. Where timesteps are drawn, their thirds, from little noise
        to much, have means of their own."""
        means = dict(zip(LOSSES, losses.mean(axis=0).tolist(), strict=True))
        if self.run.evaluate.timesteps == "drawn" and len(losses) >= len(BANDS):
            for band, part in zip(BANDS, np.array_split(losses, len(BANDS)), strict=True):
                means |= {banded(name, band): float(part[:, n].mean()) for n, name in enumerate(LOSSES)}
        return means

    def _errors(self, model: VideoModel, clip_id: str, latent: Tensor, conditioning: Conditioning) -> Iterable[Tensor]:
        name = f"{self.run.seed} {clip_id}"
        for timestep, n in self._places(model, name, latent[0].numel()):
            noise = own_noise(name, FIRST_NOISE + n, tuple(latent.shape))
            t = torch.full((1,), timestep, device=self.device)
            yield loss_map(model, latent[None], conditioning, t, noise.to(self.device)[None])

    def _places(self, model: VideoModel, name: str, cells: int) -> list[tuple[float, int]]:
        """The timesteps of a clip, on the 1000-step scale, each with the number of its noise."""
        timesteps, noises = self.run.evaluate.timesteps, self.run.evaluate.noises
        if timesteps == "drawn":
            drawn = model.schedule.times(drawn_uniforms(name, noises), cells)
            return [(t, n) for n, t in enumerate(drawn.tolist())]
        return [(t, n) for t in timesteps for n in range(noises)]

    def _video(self, row: Row) -> list[Row]:
        """Generate, write in VBench's custom-input layout (the prompt is the file's name), and measure."""
        model, _ = self.model(row["weights"])
        d, e = self.run.data, self.run.evaluate
        size = (d.frames, d.height, d.width)
        image = None
        if model.family.image:
            image = self.decoder.frames(row["uri"], row["start_frame"], 1, d.fps, d.height, d.width)[0]
        frames = model.generate(row["caption"], size, d.fps, row["seed"], e.steps, e.guidance, image)
        uri = video_place(self.run.root, row["arm"], row["caption"], row["seed"])
        write_mp4(uri, frames, d.fps)
        degree = vbench_dynamic_degree(frames, d.fps, self._flow)
        mark = "" if is_comparable(self.run) else " (not comparable)"
        metrics = {
            f"vbench_dynamic_degree{mark}": float(degree.dynamic),
            f"vbench_dynamic_margin{mark}": degree.margin,
            "temporal_flickering": temporal_flickering(frames),
        }
        return [_line(row, uri, name, value) for name, value in metrics.items()]

    @torch.no_grad()
    def _flow(self, before: Tensor, after: Tensor) -> Tensor:
        """RAFT at the video's own size, as VBench runs it; RAFT takes no side below 128 pixels, so smaller videos are
        enlarged for it and the flow is scaled back."""
        size = before.shape[-2:]
        large = [max(128, side) for side in size]
        pair = [torch.nn.functional.interpolate(x.to(self.device), large, mode="bilinear") for x in (before, after)]
        updates = 20 if is_comparable(self.run) else self.run.motion.updates
        flow = self.raft(pair[0] / 127.5 - 1, pair[1] / 127.5 - 1, updates)[-1]
        flow = torch.nn.functional.interpolate(flow, size, mode="bilinear")
        scale = torch.tensor([size[1] / large[1], size[0] / large[0]], device=self.device).view(1, 2, 1, 1)
        return (flow * scale).float().cpu()


def is_comparable(run: Run) -> bool:
    """Whether the dynamic degree can be held against published figures: RAFT large C_T_V1 with 20 updates."""
    smallest = min(run.data.height, run.data.width)
    return (run.motion.flow, run.motion.weights) == COMPARABLE[:2] and smallest >= 128


def video_place(root: str, arm: str, caption: str, seed: int) -> str:
    """VBench reads the prompt from the name up to the last dash.

    A caption that is too long for a name, or that holds what names should not, is cut and gets a hash: two captions
    never share a file, and none is hidden.
    """
    name = re.sub(r"[^\w ,.'()-]", "_", caption).lstrip(".")
    if len(name.encode()) > 120:  # file systems take 255 bytes
        name = name[:30]
    if name != caption:
        name = f"{name} {hashlib.blake2b(caption.encode(), digest_size=6).hexdigest()}"
    return stores.join(root, "generated", arm, f"{name}-{seed}.mp4")


def prompt_file(tasks: Sequence[Row], root: str) -> bytes:
    """VBench's prompt file of the generated videos: their paths with the full captions."""
    videos: dict[str, Any] = {
        video_place(root, t["arm"], t["caption"], t["seed"]): t["caption"] for t in tasks if t["kind"] == "video"
    }
    return json.dumps(videos, indent=1, ensure_ascii=False).encode()


def _line(row: Row, uri: str, metric: str, value: float) -> Row:
    """A row of evaluation/. A value that is not finite is null there, and counts as missing."""
    keys = {name: row[name] for name in ("arm", "clip_id", "seed", "version", "content")}
    return {**keys, "uri": uri, "metric": metric, "value": value if math.isfinite(value) else None}
