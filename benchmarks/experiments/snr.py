"""Accuracy against SNR: aligned and unaligned, trained at one SNR or over a range, by channel.

Three references stand beside them. `no_channel` trains and tests without noise. `question_sent`
sees Gaussian noise in place of picture and sound, and its question crosses the channel like
theirs: what the question alone says there. `question_only` is the same, but reads its question
without noise, in training and test: what the question alone says at best, whatever the channel.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.experiments.page import ANCHORS, differs, falls, gain, heading, percent, table
from benchmarks.experiments.plan import Metrics, Plan, accuracies
from utils.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, band, draw_all, dress, save
from utils.report.statistics import curve, paired
from utils.runs import Run

NOISELESS = 100.0  # dB: what arrives is what was sent, to the last digits of float32
BLIND = "question only, read without noise"
MODELS = {
    "no_channel": {"label": "without noise", "color": PURPLE, "ls": "--"},
    "aligned": {"label": "aligned", "color": BLUE, "marker": "o"},
    "unaligned": {"label": "unaligned", "color": ORANGE, "marker": "s"},
    "question_sent": {"label": "question only", "color": GREEN, "marker": "v"},
    "question_only": {"label": BLIND, "color": GREY, "ls": ":", "marker": "^"},
}
SWEPT = ("aligned", "unaligned", "question_sent")  # over channels and SNRs of training


def cases(plan: Plan) -> list[tuple[str, str]]:
    """Channels, trained at one SNR and over the range."""
    return list(product(plan.config.channels, ("one", "range")))


def case(plan: Plan, seed: int, channel: str, trained: str, model: str) -> Run:
    """A model trained over a channel at one SNR or over the range, and tested at every SNR."""
    if (channel, trained) == ("awgn", "one") and model != "question_sent":
        return plan.aligned(seed) if model == "aligned" else plan.unaligned(seed)
    changes = {"channel": channel, "test_snr_db": plan.config.snr_db}
    if trained == "range":
        changes["snr_range"] = plan.config.snr_range
    if model == "question_sent":
        changes["modalities"] = ["none"]
    start = None if model == "unaligned" else plan.start(seed)
    return plan.answer(seed, f"{model}-{channel}-{trained}".replace("_", "-"), start, **changes)


def no_channel(plan: Plan, seed: int) -> Run:
    return plan.answer(seed, "no-channel", plan.start(seed), channel="none")


def question_only(plan: Plan, seed: int) -> Run:
    blind = {"modalities": ["none"], "question_snr_db": NOISELESS}
    tested = {"test_snr_db": plan.config.snr_db}
    return plan.answer(seed, "question-only", plan.start(seed), **blind, **tested)


def runs(plan: Plan) -> list[Run]:
    found = []
    for seed in plan.config.seeds:
        found += [plan.start(seed), no_channel(plan, seed), question_only(plan, seed)]
        found += [case(plan, seed, *where, model) for where in cases(plan) for model in SWEPT]
    return found


def results(plan: Plan, metrics: Metrics) -> dict:
    """`snr_sweep` over the first channel, trained at one SNR, and `snr_sweeps` over all by
    `CHANNEL-one` or `CHANNEL-range`: a curve for each model, and `gain`, aligned less unaligned."""
    levels = plan.config.snr_db

    def by_snr(make: Callable[..., Run], *args) -> list[list[float]]:
        """Accuracies (levels, seeds)."""
        found = plan.by_seed(metrics, make, *args)
        return [[run["accuracy_by_snr"][f"{snr:g}"] for run in found] for snr in levels]

    references = {
        "no_channel": [accuracies(plan.by_seed(metrics, no_channel))] * len(levels),
        "question_only": by_snr(question_only),
    }
    sweeps = {}
    for channel, trained in cases(plan):
        sides = {model: by_snr(case, channel, trained, model) for model in SWEPT}
        low, high = plan.config.snr_range
        at = f"{plan.avqa_config.snr_db:g}" if trained == "one" else f"{low:g} to {high:g}"
        sweeps[f"{channel}-{trained}"] = {
            "channel": channel,
            "trained_at": f"{at} dB",
            "snr_db": levels,
            **{name: curve(values) for name, values in (sides | references).items()},
            "gain": paired(sides["aligned"], sides["unaligned"]),
        }
    return {"snr_sweep": next(iter(sweeps.values())), "snr_sweeps": sweeps}


def draw(plan: Plan, metrics: Metrics, results: dict, folder: Path) -> list[str]:
    return draw_all({str(folder / "snr.png"): partial(draw_curves, plan, results)})


def draw_curves(plan: Plan, results: dict, path: str) -> str:
    """A row a channel; left trained at one SNR, right over the range."""
    rows = len(plan.config.channels)
    same = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(rows, 2, figsize=(9, 0.8 + 3.2 * rows), **same)
    for axis, found in zip(axes.flat, results["snr_sweeps"].values(), strict=True):
        for name, style in MODELS.items():
            band(axis, found["snr_db"], found[name], 100, ms=4, **style)
        dress(axis, title=title(found))
    axes[0, 0].set_ylim(bottom=0)
    for axis in axes[:, 0]:
        axis.axvline(plan.avqa_config.snr_db, color=GREY, ls=":", lw=1)
        axis.set_ylabel("accuracy (%)")
    for axis in axes[:, 1]:
        axis.axvspan(*plan.config.snr_range, color=GREY, alpha=0.08)
    for axis in axes[-1]:
        axis.set_xlabel("test SNR (dB)")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="upper center", fontsize=8)
    return save(figure, path)


def title(found: dict) -> str:
    name = found["channel"]
    name = name.upper() if name == "awgn" else name.capitalize()
    return f"{name}, trained at {found['trained_at']}"


def page(results: dict) -> str:
    shown = (*SWEPT, "question_only", "no_channel")
    labels = [MODELS[name]["label"] for name in shown]
    head = ["test SNR (dB)", *labels, "gain by alignment (points)"]
    what, value, source = ANCHORS[0]
    said = (
        heading(results, "snr", "Accuracy against SNR")
        + "\n![accuracy against SNR](snr.png)\n\nAll aligned models start from the same stage 1"
        f" (AWGN, {results['align_snr_db']:g} dB). *Question only* has Gaussian noise in place of "
        "picture and sound; its question crosses the channel as theirs does, or is read without "
        "noise, in training and test, which is one model for all channels. Below the latter a "
        "model loses more by its noisy question than it gains from picture and sound. *Without "
        f"noise* is trained and tested so. Published: {what} {value} ({source}).\n"
    )
    for found in results["snr_sweeps"].values():
        said += f"\n**{title(found)}.** {helps(found)} {checks(found)}\n\n"
        rows = [
            [f"{snr:g}", *(percent(found[k], i) for k in shown), gain(found["gain"], i)]
            for i, snr in enumerate(found["snr_db"])
        ]
        said += table(head, rows)
    return said


def helps(found: dict) -> str:
    """At which SNRs alignment is better, worse, or neither is shown."""
    said = []
    for verdict, words in (
        ("better", "Alignment helps at {} dB."),
        ("worse", "It hurts at {} dB, against the paper."),
        ("undecided", "Neither is shown at {} dB."),
    ):
        verdicts = zip(found["snr_db"], found["gain"]["verdict"], strict=True)
        if levels := [f"{snr:g}" for snr, v in verdicts if v == verdict]:
            said.append(words.format(", ".join(levels)))
    return " ".join(said)


def checks(found: dict) -> str:
    """Whether the curves are as they must be: rising, flat, and below the one without noise."""
    if found["aligned"]["ci95"][0] is None:
        return "One seed says nothing more."
    snr, said = [f"{s:g}" for s in found["snr_db"]], []
    for name in ("aligned", "unaligned"):
        if pairs := falls(found[name]):
            listed = ", ".join(f"{snr[i]} to {snr[j]} dB" for i, j in pairs)
            said.append(f"The {name} curve falls from {listed}.")
    if not said:
        said.append("No curve falls between any two SNRs by more than its interval.")
    flat = found["question_only"]
    span = 100 * (max(flat["mean"]) - min(flat["mean"]))
    pairs = ", ".join(f"{snr[i]} and {snr[j]} dB" for i, j in differs(flat))
    said.append(
        f"Question only, read without noise, spans {span:.1f} points"
        + (f" and differs between {pairs}." if pairs else "; no two SNRs differ.")
    )
    above = []
    for name in ("aligned", "unaligned"):
        verdicts = paired(found[name]["values"], found["no_channel"]["values"])["verdict"]
        above += [f"{name} at {s} dB" for s, v in zip(snr, verdicts, strict=True) if v == "better"]
    said.append(
        f"Above the model without noise: {', '.join(above)}."
        if above
        else "None lies above the model without noise by more than the interval."
    )
    return " ".join(said)
