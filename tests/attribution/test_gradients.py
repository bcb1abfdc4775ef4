"""Projected gradients against autograd and an explicit matrix."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from pipeline.attribution.gradients import ProjectedGradients, manifest, manifest_hash, passes, restrict, take_clip
from pipeline.config.attribution import Kind, Setting
from pipeline.errors import ConfigError
from pipeline.models.adapters.wan import Wan
from pipeline.models.conditioning import batched
from pipeline.models.loss import loss_map, masked_mean, shared_noise
from pipeline.projection import Projection
from tests.support import tiny_wan
from tests.support.oracle import project

BOTH = (Setting(mask="motion"), Setting(mask="none"))
DIM = 16
every_kind = pytest.mark.parametrize("kind", get_args(Kind))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.folder(tmp_path_factory)


@pytest.fixture
def wan(folder: Path) -> Wan:
    return tiny_wan.opened(folder)


def latent(seed: int, frames: int = 3) -> Tensor:
    return torch.randn(8, frames, 4, 4, generator=torch.Generator().manual_seed(seed))


def text(seed: int) -> dict[str, Tensor]:
    return {"text": torch.randn(6, 64, generator=torch.Generator().manual_seed(1000 + seed))}


def mask(seed: int) -> Tensor:
    return torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(2000 + seed))


def features(
    model: Wan, clips: list[int], hold: int = 1, settings: tuple[Setting, ...] = BOTH, kind: Kind = "gaussian"
) -> tuple[Tensor, Tensor]:
    gradients = ProjectedGradients(model.trained, Projection(kind, DIM, seed=4), hold)
    for i in clips:
        take_clip(gradients, model, settings, latent(i), text(i), mask(i), seed=0)
    features_and_norms = gradients.collect()
    gradients.close()
    return features_and_norms


def full_gradient(model: Wan, clip: int, setting: Setting) -> Tensor:
    """By autograd alone, in one vector over all parameters; zeros where there is none."""
    h = latent(clip)[None]
    noise = shared_noise(0, setting.noise, tuple(h.shape[1:]))[None]
    errors = loss_map(model, h, batched([text(clip)]), torch.tensor([setting.timestep]), noise)
    loss = masked_mean(errors, mask(clip)[None] if setting.mask == "motion" else None)
    parameters = list(model.trained.parameters())
    counted = [p for p in parameters if p.requires_grad]
    by_parameter = dict(zip(counted, torch.autograd.grad(loss, counted, allow_unused=True), strict=True))
    given = [by_parameter.get(p) for p in parameters]
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, given, strict=False)]
    )


def by_matrix(gradient: Tensor, kind: Kind = "gaussian") -> Tensor:
    """P g with every entry of P written out."""
    return project(kind, DIM, 4, gradient[None])[0]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return float((actual.double() - expected.double()).norm() / expected.double().norm()) < tolerance


# --- the projected gradient ------------------------------------------------------------------------------------------


@every_kind
def test_features_are_the_gradient_times_the_matrix(wan: Wan, kind: Kind) -> None:
    projected, norms = features(wan, [0, 1], kind=kind)
    for n, (clip, setting) in enumerate((c, s) for c in (0, 1) for s in BOTH):
        gradient = full_gradient(wan, clip, setting)
        assert close(projected[n], by_matrix(gradient, kind)), (
            f"clip {clip}, mask {setting.mask}: not P times the gradient"
        )
        assert abs(float(norms[n] / gradient.double().norm()) - 1) < 1e-6, "the norm is not the gradient's"


@pytest.mark.parametrize("hold", [2, 3, 4, 100])
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_holding_gradients_changes_no_bit(wan: Wan, kind: Kind, hold: int) -> None:
    one, several = features(wan, [0, 1, 2], kind=kind), features(wan, [0, 1, 2], hold, kind=kind)
    assert torch.equal(one[0], several[0]), f"hold={hold} gives other features than hold=1"
    assert torch.equal(one[1], several[1]), f"hold={hold} gives other norms than hold=1"


@pytest.mark.parametrize(("kind", "hold"), [*((kind, 1) for kind in get_args(Kind)), ("gaussian", 3)])
def test_features_do_not_depend_on_order_or_company(wan: Wan, kind: Kind, hold: int) -> None:
    forward, _ = features(wan, [0, 1, 2], hold, kind=kind)
    backward, _ = features(wan, [2, 1, 0], hold, kind=kind)
    assert torch.equal(forward.view(3, 2, -1), backward.view(3, 2, -1).flip(0)), "order changes a feature"
    alone, _ = features(wan, [1], hold, kind=kind)
    assert torch.equal(alone, forward[2:4]), "a clip's feature depends on the clips before it"


@pytest.mark.parametrize("hold", [1, 3])
def test_two_masks_from_one_forward_pass_are_two_separate_ones(wan: Wan, hold: int) -> None:
    together, _ = features(wan, [0, 1], hold)
    for s, setting in enumerate(BOTH):
        alone, _ = features(wan, [0, 1], hold, (setting,))
        assert torch.equal(together[s::2], alone), f"sharing a forward pass changes the gradient under {setting.mask}"
    assert not close(together[0], together[1], 0.1), "the mask has no effect on the gradient"


def test_settings_of_one_timestep_and_noise_share_a_pass() -> None:
    settings = [Setting(timestep=t, noise=n, mask=m) for t, n, m in ((1, 0, "motion"), (2, 0, "none"), (1, 0, "none"))]
    assert passes(settings) == [(1, 0, [0, 2]), (2, 0, [1])]


@pytest.mark.parametrize("hold", [1, 3])
def test_losses_are_told_by_setting_in_the_order_taken(wan: Wan, hold: int) -> None:
    """Two settings share a pass, so they are taken one after the other although another stands between them."""
    settings = (Setting(mask="motion"), Setting(timestep=251, mask="motion"), Setting(mask="none"))
    gradients = ProjectedGradients(wan.trained, Projection(dim=DIM, seed=4), hold)
    losses = take_clip(gradients, wan, settings, latent(0), text(0), mask(0), seed=0)
    assert list(losses) == [0, 2, 1]
    projected, _ = gradients.collect()
    gradients.close()
    for place, s in enumerate(losses):
        assert close(projected[place], by_matrix(full_gradient(wan, 0, settings[s]))), (
            f"setting {s} has another's feature"
        )


def test_a_still_clip_has_its_unmasked_gradient_only(wan: Wan) -> None:
    gradients = ProjectedGradients(wan.trained, Projection(dim=DIM, seed=4))
    losses = take_clip(gradients, wan, BOTH, latent(0), text(0), None, seed=0)
    projected, _ = gradients.collect()
    gradients.close()
    assert list(losses) == [1]
    assert torch.equal(projected, features(wan, [0], settings=BOTH[1:])[0])


def test_gradient_checkpointing_gives_the_same_gradient(wan: Wan) -> None:
    plain, norms = features(wan, [0, 1])
    wan.trained.enable_gradient_checkpointing()
    for hold in (1, 3):
        checkpointed, again = features(wan, [0, 1], hold)
        assert close(checkpointed, plain, 1e-6), "checkpointing changes features, also where a pass is shared"
        assert close(again, norms, 1e-6)


def test_every_parameter_reaches_the_feature(wan: Wan) -> None:
    """No parameter may be skipped: without any one of them the norm is smaller."""
    gradient = full_gradient(wan, 0, BOTH[1])
    silent = [p.name for p in manifest(wan.trained) if not gradient[slice_of(p.offset, p.shape)].any()]
    assert silent == [], f"this model is no test of {silent}"
    _, norms = features(wan, [0], settings=BOTH[1:])
    assert abs(float(norms[0] ** 2 / (gradient.double() ** 2).sum()) - 1) < 1e-5


def slice_of(offset: int, shape: tuple[int, ...]) -> slice:
    return slice(offset, offset + torch.Size(shape).numel())


def test_nothing_is_left_behind(wan: Wan) -> None:
    gradients = ProjectedGradients(wan.trained, Projection(dim=DIM))
    take_clip(gradients, wan, BOTH, latent(0), text(0), mask(0), seed=0)
    assert all(p.grad is None for p in wan.trained.parameters()), "gradients stay and mix with the next clip's"
    assert gradients.collect()[0].shape == (2, DIM)
    take_clip(gradients, wan, BOTH[:1], latent(1), text(1), mask(1), seed=0)
    assert gradients.collect()[0].shape == (1, DIM), "features of an earlier batch come again"
    gradients.close()
    loss_map(
        wan, latent(0)[None], batched([text(0)]), torch.tensor([751.0]), torch.randn(1, 8, 3, 4, 4)
    ).mean().backward()
    assert all(p.grad is not None for p in wan.trained.parameters()), "the hooks outlive close()"


class Branches(nn.Module):
    """Which parameter gets a gradient depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(40)), nn.Parameter(torch.randn(50))
        self.unused, self.shared = nn.Parameter(torch.randn(60)), nn.Parameter(torch.randn(50))

    def forward(self, which: str) -> Tensor:
        x = (self.first**2).sum() if which == "first" else (self.second**3 * self.shared).sum()
        return x + (self.shared**2).sum() if which != "alone" else (self.shared**2).sum()


