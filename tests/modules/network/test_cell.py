"""The cell: units, TR 38.901's losses, fading."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from modules.network.cell import (
    Cell,
    coherence_time,
    compute_seconds,
    from_db,
    from_dbm,
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
    d = Cell(radius=400).distances(20_000, source())
    assert d.min() >= 35 and d.max() <= 400
    area = (d**2 - 35**2) / (400**2 - 35**2)
    assert stats.kstest(area, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("scenario", "distance", "los", "nlos"),
    [
        # By hand from Table 7.4.1-1, at 3.5 GHz: log10 3.5 = 0.5441, 20 of it 10.88.
        ("uma", 100.0, 28 + 22 * 2.01167 + 10.88, 13.54 + 39.08 * 2.01167 + 10.88),
        ("umi", 100.0, 32.4 + 21 * 2.00156 + 10.88, 22.4 + 35.3 * 2.00156 + 11.59),
    ],
)
def test_path_loss_is_that_of_the_report(scenario, distance, los, nlos):
    """Values worked out by hand; without line of sight it is never less than with."""
    cell = Cell(scenario=scenario)
    found = cell.path_loss_db(np.array([distance]))
    assert found[0][0] == pytest.approx(los, abs=0.02)
    assert found[1][0] == pytest.approx(nlos, abs=0.02)
    d = np.geomspace(36, 2000, 100)
    assert (cell.path_loss_db(d)[1] >= cell.path_loss_db(d)[0]).all()
    assert (np.diff(cell.path_loss_db(d)[0]) > -1e-9).all(), "the breakpoint is no step"


def test_line_of_sight_becomes_rare():
    """Certain up to 18 m, and as the report's formula says at 100 m."""
    far = Cell().sight_probability(np.array([10.0, 18.0, 100.0]))
    assert far == pytest.approx([1, 1, 0.18 + np.exp(-100 / 63) * 0.82])


def test_walls_and_shadowing():
    """Indoors the mean loss rises by wall (12.7 dB at 3.5 GHz) and room (4.2 dB on average); its
    spread is that of shadowing and wall together."""
    d = np.full(40_000, 20.0)  # nearly always in sight
    cell = Cell(scenario="umi", indoors=0.0)
    outside, inside = (to_db(replace(cell, indoors=n).mean_gains(d, source())) for n in (0.0, 1.0))
    glass, concrete = 2.7, 19.0
    wall = 5 - 10 * np.log10(0.3 * 10 ** (-glass / 10) + 0.7 * 10 ** (-concrete / 10))
    assert outside.mean() - inside.mean() == pytest.approx(wall + 0.5 * 25 / 3, abs=0.15)
    sees = np.median(outside)
    assert outside[np.abs(outside - sees) < 12].std() == pytest.approx(4, abs=0.3)
    assert inside.std() > np.hypot(4, 4.4)


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


def test_a_walker_at_3_5_ghz():
    """3 km/h at 3.5 GHz: a Doppler shift of 9.7 Hz, fades of about 44 ms; and FLOPs over speed."""
    assert coherence_time(3.0, 3.5) == pytest.approx(0.423 / 9.72, rel=1e-3)
    assert compute_seconds(3e9, 1e10) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"radius": 10}, "radius"),
        ({"scenario": "moon"}, "scenario 'moon'"),
        ({"carrier_ghz": 0.1}, "carrier_ghz"),
        ({"indoors": 1.5}, "indoors"),
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
    """A cell needs one at least."""
    with pytest.raises(ValueError, match="users 0"):
        Cell().distances(0, source())
