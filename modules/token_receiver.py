"""The token receiver at the base station: a small MLP that restores noisy tokens."""

import torch
from torch import Tensor, nn


class TokenReceiver(nn.Sequential):
    """Linear(hidden, width), ReLU, Linear(width, hidden), on each token by itself.

    Args:
        hidden: width of the language model's embeddings.
        width: width between the two layers.
        scale: root mean square of the language model's embedding entries. The last layer starts
            so that tokens of unit power leave at about this scale: beside real embeddings of 1e-2
            a token of size 1 would drown what the first layers add to it.
    """

    def __init__(self, hidden: int, width: int = 1024, scale: Tensor | float | None = None):
        super().__init__(nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, hidden))
        if scale is not None:
            with torch.no_grad():
                out = self(torch.randn(256, hidden))
                self[2].weight.mul_(scale / out.square().mean().sqrt())
                self[2].bias.zero_()

    def forward(self, received: Tensor) -> Tensor:
        """(batch, tokens, hidden) to the same shape."""
        return super().forward(received)


# (hidden, width, scale) -> a module, by the receiver's name.
RECEIVERS = {"mlp": TokenReceiver}
