"""Token compression: no token is lost that need not be, what lies together stays together, and
compressing before the projection changes nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from modules.token_compression import (
    COMPRESSIONS,
    Layout,
    cells,
    clip_uses,
    compress,
    compress_each,
    joined,
    side_bits,
    sliding_window,
    uniform,
    window_bounds,
)
from modules.token_transmitter import places_of
from tests.helpers.draw import fuzz, gaussian

WAYS = pytest.mark.parametrize("how", COMPRESSIONS)
# Patches of AST a window, of six windows, of ViViT, and sizes that do not divide.
SIZES = [(1212, 128), (7272, 128), (3136, 128), (100, 7), (17, 16), (5, 3), (2, 1)]
MEANS = {"sliding_window", "grid", "merge"}  # of all tokens; the others choose some
MINI = places_of(8, 4, 4)  # the mini ViViT's grid


def tokens(count, width=4, batch=2):
    return gaussian(batch, count, width)


def layout(count, batch=2):
    """Tokens in a grid of rows of five, which each clip's attention singles out otherwise."""
    places = torch.stack([torch.arange(count) // 5, torch.arange(count) % 5], dim=1).float()
    return Layout(places.expand(batch, -1, -1), gaussian(batch, count, seed=7).softmax(dim=1))


def compressed(x, length, special, how):
    return compress(x, length, special, how, layout(x.shape[1] - special, len(x)))[0]


@fuzz(300)
@given(st.integers(1, 4000), st.integers(1, 4200))
def test_windows_cover_every_token(count, length):
    """The windows leave out no token and differ in size by one at most."""
    bounds = window_bounds(count, length)
    assert len(bounds) == min(length, count)
    assert bounds[0][0] == 0 and bounds[-1][1] == count
    for (a, b), (c, d) in zip(bounds, bounds[1:], strict=False):
        assert a < c <= b < d, "a gap, or a window inside another"
        assert b - c <= 1, "neighbours overlap by more than one token"
    sizes = {b - a for a, b in bounds}
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    if length >= count:
        assert sizes == {1}
    if count % len(bounds) == 0:
        assert sizes == {count // len(bounds)}, "no overlap where the division leaves nothing"


@pytest.mark.parametrize("count, length", SIZES)
def test_sliding_window_is_the_mean_over_each_window(count, length):
    """Pooling gives the plain means over windows that cover every token, each of which so has its
    part in what is sent."""
    test_windows_cover_every_token.hypothesis.inner_test(count, length)
    x = tokens(count).requires_grad_()
    expected = torch.stack([x[:, a:b].mean(dim=1) for a, b in window_bounds(count, length)], 1)
    pooled, _ = sliding_window(x, length, layout(count))
    torch.testing.assert_close(pooled, expected)
    pooled.sum().backward()
    assert x.grad.gt(0).all()


@fuzz(200)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_uniform_is_distinct_and_evenly_spaced(count, length):
    """`uniform` keeps whole tokens, none twice, at even steps and over the whole range."""
    kept, _ = uniform(torch.arange(count)[None, :, None].float(), length, layout(count, 1))
    kept = kept[0, :, 0].tolist()
    assert len(set(kept)) == min(length, count) and kept == sorted(kept)
    steps = {int(b - a) for a, b in zip(kept, kept[1:], strict=False)}
    if steps:
        assert max(steps) - min(steps) <= 1
    step = count / len(kept)
    assert kept[0] <= step / 2 and count - 1 - kept[-1] <= step / 2 + 1


@fuzz(400)
@given(
    st.integers(1, 200), st.integers(1, 260), st.integers(0, 2), st.sampled_from([*COMPRESSIONS])
)
def test_compressed_tokens_are_means_of_patches_for_any_lengths(count, length, special, how):
    """Whatever the sizes: so many tokens come out, each the mean of its patches or its one token,
    with no part of special tokens; these come first, as they are. Windows and middles are those
    that were asked for; boxes and groups take every patch once; what is chosen is chosen once."""
    weights = compressed(torch.eye(special + count)[None], length, special, how)[0]
    assert weights.shape == (special + min(length, count), special + count)
    assert torch.equal(weights[:special], torch.eye(special + count)[:special])
    assert weights[special:, :special].eq(0).all()
    found = weights[special:, special:]
    torch.testing.assert_close(found, found.gt(0) / found.gt(0).sum(dim=1, keepdim=True))
    if how in ("sliding_window", "uniform"):
        expected = torch.zeros_like(found)
        for row, (a, b) in zip(expected, window_bounds(count, length), strict=True):
            chosen = slice(a, b) if how in MEANS else slice((a + b - 1) // 2, (a + b + 1) // 2)
            row[chosen] = 1 / (chosen.stop - chosen.start)
        torch.testing.assert_close(found, expected)
    else:
        times = found.gt(0).sum(dim=0)
        assert times.max() <= 1 and (how == "attention" or times.min() == 1)
        assert how == "merge" or found.gt(0).sum(dim=1).min() >= 1


@WAYS
def test_special_tokens_pass_through_first(how):
    """Class and distillation tokens come first, untouched, and take no part in the pooling."""
    x = tokens(2 + 50)
    out = compressed(x, 8, 2, how)
    assert out.shape == (2, 2 + 8, 4) and torch.equal(out[:, :2], x[:, :2])
    x[:, :2] = 1e6
    assert torch.equal(compressed(x, 8, 2, how)[:, 2:], out[:, 2:])


@WAYS
@pytest.mark.parametrize("length", [20, 21, 1000])
def test_enough_room_keeps_all_tokens(how, length):
    """A length of the patches or more keeps all of them as they are, and invents none."""
    x = tokens(2 + 20)
    torch.testing.assert_close(compressed(x, length, 2, how), x, rtol=0, atol=1e-7)


@WAYS
def test_each_clip_is_compressed_to_its_own_length(how):
    """As by itself, with padding of zeros behind, which the mask knows."""
    x, lengths, of = tokens(2 + 20, batch=5), [3, 20, 1, 3, 8], layout(20, batch=5)
    sent, mask = compress_each(x, lengths, 2, how, of)
    assert sent.shape == (5, 2 + 20, 4) and mask.sum(dim=1).tolist() == [5, 22, 3, 5, 10]
    assert sent[~mask].eq(0).all()
    for i, length in enumerate(lengths):
        assert mask[i, : 2 + length].all()
        own = of.each(lambda part, i=i: part[i : i + 1])
        alone = compress(x[i : i + 1], length, 2, how, own)[0][0]
        torch.testing.assert_close(sent[i, mask[i]], alone)


@pytest.mark.parametrize("how", [how for how in COMPRESSIONS if how != "merge"])
def test_compression_commutes_with_the_projection(how):
    """Compressing before a linear layer with bias gives what compressing after it would; merging
    alone looks at what tokens hold."""
    torch.manual_seed(0)
    project = torch.nn.Linear(4, 6)
    x = tokens(2 + 101)
    before, after = project(compressed(x, 16, 2, how)), compressed(project(x), 16, 2, how)
    torch.testing.assert_close(before, after)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(how, dtype):
    """Half-precision tokens stay in half precision."""
    assert compressed(tokens(2 + 30).to(dtype), 8, 2, how).dtype == dtype


@WAYS
def test_layout_follows_the_tokens(how):
    """Where a compressed token is said to lie is the mean place of its patches: a clip whose
    tokens hold their own places, compressed, holds the layout's. Attention goes with what is
    chosen. Clips of different layouts do not mix."""
    parts = [layout(60, 1), Layout(places_of(4, 15)[None], layout(60, 1).attention)]
    of = joined(parts)
    found, after = compress(of.places, 7, 0, how, of)
    torch.testing.assert_close(found, after.places)
    if how == "attention":
        assert (after.attention.min(dim=1).values >= of.attention.topk(7).values[:, -1]).all()
    for i, part in enumerate(parts):
        alone, _ = compress(part.places, 7, 0, how, part)
        torch.testing.assert_close(found[i : i + 1], alone)


@pytest.mark.parametrize(
    "count, length, special, how, message",
    [
        (10, 0, 1, "sliding_window", "token length 0"),
        (10, -3, 1, "uniform", "token length -3"),
        (10, 4, 1, "zip", "zip.*sliding_window"),
        (2, 4, 2, "sliding_window", "2 tokens"),
        (1, 4, 2, "uniform", "1 tokens"),
    ],
)
def test_bad_requests_are_refused(count, length, special, how, message):
    """A length below 1, an unknown way and an input without patches are named."""
    with pytest.raises(ValueError, match=message):
        compress(tokens(count), length, special, how, layout(max(0, count - special)))


# Boxes of an encoder's grid.


@st.composite
def places(draw):
    """A whole grid of one to three axes, or patches of it, some of them twice; and a length."""
    sides = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    whole = np.indices(sides).reshape(len(sides), -1).T
    if draw(st.booleans()):
        rows = draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=60))
        whole = whole[rows]
    if draw(st.booleans()):
        whole = whole / 3
    return whole, draw(st.integers(1, len(whole)))


@fuzz(500)
@given(places())
def test_any_number_of_boxes_comes_out(asked):
    """Exactly so many boxes, none of them empty, of any grid and of any patches in it."""
    whole, length = asked
    found = cells(whole, length)
    assert sorted(set(found)) == list(range(length)) and len(found) == len(whole)


@fuzz(200)
@given(places())
def test_boxes_are_boxes(asked):
    """Two of them are apart along some axis, so that none reaches into another; they are numbered
    by their centres, time first."""
    whole, length = asked
    if len(np.unique(whole, axis=0)) < len(whole):
        return  # patches at one place may go to different boxes
    found = [whole[cells(whole, length) == number] for number in range(length)]
    for i, one in enumerate(found):
        for other in found[:i]:
            apart = (one.min(axis=0) > other.max(axis=0)) | (other.min(axis=0) > one.max(axis=0))
            assert apart.any()
    centres = [tuple(box.mean(axis=0).round(3)) for box in found]
    assert centres == sorted(centres)


@pytest.mark.parametrize(
    "length, shape",
    [(1, (8, 4, 4)), (2, (4, 4, 4)), (4, (4, 4, 2)), (8, (4, 2, 2)), (16, (2, 2, 2)),
     (32, (2, 2, 1)), (64, (2, 1, 1)), (128, (1, 1, 1))],
)  # fmt: skip
def test_powers_of_two_give_regular_grids(length, shape):
    """Of the mini ViViT's 8 x 4 x 4 patches: boxes of one shape, as near to a cube as it can be."""
    found = cells(MINI.numpy(), length)
    for number in range(length):
        box = MINI[found == number]
        assert tuple(len(axis.unique()) for axis in box.T) == shape
        assert len(box) == math.prod(shape)


def test_grid_tells_left_from_right_and_early_from_late():
    """Of patches that hold where they lie, four tokens of the grid keep left and right apart and
    two keep early and late apart, which windows over the flattened order average."""
    of = Layout(MINI[None])
    four, _ = compress(of.places, 4, 0, "grid", of)
    assert four[0, :, 2].tolist() == [0.5, 2.5, 0.5, 2.5]
    assert four[0, :, 0].tolist() == [1.5, 1.5, 5.5, 5.5]
    windows, _ = compress(of.places, 4, 0, "sliding_window", of)
    assert windows[0, :, 2].tolist() == 4 * [1.5]


@pytest.mark.parametrize("how", ["sliding_window", "grid"])
@pytest.mark.parametrize("between", [64, 32])
@pytest.mark.parametrize("length", [16, 4, 1])
def test_cached_tokens_are_compressed_as_patches_are(how, between, length):
    """What is cached at 64 tokens a clip, with its layout, and compressed again to 16 is what
    compressing the patches to 16 gives."""
    of, x = Layout(MINI.expand(3, -1, -1)), tokens(1 + 128, 6, batch=3)
    cached, layout = compress(x, between, 1, how, of)
    again, twice = compress(cached, length, 1, how, layout)
    direct, once = compress(x, length, 1, how, of)
    torch.testing.assert_close(again, direct)
    torch.testing.assert_close(twice.places, once.places)


def test_cached_tokens_of_an_uneven_grid_are_compressed_about_as_patches_are():
    """Where nothing divides, AST's grid of 29 x 5, say: boxes lie about where they would."""
    of = Layout(places_of(5, 29).flip(1)[None])
    _, layout = compress(of.places, 64, 0, "grid", of)
    twice, _ = compress(layout.places, 16, 0, "grid", layout)
    once, _ = compress(of.places, 16, 0, "grid", of)
    assert torch.cdist(once, twice).min(dim=2).values.mean() < 1.0


# The baselines of the field.


def test_attention_keeps_what_is_attended_to():
    """The patches of the largest attention, in their order; each clip has its own."""
    x, of = tokens(2 + 30, batch=3), layout(30, batch=3)
    found, _ = compress(x, 5, 2, "attention", of)
    for clip, patches, weights in zip(found, x[:, 2:], of.attention, strict=True):
        kept = sorted(sorted(range(30), key=lambda i: -weights[i])[:5])
        assert torch.equal(clip[2:], patches[kept])


def test_merge_joins_what_is_alike():
    """Tokens of five kinds, 20 of each and noisy, become five tokens: one a kind, each the mean of
    its kind's."""
    kinds = 10 * normalize(gaussian(5, 32, seed=1), dim=1)
    which = torch.arange(100) * 7 % 5
    x = (kinds[which] + 0.1 * gaussian(100, 32))[None]
    found, after = compress(x, 5, 0, "merge", layout(100, 1))
    means = torch.stack([x[0, which == k].mean(dim=0) for k in range(5)])
    order = torch.cdist(means, found[0]).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(5))
    torch.testing.assert_close(found[0, order], means)
    places = layout(100, 1).places[0]
    torch.testing.assert_close(
        after.places[0, order], torch.stack([places[which == k].mean(dim=0) for k in range(5)])
    )


def test_merge_keeps_order_and_clips_apart():
    """A clip merges as by itself; tokens without their like stay where they were."""
    x = tokens(40, 16, batch=3)
    found = compressed(x, 20, 0, "merge")
    for i in range(3):
        torch.testing.assert_close(found[i], compressed(x[i : i + 1], 20, 0, "merge")[0])
        kept = [j for j in range(40) if (found[i] == x[i, j]).all(dim=1).any()]
        places = [(found[i] == x[i, j]).all(dim=1).nonzero().item() for j in kept]
        assert len(kept) > 2 and places == sorted(places)


# Side information.


@WAYS
def test_side_information_in_bits(how):
    """None where places alone decide; which of the patches were chosen, or into which token each
    went, is at least what counting all the possibilities for a few patches says."""
    assert side_bits(how, 100, 100) == side_bits(how, 8, 20) == 0
    if how in ("sliding_window", "uniform", "grid"):
        assert side_bits(how, 3136, 128) == 0
    elif how == "attention":
        assert side_bits(how, 5, 2) == pytest.approx(math.log2(10))
        assert side_bits(how, 3136, 128) == pytest.approx(768.4, abs=5)
    else:
        assert side_bits(how, 5, 2) >= math.log2(15)  # Stirling's number of groups of 5 into 2
        assert side_bits(how, 3136, 128) < 3136 * 7
        assert side_bits(how, 50, 1) == 0


def test_side_information_takes_channel_uses():
    """A clip's tokens go in pairs of numbers, its side information at the capacity: 2 bits a symbol
    at an SNR of 3, so that fewer are left for tokens at equal cost, and more at a low SNR."""
    at_3 = 10 * math.log10(3)
    assert clip_uses(9, 128, 0.0, at_3) == 9 * 64
    assert clip_uses(9, 128, 100.0, at_3) == pytest.approx(9 * 64 + 50)
    assert clip_uses(9, 128, 100.0, -6.0) > clip_uses(9, 128, 100.0, 6.0)
    # At the mini preset's 8 of 128 visual tokens and 10 dB choosing costs 2 % more, merging 18 %.
    tokens = clip_uses(9, 128, 0.0, 10.0)
    extra = {how: clip_uses(9, 128, side_bits(how, 128, 8), 10.0) / tokens - 1
             for how in ("attention", "merge")}  # fmt: skip
    assert extra["attention"] == pytest.approx(0.02, abs=0.005)
    assert extra["merge"] == pytest.approx(0.185, abs=0.02)
