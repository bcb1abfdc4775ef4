"""A first configuration for some videos on some machine: a recipe with other values, its comments kept.

Which recipe is a matter of the machine: Wan where there is a GPU, else `tiny` with the demo's model. Geometry follows
the videos: never more pixels than they have, their shape, and segments that most of them are long enough for.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.config import RECIPES, Data
from pipeline.operations.survey import Machine, Survey

SHORT = 0.2  # share of the opened videos that may be shorter than a segment
LEAST_SIDE = 64  # pixels
COMMENTS = 26  # column of a comment where the recipe has none
ACTOR_MEMORY = 2 << 30  # bytes that an actor with the toy model, its decoder and RAFT need on a CPU
LARGE_GPU = 60 << 30  # bytes: every parameter of Wan 1.3B with Adam's moments, and a gradient
MIDDLE_GPU = 22 << 30  # bytes: a checkpointed gradient at the training geometry takes 20.9 GiB


@dataclass(frozen=True)
class Target:
    """A recipe, and what its model takes: frames are `temporal` n + 1, sides are multiples of `step`."""

    recipe: str
    frames: int
    fps: float
    height: int
    width: int
    temporal: int
    step: int


TOY = Target("tiny", 9, 8.0, 64, 112, 4, 16)  # a step of 8 trains, but WanPipeline generates in steps of 16
WAN = Target("wan2.1-t2v-1.3b", 81, 16.0, 480, 832, 4, 16)


@dataclass(frozen=True)
class Value:
    """A value for the file, and why it is this one, as the comment after it; "": the recipe's comment stays."""

    value: Any
    why: str = ""


def target(machine: Machine) -> Target:
    return WAN if machine.gpus else TOY


def geometry(videos: Survey, model: Target) -> tuple[int, int, int]:
    """Frames, height and width of a segment: the model's area in the videos' shape, no larger than they are, but at
    least LEAST_SIDE."""
    area = min(model.height * model.width, videos.area)
    height = _side(math.sqrt(area * videos.shape), model.step)
    width = _side(math.sqrt(area / videos.shape), model.step)
    seconds = videos.seconds(SHORT)
    fits = int(seconds * model.fps) // model.temporal * model.temporal + 1
    frames = max(model.temporal + 1, min(model.frames, fits))
    return frames, height, width


def _side(pixels: float, step: int) -> int:
    """The nearest multiple of `step`, at least LEAST_SIDE."""
    return max(math.ceil(LEAST_SIDE / step) * step, round(pixels / step) * step)


def text(
    root: str, data: str, queries: str | None, survey: Survey, machine: Machine, of_queries: Survey | None = None
) -> str:
    """The file as YAML. `survey` is of the videos of `data`, `of_queries` of those of `queries`."""
    model = target(machine)
    lines = (RECIPES / f"{model.recipe}.yaml").read_text(encoding="utf-8").splitlines()
    head = [
        f"# Made from the recipe {model.recipe} for these videos and this machine:",
        f"# {survey.sentence()}.",
        f"# {machine.sentence()}.",
        "# Every key that is not here has its default; `motion-curation keys [SECTION]` lists them all.",
        "#",
    ]
    changes = _videos(root, data, queries, survey, of_queries) | _geometry(survey, model) | _machine(machine)
    return "\n".join([*head, *edited(lines, changes)]) + "\n"


