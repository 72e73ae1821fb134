"""A multi-user study: users dropped into a cell, the methods compared on them, what they spend."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from modules.digital.codebook import GROUPS
from modules.digital.quantisation import STEPS
from modules.digital.quantised import QUANTISED
from modules.network.allocation import Allocation, Problem, allocate
from modules.network.baselines import (
    alternating,
    equal_split,
    fixed_length,
    greedy,
    proportional,
    random_split,
    water_filling,
)
from modules.network.cell import Cell, compute_seconds, from_db, from_dbm
from modules.network.links import FINE, LOST_DB, Analog, Digital, Link
from modules.network.loss_surface import LossSurface
from modules.system import MEDIA
from utils.config import check as check_fields
from utils.data.models import special_tokens
from utils.files import check_writable
from utils.network.flops import audio_flops, foundation_flops, visual_flops

KINDS = MEDIA  # the users take turns: a scene is a camera and a microphone
LINKS = ("analog", "digital")
BELOW_DB = 12.0  # dB below the lowest measured SNR nothing is taken to arrive
Method = Callable[[Problem], Allocation]


@dataclass(frozen=True)
class Fades:
    """|h|^2 of a cell's fading, the same at every call."""

    cell: Cell
    seed: int

    def __call__(self, shape: tuple) -> np.ndarray:
        return self.cell.fading_power(shape, np.random.default_rng(self.seed))


