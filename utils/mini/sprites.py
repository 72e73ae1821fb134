"""The mini world, part 3: performers one can tell apart by eye, drawn with Pillow.

A sprite is a handful of polygons in its own coordinates (x right, y down, about -1 to 1). It
swings at each of its notes and stands still while it is silent; its player stands up to play and
sits down for a rest, so that one frame tells who plays.
"""

import numpy as np
from PIL import Image, ImageDraw

from utils.mini.scenes import DURATION, POSITIONS, Performer, Scene, note_onsets

WIDTH, HEIGHT, FPS = 128, 96, 12
RISE = 0.55  # of a sprite's scale, how far a player stands up

BACKGROUNDS = {  # place: (sky or wall, floor), RGB
    "hall": ((150, 60, 60), (110, 80, 60)),
    "park": ((140, 190, 235), (90, 150, 70)),
    "beach": ((120, 200, 230), (225, 205, 150)),
    "street": ((165, 165, 175), (95, 95, 100)),
    "cave": ((50, 45, 70), (75, 65, 60)),
}
BANNER_COLOURS = {
    "red": (215, 40, 40),
    "yellow": (245, 215, 60),
    "green": (40, 160, 70),
    "blue": (45, 80, 205),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SKINS = ((240, 205, 170), (200, 150, 110), (130, 90, 65))
WOODS = ((180, 110, 50), (150, 80, 40), (205, 150, 80))
METALS = ((230, 195, 60), (205, 205, 215), (215, 160, 70))
DARKS = ((30, 30, 35), (60, 35, 30), (40, 50, 70))
SKINS_OF_DRUM = ((225, 60, 60), (60, 110, 200), (240, 240, 235))


def _ellipse(cx, cy, rx, ry):
    a = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], axis=1)


def _box(x0, y0, x1, y1):
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=float)


# Each instrument: its palette and its polygons as (points, colour or None for the palette's).
WHITE, BLACK, GREY = (245, 245, 240), (20, 20, 20), (120, 120, 125)
SHAPES = {
    "acoustic_guitar": (
        WOODS,
        [
            (_box(0.1, -0.1, 1.25, 0.1), DARKS[1]),
            (_ellipse(-0.55, 0, 0.5, 0.55), None),
            (_ellipse(0.05, 0, 0.38, 0.4), None),
            (_ellipse(-0.2, 0, 0.17, 0.17), BLACK),
        ],
    ),
    "banjo": (
        METALS,
        [
            (_box(0, -0.08, 1.3, 0.08), DARKS[1]),
            (_ellipse(-0.4, 0, 0.6, 0.6), None),
            (_ellipse(-0.4, 0, 0.47, 0.47), WHITE),
        ],
    ),
    "violin": (
        WOODS,
        [
            (_ellipse(-0.3, -0.1, 0.32, 0.26), None),
            (_ellipse(0.12, -0.1, 0.26, 0.22), None),
            (_box(0.3, -0.16, 0.95, -0.04), BLACK),
            (_box(-0.1, -0.95, 0.02, 0.75), WHITE),
        ],
    ),
    "cello": (
        WOODS,
        [
            (_box(-0.07, -1.4, 0.07, 0), DARKS[1]),
            (_ellipse(0, 0.55, 0.6, 0.5), None),
            (_ellipse(0, -0.1, 0.45, 0.4), None),
            (_box(-1.0, 0.1, 1.0, 0.2), WHITE),
        ],
    ),
    "clarinet": (
        DARKS,
        [
            (_box(-0.12, -0.9, 0.12, 0.9), None),
            (np.array([(-0.12, 0.8), (0.12, 0.8), (0.34, 1.2), (-0.34, 1.2)]), None),
            (_box(-0.12, -0.35, 0.12, -0.25), GREY),
            (_box(-0.12, 0.25, 0.12, 0.35), GREY),
        ],
    ),
    "trumpet": (
        METALS,
        [
            (_box(-1.0, -0.1, 0.5, 0.1), None),
            (np.array([(0.4, -0.1), (1.15, -0.55), (1.15, 0.55), (0.4, 0.1)]), None),
            (_box(-0.5, 0.1, 0.1, 0.4), None),
        ],
    ),
    "drum": (
        SKINS_OF_DRUM,
        [
            (_box(-0.85, 0.0, 0.85, 0.9), None),
            (_ellipse(0, 0.0, 0.85, 0.3), WHITE),
            (_box(-0.55, -0.75, -0.43, 0.0), WOODS[2]),
            (_box(0.43, -0.75, 0.55, 0.0), WOODS[2]),
        ],
    ),
    "bell": (
        METALS,
        [
            (_box(-0.95, -0.75, 0.95, -0.6), DARKS[1]),
            (np.array([(-0.75, -0.6), (-0.45, -0.6), (-0.2, 0.2), (-1.0, 0.2)]), None),
            (np.array([(0.45, -0.6), (0.75, -0.6), (1.0, 0.2), (0.2, 0.2)]), None),
            (_ellipse(-0.6, 0.3, 0.13, 0.13), BLACK),
            (_ellipse(0.6, 0.3, 0.13, 0.13), BLACK),
        ],
    ),
}


