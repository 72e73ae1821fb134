"""Who gets bandwidth, power and tokens: the joint optimisation of a multi-user uplink.

User m has B_m Hz and p_m W, and sends by one of its link's options (links.py), after e_m s of
encoding. With t_m the seconds of its uplink the problem is

    min   w (T + c sum_m L_m) + (1 - w) (floor + sum_m a_m loss_m) + v sum_m E_m
    s.t.  e_m + t_m <= T <= deadline for every user that sends,   sum_m B_m <= B,
          p_m <= P_m,   sum_m p_m <= P if power is shared,   E_m <= the energy of each,

latency (that of the slowest user, and of the foundation model, which reads every token), the
validation loss, and the energy of sending. With `fair`, the largest a_m loss_m stands in place of
their sum (max-min fairness). Power is each handset's own, in steps as 5G's power control sets it
(TS 38.213, 7.1.1), and of use to others only where it is shared.

**For a given T every user ends at T**: with less time it would need more bandwidth. So what an
option needs, B_m(o, p, T), and what it costs are numbers, and what is left is to choose one option
and one step of power for each user so that the bandwidths fit: a multiple-choice knapsack. Mixtures
of options make it convex (linear), and by a price l on bandwidth it falls into users:

    D(T) = max over l >= 0 of   sum_m min_{o, p} (cost_m(o, p, T) + l B_m(o, p, T))  -  l B,

with a second price where power is shared. What users choose at the best price fits but for a user
or two, who give way. (Lagrangian duality; Everett, Operations Research 11, 1963.)

**One search over T.** Needs and costs fall with T, so between a and b no T does better than
w a + D(b). The search halves whichever stretch has the lowest such bound, until none could be
better by more than `gap` of the part of the objective that an allocation can change. It ends with
an allocation and a proof of how good it is, for any number of users.

The published scheme (arXiv 2505.07841, v2 and v3) alternates between bandwidth and power, and token
lengths; its derivation is not at hand. What its abstract says of it is `alternating` in
baselines.py.
"""

import heapq
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import brentq

from modules.network.cell import from_db
from modules.network.links import Analog, Digital

ROUNDS = 60  # in which a price is found, at most; mostly 5 to 10 are enough


class AllocationError(ValueError):
    """A problem that has no solution, or is none, in one line."""


@dataclass(frozen=True)
class Problem:
    """A drop of users, what they may use, and what tokens bring; arrays are (users,)."""

    link: Analog | Digital
    kind: np.ndarray  # of each user, by its number in the link's tables
    gain: np.ndarray  # power gains
    noise_density: float  # N0, W/Hz
    bandwidth: float  # B, Hz of all users together
    user_power: np.ndarray  # P_m, W
    power: float = np.inf  # P, W of all users together, where power is shared
    user_bandwidth: np.ndarray | float = np.inf  # Hz that a user can use
    allowed: np.ndarray | bool = True  # (options,) or (users, options), which may be chosen
    floor: float = 0.0  # nats
    importance: np.ndarray | float = 1.0  # a_m, of a user's loss; 1 / scenes makes it a mean
    fair: bool = False  # the largest loss in place of the sum
    encode: np.ndarray | float = 0.0  # e_m, s
    foundation: float = 0.0  # c, s a token
    foundation_fixed: float = 0.0  # s besides: the question, the special tokens, the answer
    weight: float = 0.5  # w, of a second against a nat
    deadline: np.ndarray | float = np.inf  # s, of encoding and uplink
    energy_weight: float = 0.0  # v, of a joule against a nat
    energy: np.ndarray | float = np.inf  # J that a user may spend on sending
    # below P_m, where it matters
    power_steps_db: tuple[float, ...] = (*range(13), 15, 18, 21, 24, 27, 30)

    def __post_init__(self):
        users, options = np.size(self.gain), len(self.link.lengths)
        for name in ("gain", "user_power", "user_bandwidth", "importance", "encode", "deadline",
                     "energy"):  # fmt: skip
            value = np.asarray(getattr(self, name), float)
            if value.shape not in ((), (users,)):
                raise AllocationError(f"{name}: {value.size} values for {users} users")
            object.__setattr__(self, name, np.broadcast_to(value, users))
        object.__setattr__(self, "kind", np.broadcast_to(self.kind, users))
        allowed = np.broadcast_to(self.allowed, (users, options)).copy()
        allowed[:, 0] = True  # anyone may be silent
        object.__setattr__(self, "allowed", allowed)
        check(self)

    @property
    def users(self) -> int:
        return len(self.gain)

    @property
    def shares_power(self) -> bool:
        return self.power < self.user_power.sum()

    @cached_property
    def steps(self) -> np.ndarray:
        """W that each user may send with, (users, steps); all it has where less has no use."""
        matters = self.shares_power or self.energy_weight > 0 or np.isfinite(self.energy).any()
        steps = np.array(self.power_steps_db if matters else (0.0,))
        return self.user_power[:, None] * from_db(-steps)

    @cached_property
    def fixed(self) -> float:
        """The part of the objective that no allocation changes."""
        seconds = self.foundation_fixed + self.encode.min()
        return float(self.weight * seconds + (1 - self.weight) * self.floor)

    def objective(self, latency: float, tokens: float, loss: np.ndarray, energy: float) -> float:
        """Of T in s, all patch tokens, each user's loss against the best, and J of all users."""
        lost = self.importance * loss
        seconds = latency + self.foundation_fixed + self.foundation * tokens
        nats = self.floor + (lost.max() if self.fair else lost.sum())
        return float(self.weight * seconds + (1 - self.weight) * nats + self.energy_weight * energy)


