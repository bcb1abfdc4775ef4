"""Two experts by noise level: which is asked, which counts, and which a step of training changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.attribution import fingerprints
from pipeline.attribution.decomposition import LayeredGradient, layer
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.config import Finetune, Run, load
from pipeline.config.attribution import Setting
from pipeline.errors import ConfigError
from pipeline.models import trained_weights
from pipeline.models.adapters.wan22 import WanExperts
from pipeline.models.conditioning import split
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.models.schedule import Schedule
from pipeline.operations import in_use
from pipeline.projection import Projection
from pipeline.training import loop
from pipeline.training.training_set import ClipSet, EncodedClip
from tests.support import tiny_pipelines

FAMILY, HIGH, LOW = "wan2.2-a14b", 951.0, 751.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.folder(tmp_path_factory, FAMILY)


@pytest.fixture
def model(folder: Path) -> DiffusersModel:
    return tiny_pipelines.opened(folder, FAMILY)


def clip(model: DiffusersModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), np.uint8)
    latent, given = split(model.encode(frames, 8.0))
    return latent, {**given, **model.text("a ball rolls")}


# --- attribution ------------------------------------------------------------------------------------------------------


def test_a_setting_is_of_one_expert_alone(model: DiffusersModel) -> None:
    """Coordinates of the two are disjoint, so that features of times on both sides of the boundary have no more in
    common than chance gives."""
    latent, conditioning = clip(model)
    gradients = ProjectedGradients(model.trained, Projection("gaussian", 512, 0))
    settings = [Setting(timestep=t, mask="none") for t in (HIGH, 900.0, LOW, 700.0)]
    take_clip(gradients, model, settings, latent, conditioning, None, 0)
    features, norms = gradients.collect()
    gradients.close()
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    cosines = unit @ unit.T
    assert float(cosines[0, 1]) > 0.5, "two times of one expert have nothing in common"
    assert float(cosines[2, 3]) > 0.5
    assert float(cosines[:2, 2:].abs().max()) < 0.2, "the two experts share coordinates"
    assert float(norms.min()) > 0


def test_times_of_two_experts_cannot_share_a_batch(model: DiffusersModel) -> None:
    latent, conditioning = clip(model)
    both = {name: torch.stack([t, t]) for name, t in conditioning.items()}
    with pytest.raises(ValueError, match="two experts"):
        model.predict(torch.stack([latent, latent]), torch.tensor([HIGH, LOW]), both)


def test_layers_are_those_of_one_expert(model: DiffusersModel) -> None:
    assert layer("transformer_2.blocks.1.attn1.to_q.weight", model.transformers()) == "transformer_2.blocks.1"
    assert layer("transformer.proj_out.weight", model.transformers()) == "transformer.proj_out"
    gradient = LayeredGradient(model.trained, Projection("gaussian", 8, 0), layers=True)
    gradient.close()
    assert {"transformer.blocks.0", "transformer_2.blocks.0", "transformer_2.scale_shift_table"} <= set(gradient.names)


def test_experts_change_places_where_one_fits_the_device(model: DiffusersModel) -> None:
    """On a GPU the one that is not asked waits in main memory; here moves are written down and not made."""
    moved = []
    assert isinstance(model, WanExperts)
    for name, module in model.transformers().items():
        module.to = lambda place, name=name: moved.append((name, str(place)))  # type: ignore[method-assign, assignment]
    model.apart, model.device = True, torch.device("cuda")
    for name, module in model.transformers().items():
        model._bring(module, ())
        other = "transformer_2" if name == "transformer" else "transformer"
        assert moved[-2:] == [(other, "cpu"), (name, "cuda")], "both would be on the device"
    model.keep_on_device(["transformer"])
    assert moved[-2:] == [("transformer", "cuda"), ("transformer_2", "cpu")]
    count = len(moved)
    model._bring(model.transformers()["transformer"], ())
    assert len(moved) == count, "what is trained is moved while it is trained"


# --- what is refused --------------------------------------------------------------------------------------------------


def run_of(folder: Path, timesteps: tuple[float, ...], **changes: Any) -> Run:
    settings = [{"timestep": t, "mask": mask} for t in timesteps for mask in ("motion", "none")]
    values = {"model.id": str(folder), "model.text_tokens": 16, "motion.of": "all", "attribution.settings": settings}
    return load("demo", {**values, **changes})


def test_settings_on_both_sides_of_the_boundary_are_right(folder: Path) -> None:
    fingerprints.check_times(run_of(folder, (LOW, HIGH)))


@pytest.mark.parametrize(
    ("timesteps", "changes", "says"),
    [
        ((LOW,), {}, r"none asks the high-noise expert .*transformer, times 875 to 1000.*'\^transformer_2\\\\.'"),
        ((HIGH,), {}, r"none asks the low-noise expert"),
        ((LOW, HIGH), {"attribution.parameters": r"^transformer\."}, "finds nothing in the low-noise expert"),
    ],
)
def test_an_expert_that_nobody_asks_is_named(
    folder: Path, timesteps: tuple[float, ...], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fingerprints.check_times(run_of(folder, timesteps, **changes))


def test_one_expert_alone_may_count(folder: Path) -> None:
    fingerprints.check_times(run_of(folder, (LOW,), **{"attribution.parameters": r"^transformer_2\."}))


def test_a_model_with_one_transformer_has_no_experts_to_name() -> None:
    with pytest.raises(ConfigError, match=r"finetune.expert='high': Wan 2.1 .* one transformer"):
        fingerprints.check_times(load("demo", {"finetune.expert": "high"}))


def test_times_between_indices_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_pipelines.folder(tmp_path_factory, "cogvideox-5b")
    with pytest.raises(ConfigError, match=r"attribution.settings.timestep=633.5.*use 633 or 634"):
        fingerprints.check_times(run_of(folder, (633.5,)))


# --- training ---------------------------------------------------------------------------------------------------------


def trained(model: DiffusersModel, config: Finetune, seed: int = 0) -> tuple[loop.Training, list[str]]:
    """A training, and the expert of every step."""
    latent, conditioning = clip(model)
    encoded = EncodedClip({"latent": latent}, (conditioning,))
    clips = ClipSet(model, [{"clip_id": "a"}], lambda row: encoded)
    training, experts = loop.begin(model, config, seed), []
    lines = loop.train(training, clips, config, seed)
    for _ in range(config.steps):
        experts.append(loop.expert_of_step(training, seed, training.step).name)
        next(lines)
    return training, experts


def weights(model: DiffusersModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.trained.named_parameters()}


def test_a_step_trains_one_expert_and_leaves_the_other_as_it_is(model: DiffusersModel) -> None:
    latent, conditioning = clip(model)
    clips = ClipSet(model, [{"clip_id": "a"}], lambda row: EncodedClip({"latent": latent}, (conditioning,)))
    config = Finetune(steps=12, learning_rate=1e-3, weight_decay=0.1)
    training, before, seen = loop.begin(model, config, 0), weights(model), set()
    lines = loop.train(training, clips, config, 0)
    for _ in range(config.steps):
        part = loop.expert_of_step(training, 0, training.step).part
        next(lines)
        after = weights(model)
        moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
        assert moved == {part}, f"a step of {part} changed {moved}"
        before = after
        seen.add(part)
    assert seen == {"transformer", "transformer_2"}


def test_experts_are_drawn_as_often_as_training_times_fall_to_them(model: DiffusersModel) -> None:
    """At a shift of 3, 30 % of the times are above 875."""
    training = loop.begin(model, Finetune(), 0)
    drawn = [loop.expert_of_step(training, 7, step).name for step in range(2000)]
    assert drawn.count("high") / 2000 == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 7.0])
@pytest.mark.parametrize("boundary", [875.0, 900.0])
def test_no_time_of_an_expert_is_rounded_to_the_others(shift: float, boundary: float) -> None:
    """The first and last numbers that a generator may give are at the very ends of an interval."""
    schedule = Schedule("flow", shift=shift)
    ends = torch.tensor([0.0, 1e-9, 5e-8, 1e-7, 1 - 2**-24, 1 - 2**-23])
    for interval in ((boundary, 1000.0), (0.0, boundary)):
        for timestep in schedule.times(ends, within=interval).tolist():
            assert interval[0] <= timestep < interval[1] + (interval[1] == 1000.0), (interval, timestep)


@pytest.mark.parametrize(("expert", "part"), [("high", "transformer"), ("low", "transformer_2")])
@pytest.mark.parametrize("rank", [None, 2])
def test_one_expert_alone_is_trained_written_and_loaded(
    model: DiffusersModel, folder: Path, tmp_path: Path, expert: str, part: str, rank: int | None
) -> None:
    before = weights(model)
    config = Finetune(steps=2, expert=expert, learning_rate=1e-2, lora_rank=rank)  # type: ignore[arg-type]
    training, experts = trained(model, config)
    assert experts == [expert] * 2
    assert {name.split(".")[0] for name in training.parameters} == {part}
    reached = {id(parameter) for parameter in training.objective.parameters()}
    assert reached == {id(p) for p in model.transformers()[part].parameters()}, "DDP wants all of them on one device"
    loop.save_weights(training, str(tmp_path))
    name = {"transformer": "pytorch_lora_weights.safetensors"}.get(part, f"pytorch_lora_weights_{part}.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == [part if rank is None else name]
    assert in_use.weights_hash(str(tmp_path))
    fresh = tiny_pipelines.opened(folder, FAMILY)
    trained_weights.load_weights(fresh, str(tmp_path), merge=True)
    after = weights(fresh)
    moved = {n.split(".")[0] for n in before if not torch.equal(after[n], before[n])}
    assert moved == {part}, "another expert than the trained one was loaded"
