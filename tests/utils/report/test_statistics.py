"""Intervals, paired differences and what is said of them."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from utils.report.statistics import (
    curve,
    interval,
    paired,
    seeds_needed,
    steps_to_reach,
    verdict,
)


def test_interval_is_that_of_the_t_test():
    """The interval leaves out exactly what a t test at 5 % refuses."""
    values = [0.61, 0.66, 0.58, 0.64]
    mean, width = interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert ttest_1samp(values, mean + width).pvalue == pytest.approx(0.05)
    assert ttest_1samp(values, mean - width).pvalue == pytest.approx(0.05)


def test_interval_covers_as_often_as_it_says():
    """Of 95 % intervals over three draws, 95 % hold the true mean."""
    draws = np.random.default_rng(0).normal(2.0, 3.0, (4000, 3))
    found = [interval(row) for row in draws]
    held = np.mean([abs(mean - 2.0) <= width for mean, width in found])
    assert 0.94 < held < 0.96


def test_one_seed_has_no_interval():
    """A single run says nothing of its spread, and settles nothing."""
    assert interval([0.5]) == (0.5, None)
    found = {"mean": [0.5, 0.6], "ci95": [None, None], "values": [[0.5], [0.6]]}
    assert curve([[0.5], [0.6]]) == found
    assert paired([[0.9]], [[0.1]])["verdict"] == ["undecided"]


def test_pairs_are_compared_seed_by_seed():
    """A difference that every seed shows is seen, though seeds differ more than that."""
    theirs = [[0.2, 0.5, 0.8]]
    ours = [[0.23, 0.54, 0.83]]
    found = paired(ours, theirs)
    assert found["mean"][0] == pytest.approx(0.1 / 3)
    assert found["ci95"][0] < 0.02 < interval(theirs[0])[1]
    assert found["verdict"] == ["better"] and paired(theirs, ours)["verdict"] == ["worse"]
    assert paired([[0.1, 0.9, 0.5]], theirs)["verdict"] == ["undecided"]


@pytest.mark.parametrize(
    "mean, width, says",
    [(0.2, 0.1, "better"), (-0.2, 0.1, "worse"), (0.1, 0.1, "undecided"), (0.0, 0.0, "undecided")],
)
def test_verdict(mean, width, says):
    """An interval that holds 0 settles nothing."""
    assert verdict(mean, width) == says


@pytest.mark.parametrize(
    "target, step",
    [(2.0, 10), (1.5, 15), (1.0, 20), (0.75, None), (9.0, 10), (0.9, 30.0)],
)
def test_steps_to_reach(target, step):
    """The first time at or below the target, linear between points, also where a curve rises."""
    curve = [(10, 2.0), (20, 1.0), (25, 1.1), (30, 0.9)]
    assert steps_to_reach(curve, target) == step


def test_seeds_needed_would_settle_it():
    """With so many seeds of the same mean and spread the interval leaves out 0, with one less it
    does not."""
    pair = np.array([0.01, 0.05, -0.02])
    needed = seeds_needed(pair)
    for n, settled in ((needed, True), (needed - 1, False)):
        like = np.arange(n) - (n - 1) / 2
        like = pair.mean() + like / like.std(ddof=1) * pair.std(ddof=1)
        assert (verdict(*interval(like)) != "undecided") == settled
    assert seeds_needed([0.1]) is None and seeds_needed([0.1, -0.1]) is None
