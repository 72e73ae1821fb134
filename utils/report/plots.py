"""The figures of a run, readable at the size a README shows them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from utils.files import whole

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#999999"
# Their yellow, which is hard to see on white, is left out.
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#D55E00", "#56B4E9", "#000000")
MARKERS = "os^vDP"
MODALITY_STYLE = {"visual": (BLUE, "o"), "audio": (ORANGE, "^"), "text": (GREEN, "s")}


def draw_all(figures: dict[str, Callable[[str], object]]) -> list[str]:
    """Draw each figure by calling it with its path; the paths of those that could be drawn.

    A figure that cannot be drawn is named in a line and skipped: it is not worth a run's results.
    This project's settings hold, whatever a matplotlibrc says, such as LaTeX for every text.
    """
    drawn = []
    for path, draw in figures.items():
        try:
            with plt.style.context("default", after_reset=True):
                draw(path)
            drawn.append(path)
        except Exception as error:  # of any library, or a full disk
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"{path}: not drawn ({reason[:300]})", flush=True)
        finally:
            plt.close("all")
    return drawn


def save(figure: Figure, path: str | Path) -> str:
    """Write the figure as PNG, and as PDF (vector) beside it; returns the PNG's path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date, equal figures are equal files.
    for suffix, options in ((".png", {"dpi": 130}), (".pdf", {"metadata": {"CreationDate": None}})):
        with whole(path.with_suffix(suffix)) as partial:
            figure.savefig(partial, format=suffix[1:], bbox_inches="tight", **options)
    plt.close(figure)
    return str(path)


def styles(labels: Iterable[str], **same) -> list[dict]:
    """How to plot a line for each label: colours and markers of their own, and what is `same`."""
    looks = zip(labels, cycle(COLOURS), cycle(MARKERS), strict=False)
    return [{"label": label, "color": c, "marker": m, **same} for label, c, m in looks]


def differences(
    axis: plt.Axes, rows: Sequence[tuple[str, dict]], scale: float = 1.0, pooled: int = 1
) -> None:
    """Differences of two sides, each a dot with the bar of its 95 % interval (`mean` and `ci95`),
    from the top down, and a line at 0; the first `pooled` ones are those that decide."""
    for place, (_, found) in enumerate(rows):
        colour, size = (BLUE, 7) if place < pooled else (GREY, 4)
        width = scale * (found["ci95"] or 0)
        axis.errorbar(
            scale * found["mean"], place, xerr=width, fmt="o", ms=size, color=colour, capsize=3
        )
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)


def dress(axis: plt.Axes, legend: float | None = None, grid: str = "both", **texts) -> None:
    """Labels, scales and limits of an axis, a grid along x, y or both, a legend of a font size."""
    axis.set(**texts)
    axis.grid(alpha=0.3, axis=grid, which="both")
    if legend:
        axis.legend(fontsize=legend)


def doubling(axis: plt.Axes, ticks: Sequence[int]) -> None:
    """A logarithmic x axis of numbers that double, with these ticks."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(n) for n in ticks])


def loss_curve(
    rows: list[dict],
    validation: list[tuple[int, float]],
    keys: list[str],
    path: str | Path,
    title: str,
) -> str:
    """Training losses by step, lightly smoothed, and the validation loss where it was taken."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    steps = [row["step"] for row in rows]
    width = max(1, len(rows) // 50)
    for key, colour in zip(keys, COLOURS, strict=False):
        smooth = np.convolve([row[key] for row in rows], np.ones(width) / width, "valid")
        axis.plot(steps[width - 1 :], smooth, color=colour, label=key.replace("_", " "))
    if validation:
        axis.plot(*zip(*validation, strict=True), "k.--", label="validation")
    dress(axis, 10, xlabel="step", ylabel="loss (nats)", title=title)
    return save(figure, path)


def accuracy_by_type(
    model: dict[str, float], baselines: dict[str, dict[str, float]], path: str | Path, title: str
) -> str:
    """Accuracy of each question type beside its baselines, in percent."""
    figure, axis = plt.subplots(figsize=(9, 3.8))
    bars = {"model": model, **baselines}
    x, width = np.arange(len(model)), 0.8 / len(bars)
    for i, (name, colour) in enumerate(zip(bars, (BLUE, GREY, ORANGE), strict=False)):
        heights = [100 * bars[name].get(t, 0) for t in model]
        place = x + (i - (len(bars) - 1) / 2) * width
        axis.bar(place, heights, width, color=colour, label=name)
    axis.set_xticks(x, [t.replace(" ", "\n") for t in model], fontsize=8)
    dress(axis, grid="y", ylabel="accuracy (%)", ylim=(0, 100), title=title)
    axis.legend(ncols=3, fontsize=8)
    return save(figure, path)


def accuracy_by_snr(
    curves: dict[str, dict[str, float]], trained_at: float, path: str | Path
) -> str:
    """Accuracy against test SNR for each named model."""
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    for curve, style in zip(curves.values(), styles(curves), strict=True):
        axis.plot([float(s) for s in curve], [100 * a for a in curve.values()], **style)
    axis.axvline(trained_at, color=GREY, ls=":", label="training SNR")
    dress(axis, 10, xlabel="test SNR (dB)", ylabel="accuracy (%)", ylim=(0, 100))
    return save(figure, path)


def examples(clips: list[tuple[np.ndarray, np.ndarray, list[str]]], path: str | Path) -> str:
    """Test clips: frames over time, the waveform, and lines of question, answer, prediction.

    Each clip is ((frames, height, width, 3) uint8, (samples,) float at 16 kHz, lines). Lines are
    drawn as they are: a dollar sign in a question begins no mathematics.
    """
    figure, axes = plt.subplots(
        len(clips), 3, figsize=(11, 1.9 * len(clips)), width_ratios=(2.4, 1.3, 3.2), squeeze=False
    )
    for (frames, wave, lines), row in zip(clips, axes, strict=True):
        picked = frames[np.linspace(0, len(frames) - 1, 3).round().astype(int)]
        edged = np.pad(picked, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=255)
        row[0].imshow(np.concatenate(list(edged), axis=1))
        row[1].plot(np.arange(len(wave)) / 16_000, wave, color=BLUE, lw=0.3)
        row[1].set(yticks=[], xlabel="time (s)")
        row[1].xaxis.label.set_size(7)
        row[1].tick_params(labelsize=7)
        style = {"va": "center", "fontsize": 8.5, "family": "monospace", "parse_math": False}
        row[2].text(0, 0.5, "\n".join(lines), **style)
        row[0].axis("off")
        row[2].axis("off")
    figure.tight_layout()
    return save(figure, path)
