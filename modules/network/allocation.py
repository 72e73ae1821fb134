"""Who gets bandwidth, power and tokens: the joint optimisation of a multi-user uplink.

User m has B_m Hz, p_m W, and sends L_m patch tokens beside s_m special ones, n_m = D (L_m + s_m)
bits in all, after e_m s of encoding. With R_m Shannon's rate the problem is

    min   w (T + c sum_m L_m) + (1 - w) (floor + sum_m a_m L_m^-x_m)
    s.t.  e_m + n_m / R_m(B_m, p_m) <= T   for every user,    T <= deadline,
          sum_m B_m <= B,   sum_m p_m <= P,   0 <= p_m <= P_m,   L_m on a grid:

latency (that of the slowest user, and of the foundation model, which reads every token) against
the validation loss (loss_curve.py). Two blocks alternate (after arXiv 2505.07841, v2 and v3, whose
derivation is not at hand: this one is the project's).

**Bandwidth and power, lengths given.** R_m is concave, so e_m + n_m / R_m is convex and the
smallest T is a convex program. At its optimum every user ends at T, that is needs the rate
r_m = n_m / (T - e_m), and with a price l on bandwidth pays least in power plus price,
N0 B_m / g_m (2^(r_m/B_m) - 1) + l B_m, at (derivative zero, u = ln 2 r_m / B_m)

    (u - 1) e^(u-1) = (l g_m / N0 - 1) / e,   so   B_m = ln 2 r_m / (1 + W0((l g_m / N0 - 1) / e)),

or at the least bandwidth for which P_m is enough. Two monotone roots remain: l, at which the
bandwidths fill B, and T, at which the powers fill P. By the same multipliers, if user m needed
another rate r' the others would have to give up c_m(r') - c_m(r_m), c_m(r) being the least of
power plus price, for which T rises by (to first order; q_j = dc_j / dr_j)

    (c_m(r') - c_m(r_m))  /  sum_j q_j r_j / (T - e_j).

**Token lengths, prices given.** That makes the problem separable: each user takes the length at
which w times the rise of T and of the foundation model's time, plus (1 - w) times its part of the
loss curve, is least.

Prices hold for small steps of all users together. So a step is only taken if the first block,
solved again, confirms that the objective falls, and is made smaller until it does: it never rises
from one iteration to the next, and every iterate can be used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import lambertw

LN2 = np.log(2)
NEAR = 1e-5  # below it Lambert's W is taken by its series


class AllocationError(ValueError):
    """A problem that has no solution, or is none, in one line."""


@dataclass(frozen=True)
class Problem:
    """A drop of users, what they may use, and what tokens bring; arrays are (users,)."""

    gain: np.ndarray  # power gains
    noise_density: float  # N0, W/Hz
    bandwidth: float  # B, Hz of all users together
    power: float  # P, W of all users together
    user_power: np.ndarray  # P_m, W
    token_bits: float  # D, bits of a token
    special: np.ndarray  # s_m, tokens sent besides
    lengths: np.ndarray  # (grid,), allowed patch tokens, ascending
    fall: np.ndarray  # a_m, nats
    exponent: np.ndarray  # x_m
    floor: float = 0.0  # nats
    encode: np.ndarray | float = 0.0  # e_m, s
    foundation: float = 0.0  # c, s a token
    foundation_fixed: float = 0.0  # s besides: the question, the special tokens, the answer
    weight: float = 0.5  # w, of a second against a nat
    deadline: float = np.inf  # s, of T

    def __post_init__(self):
        users = np.size(self.gain)
        for name in ("gain", "user_power", "special", "fall", "exponent", "encode"):
            value = np.asarray(getattr(self, name), float)
            if value.shape not in ((), (users,)):
                raise AllocationError(f"{name}: {value.size} values for {users} users")
            object.__setattr__(self, name, np.broadcast_to(value, users))
        object.__setattr__(self, "lengths", np.asarray(self.lengths, float))
        check(self)

    @property
    def users(self) -> int:
        return len(self.gain)

    def bits(self, lengths: np.ndarray) -> np.ndarray:
        """n_m, payloads in bits."""
        return self.token_bits * (lengths + self.special)

    def loss(self, lengths: np.ndarray) -> float:
        """nats."""
        return float(self.floor + (self.fall * lengths**-self.exponent).sum())

    def objective(self, lengths: np.ndarray, latency: float) -> float:
        """w times latency plus (1 - w) times loss; infinite past the deadline."""
        if latency > self.deadline:
            return np.inf
        seconds = latency + self.foundation_fixed + self.foundation * lengths.sum()
        return float(self.weight * seconds + (1 - self.weight) * self.loss(lengths))


def check(problem: Problem) -> None:
    """AllocationError for values that no network has."""
    above_zero = ("gain", "noise_density", "bandwidth", "power", "user_power", "token_bits")
    not_below = ("special", "fall", "exponent", "encode", "foundation", "foundation_fixed")
    if problem.users == 0:
        raise AllocationError("users: a network needs one at least")
    for names, least, fine in (
        (above_zero, "above 0 and finite", lambda v: (v > 0) & np.isfinite(v)),
        (not_below, "0 or more and finite", lambda v: (v >= 0) & np.isfinite(v)),
        (("lengths",), "1 or more", lambda v: v >= 1),
        (("weight",), "between 0 and 1", lambda v: (v >= 0) & (v <= 1)),
        (("deadline",), "above 0", lambda v: v > 0),
    ):
        for name in names:
            value = np.asarray(getattr(problem, name))
            if not np.all(fine(value)):
                wrong = value[~fine(value)].flat[0] if value.ndim else value
                raise AllocationError(f"{name} {wrong:g}: must be {least}")
    if (
        problem.lengths.ndim != 1
        or not len(problem.lengths)
        or (np.diff(problem.lengths) <= 0).any()
    ):
        raise AllocationError("lengths: give the allowed token lengths, ascending")


@dataclass(frozen=True)
class Allocation:
    """What each user gets, (users,), and what comes of it."""

    lengths: np.ndarray  # patch tokens
    bandwidth: np.ndarray  # Hz
    power: np.ndarray  # W
    latency: float  # T, s: encoding and uplink of the slowest user
    objective: float
    bandwidth_price: float = 0.0  # l, W/Hz, of an optimal split; infinite if power is not short
    history: tuple[float, ...] = ()  # objective after each iteration


def split(problem: Problem, lengths: np.ndarray) -> Allocation:
    """Bandwidth and power that make the slowest user fastest: the convex block.

    Args:
        lengths: patch tokens (users,).
    """
    bits = problem.bits(lengths)

    def rates(latency: float) -> np.ndarray:
        return bits / (latency - problem.encode)

    def over_bandwidth(latency: float) -> float:
        return np.log(least_bandwidth(problem, rates(latency)).sum() / problem.bandwidth)

    def over_power(latency: float) -> float:
        r = rates(latency)
        return np.log(needed_power(problem, r, cheapest(problem, r)[0]).sum() / problem.power)

    # With endless bandwidth a user would end at the first T; below it no rate is high enough.
    alone = (problem.encode + bits / peak_rate(problem)).max()
    latency = smallest(over_bandwidth, alone * (1 + 1e-9))
    shares, bandwidth_price = least_bandwidth(problem, rates(latency)), np.inf
    if problem.user_power.sum() > problem.power:
        latency = smallest(over_power, latency)
        shares, bandwidth_price = cheapest(problem, rates(latency))
    r = rates(latency)
    power = needed_power(problem, r, shares)
    return Allocation(
        lengths=lengths,
        bandwidth=shares,
        power=power,
        latency=latency,
        objective=problem.objective(lengths, latency),
        bandwidth_price=bandwidth_price,
    )


def smallest(over: Callable[[float], float], low: float) -> float:
    """The root of a falling function, from the side where it is not above 0; `low` if it is not
    above 0 there."""
    if over(low) <= 0:
        return low
    high = 2 * low
    while over(high) > 0:
        high = 2 * high
    return brentq(over, low, high, xtol=1e-300, rtol=1e-13) * (1 + 1e-12)


def peak_rate(problem: Problem) -> np.ndarray:
    """bits/s of each user with all its power over endless bandwidth."""
    return problem.user_power * problem.gain / problem.noise_density / LN2


def least_bandwidth(problem: Problem, r: np.ndarray) -> np.ndarray:
    """Hz with which P_m just gives r bits/s: u = ln 2 r / B solves (e^u - 1) / u = peak / r."""
    wanted = np.log(np.maximum(peak_rate(problem) / r, 1 + 1e-12))
    u = 2 * wanted  # log((e^u - 1) / u) is convex and at least u / 2: Newton comes from above
    for _ in range(8):
        u -= (np.log(np.expm1(u) / u) - wanted) / (-1 / np.expm1(-u) - 1 / u)
    return LN2 * r / u


def cheap_bandwidth(gain: np.ndarray, r: np.ndarray, price: float) -> np.ndarray:
    """Hz at which power plus price of bandwidth is least, whatever the power; gains over N0."""
    x = price * gain
    u = 1 + lambertw((np.maximum(x, NEAR) - 1) / np.e).real
    root = np.sqrt(2 * np.minimum(x, NEAR))
    # W0 at its branch point, where 1 + W0 is lost to rounding: at SNRs far below 0 dB.
    series = 1 - root / 3 + 11 / 72 * root**2 - 43 / 540 * root**3 + 769 / 17280 * root**4
    return LN2 * r / np.where(x < NEAR, root * series, u)


def cheapest(problem: Problem, r: np.ndarray) -> tuple[np.ndarray, float]:
    """Hz, together B, that take least power for r bits/s; and the price of bandwidth, W/Hz."""
    least, gain = least_bandwidth(problem, r), problem.gain / problem.noise_density

    def wanted(log_price: float) -> np.ndarray:
        return np.maximum(least, cheap_bandwidth(gain, r, np.exp(log_price)))

    def over(log_price: float) -> float:
        return np.log(wanted(log_price).sum() / problem.bandwidth)

    low = high = -np.log(gain).mean()  # the price at which a usual user sends about 1 bit/s/Hz
    while over(low) < 0:
        low -= 4
    while over(high) > 0 and (wanted(high) > least).any():
        high += 4
    price = brentq(over, low, high, xtol=1e-13, rtol=1e-13) if over(high) < 0 else high
    shares = wanted(price)
    free = shares > least  # they take what rounding left over
    if free.any():
        shares[free] *= 1 + (problem.bandwidth - shares.sum()) / shares[free].sum()
    return shares, float(np.exp(price))


def needed_power(problem: Problem, r: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """W for r bits/s over the given Hz."""
    power = problem.noise_density / problem.gain * shares * np.expm1(LN2 * r / shares)
    return np.minimum(power, problem.user_power)  # but for rounding it is


def seconds_of_lengths(problem: Problem, at: Allocation) -> np.ndarray:
    """By how much T would rise if one user alone took another length, at these prices.

    s, (users, grid); 0 at the user's own length, infinite where its power is not enough.
    """
    left = (at.latency - problem.encode)[:, None]  # s for the uplink, (users, 1)
    sent = problem.lengths + problem.special[:, None]
    gain = (problem.gain / problem.noise_density)[:, None]
    price = at.bandwidth_price

    def cost(bits: np.ndarray) -> np.ndarray:
        """Power plus price of bandwidth in W; bandwidth in Hz if power is not short. (users, n)"""
        r = bits / left
        with np.errstate(invalid="ignore", over="ignore"):
            least = least_bandwidth(problem, r.T).T
            if np.isinf(price):
                found = least
            else:
                shares = np.maximum(least, cheap_bandwidth(gain, r, price))
                found = shares / gain * np.expm1(LN2 * r / shares) + price * shares
        return np.where(r < peak_rate(problem)[:, None], found, np.inf)

    now = problem.bits(at.lengths)[:, None]
    step = 1e-6 * now  # downwards, where no power ends
    slope = (cost(now) - cost(now - step)) / step  # dc / dn = q / (T - e)
    per_second = (slope * now / left).sum()
    rise = (cost(problem.token_bits * sent) - cost(now)) / per_second
    return np.where(problem.lengths == at.lengths[:, None], 0.0, rise)


def allocate(
    problem: Problem, start: np.ndarray | None = None, most: int = 100, tolerance: float = 1e-6
) -> Allocation:
    """The joint allocation, by alternating the two blocks from `start` (the fewest tokens) until
    an iteration gains no more than `tolerance` of the objective, or `most` are done.

    Raises:
        AllocationError: if the deadline cannot be kept even so.
    """
    grid = problem.lengths
    places = np.zeros(problem.users, int) if start is None else np.searchsorted(grid, start)
    best = split(problem, grid[places])
    if not np.isfinite(best.objective) and places.any():
        places = np.zeros_like(places)
        best = split(problem, grid[places])
    if not np.isfinite(best.objective):
        raise AllocationError(
            f"deadline {problem.deadline:g} s: no allocation keeps it, the fewest tokens take "
            f"{best.latency:.3g} s; give more bandwidth, power or time"
        )
    history = [best.objective]
    for _ in range(most):
        for trial in steps(problem, places, best):
            found = split(problem, grid[trial])
            if found.objective < best.objective - tolerance * abs(best.objective):
                places, best = trial, found
                break
        else:
            break
        history.append(best.objective)
    return replace(best, history=tuple(history))


def steps(problem: Problem, places: np.ndarray, at: Allocation) -> Iterator[np.ndarray]:
    """Places on the grid to try next, the boldest first: towards the best lengths at these prices,
    then single steps of ever fewer users, those first who should gain most."""
    grid, w, everyone = problem.lengths, problem.weight, np.arange(problem.users)
    loss = problem.fall[:, None] * grid ** -problem.exponent[:, None]
    seconds = np.minimum(seconds_of_lengths(problem, at), 1e300) + problem.foundation * grid
    total = w * seconds + (1 - w) * loss  # (users, grid), each user by itself
    for share in (1, 0.5, 0.25):
        trial = np.rint(places + share * (total.argmin(axis=1) - places)).astype(int)
        if (trial != places).any():
            yield trial
    rise, user, to = [], [], []
    for step in (-1, 1):
        moved = np.clip(places + step, 0, len(grid) - 1)
        rise.append((total[everyone, moved] - total[everyone, places])[moved != places])
        user.append(everyone[moved != places])
        to.append(moved[moved != places])
    rise, user, to = (np.concatenate(parts) for parts in (rise, user, to))
    order = rise.argsort(kind="stable")
    sizes = [(rise < 0).sum()]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    # A grid's steps are not small, so a step may gain though prices say it does not.
    for some in [order[:n] for n in sizes if n > 1] + [order[i : i + 1] for i in range(16)]:
        if some.size:
            trial = places.copy()
            trial[user[some]] = to[some]
            yield trial
