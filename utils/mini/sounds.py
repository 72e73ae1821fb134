"""The mini world, part 2: instruments one can tell apart by ear, synthesised in numpy.

Plucked strings are Karplus-Strong loops, bowed strings, reeds and brass are harmonic series with
their own envelopes and formants, drum and bell are sums of decaying inharmonic modes.
"""

from collections.abc import Callable

import numpy as np
from scipy.signal import lfilter

from utils.mini.scenes import (
    AMBIENCES,
    DURATION,
    INSTRUMENTS,
    PITCHES,
    Performer,
    Scene,
    note_onsets,
)

SAMPLE_RATE = 16_000  # Hz
SCALE = (0, 2, 4, 7, 9)  # pentatonic degrees, semitones


def _plucked(rng, hz, seconds, damping, brightness, body):
    """Karplus-Strong (1983): a noise burst circulating in a low-passed delay line."""
    n, period = int(seconds * SAMPLE_RATE), int(SAMPLE_RATE / hz)
    burst = np.zeros(n)
    burst[:period] = rng.uniform(-1, 1, min(period, n))
    burst = lfilter([brightness], [1, brightness - 1], burst)
    loop = np.zeros(period + 2)
    loop[0], loop[period], loop[period + 1] = 1, -damping / 2, -damping / 2
    string = lfilter([1.0], loop, burst)
    return string + body * lfilter([1.0], [1, -1.96, 0.972], string) * 0.05


def _sines(phase, hz, most):
    """sin(2 pi k phase) for k = 1, 2, ... up to `most`, below the Nyquist frequency for the pitch
    `hz`; `phase` is in cycles. Each comes from the two before it, which saves most of the time."""
    before, now = np.zeros_like(phase), np.sin(2 * np.pi * phase)
    twice_cosine = 2 * np.cos(2 * np.pi * phase)
    for k in range(1, most + 1):
        if k * hz >= 0.45 * SAMPLE_RATE:
            return
        yield now
        before, now = now, twice_cosine * now - before


def _harmonics(hz, t, weights, phase):
    """Sum of the harmonics of `hz`; `phase` is in cycles."""
    out = np.zeros_like(t)
    for weight, sine in zip(weights, _sines(phase, hz, len(weights)), strict=False):
        out += weight * sine
    return out


def _envelope(t, attack, release):
    """Rise over `attack` s, hold, fall over the last `release` s."""
    return np.clip(t / attack, 0, 1) * np.clip((t[-1] - t) / release, 0, 1)


def _vibrato(rng, hz, t, depth):
    rate = rng.uniform(5, 6.5)
    return hz * t + depth * hz / (2 * np.pi * rate) * (1 - np.cos(2 * np.pi * rate * t))


def _bowed(rng, hz, seconds, formants, depth):
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    k = np.arange(1, 25)
    gain = sum(np.exp(-(((k * hz - f) / (0.35 * f)) ** 2)) for f in formants) + 0.15
    tone = _harmonics(hz, t, gain / k, _vibrato(rng, hz, t, depth))
    bow_noise = lfilter([0.3], [1, -0.7], rng.normal(0, 0.05, len(t)))
    return (tone + bow_noise) * _envelope(t, 0.09, 0.06)


def _reed(rng, hz, seconds):
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    k = np.arange(1, 20)
    # A cylinder closed at one end sounds its odd harmonics.
    weights = np.where(k % 2 == 1, 1.0, 0.06) / k**1.15
    return _harmonics(hz, t, weights, hz * t) * _envelope(t, 0.035, 0.05)


def _brass(rng, hz, seconds):
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    swell = _envelope(t, 0.05, 0.07)
    out = np.zeros_like(t)
    # Upper harmonics come in as the tone grows louder: the mark of brass (Risset, 1966). The k-th
    # grows with the swell to the power of 1 + 0.4 k.
    rise = swell**0.4
    loudness = swell * rise
    for k, sine in enumerate(_sines(hz * t, hz, 24), start=1):
        out += loudness / k**0.5 * sine
        loudness = loudness * rise
    return out


def _struck(rng, hz, seconds, ratios, decays, noise):
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    out = noise * rng.normal(0, 1, len(t)) * np.exp(-t / 0.03)
    for k, (ratio, decay) in enumerate(zip(ratios, decays, strict=True)):
        if ratio * hz < 0.45 * SAMPLE_RATE:
            out += np.exp(-t / decay) / (1 + 0.5 * k) * np.sin(2 * np.pi * ratio * hz * t)
    return out * np.clip(t / 0.002, 0, 1)


