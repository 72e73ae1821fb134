"""The two links: what a message takes, what arrives of it, and that neither borrows from the
other."""

import numpy as np
import pytest

from modules.network.cell import from_db
from modules.network.links import EFFICIENCY, FINE, LOST_DB, MODULATION_AND_CODE
from tests.helpers.network import SCALE, Fades, analog, digital

KIND = np.array([0, 1])


def test_an_analog_message_takes_its_channel_uses():
    """(L + s) D / 2 of them over the bandwidth, at any SNR; bandwidth and time are each other's
    inverse."""
    link, option = analog(), np.array([4, 4])  # 8 patch tokens
    seconds = link.seconds(KIND, option, np.array([1e5, 1e5]), np.array([1e6, 1.0]))
    assert seconds == pytest.approx([9 * 64 / 1e5, 10 * 64 / 1e5])
    assert link.hertz(KIND, option, seconds, np.ones(2)) == pytest.approx([1e5, 1e5])


def test_an_analog_loss_is_that_of_the_snr():
    """As tabulated, linear in dB between, at the ends what the ends say; with a truth at that."""
    link, option = analog(), np.array([3, 3])
    strength = 1e5 * from_db(np.array([FINE[100], FINE[101]]))
    found = link.loss(KIND, option, 1e5, strength)
    assert found == pytest.approx([link.excess[0, 3, 100], link.excess[1, 3, 101]])
    between = link.loss(KIND, option, 1e5, 1e5 * from_db(np.full(2, FINE[100] + 0.25)))
    assert between == pytest.approx(link.excess[[0, 1], 3, 100:102].mean(axis=1))
    assert link.loss(KIND, option, 1e5, np.array([0.0, 1e30])) == pytest.approx(
        [link.excess[0, 3, 0], link.excess[1, 3, -1]]
    )
    assert link.loss(KIND, option, 1e5, strength, truth=strength[::-1])[0] == pytest.approx(
        link.excess[0, 3, 101]
    )


def test_silence_takes_nothing_and_loses_all():
    """On both links, at any SNR."""
    for link in (analog(), digital()):
        nothing = np.zeros(2, int)
        assert (link.hertz(KIND, nothing, np.ones(2), np.ones(2)) == 0).all()
        assert link.loss(KIND, nothing, 1e5, np.array([1e9, 1.0])) == pytest.approx(SCALE)
    assert (analog().level(KIND, nothing, 1e5, 1.0, np.ones(2)) == LOST_DB).all()
    assert (digital().level(KIND, nothing, 1e5, np.ones(2), np.ones(2)) == 0).all()


def test_codes_are_those_of_5g():
    """Ascending, from 2/5 bit a channel use (QPSK at rate 1/5) to 5.5547 (64-QAM, 948/1024)."""
    assert (np.diff(EFFICIENCY) > 0).all()
    assert EFFICIENCY[[0, -1]] == pytest.approx([0.4, 5.5547], abs=1e-4)
    rates = MODULATION_AND_CODE[:, 1] / 1024
    assert rates.min() > 1 / 5 and set(MODULATION_AND_CODE[:, 0]) == {2, 4, 6}


def test_a_digital_message_takes_its_bits_over_the_best_code():
    """Just above a code's SNR its rate is used, just below the next lower one; below all of them
    there is no end to it."""
    link, option = digital(), np.array([7, 7])  # 2 patch tokens, 4 bits
    bits = np.array([3, 4]) * (128 * 4 + 16)
    assert link.payload(KIND, option) == pytest.approx(bits)
    for code in (1, 10, 24):
        limit = from_db(link.gap_db) * (2 ** EFFICIENCY[code] - 1)
        above = link.seconds(KIND, option, 1e5, 1e5 * np.full(2, limit * 1.001))
        below = link.seconds(KIND, option, 1e5, 1e5 * np.full(2, limit * 0.999))
        assert above == pytest.approx(bits / EFFICIENCY[code] / 1e5)
        assert below == pytest.approx(bits / EFFICIENCY[code - 1] / 1e5)
    lowest = from_db(link.gap_db) * (2 ** EFFICIENCY[0] - 1)
    repeated = link.seconds(KIND, option, 1e5, np.full(2, 1e5 * lowest / 8))
    assert repeated == pytest.approx(8 * bits / EFFICIENCY[0] / 1e5)
    assert repeated == pytest.approx(link.seconds(KIND, option, 1e5 / 8, 1e5 / 8 * lowest))


@pytest.mark.parametrize("pilots", [0, 8])
def test_the_least_bandwidth_is_enough_and_no_less_is(pilots):
    """What `hertz` says is carried in that time by what `seconds` says, and a percent less is not,
    on both links, with pilots and without."""
    source = np.random.default_rng(0)
    strength, wanted = 10 ** source.uniform(4, 9, 200), 10 ** source.uniform(-3, 0, 200)
    for link in (analog(pilots=pilots), digital(pilots=pilots)):
        option, kind = source.integers(1, len(link.lengths), 200), source.integers(0, 2, 200)
        hertz = link.hertz(kind, option, wanted, strength)
        can = np.isfinite(hertz)
        assert can.mean() > 0.6
        taken = link.seconds(kind, option, np.where(can, hertz, 1.0), strength)
        assert taken[can] == pytest.approx(wanted[can])
        less = link.seconds(kind, option, np.where(can, hertz * 0.99, 1.0), strength)
        # A narrower band has a higher SNR, and so perhaps a better code, but never one that wins.
        assert (less[can] > wanted[can]).mean() > 0.99