def check(problem: Problem) -> None:
    """AllocationError for values that no network has."""
    above_zero = ("gain", "noise_density", "bandwidth", "user_power")
    not_below = ("importance", "encode", "foundation", "foundation_fixed", "energy_weight")
    if problem.users == 0:
        raise AllocationError("users: a network needs one at least")
    for names, least, fine in (
        (above_zero, "above 0 and finite", lambda v: (v > 0) & np.isfinite(v)),
        (not_below, "0 or more and finite", lambda v: (v >= 0) & np.isfinite(v)),
        (("weight",), "between 0 and 1", lambda v: (v >= 0) & (v <= 1)),
        (("power", "user_bandwidth", "deadline", "energy"), "above 0", lambda v: v > 0),
    ):
        for name in names:
            value = np.asarray(getattr(problem, name))
            if not np.all(fine(value)):
                wrong = value[~fine(value)].flat[0] if value.ndim else value
                raise AllocationError(f"{name} {wrong:g}: must be {least}")
    if problem.fair and (problem.shares_power or problem.energy_weight > 0):
        raise AllocationError(
            "fair: is for handsets with power of their own, whose energy has no weight"
        )


@dataclass(frozen=True)
class Allocation:
    """What each user gets, (users,), and what comes of it."""

    option: np.ndarray  # of the link; 0 is silence
    bandwidth: np.ndarray  # Hz
    power: np.ndarray  # W
    seconds: np.ndarray  # s of the uplink
    latency: float  # T, s: encoding and uplink of the slowest user that sends
    loss: np.ndarray  # nats of each user against the best
    energy: np.ndarray  # J of sending
    objective: float
    bound: float = -np.inf  # no allocation of the problem is below it


