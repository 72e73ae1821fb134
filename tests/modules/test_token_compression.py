"""Token compression: no token is lost, and compressing before the projection changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.token_compression import (
    COMPRESSIONS,
    compress,
    sliding_window,
    uniform,
    window_bounds,
)

# Patches of AST a window, of six windows, of ViViT, and sizes that do not divide.
SIZES = [(1212, 128), (7272, 128), (3136, 128), (100, 7), (17, 16), (16, 16), (5, 3), (1, 1)]


def tokens(count, width=4, batch=2, seed=0):
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(seed))


def check_windows(count, length):
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
def test_windows_cover_every_token(count, length):
    """The windows leave out no token and differ in size by one at most."""
    check_windows(count, length)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.integers(1, 4000), st.integers(1, 4200))
def test_windows_cover_every_token_for_any_lengths(count, length):
    """The same for any number of tokens and any length asked for."""
    check_windows(count, length)


@pytest.mark.parametrize("count, length", SIZES)
def test_sliding_window_is_the_mean_over_each_window(count, length):
    """Pooling gives the plain means over `window_bounds`."""
    x = tokens(count)
    expected = torch.stack([x[:, a:b].mean(dim=1) for a, b in window_bounds(count, length)], 1)
    torch.testing.assert_close(sliding_window(x, length), expected)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 100))
def test_sliding_window_is_the_mean_for_any_lengths(count, length):
    """The same for any number of tokens and any length asked for."""
    x = tokens(count)
    expected = torch.stack([x[:, a:b].mean(dim=1) for a, b in window_bounds(count, length)], 1)
    torch.testing.assert_close(sliding_window(x, length), expected)


@pytest.mark.parametrize("count, length", SIZES)
def test_every_token_reaches_the_pooled_ones(count, length):
    """No token is without influence on what is sent."""
    x = tokens(count).requires_grad_()
    sliding_window(x, length).sum().backward()
    assert x.grad.gt(0).all()


@pytest.mark.parametrize("how", COMPRESSIONS)
@pytest.mark.parametrize("special", [0, 1, 2])
def test_special_tokens_pass_through_first(how, special):
    """Class and distillation tokens come first, untouched, and take no part in the pooling."""
    x = tokens(special + 50)
    out = compress(x, 8, special, how)
    assert out.shape == (2, special + 8, 4)
    assert torch.equal(out[:, :special], x[:, :special])
    x[:, :special] = 1e6
    assert torch.equal(compress(x, 8, special, how)[:, special:], out[:, special:])


@pytest.mark.parametrize("how", COMPRESSIONS)
@pytest.mark.parametrize("length", [20, 21, 1000])
def test_enough_room_keeps_all_tokens(how, length):
    """A length of the patches or more keeps all of them as they are, and invents none."""
    x = tokens(2 + 20)
    torch.testing.assert_close(compress(x, length, 2, how), x, rtol=0, atol=1e-7)


@settings(deadline=None, derandomize=True, max_examples=200)
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


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(
    st.integers(1, 200), st.integers(1, 260), st.integers(0, 2), st.sampled_from([*COMPRESSIONS])
)
def test_compressed_tokens_are_means_of_patches_for_any_lengths(count, length, special, how):
    """Whatever the sizes: so many tokens come out, each a weighting of patches that sums to one,
    over its whole window or of its one token; special tokens stay."""
    weights = compress(torch.eye(special + count)[None], length, special, how)[0]
    assert weights.shape == (special + min(length, count), special + count)
    assert torch.equal(weights[:special], torch.eye(special + count)[:special])
    pooled = weights[special:]
    assert pooled[:, :special].eq(0).all() and pooled.ge(0).all()
    torch.testing.assert_close(pooled.sum(dim=1), torch.ones(len(pooled)))
    for row, (a, b) in zip(pooled[:, special:], window_bounds(count, length), strict=True):
        weighed = row.nonzero().flatten().tolist()
        assert weighed == (list(range(a, b)) if how == "sliding_window" else [(a + b - 1) // 2])


@pytest.mark.parametrize("how", COMPRESSIONS)
def test_compression_commutes_with_the_projection(how):
    """Compressing before a linear layer with bias gives what compressing after it would."""
    torch.manual_seed(0)
    project = torch.nn.Linear(4, 6)
    x = tokens(2 + 101)
    before, after = project(compress(x, 16, 2, how)), compress(project(x), 16, 2, how)
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("how", COMPRESSIONS)
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
