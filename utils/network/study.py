"""A multi-user study: users dropped into a cell, the methods compared on them, what they spend."""

import csv
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from modules.network.allocation import Allocation, Problem, allocate
from modules.network.baselines import equal_split, fixed_length, proportional, random_split
from modules.network.cell import (
    Cell,
    analog_seconds,
    channel_uses,
    compute_seconds,
    energy,
    from_dbm,
    payload_bits,
    snr,
    to_db,
)
from modules.network.loss_curve import LossCurve, fit_loss_curve
from modules.system import MEDIA
from utils.config import check as check_fields
from utils.data.models import special_tokens
from utils.files import check_writable, shipped
from utils.network.flops import audio_flops, foundation_flops, visual_flops

KINDS = MEDIA  # the users take turns: a scene is a camera and a microphone
Method = Callable[[Problem], Allocation]


@dataclass(frozen=True)
class Study:
    """Hyperparameters of task_network.py, the models' folders and the loss curve together."""

    config: Any
    models: Any  # a stage 2 configuration, of which the folders are read
    hidden: int  # width of a token
    curve: LossCurve

    @property
    def methods(self) -> dict[str, Method]:
        """By name what is compared; the first is the proposed one. Your own goes here."""

        def random(problem: Problem) -> Allocation:
            # Another split for each drop, and the same whenever the drop comes again.
            drop = zlib.crc32(problem.gain.tobytes())
            return random_split(problem, np.random.default_rng((self.config.seed, drop)))

        return {
            "joint": allocate,
            "equal split": equal_split,
            "proportional": proportional,
            "fixed length": partial(fixed_length, length=self.config.reference_length),
            "random": random,
        }

    @cached_property
    def special(self) -> dict[str, int]:
        """Special tokens of each modality, sent besides its patch tokens."""
        return special_tokens(self.models)

    def encode_flops(self, users: int) -> np.ndarray:
        """FLOPs of each user's encoder, (users,)."""
        visual = visual_flops(self.models.visual_encoder)
        audio = audio_flops(self.models.audio_encoder, self.config.clip_seconds)
        return np.resize(np.array([visual, audio], float), users)

    def foundation_flops(self) -> tuple[float, float]:
        """FLOPs of the language model for each patch token, and for a scene without any: between
        the fewest and the most tokens a straight line (attention bends it by a few percent)."""
        c = self.config
        besides = sum(self.special.values()) + c.text_tokens
        few, most = (besides + 2 * n for n in (c.lengths[0], c.lengths[-1]))
        low, high = (foundation_flops(self.models.foundation_model, n) for n in (few, most))
        slope = (high - low) / (most - few) if most > few else 0.0
        return slope, low - slope * 2 * c.lengths[0]

    def drop(self, seed: int, users: int | None = None, **changes) -> Problem:
        """Users dropped into the cell, with the study's budgets unless `changes` says otherwise."""
        c = self.config
        users = c.users if users is None else users
        shared = vars(c).keys() & Cell.__dataclass_fields__.keys()
        cell = Cell(**{name: getattr(c, name) for name in shared})
        source = np.random.default_rng((c.seed, seed))
        scenes = -(-users // len(KINDS))
        kinds = np.resize(KINDS, users)
        per_token, fixed = self.foundation_flops()
        values = dict(
            gain=cell.gains(cell.distances(users, source), source),
            noise_density=cell.noise_density,
            bandwidth=c.bandwidth,
            power=float(from_dbm(c.power_dbm)),
            user_power=np.full(users, from_dbm(c.user_power_dbm)),
            token_bits=payload_bits(1, self.hidden, c.bits),
            special=np.array([self.special[k] for k in kinds]),
            lengths=np.array(c.lengths),
            fall=np.array([self.curve.fall[k] for k in kinds]) / scenes,
            exponent=np.array([self.curve.exponent[k] for k in kinds]),
            floor=self.curve.floor,
            encode=compute_seconds(self.encode_flops(users), c.device_flops),
            foundation=compute_seconds(per_token, c.server_flops),
            foundation_fixed=scenes * compute_seconds(fixed, c.server_flops),
            weight=c.weight,
            deadline=c.deadline,
        )
        return Problem(**{**values, **changes})


def check(config: Any, models: Any) -> None:
    """ValueError, in one line and before anything is trained, for what no study can use."""
    check_fields(config)
    for count in (config.users, *config.user_counts):
        if count < 2 or count % 2:
            raise ValueError(f"{count} users: must be even, 2 for a scene, and not 0")
    numbers = ("drops", "instances", "repeats", "bits", "link_length")
    for name in (*numbers, "device_flops", "server_flops"):
        if not getattr(config, name) > 0:
            raise ValueError(f"--{name} {getattr(config, name)}: must be above 0")
    if config.curve not in ("measured", "sweep"):
        raise ValueError(f"--curve {config.curve}: say measured or sweep")
    if config.reference_length not in config.lengths:
        raise ValueError(f"--reference_length {config.reference_length}: must be among --lengths")
    if (3 * len(config.lengths) - 2) * config.repeats < 5:  # as `measure_lengths` takes them
        raise ValueError(
            f"--lengths {config.lengths}: a loss curve needs 5 points; name more, or more --repeats"
        )
    if config.cache == "none":
        raise ValueError("--cache none: the study reads cached tokens; name a folder")
    if config.curve == "sweep" or shipped(config.sweep).is_file():
        fit_sweep(config.sweep)
    check_writable(Path(config.out), "--out")
    if config.figures != "none":
        check_writable(Path(config.figures), "--figures")
    flat = LossCurve(0.0, dict.fromkeys(KINDS, 1.0), dict.fromkeys(KINDS, 1.0), 0.0)
    study = Study(config, models, hidden=1, curve=flat)
    for weight in (config.weight, *config.weights):
        study.drop(0, weight=weight)  # which checks cell, budgets and lengths


def fit(points: list[dict]) -> LossCurve:
    """The curve through points of `visual` and `audio` tokens and their `loss`."""
    lengths = {kind: [p[kind] for p in points] for kind in KINDS}
    return fit_loss_curve(lengths, [p["loss"] for p in points])


def fit_sweep(path: str) -> LossCurve:
    """The curve through the runs with `grid` of the sweep over token lengths.

    Raises:
        FileNotFoundError, ValueError: in a line that names the file.
    """
    if not shipped(path).is_file():
        command = "python benchmarks/sweeps.py --only lengths"
        raise FileNotFoundError(f"{path}: no sweep over token lengths; run `{command}` first")
    try:
        with open(shipped(path), newline="") as file:
            rows = [r for r in csv.DictReader(file) if r["compression"] == "grid"]
        lengths = {kind: [int(row[f"{kind}_tokens"]) for row in rows] for kind in KINDS}
        return fit_loss_curve(lengths, [float(row["validation_loss"]) for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a sweep over token lengths ({error})") from None


def snr_db(problem: Problem, found: Allocation) -> np.ndarray:
    """dB, (users,): at which each user's tokens cross their own channel."""
    return to_db(snr(found.bandwidth, found.power, problem.gain, problem.noise_density))


def spent(study: Study, problem: Problem, found: Allocation) -> dict[str, float]:
    """Where the slowest user's time goes (s), what users spend (J), and what is expected (nats)."""
    heard = snr(found.bandwidth, found.power, problem.gain, problem.noise_density)
    rates = found.bandwidth * np.log2(1 + heard)
    seconds = problem.bits(found.lengths) / rates
    slowest = int((problem.encode + seconds).argmax())
    reading = problem.foundation_fixed + problem.foundation * found.lengths.sum()
    flops = study.encode_flops(problem.users)
    joules = energy(seconds, found.power, flops, study.config.joules_per_flop)
    uses = channel_uses(found.lengths + problem.special, study.hidden)
    return {
        "encode_s": float(problem.encode[slowest]),
        "uplink_s": float(found.latency - problem.encode[slowest]),
        "foundation_s": float(reading),
        "latency_s": float(found.latency + reading),
        "analog_uplink_s": float(analog_seconds(uses, found.bandwidth).max()),
        "energy_j_per_user": float(joules.mean()),
        "tokens_per_user": float(found.lengths.mean()),
        "loss": problem.loss(found.lengths),
    }
