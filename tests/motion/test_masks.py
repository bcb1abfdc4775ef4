"""Flow, camera motion and the mask, against the world's exact flow and formulas written out by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from jobs.weights import flow as flow_weights
from pipeline import models
from pipeline.config import Motion, load
from pipeline.errors import ConfigError
from pipeline.models import Grid
from pipeline.motion import (
    camera_motion,
    camera_share,
    decode_mask,
    encode_mask,
    estimate,
    load_raft,
    mask_energy,
    motion_mask,
    moving_region,
    statistics,
)
from pipeline.motion.worker import MotionWorker
from pipeline.synthetic import world

CPU = torch.device("cpu")
PLAIN = Motion(still=0.1, height=128, width=128)


def exact(scene: world.Scene, size: int = 32, scale: int = 1) -> Tensor:
    """The world's flow as RAFT would give it: [F-1, 2, h, w], at `scale` times the size."""
    flow = torch.from_numpy(world.flow(scene, size, size)).permute(0, 3, 1, 2) * scale
    return F.interpolate(flow, scale_factor=scale, mode="nearest") if scale > 1 else flow


def by_hand(flow: Tensor, latent: tuple[int, int, int], stride: int) -> npt.NDArray[np.float64]:
    """The paper's mask in plain loops."""
    magnitude = np.hypot(flow[:, 0].double().numpy(), flow[:, 1].double().numpy())
    low, high = magnitude.min(), magnitude.max()
    pixel = [(m - low) / (high - low + 1e-6) for m in magnitude]
    pixel.append(pixel[-1])
    frames, height, width = latent
    rows, columns = flow.shape[2] // height, flow.shape[3] // width
    mask = np.zeros(latent)
    for j in range(frames):
        members = [0] if j == 0 else range(stride * (j - 1) + 1, stride * j + 1)
        for y in range(height):
            for x in range(width):
                cut = slice(y * rows, (y + 1) * rows), slice(x * columns, (x + 1) * columns)
                mask[j, y, x] = np.mean([pixel[f][cut].mean() for f in members])
    return mask


def grid_of(frames: int, height: int, width: int, stride: int) -> Grid:
    """A latent grid whose frames after the first are of `stride` pixel frames each."""
    return Grid((1, *[stride] * (frames - 1)), height, width)


# --- what a grid keeps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 4])
def test_a_grid_keeps_all_of_what_fills_its_cells_and_little_of_what_is_smaller(stride: int) -> None:
    frames, latent = 9, 8 // stride + 1
    filling, small = torch.zeros(frames - 1, 2, 32, 32), torch.zeros(frames - 1, 2, 32, 32)
    filling[:, 0, 8:16, 8:16] = 5
    small[:, 0, 8, 8] = 5
    whole = mask_energy(filling, PLAIN, grid_of(latent, 4, 4, stride))
    assert whole == (pytest.approx(1, abs=1e-5), latent)
    spread = mask_energy(small, PLAIN, grid_of(latent, 4, 4, stride))
    assert spread == (pytest.approx(1 / 64, rel=1e-4), latent), "a pixel in a cell of 64"
    assert mask_energy(torch.zeros(frames - 1, 2, 32, 32), PLAIN, grid_of(latent, 4, 4, stride)) is None


# --- the mask --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "stride", "grid"), [(9, 2, (5, 8, 8)), (9, 4, (3, 8, 8)), (13, 4, (4, 4, 16))])
@pytest.mark.parametrize(("motion", "drift"), [("spin", (0.0, 0.0)), ("explode", (0.0, 0.0)), ("explode", (4.0, -3.0))])
def test_the_mask_is_the_formula_of_the_paper(
    frames: int, stride: int, grid: tuple[int, int, int], motion: str, drift: tuple[float, float]
) -> None:
    flow = exact(world.scene(0, "x", "real", motion, frames)) + torch.tensor(drift).view(1, 2, 1, 1)
    mask = motion_mask(flow, PLAIN, grid_of(*grid, stride))
    assert mask is not None
    assert mask.shape == grid
    assert np.abs(mask.double().numpy() - by_hand(flow, grid, stride)).max() < 1e-5, "not the mask of the paper"
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1


