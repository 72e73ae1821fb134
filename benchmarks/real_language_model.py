"""A real pretrained language model behind the receivers, on the mini world (`make real`).

    python utils/smollm2.py                                     fetches SmolLM2-135M-Instruct
    python benchmarks/real_language_model.py                    everything
    python benchmarks/real_language_model.py --only residual --align_steps 100 --steps 100
    python benchmarks/real_language_model.py --texts datasets   sends real questions and captions
    python benchmarks/real_language_model.py --curve 200x300 600x900     other steps beside it

After stage 1: the share of a text's tokens that arrive as the word that was sent, with `--texts`
also by a text receiver that was trained on real captions. After stage 2: accuracy beside the
majority answer, the question alone, and what the model answers when it reads captions in place of
media. Both stages run as task_align.py and task_avqa.py, several at a time; finished runs are
skipped, so an interrupted measurement goes on where it stopped. Leaves the runs
in checkpoint/real, numbers in benchmarks/real_language_model.json, and prints the tables of
docs/real_language_model.md.
"""

import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import task_align  # noqa: E402
import task_avqa  # noqa: E402
from benchmarks import from_captions  # noqa: E402
from benchmarks.efficiency import device_name  # noqa: E402
from benchmarks.experiments.compare import (  # noqa: E402
    accuracies,
    gain,
    metrics_of,
    validation_losses,
)
from benchmarks.experiments.page import signed, table  # noqa: E402
from benchmarks.measure import commit  # noqa: E402
from benchmarks.seeds import cell, summary  # noqa: E402
from benchmarks.sweeps import fill_caches, forecast  # noqa: E402
from modules.foundation_model import PROMPT  # noqa: E402
from modules.losses import reconstruction  # noqa: E402
from modules.system import System  # noqa: E402
from modules.token_receiver import nearest  # noqa: E402
from utils.checkpoints import load_parts  # noqa: E402
from utils.config import StageConfig, run_script, values  # noqa: E402
from utils.data.clips import pad, parts  # noqa: E402
from utils.data.datasets import read_music_avqa, read_valor  # noqa: E402
from utils.data.models import Processors, build_system, check_folder  # noqa: E402
from utils.files import check_writable, write_whole  # noqa: E402
from utils.runs import Run, run_all, unique  # noqa: E402
from utils.training.identity import finished  # noqa: E402
from utils.training.run import schedule  # noqa: E402

PRESET = "mini"  # the only one


@dataclass
class Config:
    """What is measured, and the recipe: what both stages have in place of the published values. The
    rest is the mini preset's."""

    preset: str = "mini"  # mini: of other data no captions of the questions' clips are known
    foundation_model: str = "models/smollm2-135m-instruct"  # folder, or OWNER/NAME of the hub
    only: list[str] = values("residual", "mlp", "published")  # whose answers; detect is another
    seeds: list[int] = values(1, 2)  # of weights, batches and noise
    jobs: int = 0  # runs at a time; 0: one a core, or one on an accelerator
    tokens: int = 16  # of each modality

    # Texts whose tokens are counted after stage 1
    texts: str = ""  # folder of VALOR and MUSIC-AVQA with real annotations; empty: the mini world
    sent: int = 300  # questions, and as many captions, of the test split
    snr_db: list[float] = values(-6.0, 0.0, 6.0, 12.0)  # dB

    # The recipe's stage 1
    align_batch: int = 8  # clips; published: 32
    align_steps: int = 200  # published: 500
    align_lr: float = 3e-3  # peak; published: 1e-4
    align_warm_up: int = 30  # steps; published: 0
    contrast: str = "all"  # published: special
    contrastive_weight: float = 1.0  # published: 1
    caption_weight: float = 1.0  # published: 0

    # The recipe's stage 2
    batch: int = 16  # questions; published: 8
    packed: int = 4  # most questions of a clip in one sequence; published: 1
    steps: int = 300  # published: 300
    lr: float = 1e-3  # of transmitters and receivers, peak; published: 1e-4
    lora_lr: float = 5e-4  # of LoRA, peak; published: 1e-4
    warm_up: int = 20  # steps; published: 0
    lora_rank: int = 8  # published: 4
    lora_dropout: float = 0.0  # published: 0.1
    lora_targets: list[str] = values("all-linear")  # published: q_proj, v_proj

    # Both stages
    compression: str = "grid"  # published: sliding_window
    clip: float = 1.0  # largest norm of a step's gradient; published: 0, none
    published_steps: list[int] = values(500, 300)  # of the published recipe's stages: the paper's
    curve: list[str] = values()  # as 600x900, other steps of both stages; residual

    # Folders and files
    data: str = "datasets/mini"  # holds VALOR and MUSIC-AVQA
    align_clips: list[int] = values(1600, 128, 160)  # of the mini world: train, val, test
    avqa_clips: list[int] = values(1200, 96, 256)  # of the mini world: train, val, test
    cache: str = "datasets/cache"  # encoder tokens, computed once
    out: str = "checkpoint"  # folder of the runs
    results: str = "benchmarks/real_language_model.json"  # file of the numbers


