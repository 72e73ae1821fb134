"""The token receiver: the published layers, starting at the size of real embeddings."""

import pytest
import torch
from torch import nn

from modules.token_receiver import RECEIVERS, TokenReceiver
from tests.helpers.draw import gaussian


def test_layers():
    """Linear(hidden, 1024), ReLU, Linear(1024, hidden), all trained."""
    receiver = TokenReceiver(48)
    assert [type(layer) for layer in receiver] == [nn.Linear, nn.ReLU, nn.Linear]
    assert receiver[0].weight.shape == (1024, 48) and receiver[0].bias.shape == (1024,)
    assert receiver[2].weight.shape == (48, 1024) and receiver[2].bias.shape == (48,)
    assert all(p.requires_grad for p in receiver.parameters())
    assert list(receiver.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert TokenReceiver(48, 512)[0].weight.shape == (512, 48)


def test_forward_is_the_mlp():
    """The receiver computes W2 relu(W1 x + b1) + b2 and keeps the shape of its input."""
    torch.manual_seed(0)
    receiver, x = TokenReceiver(8, 16, 0.02), gaussian(2, 5, 8)
    w1, b1, w2, b2 = receiver.parameters()
    assert receiver(x).shape == x.shape
    torch.testing.assert_close(receiver(x), (x @ w1.T + b1).clamp(min=0) @ w2.T + b2)


@pytest.mark.parametrize("hidden", [128, 512])
@pytest.mark.parametrize("scale", [1e-2, 0.08, 1.0])
def test_starting_scale(hidden, scale):
    """Tokens of unit power leave a fresh receiver at about the size of real embeddings."""
    torch.manual_seed(0)
    receiver = TokenReceiver(hidden, scale=scale)
    with torch.no_grad():
        rms = receiver(gaussian(2000, hidden)).square().mean().sqrt().item()
    assert rms == pytest.approx(scale, rel=0.1)
    assert receiver[2].bias.eq(0).all()
    assert all(p.requires_grad and p.grad_fn is None for p in receiver.parameters())


@pytest.mark.parametrize("name", RECEIVERS)
def test_tokens_are_received_one_by_one(name):
    """A token's restoration does not depend on the tokens beside it, in no receiver."""
    torch.manual_seed(0)
    receiver, x = RECEIVERS[name](8, 16, torch.tensor(0.02)), gaussian(2, 5, 8)
    assert receiver(x).shape == x.shape
    torch.testing.assert_close(receiver(x)[:, 3], receiver(x[:, 3]))