def _videos(root: str, data: str, queries: str | None, survey: Survey, of_queries: Survey | None) -> dict[str, Value]:
    sample = min(20, max(5, survey.count // 5))
    where = "better than a sample: videos of the motions that you look for, one folder a motion"
    most = Data.model_fields["empty_captions"].default
    captions = {}
    for name, one in (("videos", survey), ("queries", of_queries)):
        if one is not None and one.count - one.captioned > most * one.count:
            why = f"{one.count - one.captioned} of {one.count} {name} have no caption: empty ones are used"
            captions["data.empty_captions"] = Value(1.0, why)
    return {
        "root": Value(root, "all tables, models and pages of this run; local or s3://"),
        "data.videos": Value(data),
        "data.scaler": Value("ffmpeg"),
        **captions,
        "queries.videos": Value(queries, where if queries is None else ""),
        "queries.sample": Value(sample if queries is None else None, "so many moving clips are provisional queries"),
        "evaluate.videos": Value(None, "held-out videos, neither data nor queries; without them no held-out loss"),
    }


def _geometry(survey: Survey, model: Target) -> dict[str, Value]:
    frames, height, width = geometry(survey, model)
    seconds = (frames - 1) / model.fps
    flow_height, flow_width = _flow(height, width)
    size = f"multiples of {model.step}, in the shape of the videos and no larger than they"
    if height * width > survey.area:
        size = f"multiples of {model.step}, at least {LEAST_SIDE}; the videos are smaller, and are enlarged"
    return {
        "data.frames": Value(
            frames, f"{model.temporal} n + 1; at {model.fps:g} a second a segment lasts {seconds:g} s"
        ),
        "data.fps": Value(model.fps),
        "data.height": Value(height, size),
        "data.width": Value(width),
        "motion.height": Value(flow_height, "working size of the flow, at least 128"),
        "motion.width": Value(flow_width),
    }


def _flow(height: int, width: int) -> tuple[int, int]:
    """The flow's working size: half the size of the clips where that is enough for RAFT, in their shape."""
    scale = max(0.5, 128 / min(height, width))
    return max(128, round(height * scale / 8) * 8), max(128, round(width * scale / 8) * 8)


def _machine(machine: Machine) -> dict[str, Value]:
    if not machine.gpus:
        actors = max(1, min(machine.cpus, machine.memory // ACTOR_MEMORY))
        return _pools(
            index_clips={"actors": min(2, actors), "cpus": 1, "batch": 16},
            estimate_motion={"actors": actors, "cpus": 1, "batch": 8},
            extract_features={"actors": actors, "cpus": 1, "batch": 8},
            finetune={"actors": 1, "cpus": 1},
            evaluate={"actors": actors, "cpus": 1, "batch": 4},
        )
    count, smallest = len(machine.gpus), min(machine.gpus)
    share = {"cpus": max(1, min(4, machine.cpus // count)), "gpus": 1}
    changes = _pools(
        index_clips={"actors": min(4, machine.cpus), "cpus": 1, "batch": 4},
        estimate_motion={"actors": count, **share, "batch": 8},
        extract_features={"actors": count, **share, "batch": 8},
        finetune={"actors": 1, **share},
        evaluate={"actors": count, **share, "batch": 8},
    )
    if smallest < LARGE_GPU:
        changes["finetune.lora_rank"] = Value(32, "adapters; every parameter needs a GPU of 80 GB")
    if smallest < MIDDLE_GPU:
        why = "a smaller geometry for attribution: the full one needs a GPU of 24 GB"
        changes |= {"attribution.height": Value(240, why), "attribution.width": Value(416)}
    return changes


def _pools(**pools: dict[str, int]) -> dict[str, Value]:
    return {f"resources.{stage}": Value(pool) for stage, pool in pools.items()} | {"resources.wait": Value(0)}


def edited(lines: list[str], changes: dict[str, Value]) -> list[str]:
    """The lines of a recipe with other values. A key that the recipe has in a comment comes out of it.

    Raises KeyError for a key that the recipe has in neither way.
    """
    rest = dict(changes)
    section, result = "", []
    for line in lines:
        match = re.fullmatch(r"( *)(?:# )?(\w+):(?: +(.*?))?( +#.*)?", line)
        if match is None:
            result.append(line)
            continue
        indent, name, value, comment = match.groups()
        if not indent and value is None:
            section = name
        change = rest.pop(f"{section}.{name}" if indent else name, None)
        if change is not None:
            line = f"{indent}{name}: {_written(change.value)}"
            why = f"# {change.why}" if change.why else (comment or "").strip()
            if why:
                column = match.start(4) + len(match[4]) - len(match[4].lstrip()) if comment else COMMENTS
                line = f"{line:<{max(column, len(line) + 3)}}{why}"
        result.append(line)
    if rest:
        raise KeyError(f"the recipe has no {', '.join(rest)}")
    return result


def _written(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False).strip().removesuffix("\n...")
