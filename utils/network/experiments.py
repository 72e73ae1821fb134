"""The comparisons of task_network.py: allocation methods, budgets, users, analog and digital."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modules.network.allocation import allocate
from modules.network.baselines import exhaustive
from modules.network.cell import channel_uses, from_dbm
from utils.network.study import KINDS, Study, snr_db, spent
from utils.report.statistics import curve as with_interval
from utils.report.statistics import interval
from utils.system import SPECIAL


def against_baselines(study: Study, drops: int) -> dict:
    """By how much of its objective each baseline is undercut, over drops, and what users spend."""
    found: dict[str, list] = {name: [] for name in study.methods}
    costs: dict[str, list] = {name: [] for name in study.methods}
    histories = []
    for seed in range(drops):
        problem = study.drop(seed)
        for name, method in study.methods.items():
            result = method(problem)
            found[name].append(result.objective)
            costs[name].append(spent(study, problem, result))
            if result.history and seed < 8:
                histories.append(result.history)
    ours, *others = found
    gains = {n: 1 - np.array(found[ours]) / np.array(found[n]) for n in others}
    means = {
        n: dict(zip(("mean_gain", "ci95"), interval(g), strict=True)) for n, g in gains.items()
    }
    for name, gain in gains.items():
        means[name] |= {"least_gain": float(gain.min()), "better_in": float((gain > 0).mean())}
    parts = {
        key: {
            name: {k: float(middle([row[k] for row in rows])) for k in rows[0]}
            for name, rows in costs.items()
        }
        for key, middle in (("spent", np.mean), ("median_spent", np.median))
    }
    return {"vs_baselines": means, **parts, "histories": histories, "drops": drops}


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
    within = int((np.array(gaps) <= 0.01).sum())
    return {"instances": instances, "within_1_percent": within, "worst_gap": float(max(gaps))}


def over_budgets(study: Study, drops: int) -> dict:
    """The objective of every method against total bandwidth and against the power budget."""
    c, found = study.config, {}
    budgets = {
        "bandwidth": c.bandwidth * 2.0 ** np.arange(-6, 2),
        "power": float(from_dbm(c.power_dbm)) * 2.0 ** np.arange(-6, 2),
    }
    for name, values in budgets.items():
        rows: dict[str, list] = {method: [] for method in study.methods}
        for value in values:
            problems = [study.drop(seed, **{name: float(value)}) for seed in range(drops)]
            for method, solve in study.methods.items():
                rows[method].append([solve(problem).objective for problem in problems])
        found[name] = {"values": values.tolist()}
        found[name] |= {method: mean_and_interval(v) for method, v in rows.items()}
    return found


def over_users(
    study: Study, answer: Callable, counts: Sequence[int], methods: Sequence[str], drops: int
) -> dict:
    """Measured accuracy, SNR and latency against the number of users that share the budgets."""
    return {
        "users": list(counts),
        **{
            name: points(study, answer, drops, [(study.methods[name], n, {}) for n in counts])
            for name in methods
        },
    }


def over_weights(
    study: Study, answer: Callable, weights: Sequence[float], methods: Sequence[str], drops: int
) -> dict:
    """The front: latency, expected loss and measured accuracy by the weight of latency."""
    return {
        "weights": list(weights),
        **{
            name: points(
                study, answer, drops, [(study.methods[name], None, {"weight": w}) for w in weights]
            )
            for name in methods
        },
    }


def points(study: Study, answer: Callable, drops: int, cases: list[tuple]) -> dict:
    """Each case (method, users, changes) over the same drops: latency, loss, SNR and accuracy.

    `answer(lengths, snr_db)` takes (scenes, 2) arrays of all drops' scenes and returns the accuracy
    of each test clip, spread over the scenes, (clips,). Intervals are over clips, and over drops.
    """
    shown = ("latency_s", "loss", "energy_j_per_user", "tokens_per_user")
    found: dict[str, list] = {k: [] for k in ("accuracy", "snr_db", *shown)}
    for method, users, changes in cases:
        lengths, snrs, rows = [], [], []
        for seed in range(drops):
            problem = study.drop(seed, users, **changes)
            result = method(problem)
            rows.append(spent(study, problem, result))
            lengths.append(result.lengths.reshape(-1, 2))
            snrs.append(snr_db(problem, result).reshape(-1, 2))
        found["accuracy"].append(answer(np.concatenate(lengths), np.concatenate(snrs)))
        for key in shown:
            found[key].append([row[key] for row in rows])
        found["snr_db"].append([float(s.mean()) for s in snrs])
    return {k: mean_and_interval(v) for k, v in found.items()}


def mean_and_interval(values: Sequence[Sequence[float]]) -> dict[str, list]:
    """Of each point of a curve (points, samples): `mean` and `ci95`."""
    found = with_interval(values)
    return {k: found[k] for k in ("mean", "ci95")}


def over_links(
    study: Study, answer: Callable, snrs: Sequence[float], links: dict[str, Any], length: int
) -> dict:
    """Analog and digital tokens against SNR: accuracy in as many channel uses as `length` patch
    tokens of each modality take analog. A digital link sends as many as fit.

    `links` are digital links by name; `answer(lengths, snr_db, link)` as for `points`.
    """
    uses = {k: int(channel_uses(SPECIAL[k] + length, study.hidden)) for k in KINDS}
    lengths = {"analog": [length, length]}
    for name, link in links.items():
        lengths[name] = [link.tokens_within(uses[k], study.hidden) - SPECIAL[k] for k in KINDS]
    curves = {}
    for name, pair in lengths.items():
        if min(pair) < 1:  # not even the special tokens and one more fit
            continue
        scene, link = np.array([pair]), links.get(name)
        curves[name] = mean_and_interval(
            [answer(scene, np.full((1, 2), float(s)), link) for s in snrs]
        )
    return {
        "snr_db": list(snrs),
        "channel": study.config.channel,
        "channel_uses": sum(uses.values()),
        "tokens": lengths,
        "curves": curves,
    }


def seconds_of(study: Study, users: int) -> dict:
    """How long the allocation alone takes for many users, each with its share as in the study."""
    c = study.config
    scale = users / c.users
    problem = study.drop(
        0, users, bandwidth=c.bandwidth * scale, power=float(from_dbm(c.power_dbm)) * scale
    )
    began = time.perf_counter()
    found = allocate(problem)
    seconds = time.perf_counter() - began
    return {"seconds_1000_users": seconds, "iterations_1000_users": len(found.history)}


def spread(questions: int, scenes: int) -> np.ndarray:
    """A scene for each question, (questions,), all equally often."""
    return np.arange(questions) % scenes


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
