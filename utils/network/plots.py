"""The figures of task_network.py. Over drops they show medians, and differences as ratios of the
same drops, with their 95 % intervals."""

from collections.abc import Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator

from modules.network.loss_surface import LossSurface
from modules.system import MEDIA
from utils.report.plots import BLUE, COLOURS, GREY, doubling, draw_all, dress, save, styles

LEVEL = {"analog": "instantaneous SNR of the user (dB)", "digital": "bits an entry"}
PARTS = {"encode_s": "encode", "uplink_s": "uplink", "foundation_s": "foundation model"}


def draw(found: dict, stem: str) -> list[str]:
    """Every figure of the metrics that task_network.py writes; their paths."""
    surfaces = {link: (found["loss_points"][link], of) for link, of in found["surfaces"].items()}
    figures = {
        **{f"surface-{k}": partial(surface, *of, k) for k, of in surfaces.items()},
        "agreement": partial(agreement, found["measured"]["agreement"]),
        "accuracy": partial(by_deadline, found["measured"]["by_deadline"]),
        "methods": partial(methods, found["vs_baselines"]),
        "variables": partial(variables, found["variables"]),
        "budgets": partial(budgets, found["over_budgets"]),
        "front": partial(front, found["over_weights"]),
        "users": partial(users, found["over_users"]),
        "fades": partial(fades, found["over_fades"], found["over_knowledge"]),
        "messages": partial(messages, found["measured"]["over_messages"]),
    }
    return draw_all({f"{stem}-{name}.png": figure for name, figure in figures.items()})


def plain_numbers(axis: Axis) -> None:
    """A logarithmic axis of less than two decades, with numbers as one says them."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter("{x:g}")


def read_surface(told: dict) -> LossSurface:
    """The surface as the metrics hold it."""
    arrays = {k: np.array(told[k]) for k in ("lengths", "levels")}
    excess = {k: np.array(of) for k, of in told["excess"].items()}
    return LossSurface(**arrays, floor=told["floor"], excess=excess, r2=told["r2"])


def surface(points: list[dict], told: dict, link: str, path: str) -> str:
    """Measured losses of each modality while the other is at its best, the fitted surface, and the
    residuals of all points."""
    of, best = read_surface(told), None
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    best = [of.lengths[-1], of.levels[-1]]
    shown = of.levels[1:]
    for axis, kind, other in zip(axes, MEDIA, reversed(MEDIA), strict=False):
        for i, length in enumerate(of.lengths):
            colour = plt.cm.viridis(0.9 * i / max(1, len(of.lengths) - 1))
            mine = [p for p in points if list(p[other]) == best and p[kind][0] == length]
            mine = [p for p in mine if p[kind][1] > of.levels[0]]
            axis.plot(
                [p[kind][1] for p in mine], [p["loss"] for p in mine], "o", ms=3, color=colour
            )
            fit = of.floor + of.table(kind, np.array([length]), shown)[0]
            axis.plot(shown, fit, color=colour, lw=1, label=f"{length:g}")
        nothing = of.floor + of.excess[kind][0, 0]
        axis.axhline(nothing, color=GREY, ls=":", lw=1, label="nothing arrives")
        dress(
            axis, xlabel=LEVEL[link], title=f"{kind}, the other at its best", ylabel="loss (nats)"
        )
    axes[0].legend(fontsize=7, title="tokens", title_fontsize=7)
    predicted = np.array([of({k: p[k] for k in MEDIA}) for p in points])
    rest = np.array([p["loss"] for p in points]) - predicted
    alike = np.array([list(p["visual"]) != best and list(p["audio"]) != best for p in points])
    axes[2].plot(predicted[~alike], rest[~alike], ".", color=BLUE, label="one modality")
    axes[2].plot(predicted[alike], rest[alike], ".", color=COLOURS[1], label="both alike")
    axes[2].axhline(0, color="black", lw=0.8)
    title = f"residuals; the fit explains {100 * of.r2:.0f} % of variance"
    dress(axes[2], 8, xlabel="fitted loss (nats)", ylabel="measured - fitted", title=title)
    figure.tight_layout()
    return save(figure, path)


def agreement(found: dict, path: str) -> str:
    """Predicted against measured loss of drops that nothing was fitted to, in which somebody
    sends."""
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.8))
    for axis, (link, of) in zip(axes, found.items(), strict=True):
        for name, style in zip(
            ("joint", "equal split"), styles(("joint", "equal split")), strict=True
        ):
            mine = [p for p in of["points"] if p["method"] == name and not p["silent"]]
            x, y = ([p[k] for p in mine] for k in ("predicted", "measured"))
            axis.plot(x, y, ls="", ms=4, **style)
        ends = np.array(axis.get_xlim())
        axis.plot(ends, ends, color=GREY, lw=1)
        title = f"{link}: slope {of['slope']:.2f}, R² {of['r2']:.2f}"
        dress(axis, 8, xlabel="predicted loss (nats)", ylabel="measured loss (nats)", title=title)
    figure.tight_layout()
    return save(figure, path)


def by_deadline(found: dict, path: str) -> str:
    """Accuracy against latency of every method, and below it the paired differences."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7))
    for (above, below), (link, of) in zip(axes.T, found.items(), strict=True):
        x = 1000 * np.array(of["deadlines_s"])
        looks = dict(zip(of["accuracy"], styles(of["accuracy"], ms=4), strict=True))
        looks["joint"] |= {"lw": 5, "zorder": 1}  # seen behind those that are the same
        for name, style in looks.items():
            at = 1000 * np.array(of["median_latency_s"][name])
            above.plot(at, 100 * np.array(of["accuracy"][name]), **style)
            if name in of["by_deadline"]:
                rows = of["by_deadline"][name]
                mean, width = (
                    100 * np.array([r[k] or 0.0 for r in rows]) for k in ("mean", "ci95")
                )
                place = x * 1.02 ** (list(looks).index(name) - len(looks) / 2)  # side by side
                style = {k: style[k] for k in ("color", "marker", "label")}
                below.errorbar(place, mean, yerr=width, capsize=2, ms=4, lw=1, **style)
        below.axhline(0, color="black", lw=0.8)
        dress(above, 7, ylabel="accuracy (%)", xscale="log", title=link,
              xlabel="median latency of encoding and uplink (ms)")  # fmt: skip
        dress(below, xscale="log", xlabel="deadline (ms)",
              ylabel="joint less the other (points, paired 95 %)")  # fmt: skip
        for axis in (above, below):
            axis.set_xticks(x, [f"{ms:g}" for ms in x])
            axis.minorticks_off()
    figure.tight_layout()
    return save(figure, path)


