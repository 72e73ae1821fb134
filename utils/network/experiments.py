"""The comparisons of task_network.py: allocation methods, budgets, users, analog and digital."""

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from modules.digital.link import DigitalLink
from modules.network.allocation import allocate
from modules.network.baselines import exhaustive
from modules.network.cell import channel_uses, from_dbm
from utils.network.study import KINDS, Study, snr_db, spent
from utils.report.statistics import curve as with_interval
from utils.report.statistics import interval

COMPARED = ("joint", "equal split")  # methods whose allocations are answered with
LINKS = {  # bits of an entry, bits of a symbol, code rate
    "digital: 4 bits, 16-QAM, rate 1/2": (4, 4, 1 / 2),
    "digital: 6 bits, 16-QAM, rate 3/4": (6, 4, 3 / 4),
    "digital: 8 bits, 64-QAM, rate 3/4": (8, 6, 3 / 4),
}


def against_baselines(study: Study, drops: int) -> dict:
    """By how much of its objective each baseline is undercut, over drops, and what users spend."""
    problems = [study.drop(seed) for seed in range(drops)]
    solved = {name: [(p, solve(p)) for p in problems] for name, solve in study.methods.items()}
    objectives = {name: np.array([r.objective for _, r in of]) for name, of in solved.items()}
    costs = {name: [spent(study, *each) for each in of] for name, of in solved.items()}
    ours, *others = solved
    gains = {}
    for name in others:
        gain = 1 - objectives[ours] / objectives[name]
        gains[name] = dict(zip(("mean_gain", "ci95"), interval(gain), strict=True))
        gains[name] |= {"least_gain": float(gain.min()), "better_in": float((gain > 0).mean())}

    def over_drops(middle: Callable) -> dict:
        return {
            name: {k: float(middle([row[k] for row in rows])) for k in rows[0]}
            for name, rows in costs.items()
        }

    return {
        "vs_baselines": gains,
        "spent": over_drops(np.mean),
        "median_spent": over_drops(np.median),
        "histories": [result.history for _, result in solved[ours][:8]],
        "drops": drops,
    }


def against_exhaustive(study: Study, instances: int) -> dict:
    """How far from the optimum random small networks end: up to 4 users, 4 lengths, budgets and
    weights drawn over decades."""
    gaps = []
    picks = np.linspace(0, len(study.config.lengths) - 1, 4).round().astype(int)
    grid = np.array(study.config.lengths)[np.unique(picks)]
    for seed in range(instances):
        source = np.random.default_rng((study.config.seed, 1, seed))
        users = int(source.integers(1, 5))
        problem = study.drop(
            10_000 + seed,
            users,
            lengths=grid,
            bandwidth=users * 10 ** source.uniform(4, 6),
            power=users * 10 ** source.uniform(-3, -1),
            weight=source.uniform(0.05, 0.95),
        )
        gaps.append(allocate(problem).objective / exhaustive(problem).objective - 1)
    within = sum(gap <= 0.01 for gap in gaps)
    return {"instances": instances, "within_1_percent": int(within), "worst_gap": float(max(gaps))}


def over_budgets(study: Study, drops: int) -> dict:
    """The objective of every method against total bandwidth and against the power budget."""
    c, found = study.config, {}
    budgets = {
        "bandwidth": c.bandwidth * 2.0 ** np.arange(-6, 2),
        "power": float(from_dbm(c.power_dbm)) * 2.0 ** np.arange(-6, 2),
    }
    for name, values in budgets.items():
        drawn = [[study.drop(d, **{name: float(v)}) for d in range(drops)] for v in values]
        found[name] = {"values": values.tolist()}
        for method, solve in study.methods.items():
            rows = [[solve(problem).objective for problem in problems] for problems in drawn]
            found[name][method] = mean_and_interval(rows)
    return found


def over_users(study: Study, answer: Callable, drops: int) -> dict:
    """Measured accuracy, SNR and latency against the number of users that share the budgets."""
    counts = study.config.user_counts
    return {"users": counts, **compared(study, answer, drops, [(n, {}) for n in counts])}


def over_weights(study: Study, answer: Callable, drops: int) -> dict:
    """The front: latency, expected loss and measured accuracy by the weight of latency."""
    weights = study.config.weights
    cases = [(None, {"weight": w}) for w in weights]
    return {"weights": weights, **compared(study, answer, drops, cases)}


def compared(study: Study, answer: Callable, drops: int, cases: list[tuple]) -> dict:
    """`points` of each compared method over the same cases (users, changes)."""
    return {
        name: points(study, answer, drops, [(study.methods[name], *case) for case in cases])
        for name in COMPARED
    }


