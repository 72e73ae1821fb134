"""The mini world, part 1: what happens in a clip, drawn from a seed.

A scene is one to three performers on a stage. Sounds, pictures, captions and questions are all
made from the same scene, so that the annotations are true by construction.
"""

from dataclasses import dataclass, replace

import numpy as np

DURATION = 3.0  # seconds a clip
INSTRUMENTS = (
    "acoustic_guitar",
    "banjo",
    "violin",
    "cello",
    "clarinet",
    "trumpet",
    "drum",
    "bell",
)
POSITIONS = ("left", "middle", "right")
PLACES = ("hall", "park", "beach", "street", "cave")
BANNERS = ("red", "yellow", "green", "blue", "white", "black")
TEMPOS = {"slow": 1.6, "steady": 3.0, "fast": 5.6}  # notes a second
PITCHES = {"low": -7, "medium": 0, "high": 7}  # semitones from the instrument's own register

# Pairs of instruments that share a clip in the test split alone: training and validation never
# show them together, so a model that answers about them has not memorised whole scenes.
UNSEEN_PAIRS = (
    {"violin", "drum"},
    {"acoustic_guitar", "trumpet"},
    {"cello", "bell"},
    {"banjo", "clarinet"},
)
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Performer:
    """One instrument: where it stands and, if it sounds, when and how loud."""

    instrument: str
    position: str  # left, middle, right, or "off" for a sound from off the stage
    sounding: bool
    start: float = 0.0  # s, when its first note begins
    level: float = 0.0  # dB below the loudest performer (0 or negative)


@dataclass(frozen=True)
class Scene:
    """A clip before it is rendered. `on_stage` is ordered from left to right."""

    seed: tuple[int, ...]
    on_stage: tuple[Performer, ...]
    off_stage: Performer | None
    place: str
    banner: str  # colour of the banner above the stage
    tempo: str
    pitch: str

    @property
    def sounding(self) -> list[Performer]:
        """Every performer that is heard, the one off the stage included, first to start first."""
        heard = [p for p in (*self.on_stage, self.off_stage) if p is not None and p.sounding]
        return sorted(heard, key=lambda p: p.start)


def draw_scene(world_seed: int, split: str, index: int) -> Scene:
    """Draw clip `index` of a split; the same arguments always give the same scene."""
    seed = (world_seed, SPLITS.index(split), index)
    rng = np.random.default_rng(seed)
    while True:
        scene = _draw(rng, seed)
        if split == "test" or not has_unseen_pair(scene):
            return scene


def has_unseen_pair(scene: Scene) -> bool:
    """Whether two instruments of the scene never share a clip in training."""
    shown = {p.instrument for p in (*scene.on_stage, scene.off_stage) if p is not None}
    return any(pair <= shown for pair in UNSEEN_PAIRS)


def _draw(rng: np.random.Generator, seed: tuple[int, ...]) -> Scene:
    count = rng.choice([1, 2, 3], p=[0.2, 0.4, 0.4])
    instruments = list(rng.permutation(INSTRUMENTS)[: count + 1])
    positions = sorted(rng.permutation(3)[:count])
    silent = rng.integers(count) if count > 1 and rng.random() < 0.4 else None
    heard = count - (silent is not None)
    off = heard < 3 and rng.random() < 0.35
    # A sound from off the stage is neither the first nor the loudest: questions about those
    # point at somebody on the stage.
    starts = np.array([0.0, 0.7, 1.4])[: heard + off] + rng.uniform(0.02, 0.15, heard + off)
    levels = np.array([0.0, -5.0, -10.0])[: heard + off] - rng.uniform(0, 1, heard + off)
    last = heard + off - 1
    off_start, off_level = starts[last], levels[last]
    starts, levels = rng.permutation(starts[:heard]), rng.permutation(levels[:heard])
    on_stage, k = [], 0
    for i in range(count):
        sounding = bool(i != silent)
        performer = Performer(str(instruments[i]), POSITIONS[positions[i]], sounding)
        if sounding:
            performer = replace(performer, start=float(starts[k]), level=float(levels[k]))
            k += 1
        on_stage.append(performer)
    off_stage = (
        Performer(str(instruments[count]), "off", True, float(off_start), float(off_level))
        if off
        else None
    )
    return Scene(
        seed=seed,
        on_stage=tuple(on_stage),
        off_stage=off_stage,
        place=str(rng.choice(PLACES)),
        banner=str(np.random.default_rng((*seed, 60)).choice(BANNERS)),
        tempo=str(rng.choice(list(TEMPOS))),
        pitch=str(rng.choice(list(PITCHES))),
    )


def note_onsets(scene: Scene, performer: Performer) -> np.ndarray:
    """When a performer's notes begin, in s; the sound and the sprite both read it."""
    who = (*scene.on_stage, scene.off_stage).index(performer)
    rng = np.random.default_rng((*scene.seed, 10 + who))
    rate = TEMPOS[scene.tempo] * rng.uniform(0.9, 1.1)
    onsets = np.arange(performer.start, DURATION - 0.12, 1 / rate)
    return onsets + np.r_[0.0, rng.normal(0, 0.015, len(onsets) - 1)]
