"""Our channels beside Sionna's: equal in power, SNR, fading and the error rates that follow.

Ours equalises, so that what it did on the way is found from what went in and came out; only the
phase of the fading, which the equaliser takes away, is read from `_gain`. Seeds are fixed, and
every agreement has beside it a difference that the same test would have seen.
"""

import math

import pytest
import torch
from scipy import integrate, stats

from modules.channel import Channel
from tests.helpers.draw import seeded

KINDS = ("awgn", "rayleigh", "rician")
CLIPS = 20_000


@pytest.fixture(autouse=True)
def sionna():
    """Sionna with fixed seeds; its seed is PyTorch's as well, which other tests must not notice."""
    pytest.importorskip("sionna")
    with torch.random.fork_rng():
        from sionna.phy import config

        config.seed = 1
        yield


def qpsk(*shape):
    """Symbols of unit power, each part +-0.7."""
    bits = torch.randint(2, (*shape, 2), generator=seeded(9))
    return torch.view_as_complex((1 - 2 * bits.float()) * 0.5**0.5)


def ours(symbols, kind, snr_db, **options):
    """Equalised symbols (clips, uses) of our channel, a clip a row."""
    tokens = torch.view_as_real(symbols).flatten(1)[:, None]  # (clips, 1, 2 uses)
    received = Channel(kind, **options)(tokens, snr_db, generator=seeded())
    # Our unit power is that of a real number, of which a symbol has two.
    return torch.view_as_complex(received.view(*symbols.shape, 2)) / 2**0.5


def sionnas_fading(kind, clips):
    """h (clips,) by Sionna. Its only line of sight is in the 3GPP profiles: TDL-D (TR 38.901) of no
    delay spread is flat, and Rician of the K-factor that its taps make together."""
    from sionna.phy.channel import RayleighBlockFading
    from sionna.phy.channel.tr38901 import TDL

    if kind == "awgn":
        return torch.ones(clips, dtype=torch.complex64)
    if kind == "rayleigh":
        model = RayleighBlockFading(1, 1, 1, 1, device="cpu")
        return model(clips, 1)[0].flatten()
    return TDL("D", 0.0, 3.5e9, device="cpu")(clips, 1, 1.0)[0].sum(dim=-2).flatten()


def tdl_d_k():
    """The K-factor (linear) of Sionna's TDL-D as a whole: line of sight over all scattered."""
    from sionna.phy.channel.tr38901 import TDL

    model = TDL("D", 0.0, 3.5e9, device="cpu")
    sight = model.mean_powers[0] * model.k_factor / (model.k_factor + 1)
    return (sight / (1 - sight)).item()


def sionnas(symbols, kind, snr_db):
    """Symbols (clips, uses) sent through Sionna's channel and equalised by linear MMSE."""
    from sionna.phy.channel import AWGN

    power = 10 ** (-snr_db / 10)
    h = sionnas_fading(kind, len(symbols))[:, None]
    received = AWGN(device="cpu")(h * symbols, power)
    return h.conj() / (h.abs().square() + power) * received


def options(kind):
    return {"rician_k": tdl_d_k()} if kind == "rician" else {}


def fading_power(kind):
    """Our |h|^2 (clips,): at 0 dB the equaliser leaves the gain g = |h|^2 / (|h|^2 + 1)."""
    sent = qpsk(3000, 4096)
    gain = (ours(sent, kind, 0.0, **options(kind)) * sent.conj()).real.mean(dim=1)
    return gain / (1 - gain)


def differ(first, second):
    """The p-value of the two-sample Kolmogorov-Smirnov test."""
    return stats.ks_2samp(first.flatten(), second.flatten()).pvalue


@pytest.mark.parametrize("snr", [-6.0, 0.0, 10.0])
def test_noise_is_sionnas(snr):
    """AWGN: noise of the same power and distribution, that is the same SNR to 0.1 dB."""
    sent = qpsk(4, CLIPS)
    shrunk = 1 + 10 ** (-snr / 10)  # by the equaliser
    ours_, theirs = (shrunk * f(sent, "awgn", snr) - sent for f in (ours, sionnas))
    power = [noise.abs().square().mean() for noise in (ours_, theirs)]
    assert abs(10 * torch.log10(power[0] / power[1])) < 0.1
    assert abs(10 * torch.log10(power[0]) + snr) < 0.1
    for part in ("real", "imag"):
        assert differ(getattr(ours_, part), getattr(theirs, part)) > 0.01
    assert differ(ours_.abs(), theirs.abs()) > 0.01
    assert differ(ours_.abs(), 1.03 * theirs.abs()) < 1e-6  # 0.26 dB would be seen


