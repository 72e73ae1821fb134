"""The digital baseline: tokens arrive as quantised or not at all, and cost what is said."""

import math
import sys

import pytest
import torch
from scipy import stats

from modules.channel import CHANNELS, unit_power
from modules.digital.code_block import CodeBlock
from modules.digital.link import DigitalLink, analog_uses
from modules.digital.quantisation import from_bits, to_bits
from tests.helpers.draw import blocked, gaussian, seeded

SETTINGS = pytest.mark.parametrize(
    "bits, modulation, rate",  # bits an entry, bits a symbol, code rate
    [(4, 2, 1 / 2), (6, 4, 1 / 2), (8, 6, 3 / 4), (6, 8, 2 / 3)],
)
needs_sionna = pytest.mark.usefixtures("sionna")


@pytest.fixture
def sionna():
    return pytest.importorskip("sionna")


def quantised(tokens, bits):
    return from_bits(to_bits(unit_power(tokens).flatten(0, 1), bits), bits).view(tokens.shape)


def erased(received):
    return received.eq(0).all(dim=-1)  # (batch, tokens)


def shannon_db(link, hidden):
    """The SNR at which the capacity is what the link sends, CRC and padding not counted."""
    _, payload, coded = link._layout(hidden)
    return 10 * math.log10(2 ** (payload * link.modulation / coded) - 1)


@needs_sionna
@SETTINGS
def test_high_snr_gives_the_quantised_tokens(bits, modulation, rate):
    """Without errors of the channel, quantisation alone is left, to the last bit."""
    sent = gaussian(3, 4, 32)
    for snr in (40.0, math.inf):
        received = DigitalLink(bits, modulation, rate)(sent, snr, generator=seeded())
        assert torch.equal(received, quantised(sent, bits))


@needs_sionna
@pytest.mark.parametrize("kind", ["awgn", "rayleigh", "rician"])
@pytest.mark.parametrize("snr", [-30.0, -300.0, -math.inf])
def test_very_low_snr_erases_everything(kind, snr):
    """What cannot be decoded comes out as zeros, never as noise or not-a-number."""
    received = DigitalLink(kind=kind)(gaussian(4, 5, 32), snr, generator=seeded())
    assert received.eq(0).all()


@needs_sionna
@SETTINGS
def test_cliff_stands_just_above_the_shannon_limit(bits, modulation, rate):
    """From all blocks lost to none within 5 dB above the SNR that Shannon asks for; below it, where
    the link does not try to decode, it would have failed."""
    link = DigitalLink(bits, modulation, rate)
    limit, sent = shannon_db(link, 64), gaussian(1, 40, 64)
    rates = [
        erased(link(sent, limit + above, generator=seeded())).float().mean()
        for above in (0.1, 2.5, 5.0)
    ]
    assert rates[0] > 0.95 and rates[-1] == 0
    assert rates == sorted(rates, reverse=True)
    _, payload, coded = link._layout(64)
    blocks = torch.randint(2, (40, payload), generator=seeded()).float()
    power = torch.full((40,), 10 ** (-(limit - 0.01) / 10))
    assert not link._send(blocks, coded, power, seeded())[1].any()


@needs_sionna
@SETTINGS
@pytest.mark.parametrize("hidden", [33, 128])
def test_uses_are_the_symbols_sent(bits, modulation, rate, hidden, monkeypatch):
    """The account of channel uses is the number of symbols that go on air."""
    symbols, send = [], CodeBlock.send
    monkeypatch.setattr(CodeBlock, "send", lambda *a: symbols.append(send(*a)) or symbols[-1])
    link = DigitalLink(bits, modulation, rate)
    link(gaussian(2, 3, hidden), 30.0, generator=seeded())
    assert sum(s.numel() for s in symbols) == link.uses(6, hidden)
    assert abs(torch.cat(symbols).abs().square().mean() - 1) < 0.05


