"""Optical flow by RAFT, camera motion, and the motion mask on a model's latent grid."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import optical_flow

from pipeline.config import Motion
from pipeline.errors import ConfigError, first_line
from pipeline.models import Grid
from pipeline.models.device import DTYPES
from pipeline.motion.raft import clip_flow
from pipeline.storage import downloads, stores

REGION = 0.3  # of a clip's fast speed: what is slower than that stands still


def weights_file(config: Motion) -> Path | None:
    """The file with RAFT's weights, one at s3:// fetched once a machine; None where torchvision's own are meant, by
    name. Raises ConfigError for a file that is not there."""
    kinds = _kinds(config)
    if config.weights == "default" or config.weights in kinds.__members__:
        return None
    if config.weights.startswith(stores.S3):
        try:
            return downloads.local(config.weights)
        except OSError as error:
            raise ConfigError(f"motion.weights={config.weights!r}: this cannot be fetched ({error}).") from error
    if not Path(config.weights).is_file():
        raise ConfigError(
            f"motion.weights={config.weights!r}: this is neither a file nor a name of torchvision's weights of "
            f"{config.flow} (default, {', '.join(kinds.__members__)}); give a .safetensors or .pth file of it."
        )
    return Path(config.weights)


def _kinds(config: Motion) -> Any:
    return {"raft_large": optical_flow.Raft_Large_Weights, "raft_small": optical_flow.Raft_Small_Weights}[config.flow]


def load_raft(config: Motion, device: torch.device) -> nn.Module:
    """RAFT with the weights that `config` names: torchvision's official ones or a local file.

    Raises ConfigError for a file that cannot be read or that holds other weights.
    """
    path = weights_file(config)
    if path is None:
        return _official(config).to(device).eval()
    model = getattr(optical_flow, config.flow)(weights=None)
    state = _state(config, path)
    if fault := _unlike(state, model.state_dict()):
        raise ConfigError(
            f"motion.weights={config.weights!r}: these are no weights of motion.flow={config.flow}: {fault}. Give a "
            f"file of {config.flow}'s weights, or name the other motion.flow."
        )
    model.load_state_dict(state)
    return cast(nn.Module, model.to(device).eval())


def _unlike(state: Any, own: Mapping[str, Tensor]) -> str | None:
    """Why what a file holds is not a model's own tensors, as a clause; None where it is."""
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        return "the file holds something else than tensors by name"
    counted = {name for name in own if not name.endswith(".num_batches_tracked")}  # which PyTorch does without
    lacking, beyond = sorted(counted - state.keys()), sorted(map(str, state.keys() - own.keys()))
    if lacking or beyond:
        some = ", ".join([*lacking, *beyond][:2])
        return f"of {len(own)} tensors the file lacks {len(lacking)}, and it has {len(beyond)} others, such as {some}"
    for name in counted:
        if state[name].shape != own[name].shape:
            return f"{name} has the shape {list(state[name].shape)} and not {list(own[name].shape)}"
    return None