@pytest.mark.parametrize("kind", ["rayleigh", "rician"])
def test_fading_power_is_sionnas(kind):
    """|h|^2 has Sionna's mean, which is 1, and Sionna's distribution."""
    power, theirs = fading_power(kind), sionnas_fading(kind, CLIPS).abs().square()
    assert abs(power.mean() - 1) < 0.06 and abs(theirs.mean() - 1) < 0.03
    assert differ(power, theirs) > 0.01
    other = "rician" if kind == "rayleigh" else "rayleigh"
    assert differ(power, sionnas_fading(other, CLIPS).abs().square()) < 1e-6


def test_rayleigh_fading_is_circular_as_sionnas():
    """Both parts of h, and its phase, are distributed as Sionna's."""
    h = Channel("rayleigh")._gain(torch.empty(CLIPS, dtype=torch.complex64), seeded())
    theirs = sionnas_fading("rayleigh", CLIPS)
    for part in ("real", "imag"):
        assert differ(getattr(h, part), getattr(theirs, part)) > 0.01
    assert differ(h.angle(), theirs.angle()) > 0.01


@pytest.mark.parametrize("snr", [0.0, 6.0])
@pytest.mark.parametrize("kind", ["rayleigh", "rician"])
def test_received_power_is_sionnas(kind, snr):
    """Before the equaliser a clip's power is |h|^2 + N0, on the mean 1 + N0, as with Sionna."""
    from sionna.phy.channel import AWGN

    noise_power = 10 ** (-snr / 10)
    sent = qpsk(2000, 2048)
    equalised = ours(sent, kind, snr, **options(kind))
    gain = (equalised * sent.conj()).real.mean(dim=1)  # |h|^2 / (|h|^2 + N0)
    power = gain / (1 - gain) * noise_power  # |h|^2
    back = (power + noise_power).square() / power  # what the equaliser took, squared
    received = equalised.abs().square().mean(dim=1) * back
    theirs = AWGN(device="cpu")(sionnas_fading(kind, 2000)[:, None] * sent, noise_power)
    theirs = theirs.abs().square().mean(dim=1)
    for mean in (received.mean(), theirs.mean()):
        assert abs(mean - (1 + noise_power)) < 0.08  # 3 deviations of the mean of 2000 clips
    assert differ(received, theirs) > 0.01


@pytest.mark.parametrize("snr", [0.0, 12.0])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_after_the_equaliser_are_sionnas(kind, snr):
    """From end to end, the error of a symbol is distributed as over Sionna's channel."""
    sent = qpsk(CLIPS, 1)  # a symbol a clip: each its own fading
    error = (ours(sent, kind, snr, **options(kind)) - sent).abs()
    assert differ(error, (sionnas(sent, kind, snr) - sent).abs()) > 0.01
    assert differ(error, (sionnas(sent, kind, snr + 1) - sent).abs()) < 1e-4  # 1 dB would be seen


def closed_form(kind, snr_db):
    """Bit error rate of QPSK with coherent detection (Proakis, Digital Communications; for Rician
    fading Simon and Alouini's integral over its moment generating function)."""
    bit = 10 ** (snr_db / 10) / 2  # SNR a bit
    if kind == "awgn":
        return stats.norm.sf(math.sqrt(2 * bit))
    if kind == "rayleigh":
        return (1 - math.sqrt(bit / (1 + bit))) / 2
    k = tdl_d_k()

    def at(angle):
        scattered = 1 + k + bit / math.sin(angle) ** 2
        return (1 + k) / scattered * math.exp(k * ((1 + k) / scattered - 1))

    return integrate.quad(at, 0, math.pi / 2)[0] / math.pi


@pytest.mark.parametrize("snr", [0.0, 8.0])
@pytest.mark.parametrize("kind", KINDS)
def test_bit_errors_of_qpsk_are_sionnas_and_theorys(kind, snr):
    """Uncoded QPSK: our error rate, Sionna's and the closed form agree within 3.3 deviations."""
    from sionna.phy.mapping import Demapper, Mapper

    clips = 100_000
    bits = torch.randint(2, (clips, 2), generator=seeded(9)).float()
    sent = Mapper("qam", 2, device="cpu")(bits)  # (clips, 1)
    decide = Demapper("app", "qam", 2, hard_out=True, device="cpu")
    expected = closed_form(kind, snr)
    rates = []
    for received in (ours(sent, kind, snr, **options(kind)), sionnas(sent, kind, snr)):
        wrong = (decide(received, torch.tensor(1.0)) != bits).float()  # (clips, 2)
        rates.append(wrong.mean().item())
        # The two bits of a symbol fade together: the clip's mean is the independent draw.
        deviation = wrong.mean(dim=1).std().item() / clips**0.5
        assert abs(rates[-1] - expected) < 3.3 * max(deviation, (expected / 2 / clips) ** 0.5)
    assert abs(rates[0] - rates[1]) < 3.3 * 2**0.5 * max(deviation, (expected / 2 / clips) ** 0.5)
