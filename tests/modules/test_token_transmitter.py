"""The token transmitter: a frozen encoder whose tokens are read whole, and a trained projection."""

import pytest
import torch
from transformers import ASTConfig, VivitConfig

from modules.token_compression import COMPRESSIONS, Layout, compress
from modules.token_transmitter import GRIDS, TokenTransmitter, Windows
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


def attention_of(encoder, x, special):
    """The last layer's attention from special tokens to patches, mean over the former and over
    heads, as transformers says by its slow kernel: (rows, patches)."""
    encoder.set_attn_implementation("eager")
    with torch.inference_mode():
        of_layers = encoder(x, output_attentions=True).attentions
    encoder.set_attn_implementation("sdpa")
    return of_layers[-1].mean(dim=1)[:, :special, special:].mean(dim=1).clone()


VIDEO, SOUND = (3, 4, 3, 32, 32), (3, 48, 32)  # clips, ...
BOTH = pytest.mark.parametrize("make, shape, special", [(visual, VIDEO, 1), (audio, SOUND, 2)])


@BOTH
def test_encoder_stays_in_evaluation_mode(make, shape, special):
    """In training the encoder draws no dropout: the same clip gives the same tokens."""
    tx = make().train()
    assert tx.training and tx.projection.training
    assert not any(module.training for module in tx.encoder.modules())
    x = gaussian(*shape)
    assert torch.equal(tx.encode(x).tokens, tx.encode(x).tokens)
    assert torch.equal(tx.encode(x).tokens, make().eval().encode(x).tokens)
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
        encoded, layout = tx.encode(x)
        assert encoded.shape == (3, special + length, WIDTH)
        attention = attention_of(tx.encoder, x, special) if how == "attention" else None
        whole = Layout(tx.places.expand(3, -1, -1), attention)
        wanted, after = compress(tokens, length, special, how, whole)
        torch.testing.assert_close(encoded, wanted)
        torch.testing.assert_close(layout, after)
        torch.testing.assert_close(encoded[:, :special], tokens[:, :special])
        again, same = tx.encode(x, windows(1, 1, 1))
        torch.testing.assert_close(again, encoded)
        torch.testing.assert_close(same, layout)
        assert tx(encoded).shape == (3, special + length, HIDDEN)


def test_windows_are_joined():
    """The windows of a long clip: patch tokens one after the other, special tokens averaged."""
    tx, x = audio(length=1000), gaussian(3, 48, 32)
    with torch.inference_mode():
        tokens = tx.encoder(x).last_hidden_state  # (3, 2 + 8, width)
    ((joined, layout),) = tx.read(x, windows(3))
    assert joined.shape == (1, 2 + 3 * 8, WIDTH)
    torch.testing.assert_close(joined[0, :2], (tokens[0, :2] + tokens[1, :2] + tokens[2, :2]) / 3)
    torch.testing.assert_close(joined[0, 2:], torch.cat([tokens[i, 2:] for i in range(3)]))
    short = audio(length=5).encode(x, windows(3)).tokens
    torch.testing.assert_close(short, compress(joined, 5, 2, "sliding_window", layout)[0])


@pytest.mark.parametrize("counts", [[2, 1, 3], [1, 5], [6], [1] * 6])
def test_clips_of_different_lengths_in_one_batch(counts):
    """A clip's tokens do not depend on the clips beside it, however many windows each has."""
    tx, x = audio(), gaussian(6, 48, 32)
    batch, layout = tx.encode(x, windows(*counts))
    assert batch.shape == (len(counts), 2 + 4, WIDTH)
    assert layout.places.shape == (len(counts), 4, 2)
    for encoded, places, part in zip(batch, layout.places, x.split(counts), strict=True):
        alone, own = tx.encode(part, windows(len(part)))
        torch.testing.assert_close(encoded[None], alone)
        torch.testing.assert_close(places[None], own.places)


def test_padding_is_left_out():
    """Patch tokens of padding are left out, and special tokens count by the frames that are the
    clip's: a window that is a tenth full has a tenth of a full one's weight."""
    tx, x = audio(), gaussian(2, 48, 32)
    real = torch.arange(PATCHES + 2)
    with torch.inference_mode():
        tokens = tx.encoder(x).last_hidden_state  # (2, 2 + 8, width)
    ((clip, layout),) = tx.read(x, [Windows(torch.tensor([50, 5]), real)])
    torch.testing.assert_close(clip[0, :2], (10 * tokens[0, :2] + tokens[1, :2]) / 11)
    torch.testing.assert_close(clip[0, 2:], torch.cat([tokens[0, 2:], tokens[1, 2:4]]))
    assert layout.places.shape == (1, PATCHES + 2, 2)


