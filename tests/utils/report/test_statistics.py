"""Intervals over seeds and over seeds and clips, and what is said of them."""

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from utils.report.statistics import (
    by_seed,
    crossed,
    curve,
    interval,
    paired_ratio,
    quantiles,
    steps_ratio,
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
    one = crossed(np.ones((1, 4)), ["a", "a", "b", "b"])
    assert one == {"mean": 1.0, "ci95": None} and verdict(one, 0.1) == "undecided"


TRUE = 0.1  # of the differences that are drawn


def answers(rng, seeds: int, counts: np.ndarray, of_seed: float, of_clip: float) -> np.ndarray:
    """Differences (seeds, questions) of right answers, each -1, 0 or 1: their expectation is TRUE
    and an effect of the seed and of the clip, uniform with these half ranges."""
    expected = TRUE + rng.uniform(-of_seed, of_seed, (seeds, 1))
    clips = rng.uniform(-of_clip, of_clip, len(counts))
    expected = np.repeat(expected + clips, counts, axis=1)
    draw = rng.uniform(size=expected.shape)
    return (draw < (0.7 + expected) / 2).astype(int) - (draw > 1 - (0.7 - expected) / 2)


@pytest.mark.parametrize(
    ("seeds", "clips", "of_seed", "of_clip"),
    [
        (10, 60, 0.1, 0.1),
        (10, 60, 0.2, 0.0),
        (10, 60, 0.0, 0.5),
        (10, 60, 0.0, 0.0),
        (5, 60, 0.2, 0.4),
        (5, 60, 0.0, 0.4),
    ],
)
def test_crossed_intervals_cover_as_often_as_they_say(seeds, clips, of_seed, of_clip):
    """Over draws of seeds, clips and answers, whichever of them varies, 92 to 98 % of the intervals
    hold the true difference; clips have one to eight questions."""
    rng, held = np.random.default_rng(7), []
    for _ in range(600):
        counts = rng.integers(1, 9, clips)
        names = np.repeat(np.arange(clips), counts)
        found = crossed(answers(rng, seeds, counts, of_seed, of_clip), names)
        held.append(abs(found["mean"] - TRUE) <= found["ci95"])
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.parametrize(("alone", "effects"), [("seeds", (0.1, 0.5)), ("clips", (0.2, 0.4))])
def test_either_source_alone_is_not_enough(alone, effects):
    """What `crossed` is for: an interval over seeds misses the truth too often where clips differ,
    and one over clips where seeds differ."""
    rng, held = np.random.default_rng(8), []
    for _ in range(300):
        each = answers(rng, 10, np.full(60, 4), *effects)
        values = each.mean(axis=1) if alone == "seeds" else each.reshape(10, 60, 4).mean((0, 2))
        mean, width = interval(values)
        held.append(abs(mean - TRUE) <= width)
    assert np.mean(held) < 0.88


def test_crossed_is_the_two_way_layout_by_hand():
    """Two seeds, two clips, a question each: MS of seeds 4, of clips 1, of the rest 0, so the
    variance is 5 / 4 with 1 * (5 / 4)^2 degrees of freedom."""
    found = crossed(np.array([[3.0, 2.0], [1.0, 0.0]]), ["a", "b"])
    assert found["mean"] == 1.5
    assert found["ci95"] == pytest.approx(t.ppf(0.975, (5 / 4) ** 2) * (5 / 4) ** 0.5)


def test_what_both_sides_share_cancels():
    """Hard clips and bad seeds that hurt both sides alike do not widen the interval."""
    rng = np.random.default_rng(9)
    shared = rng.integers(0, 2, (4, 40))
    clips = np.repeat(np.arange(10), 4)
    assert crossed(shared - shared, clips) == {"mean": 0.0, "ci95": 0.0}
    assert crossed((shared + 0.25) - shared, clips)["ci95"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("mean", "width", "says"),
    [
        (0.2, 0.1, "holds"),
        (-0.2, 0.1, "does not hold"),
        (0.002, 0.005, "does not hold"),  # if there is anything, it is less than 0.01
        (0.002, 0.009, "undecided"),
        (0.1, 0.1, "undecided"),
        (0.2, None, "undecided"),
    ],
)
def test_verdict(mean, width, says):
    """An interval that holds both 0 and an effect worth having settles nothing."""
    assert verdict({"mean": mean, "ci95": width}, worth=0.01) == says


@pytest.mark.parametrize(
    "target, step", [(2.0, 10), (1.5, 15), (1.0, 20), (0.75, None), (9.0, 10), (0.9, 30.0)]
)
def test_steps_to_reach(target, step):
    """The first time at or below the target, linear between points, also where a curve rises."""
    curve = [(10, 2.0), (20, 1.0), (25, 1.1), (30, 0.9)]
    assert steps_to_reach(curve, target) == step


def test_steps_ratio_is_taken_where_both_curves_come():
    """Below 1 for the faster curve, its inverse the other way round, 1 for a curve and itself; a
    curve that rises at its end is not taken for a slow one."""
    slow = [(10, 2.0), (20, 1.5), (40, 1.0)]
    fast = [(10, 1.5), (20, 1.0), (40, 0.8)]
    assert steps_ratio(fast, slow) == 20 / 40
    assert steps_ratio(slow, fast) == 40 / 20
    rising = [(10, 2.0), (20, 1.0), (40, 1.5)]
    assert steps_ratio(slow, slow) == steps_ratio(rising, rising) == 1


def test_values_by_seed_are_kept():
    """A mean stands beside what it is of."""
    found = by_seed([0.5, 0.7])
    assert found["mean"] == pytest.approx(0.6) and found["values"] == [0.5, 0.7]


def test_quantiles_of_what_has_no_mean():
    """Of values that may be infinite, each is one of them."""
    found = quantiles([3.0, 1.0, np.inf, 2.0, 4.0])
    assert found == {"p10": 1.0, "p50": 3.0, "p90": np.inf}


def test_paired_ratios_are_of_the_same_cases():
    """Cases far apart do not hide that one side is always a tenth lower."""
    cases = 10 ** np.random.default_rng(1).uniform(-3, 3, 60)
    found = paired_ratio(0.9 * cases, cases)
    assert found["median_ratio"] == pytest.approx(0.9) and found["lower_in"] == 1
    assert found["ci95"] == pytest.approx([0.9, 0.9])
    noise = 10 ** np.random.default_rng(2).normal(0, 0.3, 60)
    low, high = paired_ratio(noise * cases, cases)["ci95"]
    assert low < 1 < high and paired_ratio([0.0], [0.0])["median_ratio"] == 1
