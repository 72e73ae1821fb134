"""The paper's claims in one table: what it says and where, what was measured and what that decides.

Each claim is one difference that is above 0 if it holds, with a 95 % interval over seeds and clips,
or over seeds for losses and steps. It holds where the interval lies above 0, does not hold where it
lies below the least effect worth having, and is undecided else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.experiments.lengths import POOLED, SELECTED
from benchmarks.experiments.page import signed, table
from benchmarks.experiments.temperatures import SHARES, share
from utils.report.plots import differences, draw_all, dress, save
from utils.report.statistics import verdict

POINTS, NATS = "points of accuracy", "nats a token"
V1 = "arXiv 2505.07841 v1, abstract"
LETTER = "arXiv 2505.07841 v2 and v3"
OURS = "this repository"


@dataclass(frozen=True)
class Claim:
    """What is said, where, and the difference that decides it.

    Args:
        experiment: whose command measures it.
        what: is measured, in words.
        find: results -> the difference, or None where the sweep did not measure it.
        worth: the least effect worth having, in the difference's own unit.
        unit: of the difference; `None` for the logarithm of a ratio of steps, which is shown as
            the steps needed in percent.
    """

    claim: str
    source: str
    experiment: str
    what: str
    find: Callable[[dict], dict | None]
    worth: float
    unit: str | None = POINTS


def below(difference: dict) -> dict:
    """The difference the other way round: a claim that something is below 0."""
    return {**difference, "mean": -difference["mean"]}


def gain_by_alignment(results: dict) -> dict:
    """On the first channel, over its SNRs."""
    return next(iter(results["alignment_gains"].values()))["pooled"]


def length_falls(modality: str, results: dict) -> dict:
    """Of the compression that stands, from the shortest to the longest."""
    return next(iter(results["token_length_falls"].values()))[modality]["whole"]


def no_worse(by: float, results: dict) -> dict | None:
    """The question by `detect` less the clean one, and by how much it may be worse."""
    found = results["question_claims"].get("detect")
    return found and {**found, "mean": found["mean"] + by}


CLAIMS = [
    Claim(
        "Cross-modal alignment raises accuracy",
        f"{LETTER}, abstract: at various SNRs; v1: 13.7 % by its whole method",
        "snr",
        "aligned minus unaligned, mean over the SNRs",
        gain_by_alignment,
        0.01,
    ),
    Claim(
        "It needs fewer steps",
        f"{V1}: quicker convergence",
        "temperatures",
        "steps to the unaligned run's last validation loss, in percent of its own",
        lambda results: below(results["alignment_log_steps"]),
        0.05,
        None,
    ),
    Claim(
        "Sliding-window pooling is better than selection",
        f"{LETTER}: pooling in place of the selection of v1's code",
        "lengths",
        "accuracy by sliding window minus that by uniform, all lengths of both modalities",
        lambda results: results["compression_gains"].get(f"{POOLED} less {SELECTED}"),
        0.01,
    ),
    *(
        Claim(
            f"More {modality} tokens lower the loss",
            f"{LETTER}: token length is traded against validation loss",
            "lengths",
            "validation loss at the shortest length minus that at the longest",
            partial(length_falls, modality),
            0.01,
            NATS,
        )
        for modality in ("visual", "audio")
    ),
    Claim(
        "Noise on picture and sound costs accuracy",
        f"{V1}: accuracy at several SNRs",
        "snr",
        "with a clean question, accuracy at the SNR of training minus that at the lowest",
        lambda results: results["question_claims"]["noise"],
        0.01,
    ),
    Claim(
        "Tokens help even at the lowest SNR",
        OURS,
        "snr",
        "with a clean question, accuracy at the lowest SNR minus that of the question alone",
        lambda results: results["question_claims"]["media"],
        0.01,
    ),
    Claim(
        "A question by detect is at most 2 points worse than a clean one",
        OURS,
        "snr",
        "accuracy by detect minus that with a clean question, from 0 dB on, plus 2 points",
        partial(no_worse, 0.02),
        0.0,
    ),
]


def measured(results: dict) -> list[tuple[Claim, dict]]:
    """The claims of the experiments that were run, each with its difference."""
    asked = [claim for claim in CLAIMS if claim.experiment in results["cost"]]
    found = [(claim, claim.find(results)) for claim in asked]
    return [(claim, difference) for claim, difference in found if difference]


def results(found: dict) -> list[dict]:
    """Under `claims` of results.json: each claim, its difference and its verdict."""
    return [
        {
            "claim": claim.claim,
            "mean": difference["mean"],
            "ci95": difference["ci95"],
            "unit": claim.unit or "log of the ratio of steps",
            "verdict": verdict(difference, claim.worth),
        }
        for claim, difference in measured(found)
    ]


def said(claim: Claim, difference: dict) -> str:
    """The difference and its interval, in its unit."""
    if claim.unit is None:
        return f"{share(below(difference))} %"
    scale, digits = (100, 1) if claim.unit == POINTS else (1, 3)
    return f"{signed(difference, scale, digits)} {claim.unit}"


def page(results: dict) -> str:
    """The table of claims, and the figure of those in points or nats."""
    rows = [
        [
            claim.claim,
            claim.source,
            f"{claim.what}: {said(claim, difference)}",
            f"**{verdict(difference, claim.worth)}**",
            f"`{results['cost'][claim.experiment]['command']}`",
        ]
        for claim, difference in measured(results)
    ]
    head = ["claim", "source", "measured", "verdict", "command"]
    return (
        "\n## Claims\n\n![the claims and their intervals](claims.png)\n\n"
        + table(head, rows)
        + "\nA claim *holds* where its interval lies above 0 (fewer steps: below 100 %), *does not "
        "hold* where it lies below the least effect worth having (1 point, 0.01 nats, 5 % of the "
        "steps), and is *undecided* else.\n"
    )


def draw(results: dict, folder: Path) -> list[str]:
    return draw_all({str(folder / "claims.png"): partial(draw_claims, results)})


def draw_claims(results: dict, path: str) -> str:
    """Every claim as a dot with its bar, a panel a unit."""
    found = measured(results)
    panels = {
        unit: [pair for pair in found if pair[0].unit == unit] for unit in (POINTS, NATS, None)
    }
    panels = {unit: pairs for unit, pairs in panels.items() if pairs}
    heights = [len(pairs) + 1 for pairs in panels.values()]
    size = {"figsize": (9, 0.5 * sum(heights) + 0.5), "height_ratios": heights}
    figure, axes = plt.subplots(len(panels), 1, squeeze=False, layout="constrained", **size)
    for axis, (unit, pairs) in zip(axes[:, 0], panels.items(), strict=True):
        rows = [(claim.claim, difference) for claim, difference in pairs]
        differences(axis, rows, 100 if unit == POINTS else 1, pooled=len(rows))
        if unit is None:  # more to the right is fewer steps
            axis.set_xticks([-math.log(s) for s in SHARES], [f"{100 * s:g} %" for s in SHARES])
        dress(axis, grid="x", xlabel=unit or "steps needed")
    return save(figure, path)
