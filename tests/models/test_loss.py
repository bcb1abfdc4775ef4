"""The loss and the shared noise."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from pipeline.models import Conditioning
from pipeline.models.loss import loss_map, masked_mean, motion_weights, own_noise, shared_noise
from pipeline.models.schedule import Schedule
from pipeline.projection.philox import Tag, gaussian

RECORDED = [0.05991104, 0.01555963, -1.43146300, 1.67071688, -1.16443849, -0.13264713, -0.40272397, -1.29564202]


class Linear:
    """A video model of one linear layer over the channels, whose loss can be written down by hand."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.trained = nn.Linear(4, 4)

        self.schedule, self.given = Schedule(), 0

    def counted(self, frames: int) -> Tensor | None:
        return torch.cat([torch.zeros(self.given), torch.ones(frames - self.given)]) if self.given else None

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.trained(noisy.movedim(1, -1)).movedim(-1, 1) + conditioning["text"].mean()


@pytest.fixture
def errors() -> Tensor:
    return torch.rand(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))


def test_a_mask_of_ones_gives_the_plain_loss_exactly(errors: Tensor) -> None:
    assert torch.equal(masked_mean(errors, torch.ones_like(errors)), masked_mean(errors, None)), (
        "with W = 1 the motion loss is not the loss that fine-tuning uses"
    )


def test_a_masked_loss_counts_masked_places_alone_and_divides_by_all(errors: Tensor) -> None:
    mask = torch.zeros_like(errors)
    mask[:, 2, 1, 3] = 0.5
    assert torch.isclose(masked_mean(errors, mask), 0.5 * errors[:, 2, 1, 3].sum() / errors.numel())
    errors[:, 0] = 1e6
    assert masked_mean(errors, mask) < 1, "what the mask leaves out reaches the loss"


@pytest.mark.parametrize("t", [1.0, 251.0, 751.0, 999.0])
def test_the_loss_map_is_the_formula_of_the_paper(t: float) -> None:
    model, generator = Linear(), torch.Generator().manual_seed(1)
    latent, noise = (torch.randn(2, 4, 3, 2, 5, generator=generator) for _ in range(2))
    text = torch.randn(2, 7, 3, generator=generator)
    losses = loss_map(model, latent, {"text": text}, torch.full((2,), t), noise)  # type: ignore[arg-type]
    weight, bias, s = model.trained.weight, model.trained.bias, t / 1000
    for b, f, y, x in ((0, 0, 0, 0), (1, 2, 1, 4), (0, 1, 1, 2)):
        h, eps = latent[b, :, f, y, x], noise[b, :, f, y, x]
        predicted = weight @ ((1 - s) * h + s * eps) + bias + text.mean()
        expected = ((predicted - (eps - h)) ** 2).mean()
        assert torch.isclose(losses[b, f, y, x], expected, rtol=1e-5), (
            f"t={t}: not |f(z) - (eps - h)|^2 at {b, f, y, x}"
        )
    assert losses.shape == (2, 3, 2, 5)


def test_each_clip_of_a_batch_has_its_own_timestep() -> None:
    model, generator = Linear(), torch.Generator().manual_seed(1)
    latent, noise = (torch.randn(2, 4, 3, 2, 5, generator=generator) for _ in range(2))
    text, t = torch.zeros(2, 1, 1), torch.tensor([100.0, 900.0])
    together = loss_map(model, latent, {"text": text}, t, noise)  # type: ignore[arg-type]
    for i in range(2):
        alone = loss_map(model, latent[i : i + 1], {"text": text[i : i + 1]}, t[i : i + 1], noise[i : i + 1])  # type: ignore[arg-type]
        assert torch.allclose(together[i], alone[0], atol=1e-6), "a clip is noised at another clip's timestep"


def test_latent_frames_that_are_given_have_no_error_and_the_mean_is_over_the_others() -> None:
    model, generator = Linear(), torch.Generator().manual_seed(1)
    latent, noise = (torch.randn(2, 4, 5, 2, 5, generator=generator) for _ in range(2))
    text, t = torch.zeros(2, 1, 1), torch.tensor([100.0, 900.0])
    plain = loss_map(model, latent, {"text": text}, t, noise)  # type: ignore[arg-type]
    model.given = 2
    errors = loss_map(model, latent, {"text": text}, t, noise)  # type: ignore[arg-type]
    assert not errors[:, :2].any(), "a frame that is given counts"
    assert torch.isclose(errors.mean(), plain[:, 2:].mean())


