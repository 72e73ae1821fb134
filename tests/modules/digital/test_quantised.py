"""Tokens that arrive rounded or not at all, and gradients that pass as if they were not rounded."""

import torch

from modules.channel import unit_power
from modules.digital.codebook import nearest
from modules.digital.quantisation import from_bits, to_bits
from modules.digital.quantised import Quantised
from tests.helpers.draw import gaussian


def quantised(tokens, bits):
    """What the quantiser leaves of them at unit power."""
    sent = unit_power(tokens)
    return from_bits(to_bits(sent.flatten(0, 1), bits), bits).view_as(sent)


def test_quantised_tokens_of_each_clips_own_bits():
    """As the quantiser leaves them, zeros at 0 bits and where there is padding, at the scale that a
    channel without noise has."""
    sent = gaussian(3, 4, 32)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[2, 2:] = False
    received = Quantised()(sent, torch.tensor([8.0, 0.0, 2.0]), mask)
    assert torch.equal(received[0], quantised(sent, 8)[0]) and received[1].eq(0).all()
    assert received[2, 2:].eq(0).all()
    alone = from_bits(to_bits(unit_power(sent[2:, :2]).flatten(0, 1), 2), 2)
    assert torch.equal(received[2, :2].flatten(), alone.flatten())
    assert torch.equal(Quantised()(sent, 4.0), quantised(sent, 4))


def test_bits_between_numbers_count_as_the_number_below():
    """As they are drawn in training; but those of a codebook are of the codebook."""
    sent, book = gaussian(4, 2, 32), gaussian(2, 256, 16, seed=2)
    link = Quantised({0.5: book})
    received = link(sent, torch.tensor([0.5, 0.7, 3.9, 50.0]))
    assert torch.equal(received[0], nearest(unit_power(sent[:1])[0], book))
    assert received[1].eq(0).all()
    assert torch.equal(received[2:3], quantised(sent[2:3], 3))
    assert torch.equal(received[3:], quantised(sent[3:], 8))


def test_gradients_pass_the_quantiser_but_not_what_is_lost():
    """As if tokens arrived as they were sent; nothing is learnt from tokens that did not arrive."""
    sent = gaussian(2, 3, 16).requires_grad_()
    weights = gaussian(2, 3, 16, seed=3)
    (Quantised()(sent, torch.tensor([2.0, 0.0])) * weights).sum().backward()
    straight = sent.detach().clone().requires_grad_()
    (unit_power(straight) * weights).sum().backward()
    torch.testing.assert_close(sent.grad[0], straight.grad[0])
    assert sent.grad[1].eq(0).all() and sent.grad[0].ne(0).any()
