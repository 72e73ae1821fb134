"""What each part brings: the system as it stands against the system without one part."""

from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.experiments.page import gain, heading, number, percent, table
from benchmarks.experiments.plan import Metrics, Plan, accuracies, summary, validation_losses
from utils.report.plots import BLUE, GREY, draw_all, dress, save
from utils.report.statistics import paired
from utils.runs import Run

FULL = "full"
# What differs from the system as it stands, in stage 1 and in stage 2.
PARTS = {
    FULL: ({}, {}),
    "no text reconstruction": ({"reconstruction_weight": 0.0}, {}),
    "no contrastive loss": ({"contrastive_weight": 0.0}, {}),
    "one-way contrastive loss": ({"one_way": True}, {}),
    "visual only": ({}, {"modalities": ["visual"]}),
    "audio only": ({}, {"modalities": ["audio"]}),
    "no LoRA": ({}, {"lora_rank": 0}),
}
RECALLS = ("audio_to_text_r1", "visual_to_text_r1")


def first_stage(plan: Plan, seed: int, part: str) -> Run:
    """Stage 1 without a part."""
    changes = PARTS[part][0]
    if not changes:
        return plan.start(seed)
    return plan.align(seed, slug(part), temperature=plan.config.temperature, **changes)


def both_stages(plan: Plan, seed: int, part: str) -> Run:
    """Stage 2 without a part, or after a stage 1 without it."""
    if part == FULL:
        return plan.aligned(seed)
    return plan.answer(seed, slug(part), first_stage(plan, seed, part), **PARTS[part][1])


def slug(part: str) -> str:
    return part.replace(" ", "-").lower()


def runs(plan: Plan) -> list[Run]:
    cases = [(seed, part) for seed in plan.config.seeds for part in PARTS]
    return [make(plan, *case) for case in cases for make in (first_stage, both_stages)]


def results(plan: Plan, metrics: Metrics) -> dict:
    """Under `ablations` for each part taken away: accuracy, validation loss, R@1 of its stage 1,
    and `gain`, its accuracy less that of the full system."""
    found, full = {}, None
    for part in PARTS:
        first = plan.by_seed(metrics, first_stage, part)
        last = plan.by_seed(metrics, both_stages, part)
        full = full or accuracies(last)
        found[part] = {
            "accuracy": summary(accuracies(last)),
            "validation_loss": summary(validation_losses(last)),
            **{k: summary([r["retrieval"][k] for r in first]) for k in RECALLS},
            "gain": paired([accuracies(last)], [full]),
        }
    return {"ablations": found}


def draw(plan: Plan, metrics: Metrics, results: dict, folder: Path) -> list[str]:
    return draw_all({str(folder / "ablations.png"): partial(draw_bars, results["ablations"])})


def draw_bars(found: dict, path: str) -> str:
    """Accuracy with its interval; dots are seeds."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    y = range(len(found))[::-1]
    for place, (part, entry) in zip(y, found.items(), strict=True):
        scores, colour = entry["accuracy"], BLUE if part == FULL else GREY
        width = 100 * (scores["ci95"] or 0)
        axis.barh(place, 100 * scores["mean"], 0.6, xerr=width, color=colour, capsize=3)
        values = [100 * v for v in scores["values"]]
        axis.plot(values, len(values) * [place], "k.", ms=5)
    axis.axvline(100 * found[FULL]["accuracy"]["mean"], color=BLUE, ls=":", lw=1)
    axis.set_yticks(y, list(found))
    dress(axis, grid="x", xlabel="accuracy (%)", xlim=(0, None))
    return save(figure, path)


def page(results: dict) -> str:
    rows = [
        [
            part,
            percent(entry["accuracy"]),
            "" if part == FULL else gain(entry["gain"]),
            number(entry["validation_loss"]),
            percent(entry["visual_to_text_r1"]),
            percent(entry["audio_to_text_r1"]),
        ]
        for part, entry in results["ablations"].items()
    ]
    head = ["system", "accuracy (%)", "less the full (points)", "validation loss"]
    return (
        heading(results, "ablations", "Ablations")
        + "\n![accuracy without each part](ablations.png)\n\n"
        + table([*head, "R@1 visual to text (%)", "R@1 audio to text (%)"], rows)
        + "\nWithout a loss stage 1 trains anew, and stage 2 starts from that. A modality that is "
        "left out is replaced by Gaussian noise, as many tokens of it.\n"
    )
