"""Stage 3, the network: many users share bandwidth and power, and the base station answers from
what arrives. Token lengths, bandwidth and power are allocated jointly (latency against validation
loss), compared with simpler splits, and tested by answering. After arXiv 2505.07841, v2 and v3.

    python task_network.py                      the mini world, after task_align.py
    python task_network.py --users 16 --bandwidth 2e6
    python task_network.py --weight 0.1         accuracy before latency
"""

PRESET = "mini"  # "mini" (embedded world, any machine) or "paper"; edit here, or say --preset

from dataclasses import dataclass, field  # noqa: E402


@dataclass
class Config:
    """The cell, its budgets and its devices. Values are this project's choice: the paper's
    simulation parameters are not at hand."""

    preset: str = "mini"
    name: str = ""  # of the run's files in checkpoint/; empty: network-PRESET
    seed: int = 2505

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
    lengths: list[int] = field(  # patch tokens that a user may send
        default_factory=lambda: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    )
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
    data: str = "datasets/mini/MUSIC-AVQA"
    mini_clips: list[int] = field(  # of the mini world, made when missing: train, val, test
        default_factory=lambda: [1200, 96, 256]
    )
    cache: str = "datasets/cache"  # encoder tokens, computed once; a folder, not none
    steps: int = 600  # of fine-tuning
    snr_range: list[float] = field(  # dB, of fine-tuning
        default_factory=lambda: [-15.0, 15.0]
    )

    # What is drawn
    drops: int = 100  # for the comparison with baselines; a fifth of it for each point of a curve
    instances: int = 100  # small networks for exhaustive search
    repeats: int = 3  # noise seeds of each measured loss
    user_counts: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32, 64])
    weights: list[float] = field(  # of the front
        default_factory=lambda: [0.01, 0.05, 0.2, 0.5, 0.8, 0.97]
    )
    link_snr_db: list[float] = field(  # dB, at which analog and digital tokens are compared
        default_factory=lambda: (
            [-18.0, -15.0, -12.0, -9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0, 12.0] + [15.0, 18.0]
        )
    )
    link_length: int = 16  # patch tokens that are sent analog there
    out: str = "checkpoint"
    figures: str = "imgs"  # or none


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

LINKS = {  # bits of an entry, bits of a symbol, code rate
    "digital: 4 bits, 16-QAM, rate 1/2": (4, 4, 1 / 2),
    "digital: 6 bits, 16-QAM, rate 3/4": (6, 4, 3 / 4),
    "digital: 8 bits, 64-QAM, rate 3/4": (8, 6, 3 / 4),
}


