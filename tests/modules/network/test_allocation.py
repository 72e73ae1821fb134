"""The allocation: feasible, never above what it is compared with, never below its bound, and the
bound against independent solvers."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog

from modules.network.allocation import (
    AllocationError,
    allocate,
    fairest,
    given,
    relaxed,
    settled,
    table,
)
from modules.network.baselines import (
    ablations,
    alternating,
    equal_split,
    fixed_length,
    greedy,
    held,
    proportional,
    random_split,
    water_filling,
)
from tests.helpers.network import BITS, LENGTHS, analog, digital, problem

LINKS = {"analog": analog(), "digital": digital()}
BOTH = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)


def check_feasible(p, found) -> None:
    """Constraints to 1e-6 relative, and all that is told is what comes of the allocation."""
    assert found.bandwidth.sum() <= p.bandwidth * (1 + 1e-6) and (found.bandwidth >= 0).all()
    assert (found.power <= p.user_power * (1 + 1e-6)).all() and (found.power >= 0).all()
    assert found.power.sum() <= p.power * (1 + 1e-6)
    assert p.allowed[np.arange(p.users), found.option].all()
    sends = found.option > 0
    ends = np.where(sends, p.encode + found.seconds, 0)
    assert found.latency == pytest.approx(ends.max()) and (ends <= p.deadline * (1 + 1e-6)).all()
    assert (found.energy <= p.energy * (1 + 1e-6)).all()
    assert found.energy == pytest.approx(found.power * found.seconds)
    sent = (p.kind, found.option, np.where(sends, found.bandwidth, 1.0))
    strength = found.power * p.gain / p.noise_density
    needed = p.link.hertz(sent[0], sent[1], np.where(sends, found.seconds, 1.0), strength)
    assert (found.bandwidth >= np.where(sends, needed, 0) * (1 - 1e-6)).all()
    assert found.loss == pytest.approx(p.link.loss(*sent, strength))
    lost = p.importance * found.loss
    nats = p.floor + (lost.max() if p.fair else lost.sum())
    seconds = found.latency + p.foundation_fixed + p.foundation * p.link.lengths[found.option].sum()
    total = p.weight * seconds + (1 - p.weight) * nats + p.energy_weight * found.energy.sum()
    assert found.objective == pytest.approx(total)


def gap(p, found) -> float:
    """Of the part that can be changed, and of the bound's."""
    return (found.objective - found.bound) / (found.bound - p.fixed)


@BOTH
@pytest.mark.parametrize("seed", range(4))
def test_the_allocation_and_its_bound(link, seed):
    """Feasible, and within 1 % of what no allocation can be below; no method and no random
    allocation is below the bound."""
    source = np.random.default_rng(seed)
    p = problem(link, 2 * int(source.integers(1, 7)), seed, weight=source.uniform(0.05, 0.9))
    found = allocate(p)
    check_feasible(p, found)
    assert -1e-9 <= gap(p, found) < 0.01
    others = [equal_split(p), proportional(p), fixed_length(p, 3), greedy(p), alternating(p)]
    others += [random_split(p, source) for _ in range(10)]
    for other in others:
        check_feasible(p, other)
        assert other.objective >= found.bound - 1e-9


@pytest.mark.parametrize("link", [analog(), digital(LENGTHS[:4], BITS[:2])], ids=LINKS)
def test_near_exhaustive_search(link):
    """All options of two users by themselves, each with its best T: the joint allocation is no
    more than 1 % above the best of them, and its bound not above it."""
    p = problem(link, 2, 5)
    best = np.inf
    for pick in product(range(len(link.lengths)), repeat=2):
        for latency in np.geomspace(0.011, 3, 120):
            for each in settled(p, np.array(pick), latency / 2, latency):
                best = min(best, each.objective)
    found = allocate(p)
    assert found.bound <= best * (1 + 1e-9)
    assert found.objective - p.fixed <= (best - p.fixed) * 1.01


