"""Answers as a model might give them, without one: what arrives decides. Not a test itself."""

from dataclasses import dataclass

import numpy as np

from utils.network.answers import LOST, Asked

CLIPS, EACH = 60, 4  # questions of each clip


def lost(length: np.ndarray, level: np.ndarray, link: str) -> np.ndarray:
    """The share of what a user's message could bring that is lost, 0 to 1, where `level` arrives of
    so many tokens; falls with both."""
    arrived = 1 - 2.0**-level if link == "digital" else 1 / (1 + 10 ** (-(level + 6) / 10))
    return np.where(level == LOST[link], 1.0, 1 - arrived * (1 - 0.6 * (length + 1.0) ** -0.7))


@dataclass
class FakeAnswers:
    """Stands where `Answers` stands. The loss is 0.3 nats and what is lost of 0.6 of a camera and
    0.4 of a microphone; the more is lost, the fewer answers are right."""

    link: str
    seed: int = 0

    @property
    def clip(self) -> np.ndarray:
        return np.repeat(np.arange(CLIPS), EACH)

    def __call__(self, lengths, levels, seed: int = 0) -> Asked:
        scene = self.clip % len(lengths)
        parts = lost(np.asarray(lengths, float), np.asarray(levels, float), self.link)
        nats = (parts * (0.6, 0.4)).sum(axis=1)[scene]
        drawn = np.random.default_rng((self.seed, 5)).random(CLIPS * EACH)
        return Asked(drawn < 0.9 - 0.5 * nats, 0.3 + nats, np.ones(CLIPS * EACH))

    def from_captions(self, captions) -> tuple[Asked, float]:
        """Right where the best message would be, in 300 bits."""
        return self(np.full((1, 2), 32), np.full((1, 2), 8.0)), 300.0


def fake_ask(seeds: int) -> list[dict]:
    """By seed, link and split."""
    return [
        {k: dict.fromkeys(("val", "test"), FakeAnswers(k, seed)) for k in ("analog", "digital")}
        for seed in range(seeds)
    ]
