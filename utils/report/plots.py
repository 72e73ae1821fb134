"""The figures of a run, readable at the size a README shows them."""

from collections.abc import Sequence
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
MODALITY_STYLE = {"visual": (BLUE, "o"), "audio": (ORANGE, "^"), "text": (GREEN, "s")}


def save(figure: Figure, path: Path) -> str:
    """Write the figure as PNG, and as PDF (vector) beside it; returns the PNG's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date, equal figures are equal files.
    for suffix, options in ((".png", {"dpi": 130}), (".pdf", {"metadata": {"CreationDate": None}})):
        with whole(path.with_suffix(suffix)) as partial:
            figure.savefig(partial, format=suffix[1:], bbox_inches="tight", **options)
    plt.close(figure)
    return str(path)


def band(
    axis: plt.Axes,
    x: Sequence[float],
    curve: dict,
    colour: str,
    label: str,
    scale: float = 1.0,
    **style,
) -> None:
    """A curve of `mean` with its 95 % interval, `ci95` (None where there is one seed)."""
    mean = scale * np.array(curve["mean"], float)
    width = scale * np.array([w or 0.0 for w in curve["ci95"]])
    axis.plot(x, mean, color=colour, label=label, **style)
    axis.fill_between(x, mean - width, mean + width, color=colour, alpha=0.15, linewidth=0)


def loss_curve(
    rows: list[dict], validation: list[tuple[int, float]], keys: list[str], path: Path, title: str
) -> str:
    """Training losses by step, lightly smoothed, and the validation loss where it was taken."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    steps = np.array([row["step"] for row in rows])
    width = max(1, len(rows) // 50)
    kernel = np.ones(width) / width
    for key, colour in zip(keys, (BLUE, ORANGE, GREEN, PURPLE), strict=False):
        values = np.array([row[key] for row in rows])
        smooth = np.convolve(values, kernel, "valid")
        axis.plot(steps[width - 1 :], smooth, color=colour, label=key.replace("_", " "))
    if validation:
        axis.plot(*zip(*validation, strict=True), "k.--", label="validation")
    axis.set(xlabel="step", ylabel="loss (nats)", title=title)
    axis.legend()
    axis.grid(alpha=0.3)
    return save(figure, path)


def accuracy_by_type(
    model: dict[str, float], baselines: dict[str, dict[str, float]], path: Path, title: str
) -> str:
    """Accuracy of each question type beside its baselines, in percent."""
    figure, axis = plt.subplots(figsize=(9, 3.8))
    bars = {"model": model, **baselines}
    x, width = np.arange(len(model)), 0.8 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        heights = [100 * values.get(t, 0) for t in model]
        axis.bar(x + (i - (len(bars) - 1) / 2) * width, heights, width,
                 color=(BLUE, GREY, ORANGE)[i], label=name)  # fmt: skip
    axis.set_xticks(x, [t.replace(" ", "\n") for t in model], fontsize=8)
    axis.set(ylabel="accuracy (%)", ylim=(0, 100), title=title)
    axis.legend(ncols=3, fontsize=8)
    axis.grid(alpha=0.3, axis="y")
    return save(figure, path)


def accuracy_by_snr(curves: dict[str, dict[str, float]], trained_at: float, path: Path) -> str:
    """Accuracy against test SNR for each named model."""
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    styles = zip((BLUE, ORANGE, GREEN, PURPLE), "os^v", strict=True)
    for (name, curve), (colour, marker) in zip(curves.items(), styles, strict=False):
        snr = [float(s) for s in curve]
        axis.plot(snr, [100 * a for a in curve.values()], color=colour, marker=marker, label=name)
    axis.axvline(trained_at, color=GREY, ls=":", label="training SNR")
    axis.set(xlabel="test SNR (dB)", ylabel="accuracy (%)", ylim=(0, 100))
    axis.legend()
    axis.grid(alpha=0.3)
    return save(figure, path)


def examples(clips: list[tuple[np.ndarray, np.ndarray, list[str]]], path: Path) -> str:
    """Test clips: frames over time, the waveform, and lines of question, answer, prediction.

    Each clip is ((frames, height, width, 3) uint8, (samples,) float at 16 kHz, lines).
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
        row[2].text(0, 0.5, "\n".join(lines), va="center", fontsize=8.5, family="monospace")
        row[0].axis("off")
        row[2].axis("off")
    figure.tight_layout()
    return save(figure, path)
