"""Accuracy and validation loss against the token length of each modality, by compression, and what
a length costs on the channel. The other modality keeps its length."""

import csv
import io
import json
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.experiments.plan import Metrics, Plan, accuracies, validation_losses
from utils.files import write_whole
from utils.plots import COLOURS, band, save
from utils.runs import Run
from utils.statistics import curve, paired
from utils.system import SPECIAL

MODALITIES = ("visual", "audio")


def tokens(plan: Plan, modality: str, length: int) -> dict[str, int]:
    """The length of each modality where one of them is swept."""
    kept = {m: getattr(plan.avqa_config, f"{m}_tokens") for m in MODALITIES}
    return {**kept, modality: length}


def run(plan: Plan, seed: int, compression: str, lengths: dict[str, int]) -> Run:
    changes = {f"{m}_tokens": n for m, n in lengths.items()} | {"compression": compression}
    if all(getattr(plan.avqa_config, k) == v for k, v in changes.items()):
        return plan.aligned(seed)
    label = f"{compression}-v{lengths['visual']}-a{lengths['audio']}"
    return plan.answer(seed, label, plan.start(seed), **changes)


def cases(plan: Plan) -> list[tuple[str, str, int]]:
    """Compression, modality, and its length."""
    c = plan.config
    return [(how, m, n) for how in c.compressions for m in MODALITIES for n in c.lengths]


def runs(plan: Plan) -> list[Run]:
    found = []
    for seed in plan.config.seeds:
        found.append(plan.start(seed))
        for how, modality, length in cases(plan):
            found.append(run(plan, seed, how, tokens(plan, modality, length)))
    return found


def channel_uses(plan: Plan, lengths: dict[str, int]) -> int:
    """Complex symbols that a clip's tokens take, special tokens included."""
    model = json.loads((Path(plan.avqa_config.foundation_model) / "config.json").read_text())
    return sum(SPECIAL[m] + n for m, n in lengths.items()) * model["hidden_size"] // 2


def results(plan: Plan, metrics: Metrics) -> dict:
    """`token_length_sweep`: `lengths`, `channel_uses` a clip of each modality, for each compression
    and modality the curves of `accuracy` and `validation_loss`, and `gain`, the first compression's
    accuracy less the others'. `token_length_rows`: every run, as in token_length.csv."""
    c = plan.config
    sweep: dict = {"lengths": c.lengths, "channel_uses": {}, "gain": {}}
    rows = []
    for m in MODALITIES:
        sweep["channel_uses"][m] = [channel_uses(plan, tokens(plan, m, n)) for n in c.lengths]
        scores = {}
        for how in c.compressions:
            found = [plan.by_seed(metrics, run, how, tokens(plan, m, n)) for n in c.lengths]
            scores[how] = [accuracies(part) for part in found]
            losses = [validation_losses(part) for part in found]
            curves = {"accuracy": curve(scores[how]), "validation_loss": curve(losses)}
            sweep.setdefault(how, {})[m] = curves
            for n, right, loss in zip(c.lengths, scores[how], losses, strict=True):
                both = tokens(plan, m, n)
                for at in zip(c.seeds, loss, right, strict=True):
                    rows.append((how, both["visual"], both["audio"], *at, channel_uses(plan, both)))
        for other in c.compressions[1:]:
            gain = paired(scores[c.compressions[0]], scores[other])
            sweep["gain"].setdefault(other, {})[m] = gain
    return {"token_length_sweep": sweep, "token_length_rows": list(dict.fromkeys(rows))}


COLUMNS = (
    "compression",
    "visual_tokens",
    "audio_tokens",
    "seed",
    "validation_loss",  # nats a token
    "accuracy",
    "channel_uses",  # complex symbols a clip
)


def draw(plan: Plan, results: dict, folder: Path) -> list[str]:
    """Accuracy above, validation loss below; left against visual, right against audio tokens. The
    runs themselves go into token_length.csv, for the multi-user study to fit."""
    sweep, c = results["token_length_sweep"], plan.config
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), sharex=True, sharey="row")
    for column, m in zip(axes.T, MODALITIES, strict=True):
        for how, colour in zip(c.compressions, cycle(COLOURS), strict=False):
            scores, losses = (sweep[how][m][k] for k in ("accuracy", "validation_loss"))
            percent = {k: [v and 100 * v for v in scores[k]] for k in ("mean", "ci95")}
            label = how.replace("_", " ")
            band(column[0], c.lengths, percent, colour, label, marker="o", ms=4)
            band(column[1], c.lengths, losses, colour, label, marker="o", ms=4)
        column[0].set_xscale("log", base=2)
        column[1].set_xticks(c.lengths, [str(n) for n in c.lengths])
        column[1].set_xlabel(f"{m} tokens after compression")
        top = column[0].secondary_xaxis("top")
        top.set_xticks(c.lengths, [f"{uses:,}" for uses in sweep["channel_uses"][m]], fontsize=8)
        top.minorticks_off()
        top.set_xlabel("channel uses a clip, both modalities", fontsize=9)
    axes[0, 0].set_ylabel("accuracy (%)")
    axes[1, 0].set_ylabel("validation loss (nats a token)")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(results["token_length_rows"])
    write_whole(folder / "token_length.csv", table.getvalue())
    return [save(figure, folder / "token_length.png"), str(folder / "token_length.csv")]
