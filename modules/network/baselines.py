"""What the joint allocation is compared with. Most are the same search with its hands tied: with
each user's bandwidth capped, its power set, or its options few. So a difference is what the freedom
brings, and not another solver. In each a user may be silent, which no method is denied."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from modules.network.allocation import (
    Allocation,
    Problem,
    allocate,
    ended,
    filled,
    given,
    table,
)

VARIABLES = ("bandwidth", "power", "length")


def held(problem: Problem, free: tuple[str, ...], option: int) -> Problem:
    """The problem in which only the `free` ones of VARIABLES are chosen: bandwidth is else split
    equally, power is else all that is a user's own (its part, where it is shared), and the message
    is else `option` of the link."""
    changes = {}
    if "bandwidth" not in free:
        equal = problem.bandwidth / problem.users
        changes["user_bandwidth"] = np.minimum(problem.user_bandwidth, equal)
    if "power" not in free:
        own = np.minimum(problem.user_power, problem.power / problem.users)
        changes |= {"user_power": own, "power": np.inf, "power_steps_db": (0.0,)}
    if "length" not in free:
        allowed = problem.allowed & (np.arange(len(problem.link.lengths)) == option)
        changes["allowed"] = allowed
    return replace(problem, **changes)


def equal_split(problem: Problem) -> Allocation:
    """The same bandwidth and power for everyone, and the best lengths for that."""
    return allocate(held(problem, ("length",), 0))


def proportional(problem: Problem) -> Allocation:
    """Bandwidth in proportion to the payloads of an equal split, and the best lengths for that."""
    tied = held(problem, ("length",), 0)
    sent = problem.link.sent[problem.kind, allocate(tied).option] + 1e-9
    return allocate(replace(tied, user_bandwidth=problem.bandwidth * sent / sent.sum()))


def fixed_length(problem: Problem, option: int) -> Allocation:
    """One message for everyone, and the best split for that."""
    return allocate(held(problem, ("bandwidth", "power"), option))


def greedy(problem: Problem) -> Allocation:
    """At the equal split's latency, bandwidth goes step by step to whoever gains most a Hz."""
    start = equal_split(problem)
    if not start.latency:
        return start
    of = table(problem, start.latency, start.latency)
    pick = filled(of, np.zeros(problem.users, int), problem.bandwidth, problem.power)
    return ended(problem, pick, start.latency) or start


def random_split(problem: Problem, source: np.random.Generator) -> Allocation:
    """Random shares, and a random message among those that these carry within the deadline; without
    a deadline within ten times the equal split's latency, as there may be no end to it."""
    share = source.dirichlet(np.ones(problem.users))
    power = np.minimum(problem.user_power, problem.power / problem.users)
    last = problem.deadline.max()
    if np.isinf(last):
        last = 10 * equal_split(problem).latency
    hertz = np.minimum(share * problem.bandwidth, problem.user_bandwidth)
    tied = replace(
        problem, user_bandwidth=hertz, user_power=power, power=np.inf, power_steps_db=(0.0,)
    )
    fits = np.isfinite(table(tied, last, last).hertz) if last else problem.allowed & False
    fits[:, 0] = ~fits[:, 1:].any(axis=1)  # silence where nothing else fits
    option = np.where(fits, source.random(fits.shape), -1).argmax(axis=1)
    strength = power * problem.gain / problem.noise_density
    seconds = problem.link.seconds(problem.kind, option, hertz, strength)
    # With a little less than all its band a user may have a better code.
    narrow = (option > 0) & ~(seconds <= np.minimum(last, problem.deadline) - problem.encode)
    left = np.where(narrow, np.minimum(last, problem.deadline) - problem.encode, 1.0)
    less = problem.link.hertz(problem.kind, option, np.maximum(left, 1e-12), strength)
    hertz, seconds = np.where(narrow, less, hertz), np.where(narrow, left, seconds)
    return given(problem, option, hertz, power, np.where(option > 0, seconds, 0.0))


def water_filling(problem: Problem) -> Allocation:
    """Shared power poured over equal bands so that their sum rate is largest (Cover and Thomas,
    Elements of Information Theory, 9.4), and the best lengths for that. Where power is each
    handset's own there is none to pour, and this is the equal split."""
    if not problem.shares_power:
        return equal_split(problem)
    floor = problem.noise_density * problem.bandwidth / problem.users / problem.gain  # W
    low, high = 0.0, floor.max() + problem.power
    for _ in range(100):
        level = (low + high) / 2
        power = np.clip(level - floor, 0, problem.user_power)
        low, high = (low, level) if power.sum() > problem.power else (level, high)
    power = np.clip(low - floor, 1e-12, problem.user_power)
    tied = held(problem, ("length",), 0)
    return allocate(replace(tied, user_power=power))


def alternating(problem: Problem, rounds: int = 20) -> Allocation:
    """Bandwidth and power for given lengths, then lengths for given bandwidth and power, from the
    equal split on until neither helps: what the abstract of arXiv 2505.07841 (v2, v3) says of its
    scheme. What bandwidth is left after the first half is shared in proportion."""
    best = equal_split(problem)
    for _ in range(rounds):
        own = np.arange(len(problem.link.lengths)) == best.option[:, None]
        found = allocate(replace(problem, allowed=problem.allowed & own))
        sends = found.option > 0
        if not sends.any():
            break
        tied = replace(
            problem,
            user_bandwidth=np.maximum(
                found.bandwidth * problem.bandwidth / found.bandwidth.sum(), 1e-9
            ),
            user_power=np.where(sends, found.power, problem.user_power),
            power=np.inf,
            power_steps_db=(0.0,),
        )
        found = min(found, allocate(tied), key=lambda each: each.objective)
        if not found.objective < best.objective - 1e-6 * abs(best.objective):
            break
        best = found
    return best


def ablations(option: int) -> dict[str, Callable[[Problem], Allocation]]:
    """What each variable brings, alone, in pairs and together; `option` is the message of those
    that do not choose it."""
    kept = [("bandwidth",), ("power",), ("length",)]
    kept += [("bandwidth", "power"), ("bandwidth", "length"), ("power", "length"), VARIABLES]
    return {" and ".join(free): partial(tied, free=free, option=option) for free in [(), *kept]}


def tied(problem: Problem, free: tuple[str, ...], option: int) -> Allocation:
    """The best allocation in which only the `free` ones of VARIABLES are chosen."""
    return allocate(held(problem, free, option))
