"""Accuracy and validation loss against the token length of each modality, by compression, and what
a length costs on the channel. The other modality keeps its length."""

import csv
import io
import json
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.experiments.page import differs, gain, heading, number, percent, table
from benchmarks.experiments.plan import Metrics, Plan, accuracies, validation_losses
from utils.data.models import check_folder, special_tokens
from utils.files import write_whole
from utils.report.plots import band, doubling, draw_all, dress, save, styles
from utils.report.statistics import curve, paired
from utils.runs import Run

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
        found += [run(plan, seed, how, tokens(plan, m, n)) for how, m, n in cases(plan)]
    return found


def channel_uses(plan: Plan, lengths: dict[str, int]) -> int:
    """Complex symbols that a clip's tokens take, special tokens included."""
    folder = check_folder(plan.avqa_config.foundation_model)
    model = json.loads((folder / "config.json").read_text())
    special = special_tokens(plan.avqa_config)
    return sum(special[m] + n for m, n in lengths.items()) * model["hidden_size"] // 2


def results(plan: Plan, metrics: Metrics) -> dict:
    """`token_length_sweep`: `lengths`, `channel_uses` a clip where each modality is swept, for each
    compression and modality the curves of `accuracy` and `validation_loss`, and `gain`, the first
    compression's accuracy less another's."""
    c = plan.config
    sweep: dict = {"lengths": c.lengths, "channel_uses": {}, "gain": {}}
    for m in MODALITIES:
        sweep["channel_uses"][m] = [channel_uses(plan, tokens(plan, m, n)) for n in c.lengths]
        for how in c.compressions:
            found = [plan.by_seed(metrics, run, how, tokens(plan, m, n)) for n in c.lengths]
            accuracy = curve([accuracies(part) for part in found])
            loss = curve([validation_losses(part) for part in found])
            sweep.setdefault(how, {})[m] = {"accuracy": accuracy, "validation_loss": loss}
        scores = [sweep[how][m]["accuracy"]["values"] for how in c.compressions]
        for other, theirs in zip(c.compressions[1:], scores[1:], strict=True):
            sweep["gain"].setdefault(other, {})[m] = paired(scores[0], theirs)
    return {"token_length_sweep": sweep}


def write_runs(plan: Plan, metrics: Metrics, path: Path) -> str:
    """Every run as a row of token_length.csv, for the multi-user study to fit."""
    rows = set()
    for seed, (how, m, n) in product(plan.config.seeds, cases(plan)):
        lengths = tokens(plan, m, n)
        found = [metrics[run(plan, seed, how, lengths).name]]
        scores = (*validation_losses(found), *accuracies(found), channel_uses(plan, lengths))
        rows.add((how, lengths["visual"], lengths["audio"], seed, *scores))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *sorted(rows)])
    write_whole(path, table.getvalue())
    return str(path)


COLUMNS = (
    "compression",
    "visual_tokens",
    "audio_tokens",
    "seed",
    "validation_loss",  # nats a token
    "accuracy",
    "channel_uses",  # complex symbols a clip
)


def draw(plan: Plan, metrics: Metrics, results: dict, folder: Path) -> list[str]:
    drawn = draw_all({str(folder / "token_length.png"): partial(draw_curves, plan, results)})
    return [*drawn, write_runs(plan, metrics, folder / "token_length.csv")]


def draw_curves(plan: Plan, results: dict, path: str) -> str:
    """Accuracy above, validation loss below; left against visual, right against audio tokens."""
    sweep, c = results["token_length_sweep"], plan.config
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), sharex=True, sharey="row")
    for column, m in zip(axes.T, MODALITIES, strict=True):
        labels = [how.replace("_", " ") for how in c.compressions]
        for how, style in zip(c.compressions, styles(labels, ms=4), strict=True):
            style["marker"] = "o"
            band(column[0], c.lengths, sweep[how][m]["accuracy"], 100, **style)
            band(column[1], c.lengths, sweep[how][m]["validation_loss"], **style)
        doubling(column[1], c.lengths)
        column[1].set_xlabel(f"{m} tokens after compression")
        top = column[0].secondary_xaxis("top")
        top.set_xticks(c.lengths, [f"{uses:,}" for uses in sweep["channel_uses"][m]], fontsize=8)
        top.minorticks_off()
        top.set_xlabel("channel uses a clip, both modalities", fontsize=9)
    for axis in axes[:, 1]:
        dress(axis)
    dress(axes[0, 0], 8, ylabel="accuracy (%)")
    dress(axes[1, 0], ylabel="validation loss (nats a token)")
    figure.tight_layout()
    return save(figure, path)


def page(results: dict) -> str:
    sweep = results["token_length_sweep"]
    ways = [k for k in sweep if k not in ("lengths", "channel_uses", "gain")]
    said = heading(results, "lengths", "Token length")
    said += "\n![accuracy and validation loss against token length](token_length.png)\n"
    for m in MODALITIES:
        head = [f"{m} tokens", "channel uses"]
        for how in ways:
            head += [f"{how.replace('_', ' ')}: accuracy (%)", "validation loss"]
        head += [f"{ways[0].replace('_', ' ')} less {k.replace('_', ' ')}" for k in sweep["gain"]]
        rows = []
        for i, n in enumerate(sweep["lengths"]):
            row = [str(n), f"{sweep['channel_uses'][m][i]:,}"]
            for how in ways:
                curves = sweep[how][m]
                row += [percent(curves["accuracy"], i), number(curves["validation_loss"], i)]
            rows.append(row + [gain(gains[m], i) for gains in sweep["gain"].values()])
        said += "\n" + table(head, rows)
        for how in ways:
            said += f"\n{how.replace('_', ' ').capitalize()}, {m} tokens: "
            said += told_apart(sweep["lengths"], sweep[how][m]["validation_loss"]) + "\n"
    return said + (
        "\nThe other modality keeps its length. Channel uses are complex symbols a clip, of both "
        "modalities. [token_length.csv](token_length.csv) holds every run.\n"
    )


def told_apart(lengths: list[int], losses: dict) -> str:
    """Which lengths the seeds tell apart by their validation loss."""
    if losses["ci95"][0] is None:
        return "one seed tells no lengths apart."
    found = [f"{lengths[i]} and {lengths[j]}" for i, j in differs(losses)]
    if not found:
        return "no two lengths differ in validation loss by more than the interval."
    return f"validation losses differ between {', '.join(found)}."