@pytest.mark.parametrize("hold", [1, 2, 5])
def test_parameters_without_a_gradient_count_as_zeros(hold: int) -> None:
    torch.manual_seed(0)
    module = Branches()
    gradients = ProjectedGradients(module, Projection(dim=DIM, seed=4), hold)
    order = ("first", "second", "first", "alone", "second")
    for which in order:
        gradients.take(module(which))
    projected, norms = gradients.collect()
    gradients.close()
    parameters = list(module.parameters())
    for n, which in enumerate(order):
        given = torch.autograd.grad(module(which), parameters, allow_unused=True)
        full = torch.cat([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, given, strict=True)])
        assert close(projected[n], by_matrix(full)), f"loss {n} ({which}) has taken another loss's gradient"
        assert abs(float(norms[n] / full.double().norm()) - 1) < 1e-6


# --- which parameters, and where -------------------------------------------------------------------------------------


def test_restricted_parameters_keep_their_global_coordinates(wan: Wan) -> None:
    pattern = r"blocks\.1\.attn1"
    whole = {s.mask: full_gradient(wan, 0, s) for s in BOTH}
    count = restrict(wan.trained, pattern)
    counted = torch.zeros(len(whole["none"]), dtype=torch.bool)
    for p in manifest(wan.trained):
        counted[slice_of(p.offset, p.shape)] = "blocks.1.attn1" in p.name
    assert count == int(counted.sum()), "restrict counts other parameters than it names"
    for hold in (1, 3):
        projected, norms = features(wan, [0], hold)
        for s, setting in enumerate(BOTH):
            expected = whole[setting.mask] * counted
            assert close(projected[s], by_matrix(expected)), "a restricted parameter is projected at another coordinate"
            assert abs(float(norms[s] / expected.double().norm()) - 1) < 1e-5


