"""What the joint allocation is compared with: simple splits, and the search over all lengths."""

from itertools import product

import numpy as np

from modules.network.allocation import Allocation, AllocationError, Problem, split
from modules.network.cell import rate


def of_shares(problem: Problem, bandwidth: np.ndarray, power: np.ndarray) -> Allocation:
    """The best token lengths for a given split, exactly.

    Args:
        bandwidth, power: Hz and W of each user (users,).

    For a latency T each user may take any length that it can send by then, and takes the cheapest;
    the objective only changes at the T at which some user can send one more length.
    """
    rates = rate(bandwidth, power, problem.gain, problem.noise_density)
    w, grid = problem.weight, problem.lengths
    loss = problem.fall[:, None] * grid ** -problem.exponent[:, None]  # (users, grid)
    cost = w * problem.foundation * grid + (1 - w) * loss
    least = np.minimum.accumulate(cost, axis=1)
    bits = problem.token_bits * (grid + problem.special[:, None])
    done = problem.encode[:, None] + bits / rates[:, None]  # s at which a length has arrived
    order = done[:, 1:].argsort(axis=None)
    latency = np.r_[0, np.sort(done[:, 1:], axis=None)]
    latency = np.maximum(latency, done[:, 0].max())  # the shortest must arrive in any case
    gained = np.r_[0, -np.diff(least, axis=1).ravel()[order].cumsum()]
    total = np.where(latency <= problem.deadline, w * latency - gained, np.inf)
    latest = latency[total.argmin()]
    allowed = np.where(done <= latest, cost, np.inf)
    return given(problem, grid[allowed.argmin(axis=1)], bandwidth, power)


def given(
    problem: Problem, lengths: np.ndarray, bandwidth: np.ndarray, power: np.ndarray
) -> Allocation:
    """What comes of an allocation made elsewhere, (users,) each: tokens, Hz, W.

    Raises:
        AllocationError: if it takes more than there is.
    """
    for name, used, most in (
        ("bandwidth", bandwidth.sum(), problem.bandwidth),
        ("power", power.sum(), problem.power),
        ("user_power", (power / problem.user_power).max(), 1.0),
    ):
        if used > most * (1 + 1e-6):
            raise AllocationError(f"{name}: {used:g} is given out, there is {most:g}")
    if not np.isin(lengths, problem.lengths).all():
        raise AllocationError("lengths: some are not among those allowed")
    rates = rate(bandwidth, power, problem.gain, problem.noise_density)
    latency = float((problem.encode + problem.bits(lengths) / rates).max())
    return Allocation(lengths, bandwidth, power, latency, problem.objective(lengths, latency))


def equal_split(problem: Problem) -> Allocation:
    """The same bandwidth and power for everyone, and the best lengths for that."""
    share = np.full(problem.users, 1 / problem.users)
    return of_shares(problem, share * problem.bandwidth, shared_power(problem, share))


def proportional(problem: Problem) -> Allocation:
    """Bandwidth and power in proportion to the payloads, of the lengths for an equal split."""
    lengths = equal_split(problem).lengths
    share = problem.bits(lengths) / problem.bits(lengths).sum()
    return given(problem, lengths, share * problem.bandwidth, shared_power(problem, share))


def fixed_length(problem: Problem, length: float) -> Allocation:
    """One length for everyone, and the best split for that."""
    return split(problem, np.full(problem.users, float(length)))


def random_split(problem: Problem, source: np.random.Generator) -> Allocation:
    """Random lengths and shares."""
    shares = source.dirichlet(np.ones(problem.users), 2)
    lengths = source.choice(problem.lengths, problem.users)
    power = shared_power(problem, shares[1])
    return given(problem, lengths, shares[0] * problem.bandwidth, power)


def exhaustive(problem: Problem) -> Allocation:
    """The optimum: the best split for each choice of lengths. For few users and short grids."""
    choices = product(problem.lengths, repeat=problem.users)
    return min((split(problem, np.array(c)) for c in choices), key=lambda found: found.objective)


def shared_power(problem: Problem, share: np.ndarray) -> np.ndarray:
    """W of each user (users,): its share of all, and no more than it can send."""
    return np.minimum(share * problem.power, problem.user_power)
