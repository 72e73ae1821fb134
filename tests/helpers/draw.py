"""Random numbers that repeat, shared by tests; not a test itself."""

from collections.abc import Callable

import torch
from hypothesis import settings
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    """A source of noise."""
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 100) -> Tensor:
    """Numbers that no noise of a small seed repeats."""
    return torch.randn(*shape, generator=seeded(seed))


def fuzz(examples: int) -> settings:
    """So many examples, the same in every run, which leave no database behind."""
    return settings(deadline=None, derandomize=True, database=None, max_examples=examples)


def blocked(draw: Callable[[], Tensor], rician_k: float) -> Tensor:
    """A channel of one's own: the path of a clip is 3 dB better than usual, or gone."""
    return 2**0.5 * (draw().real > 0)
