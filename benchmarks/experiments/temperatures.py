"""Alignment at several temperatures and none: what it does to fine-tuning, and to the features."""

import csv
from functools import partial
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.experiments.page import gain, heading, number, percent, table
from benchmarks.experiments.plan import Metrics, Plan, accuracies, summary
from utils.data.datasets import frames_path, read_valor
from utils.data.media import read_frames
from utils.report import tsne
from utils.report.plots import COLOURS, GREY, band, draw_all, dress, save
from utils.report.statistics import curve, paired, steps_to_reach
from utils.report.tsne_page import write_page
from utils.runs import Run
from utils.training.log import read_features

MODALITIES = ("visual", "audio", "text")
SHOWN = 150  # clips in the t-SNE
NONE = "none"  # no alignment


def temperatures(plan: Plan) -> list[float]:
    return sorted({*plan.config.temperatures, plan.config.temperature})


def fine_tuned(plan: Plan, seed: int, tau: float | None) -> Run:
    """Stage 2 after an alignment at `tau`, or after none."""
    return plan.aligned(seed, tau) if tau else plan.unaligned(seed)


def runs(plan: Plan) -> list[Run]:
    found = []
    for seed in plan.config.seeds:
        for tau in temperatures(plan):
            found += [plan.start(seed, tau), plan.aligned(seed, tau)]
        found.append(plan.unaligned(seed))
    return found


def results(plan: Plan, metrics: Metrics) -> dict:
    """Under `temperatures`, for no alignment and each temperature: accuracy and its gain over no
    alignment, the loss curves, `steps_ratio`, and the features' numbers.

    `steps_ratio` is for each seed the step at which the validation loss reaches that of the
    unaligned run's end, over all its steps; None if it does not.
    """
    unaligned, found = plan.by_seed(metrics, Plan.unaligned), {}
    for tau in (None, *temperatures(plan)):
        aligning = plan.by_seed(metrics, Plan.start, tau)
        features = [run["features"]["after" if tau else "before"] for run in aligning]
        answered = plan.by_seed(metrics, fine_tuned, tau)
        ratios = []
        for ours, theirs in zip(answered, unaligned, strict=True):
            step = steps_to_reach(ours["validation_loss"], theirs["validation_loss"][-1][1])
            ratios.append(step and step / plan.config.steps)
        trained = [fine_tuned(plan, seed, tau) for seed in plan.config.seeds]
        found[f"{tau:g}" if tau else NONE] = {
            "accuracy": summary(accuracies(answered)),
            "gain": paired([accuracies(answered)], [accuracies(unaligned)]),
            "steps_ratio": ratios,
            "validation": over_steps([run["validation_loss"] for run in answered]),
            "training": over_steps([training_loss(run) for run in trained]),
            "features": {k: summary([f[k] for f in features]) for k in features[0] if k != "n"},
        }
    ratios = found[f"{plan.config.temperature:g}"]["steps_ratio"]
    mean = None if None in ratios else sum(ratios) / len(ratios)
    return {"temperatures": found, "alignment_steps_ratio": mean}


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
    losses = {str(folder / "Temp.png"): partial(draw_losses, results["temperatures"])}
    return [*draw_all(losses), *draw_features(plan, folder)]


def draw_losses(found: dict, path: str) -> str:
    """Rounds of fine-tuning against its loss, for each temperature and no alignment."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for axis, what in zip(axes, ("training", "validation"), strict=True):
        for (name, entry), colour in zip(found.items(), cycle((GREY, *COLOURS)), strict=False):
            label = "no alignment" if name == NONE else f"aligned, τ = {name}"
            style = {"marker": "o" if what == "validation" else None, "ms": 3}
            band(axis, entry[what]["step"], entry[what], color=colour, label=label, **style)
        axis.axhline(found[NONE]["validation"]["mean"][-1], color=GREY, ls=":", lw=1)
        title = f"{what} loss of fine-tuning"
        dress(axis, xlabel="round (optimizer step)", title=title, yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    axes[0].set_ylabel("loss (nats a token)")
    axes[1].legend(fontsize=8)
    return save(figure, path)


def draw_features(plan: Plan, folder: Path) -> list[str]:
    """t-SNE of the first seed's features, the same clips, t-SNE seed and axes: a figure each named
    by the temperature in hundredths, the points as CSV, and the interactive page."""
    seed, sets = plan.config.seeds[0], {}
    for tau in temperatures(plan):
        run = plan.start(seed, tau)
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
        rows.append([f"τ = {tau}", percent(entry["accuracy"]), gain(entry["gain"]), steps(entry)])
    pictures = [picture(0 if name == NONE else float(name)) for name in found]
    keys = [key for key in found[NONE]["features"] if key != "chance_r1"]
    features = [
        [key.replace("_", " "), *(number(entry["features"][key]) for entry in found.values())]
        for key in keys
    ]
    return (
        heading(results, "temperatures", "Temperature of the alignment")
        + "\n![losses of fine-tuning](Temp.png)\n\n"
        + table(["fine-tuned from", "accuracy (%)", "gain (points)", "steps needed (%)"], rows)
        + "\n*Gain*: accuracy less that of no alignment. *Steps needed*: when the validation loss "
        "reaches that of the unaligned run's end, in percent of its steps, seed by seed.\n\n"
        + fewer_steps(results)
        + "\n"
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


def steps(entry: dict) -> str:
    return ", ".join("not reached" if r is None else f"{100 * r:.0f}" for r in entry["steps_ratio"])


def fewer_steps(results: dict) -> str:
    """Whether alignment saves as many steps as it should."""
    ratio = results["alignment_steps_ratio"]
    if ratio is None:
        return (
            "Not every seed reaches the unaligned run's last validation loss, so alignment does "
            "not save steps here.\n"
        )
    kept = "within" if ratio <= 0.7 else "NOT within"
    return (
        f"From the aligned checkpoint (τ = {results['temperature']:g}) the unaligned run's last "
        f"validation loss is reached in {100 * ratio:.0f} % of its steps, mean of "
        f"{len(results['seeds'])} seeds: {kept} the 70 % that were asked for.\n"
    )
