"""Stage 3, the network: many users share bandwidth and power, and the base station answers from
what arrives. Token lengths, bandwidth and power are allocated jointly (latency against validation
loss), compared with simpler splits, and tested by answering. After arXiv 2505.07841, v2 and v3.

    python task_network.py                      the mini world, after task_align.py
    python task_network.py --users 16 --bandwidth 2e6
    python task_network.py --weight 0.1         accuracy before latency
"""

import utils.machine  # noqa: F401, I001  before torch, which reads how its threads wait

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import task_avqa
from modules.channel import Channel
from utils.checkpoints import load_parts
from utils.config import plain, run_script, values
from utils.data.clips import answer_limit
from utils.data.datasets import read_music_avqa
from utils.data.encoding import load_clips
from utils.files import shipped, write_whole
from utils.network import experiments, plots
from utils.network.answers import Answers, measure_lengths
from utils.network.study import Study, check, fit, fit_sweep
from utils.training.identity import finished
from utils.training.log import peak_rss_mb
from utils.training.processes import start

PRESET = "mini"  # "mini" (embedded world, any machine) or "paper"; edit here, or say --preset


@dataclass
class Config:
    """The cell, its budgets and its devices. Values are this project's choice: the paper's
    simulation parameters are not at hand."""

    preset: str = "mini"  # mini or paper
    name: str = ""  # of the run's files in checkpoint/; empty: network-PRESET
    seed: int = 2505  # of drops and noise

    # The cell (modules/network/cell.py)
    users: int = 8  # even: a camera and a microphone for each scene
    radius: float = 250.0  # m
    shadowing_db: float = 6.0  # dB, standard deviation
    penetration_db: float = 20.0  # dB, users are indoors
    fading: str = "rayleigh"  # rayleigh, rician or none, in the users' gains
    rician_k: float = 4.0  # power of the line of sight over the scattered paths
    noise_dbm_per_hz: float = -174.0  # dBm/Hz, N0: thermal noise at 290 K
    noise_figure_db: float = 5.0  # dB, of the base station, on top of it
    channel: str = "awgn"  # on which tokens cross, at the SNR that gains and powers give

    # What users share
    bandwidth: float = 1e6  # Hz, of all users
    power_dbm: float = 20.0  # dBm, of all users
    user_power_dbm: float = 14.0  # dBm, of one at most
    weight: float = 0.5  # w: of a second of latency against a nat of loss
    deadline: float = float("inf")  # s, of encoding and uplink

    # Tokens and devices
    lengths: list[int] = values(1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # patch tokens a user may send
    reference_length: int = 8  # of the fixed-length baseline
    bits: int = 8  # of an entry, for the uplink at Shannon's rate
    curve: str = "measured"  # the loss curve that lengths follow, or sweep: fitted to the csv below
    curve_snr_db: float = -9.0  # dB, at which it is measured: that of users at the cell's edge
    sweep: str = "imgs/token_length.csv"  # benchmarks/sweeps.py --only lengths
    text_tokens: int = 23  # of question and answer, for the foundation model's time
    clip_seconds: float = 2.98  # s of sound that a clip has; MUSIC-AVQA: 60
    device_flops: float = 1e10  # FLOP/s of a user's device
    server_flops: float = 1e11  # FLOP/s of the base station; paper preset: 1e14
    joules_per_flop: float = 1e-11  # of a user's device

    # The model that answers: stage 2 over all lengths and SNRs, trained when missing
    init: str = "checkpoint/align-mini-tau0.07.pth"  # stage 1's checkpoint
    data: str = "datasets/mini/MUSIC-AVQA"  # folder of the data set
    mini_clips: list[int] = values(1200, 96, 256)  # of the mini world: train, val, test
    cache: str = "datasets/cache"  # encoder tokens, computed once; a folder, not none
    steps: int = 600  # of fine-tuning
    snr_range: list[float] = values(-15.0, 15.0)  # dB, of fine-tuning

    # What is drawn
    drops: int = 100  # for the comparison with baselines; a fifth of it for each point of a curve
    instances: int = 100  # small networks for exhaustive search
    repeats: int = 3  # noise seeds of each measured loss
    user_counts: list[int] = values(2, 4, 8, 16, 32, 64)  # users in the same budgets
    weights: list[float] = values(0.01, 0.05, 0.2, 0.5, 0.8, 0.97)  # of the front
    link_snr_db: list[float] = values(*range(-18, 19, 3))  # dB, analog against digital tokens
    link_length: int = 16  # patch tokens that are sent analog there
    out: str = "checkpoint"  # folder of checkpoints and metrics
    figures: str = "imgs"  # folder of figures, or none


PRESETS = {
    "mini": Config(),
    "paper": Config(
        preset="paper",
        bandwidth=2e7,
        lengths=[4, 8, 16, 32, 48, 64, 96, 128],
        reference_length=128,
        clip_seconds=60.0,
        device_flops=1e12,
        server_flops=1e14,
        init="checkpoint/align-paper-tau0.07.pth",
        data="datasets/MUSIC-AVQA",
        sweep="imgs/paper/token_length.csv",
        steps=300,
    ),
}


def main(config: Config) -> dict:
    began, name = time.time(), config.name or f"network-{config.preset}"
    stage_2 = answering_stage(config, f"{name}-avqa")
    check(config, stage_2)
    model, clips, tokenizer = trained_model(stage_2)

    # What tokens bring: validation loss at measured lengths, and a monotone curve through it.
    points = measure_lengths(config, model, clips["val"], tokenizer)
    curves = {"measured": fit(points)}
    if shipped(config.sweep).is_file():
        curves["sweep"] = fit_sweep(config.sweep)
    for kind, fitted in curves.items():
        print(f"loss curve, {kind}: {fitted}")

    # Who gets what: the joint allocation beside simpler ones, and beside the optimum.
    print(f"allocating in {config.drops} drops", flush=True)
    study = Study(config, stage_2, model.system.foundation.hidden, curves[config.curve])
    few = max(2, config.drops // 5)
    found = {
        "vs_exhaustive": experiments.against_exhaustive(study, config.instances),
        **experiments.against_baselines(study, config.drops),
        **experiments.seconds_of(study, 1000),
        "loss_curves": {kind: vars(fitted) for kind, fitted in curves.items()},
        "loss_points": points,
        "over_budgets": experiments.over_budgets(study, few),
    }

    # What is answered: test clips spread over the drops' scenes, each user at its own SNR; and
    # analog beside digital tokens in as many channel uses, all users at one SNR.
    print("answering from what was allocated", flush=True)
    answer = Answers(model, clips["test"], tokenizer, Channel(config.channel), config.seed)
    links, snrs = experiments.digital_links(config.channel), config.link_snr_db
    found |= {
        "over_users": experiments.over_users(study, answer, few),
        "over_weights": experiments.over_weights(study, answer, few),
        "links": experiments.over_links(study, answer, snrs, links, config.link_length),
    }
    return finish(config, name, began, found)


def answering_stage(config: Config, name: str) -> task_avqa.Config:
    """One model for every length and SNR: stage 2, each batch at lengths and SNRs of its own."""
    same = ("init", "data", "mini_clips", "cache", "steps", "out", "channel", "snr_range")
    return replace(
        task_avqa.PRESETS[config.preset],
        name=name,
        **{k: getattr(config, k) for k in same},
        visual_tokens=max(config.lengths),
        audio_tokens=max(config.lengths),
        token_lengths=config.lengths,
        question_snr_db=float("inf"),
        question_only=False,
        threads=0,  # nothing trains beside it
        test_snr_db=[],
        figures="none",
        resume=True,
    )


def trained_model(stage_2: task_avqa.Config):
    """The model, trained when it is missing, its clips at the most tokens, and the tokenizer."""
    accelerator = start(stage_2)
    if accelerator.num_processes > 1:
        raise ValueError("task_network.py runs in one process: start it with python")
    if not finished(stage_2):
        task_avqa.main(stage_2)
    model, processors = task_avqa.build_model(stage_2)
    system = model.system
    load_parts(Path(stage_2.out) / f"{stage_2.name}.pth", system.transceivers, system.lora)
    clips = load_clips(stage_2, read_music_avqa, system, processors.readers, accelerator)
    model.answer_tokens = answer_limit(clips, processors.tokenizer, stage_2.answer_tokens)
    return model.to(accelerator.device).eval(), clips, processors.tokenizer


def finish(config: Config, name: str, began: float, found: dict) -> dict:
    """Write network-PRESET.json, draw the figures, and print the summary."""
    path, figures = Path(config.out) / f"{name}.json", []
    metrics = {"task": "network", "preset": config.preset, "config": plain(config), **found}
    metrics |= {"seconds": time.time() - began, "peak_rss_mb": peak_rss_mb(), "figures": figures}
    write_whole(path, json.dumps(metrics, indent=1) + "\n")
    if config.figures != "none":
        figures += plots.draw(metrics, f"{config.figures}/{name}")
        write_whole(path, json.dumps(metrics, indent=1) + "\n")
    experiments.print_summary(metrics)
    print("look at:", path, *figures, sep="\n  ")
    return metrics


if __name__ == "__main__":
    run_script(main, PRESETS, PRESET, __doc__)
