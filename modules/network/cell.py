"""A cell of users who send tokens to one base station: where they stand and how they are heard.

SI units throughout (m, Hz, W, s, J, bits); decibels only where a name ends in `_db` or `_dbm`.
A user at distance d from the base station is heard with the power gain

    g = 10^(-(PL(d) + W) / 10) X |h|^2

with path loss PL and log-normal shadowing X outdoors, the loss W through a wall and a room for
those indoors, and small-scale fading h with E|h|^2 = 1. All but the fading are those of 3GPP
TR 38.901 (version 16.1.0), by the tables that are named below.
"""

from dataclasses import dataclass

import numpy as np

FADING = ("none", "rayleigh", "rician")
LIGHT = 3e8  # m/s, as TR 38.901 has it
USER_HEIGHT = 1.5  # m, at which TR 38.901's terms of the user's height vanish


@dataclass(frozen=True)
class Scenario:
    """One of TR 38.901's, by its numbers; losses in dB with d in m and the carrier in GHz."""

    height: float  # m, of the base station (Table 7.2-1)
    nearest: float  # m, no user is closer (Table 7.2-1)
    sight: float  # m: LOS probability 18/d + exp(-d / sight)(1 - 18/d) (Table 7.4.2-1)
    los: tuple[float, float]  # at 1 m, and per decade up to the breakpoint (Table 7.4.1-1)
    beyond: float  # per decade of the breakpoint's term
    nlos: tuple[float, float, float]  # at 1 m, per decade of d, per decade of the carrier
    shadowing_db: tuple[float, float]  # standard deviation with and without line of sight


SCENARIOS = {
    "uma": Scenario(25.0, 35.0, 63.0, (28.0, 22.0), 9.0, (13.54, 39.08, 20.0), (4.0, 6.0)),
    "umi": Scenario(10.0, 10.0, 36.0, (32.4, 21.0), 9.5, (22.4, 35.3, 21.3), (4.0, 7.82)),
}


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
    """Where users stand and how they are heard."""

    scenario: str = "uma"  # a name in SCENARIOS
    radius: float = 250.0  # m, half of UMa's distance between sites (TR 38.901, Table 7.2-1)
    carrier_ghz: float = 3.5  # GHz
    indoors: float = 0.8  # share of users (TR 38.901, Table 7.2-1)
    fading: str = "rayleigh"  # rayleigh, rician or none
    rician_k: float = 4.0  # power of the line of sight over the scattered paths
    noise_dbm_per_hz: float = -174.0  # N0, thermal noise at 290 K
    noise_figure_db: float = 5.0  # of the base station's receiver (ITU-R M.2412)

    def __post_init__(self):
        if self.scenario not in SCENARIOS:
            raise ValueError(f"scenario {self.scenario!r}: choose from {', '.join(SCENARIOS)}")
        if self.fading not in FADING:
            raise ValueError(f"fading {self.fading!r}: choose from {', '.join(FADING)}")
        nearest = SCENARIOS[self.scenario].nearest
        if not self.radius > nearest:
            raise ValueError(f"radius {self.radius}: must be above the nearest user's distance "
                             f"({nearest} m)")  # fmt: skip
        if not 0.5 <= self.carrier_ghz <= 100:
            raise ValueError(f"carrier_ghz {self.carrier_ghz}: must lie within 0.5 and 100 GHz")
        if not 0 <= self.indoors <= 1:
            raise ValueError(f"indoors {self.indoors}: must be a share, 0 to 1")
        if not self.rician_k >= 0:
            raise ValueError(f"rician_k {self.rician_k}: must be 0 or more")

    @property
    def noise_density(self) -> float:
        """N0 at the receiver, W/Hz."""
        return float(from_dbm(self.noise_dbm_per_hz + self.noise_figure_db))

    def distances(self, users: int, source: np.random.Generator) -> np.ndarray:
        """m, (users,): uniform over the ring between the nearest distance and the radius."""
        if users < 1:
            raise ValueError(f"users {users}: a cell needs one at least")
        nearest = SCENARIOS[self.scenario].nearest
        return np.sqrt(source.uniform(nearest**2, self.radius**2, users))

    def path_loss_db(self, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """dB at distances in m, with and without line of sight (TR 38.901, Table 7.4.1-1)."""
        of, ghz = SCENARIOS[self.scenario], self.carrier_ghz
        down = of.height - USER_HEIGHT
        far = np.log10(np.hypot(distances, down))
        # Both antennas are taken as 1 m lower than they are (note 1 of the table).
        breakpoint = 4 * (of.height - 1) * (USER_HEIGHT - 1) * ghz * 1e9 / LIGHT
        near = of.los[0] + of.los[1] * far
        beyond = of.los[0] + 40 * far - of.beyond * np.log10(breakpoint**2 + down**2)
        los = np.where(distances <= breakpoint, near, beyond) + 20 * np.log10(ghz)
        nlos = of.nlos[0] + of.nlos[1] * far + of.nlos[2] * np.log10(ghz)
        return los, np.maximum(los, nlos)

    def sight_probability(self, distances: np.ndarray) -> np.ndarray:
        """Of a line of sight at distances in m (TR 38.901, Table 7.4.2-1, users below 13 m)."""
        close = np.minimum(18 / distances, 1)
        return close + np.exp(-distances / SCENARIOS[self.scenario].sight) * (1 - close)

    def mean_gains(self, distances: np.ndarray, source: np.random.Generator) -> np.ndarray:
        """Power gains (users,) at distances in m, averaged over the fading: path loss, shadowing
        and, of those indoors, one wall of low loss and the room behind it (TR 38.901, 7.4.3.1)."""
        users = len(distances)
        sees = source.random(users) < self.sight_probability(distances)
        loss = np.where(sees, *self.path_loss_db(distances))
        deviation = np.where(sees, *SCENARIOS[self.scenario].shadowing_db)
        glass, concrete = 2 + 0.2 * self.carrier_ghz, 5 + 4 * self.carrier_ghz  # Table 7.4.3-1
        wall = 5 - to_db(0.3 * from_db(-glass) + 0.7 * from_db(-concrete))  # Table 7.4.3-2
        room = 0.5 * source.uniform(0, 25, (2, users)).min(axis=0)
        inside = wall + room + source.normal(0, 4.4, users)
        loss = loss + np.where(source.random(users) < self.indoors, inside, 0)
        return from_db(source.normal(0, deviation) - loss)

    def fading_power(self, shape: int | tuple, source: np.random.Generator) -> np.ndarray:
        """|h|^2 of each user or fade, of mean 1."""
        if self.fading == "none":
            return np.ones(shape)
        scattered = np.sqrt(0.5) * (source.normal(size=shape) + 1j * source.normal(size=shape))
        k = self.rician_k if self.fading == "rician" else 0.0
        return np.abs(np.sqrt(k / (k + 1)) + np.sqrt(1 / (k + 1)) * scattered) ** 2


def compute_seconds(flops, speed: float) -> np.ndarray:
    """s of computing at `speed` FLOP/s."""
    return flops / speed


def coherence_time(speed_kmh: float, carrier_ghz: float) -> float:
    """s over which a fade stays about the same: 0.423 over the largest Doppler shift (Rappaport,
    Wireless Communications, 2nd ed., eq. 5.40.c)."""
    doppler = speed_kmh / 3.6 * carrier_ghz * 1e9 / LIGHT
    return 0.423 / doppler
