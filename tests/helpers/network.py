"""Links with losses as a model's might be, and drops of users; not a test itself."""

from dataclasses import dataclass

import numpy as np

from modules.network.allocation import Problem
from modules.network.cell import Cell
from modules.network.links import FINE, Analog, Digital

LENGTHS = np.array([0, 1, 2, 4, 8, 16, 32])  # silence first
BITS = np.array([1, 2, 4, 6])
SPECIAL = np.array([1, 2])
SCALE = (0.6, 0.4)  # nats that nothing of a camera, of a microphone costs
HIDDEN = 128


@dataclass(frozen=True)
class Fades:
    """|h|^2 of Rayleigh fading, the same at every call."""

    seed: int = 0

    def __call__(self, shape):
        return Cell().fading_power(shape, np.random.default_rng(self.seed))


def analog(lengths=LENGTHS, **options) -> Analog:
    """Losses that fall with the length and the SNR."""
    snr, patches = 10 ** (FINE / 10), np.asarray(lengths)[1:, None]
    left = 1 - (1 - 0.6 * patches**-0.7) * (1 - (1 + snr / 0.3) ** -0.8)
    excess = [np.vstack([np.full(len(FINE), of), of * left]) for of in SCALE]
    return Analog(np.asarray(lengths), 0 * np.asarray(lengths), HIDDEN, SPECIAL,
                  np.array(excess), **options)  # fmt: skip


def digital(lengths=LENGTHS, bits=BITS, **options) -> Digital:
    """Losses that fall with the length and with the bits of an entry."""
    length = np.r_[0, np.repeat(lengths[1:], len(bits))]
    of_bits = np.r_[0, np.tile(bits, len(lengths) - 1)]
    left = 1 - (1 - 0.6 * length[1:] ** -0.7) * (1 - 2.0 ** -of_bits[1:])
    excess = np.array([np.r_[of, of * left] for of in SCALE])
    return Digital(length, of_bits, HIDDEN, SPECIAL, excess, **options)


def problem(link, users: int = 8, seed: int = 0, **changes) -> Problem:
    """A drop of cameras and microphones in turns."""
    cell, source = Cell(), np.random.default_rng(seed)
    gain = cell.mean_gains(cell.distances(users, source), source)
    values = dict(
        link=link,
        kind=np.resize([0, 1], users),
        gain=gain * cell.fading_power(users, source),
        noise_density=cell.noise_density,
        bandwidth=1e6 * users / 8,
        user_power=0.2,
        importance=2 / users,
        encode=np.resize([0.010, 0.003], users),
        foundation=1e-5,
        foundation_fixed=0.01,
        floor=0.4,
    )
    return Problem(**{**values, **changes})
