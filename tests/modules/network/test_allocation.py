"""The allocation: its blocks against independent solvers, the whole against exhaustive search."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from modules.network.allocation import (
    AllocationError,
    Problem,
    allocate,
    seconds_of_lengths,
    split,
)
from modules.network.baselines import (
    equal_split,
    exhaustive,
    fixed_length,
    given,
    of_shares,
    proportional,
    random_split,
)
from modules.network.cell import Cell, rate


def problem(users: int, seed: int, **other) -> Problem:
    """A drop; by the seed bandwidth or power, latency or loss, encoding or sending weigh more."""
    source, cell = np.random.default_rng(seed), Cell()
    values = dict(
        gain=cell.gains(cell.distances(users, source), source),
        noise_density=cell.noise_density,
        bandwidth=users * 10 ** source.uniform(4, 6),
        power=users * 10 ** source.uniform(-3, -0.5),
        user_power=np.full(users, 0.1),
        token_bits=1024.0,
        special=np.resize([1, 2], users),
        lengths=(1, 4, 8, 16),
        fall=np.resize([0.5, 0.2], users) / users,
        exponent=np.resize([0.7, 1.2], users),
        floor=0.4,
        encode=source.choice([0, 0.01, 0.1]) * source.uniform(0.5, 1.5, users),
        foundation=1e-5,
        weight=source.uniform(0.1, 0.9),
    )
    return Problem(**{**values, **other})


def latency(p: Problem, found) -> float:
    """By Shannon's formula, from what users were given."""
    rates = rate(found.bandwidth, found.power, p.gain, p.noise_density)
    return (p.encode + p.bits(found.lengths) / rates).max()


def check_feasible(p: Problem, found) -> None:
    """Constraints to 1e-6 relative, and the latency is what it says."""
    assert found.bandwidth.sum() <= p.bandwidth * (1 + 1e-6) and (found.bandwidth > 0).all()
    assert found.power.sum() <= p.power * (1 + 1e-6)
    assert (found.power <= p.user_power * (1 + 1e-6)).all() and (found.power >= 0).all()
    assert np.isin(found.lengths, p.lengths).all()
    assert latency(p, found) == pytest.approx(found.latency, rel=1e-6)
    assert found.objective == pytest.approx(p.objective(found.lengths, latency(p, found)), rel=1e-6)


def by_cvxpy(p: Problem, lengths: np.ndarray) -> float:
    """The smallest T, from a general solver of convex programs (exponential cone)."""
    cvxpy = pytest.importorskip("cvxpy")
    share, power, latency = cvxpy.Variable(p.users), cvxpy.Variable(p.users), cvxpy.Variable()
    snr = p.power * p.gain / (p.noise_density * p.bandwidth)  # with all power, over all bandwidth
    nats = -cvxpy.rel_entr(share, share + cvxpy.multiply(snr, power))
    unit = np.log(2) * p.bits(lengths) / p.bandwidth
    scale = unit.max()  # so that the solver sees numbers about 1
    uplink = cvxpy.multiply(unit / scale, cvxpy.inv_pos(nats))
    limits = [
        p.encode / scale + uplink <= latency,
        cvxpy.sum(share) <= 1,
        cvxpy.sum(power) <= 1,
        power >= 0,
        power <= p.user_power / p.power,
    ]
    cvxpy.Problem(cvxpy.Minimize(latency), limits).solve(
        solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9
    )
    return float(latency.value) * scale