@SETTINGS
def test_equal_uses_mean_fewer_tokens(bits, modulation, rate):
    """As many tokens fit as fit: one more would take more than was given."""
    link = DigitalLink(bits, modulation, rate)
    given = analog_uses(20, 128)
    assert given == 20 * 64
    tokens = link.tokens_within(given, 128)
    assert 0 < tokens < 20
    assert link.uses(tokens, 128) <= given < link.uses(tokens + 1, 128)
    assert link.uses(1, 128) >= (128 * bits + 16 + 24) / (rate * modulation)
    assert link.uses(1, 128) < (128 * bits + 16 + 24) / (rate * modulation) + 1


@needs_sionna
@pytest.mark.parametrize("rate", [1 / 5, 0.3, 1 / 3, 948 / 1024])
@pytest.mark.parametrize(("bits", "hidden"), [(4, 1), (8, 450), (6, 1536)])
def test_every_size_and_rate_has_its_code(bits, hidden, rate, recwarn):
    """Tokens longer than 5G's longest code block are sent in several, and arrive whole."""
    sent = gaussian(1, 1, hidden)
    link = DigitalLink(bits, 4, rate)
    assert torch.equal(link(sent, 40.0, generator=seeded()), quantised(sent, bits))
    assert not [w for w in recwarn if "sionna" in w.filename]


@needs_sionna
def test_a_lost_block_loses_its_token():
    """Of a token in several blocks nothing is kept when one of them fails."""
    link, sent = DigitalLink(8, 2, 0.35), gaussian(1, 6, 1536)
    assert link._layout(1536)[0] == 2
    send, calls = link._send, []

    def lose_one(bits, *args):
        received, intact = send(bits, *args)
        calls.append(intact.clone())
        intact[3] = False  # the second block of the second token
        return received, intact

    link._send = lose_one
    received = link(sent, 20.0, generator=seeded())
    assert calls[0].all()
    assert erased(received)[0].tolist() == [False, True, False, False, False, False]
    assert torch.equal(received[0, 2:], quantised(sent, 8)[0, 2:])


@needs_sionna
@pytest.mark.parametrize("kind", CHANNELS)
def test_padding_is_not_sent(kind):
    """Padding comes out as zeros whatever it holds, and changes nothing for real tokens."""
    mask = torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
    sent = gaussian(3, 3, 16)
    received = DigitalLink(kind=kind)(sent, 60.0, mask, seeded())
    assert received[~mask].eq(0).all() and received[mask].ne(0).all()
    sent[~mask] = math.nan
    assert torch.equal(received, DigitalLink(kind=kind)(sent, 60.0, mask, seeded()))


@needs_sionna
def test_snr_may_differ_by_clip():
    """Of clips at SNRs below and above the cliff the first are lost and the others arrive."""
    snr = torch.tensor([-20.0, 30.0, 0.0, 25.0])
    received = DigitalLink()(gaussian(4, 3, 32), snr, generator=seeded())
    assert erased(received).all(dim=1).tolist() == [True, False, True, False]
    assert erased(received).any(dim=1).tolist() == [True, False, True, False]


@needs_sionna
def test_nothing_to_send_is_no_error():
    """A batch without clips, or of padding alone, goes through."""
    none, padding = gaussian(0, 3, 8), torch.zeros(2, 3, dtype=torch.bool)
    assert DigitalLink()(none, 10.0, generator=seeded()).shape == (0, 3, 8)
    assert DigitalLink()(gaussian(2, 3, 8), 10.0, padding, seeded()).eq(0).all()


@pytest.mark.parametrize("k", [None, 4.0])
def test_fading_is_the_analog_channels(k):
    """After equalisation a clip's SNR is |h|^2 times the one asked for, Rayleigh or Rician."""
    link = DigitalLink(kind="rician", rician_k=k) if k else DigitalLink(kind="rayleigh")
    noise_power = link._noise_power(torch.empty(4000, 1, 8), 6.0, seeded())
    power = 1 / (noise_power * 10**0.6)  # |h|^2
    # 2 (K + 1) |h|^2 is noncentral chi-squared with 2 degrees of freedom around 2 K.
    k = k or 1e-9
    assert stats.kstest(2 * (k + 1) * power, stats.ncx2(2, 2 * k).cdf).pvalue > 0.01


