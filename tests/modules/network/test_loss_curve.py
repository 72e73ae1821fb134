"""The loss curve: found again from its own points, never rising, and honest about noise."""

import numpy as np
import pytest

from modules.network.loss_curve import fit_loss_curve

LENGTHS = {"visual": np.repeat([1, 2, 4, 8, 16, 32], 3), "audio": np.tile([1, 8, 32], 6)}


def test_a_curve_of_its_kind_is_found_again():
    """Floor, falls and exponents come back from exact points, and explain them all."""
    losses = 0.4 + 0.3 * LENGTHS["visual"] ** -0.7 + 0.1 * LENGTHS["audio"] ** -1.5
    curve = fit_loss_curve(LENGTHS, losses)
    assert curve.floor == pytest.approx(0.4, abs=1e-3)
    assert curve.fall == pytest.approx({"visual": 0.3, "audio": 0.1}, abs=1e-3)
    assert curve.exponent == pytest.approx({"visual": 0.7, "audio": 1.5}, abs=1e-2)
    assert curve.r2 > 0.999999
    assert curve(LENGTHS) == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_more_tokens_never_cost(seed):
    """Whatever was measured, even rising losses, the fit falls and is convex."""
    losses = np.random.default_rng(seed).normal(size=18) + 0.1 * LENGTHS["visual"]
    curve = fit_loss_curve(LENGTHS, losses)
    tokens = np.arange(1, 33)
    for kind in LENGTHS:
        other = {k: np.full(32, 4) for k in LENGTHS}
        falling = curve({**other, kind: tokens})
        assert (np.diff(falling) <= 1e-12).all() and (np.diff(falling, 2) >= -1e-12).all()
    assert curve.r2 < 0.9


def test_flat_points_give_a_flat_curve():
    """Without a trend nothing is read into the noise's mean: r2 is about 0."""
    curve = fit_loss_curve(LENGTHS, np.full(18, 0.7))
    assert curve(LENGTHS) == pytest.approx(np.full(18, 0.7), abs=1e-6) and curve.r2 == 0


@pytest.mark.parametrize(
    "lengths, losses, says",
    [
        ({"visual": [1, 2]}, [0.5, 0.4], "2 points"),
        ({"visual": [1, 2, 4]}, [0.5, np.nan, 0.4], "finite"),
        ({"visual": [0, 2, 4]}, [0.5, 0.4, 0.4], "1 or more"),
    ],
)
def test_points_that_say_nothing_are_refused(lengths, losses, says):
    """Too few points, and values that are no numbers or no lengths, are named."""
    with pytest.raises(ValueError, match=says):
        fit_loss_curve(lengths, losses)
