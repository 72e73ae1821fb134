"""The code block: Sionna's blocks are put together as 5G does."""

import subprocess
import sys

import pytest
import torch

from modules.digital.code_block import CRC_BITS, CodeBlock
from tests.helpers.draw import seeded
from tests.helpers.limit import LIMIT

pytest.importorskip("sionna")
EACH = pytest.mark.parametrize("modulation", [2, 4, 6, 8])


def block(payload=200, coded=480, modulation=4):
    return CodeBlock(payload, coded, modulation, torch.device("cpu"))


def random_bits(blocks, payload=200, seed=0):
    return torch.randint(2, (blocks, payload), generator=seeded(seed)).float()


def noisy(symbols, power, seed=1):
    noise = torch.randn(symbols.shape, generator=seeded(seed), dtype=symbols.dtype)
    return symbols + power.sqrt()[:, None] * noise


@EACH
def test_bits_arrive(modulation):
    """At a high SNR every modulation brings the bits back, and the CRC holds."""
    code, bits = block(modulation=modulation), random_bits(20)
    symbols = code.send(bits)
    assert symbols.shape == (20, 480 // modulation) and symbols.dtype == torch.complex64
    power = torch.full((20,), 1e-4)
    arrived, intact = code.receive(noisy(symbols, power), power)
    assert torch.equal(arrived, bits) and intact.all()


@EACH
def test_symbols_have_unit_power_whatever_the_bits(modulation):
    """Scrambling sees to it that even blocks of one value are sent at the power of the others."""
    code = block(modulation=modulation)
    for bits in (random_bits(20), torch.zeros(1, 200), torch.ones(1, 200)):
        assert abs(code.send(bits).abs().square().mean() - 1) < 0.15


@EACH
def test_logits_are_those_of_the_whole_constellation(modulation):
    """Demapping by two PAMs gives the exact logits of QAM, at each block's own noise."""
    from sionna.phy.mapping import Demapper

    code = block(modulation=modulation)
    power = torch.tensor([0.01, 0.1, 1.0, 10.0])
    received = noisy(code.send(random_bits(4)), power)
    whole = Demapper("app", "qam", modulation, device="cpu")
    expected = code._scrambler(whole(received, power[:, None].expand(received.shape)), binary=False)
    torch.testing.assert_close(code._logits(received, power), expected, rtol=1e-3, atol=1e-3)


def test_looking_at_the_crc_early_changes_nothing():
    """Stopping block by block gives what 20 iterations in one go give."""
    from sionna.phy.fec.ldpc import LDPC5GDecoder

    code, bits = block(), random_bits(60)
    power = torch.full((60,), 0.3)  # where some blocks fail
    received = noisy(code.send(bits), power)
    arrived, intact = code.receive(received, power)
    at_once = LDPC5GDecoder(code._encoder, num_iter=20, device="cpu")
    expected = at_once(code._logits(received, power))[:, :-CRC_BITS]
    assert 0 < intact.sum() < 60
    assert torch.equal(arrived[intact], bits[intact])
    assert torch.equal(intact, (expected == bits).all(dim=1))


def test_global_random_numbers_are_left_alone():
    """Sionna reseeds PyTorch's generators when it is imported; runs must not notice."""
    code = (
        "import torch; from modules.digital.code_block import CodeBlock; torch.manual_seed(1); "
        "before = torch.get_rng_state(); CodeBlock(200, 480, 4, torch.device('cpu')); "
        "assert torch.equal(before, torch.get_rng_state())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT)