def methods(found: dict, path: str) -> str:
    """The joint allocation's changeable objective over each method's, drop by drop; and where the
    median latency goes."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6))
    for (above, below), (link, of) in zip(axes.T, found.items(), strict=True):
        ratios(above, of["ratios"], f"{link}: joint over the other")
        names = list(of["spent"])
        left = np.zeros(len(names))
        for (part, label), colour in zip(PARTS.items(), COLOURS, strict=False):
            values = 1000 * np.array([of["spent"][n][part]["p50"] for n in names])
            below.barh(names, values, left=left, color=colour, label=label)
            left += values
        below.invert_yaxis()
        dress(below, 8, "x", xlabel="latency (ms), medians of parts over drops")
    figure.tight_layout()
    return save(figure, path)


def ratios(axis: plt.Axes, rows: dict[str, dict], title: str) -> None:
    """Median ratios of the same drops, each with its 95 % interval."""
    for place, row in enumerate(rows.values()):
        low, high = row["ci95"]
        axis.plot([low, high], [place, place], color=BLUE)
        axis.plot(row["median_ratio"], place, "o", color=BLUE)
    axis.axvline(1, color="black", lw=0.8)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    dress(axis, xlabel="median ratio of what can be changed", title=title)


def variables(found: dict, path: str) -> str:
    """What each variable brings alone, in pairs and together."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 5.5))
    for row, (link, of) in zip(axes, found.items(), strict=True):
        for axis, (regime, rows) in zip(row, of.items(), strict=True):
            ratios(axis, rows, f"{link}, {regime} power")
            axis.set_xlabel("median ratio, chosen over not chosen")
    figure.tight_layout()
    return save(figure, path)


def budgets(found: dict, path: str) -> str:
    """What the joint allocation has of the equal split's changeable objective in the same drops,
    against bandwidth and against a handset's power."""
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7))
    labels = {
        "bandwidth": ("bandwidth of all (MHz)", 1e-6),
        "user_power": ("power of one (mW)", 1e3),
    }
    for row, (link, of) in zip(axes, found.items(), strict=True):
        for axis, (name, (label, unit)) in zip(row, labels.items(), strict=True):
            paired(axis, unit * np.array(of[name]["values"]), of[name]["ratio"], color=BLUE)
            dress(axis, xscale="log", xlabel=label, title=link,
                  ylabel="joint over equal split, median ratio")  # fmt: skip
    figure.tight_layout()
    return save(figure, path)


def paired(axis: plt.Axes, x: Sequence[float], rows: list[dict], **style) -> None:
    """Median ratios of the same drops, each with its 95 % interval."""
    middle, ends = (np.array([row[k] for row in rows]) for k in ("median_ratio", "ci95"))
    axis.errorbar(x, middle, yerr=abs(ends.T - middle), fmt="o-", ms=4, capsize=3, **style)
    axis.axhline(1, color="black", lw=0.8)


