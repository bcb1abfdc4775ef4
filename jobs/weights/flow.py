"""Train the small RAFT that ships with the package: ``python -m jobs.weights.flow``.

Pairs come from the synthetic world, half of them rendered at 128 pixels and half at 32 and enlarged as the demo's
motion stage does. The sequence loss is RAFT's (Teed & Deng 2020, equation 7). A killed run goes on from its last state.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_small

from jobs.weights.training import HELD_OUT, rate, save_state
from pipeline.synthetic import world

SIZE = 128
REACH = 9.0  # of held-out pairs; most of them move up to 10 pixels


def batch(seed: int, first: int, count: int, reach: float = 10.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs first ... first+count-1: frames before and after [B, 3, 128, 128] in [-1, 1], flow [B, 2, 128, 128]."""
    before, after, flows = [], [], []
    for i in range(first, first + count):
        size = SIZE if i % 2 else SIZE // 4
        frames, flow = world.flow_pair(seed, f"{i}", size, reach)
        images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)
        exact = torch.from_numpy(flow).permute(2, 0, 1)[None] * (SIZE / size)
        flows.append(F.interpolate(exact, (SIZE, SIZE), mode="nearest")[0])
        before.append(images[0])
        after.append(images[1])
    return torch.stack(before), torch.stack(after), torch.stack(flows)


@torch.no_grad()
def judge(model: torch.nn.Module, updates: int, count: int = 64) -> dict[str, float]:
    """Mean end-point error in pixels on held-out pairs, and that of predicting no motion at all."""
    model.eval()
    before, after, exact = batch(HELD_OUT, 0, count, REACH)
    flow = torch.cat([model(before[i : i + 8], after[i : i + 8], updates)[-1] for i in range(0, count, 8)])
    model.train()
    return {
        "end_point_error": float((flow - exact).norm(dim=1).mean()),
        "no_motion": float(exact.norm(dim=1).mean()),
        "largest": float(exact.norm(dim=1).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5200)
    parser.add_argument("--updates", type=int, default=6, help="flow updates in training and judging")
    parser.add_argument("--state", type=Path, default=Path("runs/weights/flow.pt"))
    parser.add_argument("--out", type=Path, default=Path("pipeline/weights/raft_small_world.safetensors"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = raft_small(weights=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5, eps=1e-8)
    first = 0
    if args.state.exists():
        state = torch.load(args.state, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    start = time.monotonic()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps, 6e-4)
        before, after, exact = batch(0, step * 4, 4)
        flows = model(before, after, args.updates)
        losses = [0.8 ** (len(flows) - 1 - i) * (flow - exact).abs().mean() for i, flow in enumerate(flows)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0:
            error = float((flows[-1].detach() - exact).norm(dim=1).mean())
            spent = time.monotonic() - start
            print(f"step {step + 1} loss {float(loss.detach()):.3f} error {error:.2f} px {spent:.0f} s", flush=True)
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_state(state, args.state)
            save_file(model.state_dict(), args.out)
            print(json.dumps({"step": step + 1, **judge(model, args.updates)}), flush=True)


if __name__ == "__main__":
    main()