def test_what_a_code_needs_decides_whether_it_arrives():
    """A gain below what the code was chosen for: nothing arrives. Above it: as if it were known."""
    link, option = digital(), np.array([7, 7])
    strength = np.full(2, 1e7)
    hertz = link.hertz(KIND, option, np.full(2, 0.02), strength)
    sent = (KIND, option, hertz)
    for factor, lost in ((1.0, False), (2.0, False), (1e-3, True)):
        truth = strength * factor
        assert (link.lost(*sent, np.full(2, 0.02), truth) == lost).all()
        loss = link.loss(*sent, strength, np.full(2, 0.02), truth)
        wanted = SCALE if lost else link.excess[KIND, option]
        assert loss == pytest.approx(wanted)
        assert (link.level(*sent, np.full(2, 0.02), truth) == (0 if lost else 4)).all()


def test_pilots_cost_channel_uses_and_snr():
    """P of them a fade; with many the SNR is nearly whole, with few it is not."""
    link, option = analog(pilots=16), np.array([4, 4])
    assert link.seconds(KIND, option, 1e5, np.ones(2)) == pytest.approx(
        [(9 * 64 + 16) / 1e5, (10 * 64 + 16) / 1e5]
    )
    assert link.learnt(np.array([1.0])) == pytest.approx(16 / 18)
    assert analog(pilots=10_000).learnt(np.array([1.0])) == pytest.approx(1, abs=1e-3)
    coded = digital(pilots=16)
    assert coded.learnt(coded.thresholds(np.ones(1)))[0] == pytest.approx(
        digital().thresholds(np.ones(1))[0]
    )


def test_more_fades_carry_more():
    """Over fades that are not known a code needs much more SNR to be lost in 1 of 20 cases only;
    over many of them little more than the ergodic rate does."""
    known = digital().thresholds(np.ones(1))[0]
    unknown = digital(coherence=0.01, fading=Fades())
    one, some, many = unknown.thresholds(np.array([1.0, 9.0, 1000.0]))
    assert (one > some).all() and (some > many).all() and (many > known).all()
    # One fade: exponential, 5 % of which lie below -ln 0.95.
    assert one == pytest.approx(known / -np.log(0.95), rel=0.1)
    fade, gap = np.random.default_rng(1).exponential(size=100_000), from_db(3.5)
    ergodic = np.array([np.log2(1 + snr * fade / gap).mean() for snr in many[::6]])
    assert (ergodic > EFFICIENCY[::6]).all() and (ergodic < 1.35 * EFFICIENCY[::6]).all()


def test_losses_over_unknown_fades():
    """Analog tokens lose on average over the fade, digital ones in the outage's share of cases."""
    fades = dict(coherence=0.01, fading=Fades(), outage=0.1)
    link, option = analog(**fades), np.array([5])
    fade = np.random.default_rng(2).exponential(size=20_000)
    wanted = analog().loss(KIND[:1], option, 1e5, 1e5 * 3 * fade).mean()
    assert link.loss(KIND[:1], option, 1e5, np.array([3e5])) == pytest.approx([wanted], rel=0.03)
    link = digital(**fades)
    sent = link.excess[0, 7]
    assert link.loss(KIND[:1], np.array([7]), 1e5, np.ones(1)) == pytest.approx(
        [sent + 0.1 * (SCALE[0] - sent)]
    )


def test_the_stated_gap_is_kept_by_5gs_code():
    """3.5 dB above Shannon's limit 5G's LDPC code by Sionna carries 95 of 100 tokens of 512 bits or
    more, by QPSK, 16-QAM and 64-QAM."""
    pytest.importorskip("sionna")
    import torch

    from modules.digital.code_block import CRC_BITS, CodeBlock

    source = torch.Generator().manual_seed(0)
    for modulation, rate in ((2, 1 / 5), (2, 602 / 1024), (4, 490 / 1024), (6, 772 / 1024)):
        coded = round((512 + CRC_BITS) / rate / modulation) * modulation
        block = CodeBlock(512, coded, modulation, torch.device("cpu"))
        snr = from_db(3.5) * (2 ** (512 / coded * modulation) - 1)
        symbols = block.send(torch.randint(2, (60, 512), generator=source).float())
        noise = torch.randn(symbols.shape, dtype=symbols.dtype, generator=source)
        power = torch.full((60,), 1 / float(snr))
        _, intact = block.receive(symbols + power.sqrt()[:, None] * noise, power)
        assert intact.float().mean() >= 0.95, (modulation, rate)