def points(study: Study, answer: Callable, drops: int, cases: list[tuple]) -> dict:
    """Each case (method, users, changes) over the same drops: latency, loss, SNR and accuracy.

    `answer(lengths, snr_db)` takes (scenes, 2) arrays of all drops' scenes and returns the accuracy
    of each test clip, spread over the scenes, (clips,). Intervals are over clips, and over drops.
    """
    shown = ("latency_s", "loss", "energy_j_per_user", "tokens_per_user")
    found: dict[str, list] = {k: [] for k in ("accuracy", "snr_db", *shown)}
    for method, users, changes in cases:
        problems = [study.drop(seed, users, **changes) for seed in range(drops)]
        solved = [(problem, method(problem)) for problem in problems]
        lengths = np.concatenate([result.lengths.reshape(-1, 2) for _, result in solved])
        snrs = [snr_db(*each).reshape(-1, 2) for each in solved]
        costs = [spent(study, *each) for each in solved]
        found["accuracy"].append(answer(lengths, np.concatenate(snrs)))
        found["snr_db"].append([float(s.mean()) for s in snrs])
        for key in shown:
            found[key].append([row[key] for row in costs])
    return {k: mean_and_interval(v) for k, v in found.items()}


def mean_and_interval(values: Sequence[Sequence[float]]) -> dict[str, list]:
    """Of each point of a curve (points, samples): `mean` and `ci95`."""
    found = with_interval(values)
    return {"mean": found["mean"], "ci95": found["ci95"]}


def over_links(
    study: Study, answer: Callable, snrs: Sequence[float], links: dict[str, Any], length: int
) -> dict:
    """Analog and digital tokens against SNR: accuracy in as many channel uses as `length` patch
    tokens of each modality take analog. A digital link sends as many as fit.

    `links` are digital links by name; `answer(lengths, snr_db, link)` as for `points`.
    """
    uses = {k: int(channel_uses(study.special[k] + length, study.hidden)) for k in KINDS}
    lengths = {"analog": [length, length]}
    for name, link in links.items():
        fit = (link.tokens_within(uses[k], study.hidden) - study.special[k] for k in KINDS)
        lengths[name] = list(fit)
    curves = {}
    for name, pair in lengths.items():
        if min(pair) >= 1:  # else not even the special tokens and one more fit
            answers = (answer(np.array([pair]), np.full((1, 2), s), links.get(name)) for s in snrs)
            curves[name] = mean_and_interval(list(answers))
    return {
        "snr_db": list(snrs),
        "channel": study.config.channel,
        "channel_uses": sum(uses.values()),
        "tokens": lengths,
        "curves": curves,
    }


def digital_links(channel: str) -> dict[str, DigitalLink]:
    """The digital links that analog tokens are compared with, by name; none without Sionna."""
    if not find_spec("sionna"):
        print("no digital links: they need Sionna, pip install sionna-no-rt")
        return {}
    return {name: DigitalLink(*link, kind=channel) for name, link in LINKS.items()}


def seconds_of(study: Study, users: int) -> dict:
    """How long the allocation alone takes for many users, each with its share as in the study."""
    c, scale = study.config, users / study.config.users
    budgets = {"bandwidth": c.bandwidth * scale, "power": float(from_dbm(c.power_dbm)) * scale}
    problem = study.drop(0, users, **budgets)
    began = time.perf_counter()
    found = allocate(problem)
    seconds = time.perf_counter() - began
    return {"seconds_1000_users": seconds, "iterations_1000_users": len(found.history)}


def print_summary(metrics: dict) -> None:
    """What a run ends with."""
    found, many = metrics["vs_exhaustive"], metrics["seconds_1000_users"]
    print(
        f"joint allocation: within 1 % of exhaustive search in {found['within_1_percent']} of "
        f"{found['instances']} small networks, worst gap {100 * found['worst_gap']:.3f} %; "
        f"1,000 users in {many:.1f} s"
    )
    print(f"{'over ' + str(metrics['drops']) + ' drops':16} objective lower by   better in")
    for name, row in metrics["vs_baselines"].items():
        gain, width = 100 * row["mean_gain"], 100 * row["ci95"]
        print(f"{name:16} {gain:6.1f} ± {width:.1f} %{100 * row['better_in']:16.0f} %")
    print(f"{'':16} latency (ms)  tokens a user  expected loss  energy (mJ a user)")
    for name, row in metrics["spent"].items():
        print(
            f"{name:16}{1000 * row['latency_s']:13.0f}{row['tokens_per_user']:15.1f}"
            f"{row['loss']:15.3f}{1000 * row['energy_j_per_user']:20.2f}"
        )
