"""The synthetic world's clips, queries and held-out clips, encoded once: latents, captions, masks, how they move."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pipeline import config, models, motion
from pipeline.config import PACKAGE, Run
from pipeline.models import VideoModel, open_model
from pipeline.motion import load_raft
from pipeline.motion.movement import movement
from pipeline.storage import stores
from pipeline.synthetic import shifted, world

WEIGHTS = "diffusion_pytorch_model.safetensors"
OUT = PACKAGE / "weights" / "quality-transformer"  # the base model, as `base_model` trained it
SEED = 7_000_001  # of the corpus; no weights have seen it. Queries and held-out clips follow
SETS = ("clips", "queries", "held_out")
TENSORS = ("latent", "mask", "robust", "steady", "small")


@dataclass(frozen=True)
class World:
    """Which world: how many clips of which corpus, queries and held-out clips of each of the ten motions, and the base
    model that is fine-tuned on them."""

    clips: int = 1200
    queries: int = 10
    held_out: int = 15
    seed: int = SEED  # of the corpus; queries and held-out clips follow
    shifted: bool = False  # other outlines, textures, speeds, a moving camera
    base: Path = OUT

    @property
    def corpus(self) -> str:
        """Names the corpus in front of its sizes; nothing for the first one."""
        if (self.seed, self.shifted) == (SEED, False):
            return ""
        return f"{self.seed}{'-shifted' if self.shifted else ''}-"

    @property
    def name(self) -> str:
        return f"{self.corpus}{self.clips}-{self.queries}-{self.held_out}"

    @property
    def trained(self) -> str:
        """Names what a fine-tuning and its losses depend on, but for the base: not the queries."""
        return f"{self.corpus}{self.clips}-{self.held_out}"

    def scenes(self, name: str) -> list[world.Scene]:
        """The scenes of a set. The motions of queries and held-out clips are taken in equal parts."""
        if name == "clips":
            return (shifted.corpus if self.shifted else world.corpus)(self.seed, self.clips)
        drawn = shifted.queries if self.shifted else world.queries
        return drawn(self.seed + SETS.index(name), self.queries if name == "queries" else self.held_out)


@dataclass(frozen=True)
class Clips:
    """Encoded clips; row n of everything is the clip clip_ids[n]."""

    clip_ids: tuple[str, ...]
    motions: npt.NDArray[np.str_]  # "" where nothing moves by itself
    kinds: npt.NDArray[np.str_]  # real, cartoon, still, camera
    magnitude: npt.NDArray[np.float32]  # mean flow, pixels a frame
    movement: npt.NDArray[np.float64]  # [N, judge.NUMBERS], the judge's description of the flow without the camera's
    latent: Tensor  # [N, C, f, h, w]
    text: Tensor  # [N, tokens, width]
    mask: Tensor  # [N, f, h, w], zeros where a clip has no motion
    robust: Tensor  # the same with a quantile as its upper end
    steady: Tensor  # the same after the camera's motion was subtracted
    small: Tensor  # [N, C, f, h/2, w/2], latents of the clips at half their size
    frames: npt.NDArray[np.int64]  # latent frames that count, all of them but for `kernels.mixed`

    def __len__(self) -> int:
        return len(self.clip_ids)

    @property
    def moving(self) -> npt.NDArray[np.bool_]:
        nonzero: npt.NDArray[np.bool_] = (self.mask.flatten(1).amax(1) > 0).numpy()
        return nonzero

    def of(self, motion: str) -> npt.NDArray[np.int64]:
        """Rows of a motion that move."""
        return np.flatnonzero((self.motions == motion) & self.moving)


def run_of() -> Run:
    """The demo's model and motion settings; everything else the benchmark sets itself."""
    return config.load("demo")


def make(model: VideoModel) -> WanTransformer3DModel:
    """Three layers of 96 channels that take the latents and texts of the demo's model."""
    config: Any = model.trained.config
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=3,
        attention_head_dim=32,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=288,
        num_layers=3,
        rope_max_seq_len=config.rope_max_seq_len,
    )


def base_model(folder: Path = OUT) -> VideoModel:
    """The base of this folder, loaded once a process: Ray's tasks of one worker share it."""
    return _base_model(folder)


@functools.cache
def _base_model(folder: Path) -> VideoModel:
    return load_base(folder)


