"""Tokens as bits and back: a uniform quantiser of a token's entries around its own scale.

The scale is the token's root mean square and travels along as 16 bits of bfloat16, which has the
range of float32: no token is too quiet or too loud, and since the sender quantises by the rounded
scale as well, its coarse mantissa costs next to nothing. The step is the one that loses least of
Gaussian entries (J. Max, Quantizing for minimum distortion, IRE Trans. Inf. Theory, 1960), which
clips at 2.68, 3.33 and 3.94 times the scale with 4, 6 and 8 bits; a coarser outlier is worth finer
small entries.
"""

import torch
from torch import Tensor

# Of a Gaussian of unit variance by bits an entry.
STEPS = {1: 1.59577, 2: 0.99569, 3: 0.58602, 4: 0.33520, 5: 0.18814, 6: 0.10406, 7: 0.056867,
         8: 0.030762}  # fmt: skip
SCALE_BITS = 16


def payload_bits(hidden: int, bits: int) -> int:
    """Bits of one token of `hidden` entries and its scale."""
    return SCALE_BITS + hidden * bits


def to_bits(tokens: Tensor, bits: int) -> Tensor:
    """The bits of tokens (n, hidden) at 1 to 8 bits an entry: (n, payload_bits), 0. or 1.

    Natural binary, most significant bit first: whole blocks arrive or are lost, so that which
    levels are neighbours of which does not matter.
    """
    scale, levels = _levels(tokens, bits)
    return torch.cat([_binary(scale.view(torch.int16), SCALE_BITS), _binary(levels, bits)], dim=1)


def from_bits(payload: Tensor, bits: int) -> Tensor:
    """The tokens (n, hidden), float32, that (n, payload_bits) stand for: middles of the cells."""
    scale = _number(payload[:, :SCALE_BITS], SCALE_BITS).to(torch.int16).view(torch.bfloat16)
    return _middles(scale, _number(payload[:, SCALE_BITS:], bits), bits)


def rounded(tokens: Tensor, bits: int) -> Tensor:
    """What `from_bits` gives back of tokens (n, hidden), without making the bits."""
    return _middles(*_levels(tokens, bits), bits)


def _levels(tokens: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales (n, 1), bfloat16, and the number of each entry's cell (n, hidden)."""
    scale = tokens.float().square().mean(dim=1, keepdim=True).sqrt().bfloat16()
    step = (STEPS[bits] * scale.float()).clamp(min=1e-38)  # a token of zeros has no scale
    levels = (tokens.float() / step).floor() + 2 ** (bits - 1)
    return scale, levels.clamp(0, 2**bits - 1).int()


def _middles(scale: Tensor, levels: Tensor, bits: int) -> Tensor:
    """The middles of cells (n, hidden) at scales (n, 1)."""
    return (levels - (2**bits - 1) / 2) * (STEPS[bits] * scale.float())


def _binary(numbers: Tensor, bits: int) -> Tensor:
    """(n, numbers) to (n, numbers * bits)."""
    places = torch.arange(bits - 1, -1, -1, device=numbers.device)
    return (numbers[..., None] >> places & 1).flatten(1).float()


def _number(digits: Tensor, bits: int) -> Tensor:
    """(n, numbers * bits) to (n, numbers)."""
    places = torch.arange(bits - 1, -1, -1, device=digits.device)
    return (digits.unflatten(1, (-1, bits)).int() << places).sum(dim=2)
