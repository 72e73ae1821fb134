"""The wireless channel: the noise it adds is the noise that was asked for."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import task_align
from modules.channel import CHANNELS, Channel, unit_power
from tests.helpers.draw import blocked, fuzz, gaussian, seeded
from utils.config import check

EACH = pytest.mark.parametrize("kind", CHANNELS)


def decibel(ratio):
    return 10 * torch.log10(ratio)


def snr_db(sent, received, mask=None):
    """Measured SNR of each clip over its real tokens, in dB."""
    mask = torch.ones(sent.shape[:2], dtype=torch.bool) if mask is None else mask
    signal = [s[m].double().square().sum() for s, m in zip(sent, mask, strict=True)]
    error = received.double() - sent.double()
    noise = [e[m].square().sum() for e, m in zip(error, mask, strict=True)]
    return decibel(torch.stack(signal) / torch.stack(noise))


def left(asked):
    """What the MMSE receiver leaves of a signal without fading, at so many dB."""
    snr = 10 ** (torch.as_tensor(asked) / 10)
    return (snr / (1 + snr)).reshape(-1, 1, 1)


def gains(sent, received, dims):
    """What each clip's (or token's) signal was multiplied by, noise averaged out."""
    sent, received = sent.double(), received.double()
    return (sent * received).sum(dims) / sent.square().sum(dims)


def fading_power(kind, clips, seed=3, **options):
    """|h|^2 of each clip, found from what went in and what came out alone.

    At 0 dB the MMSE receiver leaves the gain g = |h|^2 / (|h|^2 + 1).
    """
    sent = unit_power(gaussian(clips, 4, 512))
    received = Channel(kind, **options)(sent, 0.0, generator=seeded(seed))
    gain = gains(sent, received, (1, 2))
    return gain / (1 - gain)


@pytest.mark.parametrize("asked", [-12.0, 7, 30.0, torch.tensor([-6.0, 0.0, 12.0, 25.0])])
def test_measured_snr_is_the_asked_one(asked):
    """Signal power over noise power is the SNR asked for, to a tenth of a dB, one for all clips or
    one a clip: a quiet clip is sent as loud as a loud one beside it."""
    sent = gaussian(4, 200, 768) * torch.tensor([1e-2, 1.0, 1.0, 50.0])[:, None, None]
    received = Channel("awgn")(sent, asked, generator=seeded()) / left(asked)
    assert (snr_db(unit_power(sent), received) - asked).abs().max() < 0.1


def test_padding_carries_no_power():
    """A clip that is 90 % padding has the same SNR as a full one, whatever its padding holds and
    wherever it stands."""
    mask = torch.zeros(4, 1000, dtype=torch.bool)
    for row, real in zip(
        mask, [slice(1000), slice(500), slice(900, 1000), slice(450, 550)], strict=True
    ):
        row[real] = True
    sent = gaussian(4, 1000, 512)
    sent[~mask] = 1e3
    received = Channel("awgn")(sent, 10.0, mask, seeded())
    unit = unit_power(sent, mask)
    power = [clip[real].square().mean() for clip, real in zip(unit, mask, strict=True)]
    torch.testing.assert_close(torch.stack(power), torch.ones(4))
    assert (snr_db(unit, received / left(10.0), mask) - 10).abs().max() < 0.1
    assert received[~mask].eq(0).all() and received[mask].ne(0).all()


def test_noise_is_circular():
    """Both parts of a symbol get half of the noise each, and independently."""
    sent = unit_power(gaussian(1, 200, 1024))
    noise = (2 * Channel("awgn")(sent, 0.0, generator=seeded()) - sent).reshape(-1, 2)
    power = noise.square().mean(dim=0)
    assert decibel(power[0] / power[1]).abs() < 0.1
    assert noise.prod(dim=1).mean().abs() / power.mean() < 0.02
    assert noise.mean().abs() / power.mean().sqrt() < 0.02


@EACH
def test_infinite_snr_is_noiseless(kind):
    """At +inf dB tokens arrive as sent, at unit power; fading is undone by the equaliser."""
    sent = gaussian(3, 5, 16)
    received = Channel(kind)(sent, math.inf, generator=seeded())
    if kind in ("awgn", "none"):
        assert torch.equal(received, unit_power(sent))
    torch.testing.assert_close(received, unit_power(sent))


def test_none_adds_nothing():
    """The channel `none` gives what was sent at any SNR and draws no noise."""
    sent, source = gaussian(2, 5, 8), seeded()
    assert torch.equal(Channel("none")(sent, -20.0, generator=source), unit_power(sent))
    assert torch.equal(source.get_state(), seeded().get_state())


@EACH
def test_the_scale_of_a_clip_is_not_heard(kind):
    """Each clip leaves at unit mean power, whatever it was multiplied by: the same arrives, and a
    token that is louder than the others of its clip stays so."""
    sent = gaussian(3, 6, 64) * torch.arange(1.0, 7)[:, None]
    scaled = sent * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    first, second = (Channel(kind)(x, 6.0, generator=seeded()) for x in (sent, scaled))
    torch.testing.assert_close(first, second)
    token = Channel(kind)(sent, math.inf, generator=seeded()).square().mean(dim=2)  # (3, 6)
    torch.testing.assert_close(token.mean(dim=1), torch.ones(3))
    beside = token / sent.square().mean(dim=2)
    torch.testing.assert_close(beside, beside[:, :1].expand(3, 6))


@pytest.mark.parametrize("kind", ["awgn", "rayleigh", "rician"])
@pytest.mark.parametrize("snr", [-9.0, 0.0, 12.0])
def test_equaliser_is_linear_mmse(kind, snr):
    """No other scale of what arrives is nearer to what was sent, and a clip's mean power is the
    factor that is left of its signal, from which a receiver can tell it."""
    sent = unit_power(gaussian(30, 40, 512))
    received = Channel(kind)(sent, snr, generator=seeded())
    gain, power = gains(sent, received, (1, 2)).float(), received.square().mean(dim=(1, 2))
    torch.testing.assert_close(power, gain, rtol=0.1, atol=0.01)
    if kind == "awgn":
        torch.testing.assert_close(gain, left(snr).expand(30, 1, 1).flatten(), rtol=0.1, atol=0)


def test_rician_tends_to_awgn():
    """With K the scattered paths vanish, and what is left is the channel without fading."""
    sent = gaussian(4, 6, 64)
    still = Channel("awgn")(sent, 3.0, generator=seeded())
    apart = [
        (Channel("rician", k)(sent, 3.0, generator=seeded()) - still).abs().max()
        for k in (1.0, 1e2, 1e4, 1e8)
    ]
    assert apart == sorted(apart, reverse=True) and apart[0] > 0.1 and apart[-1] < 1e-3


def test_rayleigh_power_is_exponential():
    """|h|^2 of Rayleigh fading has mean 1 and an exponential distribution."""
    power = fading_power("rayleigh", 4000)
    assert abs(power.mean() - 1) < 0.05
    assert stats.kstest(power, stats.expon.cdf).statistic < 0.03


@pytest.mark.parametrize("k", [0.5, 4.0, 20.0])
def test_rician_power_follows_k(k):
    """|h|^2 of Rician fading has mean 1 and the distribution of its K-factor."""
    power = fading_power("rician", 2000, rician_k=k)
    assert abs(power.mean() - 1) < 0.05
    # 2 (K + 1) |h|^2 is noncentral chi-squared with 2 degrees of freedom around 2 K.
    assert stats.kstest(2 * (k + 1) * power, stats.ncx2(2, 2 * k).cdf).statistic < 0.04
    assert stats.kstest(2 * (k + 1) * power, stats.ncx2(2, 4 * k + 2).cdf).statistic > 0.1


@pytest.mark.parametrize("kind", ["rayleigh", "rician"])
def test_fading_is_one_draw_a_clip(kind):
    """All tokens of a clip fade alike (block fading), clips fade independently."""
    sent = gaussian(64, 8, 4096)
    token = gains(sent, Channel(kind)(sent, 0.0, generator=seeded()), 2)  # (clips, tokens)
    assert token.var(dim=1).mean() < 0.05 * token.mean(dim=1).var()
    assert len(token.mean(dim=1).round(decimals=4).unique()) > 50


@pytest.mark.parametrize("kind", ["rayleigh", "rician"])
def test_fading_scales_the_snr(kind):
    """After the equaliser a clip's SNR is |h|^2 times the one asked for."""
    asked = 6.0
    sent = unit_power(gaussian(40, 50, 512))
    received = Channel(kind)(sent, asked, generator=seeded())
    gain = gains(sent, received, (1, 2))
    power = gain / (1 - gain) / 10 ** (asked / 10)  # |h|^2
    scaled = gain[:, None, None] * sent
    error = snr_db(scaled, received) - (asked + decibel(power))
    assert error.abs().max() < 0.5 and error.mean().abs() < 0.05


