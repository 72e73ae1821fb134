"""How the mini models are trained: Muon for the matrices of their layers, AdamW for all else.

Muon (Jordan et al., 2024) orthogonalises the steps of matrices. A small model learns to compare,
and to tell instruments apart, in far fewer of them.
"""

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR


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
            torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options),
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
