"""Features of adapters alone: P g of them against autograd, and nothing else of a run changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline import config, models, tables
from pipeline.attribution import fingerprints
from pipeline.attribution.attributed_model import open_attributed
from pipeline.attribution.gradients import ProjectedGradients, manifest, restrict, take_clip
from pipeline.attribution.workers import AttributionWorker
from pipeline.config import Run
from pipeline.config.attribution import Setting
from pipeline.errors import ConfigError, FingerprintError
from pipeline.inputs import videos as video_manifest
from pipeline.models import Conditioning, VideoModel
from pipeline.models.conditioning import batched, split
from pipeline.models.loss import loss_map, masked_mean, shared_noise
from pipeline.operations import index_pilot
from pipeline.projection import Projection
from pipeline.stages import attribution, video_sets
from pipeline.tables import schemas
from pipeline.training import loop
from tests.support.oracle import project

CPU, DIM = torch.device("cpu"), 16
PLAIN = Setting(mask="none")


def demo(**values: object) -> Run:
    return config.load("demo", {key.replace("__", "."): value for key, value in values.items()})


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Those of the demo's model, moved from where they begin, as training writes them."""
    return written(tmp_path_factory.mktemp("warm-up"), 0.02)


def written(folder: Path, amount: float) -> str:
    training = loop.begin(models.open_model(demo().model, CPU), config.Finetune(lora_rank=4), 0)
    with torch.no_grad():
        for parameter in training.parameters.values():
            parameter.add_(amount)
    loop.save_weights(training, str(folder))
    return str(folder)