def given(
    problem: Problem,
    option: np.ndarray,
    bandwidth: np.ndarray,
    power: np.ndarray,
    seconds: np.ndarray | None = None,
) -> Allocation:
    """What comes of an allocation made elsewhere, (users,) each. Without `seconds` a user takes
    what its link takes.

    Raises:
        AllocationError: if it takes more than there is.
    """
    sends = option > 0
    bandwidth, power = np.where(sends, bandwidth, 0.0), np.where(sends, power, 0.0)
    for name, used, most in (
        ("bandwidth", bandwidth.sum(), problem.bandwidth),
        ("power", power.sum(), problem.power),
        ("user_power", (power / problem.user_power).max(), 1.0),
        ("user_bandwidth", (bandwidth / problem.user_bandwidth).max(), 1.0),
    ):
        if used > most * (1 + 1e-6):
            raise AllocationError(f"{name}: {used:g} is given out, there is {most:g}")
    if not problem.allowed[np.arange(problem.users), option].all():
        raise AllocationError("option: some are not among those allowed")
    hertz = np.where(sends, bandwidth, 1.0)
    sent = (problem.kind, option, hertz, power * problem.gain / problem.noise_density)
    if seconds is None:
        seconds = problem.link.seconds(*sent)
    seconds = np.where(sends, seconds, 0.0)
    loss, energy = problem.link.loss(*sent), power * seconds
    latency = float(np.where(sends, problem.encode + seconds, 0).max())
    late = (problem.encode + seconds > problem.deadline * (1 + 1e-9)) & sends
    over = late.any() or (energy > problem.energy * (1 + 1e-9)).any()
    tokens = problem.link.lengths[option].sum()
    objective = np.inf if over else problem.objective(latency, tokens, loss, energy.sum())
    return Allocation(option, bandwidth, power, seconds, latency, loss, energy, objective)


@dataclass(frozen=True)
class Table:
    """What each user may choose for a T, (users, choices): options by steps of power, in a row."""

    cost: np.ndarray  # in the objective
    hertz: np.ndarray  # infinite where it is no choice
    watts: np.ndarray


def table(problem: Problem, low: float, high: float) -> Table:
    """What choices need and cost where T lies between `low` and `high`, at their best."""
    link, steps, shape = problem.link, problem.steps, (problem.users, -1)
    kind, option = problem.kind[:, None, None], np.arange(len(link.lengths))[None, :, None]
    left = (np.minimum(high, problem.deadline) - problem.encode)[:, None, None]
    soonest = np.maximum(low - problem.encode, 0)[:, None, None]
    strength = (steps * (problem.gain / problem.noise_density)[:, None])[:, None, :]
    watts = np.where(option > 0, steps[:, None, :], 0.0)
    seconds = np.maximum(left, 1e-12)
    hertz = link.hertz(kind, option, seconds, strength)
    hertz = np.where(option > 0, hertz, 0.0)
    loss = link.loss(kind, option, np.where(hertz > 0, hertz, 1.0), strength)
    joules = watts * np.minimum(soonest, seconds)
    importance = problem.importance[:, None, None]
    cost = (1 - problem.weight) * importance * loss
    if not problem.fair:
        cost = cost + problem.weight * problem.foundation * link.lengths[:, None]
        cost = cost + problem.energy_weight * joules
    fits = (left > 0) & (hertz <= problem.user_bandwidth[:, None, None])
    fits &= (joules <= problem.energy[:, None, None]) & problem.allowed[:, :, None]
    hertz = np.where(fits | (option == 0), hertz, np.inf)
    return Table(
        *(np.reshape(np.broadcast_to(x, hertz.shape), shape) for x in (cost, hertz, watts))
    )