PRESETS = {"mini": Config()}

RECEIVERS = {
    "residual": dict(receiver="residual", text_receiver="residual"),
    "mlp": dict(receiver="mlp", text_receiver="mlp"),
    "detect": dict(receiver="residual", text_receiver="detect"),
}
# Whose answers can be measured: receivers, and the recipe that both stages are trained by.
ARMS = {
    **{name: (name, "recipe") for name in RECEIVERS},
    "published": ("mlp", "published"),
}
# What makes a recipe, of the hyperparameters of either stage, besides receivers.
STAGE_1 = ("contrast", "contrastive_weight", "caption_weight")
STAGE_2 = ("packed", "lora_lr", "lora_rank", "lora_dropout", "lora_targets")
BOTH = ("compression", "batch", "steps", "lr", "warm_up", "clip")


def recipes(config: Config) -> dict[str, tuple[dict, dict]]:
    """Both stages' hyperparameters, as published and as asked for."""
    align, avqa = task_align.PRESETS["published"], task_avqa.PRESETS["published"]
    published = [
        {name: getattr(align, name) for name in (*STAGE_1, *BOTH)},
        {name: getattr(avqa, name) for name in (*STAGE_2, *BOTH)},
    ]
    for stage, steps in zip(published, config.published_steps, strict=True):
        stage["steps"] = steps
    first = {name: getattr(config, name) for name in (*STAGE_1, "compression", "clip")}
    first |= {k: getattr(config, f"align_{k}") for k in ("batch", "steps", "lr", "warm_up")}
    second = {name: getattr(config, name) for name in (*STAGE_2, *BOTH)}
    return {"published": tuple(published), "recipe": (first, second)}


def same(config: Config, receiver: str, seed: int) -> dict:
    """What both stages share."""
    kept = {name: getattr(config, name) for name in ("foundation_model", "cache", "out")}
    tokens = dict(visual_tokens=config.tokens, audio_tokens=config.tokens)
    return {**kept, **tokens, **RECEIVERS[receiver], "figures": "none", "threads": 0, "seed": seed}


def aligning(config: Config, receiver: str, recipe: str, seed: int) -> Run:
    """Stage 1."""
    stage = replace(
        task_align.PRESETS["mini"],
        name=f"real/align-{receiver}-{recipe}-seed{seed}",
        data=f"{config.data}/VALOR",
        mini_clips=config.align_clips,
        **same(config, receiver, seed),
        **recipes(config)[recipe][0],
    )
    return Run("task_align", stage)


def answering(config: Config, arm: str, seed: int) -> tuple[Run, Run]:
    """Stage 2, and the same with noise in place of picture and sound."""
    receiver, recipe = ARMS[arm]
    start = aligning(config, receiver, recipe, seed)
    stage = replace(
        task_avqa.PRESETS["mini"],
        name=f"real/{arm}-seed{seed}",
        init=f"{config.out}/{start.name}.pth",
        data=f"{config.data}/MUSIC-AVQA",
        mini_clips=config.avqa_clips,
        question_only=False,
        test_snr_db=[],
        **same(config, receiver, seed),
        **recipes(config)[recipe][1],
    )
    blind = replace(stage, name=f"{stage.name}-question-only", modalities=["none"])
    return Run("task_avqa", stage, start.name), Run("task_avqa", blind, start.name)


def so_long(config: Config, pair: str, seed: int) -> tuple[Run, Run]:
    """Both stages of the recipe with the residual receiver and so many steps, as `200x300`."""
    align_steps, steps = map(int, pair.split("x"))
    other = replace(config, align_steps=align_steps, steps=steps)
    first, second = (
        aligning(other, "residual", "recipe", seed),
        answering(other, "residual", seed)[0],
    )
    if align_steps != config.align_steps:  # else it is the recipe's own
        first = replace(first, config=replace(first.config, name=f"real/{align_steps}-seed{seed}"))
    if (align_steps, steps) != (config.align_steps, config.steps):
        changes = dict(name=f"real/{pair}-seed{seed}", init=f"{config.out}/{first.name}.pth")
        second = Run(second.script, replace(second.config, **changes), first.name)
    return first, second