def test_a_pattern_that_finds_nothing_is_refused_with_some_names(wan: Wan) -> None:
    with pytest.raises(ConfigError, match=r"'lora_A'.*called.*scale_shift_table"):
        restrict(wan.trained, "lora_A")


def test_the_manifest_is_in_named_order_without_gaps(wan: Wan) -> None:
    placed = manifest(wan.trained)
    end = 0
    for p, (name, parameter) in zip(placed, wan.trained.named_parameters(), strict=True):
        assert (p.name, p.shape, p.offset) == (name, tuple(parameter.shape), end), f"gap or overlap at {name}"
        end += parameter.numel()
    assert manifest_hash(placed) == manifest_hash(manifest(tiny_wan.small_transformer())), (
        "the same model, another hash"
    )
    assert manifest_hash(placed) != manifest_hash(placed[:-1])


def test_the_manifest_of_wan_1_3b() -> None:
    with torch.device("meta"):
        module = WanTransformer3DModel(
            num_layers=30,
            num_attention_heads=12,
            attention_head_dim=128,
            ffn_dim=8960,
            text_dim=4096,
            freq_dim=256,
            in_channels=16,
            out_channels=16,
            qk_norm="rms_norm_across_heads",
            cross_attn_norm=True,
        )
    placed = manifest(module)
    sizes = [torch.Size(p.shape).numel() for p in placed]
    assert sum(sizes) == 1_418_996_800, "the coordinates do not cover Wan2.1-T2V-1.3B"
    assert placed[-1].offset + sizes[-1] == 1_418_996_800
    assert len(placed) == 825
    assert max(sizes) == 14_155_776
    assert sum(isinstance(m, nn.Linear) for m in module.modules()) == 306