# name: (register in Hz, note length as a share of the gap between notes, synthesiser)
VOICES: dict[str, tuple[float, float, Callable]] = {
    "acoustic_guitar": (165, 1.6, lambda r, f, s: _plucked(r, f, s, 0.996, 0.5, 1.0)),
    "banjo": (330, 0.9, lambda r, f, s: _plucked(r, f, s, 0.97, 0.95, 0.0)),
    "violin": (440, 0.95, lambda r, f, s: _bowed(r, f, s, (500, 1100, 2800), 0.012)),
    "cello": (98, 0.95, lambda r, f, s: _bowed(r, f, s, (220, 450, 900), 0.008)),
    "clarinet": (220, 0.9, _reed),
    "trumpet": (294, 0.85, _brass),
    "drum": (
        90,
        1.0,
        lambda r, f, s: _struck(r, f, s, (1, 1.59, 2.14, 2.65), (0.16, 0.1, 0.07, 0.05), noise=0.5),
    ),
    "bell": (
        784,
        2.5,
        lambda r, f, s: _struck(r, f, s, (1, 2.76, 5.4, 8.93), (0.6, 0.35, 0.2, 0.1), noise=0.05),
    ),
}
assert tuple(VOICES) == INSTRUMENTS


def performer_sound(scene: Scene, performer: Performer) -> np.ndarray:
    """One performer's part, float64 (samples,), root mean square 1 while it plays."""
    who = (*scene.on_stage, scene.off_stage).index(performer)
    rng = np.random.default_rng((*scene.seed, 20 + who))
    register, share, voice = VOICES[performer.instrument]
    root = register * 2 ** ((PITCHES[scene.pitch] + rng.uniform(-1, 1)) / 12)
    onsets = note_onsets(scene, performer)
    gaps = np.diff(np.r_[onsets, DURATION])
    out = np.zeros(int(DURATION * SAMPLE_RATE))
    for onset, gap in zip(onsets, gaps, strict=True):
        hz = root * 2 ** (rng.choice(SCALE) / 12)
        note = voice(rng, hz, np.clip(gap, 0.08, 0.5) * share) * rng.uniform(0.85, 1.1)
        begin = int(onset * SAMPLE_RATE)
        note = note[: len(out) - begin]
        out[begin : begin + len(note)] += note
    playing = _playing(performer)
    out *= playing  # a bell rings on, but not through a rest
    return out / (np.sqrt(np.mean(out[playing > 0] ** 2)) + 1e-9)


def _playing(performer: Performer, fade: float = 0.03) -> np.ndarray:
    """1 while a performer plays, (samples,); what rings on fades over `fade` s."""
    t = np.arange(int(DURATION * SAMPLE_RATE)) / SAMPLE_RATE
    return sum((t >= a) * np.clip((b + fade - t) / fade, 0, 1) for a, b in performer.plays)


def _birdsong(rng, t):
    """Short whistles that slide up or down."""
    out = np.zeros_like(t)
    for begin in np.arange(rng.uniform(0, 0.2), DURATION - 0.1, rng.uniform(0.25, 0.4)):
        part = slice(int(begin * SAMPLE_RATE), int((begin + 0.09) * SAMPLE_RATE))
        u = t[part] - t[part.start]
        hz = rng.uniform(5000, 6200) + rng.choice([-1, 1]) * 9000 * u
        out[part] += np.sin(2 * np.pi * hz * u) * np.sin(np.pi * u / u[-1])
    return out


def _wind(rng, t):
    """Low noise that swells."""
    noise = lfilter([0.02], [1, -0.98], rng.normal(0, 1, len(t)))
    return noise * (1 + 0.6 * np.sin(2 * np.pi * rng.uniform(0.3, 0.6) * t + rng.uniform(0, 6)))


def _rain(rng, t):
    """High noise."""
    return np.diff(rng.normal(0, 1, len(t) + 1))


def _chirping(rng, t):
    """Crickets: one high tone in quick pulses."""
    pulses = np.sin(2 * np.pi * rng.uniform(14, 20) * t) > 0
    return np.sin(2 * np.pi * rng.uniform(6600, 7200) * t) * pulses


AROUND: dict[str, Callable] = {
    "birdsong": _birdsong,
    "wind": _wind,
    "rain": _rain,
    "chirping": _chirping,
    "silence": lambda rng, t: np.zeros_like(t),
}
assert tuple(AROUND) == AMBIENCES


def render_sound(scene: Scene) -> np.ndarray:
    """The clip's sound track, float32 (samples,) at 16 kHz, peak below 1."""
    rng = np.random.default_rng((*scene.seed, 30))
    mix = sum(performer_sound(scene, p) * 10 ** (p.level / 20) for p in scene.sounding)
    t = np.arange(len(mix)) / SAMPLE_RATE
    around = AROUND[scene.ambience](rng, t)
    mix = mix + around * 10 ** (-20 / 20) / (np.sqrt(np.mean(around**2)) + 1e-9)
    mix = mix + rng.normal(0, 10 ** (rng.uniform(-50, -40) / 20), len(mix))  # the room
    return (mix * rng.uniform(0.4, 0.9) / np.abs(mix).max()).astype(np.float32)
