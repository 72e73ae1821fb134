"""Alignment at several temperatures and none: what it does to fine-tuning, and to the features.

The other temperatures are run with a few of the seeds, the one that stands and no alignment with
all: they decide how many steps alignment saves.
"""

import csv
import math
from functools import partial
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.experiments.compare import Metrics, accuracies, gain, metrics_of
from benchmarks.experiments.page import heading, number, percent, signed, table
from benchmarks.experiments.plan import Plan
from utils.data.datasets import frames_path, read_valor
from utils.data.media import read_frames
from utils.report import tsne
from utils.report.plots import COLOURS, GREY, differences, draw_all, dress, save
from utils.report.statistics import by_seed, curve, steps_ratio
from utils.report.tsne_page import write_page
from utils.runs import Run
from utils.training.log import read_features

MODALITIES = ("visual", "audio", "text")
SHOWN = 150  # clips in the t-SNE
NONE = "none"  # no alignment
SHARES = (0.25, 0.5, 1, 2)  # of steps, at the ticks of an axis


def temperatures(plan: Plan) -> list[float]:
    return sorted({*plan.config.temperatures, plan.config.temperature})


def fine_tuned(plan: Plan, tau: float | None) -> list[Run]:
    """Stage 2 after an alignment at `tau`, or after none."""
    return plan.answering(temperature=tau) if tau else plan.answering(aligned=False)


def runs(plan: Plan) -> list[Run]:
    found = plan.both() + plan.answering(aligned=False)
    return found + [run for tau in temperatures(plan) for run in plan.few().both(temperature=tau)]


def results(plan: Plan, metrics: Metrics) -> dict:
    """Under `temperatures`, for no alignment and each temperature: accuracy and its gain over no
    alignment, the loss curves, `log_steps`, and the features' numbers, of a few seeds; and of all
    seeds `alignment_log_steps`, the log of the steps that the aligned run needs to the unaligned
    run's last validation loss over the unaligned run's (`steps_ratio`), and
    `alignment_steps_ratio`, its geometric mean."""
    few, found = plan.few(), {}
    unaligned = fine_tuned(few, None)
    for tau in (None, *temperatures(plan)):
        aligning = metrics_of(few.starts(temperature=tau or plan.config.temperature), metrics)
        features = [run["features"]["after" if tau else "before"] for run in aligning]
        trained = fine_tuned(few, tau)
        answered = metrics_of(trained, metrics)
        found[f"{tau:g}" if tau else NONE] = {
            "accuracy": by_seed(accuracies(answered)),
            "gain": gain([trained], [unaligned]),
            "log_steps": log_steps(trained, unaligned, metrics),
            "validation": over_steps([run["validation_loss"] for run in answered]),
            "training": over_steps([training_loss(run) for run in trained]),
            "features": {k: by_seed([f[k] for f in features]) for k in features[0] if k != "n"},
        }
    pooled = log_steps(plan.answering(), fine_tuned(plan, None), metrics)
    return {
        "temperatures": found,
        "alignment_log_steps": pooled,
        "alignment_steps_ratio": math.exp(pooled["mean"]),
    }


def log_steps(ours: list[Run], theirs: list[Run], metrics: Metrics) -> dict:
    pairs = zip(metrics_of(ours, metrics), metrics_of(theirs, metrics), strict=True)
    curves = [[run["validation_loss"] for run in pair] for pair in pairs]
    return by_seed([math.log(steps_ratio(*pair)) for pair in curves])


def over_steps(curves: list[list]) -> dict:
    """Curves of (step, loss), a seed each, as `step`, `mean` and `ci95`."""
    points = list(zip(*curves, strict=True))
    return {
        "step": [point[0][0] for point in points],
        **curve([[loss for _, loss in point] for point in points]),
    }


def training_loss(run: Run) -> list[tuple[int, float]]:
    """A run's training loss by step, each the mean of up to ten steps around it."""
    with open(Path(run.config.out) / f"{run.name}.csv") as file:
        losses = np.array([float(row["loss"]) for row in csv.DictReader(file)])
    width = min(10, len(losses))
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    return [(i + (width + 1) / 2, float(loss)) for i, loss in enumerate(smooth)]


def draw(plan: Plan, metrics: Metrics, results: dict, folder: Path) -> list[str]:
    losses = {str(folder / "Temp.png"): partial(draw_losses, results)}
    return [*draw_all(losses), *draw_features(plan, folder)]


