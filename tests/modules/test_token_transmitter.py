"""The token transmitter: a frozen encoder whose tokens are read whole, and a trained projection."""

import pytest
import torch

from modules.token_compression import COMPRESSIONS, compress
from modules.token_transmitter import TokenTransmitter, Windows
from tests.helpers.draw import gaussian
from tests.helpers.tiny import PATCHES, SIZES, tiny_ast, tiny_vivit, windows

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
    for length in (1, 4, PATCHES):
        tx = make(length, compression=how)
        with torch.inference_mode():
            tokens = tx.encoder(x).last_hidden_state
        assert tokens.shape == (3, special + PATCHES, WIDTH)
        encoded = tx.encode(x)
        assert encoded.shape == (3, special + length, WIDTH)
        torch.testing.assert_close(encoded, compress(tokens, length, special, how))
        torch.testing.assert_close(encoded[:, :special], tokens[:, :special])
        torch.testing.assert_close(tx.encode(x, windows(1, 1, 1)), encoded)
        assert tx(encoded).shape == (3, special + length, HIDDEN)


def test_windows_are_joined():
    """The windows of a long clip: patch tokens one after the other, special tokens averaged."""
    tx, x = audio(length=1000), gaussian(3, 48, 32)
    with torch.inference_mode():
        tokens = tx.encoder(x).last_hidden_state  # (3, 2 + 8, width)
    (joined,) = tx.read(x, windows(3))
    assert joined.shape == (1, 2 + 3 * 8, WIDTH)
    torch.testing.assert_close(joined[0, :2], (tokens[0, :2] + tokens[1, :2] + tokens[2, :2]) / 3)
    torch.testing.assert_close(joined[0, 2:], torch.cat([tokens[i, 2:] for i in range(3)]))
    short = audio(length=5).encode(x, windows(3))
    torch.testing.assert_close(short, compress(joined, 5, 2))


@pytest.mark.parametrize("counts", [[2, 1, 3], [1, 5], [6], [1] * 6])
def test_clips_of_different_lengths_in_one_batch(counts):
    """A clip's tokens do not depend on the clips beside it, however many windows each has."""
    tx, x = audio(), gaussian(6, 48, 32)
    batch = tx.encode(x, windows(*counts))
    assert batch.shape == (len(counts), 2 + 4, WIDTH)
    for encoded, part in zip(batch, x.split(counts), strict=True):
        torch.testing.assert_close(encoded[None], tx.encode(part, windows(len(part))))


def test_padding_is_left_out():
    """Patch tokens of padding are left out, and special tokens count by the frames that are the
    clip's: a window that is a tenth full has a tenth of a full one's weight."""
    tx, x = audio(), gaussian(2, 48, 32)
    real = torch.arange(PATCHES + 2)
    with torch.inference_mode():
        tokens = tx.encoder(x).last_hidden_state  # (2, 2 + 8, width)
    (clip,) = tx.read(x, [Windows(torch.tensor([50, 5]), real)])
    torch.testing.assert_close(clip[0, :2], (10 * tokens[0, :2] + tokens[1, :2]) / 11)
    torch.testing.assert_close(clip[0, 2:], torch.cat([tokens[0, 2:], tokens[1, 2:4]]))


def test_a_short_clip_repeats_its_patches_evenly():
    """Every clip sends as many tokens as asked for, and none of padding."""
    tx, x = audio(length=5), gaussian(1, 48, 32)
    (clip,) = tx.read(x, [Windows(torch.tensor([5]), torch.arange(2))])
    sent = tx.compress([clip])
    assert torch.equal(sent[0, 2:], clip[0, 2:][[0, 0, 0, 1, 1]])
    whole = audio(length=2 * PATCHES).encode(x)
    assert torch.equal(whole[0, 2:], tx.encoder(x).last_hidden_state[0, 2:].repeat_interleave(2, 0))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_an_encoder_call_has_at_most_so_many_rows(rows):
    """A sound of many windows does not go through the encoder at once, and gives the same."""
    tx, x, seen = audio(), gaussian(4, 48, 32), []
    whole = tx.encode(x, windows(3, 1))
    tx.encoder.register_forward_hook(lambda _module, args, _out: seen.append(len(args[0])))
    torch.testing.assert_close(tx.encode(x, windows(3, 1), rows), whole)
    assert max(seen) <= rows and sum(seen) == 4


def test_no_window_is_dropped():
    """Another sound in any window changes what is sent."""
    tx, x = audio(), gaussian(5, 48, 32)
    before = tx.encode(x, windows(5))
    for i in range(5):
        other = x.clone()
        other[i] = gaussian(48, 32, seed=1)
        changed = (tx.encode(other, windows(5)) - before).abs().amax(-1)[0]
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
