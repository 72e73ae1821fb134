"""The loss surface: monotone, through what was measured, and honest about what it explains."""

import numpy as np
import pytest

from modules.network.loss_surface import fit_loss_surface, never_rising

KINDS = ("visual", "audio")
LENGTHS, LEVELS = (1, 4, 16), (-30.0, -9.0, 0.0, 9.0)


def truth(kind, length, level):
    scale = {"visual": 0.6, "audio": 0.3}[kind]
    if level == LEVELS[0]:
        return scale
    return scale * (1 - (1 - 0.6 / length) * (level + 15) / 24)


def points(noise=0.0, seed=0):
    """One modality everywhere while the other is at its best, both alike, and both lost."""
    source, found = np.random.default_rng(seed), []
    best = (LENGTHS[-1], LEVELS[-1])
    pairs = [(n, at) for n in LENGTHS for at in LEVELS[1:]] + [(LENGTHS[0], LEVELS[0])]
    for pair in pairs:
        for sent in ((pair, best), (best, pair), (pair, pair)):
            of = dict(zip(KINDS, sent, strict=True))
            loss = 0.4 + sum(truth(k, *at) for k, at in of.items()) + source.normal(0, noise)
            found.append({**of, "loss": loss})
    return found


def test_points_without_noise_are_met():
    """The surface goes through them, its excess is 0 at the best, and where nothing arrives lengths
    do not matter."""
    found = fit_loss_surface(points(), KINDS)
    assert found.r2 > 0.999999
    for p in points():
        assert found({k: p[k] for k in KINDS}) == pytest.approx(p["loss"], abs=1e-5)
    for k in KINDS:
        assert found.excess[k][-1, -1] == 0 and np.ptp(found.excess[k][:, 0]) < 1e-6
        lost = truth(k, 1, LEVELS[0]) - truth(k, 16, 9.0)
        assert found.table(k, [1, 16], [-40.0])[:, 0] == pytest.approx([lost] * 2, abs=1e-5)


def test_it_never_rises_however_noisy():
    """Neither with tokens nor with the level; the residuals are what r2 says."""
    found = fit_loss_surface(points(noise=0.2), KINDS)
    for k in KINDS:
        assert (np.diff(found.excess[k], axis=0) <= 1e-9).all()
        assert (np.diff(found.excess[k], axis=1) <= 1e-9).all()
    loss = np.array([p["loss"] for p in points(noise=0.2)])
    rest = loss - [found({k: p[k] for k in KINDS}) for p in points(noise=0.2)]
    assert found.r2 == pytest.approx(1 - (rest**2).sum() / ((loss - loss.mean()) ** 2).sum())
    assert 0.2 < found.r2 < 0.98


def test_between_points_it_is_linear_in_the_level_and_the_logarithm_of_the_length():
    """Half way between two points lies the mean of both."""
    found = fit_loss_surface(points(), KINDS)
    at = found.table("visual", [1, 2, 4], [-9.0, -4.5, 0.0])
    assert at[1] == pytest.approx((at[0] + at[2]) / 2)
    assert at[:, 1] == pytest.approx((at[:, 0] + at[:, 2]) / 2)


def test_the_nearest_monotone_matrix():
    """As a general solver of convex programs finds it."""
    cvxpy = pytest.importorskip("cvxpy")
    source = np.random.default_rng(1)
    values, weights = source.normal(size=(5, 6)), source.uniform(0.5, 3, (5, 6))
    x = cvxpy.Variable((5, 6))
    rising = [x[1:] <= x[:-1], x[:, 1:] <= x[:, :-1]]
    cost = cvxpy.sum(cvxpy.multiply(weights, cvxpy.square(x - values)))
    cvxpy.Problem(cvxpy.Minimize(cost), rising).solve(solver="CLARABEL")
    assert never_rising(values, weights) == pytest.approx(x.value, abs=2e-3)


def test_what_cannot_be_fitted_is_said():
    """A pair that was not measured, or a loss that is no number."""
    with pytest.raises(ValueError, match="every pair of length and level of visual"):
        fit_loss_surface(points()[3:], KINDS)
    bad = points()
    bad[3]["loss"] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        fit_loss_surface(bad, KINDS)
