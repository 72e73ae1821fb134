"""Accuracy and validation loss against the token length of each modality, by compression, and what
a length costs on the channel. The other modality keeps its length.

One model serves all lengths, because in a cell lengths are allocated: each batch of its fine-tuning
draws them. So lengths are compared on the same weights. It is trained longer than the models of the
other sweeps.

`token_length.csv` has a row a model and pair of lengths, for others to fit a loss curve to:

    compression       by its name in COMPRESSIONS
    visual_tokens     patch tokens sent, besides the class token
    audio_tokens      patch tokens sent, besides class and distillation tokens
    seed              of weights, batches and noise
    snr_db            of training, validation and test
    validation_loss   nats a token of the answers, after the last step
    accuracy          of the test split, a fraction
    channel_uses      complex symbols a clip, special tokens and side information included
"""

import csv
import io
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from transformers import AutoConfig

from benchmarks.experiments.compare import Metrics, gain, metrics_of
from benchmarks.experiments.page import heading, number, percent, signed, table
from benchmarks.experiments.plan import Plan
from modules.token_compression import clip_uses, side_bits
from modules.token_transmitter import GRIDS
from utils.data.models import check_folder, load, special_tokens
from utils.files import write_whole
from utils.report.plots import differences, doubling, draw_all, dress, save, styles
from utils.report.statistics import by_seed, curve
from utils.runs import Run

MODALITIES = ("visual", "audio")
COLUMNS = (
    *("compression", "visual_tokens", "audio_tokens", "seed", "snr_db"),
    *("validation_loss", "accuracy", "channel_uses"),
)
POOLED, SELECTED = "sliding_window", "uniform"  # the paper's compression, its authors' code's


def tokens(plan: Plan, modality: str, length: int) -> dict[str, int]:
    """The length of each modality where one of them is swept."""
    kept = {m: getattr(plan.avqa_config, f"{m}_tokens") for m in MODALITIES}
    return {**kept, modality: length}


def name_of(lengths: dict[str, int]) -> str:
    """As stage 2 is asked to test them: visual by audio tokens."""
    return f"{lengths['visual']}x{lengths['audio']}"


def tested(plan: Plan, modality: str) -> list[str]:
    """The pairs of lengths in which that of one modality is swept."""
    return [name_of(tokens(plan, modality, n)) for n in plan.config.lengths]


def ways(plan: Plan) -> list[str]:
    return [*plan.config.compressions, *plan.config.baselines]


def any_length(plan: Plan, *compressions: str) -> Plan:
    """One model for all lengths; with all seeds, or a few where one of these is a baseline."""
    c = plan.config
    pairs = [pair for m in MODALITIES for pair in tested(plan, m)]
    stage = replace(
        plan.avqa_config,
        token_lengths=c.lengths,
        test_lengths=list(dict.fromkeys(pairs)),
        **{f"{m}_tokens": max(c.lengths) for m in MODALITIES},
        steps=c.length_steps,
        validate_every=c.length_steps,
        batch=c.length_batch,
        lr=c.length_lr,
    )
    own = plan.few() if {*compressions} & {*c.baselines} else plan
    return replace(own, avqa_config=stage, answers="avqa-lengths")


def answering(plan: Plan, compression: str, *beside: str) -> list[Run]:
    """Stage 2 with one compression, with the seeds that those beside it have as well."""
    return any_length(plan, compression, *beside).answering(compression=compression)


def runs(plan: Plan) -> list[Run]:
    return [run for how in ways(plan) for run in any_length(plan, how).both(compression=how)]


def channel_uses(plan: Plan, lengths: dict[str, int], compression: str) -> int:
    """Complex symbols that a clip's tokens take, special tokens and the compression's side
    information included, at the SNR of training; of a sound that fills one window."""
    stage, symbols = plan.avqa_config, 0.0
    hidden = load(AutoConfig, check_folder(stage.foundation_model)).hidden_size
    special = special_tokens(stage)
    for m, n in lengths.items():
        encoder = load(AutoConfig, check_folder(getattr(stage, f"{m}_encoder")))
        bits = side_bits(compression, len(GRIDS[encoder.model_type](encoder)), n)
        symbols += clip_uses(special[m] + n, hidden, bits, stage.snr_db)
    return round(symbols)