@BOTH
@pytest.mark.parametrize("shared", [False, True])
def test_for_a_given_time_the_bound_is_that_of_the_linear_program(link, shared):
    """Mixtures of options within the budgets, as a solver of linear programs finds their cost."""
    p = problem(link, 6, 3, power=0.3 if shared else np.inf, power_steps_db=(0.0, 3.0, 6.0, 12.0))
    of = table(p, 0.03, 0.03)
    shape, free = of.cost.shape, np.isfinite(of.hertz).ravel()
    needs = [of.hertz, of.watts] if shared else [of.hertz]
    budgets = [p.bandwidth, p.power] if shared else [p.bandwidth]
    one_each = np.kron(np.eye(shape[0]), np.ones(shape[1]))[:, free]
    rows = np.array([n.ravel()[free] / b for n, b in zip(needs, budgets, strict=True)])
    solved = linprog(of.cost.ravel()[free], rows, np.ones(len(rows)), one_each, np.ones(p.users))
    bound, picks = relaxed(of.cost, needs, budgets)
    assert bound <= solved.fun + 1e-9
    assert bound == pytest.approx(solved.fun, rel=2e-3 if shared else 1e-6)
    used = [n[np.arange(p.users), picks[0]].sum() for n in needs]
    assert all(u <= b * (1 + 1e-9) for u, b in zip(used, budgets, strict=True))


def test_the_fairest_choice_is_the_fairest():
    """Of all choices of three users within the budget none has a lower largest cost."""
    source = np.random.default_rng(0)
    for _ in range(20):
        cost, hertz = source.random((3, 5)), source.random((3, 5))
        hertz[:, 0] = 0
        found, pick = fairest(cost, hertz, 1.0)
        every = list(product(range(5), repeat=3))
        rows = np.arange(3)
        fits = [c for c in every if hertz[rows, c].sum() <= 1]
        assert found == min(cost[rows, c].max() for c in fits) == cost[rows, pick].max()
        assert hertz[rows, pick].sum() <= 1


@BOTH
def test_options_of_the_objective(link):
    """Deadlines, importance, fairness, energy: each is kept, or moves what it should."""
    p = problem(link, 8, 1, weight=0.2)
    free = allocate(p)
    soon = np.full(8, np.inf)
    soon[0] = 0.02
    kept = allocate(replace(p, deadline=soon))
    check_feasible(replace(p, deadline=soon), kept)
    hard = replace(p, weight=0.0, deadline=0.02)
    kept = allocate(hard)
    check_feasible(hard, kept)
    assert kept.latency <= 0.02 * (1 + 1e-9) and gap(hard, kept) < 0.05
    heavy = replace(hard, importance=hard.importance * np.r_[50.0, np.ones(7)])
    assert allocate(heavy).loss[0] <= kept.loss[0] + 1e-12
    fair = replace(hard, fair=True)
    check_feasible(fair, allocate(fair))
    assert allocate(fair).loss.max() <= kept.loss.max() + 1e-12
    tired = replace(p, energy_weight=20.0)
    check_feasible(tired, allocate(tired))
    assert allocate(tired).energy.sum() < free.energy.sum()
    bounded = replace(p, energy=free.energy.max() / 2)
    check_feasible(bounded, allocate(bounded))


@BOTH
def test_power_that_is_shared(link):
    """It is kept, more of it is no worse, and it is worth moving between users."""
    p = problem(link, 6, 2, power=0.1, weight=0.3, bandwidth=2e5)
    found = allocate(p)
    check_feasible(p, found)
    assert gap(p, found) < 0.03
    assert allocate(replace(p, power=0.3)).objective <= found.objective * (1 + 1e-3)
    for other in (equal_split(p), water_filling(p), greedy(p), alternating(p)):
        check_feasible(p, other)
        assert other.objective >= found.bound - 1e-9
    poured = water_filling(p)
    assert poured.power.sum() <= 0.1 * (1 + 1e-9)


@BOTH
def test_hands_that_are_tied(link):
    """A held variable is held: equal bands, own power, one message; and the more is free the lower
    is the objective."""
    p = problem(link, 8, 4)
    assert held(p, ("power", "length"), 3).user_bandwidth.tolist() == [p.bandwidth / 8] * 8
    assert held(replace(p, power=0.4), ("length",), 3).user_power == pytest.approx([0.05] * 8)
    assert set(allocate(held(p, ("bandwidth",), 3)).option) <= {0, 3}
    found = {name: solve(p).objective for name, solve in ablations(3).items()}
    assert list(found)[0] == "" and list(found)[-1] == "bandwidth and power and length"
    best = found["bandwidth and power and length"]
    assert best <= min(found.values()) + 0.006 * (best - p.fixed)
    slack = 0.006 * (best - p.fixed)  # what the search leaves
    assert found["bandwidth and length"] <= found["length"] + slack < found[""] + slack