def reading(config: Config, seed: int) -> Run:
    """Stage 2 on captions as clean text."""
    stage = vars(answering(config, "residual", seed)[0].config)
    changes = {"name": f"real/caption-as-text-seed{seed}", "init": "none"}
    return Run("benchmarks.from_captions", from_captions.Config(**{**stage, **changes}))


def main(config: Config) -> dict:
    """Run what is not there yet, measure, and write the results, which it returns."""
    check(config)
    arms = {arm: [answering(config, arm, seed) for seed in config.seeds] for arm in config.only}
    ceiling = [reading(config, seed) for seed in config.seeds]
    starts = {
        (receiver, recipe): [aligning(config, receiver, recipe, seed) for seed in config.seeds]
        for receiver, recipe in sent_by(config)
    }
    pairs = [*config.curve, f"{config.align_steps}x{config.steps}"] if config.curve else []
    curve = {pair: [so_long(config, pair, seed) for seed in config.seeds] for pair in pairs}
    every = unique(
        [run for part in curve.values() for pair in part for run in pair]  # some take long
        + [run for part in starts.values() for run in part]
        + [run for part in arms.values() for pair in part for run in pair]
        + ceiling
    )
    known = {run.name: found for run in every if (found := finished(run.config))}
    print(forecast(every, known, config.jobs), flush=True)
    fill_caches([run.config for run in every])
    made_by = commit()  # the code that runs, whatever is edited meanwhile
    metrics = run_all(every, config.jobs, "real language model")

    results = {
        "model": Path(config.foundation_model).name,
        "questions": metrics[ceiling[0].name]["accuracy"]["n"],
        "seeds": config.seeds,
        "snr_db": ceiling[0].config.snr_db,
        "recipes": {
            name: dict(zip(("task_align", "task_avqa"), stages, strict=True))
            for name, stages in recipes(config).items()
        },
        "texts": {kind: about for kind, (_, about) in texts(config).items()},
        "caption_as_text": summary(accuracies(metrics_of(ceiling, metrics))),
        **{receiver: {} for receiver in RECEIVERS},
    }
    for arm, pairs in arms.items():
        results.setdefault(arm, {}).update(
            answers(pairs, starts[ARMS[arm]], metrics, results["caption_as_text"]["mean"])
        )
    results["curve"] = {
        pair: reached(*zip(*runs, strict=True), metrics) for pair, runs in curve.items()
    }
    arrived = {
        key: tokens_kept(config, map(aligned, runs))
        for key, runs in starts.items()
        if key[0] != "detect"
    }
    for receiver in ("residual", "mlp") if config.texts else ():
        trained = (on_real_captions(config, receiver, seed) for seed in config.seeds)
        arrived[receiver, "real captions"] = tokens_kept(config, trained)
    detector = aligning(config, "detect", "recipe", config.seeds[0]).config
    arrived["detect", "untrained"] = tokens_kept(config, [(*build_system(detector), detector)])
    for (receiver, recipe), of_kind in arrived.items():
        for kind, shares in of_kind.items():
            results[receiver].setdefault(f"{kind}_tokens_kept", {})[recipe] = shares
    results["device"] = device_name()
    results["minutes"] = sum(metrics[run.name]["seconds"] for run in every) / 60
    results["commit"] = made_by
    write_whole(Path(config.results), json.dumps(results, indent=1) + "\n")
    print(tables(results))
    return results


def sent_by(config: Config) -> list[tuple[str, str]]:
    """The receivers whose stage 1 is needed, and by which recipe: those of the answers, and all of
    them as published, whose texts are counted."""
    of_answers = [ARMS[arm] for arm in config.only]
    as_published = [(receiver, "published") for receiver, _ in of_answers if receiver != "detect"]
    return list(dict.fromkeys([*of_answers, *as_published]))


def check(config: Config) -> None:
    """ValueError, in one line, for what would fail after an hour."""
    for arm in config.only:
        if arm not in ARMS:
            raise ValueError(f"--only {arm}: unknown, choose from {', '.join(ARMS)}")
    if not config.only or not config.seeds or min(config.sent, *config.published_steps) < 1:
        raise ValueError("--only, --seeds, --sent and --published_steps: name one or more each")
    for pair in config.curve:
        if not re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", pair):
            raise ValueError(f"--curve {pair}: not steps of both stages, as 200x300")
    check_folder(config.foundation_model)
    if config.texts:
        texts(config)
        read_valor(Path(config.texts) / "VALOR", "train")
    check_writable(Path(config.results).parent, "--results")


