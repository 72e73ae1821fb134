"""The mini world, part 1: what happens in a clip, drawn from a seed.

A scene is one to three performers on a stage. Sounds, pictures, captions and questions are all
made from the same scene, so that the annotations are true by construction.
"""

from dataclasses import dataclass

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
AMBIENCES = ("birdsong", "wind", "rain", "chirping", "silence")
TEMPOS = {"slow": 2.2, "steady": 3.5, "fast": 5.6}  # notes a second
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


# Entries are 0.75 s apart, two of the eight tubelets into which ViViT divides a clip.
ENTRIES = (0.0, 0.75, 1.5)  # s
REST = 0.56  # s, how long a performer that takes a rest pauses
LEVELS = (0.0, -5.0, -10.0)  # dB


@dataclass(frozen=True)
class Performer:
    """One instrument: where it stands and, if it sounds, when and how loud."""

    instrument: str
    position: str  # left, middle, right, or "off" for a sound from off the stage
    plays: tuple[tuple[float, float], ...] = ()  # s, from when to when; a rest lies between two
    level: float = 0.0  # dB below the loudest performer (0 or negative)

    @property
    def sounding(self) -> bool:
        return bool(self.plays)

    @property
    def start(self) -> float:
        """s, when its first note begins."""
        return self.plays[0][0]

    @property
    def rests(self) -> bool:
        return len(self.plays) > 1

    def share(self, begin: float, end: float) -> float:
        """The share of the time from `begin` to `end`, in s, in which it plays."""
        overlaps = (max(0.0, min(end, b) - max(begin, a)) for a, b in self.plays)
        return sum(overlaps) / (end - begin)


@dataclass(frozen=True)
class Scene:
    """A clip before it is rendered. `on_stage` is ordered from left to right."""

    seed: tuple[int, ...]
    on_stage: tuple[Performer, ...]
    off_stage: Performer | None
    place: str
    banner: str  # colour of the banner above the stage
    ambience: str  # what is heard around the music
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
    instruments = [str(name) for name in rng.permutation(INSTRUMENTS)[: count + 1]]
    positions = [POSITIONS[i] for i in sorted(rng.permutation(3)[:count])]
    silent = rng.integers(count) if count > 1 and rng.random() < 0.4 else None
    heard = count - (silent is not None)
    off = heard < 3 and rng.random() < 0.35
    # A sound from off the stage is neither the first nor the loudest: questions about those
    # point at somebody on the stage.
    parts = [_plays(rng, entry) for entry in ENTRIES[: heard + off]]
    levels = [level - rng.uniform(0, 1) for level in LEVELS[: heard + off]]
    off_part, off_level = parts[-1], levels[-1]
    parts = [parts[i] for i in rng.permutation(heard)]
    levels = [levels[i] for i in rng.permutation(heard)]
    on_stage = []
    for i, (instrument, position) in enumerate(zip(instruments, positions, strict=False)):
        part = () if i == silent else parts.pop()
        on_stage.append(Performer(instrument, position, part, levels.pop() if part else 0.0))
    return Scene(
        seed=seed,
        on_stage=tuple(on_stage),
        off_stage=Performer(instruments[count], "off", off_part, off_level) if off else None,
        place=str(rng.choice(PLACES)),
        banner=str(rng.choice(BANNERS)),
        ambience=str(rng.choice(AMBIENCES)),
        tempo=str(rng.choice(list(TEMPOS))),
        pitch=str(rng.choice(list(PITCHES))),
    )


def _plays(rng: np.random.Generator, entry: float) -> tuple[tuple[float, float], ...]:
    """When a performer that enters at about `entry` plays: to the end, or with a rest between."""
    start = float(entry + rng.uniform(0.02, 0.12))
    if rng.random() < 0.6:
        return ((start, DURATION),)
    rest = float(rng.uniform(start + 0.3, DURATION - REST - 0.4))
    return ((start, rest), (rest + REST, DURATION))


def note_onsets(scene: Scene, performer: Performer) -> np.ndarray:
    """When a performer's notes begin, in s; the sound and the sprite both read it."""
    who = (*scene.on_stage, scene.off_stage).index(performer)
    rng = np.random.default_rng((*scene.seed, 10 + who))
    rate = TEMPOS[scene.tempo] * rng.uniform(0.9, 1.1)
    runs = []
    for begin, end in performer.plays:
        onsets = np.arange(begin, end - 0.12, 1 / rate)
        runs.append(onsets + np.r_[0.0, rng.normal(0, 0.015, len(onsets) - 1)])
    return np.concatenate(runs)
