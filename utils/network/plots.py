"""The figures of task_network.py."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from modules.network.loss_curve import LossCurve
from utils.report.plots import COLOURS, band, save

MARKERS = "os^vDP"


def loss_points(points: list[dict], curve: LossCurve, snr_db: float, path: Path) -> str:
    """Measured validation losses against the tokens of one modality, and the fitted curve."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, kind in zip(axes, curve.fall, strict=True):
        others = sorted({p[k] for p in points for k in curve.fall if k != kind})
        shown = [others[0], others[len(others) // 2], others[-1]]
        for n, colour, marker in zip(shown, COLOURS, MARKERS, strict=False):
            other = next(k for k in curve.fall if k != kind)
            here = [p for p in points if p[other] == n]
            lengths = np.array(sorted({p[kind] for p in here}))
            if not here:
                continue
            axis.plot([p[kind] for p in here], [p["loss"] for p in here], marker, ms=4,
                      color=colour, label=f"{n} {other} tokens")  # fmt: skip
            fine = np.geomspace(lengths[0], lengths[-1], 50)
            axis.plot(fine, curve({kind: fine, other: np.full(50, n)}), color=colour, lw=1)
        axis.set_xscale("log", base=2)
        ticks = sorted({p[kind] for p in points})
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.set_xlabel(f"{kind} tokens sent")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("validation loss (nats a token)")
    figure.suptitle(f"loss curve at {snr_db:g} dB, fit explains {100 * curve.r2:.0f} % of variance")
    figure.tight_layout()
    return save(figure, path)


def budgets(found: dict, path: Path) -> str:
    """Objective of all methods against total bandwidth, and against the power budget."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    labels = {"bandwidth": ("total bandwidth (MHz)", 1e-6), "power": ("total power (mW)", 1e3)}
    for axis, (name, sweep) in zip(axes, found.items(), strict=True):
        label, unit = labels[name]
        methods = [k for k in sweep if k != "values"]
        for method, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
            x = unit * np.array(sweep["values"])
            band(axis, x, sweep[method], colour, method, marker=marker, ms=4)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="objective")
        plain_ticks(axis.xaxis, unit * np.array(sweep["values"])[::2])
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    return save(figure, path)


def convergence(histories: list, path: Path) -> str:
    """The objective over its last value, iteration by iteration, of several drops."""
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    for i, history in enumerate(histories):
        over = np.array(history) / history[-1]
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(range(1, len(over) + 1), over, marker="o", ms=4, color=colour, label=f"drop {i}")
    axis.set(xlabel="iteration", ylabel="objective over its last value")
    axis.set_xticks(range(1, max(map(len, histories)) + 1))
    axis.legend(fontsize=7, ncols=2)
    axis.grid(alpha=0.3)
    return save(figure, path)


def front(found: dict, path: Path) -> str:
    """Latency against expected loss and against measured accuracy, by the weight of latency."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    for method, colour, marker in zip(methods_of(found), COLOURS, MARKERS, strict=False):
        rows = found[method]
        x = 1000 * np.array(rows["latency_s"]["mean"])
        for axis, key, scale in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
            band(axis, x, rows[key], colour, method, scale, marker=marker, ms=4)
    for x, y, w in zip(
        found[methods_of(found)[0]]["latency_s"]["mean"],
        found[methods_of(found)[0]]["loss"]["mean"],
        found["weights"],
        strict=True,
    ):
        axes[0].annotate(f"w={w:g}", (1000 * x, y), fontsize=7, xytext=(3, 4),
                         textcoords="offset points")  # fmt: skip
    axes[0].set(xlabel="latency (ms)", ylabel="expected loss (nats a token)", xscale="log")
    axes[1].set(xlabel="latency (ms)", ylabel="measured accuracy (%)", xscale="log")
    for axis in axes:
        low, high = axis.get_xlim()
        steps = np.array([1, 1.5, 2, 3, 4, 5, 7])
        ticks = np.concatenate([steps * 10.0**k for k in range(6)])
        plain_ticks(axis.xaxis, ticks[(ticks >= low) & (ticks <= high)])
        axis.grid(alpha=0.3, which="both")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    return save(figure, path)


def users(found: dict, path: Path) -> str:
    """Measured accuracy, and latency, against the number of users in the same budgets."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    for method, colour, marker in zip(methods_of(found), COLOURS, MARKERS, strict=False):
        rows = found[method]
        band(axes[0], found["users"], rows["accuracy"], colour, method, 100, marker=marker, ms=4)
        band(axes[1], found["users"], rows["latency_s"], colour, method, 1000, marker=marker, ms=4)
    axes[0].set(ylabel="measured accuracy (%)")
    axes[1].set(ylabel="latency (ms)", yscale="log")
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(found["users"], [str(n) for n in found["users"]])
        axis.set_xlabel("users")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    return save(figure, path)


def latency_parts(found: dict[str, dict], path: Path) -> str:
    """Where the latency goes: encoder, uplink and foundation model of each method."""
    figure, axis = plt.subplots(figsize=(6.5, 3.4))
    left = np.zeros(len(found))
    for (part, name), colour in zip(
        (("encode_s", "encode"), ("uplink_s", "uplink"), ("foundation_s", "foundation model")),
        COLOURS,
        strict=False,
    ):
        values = 1000 * np.array([row[part] for row in found.values()])
        axis.barh(range(len(found)), values, left=left, color=colour, label=name)
        left += values
    for i, total in enumerate(left):
        axis.text(total * 1.01, i, f"{total:.0f} ms", va="center", fontsize=8)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set(xlabel="latency (ms), medians over drops", xlim=(0, 1.15 * left.max()))
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3, axis="x")
    return save(figure, path)


def links(found: dict, path: Path) -> str:
    """Accuracy against SNR of analog and digital tokens that take as many channel uses."""
    figure, axis = plt.subplots(figsize=(6.5, 4))
    curves = found["curves"]
    for (name, curve), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        band(axis, found["snr_db"], curve, colour, name, 100, marker=marker, ms=4)
    title = f"{found['channel_uses']:,} channel uses a clip, {found['channel']}"
    axis.set(xlabel="SNR (dB)", ylabel="accuracy (%)", title=title)
    axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    axis.grid(alpha=0.3)
    return save(figure, path)


def plain_ticks(axis: Axis, ticks: np.ndarray) -> None:
    """Ticks of a logarithmic axis as plain numbers, and no others."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_locator(NullLocator())


def methods_of(found: dict) -> list[str]:
    return [k for k in found if k not in ("users", "weights")]
