"""What each part brings: the system as it stands against the system with one thing changed."""

from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.experiments.compare import Metrics, accuracies, gain, metrics_of, validation_losses
from benchmarks.experiments.page import heading, number, percent, signed, table
from benchmarks.experiments.plan import Plan
from utils.report.plots import differences, draw_all, dress, save
from utils.report.statistics import by_seed
from utils.runs import Run

STANDS = "as it stands"
PUBLISHED = {
    "contrast": "special",
    "caption_weight": 0.0,
    "receiver": "mlp",
    "text_receiver": "mlp",
    "compression": "sliding_window",
}
# The published recipe comes first, as a whole and part by part; each other line changes one thing.
ABLATIONS: list[tuple[str, dict]] = [
    ("published recipe", PUBLISHED),
    ("published contrast (special tokens)", {"contrast": "special"}),
    ("no caption generation, as published", {"caption_weight": 0.0}),
    ("published receiver (MLP)", {"receiver": "mlp"}),
    ("published text receiver (MLP)", {"text_receiver": "mlp"}),
    ("residual text receiver", {"text_receiver": "residual"}),
    ("published compression (sliding window)", {"compression": "sliding_window"}),
    ("no contrastive loss", {"contrastive_weight": 0.0}),
    ("one-way contrastive loss", {"one_way": True}),
    ("visual only", {"modalities": ["visual"]}),
    ("audio only", {"modalities": ["audio"]}),
    ("no LoRA", {"lora_rank": 0}),
]
RECALLS = ("audio_to_text_r1", "visual_to_text_r1")


def ablations(plan: Plan) -> dict[str, dict]:
    """By name what is changed; a part that the system has already is no change."""
    parts = {STANDS: {}}
    for name, changes in ABLATIONS:
        if plan.changed(changes):
            parts[name] = changes
    return parts


def runs(plan: Plan) -> list[Run]:
    few = plan.few()
    return [run for changes in ablations(plan).values() for run in few.both(**changes)]


def results(plan: Plan, metrics: Metrics) -> dict:
    """Under `ablations` for the system as it stands and each change, of a few seeds: accuracy,
    validation loss, R@1 of its stage 1, and against the system as it stands `gain`, of accuracy
    over seeds and clips, and `loss_gain`, by how much the loss is lower, by seed."""
    few, found = plan.few(), {}
    stands = few.answering()
    before = validation_losses(metrics_of(stands, metrics))
    for name, changes in ablations(plan).items():
        first = metrics_of(few.starts(**changes), metrics)
        last = metrics_of(few.answering(**changes), metrics)
        losses = validation_losses(last)
        found[name] = {
            "accuracy": by_seed(accuracies(last)),
            "validation_loss": by_seed(losses),
            **{k: by_seed([r["retrieval"][k] for r in first]) for k in RECALLS},
            "gain": gain([few.answering(**changes)], [stands]),
            "loss_gain": by_seed([a - b for a, b in zip(before, losses, strict=True)]),
        }
    return {"ablations": found}


def draw(plan: Plan, metrics: Metrics, results: dict, folder: Path) -> list[str]:
    return draw_all({str(folder / "ablations.png"): partial(draw_gains, results["ablations"])})


def draw_gains(found: dict, path: str) -> str:
    """What each change does to accuracy and to validation loss."""
    changed = {name: entry for name, entry in found.items() if name != STANDS}
    size = {"figsize": (9, 1.2 + 0.3 * len(changed)), "layout": "constrained"}
    figure, axes = plt.subplots(1, 2, sharey=True, **size)
    for axis, key, scale, what in (
        (axes[0], "gain", 100, "accuracy gained (points)"),
        (axes[1], "loss_gain", 1, "validation loss lowered by (nats a token)"),
    ):
        rows = [(name, entry[key]) for name, entry in changed.items()]
        differences(axis, rows, scale, pooled=len(rows))
        dress(axis, grid="x", xlabel=what)
    return save(figure, path)


def page(results: dict) -> str:
    found = results["ablations"]
    rows = [
        [
            name,
            percent(entry["accuracy"]),
            "" if name == STANDS else signed(entry["gain"], 100),
            number(entry["validation_loss"]),
            "" if name == STANDS else signed(entry["loss_gain"], digits=3),
            *(percent(entry[key]) for key in RECALLS[::-1]),
        ]
        for name, entry in found.items()
    ]
    head = ["system", "accuracy (%)", "gained (points)", "validation loss", "lowered by (nats)"]
    used = len(found[STANDS]["accuracy"]["values"])
    return (
        heading(results, "ablations", "Ablations")
        + "\n![what each change does](ablations.png)\n\n"
        + f"Each line changes one thing; of {used} of the seeds. *Gained* and *lowered*: against "
        "the system as it stands, below 0 where the change hurts.\n\n"
        + table([*head, "R@1 visual to text (%)", "R@1 audio to text (%)"], rows)
        + "\nWhat concerns stage 1 trains it anew, and stage 2 starts from that. A modality that "
        "is left out is replaced by Gaussian noise, as many tokens of it.\n"
    )
