"""The optimiser that the mini models are trained with."""

import pytest
import torch
from torch import nn

from tests.helpers.draw import seeded
from utils.mini.optimiser import Muon, orthogonal


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_steps_are_nearly_orthogonal(shape):
    """Every direction of a matrix is stepped in by about as much, whatever the gradient's scale."""
    matrices = torch.randn(3, *shape, generator=seeded())
    values = torch.linalg.svdvals(orthogonal(1e-3 * matrices))
    assert values.min() > 0.1 and values.max() < 1.3
    assert 0.8 < values.mean() < 1.1


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_steps_are_those_of_muon(shape):
    """As by torch's own, but for its half precision: momentum, size and decay."""
    start, gradients = torch.randn(shape, generator=seeded()), seeded()
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 1e-2, "weight_decay": 0.1}
    other = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    both = (Muon([ours], **options), other)
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=gradients)
        theirs.grad = ours.grad.clone()
        for optimizer in both:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved
