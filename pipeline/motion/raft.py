"""RAFT over a whole clip, on torchvision's modules (Teed & Deng 2020): the same flow at less work.

torchvision's forward takes pairs, so it encodes every inner frame of a clip twice, and it enlarges the flow of every
update, of which only the last is wanted. Here each frame is encoded once.

In bfloat16 the convolutions of the context and of the updates are in it, nine tenths of the work of RAFT large. What
stays in float32: coordinates (bfloat16 knows 416 and 418, nothing between), the correlation volume and its lookup, the
hidden state, the sum of the updates, and the features that are correlated, whose rounding would be three quarters of
the whole error of a mask. (On a GPU PyTorch's float32 convolutions are TF32 unless told otherwise.)
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.optical_flow._utils import make_coords_grid, upsample_flow
from torchvision.models.optical_flow.raft import RAFT


@torch.no_grad()
def clip_flow(model: nn.Module, images: Tensor, updates: int, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Flow from every frame to the next: images [F, 3, h, w] in [-1, 1] -> [F-1, 2, h, w] float32, in pixels.

    `model` is torchvision's RAFT in float32; at most `batch` frames or pairs go through it at a time, counted from the
    first frame, so nothing depends on what other clips there are. In float32 it is torchvision's forward to rounding.
    """
    if not isinstance(model, RAFT):
        raise TypeError(f"clip_flow takes torchvision's RAFT, not {type(model).__name__}")
    maps = torch.cat([model.feature_encoder(images[i : i + batch]) for i in range(0, len(images), batch)])
    flows = []
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        for i in range(0, len(images) - 1, batch):
            pairs = slice(i, min(i + batch, len(images) - 1))
            after = slice(pairs.start + 1, pairs.stop + 1)
            flows.append(_pairs(model, maps[pairs], maps[after], images[pairs], updates))
    return torch.cat(flows)


def _pairs(model: RAFT, before: Tensor, after: Tensor, images: Tensor, updates: int) -> Tensor:
    """Feature maps [B, c, h/8, w/8] of both frames and the first frames [B, 3, h, w] -> flow [B, 2, h, w]."""
    device, hidden_channels = images.device, model.update_block.hidden_state_size
    context = model.context_encoder(images).float()
    hidden, context = context.split([hidden_channels, context.shape[1] - hidden_channels], dim=1)
    hidden, context = torch.tanh(hidden), torch.relu(context)
    start = make_coords_grid(len(images), *before.shape[-2:], device=str(device))
    coordinates = start.clone()
    exact = torch.autocast(device.type, enabled=False)
    with exact, device:  # `device`: the lookup's offsets are made where they are used, not copied at every update
        model.corr_block.build_pyramid(before, after)
    for _ in range(updates):
        with exact, device:
            looked_up = model.corr_block.index_pyramid(centroids_coords=coordinates)
        hidden, change = model.update_block(hidden, context, looked_up, coordinates - start)
        coordinates = coordinates + change.float()
    model.corr_block.corr_pyramid = []  # its gigabytes are not wanted while nothing runs
    weights = None if model.mask_predictor is None else model.mask_predictor(hidden).float()
    with exact:
        return cast(Tensor, upsample_flow(flow=coordinates - start, up_mask=weights))