def results(plan: Plan, metrics: Metrics) -> dict:
    """`token_length_sweep`, for each compression and modality the `lengths`, and mean `loss` (nats
    a token) and `accuracy` with half of their intervals over seeds; `token_length_costs`, channel
    uses a clip; `token_length_falls`, by how much the loss falls, paired by seed, from the shortest
    to the longest (`whole`) and between neighbours; `compression_gains`, accuracy of each
    compression less that of the first, and of the paper's less selection, over all lengths of both
    modalities."""
    c, sweep, falls = plan.config, {}, {}
    for how, m in product(ways(plan), MODALITIES):
        found = [run["by_lengths"] for run in metrics_of(answering(plan, how), metrics)]
        loss, accuracy = (
            curve([[of[pair][key] for of in found] for pair in tested(plan, m)])
            for key in ("validation_loss", "accuracy")
        )
        sweep.setdefault(how, {})[m] = {
            "lengths": c.lengths,
            "loss": loss["mean"],
            "loss_ci95": loss["ci95"],
            "accuracy": accuracy["mean"],
            "accuracy_ci95": accuracy["ci95"],
        }
        pairs = [(loss["values"][0], loss["values"][-1]), *pairwise(loss["values"])]
        whole, *neighbours = (by_seed(np.subtract(*pair)) for pair in pairs)
        falls.setdefault(how, {})[m] = {"whole": whole, "neighbours": neighbours}
    return {
        "token_length_sweep": sweep,
        "token_length_costs": {
            m: [channel_uses(plan, tokens(plan, m, n), ways(plan)[0]) for n in c.lengths]
            for m in MODALITIES
        },
        "token_length_falls": falls,
        "compression_gains": compression_gains(plan),
    }


def compression_gains(plan: Plan) -> dict[str, dict]:
    """By `OURS less THEIRS`; the paper's compression against selection first."""
    first, *others = ways(plan)
    pairs = [(how, first) for how in others if {how, first} != {POOLED, SELECTED}]
    if {POOLED, SELECTED} <= {first, *others}:
        pairs.insert(0, (POOLED, SELECTED))
    found = {}
    every = [pair for m in MODALITIES for pair in tested(plan, m)]
    for ours, theirs in pairs:
        sides = ([answering(plan, how, ours, theirs)] for how in (ours, theirs))
        found[f"{ours} less {theirs}"] = gain(*sides, every)
    return found


def write_runs(plan: Plan, metrics: Metrics, path: Path) -> str:
    """token_length.csv, as described above."""
    rows, snr_db = set(), plan.avqa_config.snr_db
    for how, m, n in product(ways(plan), MODALITIES, plan.config.lengths):
        lengths = tokens(plan, m, n)
        uses = channel_uses(plan, lengths, how)
        for run in answering(plan, how):
            found = metrics[run.name]["by_lengths"][name_of(lengths)]
            scores = (found["validation_loss"], found["accuracy"])
            rows.add((how, *lengths.values(), run.config.seed, snr_db, *scores, uses))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *sorted(rows)])
    write_whole(path, table.getvalue())
    return str(path)


def draw(plan: Plan, metrics: Metrics, results: dict, folder: Path) -> list[str]:
    figures = {
        str(folder / "token_length.png"): partial(draw_curves, results),
        str(folder / "token_length_differences.png"): partial(draw_differences, results),
    }
    return [*draw_all(figures), write_runs(plan, metrics, folder / "token_length.csv")]


