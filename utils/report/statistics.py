"""Means with intervals over seeds, and paired comparisons of two sides on the same seeds."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import sem, t


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95 % interval (Student's t over seeds); no width for one value."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float(x.mean()), None
    return float(x.mean()), float(t.ppf(0.975, len(x) - 1) * sem(x))


def curve(values: Sequence[Sequence[float]]) -> dict[str, list]:
    """`mean` and `ci95` at each point of curves (points, seeds), and the `values` themselves."""
    means, widths = zip(*(interval(point) for point in values), strict=True)
    found = [[float(v) for v in point] for point in values]
    return {"mean": list(means), "ci95": list(widths), "values": found}


def paired(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, list]:
    """The difference ours - theirs at each point of two curves (points, seeds), seed by seed, as
    `curve` gives it, with a `verdict`: `better` or `worse` where the interval leaves out 0, else
    `undecided`."""
    gaps = [np.subtract(a, b) for a, b in zip(ours, theirs, strict=True)]
    found = curve(gaps)
    sides = zip(found["mean"], found["ci95"], strict=True)
    return {**found, "verdict": [verdict(mean, width) for mean, width in sides]}


def verdict(mean: float, width: float | None) -> str:
    """What an interval says of the sign of a difference."""
    if width is None or abs(mean) <= width:
        return "undecided"
    return "better" if mean > 0 else "worse"


def seeds_needed(values: Sequence[float]) -> int | None:
    """About how many seeds a 95 % interval needs to leave out 0, if mean and spread are as in these
    differences; None where they are too few to say, or the mean is 0."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2 or x.mean() == 0:
        return None
    effect = abs(x.mean()) / max(x.std(ddof=1), 1e-12)
    wanted = (n for n in range(2, 1000) if t.ppf(0.975, n - 1) / np.sqrt(n) < effect)
    return next(wanted, 1000)


def steps_to_reach(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """The first step at which a loss curve of (step, loss) is at or below `target`, linear between
    its points; None if it never is."""
    last_step, last_loss = curve[0]
    for step, loss in curve:
        if loss <= target:
            share = (last_loss - target) / (last_loss - loss) if last_loss > loss else 1.0
            return last_step + share * (step - last_step)
        last_step, last_loss = step, loss
    return None
