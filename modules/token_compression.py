"""Token compression: fewer tokens before the projection, without weights.

Both ways are linear in the tokens, so compressing before the (linear) projection gives what
compressing after it would, at a fraction of the cost.
Source: arXiv 2505.07841, sliding-window pooling.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def window_bounds(tokens: int, length: int) -> list[tuple[int, int]]:
    """The `length` windows [start, end) that together cover `tokens` tokens.

    Windows differ in size by one at most, and neighbours overlap by one token where the division
    leaves a remainder. A length of `tokens` or more gives one window a token.
    """
    length = min(length, tokens)
    return [(i * tokens // length, -(-(i + 1) * tokens // length)) for i in range(length)]


def sliding_window(patches: Tensor, length: int) -> Tensor:
    """Average-pool by windows that cover every token: (batch, tokens, width) to
    (batch, min(length, tokens), width)."""
    # The windows of adaptive pooling are those of `window_bounds`.
    length = min(length, patches.shape[1])
    return torch.nn.functional.adaptive_avg_pool1d(patches.transpose(1, 2), length).transpose(1, 2)


def uniform(patches: Tensor, length: int) -> Tensor:
    """Keep evenly spaced tokens, each the middle of its window; shapes as `sliding_window`."""
    middles = [(a + b - 1) // 2 for a, b in window_bounds(patches.shape[1], length)]
    return patches[:, middles]


def cells(places: np.ndarray, length: int) -> np.ndarray:
    """Divide an encoder's own grid into `length` boxes of patches, each as near to a cube as it can.

    The box at hand is cut across its longest side, the last one of equal sides, in proportion to
    the boxes that either part shall hold; so any length from 1 to the number of patches comes out
    exact, and powers of two give regular grids.

    Args:
        places: (patches, axes), whole numbers: where each patch lies, time first.
        length: boxes asked for, 1 to `patches`.

    Returns:
        (patches,), the number of each patch's box; boxes are numbered in the order of their centres,
        the first axis first.
    """
    boxes: list[np.ndarray] = []

    def divide(box: np.ndarray, count: int) -> None:
        if count == 1:
            boxes.append(box)
            return
        sides = [np.unique(axis) for axis in places[box].T]
        axis = max(range(len(sides)), key=lambda k: (len(sides[k]), k))
        side, first = sides[axis], count // 2
        at = min(max(1, round(len(side) * first / count)), len(side) - 1)
        below = places[box, axis] < side[at]
        low, high = box[below], box[~below]
        if len(low) < first or len(high) < count - first:
            first = round(count * len(low) / len(box))
        divide(low, first)
        divide(high, count - first)

    divide(np.arange(len(places)), length)
    boxes.sort(key=lambda box: tuple(places[box].mean(axis=0)))
    found = np.empty(len(places), dtype=int)
    for number, box in enumerate(boxes):
        found[box] = number
    return found


# (batch, tokens, width), length -> (batch, min(length, tokens), width), by the compression's name.
COMPRESSIONS = {"sliding_window": sliding_window, "uniform": uniform}


def compress(tokens: Tensor, length: int, special: int, how: str = "sliding_window") -> Tensor:
    """Compress the patch tokens; the first `special` (class, distillation) tokens pass through.

    Args:
        tokens: (batch, special + patches, width).
        length: patch tokens asked for, 1 or more; fewer patches than that are all kept.
        special: number of special tokens in front.
        how: a name in `COMPRESSIONS`.

    Returns:
        (batch, special + min(length, patches), width).

    Raises:
        ValueError: for a length below 1, an unknown way, or no patch tokens at all.
    """
    if how not in COMPRESSIONS:
        raise ValueError(f"compression {how!r}: unknown, choose from {', '.join(COMPRESSIONS)}")
    if length < 1:
        raise ValueError(f"token length {length}: must be 1 or more")
    if tokens.shape[1] <= special:
        raise ValueError(f"{tokens.shape[1]} tokens: none besides the {special} special ones")
    pooled = COMPRESSIONS[how](tokens[:, special:], length)
    return torch.cat([tokens[:, :special], pooled], dim=1)


def compress_each(
    tokens: Tensor, lengths: Sequence[int], special: int, how: str = "sliding_window"
) -> tuple[Tensor, Tensor]:
    """Compress the patch tokens of each clip to a length of its own.

    Args:
        tokens: (batch, special + patches, width).
        lengths: patch tokens of each clip, (batch,), no more than there are.
        special, how: as for `compress`.

    Returns:
        (batch, special + longest, width), padded with zeros on the right, and the mask of the
        real tokens (batch, special + longest).
    """
    lengths = np.asarray(lengths)
    sent = tokens.new_zeros(len(tokens), special + int(lengths.max()), tokens.shape[2])
    mask = torch.zeros(sent.shape[:2], dtype=torch.bool, device=tokens.device)
    for length in np.unique(lengths):
        clips = np.flatnonzero(lengths == length)
        short = compress(tokens[clips], int(length), special, how)
        sent[clips, : short.shape[1]] = short
        mask[clips, : short.shape[1]] = True
    return sent, mask