def test_weights_at_the_ends():
    """Time alone counts: nobody sends. Loss alone: everyone sends the most."""
    for link in LINKS.values():
        assert (allocate(problem(link, 4, 0, weight=1.0)).option == 0).all()
        most = allocate(problem(link, 4, 0, weight=0.0))
        assert (link.lengths[most.option] == 32).all()


@BOTH
def test_more_bandwidth_is_never_worse(link):
    """The objective falls with it, but for the gap that the search leaves; and by much where there
    is little of it."""
    asked = [problem(link, 6, 2, bandwidth=b) for b in (2.5e4, 1e5, 4e5, 1.6e6)]
    found = [allocate(p) for p in asked]
    changed = np.array([f.objective - p.fixed for f, p in zip(found, asked, strict=True)])
    assert (changed[1:] <= changed[:-1] * 1.006).all() and changed[1] < 0.9 * changed[0]


@pytest.mark.filterwarnings("error")
@BOTH
@pytest.mark.parametrize("seed", range(8))
def test_numbers_over_many_decades(link, seed):
    """Gains, budgets and weights far apart: no overflow, constraints hold, the bound is one."""
    source = np.random.default_rng(seed)
    users = int(source.integers(1, 9))
    p = problem(
        link,
        users,
        seed,
        gain=10 ** source.uniform(-20, -3, users),
        noise_density=10 ** source.uniform(-22, -16),
        bandwidth=10 ** source.uniform(2, 9),
        user_power=10 ** source.uniform(-6, 2, users),
        weight=source.choice([0, 1e-3, 0.5, 0.999, 1]),
        encode=source.choice([0, 0.1]) * source.random(users),
    )
    found = allocate(p, most=60)
    check_feasible(p, found)
    assert found.bound <= found.objective


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"user_power": [0.1, -0.1]}, "user_power -0.1"),
        ({"power": 0.0}, "power 0: must be above 0"),
        ({"bandwidth": 0.0}, "bandwidth 0"),
        ({"bandwidth": float("nan")}, "bandwidth nan"),
        ({"gain": [], "user_power": 0.1, "encode": 0.0, "kind": 0}, "users: a network needs one"),
        ({"gain": [1e-10] * 3, "kind": 0}, "encode: 2 values for 3 users"),
        ({"gain": [1e-10, 0.0]}, "gain 0"),
        ({"weight": 1.5}, "weight 1.5"),
        ({"encode": -0.1}, "encode -0.1"),
        ({"deadline": 0.0}, "deadline 0"),
        ({"energy": 0.0}, "energy 0"),
        ({"fair": True, "power": 0.1}, "fair: is for handsets"),
    ],
)
def test_bad_problems_get_one_line(wrong, says):
    """Negative power, zero users and the like are named, never computed with."""
    with pytest.raises(AllocationError, match=says) as error:
        problem(analog(), 2, 0, **wrong)
    assert "\n" not in str(error.value)


def test_a_deadline_that_nothing_keeps():
    """Nobody sends, which is an allocation and says so."""
    found = allocate(problem(analog(), 4, 0, deadline=1e-6))
    assert (found.option == 0).all() and found.latency == 0


def test_an_allocation_from_elsewhere_is_checked():
    """One's own allocation enters by `given`, which refuses what there is not."""
    p = problem(analog(), 2, 0)
    half = np.full(2, 0.5)
    fine = dict(option=np.array([1, 2]), bandwidth=half * p.bandwidth, power=p.user_power)
    assert given(p, **fine).objective > 0
    for name, value, says in (
        ("bandwidth", half * p.bandwidth * 1.1, "bandwidth"),
        ("power", np.array([0.21, 1e-6]), "power"),
    ):
        with pytest.raises(AllocationError, match=says):
            given(p, **{**fine, name: value})
    few = replace(p, allowed=np.arange(7) < 2)
    with pytest.raises(AllocationError, match="option"):
        given(few, **fine)