def clip(model: VideoModel) -> tuple[Tensor, Conditioning]:
    frames = torch.randint(0, 256, (9, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    latent, given = split(model.encode(frames.numpy(), 8.0))
    return latent, {**given, **model.text("a ball rolls")}


def feature(run: Run, hold: int = 1) -> tuple[Tensor, float]:
    """As a worker takes it."""
    model, host = open_attributed(run, CPU, [PLAIN])
    a = run.attribution
    restrict(model.trained, a.parameters, model.family.idle, adapters=a.lora is not None)
    gradients = ProjectedGradients(model.trained, Projection("gaussian", DIM, 4), hold, host)
    take_clip(gradients, model, [PLAIN], *clip(model), None, 0)
    features, norms = gradients.collect()
    gradients.close()
    return features[0], float(norms[0])


def by_autograd(run: Run, counts: Callable[[str], bool]) -> Tensor:
    """The whole gradient over a model's coordinates, zero where a parameter does not count."""
    model, _ = open_attributed(run, CPU, [PLAIN])
    latent, conditioning = clip(model)
    noise = shared_noise(0, 0, tuple(latent.shape))[None]
    parameters = dict(model.trained.named_parameters())
    counted = {name: p.requires_grad_() for name, p in parameters.items() if counts(name)}
    errors = loss_map(model, latent[None], batched([conditioning]), torch.tensor([PLAIN.timestep]), noise)
    gradients = dict(zip(counted, torch.autograd.grad(masked_mean(errors, None), list(counted.values())), strict=True))
    assert [placed.name for placed in manifest(model.trained)] == list(parameters)
    parts = [gradients[name] if name in gradients else torch.zeros_like(p) for name, p in parameters.items()]
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("pattern", [".*", "lora_B", r"^blocks\.0\."])
@pytest.mark.parametrize("hold", [1, 2])
def test_a_feature_is_the_projected_gradient_of_adapters_alone(adapters: str, pattern: str, hold: int) -> None:
    run = demo(attribution__lora=adapters, attribution__parameters=pattern)
    gradient = by_autograd(
        run,
        lambda name: (
            ".lora_" in name
            and ("lora_B" not in pattern or ".lora_B." in name)
            and (not pattern.startswith("^") or name.startswith("blocks.0."))
        ),
    )
    values, norm = feature(run, hold)
    assert gradient.any()
    assert norm == pytest.approx(float(gradient.norm()), rel=1e-5)
    expected = project("gaussian", DIM, 4, gradient[None])[0].float()
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_weights_in_main_memory_give_the_same_feature(adapters: str) -> None:
    run = demo(attribution__lora=adapters, model__gradient_checkpointing=True)
    on_host = demo(attribution__lora=adapters, model__gradient_checkpointing=True, attribution__blocks="host")
    assert torch.equal(feature(run)[0], feature(on_host)[0])


def test_adapters_do_not_change_what_is_without_them(adapters: str) -> None:
    """A run that names no adapters has the fingerprint that it had, and none of theirs enters that of another stage."""
    plain, over = demo(), demo(attribution__lora=adapters)
    assert "attribution.lora" not in fingerprints.features(plain)
    assert set(fingerprints.features(over)) - set(fingerprints.features(plain)) == {"attribution.lora"}
    assert fingerprints.motion(over) == fingerprints.motion(plain)
    assert fingerprints.evaluation(over) == fingerprints.evaluation(plain)


def test_features_of_other_adapters_are_never_mixed(adapters: str, tmp_path: Path) -> None:
    one, two = (
        fingerprints.features(demo(attribution__lora=folder))
        for folder in (adapters, written(tmp_path / "other", 0.03))
    )
    same = fingerprints.features(demo(attribution__lora=shutil.copytree(adapters, str(tmp_path / "copy"))))
    assert same == one, "the folder's name is part of the fingerprint"
    folder = str(tmp_path / "influence")
    tables.append(folder, pa.table({"clip_id": ["a"]}), one)
    for other in (two, fingerprints.features(demo())):
        with pytest.raises(FingerprintError, match=r"attribution\.lora"):
            tables.check(folder, other)


def test_a_pattern_that_finds_no_adapter_is_refused(adapters: str) -> None:
    run = demo(attribution__lora=adapters)
    model, _ = open_attributed(run, CPU, [PLAIN])
    with pytest.raises(ConfigError, match=r"'patch_embedding'.*adapters of attribution\.lora.*lora_A"):
        restrict(model.trained, "patch_embedding", None, adapters=True)


def test_a_wrong_folder_ends_a_job_before_it_starts(small_run: Callable[..., Run], tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", attribution__lora=str(tmp_path))
    with pytest.raises(ConfigError, match=r"^attribution\.lora=.*there are no adapters there"):
        attribution.check(run, "index_clips")
    assert not (tmp_path / "run").exists()


def test_adapters_on_promoted_weights(adapters: str, tmp_path: Path) -> None:
    """The merged weights are what the adapters then change."""
    merged = Path(written(tmp_path / "merged", 0.01))
    apart = open_attributed(demo(attribution__lora=adapters, attribution__weights=str(merged)), CPU, [PLAIN])[0]
    alone = open_attributed(demo(attribution__weights=str(merged)), CPU, [PLAIN])[0]
    of_module = dict(apart.trained.named_parameters())
    for name, parameter in alone.trained.named_parameters():
        module, _, kind = name.rpartition(".")
        loaded = of_module.get(name, of_module.get(f"{module}.base_layer.{kind}"))
        assert loaded is not None
        assert torch.equal(loaded, parameter), name


def test_a_worker_writes_features_of_adapters(small_run: Callable[..., Run], adapters: str, tmp_path: Path) -> None:
    tables_by_lora = {}
    for name, lora in (("base", None), ("adapters", adapters)):
        run = small_run(tmp_path / name, attribution__lora=lora)
        videos = video_manifest.of_set(video_sets.asked(run, "clips")).slice(0, 2).to_pylist()
        rows = index_pilot.index_videos(run, videos).clips
        worker = AttributionWorker(run, models.grid(run), fingerprints.features(run))
        tables_by_lora[name] = pa.concat_tables(
            [part["features"] for part in worker(pa.Table.from_pylist(rows, schema=schemas.CLIPS))]
        )
    base, over = tables_by_lora["base"], tables_by_lora["adapters"]
    assert base.schema == over.schema
    assert over.column("error").null_count == over.num_rows
    assert base.column("norm").to_pylist() != over.column("norm").to_pylist()