@pytest.mark.parametrize(("frames", "stride"), [(9, 2), (9, 4), (17, 4), (13, 1)])
def test_a_latent_frame_pools_the_pixel_frames_that_fold_into_it(frames: int, stride: int) -> None:
    """Flow in one pixel frame alone: only the latent frame that holds it may have a mask."""
    latent_frames = (frames - 1) // stride + 1
    for moving in range(frames - 1):
        flow = torch.zeros(frames - 1, 2, 32, 32)
        flow[moving, 0, 8:16, 8:16] = 5
        mask = motion_mask(flow, PLAIN, grid_of(latent_frames, 4, 4, stride))
        assert mask is not None
        holders = {
            0 if f == 0 else (f - 1) // stride + 1 for f in {moving, frames - 1 if moving == frames - 2 else moving}
        }
        masked_frames = {j for j in range(latent_frames) if mask[j].any()}
        assert masked_frames == holders, (
            f"pixel frame {moving} (stride {stride}) is in the mask of latent frames {masked_frames}"
        )
        share = 1.0 if moving == 0 else (2 if moving == frames - 2 and stride > 1 else 1) / stride
        assert torch.allclose(mask[max(masked_frames), 1, 1], torch.tensor(share), atol=1e-5), "frames are not averaged"
        assert int((mask > 0).sum()) == len(masked_frames), "the mask is at another place than the motion"


def test_the_last_frame_repeats_the_flow_before_it() -> None:
    flow = torch.zeros(4, 2, 16, 16)
    flow[3, 1, :8] = 3
    mask = motion_mask(flow, PLAIN, grid_of(5, 2, 2, 1))
    assert mask is not None
    assert torch.equal(mask[4], mask[3])
    assert not mask[:3].any()


def test_a_mask_does_not_depend_on_the_flows_scale_or_direction() -> None:
    flow = exact(world.scene(0, "x", "real", "roll"))
    mask, other = (motion_mask(f, PLAIN, grid_of(5, 8, 8, 2)) for f in (flow, -3 * flow.flip(1)))
    assert mask is not None
    assert other is not None
    assert torch.allclose(mask, other, atol=1e-5)


def test_clips_without_motion_have_no_mask() -> None:
    for name, flow in {
        "zero": torch.zeros(8, 2, 32, 32),
        "a uniform pan": torch.ones(8, 2, 32, 32) * 4,
        "the noise of a flow model": 0.02 * torch.randn(8, 2, 32, 32, generator=torch.Generator().manual_seed(0)),
        "a still scene": exact(world.scene(0, "x", "still")),
    }.items():
        assert motion_mask(flow, PLAIN, grid_of(5, 8, 8, 2)) is None, f"{name} has a motion mask"
        assert motion_mask(flow, PLAIN.model_copy(update={"normalise": "quantile"}), grid_of(5, 8, 8, 2)) is None, name
    zero = PLAIN.model_copy(update={"still": 0.0})
    assert motion_mask(torch.ones(8, 2, 32, 32), zero, grid_of(5, 8, 8, 2)) is None, "still: 0 divides by zero"


def test_still_is_the_least_span_of_the_flow() -> None:
    flow = torch.zeros(8, 2, 32, 32)
    flow[:, 0, :16] = 0.3
    assert motion_mask(flow, PLAIN.model_copy(update={"still": 0.31}), grid_of(5, 8, 8, 2)) is None
    assert motion_mask(flow, PLAIN.model_copy(update={"still": 0.29}), grid_of(5, 8, 8, 2)) is not None


def test_quantile_normalisation_resists_a_spike() -> None:
    flow = exact(world.scene(0, "x", "real", "slide"))
    spiked = flow.clone()
    spiked[3, :, 0, 0] = 100
    robust = PLAIN.model_copy(update={"normalise": "quantile", "quantile": 0.99})
    with_spike, without = (motion_mask(f, robust, grid_of(5, 8, 8, 2)) for f in (spiked, flow))
    flattened = motion_mask(spiked, PLAIN, grid_of(5, 8, 8, 2))
    assert with_spike is not None
    assert without is not None
    assert flattened is not None
    spared = with_spike[:, 1:, 1:], without[:, 1:, 1:]
    assert torch.allclose(*spared, atol=0.02), "one spike changes the whole mask"
    assert float(with_spike.max()) <= 1, "what lies above the quantile is not cut off"
    assert float(flattened[:, 1:, 1:].max()) < 0.1, "this spike is too small to be a test"


