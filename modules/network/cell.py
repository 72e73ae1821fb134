"""A cell of users who send tokens to one base station: gains, rates, payloads, latency, energy.

SI units throughout (m, Hz, W, s, J, bits); decibels only where a name ends in `_db` or `_dbm`.
A user at distance d from the base station is heard with the power gain

    g = 10^(-PL(d) / 10) X |h|^2,   PL(d) = a + 10 n log10(d / 1 km) dB,

X being log-normal shadowing and h small-scale fading with E|h|^2 = 1, and sends over its own
bandwidth B with power p at Shannon's rate

    R = B log2(1 + p g / (N0 B)).

Every function takes arrays with an entry a user, (users,), or numbers.
"""

from dataclasses import dataclass

import numpy as np

FADING = ("none", "rayleigh", "rician")


def from_db(value: float | np.ndarray) -> float | np.ndarray:
    """dB to a power ratio."""
    return 10 ** (np.asarray(value) / 10)


def from_dbm(value: float | np.ndarray) -> float | np.ndarray:
    """dBm to W."""
    return from_db(value) / 1000


def to_db(ratio: np.ndarray) -> np.ndarray:
    """A power ratio to dB."""
    return 10 * np.log10(ratio)


@dataclass(frozen=True)
class Cell:
    """Where users stand and how they are heard.

    The path loss is that of a macro cell at 2 GHz with indoor users (3GPP TR 36.814, case 1); they
    are this project's choice, not the paper's.
    """

    radius: float = 500.0  # m
    nearest: float = 35.0  # m, no user is closer to the base station
    loss_at_1km_db: float = 128.1
    exponent: float = 3.76  # n of the path loss
    penetration_db: float = 20.0  # through the walls of a house
    shadowing_db: float = 8.0  # standard deviation
    fading: str = "rayleigh"  # rayleigh, rician or none
    rician_k: float = 4.0  # power of the line of sight over the scattered paths
    noise_dbm_per_hz: float = -174.0  # N0, thermal noise at 290 K
    noise_figure_db: float = 5.0  # of the base station's receiver

    def __post_init__(self):
        if not 0 < self.nearest < self.radius:
            raise ValueError(f"radius {self.radius}: must be above the nearest user's distance "
                             f"({self.nearest} m), which must be above 0")  # fmt: skip
        for name in ("exponent", "shadowing_db", "rician_k"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be 0 or more")
        if self.fading not in FADING:
            raise ValueError(f"fading {self.fading!r}: choose from {', '.join(FADING)}")

    @property
    def noise_density(self) -> float:
        """N0 at the receiver, W/Hz."""
        return float(from_dbm(self.noise_dbm_per_hz + self.noise_figure_db))

    def distances(self, users: int, source: np.random.Generator) -> np.ndarray:
        """m, (users,): uniform over the ring between the nearest distance and the radius."""
        if users < 1:
            raise ValueError(f"users {users}: a cell needs one at least")
        return np.sqrt(source.uniform(self.nearest**2, self.radius**2, users))

    def gains(self, distances: np.ndarray, source: np.random.Generator) -> np.ndarray:
        """Power gains (users,) at distances in m: path loss, shadowing and block fading."""
        loss_db = self.loss_at_1km_db + 10 * self.exponent * np.log10(distances / 1000)
        shadow_db = source.normal(0, self.shadowing_db, len(distances))
        fading = self.fading_power(len(distances), source)
        return from_db(shadow_db - loss_db - self.penetration_db) * fading

    def fading_power(self, users: int, source: np.random.Generator) -> np.ndarray:
        """|h|^2 of each user, (users,), of mean 1."""
        if self.fading == "none":
            return np.ones(users)
        scattered = source.normal(size=(users, 2)) @ [1, 1j] / np.sqrt(2)
        k = self.rician_k if self.fading == "rician" else 0.0
        return np.abs(np.sqrt(k / (k + 1)) + np.sqrt(1 / (k + 1)) * scattered) ** 2


def snr(bandwidth, power, gain, noise_density) -> np.ndarray:
    """Received signal power over noise power, linear; Hz, W, power gain, W/Hz."""
    return power * gain / (noise_density * bandwidth)


def rate(bandwidth, power, gain, noise_density) -> np.ndarray:
    """bits/s by Shannon's formula; Hz, W, power gain, W/Hz."""
    return bandwidth * np.log1p(snr(bandwidth, power, gain, noise_density)) / np.log(2)


def payload_bits(tokens, hidden: int, bits: int) -> np.ndarray:
    """bits of tokens whose entries are sent with `bits` bits each (digital)."""
    return np.asarray(tokens) * float(hidden * bits)


def channel_uses(tokens, hidden: int) -> np.ndarray:
    """Complex symbols of tokens whose entries are sent in pairs (analog)."""
    return np.asarray(tokens) * (hidden / 2)


def digital_seconds(bits, bandwidth, power, gain, noise_density) -> np.ndarray:
    """s that a digital uplink takes at Shannon's rate."""
    return bits / rate(bandwidth, power, gain, noise_density)


def analog_seconds(uses, bandwidth) -> np.ndarray:
    """s that an analog uplink takes: a bandwidth of B Hz carries B complex symbols a second."""
    return uses / bandwidth


def compute_seconds(flops, speed: float) -> np.ndarray:
    """s of computing at `speed` FLOP/s."""
    return flops / speed


def energy(seconds, power, flops=0.0, joules_per_flop: float = 0.0) -> np.ndarray:
    """J of a user's device: sending with `power` W for `seconds` s, and computing."""
    return seconds * power + flops * joules_per_flop
