"""Codebooks: what they cost, and what comes back of tokens."""

import pytest
import torch

from modules.digital.codebook import GROUPS, nearest, token_bits
from modules.digital.quantisation import payload_bits
from tests.helpers.draw import gaussian


@pytest.mark.parametrize("bits", GROUPS)
def test_a_token_takes_its_bits_and_no_scale(bits):
    """`bits` an entry, whole vectors' names; the uniform quantiser's tokens have a scale too."""
    assert token_bits(64, bits) == 64 * bits and (GROUPS[bits] * bits) % 1 == 0
    assert token_bits(64, 3) == payload_bits(64, 3) == 64 * 3 + 16


def test_every_group_gets_its_nearest_vector():
    """Found by trying all of them."""
    tokens, book = gaussian(20, 64), gaussian(4, 30, 16, seed=2)
    back = nearest(tokens, book)
    for token, found in zip(tokens.view(20, 4, 16), back.view(20, 4, 16), strict=True):
        apart = (token[:, None] - book).square().sum(dim=2)  # (groups, vectors)
        assert torch.equal(found, book[torch.arange(4), apart.argmin(dim=1)])