@dataclass(frozen=True)
class Study:
    """Hyperparameters of task_network.py, the models' folders and the loss surfaces together."""

    config: Any
    models: Any  # a stage 2 configuration, of which the folders are read
    hidden: int  # width of a token
    surfaces: dict[str, LossSurface]  # by link

    @property
    def methods(self) -> dict[str, Method]:
        """By name what is compared; the first is the proposed one. Your own goes here."""
        found = {
            "joint": allocate,
            "equal split": equal_split,
            "proportional": proportional,
            "fixed length": self.fixed,
            "greedy": greedy,
            "random": self.random,
            "alternating": alternating,
            **({"water-filling": water_filling} if np.isfinite(self.config.power_dbm) else {}),
        }
        if error := self.config.gain_error_db:
            return {name: partial(self.guessed, of, error) for name, of in found.items()}
        return found

    def guessed(self, method: Method, error_db: float, problem: Problem) -> Allocation:
        """What comes of a method that knows gains but for an error in dB (a standard deviation),
        and counts on as many dB less than it sees."""
        drop = zlib.crc32(problem.gain.tobytes())
        error = np.random.default_rng((self.config.seed, 7, drop)).normal(0, 1, problem.users)
        seen = problem.gain * from_db(error_db * (error - 1))
        return judged(problem, method(replace(problem, gain=seen)))

    def fixed(self, problem: Problem) -> Allocation:
        """One message for all, `reference_length` tokens, of `reference_bits` where digital."""
        return fixed_length(problem, self.reference(problem.link))

    def random(self, problem: Problem) -> Allocation:
        """Another split for each drop, and the same whenever the drop comes again."""
        drop = zlib.crc32(problem.gain.tobytes())
        return random_split(problem, np.random.default_rng((self.config.seed, drop)))

    def reference(self, link: Link) -> int:
        """The option of the messages that are not chosen."""
        c = self.config
        bits = c.reference_bits if isinstance(link, Digital) else 0
        return int(((link.lengths == c.reference_length) & (link.bits == bits)).argmax())

    @cached_property
    def special(self) -> dict[str, int]:
        """Special tokens of each modality, sent besides its patch tokens."""
        return special_tokens(self.models)

    @cached_property
    def cell(self) -> Cell:
        shared = vars(self.config).keys() & Cell.__dataclass_fields__.keys()
        return Cell(**{name: getattr(self.config, name) for name in shared})

    def link(self, name: str, **changes) -> Analog | Digital:
        """The link `analog` or `digital` with losses read from its surface."""
        c, surface = self.config, self.surfaces[name]
        options = {k: getattr(c, k) for k in ("coherence", "pilots", "outage", "gap_db")}
        options |= {"fading": Fades(self.cell, c.seed), **changes}
        special = np.array([self.special[k] for k in KINDS])
        if name == "analog":
            lengths = np.array([0, *c.lengths])
            measured = np.r_[surface.levels[1] - BELOW_DB, surface.levels[1:]]
            surface = replace(surface, levels=measured)
            sent = [surface.table(k, lengths[1:], FINE) for k in KINDS]
            silent = [np.full((1, len(FINE)), surface.excess[k][0, 0]) for k in KINDS]
            excess = np.concatenate([silent, sent], axis=1)
            return Analog(lengths, 0 * lengths, self.hidden, special, excess, **options)
        bits = surface.levels[1:]
        sent = [surface.table(k, np.array(c.lengths), bits).ravel() for k in KINDS]
        silent = [surface.excess[k][0, 0] for k in KINDS]
        excess = np.array([np.r_[of, rest] for of, rest in zip(silent, sent, strict=True)])
        lengths = np.r_[0, np.repeat(c.lengths, len(bits))]
        of_bits = np.r_[0, np.tile(bits, len(c.lengths))]
        return Digital(lengths, of_bits, self.hidden, special, excess, **options)

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

    def drop(self, seed: int, link: str | Link, users: int | None = None, **changes) -> Problem:
        """Users dropped into the cell, with the study's budgets unless `changes` says otherwise.
        Where `coherence` has no end, each one's fade is known and part of its gain."""
        c = self.config
        users = c.users if users is None else users
        source = np.random.default_rng((c.seed, seed))
        link = self.link(link) if isinstance(link, str) else link
        gain = self.cell.mean_gains(self.cell.distances(users, source), source)
        fade = self.cell.fading_power(users, source)
        scenes = -(-users // len(KINDS))
        per_token, fixed = self.foundation_flops()
        values = dict(
            link=link,
            kind=np.resize(np.arange(len(KINDS)), users),
            gain=gain * fade if np.isinf(link.coherence) else gain,
            noise_density=self.cell.noise_density,
            bandwidth=c.bandwidth,
            user_power=from_dbm(c.user_power_dbm),
            power=float(from_dbm(c.power_dbm)),
            floor=self.surfaces["digital" if isinstance(link, Digital) else "analog"].floor,
            importance=1 / scenes,
            fair=c.fair,
            encode=compute_seconds(self.encode_flops(users), c.device_flops),
            foundation=compute_seconds(per_token, c.server_flops),
            foundation_fixed=scenes * compute_seconds(fixed, c.server_flops),
            weight=c.weight,
            deadline=c.deadline,
            energy_weight=c.energy_weight,
            energy=c.energy,
        )
        return Problem(**{**values, **changes})


def check(config: Any, models: Any) -> None:
    """ValueError, in one line and before anything is trained, for what no study can use."""
    check_fields(config)
    for count in (config.users, *config.user_counts):
        if count < 2 or count % 2:
            raise ValueError(f"{count} users: must be even, 2 for a scene, and not 0")
    for name in ("pilots", "gain_error_db", "joules_per_flop"):
        if getattr(config, name) < 0:
            raise ValueError(f"--{name} {getattr(config, name)}: must be 0 or more")
    numbers = ("drops", "instances", "few", "passes", "reference_bits", "link_length")
    for name in (*numbers, "device_flops", "server_flops", "coherence", "gap_db"):
        if not getattr(config, name) > 0:
            raise ValueError(f"--{name} {getattr(config, name)}: must be above 0")
    for name, within in (("reference_length", "lengths"), ("reference_bits", "bits_levels")):
        if getattr(config, name) not in getattr(config, within):
            raise ValueError(f"--{name} {getattr(config, name)}: must be among --{within}")
    for name in ("lengths", "surface_lengths", "snr_levels", "bits_levels", "deadlines"):
        values = getattr(config, name)
        if not values or sorted(set(values)) != list(values):
            raise ValueError(f"--{name} {values}: must ascend, and not be empty")
    if config.snr_levels[0] - BELOW_DB < FINE[0]:
        raise ValueError(f"--snr_levels {config.snr_levels[0]:g}: must be above -48 dB")
    for bits in config.bits_levels:
        if bits not in (*STEPS, *GROUPS):
            known = ", ".join(f"{b:g}" for b in sorted((*STEPS, *GROUPS)))
            raise ValueError(f"--bits_levels {bits:g}: choose from {known}")
    if config.channel in (QUANTISED, "none", "rayleigh", "rician"):
        raise ValueError(
            f"--channel {config.channel}: name one of noise alone; fades are the cell's (--fading)"
        )
    if not 0 < config.outage < 1:
        raise ValueError(f"--outage {config.outage}: must lie within 0 and 1")
    if not config.seeds:
        raise ValueError("--seeds: name one at least, of which a model is trained")
    if config.cache == "none":
        raise ValueError("--cache none: the study reads cached tokens; name a folder")
    check_writable(Path(config.out), "--out")
    if config.figures != "none":
        check_writable(Path(config.figures), "--figures")
    study = Study(config, models, hidden=2, surfaces=dict.fromkeys(LINKS, FLAT))
    for weight in (config.weight, *config.weights):
        study.drop(0, "analog", weight=weight)  # which checks cell, budgets and lengths


FLAT = LossSurface(  # of a model that is not trained yet
    np.array([1]), np.array([LOST_DB, 1.0]), 0.0, dict.fromkeys(KINDS, np.zeros((1, 2)))
)


def spent(study: Study, problem: Problem, found: Allocation) -> dict[str, float]:
    """Where the time goes until the slowest user is heard (s), what users spend (J), what is
    expected (nats), and the share of users of whom nothing arrives."""
    ends = np.where(found.option > 0, problem.encode + found.seconds, 0)
    slowest, sends = int(ends.argmax()), found.option > 0
    tokens = problem.link.lengths[found.option]
    reading = problem.foundation_fixed + problem.foundation * tokens.sum()
    computed = study.encode_flops(problem.users) * study.config.joules_per_flop
    lost = problem.importance * found.loss
    coded = isinstance(problem.link, Digital) and np.isfinite(problem.link.coherence)
    outage = np.where(sends, problem.link.outage if coded else 0, 1)
    return {
        "encode_s": float(problem.encode[slowest] if sends.any() else 0),
        "uplink_s": float(found.seconds[slowest]),
        "foundation_s": float(reading),
        "latency_s": float(found.latency + reading),
        "sending_j_per_user": float(found.energy.mean()),
        "most_sending_j": float(found.energy.max()),  # of a user
        "energy_j_per_user": float((found.energy + np.where(sends, computed, 0)).mean()),
        "tokens_per_user": float(tokens.mean()),
        "loss": float(problem.floor + lost.sum()),
        "worst_loss": float(found.loss.max()),
        "outage": float(outage.mean()),
        "objective": found.objective,
        "changeable": found.objective - problem.fixed,
    }


def arrives(
    problem: Problem, found: Allocation, times: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """What a model has to answer from: patch tokens and levels (SNR in dB, or bits an entry) of
    each scene's two users, (times * scenes, 2) each. A silent user's level is that at which nothing
    arrives. Where fades are not known, each time has fades, or outages, of its own."""
    truth = found.power * problem.gain / problem.noise_density
    sent = (problem.kind, found.option, found.bandwidth, found.seconds, truth)
    lengths = np.tile(np.maximum(problem.link.lengths[found.option], 1), times)
    levels = np.tile(problem.link.level(*sent).astype(float), times)
    levels = problem.link.faded(levels, np.random.default_rng((seed, 8)))
    return lengths.reshape(-1, len(KINDS)), levels.reshape(-1, len(KINDS))


def judged(problem: Problem, found: Allocation) -> Allocation:
    """An allocation that was made for other gains, as it turns out with the problem's own."""
    sends = found.option > 0
    hertz = np.where(sends, found.bandwidth, 1.0)
    truth = found.power * problem.gain / problem.noise_density
    loss = problem.link.loss(problem.kind, found.option, hertz, truth, found.seconds, truth)
    tokens = problem.link.lengths[found.option].sum()
    objective = problem.objective(found.latency, tokens, loss, found.energy.sum())
    return replace(found, loss=loss, objective=objective, bound=-np.inf)