@BOTH
def test_the_grid_is_the_one_that_the_encoder_reads(make, shape, special):
    """Light or sound that is added at a patch's place changes the embedding of this patch alone."""
    tx, x = make(), torch.zeros(1, *shape[1:])
    before = tx.encoder.embeddings(x)[0, special:]
    assert tx.places.shape == (PATCHES, 3 if special == 1 else 2)
    assert len(tx.places.unique(dim=0)) == PATCHES
    for patch, place in enumerate(tx.places.int().tolist()):
        other = x.clone()
        if special == 1:  # tubelets of 2 frames and 16 x 16 pixels
            t, y, z = place
            other[0, 2 * t, :, 16 * y, 16 * z] = 1
        else:  # patches of 16 x 16, every 10 frames and 10 bands: those in between are its own
            t, f = place
            other[0, 10 * t + 7, 10 * f + 7] = 1
        moved = (tx.encoder.embeddings(other)[0, special:] - before).abs().sum(dim=1) > 1e-6
        assert moved.nonzero()[:, 0].tolist() == [patch]


def test_published_grids():
    """ViViT B 16x2 has 16 x 14 x 14 patches, time first; AST 101 times, band by band."""
    assert GRIDS["vivit"](VivitConfig())[[0, 1, 14, 196, -1]].tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [15, 13, 13]
    ]  # fmt: skip
    places = GRIDS["audio-spectrogram-transformer"](ASTConfig())
    assert places[[0, 1, 100, 101, -1]].tolist() == [[0, 0], [1, 0], [100, 0], [0, 1], [100, 11]]


def test_windows_follow_one_another_along_time():
    """A later window's patches lie behind those of the earlier ones, and padding nowhere."""
    tx, x = audio(), gaussian(3, 48, 32)
    kept = [*range(PATCHES), *range(PATCHES, 2 * PATCHES), 2 * PATCHES, 2 * PATCHES + 4]
    ((_, layout),) = tx.read(x, [Windows(torch.tensor([48, 48, 20]), torch.tensor(kept))])
    times, bands = layout.places[0].T
    assert times.tolist() == 2 * [0, 1, 2, 3] + 2 * [4, 5, 6, 7] + [8, 8]
    assert bands.tolist() == 2 * (4 * [0] + 4 * [1]) + [0, 1]


@BOTH
def test_attention_is_found_beside_the_fast_kernel(make, shape, special):
    """What the encoder's last layer pays to each patch, as transformers' own slow kernel says, in
    calls of any size; it is asked for by its compression alone, and the tokens stay the same."""
    tx, x = make(), gaussian(*shape)
    torch.manual_seed(1)
    for weight in tx.encoder.layers[-1].attention.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # an attention that is far from even
    (plain,), (found,) = tx.read(x), tx.read(x, rows=2, attention=True)
    assert plain.layout.attention is None and torch.equal(plain.layout.places, found.layout.places)
    torch.testing.assert_close(plain.tokens, found.tokens)
    wanted = attention_of(tx.encoder, x, special)
    torch.testing.assert_close(found.layout.attention, wanted)
    assert wanted.max() > 3 * wanted.min()
    assert not tx.encoder.layers[-1].attention._forward_pre_hooks
    assert tx.encode(x).layout.attention is None


def test_attention_of_windows_goes_with_their_patches():
    """Without that of padding."""
    tx, x = audio(compression="attention"), gaussian(2, 48, 32)
    real = torch.arange(PATCHES + 2)
    ((_, layout),) = tx.read(x, [Windows(torch.tensor([50, 5]), real)], attention=True)
    wanted = attention_of(tx.encoder, x, 2).flatten()[real]
    torch.testing.assert_close(layout.attention[0], wanted)
    assert tx.encode(x).layout.attention.shape == (2, 4)


def test_a_short_clip_repeats_its_patches_evenly():
    """Every clip sends as many tokens as asked for, and none of padding."""
    tx, x = audio(length=5), gaussian(1, 48, 32)
    (clip,) = tx.read(x, [Windows(torch.tensor([5]), torch.arange(2))])
    sent, layout = tx.compress([clip])
    assert torch.equal(sent[0, 2:], clip.tokens[0, 2:][[0, 0, 0, 1, 1]])
    assert torch.equal(layout.places[0], clip.layout.places[0][[0, 0, 0, 1, 1]])
    whole = audio(length=2 * PATCHES).encode(x).tokens
    assert torch.equal(whole[0, 2:], tx.encoder(x).last_hidden_state[0, 2:].repeat_interleave(2, 0))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_an_encoder_call_has_at_most_so_many_rows(rows):
    """A sound of many windows does not go through the encoder at once, and gives the same."""
    tx, x, seen = audio(), gaussian(4, 48, 32), []
    whole = tx.encode(x, windows(3, 1)).tokens
    tx.encoder.register_forward_hook(lambda _module, args, _out: seen.append(len(args[0])))
    torch.testing.assert_close(tx.encode(x, windows(3, 1), rows).tokens, whole)
    assert max(seen) <= rows and sum(seen) == 4


def test_no_window_is_dropped():
    """Another sound in any window changes what is sent."""
    tx, x = audio(), gaussian(5, 48, 32)
    before = tx.encode(x, windows(5)).tokens
    for i in range(5):
        other = x.clone()
        other[i] = gaussian(48, 32, seed=1)
        changed = (tx.encode(other, windows(5)).tokens - before).abs().amax(-1)[0]
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
    (encoded, _), encoder = tx.encode(gaussian(*shape)), tx.encoder

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
