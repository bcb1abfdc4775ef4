"""A corpus and a folder of Wan 2.1 with random weights: what `curate` takes, with nothing to download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from torchvision.models import optical_flow
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from jobs.benchmarks.measured_models import TEXT, TRANSFORMER
from pipeline import config
from pipeline.config import Run
from pipeline.storage.parallel import in_order
from pipeline.synthetic import world
from pipeline.video.frames import write_mp4

QUERIES = ("roll", "spin")


@dataclass(frozen=True)
class Size:
    """Clips, the recipe's geometry, steps of fine-tuning, and what of the published sizes is smaller. The text encoder
    has two layers in any case: it is asked once a caption, and the published one is 11 GB of random numbers."""

    clips: int = 40
    geometry: tuple[int, int, int] = (81, 480, 832)
    steps: int = 10
    transformer: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=lambda: {"num_layers": 2})
    resources: dict[str, Any] = field(default_factory=dict)


_CPU = {"actors": 1, "cpus": 1, "gpus": 0, "batch": 2}
_STAGES = ("index_clips", "estimate_motion", "extract_features", "finetune", "evaluate")
QUICK = Size(
    clips=6,
    geometry=(9, 64, 96),
    steps=2,
    transformer={"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 48, "text_dim": 16},
    vae={"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    text={"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    resources={f"resources.{stage}": _CPU for stage in _STAGES},
)


def run_of(folder: Path, model: Path, size: Size) -> Run:
    """Write videos and flow below a folder, and a model unless it is there; the recipe of Wan 1.3B over them."""
    frames, height, width = size.geometry
    small = {"motion.height": 128, "motion.width": 128, "motion.updates": 2} if size.resources else {}
    run = config.load(
        "wan2.1-t2v-1.3b",
        {
            "root": str(folder / "run"),
            "data.videos": str(folder / "world" / "clips"),
            "data.frames": frames,
            "data.height": height,
            "data.width": width,
            "data.scaler": "ffmpeg",
            "queries.videos": str(folder / "world" / "queries"),
            "model.id": str(model),
            "motion.weights": str(folder / "raft.safetensors"),
            "ranking.fraction": 0.5,
            "finetune.steps": size.steps,
            "finetune.accumulate": 1,
            "finetune.lora_rank": 32,
            "evaluate.arms": ["base", "selected"],
            "evaluate.generate": 0,
            **small,
            **size.resources,
        },
    )
    write_model(model, size)
    torch.manual_seed(0)
    save_file(optical_flow.raft_large(weights=None).state_dict(), folder / "raft.safetensors")
    write_videos(folder / "world" / "clips", world.corpus(1, size.clips, frames), run)
    asked = [scene for scene in world.queries(2, 1, frames) if scene.motion in QUERIES]
    write_videos(folder / "world" / "queries", asked, run)
    return run


def write_videos(folder: Path, scenes: Sequence[world.Scene], run: Run) -> None:
    """Videos and their manifest. Scenes are drawn at a quarter of the size, for drawing takes longer than the rest."""
    folder.mkdir(parents=True)

    def write(scene: world.Scene) -> str:
        small = world.render(scene, run.data.height // 4, run.data.width // 4)
        write_mp4(str(folder / f"{scene.name}.mp4"), small.repeat(4, axis=1).repeat(4, axis=2), run.data.fps)
        line = {"file_name": f"{scene.name}.mp4", "caption": scene.caption, "source": scene.kind, "group": scene.motion}
        return json.dumps(line) + "\n"

    (folder / "metadata.jsonl").write_text("".join(in_order(write, scenes)))


def write_model(folder: Path, size: Size) -> None:
    """A folder as diffusers reads it, unless it is there already. The tokenizer is the demo's: its captions are those
    of the synthetic world."""
    if folder.exists():
        return
    torch.manual_seed(0)
    file = Path(config.load("demo").model.id, "tokenizer", "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file), model_max_length=512, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    text = {**TEXT, **size.text, "vocab_size": len(tokenizer)}
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(**text)),
        vae=AutoencoderKLWan(**size.vae),
        transformer=WanTransformer3DModel(**{**TRANSFORMER, **size.transformer}),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    pipeline.transformer.to(torch.bfloat16)
    pipeline.text_encoder.to(torch.bfloat16)
    begun = folder.with_suffix(".begun")  # so that one which is there is whole
    pipeline.save_pretrained(begun)
    begun.rename(folder)