def test_fading_ignores_padding():
    """The fading and its noise are the same for a clip whether or not it is padded."""
    mask = (torch.arange(20) < 2).expand(500, 20)
    sent = unit_power(gaussian(500, 20, 256), mask)
    received = Channel("rayleigh")(sent, 0.0, mask, seeded())
    gain = gains(sent[:, :2], received[:, :2], (1, 2))
    assert abs((gain / (1 - gain)).median() - math.log(2)) < 0.1  # median of the exponential


@pytest.mark.parametrize("kind", ["awgn", "rayleigh", "rician"])
def test_noise_repeats_with_its_generator(kind):
    """A seed gives the same noise again, another seed or a second draw does not."""
    sent, channel, source = gaussian(2, 5, 8), Channel(kind), seeded(1)
    state = torch.random.get_rng_state()
    first, second = (channel(sent, 5.0, generator=source) for _ in range(2))
    assert torch.equal(first, channel(sent, 5.0, generator=seeded(1)))
    assert not torch.equal(first, channel(sent, 5.0, generator=seeded(2)))
    assert not torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"


def test_odd_width_is_refused():
    """An odd number of values cannot be paired into symbols."""
    with pytest.raises(ValueError, match="hidden size 7"):
        Channel()(gaussian(1, 2, 7), 10.0)


