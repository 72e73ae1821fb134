"""Tokens as bits and back: a uniform quantiser of a token's entries around its own scale.

The scale is the token's root mean square and travels along as 16 bits of bfloat16, which has the
range of float32: no token is too quiet or too loud, and since the sender quantises by the rounded
scale as well, its coarse mantissa costs next to nothing. The step is the one that loses least of
Gaussian entries (J. Max, Quantizing for minimum distortion, IRE Trans. Inf. Theory, 1960), which
clips at 2.68, 3.33 and 3.94 times the scale; a coarser outlier is worth finer small entries.
"""

import torch
from torch import Tensor

STEPS = {4: 0.33520, 6: 0.10406, 8: 0.030762}  # of a Gaussian of unit variance, by bits an entry
ERRORS = {4: 1.1543e-2, 6: 1.0400e-3, 8: 8.7686e-5}  # mean squared, that these steps leave
SCALE_BITS = 16


def payload_bits(hidden: int, bits: int) -> int:
    """Bits of one token of `hidden` entries and its scale."""
    return SCALE_BITS + hidden * bits


def to_bits(tokens: Tensor, bits: int) -> Tensor:
    """The bits of tokens (n, hidden) at 4, 6 or 8 bits an entry: (n, payload_bits), 0. or 1.

    Natural binary, most significant bit first: whole blocks arrive or are lost, so that which
    levels are neighbours of which does not matter.
    """
    scale = tokens.float().square().mean(dim=1, keepdim=True).sqrt().bfloat16()  # (n, 1)
    step = (STEPS[bits] * scale.float()).clamp(min=1e-38)  # a token of zeros has no scale
    levels = (tokens.float() / step).floor() + 2 ** (bits - 1)  # (n, hidden)
    levels = levels.clamp(0, 2**bits - 1).int()
    return torch.cat([_binary(scale.view(torch.int16), SCALE_BITS), _binary(levels, bits)], dim=1)


def from_bits(payload: Tensor, bits: int) -> Tensor:
    """The tokens (n, hidden), float32, that (n, payload_bits) stand for: middles of the cells."""
    scale = _number(payload[:, :SCALE_BITS], SCALE_BITS).to(torch.int16).view(torch.bfloat16)
    levels = _number(payload[:, SCALE_BITS:], bits)  # (n, hidden)
    return (levels - (2**bits - 1) / 2) * (STEPS[bits] * scale.float())


def _binary(numbers: Tensor, bits: int) -> Tensor:
    """(n, numbers) to (n, numbers * bits)."""
    places = torch.arange(bits - 1, -1, -1, device=numbers.device)
    return (numbers[..., None] >> places & 1).flatten(1).float()


def _number(digits: Tensor, bits: int) -> Tensor:
    """(n, numbers * bits) to (n, numbers)."""
    places = torch.arange(bits - 1, -1, -1, device=digits.device)
    return (digits.unflatten(1, (-1, bits)).int() << places).sum(dim=2)