def _look(scene: Scene, performer: Performer) -> dict:
    """What stays the same over a performer's frames: colours, size, place, notes."""
    slot = POSITIONS.index(performer.position)
    rng = np.random.default_rng((*scene.seed, 40 + slot))
    palette, polygons = SHAPES[performer.instrument]
    tint = np.array(palette[rng.integers(len(palette))]) + rng.integers(-20, 21, 3)
    return {
        "x": WIDTH * (2 * slot + 1) / 6 + rng.uniform(-3, 3),
        "y": HEIGHT * 0.66 + rng.uniform(-4, 4),
        "scale": rng.uniform(15.5, 19.5),
        "tilt": rng.uniform(-0.12, 0.12),
        "swing": rng.uniform(0.3, 0.45),
        "polygons": polygons,
        "colour": tuple(int(c) for c in tint.clip(0, 255)),
        "costume": tuple(int(c) for c in rng.integers(30, 226, 3)),
        "skin": SKINS[rng.integers(len(SKINS))],
        "plays": performer.plays,
        "onsets": note_onsets(scene, performer) if performer.sounding else np.empty(0),
    }


def looks(scene: Scene) -> list[dict]:
    """What stays the same over the frames of each performer on the stage."""
    return [_look(scene, p) for p in scene.on_stage]


def _swing(onsets: np.ndarray, t: float) -> float:
    """-1 to 1: full deflection at each note, to the other side at the next, and back to rest."""
    played = onsets[onsets <= t]
    if not len(played):
        return 0.0
    return float(np.exp(-(t - played[-1]) / 0.35) * (1 if len(played) % 2 else -1))


def render_frames(scene: Scene) -> np.ndarray:
    """The clip's picture, uint8 (frames, height, width, 3)."""
    rng = np.random.default_rng((*scene.seed, 31))
    wall, floor = (
        tuple(int(c) for c in (np.array(c) + rng.integers(-18, 19, 3)).clip(0, 255))
        for c in BACKGROUNDS[scene.place]
    )
    horizon = HEIGHT * rng.uniform(0.55, 0.75)
    stage = Image.new("RGB", (WIDTH, HEIGHT), wall)
    backdrop = ImageDraw.Draw(stage)
    backdrop.rectangle((0, horizon, WIDTH, HEIGHT), fill=floor)
    top, left = rng.uniform(3, 7), rng.uniform(8, 30)
    right = WIDTH - rng.uniform(8, 30)
    backdrop.rectangle((left, top, right, top + 10), fill=BANNER_COLOURS[scene.banner])
    drawn = looks(scene)
    frames = []
    for t in np.arange(int(DURATION * FPS)) / FPS:
        frame = stage.copy()
        draw = ImageDraw.Draw(frame)
        for look in drawn:
            playing = any(a <= t < b for a, b in look["plays"])
            _draw_performer(draw, look, _swing(look["onsets"], t) if playing else 0.0, playing)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def _draw_performer(draw: ImageDraw.ImageDraw, look: dict, swing: float, playing: bool) -> None:
    x, s = look["x"], look["scale"]
    y = look["y"] - RISE * s * playing
    torso = np.array([(-0.45, -0.5), (0.45, -0.5), (0.65, 1.6), (-0.65, 1.6)]) * s + (x, y)
    draw.polygon([tuple(p) for p in torso], fill=look["costume"])
    r = 0.42 * s
    draw.ellipse((x - r, y - 1.35 * s, x + r, y - 1.35 * s + 2 * r), fill=look["skin"])
    angle = look["tilt"] + look["swing"] * swing
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    for points, colour in look["polygons"]:
        placed = points @ turn * s * 0.95 + (x, y + 0.35 * s)
        draw.polygon([tuple(p) for p in placed], fill=colour or look["colour"])