@needs_sionna
def test_a_channel_of_ones_own_is_one_more_entry(monkeypatch):
    """A clip whose path is gone is lost, the others arrive."""
    monkeypatch.setitem(CHANNELS, "blocked", blocked)
    sent = gaussian(40, 1, 32)
    received = DigitalLink(kind="blocked")(sent, 30.0, generator=seeded())
    lost = erased(received)[:, 0]
    assert 10 < lost.sum() < 30
    assert torch.equal(received[~lost], quantised(sent, 6)[~lost])


@needs_sionna
def test_a_clip_fades_as_a_whole():
    """Far from the cliff, clips in block fading arrive or are lost in one piece, as many as the
    outage probability says: 1 - exp(-needed SNR / mean SNR) for Rayleigh."""
    link, mean_db = DigitalLink(6, 2, 1 / 2, kind="rayleigh"), 8.0
    lost = erased(link(gaussian(150, 2, 32), mean_db, generator=seeded()))
    needed = [10 ** ((shannon_db(link, 32) + gap - mean_db) / 10) for gap in (0.0, 3.5)]
    least, most = (1 - math.exp(-n) for n in needed)
    deviation = (most * (1 - most) / 150) ** 0.5
    assert least - 3 * deviation < lost.float().mean() < most + 3 * deviation
    assert (lost[:, 0] == lost[:, 1]).float().mean() > 0.9


@needs_sionna
@pytest.mark.parametrize("kind", ["awgn", "rayleigh", "rician"])
def test_noise_repeats_with_its_generator(kind):
    """A seed loses the same tokens again, another does not; the global generator is not used."""
    link, sent = DigitalLink(kind=kind), gaussian(40, 1, 32)
    state = torch.random.get_rng_state()
    first = link(sent, 6.0, generator=seeded(1))
    assert torch.equal(first, link(sent, 6.0, generator=seeded(1)))
    assert not torch.equal(first, link(sent, 6.0, generator=seeded(2)))
    assert torch.equal(state, torch.random.get_rng_state())


@needs_sionna
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_shape_and_dtype_are_kept(dtype):
    """What arrives has the shape and dtype of what was sent, odd hidden sizes as well; nothing of
    the link is trained or saved, even once its code is built."""
    link = DigitalLink()
    received = link(gaussian(2, 3, 7).to(dtype), 30.0, generator=seeded())
    assert not link.state_dict() and not list(link.parameters())
    assert received.shape == (2, 3, 7) and received.dtype == dtype and received.ne(0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 9}, "bits 9: choose from 1, 2, 3, 4, 5, 6, 7, 8"),
        ({"modulation": 3}, "modulation 3: choose from 2, 4, 6, 8 bits a symbol"),
        ({"rate": 0.1}, "code rate 0.1: must lie between 1/5 and 948/1024"),
        ({"rate": 1.0}, "code rate 1.0: must lie between 1/5 and 948/1024"),
        ({"kind": "nakagami"}, "channel 'nakagami': unknown, choose from .*awgn.*"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    """A setting that does not exist is named together with those that do."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        DigitalLink(**settings)


def test_without_sionna_one_line_says_what_to_install(monkeypatch):
    """Sionna is optional: accounts work without, sending names it."""
    monkeypatch.setitem(sys.modules, "sionna", None)
    monkeypatch.setitem(sys.modules, "sionna.phy", None)
    link = DigitalLink()
    assert link.uses(1, 128) > 0
    with pytest.raises(ImportError, match="^the digital link needs Sionna: pip install .*$"):
        link(gaussian(1, 1, 8), 30.0, generator=seeded())