def draw_curves(results: dict, path: str) -> str:
    """Validation loss above, accuracy below; left against visual, right against audio tokens."""
    sweep = results["token_length_sweep"]
    size = {"figsize": (9, 6.6), "layout": "constrained"}
    figure, axes = plt.subplots(2, 2, sharex=True, sharey="row", **size)
    for column, m in zip(axes.T, MODALITIES, strict=True):
        labels = [how.replace("_", " ") for how in sweep]
        for how, style in zip(sweep, styles(labels, ms=4), strict=True):
            found = sweep[how][m]
            column[0].plot(found["lengths"], found["loss"], **style)
            column[1].plot(found["lengths"], [100 * a for a in found["accuracy"]], **style)
        doubling(column[1], found["lengths"])
        column[1].set_xlabel(f"{m} tokens after compression")
        top = column[0].secondary_xaxis("top")
        uses = results["token_length_costs"][m]
        top.set_xticks(found["lengths"], [f"{n:,}" for n in uses], fontsize=8)
        top.minorticks_off()
        top.set_xlabel("channel uses a clip, both modalities", fontsize=9)
    for axis in axes[:, 1]:
        dress(axis)
    dress(axes[0, 0], 8, ylabel="validation loss (nats a token)")
    dress(axes[1, 0], ylabel="accuracy (%)")
    return save(figure, path)


def draw_differences(results: dict, path: str) -> str:
    """By how much the loss falls with length, for each modality, and the compressions compared."""
    falls, gains = results["token_length_falls"], results["compression_gains"]
    rows = {m: fall_rows(results, m) for m in MODALITIES}
    height = 1.5 + 0.22 * max(len(gains), *map(len, rows.values()))
    figure, axes = plt.subplots(1, 3, figsize=(14, height), layout="constrained")
    for axis, m in zip(axes, MODALITIES, strict=False):
        differences(axis, rows[m], pooled=len(falls))
        dress(axis, grid="x", title=f"fall of the loss by {m} tokens", xlabel="nats a token")
    named = [(name.replace("_", " "), found) for name, found in gains.items()]
    differences(axes[2], named, 100)
    dress(axes[2], grid="x", title="accuracy over all lengths", xlabel="points")
    return save(figure, path)


def fall_rows(results: dict, modality: str) -> list[tuple[str, dict]]:
    """The whole fall of each compression, and then those between neighbours."""
    whole, near = [], []
    for how, found in results["token_length_falls"].items():
        lengths = results["token_length_sweep"][how][modality]["lengths"]
        name, fall = how.replace("_", " "), found[modality]
        whole.append((f"{name}: {lengths[0]} to {lengths[-1]}", fall["whole"]))
        steps = zip(pairwise(lengths), fall["neighbours"], strict=True)
        near += [(f"{name}: {a} to {b}", part) for (a, b), part in steps]
    return whole + near


def page(results: dict) -> str:
    said = heading(results, "lengths", "Token length")
    said += (
        "\n![validation loss and accuracy against token length](token_length.png)\n"
        "\n![differences between lengths and between compressions](token_length_differences.png)\n"
        "\nThe other modality keeps its length. Channel uses are complex symbols a clip, of both "
        "modalities. A model of stage 2 serves all lengths, of which each batch of its training "
        f"draws one: {results['length_steps']} steps of {results['length_batch']} questions. Its "
        "stage 1 has the same compression, at the length that is kept. Baselines are run with a "
        "few of the seeds. [token_length.csv](token_length.csv) holds every point.\n\n"
    )
    rows = [
        [name.replace("_", " "), signed(found, 100)]
        for name, found in results["compression_gains"].items()
    ]
    return said + table(["compressions", "accuracy, over all lengths (points)"], rows)


def appendix(results: dict) -> str:
    """Each length, and the falls of the loss."""
    sweep, said = results["token_length_sweep"], ""
    for m in MODALITIES:
        head = [f"{m} tokens", "channel uses"]
        for how in sweep:
            head += [f"{how.replace('_', ' ')}: loss (nats)", "accuracy (%)"]
        rows = []
        for i, n in enumerate(next(iter(sweep.values()))[m]["lengths"]):
            row = [str(n), f"{results['token_length_costs'][m][i]:,}"]
            for how in sweep:
                loss, accuracy = (
                    {"mean": sweep[how][m][k][i], "ci95": sweep[how][m][f"{k}_ci95"][i]}
                    for k in ("loss", "accuracy")
                )
                row += [number(loss), percent(accuracy)]
            rows.append(row)
        falls = [[name, signed(fall, digits=3)] for name, fall in fall_rows(results, m)]
        said += f"\n**{m.capitalize()} tokens.**\n\n" + table(head, rows)
        said += "\n" + table([f"{m} tokens", "fall of the loss, by seed (nats)"], falls)
    return said
