"""The figures of task_network.py."""

from functools import partial
from itertools import permutations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from modules.network.loss_curve import LossCurve
from utils.report.plots import COLOURS, MARKERS, band, doubling, draw_all, dress, save, styles

PARTS = {"encode_s": "encode", "uplink_s": "uplink", "foundation_s": "foundation model"}
NICE = np.outer(10.0 ** np.arange(6), [1, 1.5, 2, 3, 4, 5, 7]).ravel()  # ticks of latency, ms


def draw(found: dict, stem: str) -> list[str]:
    """Every figure of the metrics that task_network.py writes; their paths."""
    curve, snr_db = LossCurve(**found["loss_curves"]["measured"]), found["config"]["curve_snr_db"]
    figures = {
        "curve": partial(loss_points, found["loss_points"], curve, snr_db),
        "objective": partial(budgets, found["over_budgets"]),
        "convergence": partial(convergence, found["histories"]),
        "front": partial(front, found["over_weights"]),
        "users": partial(users, found["over_users"]),
        "latency": partial(latency_parts, found["median_spent"]),
        "digital": partial(links, found["links"]),
    }
    return draw_all({f"{stem}-{name}.png": figure for name, figure in figures.items()})


def loss_points(points: list[dict], curve: LossCurve, snr_db: float, path: str) -> str:
    """Measured validation losses against the tokens of one modality, and the fitted curve."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, (kind, other) in zip(axes, permutations(curve.fall), strict=True):
        others = sorted({p[other] for p in points})
        shown = (others[0], others[len(others) // 2], others[-1])
        for n, colour, marker in zip(shown, COLOURS, MARKERS, strict=False):
            x, y = zip(*((p[kind], p["loss"]) for p in points if p[other] == n), strict=True)
            axis.plot(x, y, marker, ms=4, color=colour, label=f"{n} {other} tokens")
            fine = np.geomspace(min(x), max(x), 50)
            axis.plot(fine, curve({kind: fine, other: np.full(50, n)}), color=colour, lw=1)
        doubling(axis, sorted({p[kind] for p in points}))
        dress(axis, 8, xlabel=f"{kind} tokens sent")
    axes[0].set_ylabel("validation loss (nats a token)")
    figure.suptitle(f"loss curve at {snr_db:g} dB, fit explains {100 * curve.r2:.0f} % of variance")
    figure.tight_layout()
    return save(figure, path)


def budgets(found: dict, path: str) -> str:
    """Objective of all methods against total bandwidth, and against the power budget."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    labels = {"bandwidth": ("total bandwidth (MHz)", 1e-6), "power": ("total power (mW)", 1e3)}
    for axis, (name, (label, unit)) in zip(axes, labels.items(), strict=True):
        curves = dict(found[name])
        x = unit * np.array(curves.pop("values"))
        for curve, style in zip(curves.values(), styles(curves, ms=4), strict=True):
            band(axis, x, curve, **style)
        dress(axis, xscale="log", yscale="log", xlabel=label, ylabel="objective")
        plain_ticks(axis.xaxis, x[::2])
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    return save(figure, path)


def convergence(histories: list, path: str) -> str:
    """The objective over its last value, iteration by iteration, of several drops."""
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    for i, history in enumerate(histories):
        over = np.array(history) / history[-1]
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(range(1, len(over) + 1), over, marker="o", ms=4, color=colour, label=f"drop {i}")
    axis.set_xticks(range(1, max(map(len, histories)) + 1))
    dress(axis, xlabel="iteration", ylabel="objective over its last value")
    axis.legend(fontsize=7, ncols=2)
    return save(figure, path)


def front(found: dict, path: str) -> str:
    """Latency against expected loss and against measured accuracy, by the weight of latency."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    methods = {k: v for k, v in found.items() if k != "weights"}
    for rows, style in zip(methods.values(), styles(methods, ms=4), strict=True):
        x = 1000 * np.array(rows["latency_s"]["mean"])
        band(axes[0], x, rows["loss"], **style)
        band(axes[1], x, rows["accuracy"], 100, **style)
    first = next(iter(methods.values()))
    for x, y, w in zip(
        first["latency_s"]["mean"], first["loss"]["mean"], found["weights"], strict=True
    ):
        beside = {"xytext": (3, 4), "textcoords": "offset points"}
        axes[0].annotate(f"w={w:g}", (1000 * x, y), fontsize=7, **beside)
    dress(axes[0], xlabel="latency (ms)", ylabel="expected loss (nats a token)", xscale="log")
    dress(axes[1], 8, xlabel="latency (ms)", ylabel="measured accuracy (%)", xscale="log")
    for axis in axes:
        low, high = axis.get_xlim()
        plain_ticks(axis.xaxis, NICE[(NICE >= low) & (NICE <= high)])
    figure.tight_layout()
    return save(figure, path)


def users(found: dict, path: str) -> str:
    """Measured accuracy, and latency, against the number of users in the same budgets."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    methods = {k: v for k, v in found.items() if k != "users"}
    for rows, style in zip(methods.values(), styles(methods, ms=4), strict=True):
        band(axes[0], found["users"], rows["accuracy"], 100, **style)
        band(axes[1], found["users"], rows["latency_s"], 1000, **style)
    for axis in axes:
        doubling(axis, found["users"])
    dress(axes[0], 8, xlabel="users", ylabel="measured accuracy (%)")
    dress(axes[1], xlabel="users", ylabel="latency (ms)", yscale="log")
    figure.tight_layout()
    return save(figure, path)


def latency_parts(found: dict[str, dict], path: str) -> str:
    """Where the latency goes: encoder, uplink and foundation model of three methods."""
    figure, axis = plt.subplots(figsize=(6.5, 3.4))
    methods = ("joint", "equal split", "fixed length")
    left = np.zeros(len(methods))
    for (part, name), colour in zip(PARTS.items(), COLOURS, strict=False):
        values = 1000 * np.array([found[method][part] for method in methods])
        axis.barh(methods, values, left=left, color=colour, label=name)
        left += values
    for i, total in enumerate(left):
        axis.text(total * 1.01, i, f"{total:.0f} ms", va="center", fontsize=8)
    axis.invert_yaxis()
    right = 1.15 * left.max()
    dress(axis, 8, "x", xlabel="latency (ms), medians over drops", xlim=(0, right))
    return save(figure, path)


def links(found: dict, path: str) -> str:
    """Accuracy against SNR of analog and digital tokens that take as many channel uses."""
    figure, axis = plt.subplots(figsize=(6.5, 4))
    curves = found["curves"]
    for curve, style in zip(curves.values(), styles(curves, ms=4), strict=True):
        band(axis, found["snr_db"], curve, 100, **style)
    title = f"{found['channel_uses']:,} channel uses a clip, {found['channel']}"
    dress(axis, xlabel="SNR (dB)", ylabel="accuracy (%)", title=title)
    axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return save(figure, path)


def plain_ticks(axis: Axis, ticks: np.ndarray) -> None:
    """Ticks of a logarithmic axis as plain numbers, and no others."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_locator(NullLocator())
