"""How the mini models are trained: Muon for the matrices of their layers, AdamW for all else.

Muon (Jordan et al., 2024) orthogonalises the steps of matrices. A small model learns to compare,
and to tell instruments apart, in far fewer of them.
"""

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al.


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values come to lie near 1.

    Args:
        matrices: (matrices, rows, columns), in single precision: the half precision of
            `torch.optim.Muon` takes a CPU as long as a step of the model itself.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Steps of the size that AdamW's have (factor 0.2 sqrt(max(rows, columns)), Liu et al., 2025),
    with Nesterov's momentum; matrices of one shape are orthogonalised together."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for shape, same in alike.items():
                steps = []
                for p in same:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["momentum"])
                    steps.append(p.grad.lerp(mean, group["momentum"]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, step in zip(same, orthogonal(torch.stack(steps)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=size)


class Optimiser:
    """Both optimisers and their schedules, one cycle that peaks at `lr` after a tenth of the steps.

    Args:
        model: what is trained.
        layers: its layers, whose matrices Muon takes.
    """

    def __init__(self, model: nn.Module, layers: nn.Module, lr: float, steps: int, decay: float):
        self.model = model
        matrices = [p for p in layers.parameters() if p.ndim == 2]
        taken = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in taken]
        options = {"lr": lr, "weight_decay": decay}
        self.both = [
            Muon(matrices, **options),
            torch.optim.AdamW(others, betas=(0.9, 0.98), **options),
        ]
        cycle = {"max_lr": lr, "total_steps": steps, "pct_start": 0.1, "cycle_momentum": False}
        self.schedules = [OneCycleLR(optimizer, **cycle) for optimizer in self.both]

    def step(self, loss: Tensor) -> None:
        """Go down the gradient of a loss, whose norm is kept to 1."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, schedule in zip(self.both, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
