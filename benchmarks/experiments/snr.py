"""Accuracy against SNR: aligned and unaligned, trained at one SNR or over a range, by channel.

Two references stand beside them. `no_channel` trains and tests without noise. `question_only` sees
noise in place of picture and sound but reads its question without any: what the question alone
says, whatever the channel.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.experiments.plan import Metrics, Plan, accuracies
from utils.plots import BLUE, GREY, ORANGE, PURPLE, band, save
from utils.runs import Run
from utils.statistics import curve, paired

NOISELESS = 100.0  # dB: what arrives is what was sent, to the last digits of float32
STYLE = {
    "no_channel": (PURPLE, "--", None),
    "aligned": (BLUE, "-", "o"),
    "unaligned": (ORANGE, "-", "s"),
    "question_only": (GREY, "-", "^"),
}


def cases(plan: Plan) -> list[tuple[str, str]]:
    """Channels, trained at one SNR and over the range."""
    return list(product(plan.config.channels, ("one", "range")))


def case(plan: Plan, seed: int, channel: str, trained: str, aligned: bool) -> Run:
    """A run, aligned or not, trained over a channel at one SNR or over the range."""
    if (channel, trained) == ("awgn", "one"):
        return plan.aligned(seed) if aligned else plan.unaligned(seed)
    changes = {"channel": channel, "test_snr_db": plan.config.snr_db}
    if trained == "range":
        changes["snr_range"] = plan.config.snr_range
    label = f"{'aligned' if aligned else 'unaligned'}-{channel}-{trained}"
    return plan.answer(seed, label, plan.start(seed) if aligned else None, **changes)


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
        for channel, trained in cases(plan):
            found += [case(plan, seed, channel, trained, aligned) for aligned in (True, False)]
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
        ours, theirs = (by_snr(case, channel, trained, aligned) for aligned in (True, False))
        sides = {"aligned": ours, "unaligned": theirs, **references}
        sweeps[f"{channel}-{trained}"] = {
            "snr_db": levels,
            **{name: curve(values) for name, values in sides.items()},
            "gain": paired(ours, theirs),
        }
    return {"snr_sweep": next(iter(sweeps.values())), "snr_sweeps": sweeps}


def draw(plan: Plan, results: dict, folder: Path) -> list[str]:
    """A row a channel; left trained at one SNR, right over the range."""
    channels = plan.config.channels
    size = (9, 0.6 + 3.2 * len(channels))
    figure, axes = plt.subplots(
        len(channels), 2, figsize=size, sharex=True, sharey=True, squeeze=False
    )
    low, high = plan.config.snr_range
    for axis, (channel, trained) in zip(axes.flat, cases(plan), strict=True):
        found = results["snr_sweeps"][f"{channel}-{trained}"]
        for name, (colour, line, marker) in STYLE.items():
            percent = {k: [v and 100 * v for v in found[name][k]] for k in ("mean", "ci95")}
            label = name.replace("_", " ")
            band(axis, found["snr_db"], percent, colour, label, ls=line, marker=marker, ms=4)
        if trained == "one":
            at = f"trained at {plan.avqa_config.snr_db:g} dB"
            axis.axvline(plan.avqa_config.snr_db, color=GREY, ls=":", lw=1)
        else:
            at = f"trained at {low:g} to {high:g} dB"
            axis.axvspan(low, high, color=GREY, alpha=0.08)
        axis.set(title=f"{channel.upper() if channel == 'awgn' else channel}, {at}")
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("test SNR (dB)")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    return [save(figure, folder / "snr.png")]