def test_unknown_kind_is_refused():
    """A misspelt channel is named together with those that exist."""
    with pytest.raises(ValueError, match="nakagami.*awgn"):
        Channel("nakagami")


def test_a_channel_of_ones_own_is_one_more_entry(monkeypatch):
    """Its gain, a clip's own, is applied and undone as those of the others, and its name is taken
    by the flag."""
    monkeypatch.setitem(CHANNELS, "blocked", blocked)
    check(replace(task_align.PRESETS["mini"], channel="blocked"))
    power = fading_power("blocked", 1000)
    gone = power == 0
    assert 450 < gone.sum() < 550
    assert abs(power[~gone].mean() - 2) < 0.05 and power[~gone].min() > 1.4


def test_channel_holds_no_weights():
    """Nothing of the channel is trained or saved."""
    assert not Channel("rician").state_dict() and not list(Channel().parameters())


@EACH
@pytest.mark.parametrize("snr", [-10.0, 20.0, math.inf])
def test_gradients_pass_through(kind, snr):
    """The transmitter before the channel can be trained: gradients are finite and not zero."""
    sent = gaussian(2, 3, 6).requires_grad_()
    (Channel(kind)(sent, snr, generator=seeded()) * gaussian(2, 3, 6, seed=1)).sum().backward()
    assert sent.grad.isfinite().all() and sent.grad.ne(0).all()


@EACH
def test_gradients_know_that_louder_gains_nothing(kind):
    """A clip is sent at unit power whatever its scale, so that nothing is learned along it."""
    sent = gaussian(2, 3, 6).requires_grad_()
    loss = (Channel(kind)(sent, 0.0, generator=seeded()) * gaussian(2, 3, 6, seed=1)).sum()
    (gradient,) = torch.autograd.grad(loss, sent)
    slope = (gradient * sent).sum(dim=(1, 2))  # along each clip
    assert slope.abs().max() < 1e-5 < 0.1 < gradient.abs().max()


@EACH
def test_padding_is_zeros_and_has_no_gradient(kind):
    """Every kind of channel leaves padding at zero and gives it no gradient, and a clip of padding
    alone does not spoil the others'."""
    mask = torch.tensor([[True, True, False], [False, False, False]])
    sent = gaussian(2, 3, 8).requires_grad_()
    received = Channel(kind)(sent, 5.0, mask, seeded())
    (received * gaussian(2, 3, 8, seed=1)).sum().backward()
    for tokens in (received, sent.grad):
        assert tokens.isfinite().all()
        assert tokens[mask].ne(0).all() and tokens[~mask].eq(0).all()


@st.composite
def transmissions(draw):
    """Tokens of any shape and dtype, a mask with any padding or none, one SNR or one a clip."""
    batch, length, hidden = draw(st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(1, 9)))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    scale = draw(st.sampled_from([0.0, 1e-2, 1.0, 10.0]))
    mask = None
    if draw(st.booleans()):
        row = st.lists(st.booleans(), min_size=length, max_size=length)
        rows = draw(st.lists(row, min_size=batch, max_size=batch))
        mask = torch.tensor(rows, dtype=torch.bool).reshape(batch, length)
    snr = st.floats(-30, 60) | st.just(math.inf)
    if draw(st.booleans()):
        asked = torch.tensor(draw(st.lists(snr, min_size=batch, max_size=batch)))
    else:
        asked = draw(snr)
    return (scale * gaussian(batch, length, hidden)).to(dtype), asked, mask


@fuzz(300)
@given(transmissions(), st.sampled_from([*CHANNELS]))
def test_anything_arrives_in_its_shape_or_is_refused(sent, kind):
    """Whatever the shape, padding and SNRs: finite tokens of the same shape and dtype, zeros where
    nothing was sent, the same again for the same generator; an odd width alone is refused."""
    tokens, asked, mask = sent
    if kind != "none" and tokens.shape[-1] % 2:
        with pytest.raises(ValueError, match=f"hidden size {tokens.shape[-1]}"):
            Channel(kind)(tokens, asked, mask, seeded())
        return
    received = Channel(kind)(tokens, asked, mask, seeded())
    assert received.shape == tokens.shape and received.dtype == tokens.dtype
    assert received.isfinite().all()
    assert mask is None or received[~mask].eq(0).all()
    assert torch.equal(received, Channel(kind)(tokens, asked, mask, seeded()))
