"""t-SNE of received features: points, a CSV of them, and the pictures."""

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from utils.files import write_whole
from utils.report.plots import GREY, MODALITY_STYLE, draw_all, save

Points = dict[str, np.ndarray]  # modality to (clips, 2)


def tsne_points(features: dict[str, np.ndarray], seed: int) -> Points:
    """t-SNE of all modalities together: each (clips, hidden) becomes (clips, 2).

    Features are compared by their direction, as the contrastive loss does. The perplexity adapts
    to few clips; fewer than four points, or points that coincide, have no shape and all lie at 0.
    """
    stacked = np.concatenate(list(features.values())).astype(np.float32)
    stacked /= np.linalg.norm(stacked, axis=1, keepdims=True) + 1e-12
    if len(stacked) < 4 or np.ptp(stacked, axis=0).max() < 1e-6:
        points = np.zeros((len(stacked), 2), np.float32)
    else:
        perplexity = min(30.0, (len(stacked) - 1) / 3)
        start = "pca" if stacked.shape[1] > 1 else "random"
        tsne = TSNE(perplexity=perplexity, random_state=seed, init=start)
        with threadpool_limits(1):  # its threads wait for one another at hundreds of barriers
            points = tsne.fit_transform(stacked)
    ends = np.cumsum([len(f) for f in features.values()])[:-1]
    return dict(zip(features, np.split(points, ends), strict=True))


def limits(models: Sequence[Points]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of x and y that hold the points of all models, with a margin."""
    everything = np.concatenate([xy for points in models for xy in points.values()])
    low, high = everything.min(axis=0), everything.max(axis=0)
    margin = 0.05 * (high - low) + 1e-3
    return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def draw(axis: plt.Axes, points: Points) -> None:
    """Clips' points, a thin line from each picture and sound to its caption."""
    for modality in (m for m in points if m != "text"):
        lines = np.stack([points[modality], points["text"]], axis=1)  # (clips, 2 ends, 2)
        axis.add_collection(LineCollection(lines, color=GREY, lw=0.25, alpha=0.5, zorder=0))
    for modality, xy in points.items():
        colour, marker = MODALITY_STYLE[modality]
        axis.scatter(*xy.T, s=12, c=colour, marker=marker, label=modality, linewidths=0)
    axis.set(xticks=[], yticks=[])


def side_by_side(
    columns: dict[str, dict[str, np.ndarray]],
    ids: Sequence[str],
    seed: int,
    path: str | Path,
    title: str,
) -> str:
    """A panel for each set of features by its name, each with a t-SNE of its own; the points go
    into a CSV beside it, `ids` naming the clips."""
    models = {name: tsne_points(features, seed) for name, features in columns.items()}
    write_points(Path(path).with_suffix(".csv"), models, ids)
    figure, axes = plt.subplots(1, len(columns), figsize=(4.5 * len(columns), 4.4), squeeze=False)
    for axis, (name, points) in zip(axes[0], models.items(), strict=True):
        draw(axis, points)
        axis.set_title(name)
    axes[0, 0].legend(markerscale=1.8)
    figure.suptitle(title)
    return save(figure, path)


def one_each(models: dict[str, Points], paths: Sequence[Path]) -> list[str]:
    """A figure for each model, all with the same axes; the paths of those that could be drawn."""
    ranges = limits(list(models.values()))
    figures = zip(models.items(), map(str, paths), strict=True)
    return draw_all({path: partial(alone, *model, ranges) for model, path in figures})


def alone(name: str, points: Points, ranges: tuple, path: str) -> str:
    """A model's points within the given ranges of x and y."""
    figure, axis = plt.subplots(figsize=(4.8, 4.8))
    draw(axis, points)
    axis.set(xlim=ranges[0], ylim=ranges[1], title=name)
    axis.legend(markerscale=1.8, loc="upper right", fontsize=9)
    return save(figure, path)


def write_points(path: Path, models: dict[str, Points], ids: Sequence[str]) -> str:
    """The points as CSV: model, video_id, modality, x, y."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["model", "video_id", "modality", "x", "y"])
    for name, points in models.items():
        for modality, places in points.items():
            for video_id, (x, y) in zip(ids, places, strict=True):
                writer.writerow([name, video_id, modality, f"{x:.4f}", f"{y:.4f}"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, table.getvalue())
    return str(path)
