"""Accuracy against SNR: aligned and unaligned by channel, and by how the question is sent.

Two references stand beside them. `no_channel` trains and tests without noise. `question_only` sees
Gaussian noise in place of picture and sound and reads its question without noise: what the question
alone says. Every curve is one trained model a seed, tested at each SNR.
"""

import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.experiments.compare import Metrics, gain, metrics_of
from benchmarks.experiments.page import heading, listed, percent, signed, table
from benchmarks.experiments.plan import Plan
from utils.report.plots import differences, draw_all, dress, save, styles
from utils.report.statistics import curve
from utils.runs import Run

QUESTIONS = {  # how the question is sent
    "clean": {"question_snr_db": math.inf},  # written at the base station
    "detect": {"text_receiver": "detect"},  # the most likely words
    "receiver": {"text_receiver": "mlp"},  # as the paper sends it, through a trained receiver
}
BLIND = {"modalities": ["none"], "question_snr_db": math.inf}
LABELS = {
    "no_channel": "without noise",
    "aligned": "aligned",
    "unaligned": "unaligned",
    "question_only": "question only",
}


def seeds_of(plan: Plan, channel: str) -> Plan:
    """All seeds for the channel that decides."""
    return plan if channel == plan.config.channels[0] else plan.few()


def runs(plan: Plan) -> list[Run]:
    found = plan.few().both(channel="none") + plan.both(**BLIND)
    for channel in plan.config.channels:
        own = seeds_of(plan, channel)
        found += own.both(channel=channel) + own.answering(aligned=False, channel=channel)
    for changes in QUESTIONS.values():
        found += plan.both(**changes)
    return found


def results(plan: Plan, metrics: Metrics) -> dict:
    """`snr_sweep` over the first channel and `snr_sweeps` over all: a curve for each model;
    `alignment_gain` over the first channel's SNRs in points, and `alignment_gains` of each channel,
    `pooled` over the SNRs and at each; `question_sweep`, a curve for each way of sending the
    question, and `question_claims`, what is said of them."""
    levels = plan.config.snr_db

    def by_snr(runs: list[Run]) -> dict:
        found = metrics_of(runs, metrics)
        return curve([[run["accuracy_by_snr"][f"{snr:g}"] for run in found] for snr in levels])

    references = {
        "no_channel": by_snr(plan.few().answering(channel="none")),
        "question_only": by_snr(plan.answering(**BLIND)),
    }
    sweeps, gains = {}, {}
    for channel in plan.config.channels:
        own = seeds_of(plan, channel)
        sides = [own.answering(aligned, channel=channel) for aligned in (True, False)]
        curves = dict(zip(("aligned", "unaligned"), map(by_snr, sides), strict=True))
        sweeps[channel] = {"snr_db": levels, **curves, **references}
        ours, theirs = ([side] for side in sides)
        gains[channel] = {
            "pooled": gain(ours, theirs, levels),
            "by_snr": [gain(ours, theirs, [snr]) for snr in levels],
        }
    first = plan.config.channels[0]
    pooled = gains[first]["pooled"]
    return {
        "snr_sweep": sweeps[first],
        "snr_sweeps": sweeps,
        "alignment_gain": {
            "points": 100 * pooled["mean"],
            "ci95": None if pooled["ci95"] is None else 100 * pooled["ci95"],
            "seeds": len(plan.config.seeds),
        },
        "alignment_gains": gains,
        "question_sweep": {
            "snr_db": levels,
            **{name: by_snr(plan.answering(**changes)) for name, changes in QUESTIONS.items()},
        },
        "question_claims": question_claims(plan),
    }


def question_claims(plan: Plan) -> dict:
    """With a clean question: accuracy at the SNR of training less that at the lowest (`noise`), and
    at the lowest less that of the question alone (`media`). From 0 dB on: the question by `detect`
    less the clean one."""
    levels, trained = plan.config.snr_db, plan.avqa_config.snr_db
    clean, blind = [plan.answering(**QUESTIONS["clean"])], [plan.answering(**BLIND)]
    found = {
        "noise": gain(clean, clean, [trained], [min(levels)]),
        "media": gain(clean, blind, [min(levels)]),
    }
    by_words = [plan.answering(**QUESTIONS["detect"])]
    return found | {"detect": gain(by_words, clean, [snr for snr in levels if snr >= 0])}


