"""Means with intervals, over seeds or over seeds and clips at once, quantiles where there may be no
mean, and what they decide."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import sem, t


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95 % interval (Student's t over seeds); no width for one value."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float(x.mean()), None
    return float(x.mean()), float(t.ppf(0.975, len(x) - 1) * sem(x))


def by_seed(values: Sequence[float]) -> dict:
    """`interval` as results hold it: `mean`, `ci95` (half width or None) and the `values`."""
    mean, width = interval(values)
    return {"mean": mean, "ci95": width, "values": [float(v) for v in values]}


def curve(values: Sequence[Sequence[float]]) -> dict[str, list]:
    """`mean` and `ci95` at each point of curves (points, seeds), and the `values` themselves."""
    points = [by_seed(point) for point in values]
    return {key: [point[key] for point in points] for key in ("mean", "ci95", "values")}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The 10, 50 and 90 % quantiles (`p10`, `p50`, `p90`), of values whose mean may not exist; they
    may be infinite."""
    found = np.quantile(np.asarray(values, float), (0.1, 0.5, 0.9), method="inverted_cdf")
    return dict(zip(("p10", "p50", "p90"), found.tolist(), strict=True))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], draws: int = 2000) -> dict:
    """The median of the ratios of two sides of the same cases, with the 95 % interval of the
    median's order statistics (a percentile bootstrap over cases, always the same draws), and the
    share of cases in which ours is lower. A case in which both are 0 is a ratio of 1."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(ours == theirs, 1.0, ours / theirs)
    source = np.random.default_rng(0)
    drawn = np.median(ratio[source.integers(len(ratio), size=(draws, len(ratio)))], axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        "median_ratio": float(np.median(ratio)),
        "ci95": [float(low), float(high)],
        "lower_in": float((ours < theirs * (1 - 1e-9)).mean()),
    }


def crossed(differences: np.ndarray, clips: Sequence[str]) -> dict:
    """The mean difference of two sides, with an interval for other seeds and other clips.

    Each seed answers the same questions on both sides, so seeds and clips are crossed like readers
    and cases in radiology, and the mean squares of a two-way layout give the variance of the mean:

        (MS_seeds + max(MS_clips - MS_rest, 0)) / (seeds * clips)

    with (seeds - 1) (that sum / MS_seeds)^2 degrees of freedom for Student's t (Hillis, Statistics
    in Medicine 26, 2007, for the model of Dorfman, Berbaum and Metz, 1992). The questions of a clip
    are one observation, which counts by their number. On drawn data 92 to 98 % of the intervals
    hold the truth with five seeds or more; with three it was 88 % where seeds and clips both vary.

    Args:
        differences: (seeds, questions), of what is averaged.
        clips: the clip of each question, (questions,).

    Returns:
        `mean` and `ci95`, the half width, None for one seed or clip.
    """
    each = np.asarray(differences, float)
    names, clip = np.unique(clips, return_inverse=True)
    mean, (seeds, clips_) = float(each.mean()), (len(each), len(names))
    if seeds < 2 or clips_ < 2:
        return {"mean": mean, "ci95": None}
    # (seeds, clips): a clip's part in how far the seed's mean lies from the mean of all
    cells = np.stack([np.bincount(clip, row - mean) for row in each]) * clips_ / each.shape[1]
    of_seed, of_clip = cells.mean(axis=1), cells.mean(axis=0)
    rest = cells - of_seed[:, None] - of_clip
    ms_seeds, ms_clips = clips_ * of_seed.var(ddof=1), seeds * of_clip.var(ddof=1)
    ms_rest = np.square(rest).sum() / ((seeds - 1) * (clips_ - 1))
    spread = ms_seeds + max(ms_clips - ms_rest, 0.0)
    freedom = (seeds - 1) * (spread / ms_seeds) ** 2 if ms_seeds > 0 else np.inf
    width = t.ppf(0.975, freedom) * np.sqrt(spread / (seeds * clips_))
    return {"mean": mean, "ci95": float(width)}


def verdict(difference: dict, worth: float) -> str:
    """What a difference says of the claim that it is above 0: `holds` where its interval lies above
    0; `does not hold` where it lies below `worth`, the least effect worth having; else `undecided`.
    """
    mean, width = difference["mean"], difference["ci95"]
    if width is None:
        return "undecided"
    if mean - width > 0:
        return "holds"
    return "does not hold" if mean + width < worth else "undecided"


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


def steps_ratio(ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]]) -> float:
    """Steps that our loss curve needs to the last loss of theirs, over the steps that theirs needs.
    Where ours never comes so low, both are measured to the last loss of ours, and the ratio is
    above 1."""
    target = theirs[-1][1]
    if steps_to_reach(ours, target) is None:
        target = ours[-1][1]
    return steps_to_reach(ours, target) / steps_to_reach(theirs, target)