def test_masks_survive_their_encoding() -> None:
    mask = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0))
    mask[0, 0, 0], mask[0, 0, 1] = 0, 1
    data = encode_mask(mask)
    assert len(data) == mask.numel()
    again = decode_mask(data, [5, 7, 3])
    assert (again - mask).abs().max() <= 1 / 510 + 1e-6, "a mask changes by more than rounding"
    assert again[0, 0, 0] == 0
    assert again[0, 0, 1] == 1
    assert encode_mask(again) == data, "encoding a decoded mask changes it"


def test_statistics_are_mean_and_95th_percentile_of_the_magnitude() -> None:
    flow = exact(world.scene(0, "x", "real", "swing"))
    magnitude = np.hypot(flow[:, 0].numpy(), flow[:, 1].numpy())
    assert np.allclose(statistics(flow), (magnitude.mean(), np.percentile(magnitude, 95)), atol=1e-5)


# --- camera ----------------------------------------------------------------------------------------------------------


def affine(seed: int, pairs: int = 4, height: int = 32, width: int = 48) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y]).reshape(3, -1)
    values = torch.randn(pairs, 2, 3, generator=torch.Generator().manual_seed(seed)) * 3
    return (values @ basis).reshape(pairs, 2, height, width)


@pytest.mark.parametrize("seed", range(3))
def test_an_affine_camera_is_recovered_exactly(seed: int) -> None:
    flow = affine(seed)
    error = (camera_motion(flow) - flow).abs().max()
    assert error < 1e-3, f"an affine flow is off by {error:.4f} pixels"
    assert camera_share(flow, camera_motion(flow)) > 0.999


@pytest.mark.parametrize("seed", range(3))
def test_a_moving_object_of_30_per_cent_does_not_move_the_camera(seed: int) -> None:
    camera = affine(seed)
    flow = camera.clone()
    flow[:, 0, 6:24, 10:36] += 6.0  # 468 of 1536 pixels
    flow[:, 1, 6:24, 10:36] -= 4.0
    camera_estimate = camera_motion(flow)
    error = (camera_estimate - camera).norm(dim=1)
    assert float(error.mean()) < 0.1, f"the object drags the camera by {float(error.mean()):.2f} pixels"
    still = torch.zeros(4, 32, 48, dtype=torch.bool)
    still[:, 6:24, 10:36] = True
    left = (flow - camera_estimate).norm(dim=1)
    assert float(left[~still].mean()) < 0.1, "camera motion is left after subtraction"
    assert float(left[still].mean()) > 6.5, "the object's motion is subtracted as well"


def test_the_camera_of_the_world_is_found_behind_a_moving_body() -> None:
    """An object that moves by itself under a panning camera: subtraction leaves the mask of a resting camera."""
    moving = world.scene(3, "y", "real", "spin", pan=1.0)
    flow = exact(moving, 64)
    rest = flow - camera_motion(flow)
    body = exact(world.scene(3, "y", "real", "spin", pan=0.0), 64).norm(dim=1) > 0
    ground = ~body & ~(rest.norm(dim=1) > 0.3)
    assert float(flow.norm(dim=1)[ground].mean()) > 0.3, "this camera does not move"
    assert float(rest.norm(dim=1)[ground].mean()) < 0.02
    assert float(ground.float().mean()) > 0.5


def test_the_cameras_share_is_between_zero_and_one() -> None:
    assert camera_share(torch.zeros(3, 2, 8, 8), torch.zeros(3, 2, 8, 8)) == 0.0
    noise = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for camera in (noise, -noise, 100 * noise, camera_motion(noise)):
        assert 0 <= camera_share(noise, camera) <= 1
    shares = {}
    for kind, motion in (("camera", ""), ("real", "slide"), ("still", "")):
        flow = exact(world.scene(1, "x", kind, motion, pan=0.0))
        shares[kind] = camera_share(flow, camera_motion(flow))
    assert shares["camera"] > 0.99, "a camera clip's motion is not ascribed to the camera"
    assert shares["real"] < 0.05, "an object's motion is ascribed to the camera"
    assert shares["still"] == 0


# --- RAFT with the shipped weights -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raft() -> nn.Module:
    torch.set_num_threads(1)
    return load_raft(load("demo").motion, CPU)