def draw(plan: Plan, metrics: Metrics, results: dict, folder: Path) -> list[str]:
    return draw_all({str(folder / "snr.png"): partial(draw_curves, plan, results)})


def draw_curves(plan: Plan, results: dict, path: str) -> str:
    """A row a channel: its curves, and what alignment brings, pooled and at each SNR; below, how
    the question is sent."""
    sweeps, asked = results["snr_sweeps"], results["question_sweep"]
    size = {"figsize": (9, 3.2 * len(sweeps) + 3.2), "layout": "constrained"}
    figure, axes = plt.subplots(len(sweeps) + 1, 2, squeeze=False, **size)
    for (channel, found), row in zip(sweeps.items(), axes, strict=False):
        for name, style in zip(LABELS, styles(LABELS.values(), ms=4), strict=True):
            row[0].plot(found["snr_db"], [100 * m for m in found[name]["mean"]], **style)
        gains, labels = results["alignment_gains"][channel], found["snr_db"]
        rows = [("over the SNRs", gains["pooled"])]
        rows += [(f"{s:g} dB", at) for s, at in zip(labels, gains["by_snr"], strict=True)]
        differences(row[1], rows, 100)
        dress(row[1], grid="x", title=f"{title(channel)}: aligned less unaligned")
        row[1].set_xlabel("points of accuracy")
        row[0].set_title(title(channel))
    ways = [name for name in asked if name != "snr_db"]
    left, right = axes[-1]
    for name, style in zip(ways, styles((f"question: {w}" for w in ways), ms=4), strict=True):
        left.plot(asked["snr_db"], [100 * m for m in asked[name]["mean"]], **style)
    blind = [100 * m for m in results["snr_sweep"]["question_only"]["mean"]]
    left.plot(asked["snr_db"], blind, color="black", ls=":", label="question only")
    left.set_title("How the question is sent")
    claims = results["question_claims"]
    differences(right, [(SAID[name], claims[name]) for name in claims], 100, len(claims))
    dress(right, grid="x", xlabel="points of accuracy")
    for axis in axes[:, 0]:
        axis.axvline(plan.avqa_config.snr_db, color="grey", ls=":", lw=1)
        dress(axis, 7, xlabel="test SNR (dB)", ylabel="accuracy (%)")
    return save(figure, path)


SAID = {
    "noise": "training SNR less\nlowest (clean)",
    "media": "lowest (clean) less\nquestion only",
    "detect": "detect less clean,\nfrom 0 dB on",
}


def title(channel: str) -> str:
    return channel.upper() if channel == "awgn" else channel.capitalize()


def page(results: dict) -> str:
    said = (
        heading(results, "snr", "Accuracy against SNR")
        + "\n![accuracy against SNR](snr.png)\n\nAll models are trained at one SNR and tested at "
        f"each; aligned ones start from the same stage 1 (AWGN, {results['align_snr_db']:g} dB). "
        "*Question only* has Gaussian noise in place of picture and sound, and reads its question "
        "without noise. *Without noise* is trained and tested so. The question is sent *clean* "
        "(nothing crosses the channel), by *detect* (each received token becomes the most likely "
        "word), or through a trained *receiver*, as the paper sends it. Models without noise, and "
        f"of channels after the first, are of {results['few']} seeds.\n\n"
    )
    rows = [
        [title(name), signed(found["pooled"], 100)]
        for name, found in results["alignment_gains"].items()
    ]
    return said + table(["channel", "gain by alignment, mean over the SNRs (points)"], rows)


def appendix(results: dict) -> str:
    """The numbers at each SNR."""
    said = ""
    for channel, found in results["snr_sweeps"].items():
        gains = results["alignment_gains"][channel]["by_snr"]
        rows = [
            [f"{snr:g}", *(percent(found[k], i) for k in LABELS), signed(gains[i], 100)]
            for i, snr in enumerate(found["snr_db"])
        ]
        head = ["test SNR (dB)", *LABELS.values(), "aligned less unaligned (points)"]
        said += f"\n**{title(channel)}, accuracy in percent.**\n\n" + table(head, rows)
    asked = results["question_sweep"]
    ways = [name for name in asked if name != "snr_db"]
    rows = [
        [f"{snr:g}", *(percent(asked[way], i) for way in ways)]
        for i, snr in enumerate(asked["snr_db"])
    ]
    how = f"\n**The question sent {listed(ways)}, accuracy in percent.**\n\n"
    return said + how + table(["test SNR (dB)", *ways], rows)