def answers(
    pairs: Sequence[tuple[Run, Run]], starts: Sequence[Run], metrics: dict, ceiling: float
) -> dict:
    """What an arm answers right, with each seed, beside its baselines.

    Args:
        pairs: stage 2 and its question-only baseline.
        starts: stage 1.
        ceiling: mean accuracy on captions as text.
    """
    sighted, blind = (list(runs) for runs in zip(*pairs, strict=True))
    found, without = metrics_of(sighted, metrics), metrics_of(blind, metrics)
    first = metrics_of(starts, metrics)
    accuracy, question_only = summary(accuracies(found)), summary(accuracies(without))
    room = ceiling - question_only["mean"]
    seconds = [a["seconds"] + b["seconds"] for a, b in zip(first, found, strict=True)]
    return {
        "accuracy": accuracy,
        "by_type": {
            kind: statistics.fmean(run["accuracy"]["by_type"][kind] for run in found)
            for kind in found[0]["accuracy"]["by_type"]
        },
        "question_only": question_only,
        "majority": found[0]["baselines"]["majority"],
        "over_question_only": gain([sighted], [blind]),
        "share_of_way_to_ceiling": (accuracy["mean"] - question_only["mean"]) / room,
        "validation_loss": [run["validation_loss"] for run in found],
        "held_out_losses": [run["held_out_loss"] for run in first],
        "retrieval": [run["retrieval"] for run in first],
        "minutes": statistics.fmean(seconds) / 60,
    }


def reached(starts: Sequence[Run], runs: Sequence[Run], metrics: dict) -> dict:
    """After so many steps of both stages: what is answered right, nats a token of held-out captions
    after the first and of validation answers after the second."""
    first, second = metrics_of(starts, metrics), metrics_of(runs, metrics)
    return {
        "accuracy": summary(accuracies(second)),
        "caption": statistics.fmean(run["held_out_loss"]["caption"] for run in first),
        "validation_loss": statistics.fmean(validation_losses(second)),
    }


