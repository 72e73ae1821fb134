"""Token compression: no token is lost, and compressing before the projection changes nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.token_compression import (
    COMPRESSIONS,
    compress,
    compress_each,
    sliding_window,
    uniform,
    window_bounds,
)
from tests.helpers.draw import fuzz, gaussian

WAYS = pytest.mark.parametrize("how", COMPRESSIONS)
# Patches of AST a window, of six windows, of ViViT, and sizes that do not divide.
SIZES = [(1212, 128), (7272, 128), (3136, 128), (100, 7), (17, 16), (16, 16), (5, 3), (1, 1)]


def tokens(count, width=4, batch=2):
    return gaussian(batch, count, width)


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
    pooled = sliding_window(x, length)
    torch.testing.assert_close(pooled, expected)
    pooled.sum().backward()
    assert x.grad.gt(0).all()


@fuzz(200)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_uniform_is_distinct_and_evenly_spaced(count, length):
    """`uniform` keeps whole tokens, none twice, at even steps and over the whole range."""
    kept = uniform(torch.arange(count)[None, :, None].float(), length)[0, :, 0].tolist()
    assert len(set(kept)) == min(length, count) and kept == sorted(kept)
    steps = {int(b - a) for a, b in zip(kept, kept[1:], strict=False)}
    if steps:
        assert max(steps) - min(steps) <= 1
    step = count / len(kept)
    assert kept[0] <= step / 2 and count - 1 - kept[-1] <= step / 2 + 1


@fuzz(200)
@given(
    st.integers(1, 200), st.integers(1, 260), st.integers(0, 2), st.sampled_from([*COMPRESSIONS])
)
def test_compressed_tokens_are_means_of_patches_for_any_lengths(count, length, special, how):
    """Whatever the sizes: so many tokens come out, each the mean of its whole window or its one
    token, with no part of special tokens; these come first, as they are."""
    weights = compress(torch.eye(special + count)[None], length, special, how)[0]
    assert weights.shape == (special + min(length, count), special + count)
    assert torch.equal(weights[:special], torch.eye(special + count)[:special])
    expected = torch.zeros(len(weights) - special, special + count)
    for row, (a, b) in zip(expected, window_bounds(count, length), strict=True):
        chosen = (
            slice(a, b) if how == "sliding_window" else slice((a + b - 1) // 2, (a + b + 1) // 2)
        )
        row[special:][chosen] = 1 / (chosen.stop - chosen.start)
    torch.testing.assert_close(weights[special:], expected)


@WAYS
def test_special_tokens_pass_through_first(how):
    """Class and distillation tokens come first, untouched, and take no part in the pooling."""
    x = tokens(2 + 50)
    out = compress(x, 8, 2, how)
    assert out.shape == (2, 2 + 8, 4) and torch.equal(out[:, :2], x[:, :2])
    x[:, :2] = 1e6
    assert torch.equal(compress(x, 8, 2, how)[:, 2:], out[:, 2:])


@WAYS
@pytest.mark.parametrize("length", [20, 21, 1000])
def test_enough_room_keeps_all_tokens(how, length):
    """A length of the patches or more keeps all of them as they are, and invents none."""
    x = tokens(2 + 20)
    torch.testing.assert_close(compress(x, length, 2, how), x, rtol=0, atol=1e-7)


@WAYS
def test_each_clip_is_compressed_to_its_own_length(how):
    """As by itself, with padding of zeros behind, which the mask knows."""
    x, lengths = tokens(2 + 20, batch=5), [3, 20, 1, 3, 8]
    sent, mask = compress_each(x, lengths, 2, how)
    assert sent.shape == (5, 2 + 20, 4) and mask.sum(dim=1).tolist() == [5, 22, 3, 5, 10]
    assert sent[~mask].eq(0).all()
    for i, length in enumerate(lengths):
        assert mask[i, : 2 + length].all()
        alone = compress(x[i : i + 1], length, 2, how)[0]
        torch.testing.assert_close(sent[i, mask[i]], alone)


@WAYS
def test_compression_commutes_with_the_projection(how):
    """Compressing before a linear layer with bias gives what compressing after it would."""
    torch.manual_seed(0)
    project = torch.nn.Linear(4, 6)
    x = tokens(2 + 101)
    before, after = project(compress(x, 16, 2, how)), compress(project(x), 16, 2, how)
    torch.testing.assert_close(before, after)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(how, dtype):
    """Half-precision tokens stay in half precision."""
    assert compress(tokens(2 + 30).to(dtype), 8, 2, how).dtype == dtype


@pytest.mark.parametrize(
    "count, length, special, how, message",
    [
        (10, 0, 1, "sliding_window", "token length 0"),
        (10, -3, 1, "uniform", "token length -3"),
        (10, 4, 1, "attention", "attention.*sliding_window"),
        (2, 4, 2, "sliding_window", "2 tokens"),
        (1, 4, 2, "uniform", "1 tokens"),
    ],
)
def test_bad_requests_are_refused(count, length, special, how, message):
    """A length below 1, an unknown way and an input without patches are named."""
    with pytest.raises(ValueError, match=message):
        compress(tokens(count), length, special, how)
