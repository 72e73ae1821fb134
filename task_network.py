"""Stage 3, the network: many users share bandwidth, and the base station answers from what arrives.
Bandwidth, power and messages are allocated jointly (latency against validation loss), on an analog
and on a digital link, each with its own losses; compared with simpler splits and with a bound, and
tested by answering. After arXiv 2505.07841, v2 and v3.

    python task_network.py                      the mini world, after task_align.py
    python task_network.py --users 16 --bandwidth 2e6
    python task_network.py --weight 0.1         accuracy before latency
"""

import utils.machine  # noqa: F401, I001  before torch, which reads how its threads wait

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import task_avqa
from modules.digital.quantised import QUANTISED
from modules.network.loss_surface import fit_loss_surface
from utils.config import plain, run_script, values
from utils.network import experiments, measured
from utils.network.models import trained
from utils.network.parts import Parts
from utils.network.results import finish
from utils.network.study import KINDS, LINKS, Study, check
from utils.training.identity import code_of, same_run

PRESET = "mini"  # "mini" (embedded world, any machine) or "paper"; edit here, or say --preset


@dataclass
class Config:
    """The cell, its budgets and its devices; docs/network.md has a table of where values are from.
    The paper's simulation parameters are not at hand."""

    preset: str = "mini"  # mini or paper
    name: str = ""  # of the run's files in checkpoint/; empty: network-PRESET
    seed: int = 2505  # of drops and noise

    # The cell (modules/network/cell.py), after 3GPP TR 38.901
    users: int = 8  # even: a camera and a microphone for each scene
    scenario: str = "uma"  # uma or umi
    radius: float = 250.0  # m
    carrier_ghz: float = 3.5  # GHz
    indoors: float = 0.8  # share of users
    fading: str = "rayleigh"  # rayleigh, rician or none, in the users' gains
    rician_k: float = 4.0  # power of the line of sight over the scattered paths
    noise_dbm_per_hz: float = -174.0  # dBm/Hz, N0: thermal noise at 290 K
    noise_figure_db: float = 5.0  # dB, of the base station, on top of it

    # Links (modules/network/links.py)
    channel: str = "awgn"  # of analog tokens, at the SNR that gains and powers give
    gap_db: float = 3.5  # dB, of the digital link's codes from Shannon's limit
    coherence: float = float("inf")  # s that a fade stays; inf: it is known and stays
    pilots: int = 0  # channel uses a fade that learn it; 0: it is known at no cost
    outage: float = 0.05  # of the digital link's codes over fades that are not known
    gain_error_db: float = 0.0  # dB, standard deviation of the gains that methods know

    # What users have and share
    bandwidth: float = 5e5  # Hz, of all users
    user_power_dbm: float = 23.0  # dBm, of each handset
    power_dbm: float = float("inf")  # dBm, of all users, where power is shared; inf: it is not
    weight: float = 0.5  # w: of a second of latency against a nat of loss
    deadline: float = float("inf")  # s, of encoding and uplink
    fair: bool = False  # the worst user's loss counts, in place of all users' mean
    energy_weight: float = 0.0  # of a joule of sending against a nat
    energy: float = float("inf")  # J that each user may spend on sending

    # Tokens and devices
    lengths: list[int] = values(1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # patch tokens a user may send
    reference_length: int = 8  # of the fixed-length baseline
    reference_bits: int = 4  # of an entry there, digital
    text_tokens: int = 23  # of question and answer, for the foundation model's time
    clip_seconds: float = 2.98  # s of sound that a clip has; MUSIC-AVQA: 60
    device_flops: float = 1e10  # FLOP/s of a user's device
    server_flops: float = 1e11  # FLOP/s of the base station; paper preset: 1e14
    joules_per_flop: float = 1e-11  # of a user's device

    # The models that answer: stage 2 over all lengths and SNRs or bits, trained when missing
    init: str = "checkpoint/align-mini-tau0.07.pth"  # stage 1's checkpoint
    data: str = "datasets/mini/MUSIC-AVQA"  # folder of the data set
    mini_clips: list[int] = values(1200, 96, 256)  # of the mini world: train, val, test
    cache: str = "datasets/cache"  # encoder tokens, computed once; a folder, not none
    steps: int = 600  # of fine-tuning
    seeds: list[int] = values(1111, 1112, 1113)  # of two models each; surfaces are of the first
    snr_range: list[float] = values(-15.0, 15.0)  # dB, of fine-tuning for the analog link

    # What is measured, and how many drops
    surface_lengths: list[int] = values(1, 4, 8, 16, 32)  # patch tokens of the loss surfaces
    snr_levels: list[float] = values(-18.0, -12.0, -6.0, 0.0, 6.0, 15.0)  # dB, analog
    bits_levels: list[float] = values(0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)  # bits an entry
    repeats: int = 1  # noise seeds of each measured loss
    instances: int = 100  # drops against the lower bound; and a fifth of it
    many_users: int = 64  # of so many users
    drops: int = 40  # for the comparison of methods, and of answers
    few: int = 16  # drops for each point of a curve
    deadlines: list[float] = values(0.02, 0.04, 0.08)  # s, at which methods are compared by answers
    passes: int = 1  # times that each question is asked there, in other scenes
    user_counts: list[int] = values(2, 4, 8, 16, 32)  # users in the same budgets
    weights: list[float] = values(0.05, 0.2, 0.5, 0.8, 0.9)  # of the front
    link_snr_db: list[float] = values(*range(-18, 19, 4))  # dB, analog against digital messages
    link_length: int = 16  # patch tokens that are sent analog there
    out: str = "checkpoint"  # folder of checkpoints and metrics
    figures: str = "imgs"  # folder of figures, or none


PRESETS = {
    "mini": Config(),
    "paper": Config(
        preset="paper",
        bandwidth=2e7,
        lengths=[4, 8, 16, 32, 48, 64, 96, 128],
        surface_lengths=[4, 16, 64, 128],
        reference_length=128,
        clip_seconds=60.0,
        device_flops=1e12,
        server_flops=1e14,
        init="checkpoint/align-paper-tau0.07.pth",
        data="datasets/MUSIC-AVQA",
        steps=300,
    ),
}


def main(config: Config) -> dict:
    config = replace(config, name=config.name or f"network-{config.preset}")
    stages = [{link: stage_2(config, link, seed) for link in LINKS} for seed in config.seeds]
    check(config, stages[0]["analog"])
    ask = trained(config, stages, task_avqa.build_model)
    part = Parts(Path(config.out) / f"{config.name}-parts", identity(config, ask))

    # What tokens bring: validation loss over length and SNR, or length and bits, of either link.
    points = part("surfaces", partial(measured.surface_points, config, ask))
    surfaces = {link: fit_loss_surface(of, KINDS) for link, of in points.items()}
    hidden = ask[0]["analog"]["val"].model.system.foundation.hidden
    study = Study(config, stages[0]["analog"], hidden, surfaces)

    # Who gets what: the joint allocation against its bound, other methods, and itself elsewhere.
    found = part.together(experiments.parts(study))

    # What is answered: do predicted losses come true, and who answers best in equal time?
    answers = measured.parts(study, ask)
    found["measured"] = {name: part(name, compute) for name, compute in answers.items()}
    found |= {"loss_points": points, "surfaces": {k: vars(of) for k, of in surfaces.items()}}
    return finish(config, {**found, "seconds": part.seconds})


def stage_2(config: Config, link: str, seed: int) -> task_avqa.Config:
    """One model for every length of a link: stage 2, in which each batch draws lengths, and each
    clip the SNR at which, or the bits with which, each of its users is heard."""
    same = ("init", "data", "mini_clips", "cache", "steps", "out", "channel", "snr_range")
    quantised = dict(channel=QUANTISED, snr_range=[0.0, 9.0], snr_db=8.0)  # bits; 0: nothing
    stage = replace(
        task_avqa.PRESETS[config.preset],
        name=f"{config.name}-{link}-{seed}",
        seed=seed,
        **{k: getattr(config, k) for k in same},
        visual_tokens=max(config.lengths),
        audio_tokens=max(config.lengths),
        token_lengths=config.lengths,
        question_snr_db=float("inf"),
        question_only=False,
        threads=0,  # all cores, or its share of them
        test_snr_db=[],
        figures="none",
        resume=True,
    )
    return replace(stage, **quantised) if link == "digital" else stage


def identity(config: Config, ask: list[dict]) -> str:
    """What names all that results depend on: hyperparameters, models and code."""
    versions = [answers["val"].version for of in ask for answers in of.values()]
    told = repr((same_run(plain(config)), versions, code_of(config)))
    return hashlib.sha256(told.encode()).hexdigest()


if __name__ == "__main__":
    run_script(main, PRESETS, PRESET, __doc__)