@pytest.mark.parametrize("seed", range(12))
def test_the_convex_block_agrees_with_another_solver(seed):
    """Bandwidth and power: T as a general convex solver finds it, to 1e-5."""
    p = problem(2 + seed % 7, seed)
    lengths = np.random.default_rng(seed).choice(p.lengths, p.users)
    found = split(p, lengths)
    check_feasible(p, found)
    assert found.latency == pytest.approx(by_cvxpy(p, lengths), rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_prices_are_the_rise_of_the_latency(seed):
    """The price of a token is by how much T rises when one user sends a little more."""
    p = problem(4, seed)
    lengths = np.array([4.0, 4.0, 4.0, 4.0])
    at = split(p, lengths)
    fine = replace(p, lengths=np.array([4.0, 4.0001]))
    told = seconds_of_lengths(fine, at)[:, 1]
    for m in range(4):
        more = lengths.copy()
        more[m] = 4.0001
        assert split(fine, more).latency - at.latency == pytest.approx(told[m], rel=0.02, abs=1e-12)


def test_alone_a_user_gets_everything():
    """One user: all bandwidth, its most power, and T by Shannon's formula."""
    p = problem(1, 3, power=0.05, user_power=0.1)
    found = split(p, np.array([8.0]))
    assert found.bandwidth == pytest.approx(p.bandwidth) and found.power == pytest.approx(0.05)
    alone = p.bits(np.array([8.0])) / rate(p.bandwidth, 0.05, p.gain, p.noise_density)
    assert found.latency == pytest.approx((p.encode + alone)[0], rel=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_the_objective_never_rises(seed):
    """From one iteration to the next, from any start; the result keeps every constraint and is
    below all baselines, which start from none of them and are feasible too."""
    source = np.random.default_rng(seed)
    p = problem(int(source.integers(1, 12)), seed, lengths=np.arange(1, 33))
    others = [equal_split(p), proportional(p), fixed_length(p, 8), random_split(p, source)]
    for other in others:
        check_feasible(p, other)
    for start in (None, source.choice(p.lengths, p.users)):
        found = allocate(p, start)
        assert (np.diff(found.history) < 0).all() and found.history[-1] == found.objective
        check_feasible(p, found)
        assert all(found.objective <= other.objective * (1 + 1e-6) for other in others)


@pytest.mark.slow
def test_near_the_optimum_on_small_instances():
    """Within 1 % of exhaustive search on 19 of 20 instances of up to 4 users at the least."""
    gaps = []
    for seed in range(20):
        users = 1 + seed % 4
        p = problem(users, 100 + seed, **({"lengths": (1, 4, 16)} if users > 2 else {}))
        gaps.append(allocate(p).objective / exhaustive(p).objective - 1)
    assert min(gaps) > -1e-9, "nothing is better than the optimum"
    assert np.mean(np.array(gaps) < 0.01) >= 0.95, gaps


@pytest.mark.parametrize("deadline", [np.inf, 0.2])
def test_lengths_of_a_given_split_are_the_best(deadline):
    """For fixed bandwidth and power no other lengths are better, by trying all."""
    for seed in range(5):
        p = problem(3, seed, deadline=deadline)
        share = np.full(3, 1 / 3)
        power = np.minimum(share * p.power, p.user_power)
        tried = [
            given(p, np.array(lengths), share * p.bandwidth, power).objective
            for lengths in product(p.lengths, repeat=3)
        ]
        assert of_shares(p, share * p.bandwidth, power).objective == pytest.approx(min(tried))


def test_weights_at_the_ends():
    """Latency alone: the fewest tokens. Loss alone: the most."""
    assert (allocate(problem(4, 0, weight=1.0)).lengths == 1).all()
    assert (allocate(problem(4, 0, weight=0.0)).lengths == 16).all()


def test_a_deadline_is_kept():
    """Tokens are given up for it, and it binds."""
    p = problem(4, 1, weight=0.01)
    free = allocate(p).latency
    kept = allocate(replace(p, deadline=free / 2))
    assert kept.latency <= free / 2 and kept.objective >= allocate(p).objective


def test_more_to_share_is_never_worse():
    """The objective falls with bandwidth and with power."""
    for name in ("bandwidth", "power"):
        p = problem(5, 2)
        found = [
            allocate(replace(p, **{name: k * getattr(p, name)})).objective for k in (1, 2, 4, 8)
        ]
        assert (np.diff(found) <= 1e-6).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(60))
def test_numbers_over_many_decades(seed):
    """Gains, budgets and payloads far apart: no overflow, the objective falls, constraints hold."""
    source = np.random.default_rng(seed)
    users = int(source.integers(1, 9))
    p = problem(
        users,
        seed,
        gain=10 ** source.uniform(-20, -3, users),
        noise_density=10 ** source.uniform(-22, -16),
        bandwidth=10 ** source.uniform(0, 10),
        power=10 ** source.uniform(-6, 3),
        user_power=10 ** source.uniform(-6, 3, users),
        token_bits=10 ** source.uniform(0, 6),
        lengths=np.unique(source.integers(1, 300, 8)),
        fall=10 ** source.uniform(-4, 1, users) * source.integers(0, 2, users),
        weight=source.choice([0, 1e-3, 0.5, 0.999, 1]),
    )
    found = allocate(p)
    check_feasible(p, found)
    assert (np.diff(found.history) < 0).all()
    assert found.objective <= equal_split(p).objective * (1 + 1e-4)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"power": -1.0}, "power -1: must be above 0"),
        ({"user_power": [0.1, -0.1]}, "user_power -0.1"),
        ({"bandwidth": 0.0}, "bandwidth 0"),
        ({"bandwidth": float("nan")}, "bandwidth nan"),
        ({"gain": [], "user_power": 0.1}, "users: a network needs one"),
        ({"gain": [1e-10] * 3}, "user_power: 2 values for 3 users"),
        ({"gain": [1e-10, 0.0]}, "gain 0"),
        ({"lengths": []}, "lengths"),
        ({"lengths": [4, 2]}, "ascending"),
        ({"lengths": [0, 2]}, "lengths 0"),
        ({"weight": 1.5}, "weight 1.5"),
        ({"encode": -0.1}, "encode -0.1"),
        ({"deadline": 0.0}, "deadline 0"),
    ],
)
def test_bad_problems_get_one_line(wrong, says):
    """Negative power, zero users and the like are named, never computed with."""
    values = dict(special=0, fall=0.1, exponent=1.0, encode=0.0)
    with pytest.raises(AllocationError, match=says) as error:
        problem(2, 0, **{**values, **wrong})
    assert "\n" not in str(error.value)


def test_no_feasible_allocation_is_said():
    """A deadline that nothing keeps ends in a line with what the fewest tokens take."""
    with pytest.raises(AllocationError, match="deadline 1e-06 s: no allocation") as error:
        allocate(problem(3, 0, deadline=1e-6))
    assert "\n" not in str(error.value)


def test_an_allocation_from_elsewhere_is_checked():
    """One's own allocation enters by `given`, which refuses what there is not."""
    p = problem(2, 0)
    half = np.full(2, 0.5)
    fine = dict(lengths=p.lengths[:2], bandwidth=half * p.bandwidth, power=half * min(p.power, 0.1))
    assert given(p, **fine).objective > 0
    for name, value, says in (
        ("bandwidth", half * p.bandwidth * 1.1, "bandwidth"),
        ("power", np.array([0.11, 1e-6]), "power"),
        ("lengths", np.array([1, 3]), "lengths"),
    ):
        with pytest.raises(AllocationError, match=says):
            given(p, **{**fine, name: value})
