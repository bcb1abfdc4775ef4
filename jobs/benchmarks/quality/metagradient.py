"""Exact influence: the derivative of a loss after fine-tuning with respect to each clip's weight in it.

Reverse mode through every step of AdamW, each step computed again from its kept state (MAGIC, Ilyas and Engstrom 2025,
arXiv 2504.16430; as there, a small number stands under the root of the second moments, without which the steps of Adam
are hardly differentiable). It costs some ten times the fine-tuning for every loss that is asked
about, and tells what the best possible linear prediction is. The schedule is fixed: weighing a clip with 0 leaves its
places in the batches empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from jobs.benchmarks.quality import retraining
from jobs.benchmarks.quality.problem import Clips
from pipeline.models import VideoModel
from pipeline.models.loss import masked_mean, own_noise
from pipeline.training.training_set import draw

BETAS, EPSILON, UNDER_ROOT = (0.9, 0.999), 1e-8, 1e-8
NOISES = 3  # of a held-out clip in `exact`
Tensors = tuple[Tensor, ...]
State = tuple[Tensors, Tensors, Tensors]  # parameters, first and second moments


@dataclass(frozen=True)
class Problem:
    """A fine-tuning of `steps` steps on rows of the corpus, `batch` of them at a time, in a fixed order."""

    clips: Clips
    rows: tuple[int, ...]
    steps: int = 9
    batch: int = 16
    learning_rate: float = 1e-4

    def places(self, step: int) -> list[int]:
        """Which of `rows` a step takes."""
        first = step * self.batch
        return [(first + i) % len(self.rows) for i in range(self.batch)]


class Exact(NamedTuple):
    """What `exact` found."""

    influence: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    gains: npt.NDArray[np.float64]


class Differentiable:
    """A video model whose training step can be differentiated."""

    def __init__(self, model: VideoModel, problem: Problem) -> None:
        self.model, self.problem = model, problem
        self.names = [name for name, _ in model.trained.named_parameters()]

    def start(self) -> State:
        parameters = tuple(p.detach().clone() for p in self.model.trained.parameters())
        return parameters, *((tuple(map(torch.zeros_like, parameters)),) * 2)

    def errors(self, parameters: Tensors, latent: Tensor, text: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`loss.loss_map` of a model with these parameters."""
        noisy = self.model.schedule.noised(latent, noise, timestep)
        named = dict(zip(self.names, parameters, strict=True))
        inputs = {"hidden_states": noisy, "timestep": timestep, "encoder_hidden_states": text, "return_dict": False}
        prediction: Tensor = functional_call(self.model.trained, named, (), inputs)[0]
        return (prediction - self.model.schedule.target(latent, noise, timestep)).square().mean(1)

    def loss(self, parameters: Tensors, weights: Tensor, step: int) -> Tensor:
        """The training loss of a step under weights [rows] of the clips."""
        at, clips = self.problem.places(step), self.problem.clips
        rows = [self.problem.rows[i] for i in at]
        draws = [draw(0, step, place) for place in range(len(at))]
        latent = clips.latent[rows]
        timestep = self.model.schedule.times(torch.tensor([d.time for d in draws], dtype=torch.float32))
        noise = torch.stack([d.noise(latent.shape[1:]) for d in draws])
        errors = self.errors(parameters, latent, clips.text[rows], timestep, noise)
        return (errors.mean((1, 2, 3)) * weights[at]).mean()

    def step(self, state: State, weights: Tensor, number: int, keep: bool) -> State:
        """One step of Adam, without decay; `keep` makes it differentiable."""
        parameters, first, second = state
        loss = self.loss(parameters, weights, number)
        gradients = torch.autograd.grad(loss, parameters, create_graph=keep)
        b1, b2 = BETAS
        first = tuple(b1 * m + (1 - b1) * g for m, g in zip(first, gradients, strict=True))
        second = tuple(b2 * v + (1 - b2) * g * g for v, g in zip(second, gradients, strict=True))
        scale = self.problem.learning_rate / (1 - b1 ** (number + 1))
        states = zip(parameters, first, second, strict=True)
        moved = tuple(
            p - scale * m / ((v / (1 - b2 ** (number + 1)) + UNDER_ROOT).sqrt() + EPSILON) for p, m, v in states
        )
        return moved, first, second

    @torch.enable_grad()
    def trained(self, weights: Tensor) -> list[State]:
        """The states before every step and after the last."""
        states = [self.start()]
        for number in range(self.problem.steps):
            leaves = tuple(p.requires_grad_() for p in states[-1][0])
            state = self.step((leaves, *states[-1][1:]), weights, number, keep=False)
            states.append(_detached(state))
        return states

    def target(self, parameters: Tensors, clips: Clips, rows: Sequence[int], noises: int) -> Tensor:
        """Mean motion-masked loss of these clips over noises of their own, at drawn timesteps: a scalar."""
        at = list(rows)
        ids, latent, total = [clips.clip_ids[n] for n in at], clips.latent[at], torch.zeros(())
        timesteps, shape = retraining.times(self.model, ids, noises), tuple(latent.shape[1:])
        for index in range(noises):
            noise = torch.stack([own_noise(clip_id, retraining.FIRST_NOISE + index, shape) for clip_id in ids])
            errors = self.errors(parameters, latent, clips.text[at], timesteps[:, index], noise)
            total = total + masked_mean(errors, clips.mask[at]) / noises
        return total

    def influence(self, states: list[State], clips: Clips, rows: Sequence[int], noises: int) -> Tensor:
        """- d target / d weight of every clip of the problem, at weights of 1: [rows], float32."""
        weights = torch.ones(len(self.problem.rows), requires_grad=True)
        leaves = tuple(p.requires_grad_() for p in states[-1][0])
        with sdpa_kernel(SDPBackend.MATH):
            back: list[Tensor] = list(torch.autograd.grad(self.target(leaves, clips, rows, noises), leaves))
            back += [torch.zeros_like(p) for p in leaves] * 2
            total = torch.zeros(len(weights))
            for number in reversed(range(self.problem.steps)):
                state: State = tuple(tuple(t.detach().requires_grad_() for t in part) for part in states[number])  # type: ignore[assignment]
                after = self.step(state, weights, number, keep=True)
                inputs = [t for part in state for t in part]
                gradient = torch.autograd.grad(
                    [t for part in after for t in part], [*inputs, weights], back, materialize_grads=True
                )
                total -= gradient[-1]
                back = list(gradient[:-1])
        return total