def test_the_shipped_flow_model_sees_motion(raft: nn.Module) -> None:
    judged = flow_weights.judge(raft, load("demo").motion.updates, 16)
    raft.eval()
    assert judged["no_motion"] > 2.5, f"the held-out pairs hardly move: {judged}"
    assert judged["end_point_error"] < 1.0, f"pipeline/weights/raft_small_world.safetensors is too weak: {judged}"


def test_masks_of_the_estimated_flow_are_those_of_the_exact_flow(raft: nn.Module) -> None:
    config = load("demo").motion
    related = []
    for motion in world.MOTIONS:
        scene = world.scene(1_000_003, f"demo-{motion}", "real", motion, pan=0.0)
        estimated = estimate(world.render(scene, 32, 32), raft, config, CPU)
        masks = [motion_mask(f, config, grid_of(5, 8, 8, 2)) for f in (estimated, exact(scene, 32, 4))]
        if masks[1] is None:
            continue
        assert masks[0] is not None, f"{motion}: the estimated flow misses a motion"
        related.append(float(torch.corrcoef(torch.stack([m.flatten() for m in masks if m is not None]))[0, 1]))
    assert len(related) >= 8
    assert np.mean(related) > 0.8, f"masks of estimated and exact flow agree badly: {np.round(related, 2)}"


def test_still_clips_are_still_to_the_flow_model(raft: nn.Module) -> None:
    config = load("demo").motion
    for i in range(3):
        clip = world.render(world.scene(1_000_003, f"{i}", "still", frames=3), 32, 32)
        flow = estimate(clip, raft, config, CPU)
        assert flow.shape == (2, 2, 128, 128)
        assert motion_mask(flow, config, grid_of(2, 8, 8, 2)) is None, "a still clip has a motion mask"


def test_a_clips_flow_does_not_depend_on_how_pairs_are_batched(raft: nn.Module) -> None:
    clip = world.render(world.scene(0, "x", "real", "slide", frames=4), 32, 32)
    config = load("demo").motion
    whole = estimate(clip, raft, config, CPU)
    for batch in (1, 2):
        again = estimate(clip, raft, config.model_copy(update={"batch": batch}), CPU)
        assert torch.allclose(again, whole, atol=1e-3), f"batch {batch} changes the flow"
    alone = estimate(clip[1:3], raft, config, CPU)
    assert torch.allclose(alone[0], whole[1], atol=1e-3), "pairs are not those of neighbouring frames"


def test_flow_weights_that_are_not_there_are_refused() -> None:
    config = load("demo").motion
    with pytest.raises(ConfigError, match=r"motion\.weights='/no/such.*default"):
        load_raft(config.model_copy(update={"weights": "/no/such.safetensors"}), CPU)
    with pytest.raises(
        ConfigError, match=r"no weights of motion\.flow=raft_large: of .* the file lacks .*such as"
    ) as refused:
        load_raft(config.model_copy(update={"flow": "raft_large"}), CPU)
    assert len(str(refused.value)) < 500


def test_flow_weights_of_other_shapes_are_refused(raft: nn.Module, tmp_path: Path) -> None:
    path, state = tmp_path / "weights.safetensors", raft.state_dict()
    name = next(iter(state))
    save_file({**state, name: torch.zeros(2, 3)}, path)
    with pytest.raises(ConfigError, match=rf"{re.escape(name)} has the shape \[2, 3\] and not \["):
        load_raft(load("demo").motion.model_copy(update={"weights": str(path)}), CPU)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"no weights", None], ids=["empty", "something else", "cut off"])