def relaxed(cost: np.ndarray, needs: list, budgets: list) -> tuple[float, list[np.ndarray]]:
    """The least cost of mixtures of choices within the budgets, from below, and what users choose
    at the prices just above and just below the best ones, (users,) each; the first fits.

    Args:
        cost, needs: (users, choices); choice 0 needs nothing.
        budgets: of each of the needs.
    """
    *inner, need = needs
    *rest, budget = budgets
    everyone = np.arange(len(cost))

    def at(price: float) -> tuple[float, list[np.ndarray], float]:
        with np.errstate(invalid="ignore"):
            total = np.where(np.isinf(need), np.inf, cost + price * need)
        if inner:
            bound, picks = relaxed(total, inner, rest)
        else:
            picks = [total.argmin(axis=1)]
            bound = total[everyone, picks[0]].sum()
        return bound - price * budget, picks, need[everyone, picks[0]].sum()

    bound, picks, used = at(0.0)
    if used <= budget:
        return bound, picks
    # At this price all of the budget would cost more than silence loses.
    highest = (cost[:, 0].sum() - cost.min(axis=1).sum()) / budget * (1 + 1e-9) + 1e-300
    low, high = (0.0, bound, picks, used), (highest, *at(highest))
    for turn in range(ROUNDS):
        # The bound is concave in the price: both ends' tangents lie above it, and meet at its top
        # once no choice changes between them (Kelley, J. SIAM 8, 1960, in one dimension).
        rise, fall = low[3] - budget, budget - high[3]
        price = (high[1] - low[1] + fall * high[0] + rise * low[0]) / (rise + fall)
        best = max(low[1], high[1])
        if low[1] + rise * (price - low[0]) <= best + 1e-9 * (abs(best) + 1e-12):
            break
        if turn % 4 == 3:  # and where they are far apart a middle comes sooner
            price = np.sqrt(low[0] * high[0]) if low[0] else high[0] / 100
        tried = (price, *at(price))
        low, high = (low, tried) if tried[3] <= budget else (tried, high)
    return max(low[1], high[1]), [high[2][0], low[2][0]]


def fairest(cost: np.ndarray, hertz: np.ndarray, budget: float) -> tuple[float, np.ndarray]:
    """The least possible largest cost of a user, and choices that reach it, (users,)."""
    levels = np.unique(cost[np.isfinite(hertz)])
    levels = levels[levels >= np.where(np.isfinite(hertz), cost, np.inf).min(axis=1).max()]
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        need = np.where(cost <= levels[middle], hertz, np.inf).min(axis=1).sum()
        low, high = (low, middle) if need <= budget else (middle + 1, high)
    return levels[low], np.where(cost <= levels[low], hertz, np.inf).argmin(axis=1)


def filled(of: Table, pick: np.ndarray, bandwidth: float, power: float) -> np.ndarray:
    """The choices with what is left of the budgets spent on the steps that gain most a Hz."""
    pick, everyone = pick.copy(), np.arange(len(pick))[:, None]
    for _ in range(10 * len(pick)):
        now = pick[:, None]
        more, watts = (x - x[everyone, now] for x in (of.hertz, of.watts))
        gain = of.cost[everyone, now] - of.cost
        fits = more <= bandwidth - of.hertz[everyone, now].sum()
        fits &= (watts <= power - of.watts[everyone, now].sum()) & (gain > 1e-15)
        if not fits.any():
            break
        rate = np.where(fits, gain / np.maximum(more, 1e-9 * bandwidth), -1)
        user, choice = np.unravel_index(rate.argmax(), rate.shape)
        pick[user] = choice
    return pick


def bandwidths(problem: Problem, option: np.ndarray, power: np.ndarray, latency: float):
    """Hz with which these options (users,) all end at a time, 0 for silence; infinite where they
    cannot."""
    sends, left = option > 0, np.minimum(latency, problem.deadline) - problem.encode
    strength = power * problem.gain / problem.noise_density
    hertz = problem.link.hertz(problem.kind, option, np.maximum(left, 1e-12), strength)
    hertz = np.where((left > 0) & (hertz <= problem.user_bandwidth), hertz, np.inf)
    return np.where(sends, hertz, 0.0)


def ended(problem: Problem, pick: np.ndarray, latency: float) -> Allocation | None:
    """The allocation in which users make these choices of the table and all end at a time; None
    where they cannot."""
    option, step = np.divmod(pick, problem.steps.shape[1])
    power = problem.steps[np.arange(problem.users), step]
    hertz = bandwidths(problem, option, power, latency)
    if hertz.sum() > problem.bandwidth * (1 + 1e-9):
        return None
    if np.where(option > 0, power, 0).sum() > problem.power * (1 + 1e-9):
        return None
    seconds = np.minimum(latency, problem.deadline) - problem.encode
    return given(problem, option, hertz, power, seconds)


