"""A digital link of whose code it is known what it carries: all that is left of it is the rounding
of tokens, and that some do not arrive. Training goes through it as through any channel."""

import torch
from torch import Tensor

from modules.channel import Channel, unit_power
from modules.digital.codebook import nearest
from modules.digital.quantisation import rounded

QUANTISED = "quantised"  # what hyperparameters call it, among the names of channels


class Quantised(Channel):
    """Stands where a `Channel` stands: tokens arrive quantised or not at all. Holds no weights.

    What is given in place of an SNR is the bits of an entry: a number in `codebooks`, or 1 to 8.
    Others count as the whole number below, and nothing arrives below 1. Gradients pass as if
    nothing were rounded (the straight-through estimator: Bengio, Leonard and Courville, 2013, arXiv
    1308.3432).

    Args:
        codebooks: by bits an entry, see codebook.py.
    """

    def __init__(self, codebooks: dict[float, Tensor] | None = None):
        super().__init__("none")
        self.codebooks = codebooks or {}

    def forward(
        self,
        tokens: Tensor,
        snr_db: float | Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Received tokens, of the shape and dtype of `tokens` and at unit power, zeros where they
        are lost.

        Args:
            tokens: (batch, tokens, hidden), real.
            snr_db: bits an entry, one number or one a clip (batch,).
            mask: (batch, tokens), True at real tokens; padding comes out as zeros.
        """
        sent = unit_power(tokens, mask)
        asked = torch.as_tensor(snr_db).expand(len(tokens)).tolist()
        bits = [b if b in self.codebooks else int(min(max(b, 0), 8)) for b in asked]
        arrived = torch.zeros_like(sent)
        with torch.no_grad():
            for each in set(bits) - {0}:
                clips = torch.tensor([b == each for b in bits], device=sent.device)
                arrived[clips] = self._rounded(sent[clips].flatten(0, 1), each).view_as(sent[clips])
        lost = torch.tensor([b == 0 for b in bits], device=sent.device)
        if mask is not None:
            arrived = arrived.masked_fill(~mask[..., None], 0)
        # Adds nothing going forward; going backward it is the way to what was sent.
        through = (sent - sent.detach()).masked_fill(lost[:, None, None], 0)
        return (arrived + through).to(tokens.dtype)

    def _rounded(self, tokens: Tensor, bits: float) -> Tensor:
        """Tokens (n, hidden) as they arrive."""
        if bits in self.codebooks:
            return nearest(tokens, self.codebooks[bits].to(tokens.device))
        return rounded(tokens, bits)
