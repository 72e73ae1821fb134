"""The cell: units, path loss, fading, Shannon's rate, payloads, latency and energy."""

import numpy as np
import pytest
from scipy import stats

from modules.network.cell import (
    Cell,
    analog_seconds,
    channel_uses,
    compute_seconds,
    digital_seconds,
    energy,
    from_db,
    from_dbm,
    payload_bits,
    rate,
    snr,
    to_db,
)


def source():
    return np.random.default_rng(0)


def test_decibels():
    """dB and dBm become ratios and W, and back."""
    assert from_db(30) == pytest.approx(1000) and from_db(-3) == pytest.approx(0.501, abs=1e-3)
    assert from_dbm(30) == pytest.approx(1) and from_dbm(0) == pytest.approx(1e-3)
    assert to_db(from_db(np.array([-7.0, 12.5]))) == pytest.approx([-7.0, 12.5])


def test_noise_density_is_thermal_noise():
    """-174 dBm/Hz is k T0 within half a percent; the receiver's noise figure comes on top."""
    assert Cell(noise_figure_db=0).noise_density == pytest.approx(1.380649e-23 * 290, rel=6e-3)
    more = Cell(noise_figure_db=10).noise_density / Cell(noise_figure_db=0).noise_density
    assert more == pytest.approx(10)


def test_users_stand_evenly_over_the_ring():
    """Distances stay within the ring, and as many users stand on each part of its area."""
    cell = Cell(radius=400, nearest=100)
    d = cell.distances(20_000, source())
    assert d.min() >= 100 and d.max() <= 400
    area = (d**2 - 100**2) / (400**2 - 100**2)
    assert stats.kstest(area, "uniform").pvalue > 0.01


def test_path_loss_has_its_slope_and_offset():
    """Without shadowing and fading the gain is the formula's, 37.6 dB less a decade further."""
    cell = Cell(shadowing_db=0, fading="none", penetration_db=0)
    gains = to_db(cell.gains(np.array([100.0, 1000.0]), source()))
    assert gains == pytest.approx([-128.1 + 37.6, -128.1])
    walls = Cell(shadowing_db=0, fading="none", penetration_db=20)
    assert to_db(walls.gains(np.array([1000.0]), source())) == pytest.approx(-148.1)


def test_shadowing_is_log_normal():
    """Its dB are normal, of mean 0 and the given deviation."""
    cell = Cell(fading="none", penetration_db=0, loss_at_1km_db=0)
    db = to_db(cell.gains(np.full(20_000, 1000.0), source()))
    assert stats.kstest(db / 8, "norm").pvalue > 0.01


@pytest.mark.parametrize("fading, k", [("rayleigh", 0.0), ("rician", 4.0), ("rician", 20.0)])
def test_fading_follows_its_law(fading, k):
    """|h|^2 has mean 1 and the distribution of Rayleigh or Rician fading."""
    power = Cell(fading=fading, rician_k=k).fading_power(20_000, source())
    assert power.mean() == pytest.approx(1, abs=0.03)
    law = stats.ncx2(2, 2 * k, scale=1 / (2 * (k + 1))) if k else stats.expon()
    assert stats.kstest(power, law.cdf).pvalue > 0.01


def test_no_fading_is_none():
    """Every user is then heard with |h|^2 = 1."""
    assert (Cell(fading="none").fading_power(5, source()) == 1).all()


def test_shannon_rate():
    """1 Hz at SNR 1 carries 1 bit/s; endless bandwidth ends at P g / (N0 ln 2)."""
    assert rate(1.0, 2.0, 0.5, 1.0) == pytest.approx(1)
    assert snr(2e5, 0.1, 1e-10, 5e-20) == pytest.approx(1000)
    assert rate(1e12, 1.0, 1.0, 1.0) == pytest.approx(1 / np.log(2), rel=1e-6)
    assert rate(1e5, 0.1, 1e-25, 4e-21) > 0, "a weak user has a low rate, not none"


def test_payloads_and_seconds():
    """Digital payloads are bits over the rate, analog ones symbols over the bandwidth."""
    assert payload_bits(10, 128, 8) == 10_240
    assert channel_uses(np.array([10, 1]), 128) == pytest.approx([640, 64])
    assert digital_seconds(10_240, 1e4, 1.0, 1.0, 1e-4) == pytest.approx(1.024)
    assert analog_seconds(640, 1e4) == pytest.approx(0.064)
    assert compute_seconds(3e9, 1e10) == pytest.approx(0.3)


def test_energy_is_of_sending_and_computing():
    """J: W times s, and FLOPs times what each takes."""
    assert energy(0.5, 0.2) == pytest.approx(0.1)
    assert energy(0.5, 0.2, 1e9, 1e-10) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"radius": 10}, "radius"),
        ({"nearest": -1}, "nearest"),
        ({"shadowing_db": -1}, "shadowing_db"),
        ({"rician_k": float("nan")}, "rician_k"),
        ({"fading": "fog"}, "fading"),
    ],
)
def test_a_cell_that_is_none_is_refused(wrong, says):
    """In one line that names the field."""
    with pytest.raises(ValueError, match=says) as error:
        Cell(**wrong)
    assert "\n" not in str(error.value)


def test_no_users_are_refused():
    """In one line that says so."""
    with pytest.raises(ValueError, match="users 0"):
        Cell().distances(0, source())