def test_flow_weights_that_are_damaged_are_refused_in_one_paragraph(
    raft: nn.Module, tmp_path: Path, content: bytes | None, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    save: Any = save_file if suffix == ".safetensors" else torch.save
    save(raft.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(ConfigError, match=r"motion\.weights='.*this file cannot be read .*Give a whole ") as refused:
        load_raft(load("demo").motion.model_copy(update={"weights": str(path)}), CPU)
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)


def test_a_file_of_other_things_than_named_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for content in ([1, 2], {1: torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(ConfigError, match=r"no weights of motion\.flow"):
            load_raft(load("demo").motion.model_copy(update={"weights": str(path)}), CPU)


def test_flow_weights_that_were_saved_on_a_gpu_are_read_on_a_cpu(
    raft: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    with monkeypatch.context() as saving:
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(raft.state_dict(), path)
    again = load_raft(load("demo").motion.model_copy(update={"weights": str(path)}), CPU)
    for name, value in raft.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_outside_what_is_kept_the_mask_is_zero_and_inside_it_spans_its_own_motion() -> None:
    flow = torch.zeros(8, 2, 16, 16)
    flow[:, 0, 2:6, 2:6] = 2.0  # slow, at the upper left
    flow[:, 0, 10:14, 10:14] = 8.0  # fast, at the lower right
    keep = torch.zeros(9, 16, 16, dtype=torch.bool)
    keep[3:7, :8, :8] = True
    grid = grid_of(3, 8, 8, 4)
    mask = motion_mask(flow, PLAIN, grid, keep)
    assert mask is not None
    assert float(mask[:, 4:].abs().sum() + mask[:, :, 4:].abs().sum()) == 0.0
    assert float(mask[0].abs().sum()) == 0.0, "the first latent frame is a frame before the part"
    assert float(mask[1, 1:3, 1:3].min()) == pytest.approx(0.5), "frames 3 and 4 of 1 to 4"
    whole = motion_mask(flow, PLAIN, grid)
    assert whole is not None
    assert float(whole[:, 1:3, 1:3].max()) == pytest.approx(0.25)
    assert torch.equal(motion_mask(flow, PLAIN, grid, torch.ones_like(keep)), whole)
    keep[:, 2:6, 2:6] = False
    assert motion_mask(flow, PLAIN, grid, keep) is None, "nothing moves inside"


def test_a_query_with_a_box_has_the_mask_and_movement_of_its_inside() -> None:
    run = load("demo", {"data.frames": 9})
    worker = MotionWorker(run, models.grid(run), 0.0, 1.0)
    frames = world.render(world.scene(5, "boxed", "real", world.MOTIONS[0]), 32, 32)[:9]
    row = {"clip_id": "q", "error": None}
    plain, whole, left = (
        worker.measure({**row, **box}, frames) for box in ({}, {"mask_box": "0,0,1,1"}, {"mask_box": "0,0,0.5,1"})
    )
    assert {**whole, "mask_box": None} == {**plain, "mask_box": None}
    mask = decode_mask(left["mask"], left["mask_shape"])
    assert left["error"] is None
    assert float(mask[..., mask.shape[-1] // 2 :].abs().sum()) == 0.0
    assert float(mask.sum()) > 0.0
    assert left["motion_mean"] == plain["motion_mean"]
    assert left["description"] != plain["description"]
    wrong = worker.measure({**row, "mask_box": "0,0,1"}, frames)
    assert wrong["error"].startswith("refused: mask_box='0,0,1'")
    assert wrong["mask"] is None


def test_the_moving_region_holds_all_that_moves_at_any_time_and_little_else() -> None:
    scene = world.scene(8, "a", "real", "roll", 9)
    flow = exact(scene, 64)
    moved = (flow.norm(dim=1) > 0).any(0)
    region = moving_region(flow, 64, 64)
    assert region.shape == (64, 64)
    assert (region[moved] > 0.5).float().mean() > 0.9
    assert (region > 0.5).float().mean() < 2.5 * moved.float().mean()
    assert moving_region(flow, 32, 48).shape == (32, 48)


def test_what_turns_about_its_centre_is_in_the_moving_region_with_its_centre() -> None:
    y, x = torch.meshgrid(torch.arange(64.0) - 32, torch.arange(64.0) - 32, indexing="ij")
    inside = (x.square() + y.square()) < 12**2
    flow = (torch.stack([-y, x]) * inside)[None].repeat(8, 1, 1, 1) / 12
    region = moving_region(flow, 64, 64)
    assert region[32, 32] == 1
    assert region[2, 2] == 0


def test_outside_what_is_kept_nothing_moves() -> None:
    flow, keep = torch.ones(8, 2, 64, 64), torch.zeros(9, 64, 64, dtype=torch.bool)
    keep[:, 20:40, 20:40] = True
    region = moving_region(flow, 64, 64, keep)
    assert region[30, 30] == 1
    assert region[5, 5] == 0
