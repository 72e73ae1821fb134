"""Validation loss as a surface over token length and the level at which tokens arrive.

    loss = floor + sum over modalities of excess_k(L_k, level_k)

The level is the SNR in dB of the analog link, or the bits an entry of the digital one; at the
lowest level nothing arrives. `excess` is what is lost against the best of what was measured. More
tokens and a higher level never cost accuracy: among the surfaces that never rise the fit takes the
nearest to the measured points in proportion to their loss, so that it is true where users are
served well (isotonic regression in two dimensions: Dykstra and Robertson, An algorithm for isotonic
regression for two or more independent variables, Annals of Statistics, 1982). Between its points
it is linear in the level and in the logarithm of the length.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

ROUNDS, ALTERNATIONS = 40, 100  # of back-fitting, and of rows against columns


@dataclass(frozen=True)
class LossSurface:
    """A fitted surface, in nats a token of the answer."""

    lengths: np.ndarray  # (lengths,) patch tokens, ascending
    levels: np.ndarray  # (levels,) ascending; at the first nothing arrives
    floor: float  # at the most tokens and the highest level
    excess: dict[str, np.ndarray]  # modality: (lengths, levels), 0 at the last of both
    r2: float = 0.0  # share of the measured points' variance that it explains

    def table(self, kind: str, lengths: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """excess of a modality at all pairs of lengths and levels, (lengths, levels), in nats."""
        at_levels = np.array([np.interp(levels, self.levels, row) for row in self.excess[kind]])
        at, known = np.log2(lengths), np.log2(self.lengths)
        return np.array([np.interp(at, known, column) for column in at_levels.T]).T

    def __call__(self, sent: dict[str, tuple[float, float]]) -> float:
        """nats where each modality's (length, level) is this."""
        parts = (self.table(k, np.array([n]), np.array([at]))[0, 0] for k, (n, at) in sent.items())
        return float(self.floor + sum(parts))


def fit_loss_surface(points: list[dict], kinds: tuple[str, ...]) -> LossSurface:
    """The surface through measured points, of which each holds (length, level) by modality, and
    `loss` in nats. Several measurements of the same are several points.

    Raises:
        ValueError: values that are no numbers, or a pair of length and level of some modality that
            no point has, but at the lowest level, where lengths do not matter.
    """
    loss = np.array([p["loss"] for p in points], float)
    pairs = {k: np.array([p[k] for p in points], float) for k in kinds}  # (points, 2)
    lengths, levels = (
        np.unique(np.concatenate([of[:, i] for of in pairs.values()])) for i in (0, 1)
    )
    if not np.isfinite(loss).all():
        raise ValueError("a loss surface needs finite losses")
    place, weight = {}, {}
    counts = 1 / np.maximum(loss, 1e-3) ** 2  # what a point's squared error weighs
    for k, of in pairs.items():
        place[k] = np.searchsorted(lengths, of[:, 0]) * len(levels) + np.searchsorted(
            levels, of[:, 1]
        )
        weight[k] = np.bincount(place[k], counts, len(lengths) * len(levels))
        lacking = weight[k].reshape(len(lengths), -1)[:, 1:] == 0
        if lacking.any() or not weight[k].reshape(len(lengths), -1)[:, 0].any():
            raise ValueError(f"a loss surface needs every pair of length and level of {k}")
    excess = {k: np.zeros((len(lengths), len(levels))) for k in kinds}
    floor = loss.min()
    for _ in range(ROUNDS):
        for k in kinds:
            rest = loss - floor - sum(excess[o].ravel()[place[o]] for o in kinds if o != k)
            total = np.bincount(place[k], counts * rest, lengths.size * levels.size)
            each = [x.reshape(len(lengths), -1).copy() for x in (total, weight[k])]
            for of in each:  # where nothing arrives lengths do not matter
                of[:, 0] = of[:, 0].mean()
            excess[k] = never_rising(each[0] / each[1], each[1])
            floor, excess[k] = floor + excess[k][-1, -1], excess[k] - excess[k][-1, -1]
    predicted = floor + sum(excess[k].ravel()[place[k]] for k in kinds)
    spread = np.square(loss - loss.mean()).sum()
    r2 = 1 - np.square(loss - predicted).sum() / spread if spread > 1e-18 else 0.0
    return LossSurface(lengths, levels, float(floor), excess, float(r2))


def never_rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest matrix, by weighted squares, that rises neither along rows nor along columns."""
    found, left = values, [np.zeros_like(values), np.zeros_like(values)]
    for _ in range(ALTERNATIONS):
        before = found
        for axis in (0, 1):
            wanted = found + left[axis]
            pairs = zip(np.moveaxis(wanted, axis, -1), np.moveaxis(weights, axis, -1), strict=True)
            lines = [isotonic_regression(v, weights=w, increasing=False).x for v, w in pairs]
            found = np.moveaxis(np.array(lines), -1, axis)
            left[axis] = wanted - found
        if np.abs(found - before).max() < 1e-9:
            break
    # What the last alternation leaves open is closed, so that monotone is exact.
    return np.minimum.accumulate(np.minimum.accumulate(found, axis=0), axis=1)