def exact(
    model: VideoModel, held_out: Clips, targets: Sequence[str], problem: Problem, subsets: int, dropped: int
) -> Exact:
    """Exact influence of every clip of a small problem on each target, and how much lower the targets' masked losses
    really end if the clips of a subset lack `dropped` of them: [rows, T], [S, rows], [S, T]."""
    differentiable = Differentiable(model, problem)
    count, at = len(problem.rows), [held_out.of(target).tolist() for target in targets]
    with sdpa_kernel(SDPBackend.MATH):
        states = differentiable.trained(torch.ones(count))
        influence = torch.stack([differentiable.influence(states, held_out, rows, NOISES) for rows in at], 1)
        weights, gains = np.ones((subsets, count), np.float32), np.zeros((subsets, len(targets)))
        for n in range(subsets):
            weights[n, np.random.default_rng([6, n]).choice(count, dropped, replace=False)] = 0
            parameters = differentiable.trained(torch.from_numpy(weights[n]))[-1][0]
            with torch.no_grad():
                gains[n] = [-float(differentiable.target(parameters, held_out, rows, NOISES).double()) for rows in at]
    return Exact(influence.double().numpy(), weights.astype(np.float64), gains)


def _detached(state: State) -> State:
    parameters, first, second = (tuple(t.detach() for t in part) for part in state)
    return parameters, first, second