def settled(problem: Problem, pick: np.ndarray, low: float, high: float) -> list[Allocation]:
    """What these choices give if they end as early as bandwidth allows, but not before `low`; on
    the analog link also a little later, when the SNR is higher. None if they cannot by `high`."""
    option, step = np.divmod(pick, problem.steps.shape[1])
    power = problem.steps[np.arange(problem.users), step]

    def over(seconds: float) -> float:
        used = bandwidths(problem, option, power, seconds).sum() / problem.bandwidth
        return np.log(np.clip(used, 1e-9, 1e9))

    high *= 1.05
    if over(high) > 0:
        return []
    least = low
    if over(low) > 0:
        least = brentq(over, low, high, xtol=1e-4 * high) + 1e-4 * high
    later = (1, 1.01, 1.03, 1.1) if isinstance(problem.link, Analog) else (1,)
    tried = (ended(problem, pick, least * more) for more in later)
    return [each for each in tried if each]


def span(problem: Problem, silent: float) -> tuple[float, float]:
    """Within which T the best allocation lies, or it is silence, whose objective this is."""
    alone, low = replace(problem, encode=0.0, deadline=np.inf), 1e-8
    # The first T at which somebody could be heard with all of the bandwidth, from below.
    while not (table(alone, low, low).hertz[:, 1:].min() <= problem.bandwidth):
        low *= 8
        if low > 1e9:
            return 0.0, 0.0
    low = low / 8 + problem.encode.min()
    high = 1e9
    if problem.weight:
        high = (silent - problem.fixed) / problem.weight + problem.encode.min()
    return low, min(high, problem.deadline.max())


def allocate(problem: Problem, gap: float | None = None, most: int = 120) -> Allocation:
    """The joint allocation with its bound: the search of the module's docstring, until they are
    within `gap` of the part that can be changed (without one 0.5 %, or 2 % where power is shared),
    or `most` stretches of T were halved."""
    gap = gap or (0.02 if problem.shares_power else 0.005)
    nobody = np.zeros(problem.users, int)
    best = given(problem, nobody, nobody * 1.0, nobody * 1.0)
    low, high = span(problem, best.objective)
    if low >= high:
        return replace(best, bound=best.objective)
    budgets = [problem.bandwidth, problem.power] if problem.shares_power else [problem.bandwidth]
    constant = problem.weight * problem.foundation_fixed + (1 - problem.weight) * problem.floor

    def look(a: float, b: float, closely: bool = True) -> float:
        """The bound between two T; a better allocation there becomes the best."""
        nonlocal best
        of = table(problem, a, b)
        if problem.fair:
            least, pick = fairest(of.cost, of.hertz, problem.bandwidth)
            picks = [pick]
        else:
            needs = [of.hertz, of.watts][: len(budgets)]
            least, picks = relaxed(of.cost, needs, budgets)
            picks[0] = filled(of, picks[0], problem.bandwidth, problem.power)
        for pick in picks:
            found = [ended(problem, pick, b)]
            cost = least if problem.fair else of.cost[np.arange(problem.users), pick].sum()
            most_won = best.objective - (constant + problem.weight * a + cost)
            if closely and most_won > gap / 4 * (best.objective - problem.fixed):
                found += settled(problem, pick, a, b)
            best = min([best, *filter(None, found)], key=lambda each: each.objective)
        return constant + problem.weight * a + least

    if problem.weight == 0:  # time costs nothing: the last moment is the best
        bound = look(high, high, closely=False)
        return replace(best, bound=min(bound, best.objective))
    edges = np.geomspace(low, high, 17)
    stretches = [(look(a, b, closely=False), a, b) for a, b in zip(edges, edges[1:], strict=False)]
    heapq.heapify(stretches)
    for _ in range(most):
        bound, a, b = stretches[0]
        if bound >= best.objective - gap * (best.objective - problem.fixed):
            break
        middle = np.sqrt(a * b)
        heapq.heapreplace(stretches, (look(a, middle), a, middle))
        heapq.heappush(stretches, (look(middle, b), middle, b))
    return replace(best, bound=min(stretches[0][0], best.objective))
