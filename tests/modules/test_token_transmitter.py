"""The token transmitter: a frozen encoder whose tokens are read whole, and a trained projection."""

import pytest
import torch

from modules.token_compression import COMPRESSIONS, compress
from modules.token_transmitter import TokenTransmitter
from tests.helpers.draw import gaussian
from tests.helpers.tiny import PATCHES, SIZES, tiny_ast, tiny_vivit

WIDTH, HIDDEN = SIZES["hidden_size"], 12
DROPOUT = dict(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)


def visual(length=4, **options):
    """A transmitter with ViViT: 8 patch tokens and the class token."""
    torch.manual_seed(0)
    return TokenTransmitter(tiny_vivit(**DROPOUT).train(), 1, HIDDEN, length, **options)


def audio(length=4, **options):
    """A transmitter with AST: 8 patch tokens, the class and the distillation token."""
    torch.manual_seed(0)
    return TokenTransmitter(tiny_ast(**DROPOUT).train(), 2, HIDDEN, length, **options)


VIDEO, SOUND = (3, 4, 3, 32, 32), (3, 48, 32)  # clips, ...
BOTH = pytest.mark.parametrize("make, shape, special", [(visual, VIDEO, 1), (audio, SOUND, 2)])


@BOTH
def test_encoder_stays_in_evaluation_mode(make, shape, special):
    """In training the encoder draws no dropout: the same clip gives the same tokens."""
    tx = make().train()
    assert tx.training and tx.projection.training
    assert not any(module.training for module in tx.encoder.modules())
    x = gaussian(*shape)
    assert torch.equal(tx.encode(x), tx.encode(x))
    assert torch.equal(tx.encode(x), make().eval().encode(x))
    assert tx.train(False) is tx and not tx.projection.training


@BOTH
@pytest.mark.parametrize("how", COMPRESSIONS)
def test_encode_is_compression_of_the_encoder(make, shape, special, how):
    """A clip becomes its special tokens, untouched, and `length` more, compressed from what the
    encoder says; then they are made as wide as the language model."""
    x = gaussian(*shape)
    for length, patches in ((1, 1), (4, 4), (8, 8), (100, 8)):
        tx = make(length, compression=how)
        with torch.inference_mode():
            tokens = tx.encoder(x).last_hidden_state
        assert tokens.shape == (3, special + PATCHES, WIDTH)
        encoded = tx.encode(x)
        assert encoded.shape == (3, special + patches, WIDTH)
        torch.testing.assert_close(encoded, compress(tokens, length, special, how))
        torch.testing.assert_close(encoded[:, :special], tokens[:, :special])
        torch.testing.assert_close(tx.encode(x, [1, 1, 1]), encoded)
        assert tx(encoded).shape == (3, special + patches, HIDDEN)


def test_windows_are_joined():
    """The windows of a long clip: patch tokens one after the other, special tokens averaged."""
    tx, x = audio(length=1000), gaussian(3, 48, 32)
    with torch.inference_mode():
        tokens = tx.encoder(x).last_hidden_state  # (3, 2 + 8, width)
    joined = tx.encode(x, [3])
    assert joined.shape == (1, 2 + 3 * 8, WIDTH)
    torch.testing.assert_close(joined[0, :2], (tokens[0, :2] + tokens[1, :2] + tokens[2, :2]) / 3)
    torch.testing.assert_close(joined[0, 2:], torch.cat([tokens[i, 2:] for i in range(3)]))
    short = audio(length=5).encode(x, [3])
    torch.testing.assert_close(short, compress(joined, 5, 2))


@pytest.mark.parametrize("windows", [[2, 1, 3], [1, 5], [6], [1] * 6])
def test_clips_of_different_lengths_in_one_batch(windows):
    """A clip's tokens do not depend on the clips beside it, however many windows each has."""
    tx, x = audio(), gaussian(6, 48, 32)
    batch = tx.encode(x, windows)
    assert batch.shape == (len(windows), 2 + 4, WIDTH)
    for encoded, part in zip(batch, x.split(windows), strict=True):
        torch.testing.assert_close(encoded[None], tx.encode(part, [len(part)]))


def test_no_window_is_dropped():
    """Another sound in any window changes what is sent."""
    tx, x = audio(), gaussian(5, 48, 32)
    before = tx.encode(x, [5])
    for i in range(5):
        other = x.clone()
        other[i] = gaussian(48, 32, seed=1)
        changed = (tx.encode(other, [5]) - before).abs().amax(-1)[0]
        assert changed[:2].gt(1e-3).all() and changed[2:].gt(1e-3).any()


def test_contrastive_features():
    """Picture: the class token. Sound: the mean of the class and the distillation token."""
    tokens = gaussian(3, 2 + 4, HIDDEN)
    torch.testing.assert_close(visual().features(tokens), tokens[:, 0])
    torch.testing.assert_close(audio().features(tokens), (tokens[:, 0] + tokens[:, 1]) / 2)


@BOTH
def test_the_projection_alone_is_trained(make, shape, special):
    """A step on what `encode` gave trains the projection and leaves the encoder; once every clip is
    cached and the encoder released, training goes on."""
    tx = make().train()
    trained = [name for name, p in tx.named_parameters() if p.requires_grad]
    assert trained == ["projection.weight", "projection.bias"]
    assert tx.projection.in_features == WIDTH and tx.projection.out_features == HIDDEN
    encoded, encoder = tx.encode(gaussian(*shape)), tx.encoder

    def step():
        tx.zero_grad()
        tokens = tx(encoded)
        (tx.features(tokens).square().sum() + tokens.square().sum()).backward()
        assert tx.projection.weight.grad.abs().sum() > 0
        assert tx.projection.bias.grad.abs().sum() > 0

    step()
    assert all(p.grad is None for p in encoder.parameters())
    tx.encoder = None
    assert tx.train() is tx and tx.training and tx.projection.training
    step()
    assert tx.eval() is tx and not tx.projection.training
    assert set(tx.state_dict()) == {"projection.weight", "projection.bias"}