def test_a_shorter_clip_has_a_prefix_of_a_longer_ones_noise() -> None:
    long = shared_noise(3, 1, (8, 21, 4, 6))
    for frames in (1, 5, 20):
        assert torch.equal(shared_noise(3, 1, (8, frames, 4, 6)), long[:, :frames]), "clips of two lengths differ"


def test_the_noise_is_standard_normal_and_independent_over_frames_and_indices() -> None:
    noise = shared_noise(0, 0, (16, 8, 32, 32)).double()
    n = noise.numel()
    assert abs(noise.mean()) < 5 / n**0.5, "the noise has a mean"
    assert abs(noise.var() - 1) < 5 * (2 / n) ** 0.5, "the noise has another variance than one"
    assert abs((noise**4).mean() - 3) < 5 * (96 / n) ** 0.5, "the noise is not normal"
    rows = torch.stack(
        [
            *noise.transpose(0, 1).reshape(8, -1),
            shared_noise(0, 1, (16, 1, 32, 32)).double().reshape(-1),
            shared_noise(1, 0, (16, 1, 32, 32)).double().reshape(-1),
            shared_noise(1, 1, (16, 1, 32, 32)).double().reshape(-1),
        ]
    )
    related = torch.corrcoef(rows).fill_diagonal_(0).abs().max()
    assert related < 5 / rows.shape[1] ** 0.5, f"two frames, indices or seeds share noise (correlation {related:.3f})"


def test_the_noise_is_the_same_in_another_process() -> None:
    code = """
import torch
from pipeline.models.loss import shared_noise
torch.manual_seed(12345); torch.rand(7)
print(shared_noise(7, 2, (4, 3, 5, 6)).numpy().tobytes().hex())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    torch.rand(3)
    assert printed.strip() == shared_noise(7, 2, (4, 3, 5, 6)).numpy().tobytes().hex(), (
        "two actors draw different noise"
    )


def test_noise_values_do_not_change_between_releases() -> None:
    """Recorded when written. NumPy does not promise its normal numbers to later versions, and with other noise the
    features of an old table are not comparable with new ones: raise config.NUMERICS then."""
    noise = shared_noise(0, 0, (2, 2, 1, 2)).flatten()
    assert torch.allclose(noise, torch.tensor(RECORDED), atol=1e-6), f"the shared noise has changed: {noise.tolist()}"


def test_the_noise_is_unrelated_to_the_projection_of_the_same_seed() -> None:
    """Both come from Philox with the same seed as key; a correlation would tie the features to the noise."""
    noise = shared_noise(0, 0, (8, 1, 32, 32)).double().reshape(-1)
    for rows in gaussian(0, 16, 0, noise.numel(), "cpu", Tag.GAUSSIAN).double().T:
        related = torch.corrcoef(torch.stack([noise, rows]))[0, 1].abs()
        assert related < 5 / noise.numel() ** 0.5, f"noise and projection are the same numbers ({related:.3f})"


def test_a_clips_own_noise_belongs_to_its_name_and_index_alone() -> None:
    shape, keys = (16, 1, 32, 32), [("a", 0), ("a", 1), ("b", 0), ("a 1", 0)]
    torch.manual_seed(12345)
    noises = [own_noise(*key, shape) for key in keys]
    assert [torch.equal(a, own_noise(*key, shape)) for a, key in zip(noises, keys, strict=True)] == [True] * 4
    related = torch.corrcoef(torch.stack([n.double().flatten() for n in noises])).fill_diagonal_(0).abs().max()
    assert related < 5 / noises[0].numel() ** 0.5, f"two clips or indices share noise (correlation {related:.3f})"


def test_motion_weights_have_mean_one_and_follow_what_changes() -> None:
    latent = torch.zeros(2, 4, 5, 3, 3)
    latent[0, :, 3:, 1, 1] = 2.0  # one place changes once
    weights = motion_weights(latent, 3.0)
    assert weights.shape == (2, 5, 3, 3)
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(2))
    assert weights[0, 3, 1, 1] == weights[0].max() > 10 * weights[0, 0, 0, 0]
    assert torch.equal(weights[1], torch.ones(5, 3, 3)), "a still clip trains as under the plain loss"
    assert torch.allclose(motion_weights(latent, 0.0), torch.ones(2, 5, 3, 3))
    assert torch.equal(motion_weights(latent[:, :, :1], 3.0), torch.ones(2, 1, 3, 3))
    assert torch.allclose(motion_weights(100 * latent, 3.0), weights), "the size of the latents counts"