def _state(config: Motion, path: Path) -> Any:
    """What a file of weights holds, on the CPU. Raises ConfigError for one that cannot be read."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file either reader raises whatever its bytes lead to
        # PyTorch's own sentence says to load it without weights_only, which runs what stands in the file.
        reason = first_line(error) if isinstance(error, OSError) else "it is damaged or no file of tensors"
        raise ConfigError(
            f"motion.weights={config.weights!r}: this file cannot be read ({type(error).__name__}: {reason}). Give a "
            f"whole .safetensors or .pth file of {config.flow}'s weights."
        ) from error


def check_weights(config: Motion) -> None:
    """Raise ConfigError now rather than in every actor: fetch official weights once, and read a local file."""
    load_raft(config, torch.device("cpu"))


def _official(config: Motion) -> nn.Module:
    kinds = _kinds(config)
    weights = kinds["DEFAULT" if config.weights == "default" else config.weights]
    try:
        with downloads.locked(f"torchvision {weights}", f"torchvision's weights of {config.flow}"):
            return cast(nn.Module, getattr(optical_flow, config.flow)(weights=weights, progress=False))
    except OSError as error:
        raise ConfigError(
            f"motion.weights={config.weights!r}: torchvision could not fetch the weights of {config.flow} ({error}). "
            "Give a local weights file, or run once where the network can be reached."
        ) from error


@torch.no_grad()
def estimate(frames: npt.NDArray[np.uint8], model: nn.Module, config: Motion, device: torch.device) -> Tensor:
    """Flow from every frame to the next, in pixels at the working size: frames [F, H, W, 3] -> [F-1, 2, h, w] float32
    on `device`, where camera and mask are computed too.

    Pairs go through the model in batches of `config.batch`, counted from the clip's first pair, so that a clip's flow
    does not depend on its neighbours in a batch of clips.
    """
    images = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    size = (config.height, config.width)
    if images.shape[-2:] != size:
        images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    return clip_flow(model, images, config.updates, config.batch, DTYPES[config.dtype])


def camera_motion(flow: Tensor, rounds: int = 15) -> Tensor:
    """The flow of one affine motion of the whole picture, fitted robustly pair by pair: [P, 2, h, w] -> the same.

    Iteratively reweighted least squares with Geman-McClure weights from the median translation: what moves by itself
    loses its say as long as it covers less than about half of the picture.
    """
    pairs, _, height, width = flow.shape
    with flow.device:
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y], -1).reshape(-1, 3).double()
    target = flow.double().reshape(pairs, 2, -1).transpose(1, 2)
    fitted = target.new_zeros(pairs, 3, 2)
    ridge = 1e-9 * torch.eye(3, dtype=torch.float64, device=flow.device)
    fitted[:, 0] = target.median(1).values
    for _ in range(rounds):
        error = (target - basis @ fitted).square().sum(-1)
        spread = error.median(1, keepdim=True).values.clamp_min(0.05**2)
        weight = (spread / (spread + error)).square()[..., None]
        normal = basis.T @ (weight * basis) + ridge
        fitted = torch.linalg.solve(normal, basis.T @ (weight * target))
    return (basis @ fitted).transpose(1, 2).reshape(flow.shape).float()


def camera_share(flow: Tensor, camera: Tensor) -> float:
    """Which share of the mean flow magnitude the camera motion explains, in [0, 1]."""
    whole = float(flow.norm(dim=1).mean())
    return max(0.0, 1 - float((flow - camera).norm(dim=1).mean()) / whole) if whole > 1e-6 else 0.0


def motion_mask(flow: Tensor, config: Motion, grid: Grid, keep: Tensor | None = None) -> Tensor | None:
    """W on the latent grid, [f, h, w] in [0, 1]: None for a clip without motion.

    With `keep` [F, h, w] of the working size, W is 0 outside it, and what does not move is told by what is inside.

    Per pixel W = (M - min M) / (max M - min M + 1e-6) with M = |flow|, over the whole clip, at the working size; with
    `normalise: quantile` the upper end is a quantile and W is cut off at one. The last frame's flow repeats the one
    before it. Space is pooled by area, and a latent frame is the mean over the pixel frames that the autoencoder folds
    into it (Wu et al. 2026, section 3; METHOD's step 2).
    """
    weight = _weights(flow, config, keep)
    return None if weight is None else _pooled(weight, grid)


def moving_region(flow: Tensor, height: int, width: int, keep: Tensor | None = None) -> Tensor:
    """Where something moves by itself at any time: flow [F-1, 2, h, w] without the camera's motion -> [height, width]
    in [0, 1], inside `keep` [F, h, w] where it is given.

    A place counts whose speed is at any time above REGION of the clip's 98 % quantile. It is one region for the whole
    clip: what comes to rest for a while stays, and the region's edge does not move. What turns about its own centre
    stands still there, so the region is closed over a sixteenth of the picture, and widened by two pixels.
    """
    speed = flow.norm(dim=1)
    region = (speed > REGION * _quantile(speed, 0.98)).float()
    region = (region if keep is None else region * keep[:-1]).amax(0)[None, None]
    reach = max(speed.shape[-2:]) // 16
    region = F.max_pool2d(region, 2 * reach + 1, 1, reach)
    region = -F.max_pool2d(-region, 2 * reach + 1, 1, reach)
    region = F.max_pool2d(region, 5, 1, 2)
    return F.interpolate(region, (height, width), mode="bilinear", align_corners=False, antialias=True)[0, 0]


def mask_energy(flow: Tensor, config: Motion, grid: Grid) -> tuple[float, int] | None:
    """What a mask keeps on a grid: the share of the energy (the sum of W^2) of the mask at the working size, and the
    number of cells that weigh more than half of the largest. None for a clip without motion.

    Motion that is smaller or shorter than a cell is spread over it, and its energy is lost.
    """
    weight = _weights(flow, config)
    if weight is None:
        return None
    mask = _pooled(weight, grid)
    frames = torch.tensor(grid.folds, dtype=torch.float64, device=mask.device)
    cells = (mask.double().square().mean((1, 2)) * frames).sum() / frames.sum()
    return float(cells / weight.double().square().mean()), int((mask > mask.max() / 2).sum())


def _weights(flow: Tensor, config: Motion, keep: Tensor | None = None) -> Tensor | None:
    """W at the working size, [F, h, w]."""
    magnitude = flow.norm(dim=1)
    counted = magnitude if keep is None else magnitude[keep[:-1]]
    low = float(counted.min())
    high = float(counted.max()) if config.normalise == "min_max" else _quantile(counted, config.quantile)
    if high - low < max(config.still, 1e-6):
        return None
    weight = ((magnitude - low) / (high - low + 1e-6)).clamp(0, 1)
    weight = torch.cat([weight, weight[-1:]])
    return weight if keep is None else weight * keep


def _pooled(weight: Tensor, grid: Grid) -> Tensor:
    """[F, h, w] on a latent grid."""
    pooled = F.adaptive_avg_pool2d(weight[:, None], (grid.height, grid.width))[:, 0]
    parts, start = list[Tensor](), 0
    for fold, same in groupby(grid.folds):
        count = len(list(same))
        folded = pooled[start : start + count * fold]
        parts.append(folded.reshape(count, fold, grid.height, grid.width).mean(1))
        start += count * fold
    return torch.cat(parts)


def statistics(flow: Tensor) -> tuple[float, float]:
    """Mean and 95th percentile of the flow's magnitude, pixels a frame at the working size."""
    magnitude = flow.norm(dim=1).flatten()
    return float(magnitude.mean()), _quantile(magnitude, 0.95)


def _quantile(values: Tensor, share: float) -> float:
    """NumPy's, because torch's own takes no more than 2^24 values."""
    return float(np.quantile(values.cpu().numpy(), share))


def encode_mask(mask: Tensor) -> bytes:
    """[f, h, w] in [0, 1] -> its bytes, W * 255 rounded."""
    return bytes((mask * 255).round().byte().cpu().contiguous().numpy().tobytes())


def decode_mask(data: bytes, shape: list[int]) -> Tensor:
    """The inverse of `encode_mask`: [f, h, w] float32, to within 1/510."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape).astype(np.float32) / 255)