def draw_losses(results: dict, path: str) -> str:
    """Rounds of fine-tuning against its loss, for each temperature and no alignment, and the steps
    that alignment needs."""
    found = results["temperatures"]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    axes[1].sharey(axes[0])
    for axis, what in zip(axes, ("training", "validation"), strict=False):
        for (name, entry), colour in zip(found.items(), cycle((GREY, *COLOURS)), strict=False):
            label = "no alignment" if name == NONE else f"aligned, τ = {name}"
            style = {"marker": "o" if what == "validation" else None, "ms": 3}
            axis.plot(entry[what]["step"], entry[what]["mean"], color=colour, label=label, **style)
        axis.axhline(found[NONE]["validation"]["mean"][-1], color=GREY, ls=":", lw=1)
        title = f"{what} loss of fine-tuning"
        dress(axis, xlabel="round (optimizer step)", title=title, yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    axes[0].set_ylabel("loss (nats a token)")
    axes[1].legend(fontsize=8)
    pooled = (f"τ = {results['temperature']:g},\nall seeds", results["alignment_log_steps"])
    rows = [(f"τ = {name}", entry["log_steps"]) for name, entry in found.items() if name != NONE]
    differences(axes[2], [pooled, *rows])
    axes[2].set_xticks([math.log(s) for s in SHARES], [f"{100 * s:g} %" for s in SHARES])
    dress(axes[2], grid="x", title="steps to the unaligned run's last loss", xlabel="of its steps")
    return save(figure, path)


def draw_features(plan: Plan, folder: Path) -> list[str]:
    """t-SNE of the first seed's features, the same clips, t-SNE seed and axes: a figure each named
    by the temperature in hundredths, the points as CSV, and the interactive page."""
    seed, sets = plan.config.seeds[0], {}
    for tau in temperatures(plan):
        run = plan.starts(temperature=tau)[0]
        path = Path(run.config.out) / f"{run.name}.features.safetensors"
        features, ids = read_features(path)
        sets |= {"no alignment": features["before"], f"τ = {tau:g}": features["after"]}
    ids = ids[:SHOWN]
    models = {
        name: tsne.tsne_points({m: features[m][:SHOWN].numpy() for m in MODALITIES}, seed)
        for name, features in sets.items()
    }
    paths = [folder / picture(tau) for tau in (0, *temperatures(plan))]
    drawn = tsne.one_each(models, paths)
    root = Path(plan.align_config.data)
    captions = {row.video_id: row.text for row in read_valor(root, "test")[0]}
    clips = [read_frames(frames_path(root, video_id)) for video_id in ids]
    page = write_page(
        folder / "tsne.html",
        models,
        [captions[video_id] for video_id in ids],
        [frames[len(frames) // 2] for frames in clips],
        ids,
    )
    return [*drawn, tsne.write_points(folder / "tsne.csv", models, ids), page]


def picture(tau: float) -> str:
    """The file name of a temperature's t-SNE, 0 for none."""
    return f"{round(100 * tau):03d}.png"


def page(results: dict) -> str:
    found = results["temperatures"]
    taus = [name for name in found if name != NONE]
    names = ["no alignment", *(f"τ = {tau}" for tau in taus)]
    rows = [["no alignment", percent(found[NONE]["accuracy"]), "", ""]]
    for tau in taus:
        entry = found[tau]
        needed = share(entry["log_steps"])
        rows.append([f"τ = {tau}", percent(entry["accuracy"]), signed(entry["gain"], 100), needed])
    pictures = [picture(0 if name == NONE else float(name)) for name in found]
    keys = [key for key in found[NONE]["features"] if key != "chance_r1"]
    features = [
        [key.replace("_", " "), *(number(entry["features"][key]) for entry in found.values())]
        for key in keys
    ]
    used = len(found[NONE]["accuracy"]["values"])
    return (
        heading(results, "temperatures", "Temperature of the alignment")
        + "\n![losses of fine-tuning](Temp.png)\n\n"
        + f"Of {used} of the seeds, at the SNR of training:\n\n"
        + table(["fine-tuned from", "accuracy (%)", "gain (points)", "steps needed (%)"], rows)
        + "\n*Gain*: accuracy less that of no alignment. *Steps needed*: when the validation loss "
        "first comes to that of the unaligned run's end, in percent of the step when the unaligned "
        "run's does; geometric mean over seeds, its interval taken on the logarithm.\n\n"
        + f"With τ = {results['temperature']:g} and all seeds it is "
        + f"{share(results['alignment_log_steps'])} %.\n\n"
        + "".join(f'<img src="{name}" width="24%">' for name in pictures)
        + f"\n\nt-SNE of the same held-out clips (seed {results['seeds'][0]}), same axes; "
        "[points](tsne.csv). No alignment means transceivers as they are initialised. The command "
        "also writes `tsne.html`, where hovering over a point shows its clip. Pictures deceive, so "
        "here are numbers:\n\n"
        + table(["features of held-out clips", *names], features)
        + f"\nR@1 (chance {found[NONE]['features']['chance_r1']['mean']:.4f}); *gap*: distance of "
        "the centroid from the captions'; *alignment*: mean squared distance of a clip from its "
        "caption; *uniformity*: log mean exp(−2 d²) over pairs of clips, lower is more even; "
        "*silhouette* of the modalities as clusters, 0 is mixed.\n"
    )


def share(log_ratio: dict) -> str:
    """A ratio in percent, and its 95 % interval, from its logarithm."""
    mean, width = log_ratio["mean"], log_ratio["ci95"]
    said = f"{100 * math.exp(mean):.0f}"
    if width is None:
        return said
    low, high = (100 * math.exp(mean + side * width) for side in (-1, 1))
    return f"{said} ({low:.0f} to {high:.0f})"
