"""The mini world, part 5: what each of an encoder's tokens has to say.

Published encoders' patches say what is here and now, and where here is; their class tokens name
what the clip as a whole shows. The mini encoders learn the same: every token is taught a row of
facts, each a number from 0 to 1 beside a word. Content and place are separate facts, so that an
average over many patches keeps what is there and loses which of it is where and when.
"""

import numpy as np

from utils.mini.scenes import (
    AMBIENCES,
    BANNERS,
    DURATION,
    INSTRUMENTS,
    PITCHES,
    PLACES,
    POSITIONS,
    TEMPOS,
    Scene,
)
from utils.mini.sprites import HEIGHT, WIDTH, looks
from utils.mini.text import PITCH_WORDS

TUBELETS, ROWS, COLUMNS = 8, 4, 4  # the grid of the mini ViViT
SLICES, BANDS = 29, 5  # the grid of the mini AST: time by frequency
SLICE, STEP = 0.16, 0.1  # s, what a patch of the spectrogram spans, and where the next one begins
TIMES = ("early", "midway", "late")

# The words that stand for the facts, in the order of the facts.
NAMES = tuple(name.replace("_", " ") for name in INSTRUMENTS)
SEEN = (*NAMES, "plays", "silent", *PLACES, *BANNERS, *POSITIONS, *TIMES)
HEARD = (*NAMES, *AMBIENCES, *TEMPOS, *(PITCH_WORDS[p] for p in PITCHES), *TIMES)


def blend(at: np.ndarray, count: int) -> np.ndarray:
    """Places from 0 to 1 as shares of `count` evenly spaced words, (places, count); each place lies
    between two of them."""
    x = np.clip(at * count - 0.5, 0, count - 1)[:, None]
    return np.clip(1 - np.abs(x - np.arange(count)), 0, 1)


def one_hot(word: str, words) -> np.ndarray:
    return np.array([float(w == word) for w in words])


def seen_by_patch(scene: Scene) -> np.ndarray:
    """(tubelets, rows, columns, facts): the instrument that covers a patch and whether it plays,
    place and banner where nobody stands, and the patch's own place and time."""
    n = len(NAMES)
    facts = np.zeros((TUBELETS, ROWS, COLUMNS, len(SEEN)))
    times = np.arange(TUBELETS + 1) * DURATION / TUBELETS
    free = np.ones((TUBELETS, ROWS, COLUMNS))
    for p, look in zip(scene.on_stage, looks(scene), strict=True):
        across = _overlap(look["x"] - look["scale"], look["x"] + look["scale"], WIDTH, COLUMNS)
        down = _overlap(look["y"] - look["scale"], HEIGHT, HEIGHT, ROWS)
        covered = down[:, None] * across  # (rows, columns)
        playing = np.array([p.share(a, b) for a, b in zip(times, times[1:], strict=False)])
        facts[..., INSTRUMENTS.index(p.instrument)] += covered
        facts[..., n] += playing[:, None, None] * covered
        facts[..., n + 1] += (1 - playing)[:, None, None] * covered
        free -= covered
    free = free.clip(0, 1)[..., None]
    facts[..., n + 2 : n + 7] = 0.5 * free * one_hot(scene.place, PLACES)
    facts[:, 0, :, n + 7 : n + 13] = 0.5 * one_hot(scene.banner, BANNERS)
    facts[..., n + 13 : n + 16] = 0.5 * blend((np.arange(COLUMNS) + 0.5) / COLUMNS, 3)
    when = (times[:-1] + times[1:]) / 2 / DURATION
    facts[..., n + 16 :] = 0.5 * blend(when, 3)[:, None, None]
    return facts


def _overlap(begin: float, end: float, size: int, parts: int) -> np.ndarray:
    """The share of each of `parts` equal parts of 0 to `size` that lies between two places."""
    edges = np.arange(parts + 1) * size / parts
    inside = np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1])
    return np.clip(inside * parts / size, 0, 1)


def seen_at_all(scene: Scene) -> np.ndarray:
    """(facts,): the class token names the instruments on the stage, the place and the banner."""
    facts, n = np.zeros(len(SEEN)), len(NAMES)
    for p in scene.on_stage:
        facts[INSTRUMENTS.index(p.instrument)] = 0.5
    facts[n + 2 : n + 7] = 0.5 * one_hot(scene.place, PLACES)
    facts[n + 7 : n + 13] = 0.5 * one_hot(scene.banner, BANNERS)
    return facts


def heard_by_patch(scene: Scene) -> np.ndarray:
    """(slices of time, facts), the same in every band of frequency: each instrument by how loud it
    sounds now, what the clip's sound is like, and the time."""
    n = len(NAMES)
    facts = np.zeros((SLICES, len(HEARD)))
    begins = np.arange(SLICES) * STEP
    for p in scene.sounding:
        now = np.array([p.share(t, t + SLICE) for t in begins])
        facts[:, INSTRUMENTS.index(p.instrument)] = now * 10 ** (p.level / 20)
    facts[:, n:-3] = 0.3 * _manner(scene)
    facts[:, -3:] = 0.5 * blend((begins + SLICE / 2) / DURATION, 3)
    return facts


def heard_at_all(scene: Scene) -> np.ndarray:
    """(facts,): class and distillation token name the instruments that sound, and the manner."""
    facts, n = np.zeros(len(HEARD)), len(NAMES)
    for p in scene.sounding:
        facts[INSTRUMENTS.index(p.instrument)] = 0.5
    facts[n:-3] = 0.5 * _manner(scene)
    return facts


def _manner(scene: Scene) -> np.ndarray:
    return np.concatenate(
        [
            one_hot(scene.ambience, AMBIENCES),
            one_hot(scene.tempo, TEMPOS),
            one_hot(scene.pitch, PITCHES),
        ]
    )