def main(config: Config) -> dict:
    import json
    import time
    from dataclasses import replace
    from importlib.util import find_spec
    from pathlib import Path

    import numpy as np

    import task_avqa
    from modules.channel import Channel
    from modules.digital.link import DigitalLink
    from utils.config import plain
    from utils.files import write_whole
    from utils.network import experiments, plots
    from utils.network import study as studies
    from utils.network.answers import load_system, loss_at, right_answers
    from utils.network.study import Study
    from utils.training.log import finished, peak_rss_mb
    from utils.training.processes import start

    began, name = time.time(), config.name or f"network-{config.preset}"
    stem = Path(config.figures) / name

    # One model for every length and SNR: stage 2, each batch at lengths and SNRs of its own.
    stage_2 = replace(
        task_avqa.PRESETS[config.preset],
        name=f"{name}-avqa",
        **{k: getattr(config, k) for k in ("init", "data", "mini_clips", "cache", "steps", "out")},
        visual_tokens=max(config.lengths),
        audio_tokens=max(config.lengths),
        token_lengths=config.lengths,
        channel=config.channel,
        snr_range=config.snr_range,
        question_snr_db=float("inf"),
        question_only=False,
        test_snr_db=[],
        figures="none",
        resume=True,
    )
    studies.check(config, stage_2)
    accelerator = start(stage_2)
    if accelerator.num_processes > 1:
        raise ValueError("task_network.py runs in one process: start it with python")
    if not finished(stage_2):
        task_avqa.main(stage_2)
    checkpoint = Path(config.out) / f"{stage_2.name}.pth"
    system, clips = load_system(stage_2, checkpoint, Path(stage_2.data), accelerator)

    # What tokens bring: validation loss at measured lengths, and a monotone curve through it.
    reference, edge, points = config.reference_length, config.curve_snr_db, []
    pairs = [p for n in config.lengths for p in ((n, reference), (reference, n), (n, n))]
    for visual, audio in dict.fromkeys(pairs):
        for seed in range(config.repeats):
            loss = loss_at(system, clips["val"], (visual, audio), edge, seed)
            points.append({"visual": visual, "audio": audio, "seed": seed, "loss": loss})
    curves = {"measured": studies.fit(points)}
    if Path(config.sweep).is_file():
        curves["sweep"] = studies.fit_sweep(config.sweep)
    curve = curves[config.curve]
    for kind, fitted in curves.items():
        print(f"loss curve, {kind}: {fitted}")

    # Who gets what: the joint allocation beside simpler ones, and beside the optimum.
    print(f"allocating in {config.drops} drops", flush=True)
    study = Study(config, stage_2, system.foundation.hidden, curve)
    baselines = experiments.against_baselines(study, config.drops)
    optimum = experiments.against_exhaustive(study, config.instances)
    many = experiments.seconds_of(study, 1000)
    few = max(2, config.drops // 5)
    budgets = experiments.over_budgets(study, few)

    # What is answered: test clips spread over the drops' scenes, each user at its own SNR.
    ids = [row.video_id for row in clips["test"].rows]
    clip = np.unique(ids, return_inverse=True)[1]  # of each question

    def answer(lengths, snr_db, link=None):
        """The share of each test clip's questions answered right, (clips,), from tokens sent by
        the channel or a digital link; scenes have lengths and SNRs (scenes, 2)."""
        system.channel = link or Channel(config.channel)
        sent = (lengths[clip % len(lengths)].astype(int), snr_db[clip % len(lengths)])
        right = right_answers(system, clips["test"], *sent, config.seed)
        return np.bincount(clip, right) / np.bincount(clip)

    print("answering from what was allocated", flush=True)
    compared = ["joint", "equal split"]
    users = experiments.over_users(study, answer, config.user_counts, compared, few)
    front = experiments.over_weights(study, answer, config.weights, compared, few)

    # Analog and digital tokens in as many channel uses, all users at one SNR.
    links = {k: DigitalLink(*v, kind=config.channel) for k, v in LINKS.items()}
    if not find_spec("sionna"):
        print("no digital links: they need Sionna, pip install sionna-no-rt")
        links = {}
    sent = experiments.over_links(study, answer, config.link_snr_db, links, config.link_length)

    figures = []
    if config.figures != "none":
        parts = {k: baselines["median_spent"][k] for k in (*compared, "fixed length")}
        figures = [
            plots.loss_points(points, curves["measured"], edge, Path(f"{stem}-curve.png")),
            plots.budgets(budgets, Path(f"{stem}-objective.png")),
            plots.convergence(baselines["histories"], Path(f"{stem}-convergence.png")),
            plots.front(front, Path(f"{stem}-front.png")),
            plots.users(users, Path(f"{stem}-users.png")),
            plots.latency_parts(parts, Path(f"{stem}-latency.png")),
            plots.links(sent, Path(f"{stem}-digital.png")),
        ]
    metrics = {
        "task": "network",
        "preset": config.preset,
        "config": plain(config),
        "seconds": time.time() - began,
        "peak_rss_mb": peak_rss_mb(),
        "vs_exhaustive": optimum,
        **baselines,
        **many,
        "loss_curves": {k: vars(c) for k, c in curves.items()},
        "loss_points": points,
        "over_budgets": budgets,
        "over_users": users,
        "over_weights": front,
        "links": sent,
        "figures": figures,
    }
    path = Path(config.out) / f"{name}.json"
    write_whole(path, json.dumps(metrics, indent=1) + "\n")
    experiments.print_summary(metrics)
    print("look at:", path, *figures, sep="\n  ")
    return metrics


if __name__ == "__main__":
    from utils.config import run

    run(main, PRESETS, PRESET, __doc__)