def front(found: dict, path: str) -> str:
    """Median latency against median expected loss, by the weight of a second."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    for axis, link in zip(axes, [k for k in found if k != "weights"], strict=True):
        for (name, rows), style in zip(found[link].items(), styles(found[link], ms=4), strict=True):
            x, y = ([row[k]["p50"] for row in rows] for k in ("latency_s", "loss"))
            axis.plot(1000 * np.array(x), y, **style)
            if name == "joint":
                for at, level, w in zip(x, y, found["weights"], strict=True):
                    axis.annotate(f"w={w:g}", (1000 * at, level), fontsize=7)
        dress(axis, 8, xlabel="median latency (ms)", ylabel="median expected loss (nats)",
              xscale="log", title=link)  # fmt: skip
        plain_numbers(axis.xaxis)
    figure.tight_layout()
    return save(figure, path)


def users(found: dict, path: str) -> str:
    """Median latency and expected loss against the users that share the budgets, and what the joint
    allocation has of the equal split's changeable objective in the same drops."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7))
    for row, link in zip(axes, [k for k in found if k != "users"], strict=True):
        rows, x = found[link]["spent"], found["users"]
        for name, style in zip(rows, styles(rows, ms=4), strict=True):
            for axis, key, unit in ((row[0], "latency_s", 1000), (row[1], "loss", 1)):
                axis.plot(x, [unit * each[key]["p50"] for each in rows[name]], **style)
        paired(row[2], x, found[link]["ratio"], color=BLUE)
        for axis in row:
            doubling(axis, x)
        label = f"{list(rows)[0]} over {list(rows)[-1]}, median ratio"
        dress(row[0], 8, xlabel="users", ylabel="median latency (ms)", yscale="log", title=link)
        dress(row[1], xlabel="users", ylabel="median expected loss (nats)")
        dress(row[2], xlabel="users", ylabel=label, title="what can be changed, paired 95 %")
        plain_numbers(row[0].yaxis)
    figure.tight_layout()
    return save(figure, path)


def fades(found: dict, known: dict, path: str) -> str:
    """What the joint allocation pays for fades and gains that are not known, and for pilots: its
    changeable objective over that where all is known, in the same drops, and who is not heard."""
    figure, axes = plt.subplots(2, 3, figsize=(12.5, 6.5), sharex="col")
    ms = [f"{1000 * s:g}" if np.isfinite(float(s)) else "known" for s in found["coherence_s"]]
    steps = (ms, known["error_db"], known["pilots"])
    labels = ("time that a fade stays (ms)", "error of known gains (dB)",
              "pilots a fade (0: known at no cost)")  # fmt: skip
    links = [k for k in found if k != "coherence_s"]
    for link, colour in zip(links, COLOURS, strict=False):
        told = (found[link], known[link]["error"], known[link]["pilots"])
        for above, below, rows in zip(*axes, told, strict=True):
            paired(
                above, range(len(rows)), [row["ratio"] for row in rows], color=colour, label=link
            )
            unheard = [100 * row["outage_probability"] for row in rows]
            below.plot(range(len(rows)), unheard, "o-", ms=4, color=colour, label=link)
    for axis, at, label in zip(axes[1], steps, labels, strict=True):
        axis.set_xticks(range(len(at)), map(str, at))
        dress(axis, xlabel=label)
    axes[0, 0].legend(fontsize=8)
    axes[0, 0].set_ylabel("median ratio of what can be changed")
    axes[1, 0].set_ylabel("users not heard (%)")
    figure.tight_layout()
    return save(figure, path)


def messages(found: dict, path: str) -> str:
    """Accuracy against SNR of analog tokens and of the best digital messages in as many channel
    uses: at one SNR, and over Rayleigh fades that the sender knows."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    labels = {"curves": "instantaneous SNR (dB)", "over_rayleigh": "average SNR (dB), Rayleigh"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for curve, style in zip(found[key].values(), styles(found[key], ms=4), strict=True):
            if style["label"] == "digital envelope":
                style |= {"lw": 5, "zorder": 1, "alpha": 0.4, "marker": ""}
            axis.plot(found["snr_db"], 100 * np.array(curve), **style)
        axis.axhline(100 * found["nothing"], color=GREY, ls=":", label="nothing arrives")
        dress(axis, xlabel=label)
    axes[0].set_ylabel("accuracy (%)")
    axes[0].legend(fontsize=7)
    figure.suptitle(f"{found['channel_uses']:,} channel uses a clip", fontsize=10)
    figure.tight_layout()
    return save(figure, path)
