"""Tokens as bits: what the quantiser loses is what theory says, and nothing else."""

import pytest
import torch

from modules.digital.quantisation import STEPS, from_bits, payload_bits, rounded, to_bits
from tests.helpers.draw import gaussian

EACH = pytest.mark.parametrize("bits", STEPS)
# Mean squared errors that the best steps leave of a Gaussian of unit variance (Max, 1960).
ERRORS = {1: 3.6338e-1, 2: 1.1885e-1, 3: 3.7440e-2, 4: 1.1543e-2, 5: 3.4952e-3, 6: 1.0400e-3,
          7: 3.0433e-4, 8: 8.7686e-5}  # fmt: skip


def there_and_back(tokens, bits):
    return from_bits(to_bits(tokens, bits), bits)


@EACH
def test_error_is_that_of_the_best_uniform_quantiser(bits, monkeypatch):
    """On Gaussian entries the mean squared error is Max's, and no other step does better: 10 %
    finer clips more, 10 % coarser rounds more."""
    tokens, step = gaussian(200, 2048), STEPS[bits]
    best = (there_and_back(tokens, bits) - tokens).square().mean()
    assert abs(best / ERRORS[bits] - 1) < 0.03
    for factor in (0.9, 1.1):
        monkeypatch.setitem(STEPS, bits, step * factor)
        assert (there_and_back(tokens, bits) - tokens).square().mean() > best


@EACH
@pytest.mark.parametrize("size", [1e-12, 1e-2, 1.0, 1e12])
def test_every_token_has_its_own_scale(bits, size):
    """A quiet token beside a loud one loses the same share of its power."""
    tokens = gaussian(50, 512) * torch.tensor([1.0, size]).repeat(25)[:, None]
    error = (there_and_back(tokens, bits) - tokens).double().square().mean(dim=1)
    share = error / tokens.double().square().mean(dim=1)
    assert (share[::2].median() / share[1::2].median() - 1).abs() < 0.1


@EACH
def test_error_of_what_is_not_clipped_is_half_a_step(bits):
    """Entries within the clipping level come back to half a step, others to that level."""
    tokens = gaussian(20, 256)
    scale = tokens.square().mean(dim=1, keepdim=True).sqrt().bfloat16().float()
    step, level = STEPS[bits] * scale, 2 ** (bits - 1) * STEPS[bits] * scale
    back = there_and_back(tokens, bits)
    inside = tokens.abs() < level
    assert ((back - tokens).abs() <= step / 2 * 1.001)[inside].all()
    assert (back.abs() < level).all()


@pytest.mark.parametrize("hidden", [1, 7, 128])
@EACH
def test_bits_are_bits_and_as_many_as_said(bits, hidden):
    """The payload is 0 or 1 throughout: 16 bits of scale and `bits` an entry."""
    payload = to_bits(gaussian(5, hidden), bits)
    assert payload.shape == (5, payload_bits(hidden, bits)) == (5, 16 + bits * hidden)
    assert set(payload.unique().tolist()) <= {0.0, 1.0}


@EACH
def test_zeros_come_back_as_zeros(bits):
    """A token of zeros has no scale and is not a number over zero."""
    assert there_and_back(torch.zeros(2, 8), bits).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_is_read(dtype):
    """Tokens of other precisions are quantised as float32 ones of the same values."""
    tokens = gaussian(3, 16).to(dtype)
    assert torch.equal(there_and_back(tokens, 6), there_and_back(tokens.float(), 6))


@EACH
def test_rounding_is_what_the_bits_bring(bits):
    """Without making them, and to the last digit."""
    tokens = gaussian(30, 24)
    assert torch.equal(rounded(tokens, bits), there_and_back(tokens, bits))