def texts(config: Config) -> dict[str, tuple[list[str], dict]]:
    """Questions in their prompt, and captions: some of each file's distinct ones, spread evenly
    over it; and what names the file."""
    folder, found = Path(config.texts or config.data), {}
    for kind, read, name in (
        ("question", read_music_avqa, "MUSIC-AVQA"),
        ("caption", read_valor, "VALOR"),
    ):
        rows, file = read(folder / name, "test")
        distinct = list(dict.fromkeys(row.text for row in rows))
        some = distinct[:: max(1, len(distinct) // config.sent)][: config.sent]
        about = {"data": name, "sha256": file.sha256, "rows": file.rows, "sent": len(some)}
        if kind == "question":
            some = [PROMPT.format(question=text) for text in some]
        found[kind] = some, {**about, "real": bool(config.texts)}
    return found


# A system, its processors, and its hyperparameters.
Sender = tuple[System, Processors, StageConfig]


def aligned(run: Run) -> Sender:
    """With stage 1's text receiver."""
    system, processors = build_system(run.config)
    load_parts(f"{run.config.out}/{run.name}.pth", {"text_receiver": system.text_receiver})
    return system.to(PartialState().device), processors, run.config


def on_real_captions(config: Config, receiver: str, seed: int) -> Sender:
    """With a text receiver trained on the real training captions by the published recipe, as far as
    it concerns text: only the reconstruction loss, as the clips of these captions are not at hand.
    """
    stage = aligning(config, receiver, "published", seed).config
    rows, _ = read_valor(Path(config.texts) / "VALOR", "train")
    torch.manual_seed(seed)
    system, processors = build_system(stage)
    device = PartialState().device
    system.to(device)
    optimizer = torch.optim.AdamW(system.text_receiver.parameters(), lr=stage.lr)
    falling, noise = schedule(optimizer, stage), torch.Generator(device).manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(stage.steps):
        some = torch.randint(len(rows), [stage.batch], generator=draw).tolist()
        ids, mask = padded(processors.tokenizer, [rows[i].text for i in some], stage.caption_tokens)
        ids, mask = ids.to(device), mask.to(device)
        sent = system.foundation.embed(ids)  # (batch, text tokens, hidden)
        received = system.receive_text(sent, mask, stage.snr_db, noise)
        optimizer.zero_grad()
        reconstruction(received, sent, mask).backward()
        optimizer.step()
        falling.step()
    return system, processors, stage


def tokens_kept(config: Config, senders: Iterable[Sender]) -> dict:
    """By kind of text and by SNR in dB, which share of the tokens has its own word's embedding as
    the nearest one when it left the text receiver; the mean over systems."""
    found: dict[str, dict[str, list[float]]] = {}
    for system, processors, stage in senders:
        for kind, (some, _) in texts(config).items():
            for snr_db in config.snr_db:
                share = arriving(system, processors.tokenizer, some, snr_db, stage)
                found.setdefault(kind, {}).setdefault(f"{snr_db:g}", []).append(share)
    return {
        kind: {snr: statistics.fmean(shares) for snr, shares in by_snr.items()}
        for kind, by_snr in found.items()
    }


@torch.inference_mode()
def arriving(
    system, tokenizer, some: Sequence[str], snr_db: float, config: StageConfig, at_once: int = 16
) -> float:
    """The share of the tokens of these texts, each sent by itself, that arrive as themselves."""
    table = system.foundation.words()
    noise = torch.Generator(table.device).manual_seed(config.seed)
    right = count = 0
    for part in parts(list(some), at_once):
        ids, mask = (x.to(table.device) for x in padded(tokenizer, part))
        received = system.receive_text(system.foundation.embed(ids), mask, snr_db, noise)
        right += ((nearest(received, table) == ids) & mask).sum().item()
        count += mask.sum().item()
    return right / count


def padded(tokenizer, some: Sequence[str], most: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and mask, (texts, tokens), of texts cut at `most` tokens."""
    ids = tokenizer(list(some), add_special_tokens=False)["input_ids"]
    return pad([row[:most] for row in ids], tokenizer.eos_token_id)


def recipe_table(config: Config) -> str:
    """Where the recipe differs from the published one, as docs/real_language_model.md shows it."""
    published, ours = recipes(config).values()
    rows = [
        [f"stage {i} `--{name}`", shown(value), shown(our[name])]
        for i, (theirs, our) in enumerate(zip(published, ours, strict=True), start=1)
        for name, value in theirs.items()
        if our[name] != value
    ]
    return table(["hyperparameter", "published", "recipe"], rows)


def shown(value: object) -> str:
    """A hyperparameter as it is said on the command line."""
    words = value if isinstance(value, list) else [value]
    return " ".join(f"{word:g}" if isinstance(word, float) else f"{word}" for word in words)


def tables(found: dict) -> str:
    """What docs/real_language_model.md shows of the results."""
    return kept_table(found) + "\n" + answers_tables(found)


def kept_table(found: dict) -> str:
    """Which share of tokens arrives as the word that was sent."""
    rows, snrs = [], list(found["detect"]["question_tokens_kept"]["untrained"])
    for receiver in RECEIVERS:
        for recipe, shares in found[receiver].get("question_tokens_kept", {}).items():
            captions = found[receiver]["caption_tokens_kept"][recipe]
            cells = (f"{100 * shares[s]:.1f} · {100 * captions[s]:.1f}" for s in snrs)
            rows.append([receiver, recipe, *cells])
    return table(["text receiver", "stage 1", *(f"{snr} dB" for snr in snrs)], rows)


def answers_tables(found: dict) -> str:
    """What is answered right, beside the baselines and the ceiling; and after other steps."""
    rows = []
    for arm in ARMS:
        if "accuracy" not in found.get(arm, {}):
            continue
        one = found[arm]
        nats = [losses["caption"] for losses in one["held_out_losses"] if "caption" in losses]
        rows.append(
            [
                arm,
                cell(one["accuracy"]),
                cell(one["question_only"]),
                signed(one["over_question_only"], 100),
                f"{100 * one['share_of_way_to_ceiling']:.0f}",
                f"{statistics.fmean(nats):.2f}" if nats else "",
                f"{one['minutes']:.0f}",
            ]
        )
    majority = next(found[arm]["majority"] for arm in ARMS if "majority" in found.get(arm, {}))
    rows.append(["majority answer", f"{100 * majority:.1f}", *5 * [""]])
    rows.append(["captions as text", cell(found["caption_as_text"]), *5 * [""]])
    head = [
        *("answers in %", "accuracy", "question only", "gain (points ± 95 %)"),
        *("% of the way to captions", "caption, nats a token", "minutes, both stages"),
    ]
    said, curve = table(head, rows), found.get("curve", {})
    if not curve:
        return said
    rows = [
        [
            *pair.split("x"),
            cell(curve[pair]["accuracy"]),
            f"{curve[pair]['caption']:.2f}",
            f"{curve[pair]['validation_loss']:.3f}",
        ]
        for pair in sorted(curve, key=lambda pair: [*map(int, pair.split("x"))])
    ]
    losses = ("caption, nats a token", "answer (validation), nats a token")
    head = ["steps of stage 1", "of stage 2", "accuracy in %", *losses]
    return said + "\n" + table(head, rows)


if __name__ == "__main__":
    run_script(main, PRESETS, PRESET, __doc__)
