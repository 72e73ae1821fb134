"""t-SNE of received features: points, a CSV of them, and the pictures."""

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from scipy.spatial.distance import cdist
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from utils.files import write_whole
from utils.report.plots import GREY, MODALITY_STYLE, draw_all, save

Points = dict[str, np.ndarray]  # modality to (clips, 2)
PERPLEXITY = 10.0  # about how many captions a clip is compared with
FAR = 4.0  # between what is not compared; directions are 2 apart at most


def tsne_points(features: dict[str, np.ndarray], seed: int) -> Points:
    """t-SNE of all modalities together: each (clips, hidden) becomes (clips, 2).

    Features are compared as the contrastive loss and retrieval compare them: by their direction,
    and those of picture and sound with captions alone. Among all features each would lie with its
    own kind, of which many are nearer to it than its caption, however well it finds that: the
    modality gap (Liang et al., 2022). The perplexity adapts to few clips; fewer than four points,
    or points that coincide, have no shape and all lie at 0.
    """
    stacked = np.concatenate(list(features.values())).astype(np.float32)
    stacked /= np.linalg.norm(stacked, axis=1, keepdims=True) + 1e-12
    counts = [len(f) for f in features.values()]
    if len(stacked) < 4 or np.ptp(stacked, axis=0).max() < 1e-6:
        points = np.zeros((len(stacked), 2), np.float32)
    else:
        text = np.repeat([modality == "text" for modality in features], counts)
        apart = np.sqrt(np.clip(2 - 2 * stacked @ stacked.T, 0, None))  # chords, at most 2
        apart[text[:, None] == text] = FAR
        np.fill_diagonal(apart, 0)
        perplexity = min(PERPLEXITY, (len(stacked) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, metric="precomputed", init="random", random_state=seed)
        with threadpool_limits(1):  # its threads wait for one another at hundreds of barriers
            points = tsne.fit_transform(apart)
    return dict(zip(features, np.split(points, np.cumsum(counts)[:-1]), strict=True))


def own_captions(points: Points, texts: Sequence[str]) -> dict[str, float]:
    """What a picture says of retrieval: by `visual` and `audio` the share of clips to whose point
    no other caption's lies nearer than their own; equal captions are one."""
    return {
        modality: float(np.mean([
            texts[i] == texts[nearest]
            for i, nearest in enumerate(cdist(xy, points["text"]).argmin(axis=1))
        ]))
        for modality, xy in points.items()
        if modality != "text"
    }  # fmt: skip


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
    models: dict[str, Points], ids: Sequence[str], notes: Sequence[str], title: str, path: str
) -> str:
    """A panel for each model with its name and a note; the points go into a CSV beside it, `ids`
    naming the clips."""
    write_points(Path(path).with_suffix(".csv"), models, ids)
    size = (4.8 * len(models), 5.2)
    figure, axes = plt.subplots(1, len(models), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, points), note in zip(axes[0], models.items(), notes, strict=True):
        draw(axis, points)
        axis.set_title(f"{name}\n{note}", fontsize=10)
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
