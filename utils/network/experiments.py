"""What task_network.py computes without a model: bounds, methods, variables, budgets, fades.

Latencies have no mean under Rayleigh fading, so that everything over drops is told by quantiles,
and differences by ratios of the same drops. Ratios are of the part of the objective that an
allocation can change.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from modules.network.allocation import Allocation, Problem, allocate
from modules.network.baselines import ablations, water_filling
from modules.network.cell import from_dbm
from utils.network.study import LINKS, Study, spent
from utils.report.statistics import paired_ratio, quantiles

COHERENCES = (float("inf"), 0.1, 0.03, 0.01, 0.003)  # s that a fade stays
ERRORS_DB = (0.0, 1.0, 2.0, 4.0)  # of gains that are not known exactly
SPENT = (
    *("latency_s", "loss", "worst_loss", "tokens_per_user", "outage"),
    *("energy_j_per_user", "sending_j_per_user", "most_sending_j"),
    *("encode_s", "uplink_s", "foundation_s"),
)


def parts(study: Study) -> dict[str, Callable[[], dict]]:
    """What computes each part of this file, by its name: the joint allocation against its bound,
    against other methods, and elsewhere."""
    c, two = study.config, ("joint", "equal split")
    fifth = max(1, c.instances // 5)
    return {
        "vs_lower_bound": partial(against_bound, study, c.instances, fifth, c.many_users),
        "seconds_1000_users": partial(seconds_of, study, 1000, fifth),
        "vs_baselines": partial(against_baselines, study, c.drops),
        "variables": partial(variables, study, c.few),
        "over_budgets": partial(over_budgets, study, c.few, two),
        "over_users": partial(over_users, study, c.few, two),
        "over_weights": partial(over_weights, study, c.few, two),
        "over_fades": partial(over_fades, study, c.few, COHERENCES),
        "over_knowledge": partial(over_knowledge, study, c.few, ERRORS_DB),
    }


def summary(rows: list[dict]) -> dict:
    """Quantiles over drops of what `spent` tells of each, and their outage probability."""
    found = {k: quantiles([row[k] for row in rows]) for k in SPENT if k != "outage"}
    return {**found, "outage_probability": float(np.mean([row["outage"] for row in rows]))}


def scaled(study: Study, users: int) -> dict:
    """Budgets in which each of so many users has its share as in the study."""
    c = study.config
    scale = users / c.users
    return {"bandwidth": c.bandwidth * scale, "power": float(from_dbm(c.power_dbm)) * scale}


def against_bound(study: Study, drops: int, many: int, many_users: int) -> dict:
    """By how much the joint allocation is above what no allocation can be below, relative to the
    part of the bound that can be changed: drops of the study's users, and of many."""
    found = {}
    for link in LINKS:
        gaps = []
        for users, count in ((study.config.users, drops), (many_users, many)):
            problems = (study.drop(d, link, users, **scaled(study, users)) for d in range(count))
            gaps.append([gap(problem, allocate(problem)) for problem in problems])
        few, large = gaps
        found[link] = {
            "instances": drops,
            "users": study.config.users,
            "mean_gap": float(np.mean(few)),
            "worst_gap": float(max(few)),
            "many": {
                "instances": many,
                "users": many_users,
                "mean_gap": float(np.mean(large)),
                "worst_gap": float(max(large)),
            },
        }
    return found


def gap(problem: Problem, found: Allocation) -> float:
    changed = found.bound - problem.fixed
    return (found.objective - found.bound) / changed if changed > 0 else 0.0


def seconds_of(study: Study, users: int, drops: int) -> dict:
    """How long the allocation takes for many users, each with its share as in the study: the
    slowest of all drops, and every drop's seconds."""
    found = {}
    for link in LINKS:
        seconds = []
        for drop in range(drops):
            problem = study.drop(drop, link, users, **scaled(study, users))
            began = time.perf_counter()
            allocate(problem)
            seconds.append(time.perf_counter() - began)
        found[link] = seconds
    return {"users": users, "slowest": max(map(max, found.values())), "each": found}


def against_baselines(study: Study, drops: int) -> dict:
    """What users spend by every method over the same drops, and the joint allocation's changeable
    objective over each baseline's."""
    found = {}
    for link in LINKS:
        problems = [study.drop(drop, link) for drop in range(drops)]
        rows = {
            name: [spent(study, p, solve(p)) for p in problems]
            for name, solve in study.methods.items()
        }
        changed = {k: [row["changeable"] for row in of] for k, of in rows.items()}
        ours, *others = rows
        ratios = {name: paired_ratio(changed[ours], changed[name]) for name in others}
        for row in ratios.values():
            row["median_gain"] = 1 - row["median_ratio"]
        found[link] = {"ratios": ratios, "spent": {k: summary(of) for k, of in rows.items()}}
    return found


def variables(study: Study, drops: int) -> dict:
    """What each of bandwidth, power and message brings, alone, in pairs and together: the
    changeable objective over that without any choice, with power of one's own and shared."""
    found: dict = {}
    for link in LINKS:
        option = study.reference(study.link(link))
        for regime, power in (("own", np.inf), ("shared", shared_power(study))):
            problems = [study.drop(d, link, power=power) for d in range(drops)]
            solves = ablations(option)
            if regime == "shared":
                solves["water-filling and length"] = water_filling
            else:  # power of one's own is all used, so that it is no choice
                solves = {k: s for k, s in solves.items() if "power" not in k}
            changed = {k: [s(p).objective - p.fixed for p in problems] for k, s in solves.items()}
            nothing = changed.pop("")
            rows = {k: paired_ratio(of, nothing) for k, of in changed.items()}
            found.setdefault(link, {})[regime] = rows
    return found


