"""Validation loss as a function of how many tokens are sent, fitted to measured points.

    loss(L_visual, L_audio) = floor + sum over modalities of fall_k L_k^(-exponent_k)

with fall_k and exponent_k not below 0: more tokens never cost accuracy, and each further token
brings less. That makes the curve monotone and convex, as the choice of lengths needs.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

STEEPEST = 4.0  # exponent; steeper, the second token already brings all there is


@dataclass(frozen=True)
class LossCurve:
    """The fitted curve, in nats a token of the answer, and how well it fits.

    `r2` is the share of the measured points' variance that it explains, of a flat curve 0.
    """

    floor: float
    fall: dict[str, float]  # modality: nats that its first token is from the floor
    exponent: dict[str, float]
    r2: float

    def __call__(self, lengths: dict[str, np.ndarray]) -> np.ndarray:
        """nats; patch tokens of each modality, numbers or arrays of one shape."""
        parts = (self.fall[k] * np.asarray(lengths[k], float) ** -self.exponent[k] for k in lengths)
        return self.floor + sum(parts)


def fit_loss_curve(lengths: dict[str, np.ndarray], losses: np.ndarray) -> LossCurve:
    """Fit by least squares.

    Args:
        lengths: for each modality its patch tokens at each point, (points,).
        losses: nats, (points,). Several measurements of the same lengths are several points.

    Raises:
        ValueError: fewer points than parameters, or values that are no numbers.
    """
    losses, kinds = np.asarray(losses, float), list(lengths)
    tokens = np.array([lengths[k] for k in kinds], float)  # (modalities, points)
    if len(losses) < 1 + 2 * len(kinds):
        raise ValueError(f"{len(losses)} points: a loss curve needs {1 + 2 * len(kinds)} or more")
    if not (np.isfinite(losses).all() and (tokens >= 1).all()):
        raise ValueError("a loss curve needs finite losses and lengths of 1 or more")

    def predicted(parameters: np.ndarray) -> np.ndarray:
        fall, exponent = parameters[1:].reshape(2, -1, 1)
        return parameters[0] + (fall * tokens**-exponent).sum(axis=0)

    spread = max(np.ptp(losses), 1e-9)
    n = len(kinds)
    low = np.r_[-np.inf, np.zeros(n), np.full(n, 0.05)]
    high = np.r_[np.inf, np.full(n, np.inf), np.full(n, STEEPEST)]
    starts = (np.r_[losses.min(), np.full(n, spread), np.full(n, e)] for e in (0.3, 1.0, 2.5))
    fits = [
        least_squares(lambda x: (predicted(x) - losses) / spread, s, bounds=(low, high), xtol=1e-12)
        for s in starts
    ]
    best = min(fits, key=lambda fit: fit.cost).x
    varying = np.square(losses - losses.mean()).sum()
    rest = np.square(losses - predicted(best)).sum()
    return LossCurve(
        floor=float(best[0]),
        fall=dict(zip(kinds, best[1 : 1 + n].tolist(), strict=True)),
        exponent=dict(zip(kinds, best[1 + n :].tolist(), strict=True)),
        r2=float(1 - rest / varying) if np.ptp(losses) > 1e-9 else 0.0,
    )