def load_base(folder: Path = OUT) -> VideoModel:
    """The demo's model with the transformer of a folder."""
    model = open_model(run_of().model, torch.device("cpu"))
    model.trained = WanTransformer3DModel.from_pretrained(folder, use_safetensors=True).eval()
    model.pipeline.transformer = model.trained  # type: ignore[attr-defined]
    return model


@functools.cache
def base_digest(folder: Path) -> str:
    """Names a base model's weights: what was computed with others is not taken for these."""
    return hashlib.blake2b((folder / WEIGHTS).read_bytes(), digest_size=6).hexdigest()


def encode(scenes: Sequence[world.Scene], folder: str) -> None:
    """Render, encode and mask scenes with the product's own pieces, RAFT included: two files in `folder`."""
    run, model = run_of(), base_model()
    raft = load_raft(run.motion, torch.device("cpu"))
    _, _, height, width = run.geometry
    by_name: dict[str, list[Tensor]] = {name: [] for name in TENSORS}
    magnitudes, descriptions = [], []

    def encoded(frames: npt.NDArray[np.uint8]) -> Tensor:
        return model.encode(frames, run.data.fps)["latent"]

    for scene in scenes:
        frames = world.render(scene, height, width)
        flow = motion.estimate(frames, raft, run.motion, torch.device("cpu"))
        own = flow - motion.camera_motion(flow)
        latent = encoded(frames)
        grid = models.grid_of(model.family, len(frames), height, width)
        by_name["latent"].append(latent)
        by_name["small"].append(encoded(world.render(scene, height // 2, width // 2)))
        for name, settings, moves in (
            ("mask", run.motion, flow),
            ("robust", run.motion.model_copy(update={"normalise": "quantile"}), flow),
            ("steady", run.motion, own),
        ):
            mask = motion.motion_mask(moves, settings, grid)
            by_name[name].append(torch.zeros(grid.shape) if mask is None else mask)
        magnitudes.append(motion.statistics(flow)[0])
        descriptions.append(movement(frames, own)["description"])
    texts = torch.stack([model.text(scene.caption)["text"] for scene in scenes])
    stacked = {name: torch.stack(tensors) for name, tensors in by_name.items()} | {"text": texts.contiguous()}
    stores.write_bytes(f"{folder}/tensors.safetensors", safetensors.torch.save(stacked))
    columns: dict[str, Any] = {
        "clip_id": [s.name for s in scenes],
        "motion": [s.motion for s in scenes],
        "kind": [s.kind for s in scenes],
        "magnitude": pa.array(magnitudes, pa.float32()),
        "movement": pa.array(descriptions, pa.list_(pa.float64())),
    }
    with stores.writing(f"{folder}/clips.parquet") as file:
        pq.write_table(pa.table(columns), file)


def filmed(model: VideoModel, captions: Sequence[str]) -> Iterator[npt.NDArray[np.float32]]:
    """The flow of the videos that a model makes of captions, the n-th with the n-th seed."""
    run = run_of()
    raft, geometry = load_raft(run.motion, torch.device("cpu")), (run.data.frames, run.data.height, run.data.width)
    for seed, caption in enumerate(captions):
        frames = model.generate(caption, geometry, run.data.fps, seed, run.evaluate.steps, run.evaluate.guidance)
        yield motion.estimate(frames, raft, run.motion, torch.device("cpu")).numpy()


def encoded(folder: str) -> bool:
    """Whether all of it is there: the table is written last, and an earlier benchmark's said less."""
    path = Path(folder, "clips.parquet")
    return path.exists() and "movement" in pq.read_schema(path).names


@functools.cache
def load(folders: tuple[str, ...]) -> Clips:
    """The clips of these folders, one after the other."""
    tables = pa.concat_tables([pq.read_table(f"{folder}/clips.parquet") for folder in folders])
    tensors = [safetensors.torch.load_file(f"{folder}/tensors.safetensors") for folder in folders]
    joined = {name: torch.cat([t[name] for t in tensors]) for name in (*TENSORS, "text")}
    return Clips(
        tuple(tables.column("clip_id").to_pylist()),
        np.array(tables.column("motion").to_pylist()),
        np.array(tables.column("kind").to_pylist()),
        tables.column("magnitude").to_numpy(),
        np.array(tables.column("movement").to_pylist(), np.float64),
        frames=np.full(tables.num_rows, joined["latent"].shape[2]),
        **joined,
    )