def shared_power(study: Study) -> float:
    """W of all users together, where power is shared: a quarter of what handsets have."""
    return float(from_dbm(study.config.user_power_dbm)) * study.config.users / 4


def over_budgets(study: Study, drops: int, names: Sequence[str]) -> dict:
    """Changeable objective, latency and loss of some methods against bandwidth and against the
    power of a handset, and the first method's changeable objective over the last one's in the same
    drops."""
    c = study.config
    budgets = {
        "bandwidth": c.bandwidth * 4.0 ** np.arange(-2, 2),
        "user_power": float(from_dbm(c.user_power_dbm)) * 10.0 ** np.arange(-3, 1),
    }
    found: dict = {}
    for link in LINKS:
        for budget, values in budgets.items():
            told: dict = {"values": values.tolist(), "ratio": [], **{name: [] for name in names}}
            for value in values:
                problems = [study.drop(d, link, **{budget: float(value)}) for d in range(drops)]
                rows = {n: [spent(study, p, study.methods[n](p)) for p in problems] for n in names}
                for name in names:
                    told[name].append({k: quantiles([row[k] for row in rows[name]]) for k in
                                       ("changeable", "latency_s", "loss")})  # fmt: skip
                told["ratio"].append(against(rows[names[0]], rows[names[-1]]))
            found.setdefault(link, {})[budget] = told
    return found


def against(ours: list[dict], theirs: list[dict]) -> dict:
    """Our changeable objective over theirs in the same drops."""
    return paired_ratio(*([row["changeable"] for row in rows] for rows in (ours, theirs)))


def over_users(study: Study, drops: int, names: Sequence[str]) -> dict:
    """Latency, loss and outage of some methods against the users that share the budgets, and the
    first method's changeable objective over the last one's in the same drops."""
    found: dict = {"users": study.config.user_counts}
    for link in LINKS:
        told: dict = {"spent": {name: [] for name in names}, "ratio": []}
        for users in study.config.user_counts:
            problems = [study.drop(d, link, users) for d in range(drops)]
            rows = {n: [spent(study, p, study.methods[n](p)) for p in problems] for n in names}
            for name in names:
                told["spent"][name].append(summary(rows[name]))
            told["ratio"].append(against(rows[names[0]], rows[names[-1]]))
        found[link] = told
    return found


def over_fades(study: Study, drops: int, coherences: Sequence[float]) -> dict:
    """The joint allocation where fades are not known in advance, by how long one stays: first one
    that is known, then outage where an uplink meets one fade, and nearly ergodic where it meets
    many. The `ratio` is of the changeable objective over the first in the same drops, here and
    below."""
    found: dict = {"coherence_s": list(coherences)}
    for link in LINKS:
        rows = []
        for coherence in coherences:
            of = study.link(link, coherence=coherence)
            problems = [study.drop(d, of) for d in range(drops)]
            rows.append([spent(study, p, allocate(p)) for p in problems])
        found[link] = beside_first(rows)
    return found


def beside_first(rows: list[list[dict]]) -> list[dict]:
    """Summaries, each with its ratio to the first in the same drops."""
    return [{**summary(each), "ratio": against(each, rows[0])} for each in rows]


def over_knowledge(study: Study, drops: int, errors_db: Sequence[float]) -> dict:
    """The joint allocation made with gains that are known but for an error, as it turns out with
    the true ones; the base station counts on as many dB less as the error's deviation. And what
    pilots cost, where fades are learnt from so many of them."""
    found: dict = {"error_db": list(errors_db), "pilots": [0, 1, 4, 16, 64]}
    for link in LINKS:
        rows = []
        for error in errors_db:
            each = []
            for d in range(drops):
                true = study.drop(d, link)
                result = study.guessed(allocate, error, true)
                row = spent(study, true, result)
                silent = true.link.excess[true.kind, 0]
                lost = result.loss >= (silent if silent.ndim == 1 else silent[:, 0]) - 1e-12
                row["outage"] = float(lost.mean())
                each.append(row)
            rows.append(each)
        learnt = []
        for pilots in found["pilots"]:
            problems = [study.drop(d, study.link(link, pilots=pilots)) for d in range(drops)]
            learnt.append([spent(study, p, allocate(p)) for p in problems])
        found[link] = {"error": beside_first(rows), "pilots": beside_first(learnt)}
    return found


def over_weights(study: Study, drops: int, names: Sequence[str]) -> dict:
    """The front: latency and expected loss by the weight of a second against a nat."""
    weights = study.config.weights
    found: dict = {"weights": weights}
    for link in LINKS:
        found[link] = {
            name: [
                summary([
                    spent(study, p, study.methods[name](p))
                    for p in (study.drop(d, link, weight=w) for d in range(drops))
                ])
                for w in weights
            ]
            for name in names
        }  # fmt: skip
    return found
