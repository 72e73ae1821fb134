"""Token compression: fewer tokens before the projection, without weights.

Each way gives means of patch tokens or some of them as they are. Which patches these are depends on
where they lie, on the attention that they got, or (`merge`) on their likeness; given that, all ways
are linear, so that compressing before the linear projection gives what compressing after it would,
at a fraction of the cost.

A receiver can tell which patches a token stands for where places alone decide. What else decides
must be sent along if it is to be known there: the side information, in bits.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, normalize

AT_ONCE = 1024  # tokens whose likeness to all others is held at a time


class Layout(NamedTuple):
    """What is known of clips' patch tokens besides their contents; it stays in the host's memory,
    where it is decided which of them go together."""

    # (batch, tokens, axes), float32: where each token lies in its encoder's grid, in patches, time
    # first; of a compressed token the mean place of its patches
    places: Tensor
    # (batch, tokens): the attention that each gets from the special tokens in the encoder's last
    # layer; None where no compression asks for it
    attention: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Layout":
        return Layout(*(None if part is None else change(part) for part in self))


def joined(layouts: Sequence[Layout], how: Callable = torch.cat) -> Layout:
    """The layouts of several clips in one."""
    places, attentions = zip(*layouts, strict=True)
    return Layout(how(places), None if attentions[0] is None else how(attentions))


def window_bounds(tokens: int, length: int) -> list[tuple[int, int]]:
    """The `length` windows [start, end) that together cover `tokens` tokens.

    Windows differ in size by one at most, and neighbours overlap by one token where the division
    leaves a remainder. A length of `tokens` or more gives one window a token.
    """
    length = min(length, tokens)
    return [(i * tokens // length, -(-(i + 1) * tokens // length)) for i in range(length)]


def sliding_window(patches: Tensor, length: int, layout: Layout) -> tuple[Tensor, Layout]:
    """Means over windows of the flattened order that cover every token.

    Source: arXiv 2505.07841, sliding-window pooling.
    """

    def pool(tokens: Tensor) -> Tensor:  # whose windows are those of `window_bounds`
        return adaptive_avg_pool1d(tokens.transpose(1, 2), length).transpose(1, 2)

    return pool(patches), Layout(pool(layout.places))


def uniform(patches: Tensor, length: int, layout: Layout) -> tuple[Tensor, Layout]:
    """Evenly spaced tokens, each the middle of its window. Source: the authors' code."""
    middles = [(a + b - 1) // 2 for a, b in window_bounds(patches.shape[1], length)]
    return patches[:, middles], layout.each(lambda part: part[:, middles])


def grid(patches: Tensor, length: int, layout: Layout) -> tuple[Tensor, Layout]:
    """Means over boxes of the encoder's own grid: left stays apart from right, early from late."""
    found = np.stack([boxes(p.tobytes(), p.shape[1], length) for p in layout.places.numpy()])
    numbers = torch.arange(length, device="cpu")[:, None]
    share = (torch.from_numpy(found)[:, None] == numbers).float()
    share = share / share.sum(dim=2, keepdim=True)  # (batch, length, tokens)
    return share.to(patches) @ patches, Layout(share @ layout.places)


def attention(patches: Tensor, length: int, layout: Layout) -> tuple[Tensor, Layout]:
    """The tokens that the special tokens attend to most, in their order.

    Source: LLaVA-PruMerge (Shang et al., 2024, arXiv 2403.15388), its selection alone.
    """
    kept = layout.attention.topk(length, dim=1).indices.sort(dim=1).values  # (batch, length)
    clips = torch.arange(len(kept))[:, None]
    return patches[clips, kept], layout.each(lambda part: part[clips, kept])


def merge(patches: Tensor, length: int, layout: Layout) -> tuple[Tensor, Layout]:
    """Means of like tokens, each in the place of one of them.

    In a round every second token finds the most similar one (by the cosine) among the others, and
    the most similar pairs become one token each, averaged by the number of patches behind it; an
    eighth of the tokens goes in a round, until `length` are left.

    Source: Token Merging, ToMe (Bolya et al., ICLR 2023, arXiv 2210.09461), which merges between
    an encoder's layers, by the keys of their attention.
    """
    places = layout.places.to(patches.device)
    # Sums over the patches of each token: of contents, of places, and their number.
    sums = torch.cat([patches.float(), places, torch.ones_like(places[..., :1])], dim=2)
    while sums.shape[1] > length:
        tokens = sums.shape[1]
        gone = min(max(1, tokens // 8), tokens - length)
        sums = merge_round(sums, gone, patches.shape[2])
    means = sums[..., :-1] / sums[..., -1:]
    merged, places = means.split([patches.shape[2], places.shape[2]], dim=2)
    return merged.to(patches.dtype), Layout(places.cpu())


def merge_round(sums: Tensor, gone: int, width: int) -> Tensor:
    """One round of `merge`: (batch, tokens, columns) to (batch, tokens - gone, columns), the first
    `width` columns being what is compared."""
    batch, tokens, columns = sums.shape
    unit = normalize(sums[..., :width], dim=2)
    others = unit[:, 1::2].transpose(1, 2)
    parts = [(part @ others).max(dim=2) for part in unit[:, ::2].split(AT_ONCE, dim=1)]
    likeness, other = (torch.cat(found, dim=1) for found in zip(*parts, strict=True))
    which = likeness.topk(gone, dim=1).indices  # (batch, gone)
    goes, into = 2 * which, 2 * other.gather(1, which) + 1
    moved = sums.gather(1, goes[..., None].expand(-1, -1, columns))
    sums = sums.scatter_add(1, into[..., None].expand(-1, -1, columns), moved)
    leaves = torch.zeros(batch, tokens, device=sums.device).scatter(1, goes, 1.0)
    stays = leaves.argsort(dim=1, stable=True)[:, : tokens - gone]  # in their order
    return sums.gather(1, stays[..., None].expand(-1, -1, columns))


def cells(places: np.ndarray, length: int) -> np.ndarray:
    """Divide a grid into `length` boxes of patches, each as near to a cube as it can.

    The box at hand is cut across its longest side, the last one of equal sides, in proportion to
    the boxes that either part shall hold; so any length from 1 to the number of patches comes out
    exact, and powers of two give regular grids. Patches at one place are cut in their order.

    Args:
        places: (patches, axes): where each patch lies, time first.
        length: boxes asked for, 1 to `patches`.

    Returns:
        (patches,), the number of each patch's box; boxes are numbered in the order of their
        centres, the first axis first.
    """
    parts: list[np.ndarray] = []

    def divide(box: np.ndarray, count: int) -> None:
        if count == 1:
            parts.append(box)
            return
        sides = np.ptp(places[box], axis=0)
        axis = max(range(len(sides)), key=lambda k: (sides[k], k))
        box = box[np.argsort(places[box, axis], kind="stable")]
        steps = np.unique(places[box, axis], return_index=True)[1]  # where each place begins
        first = count // 2
        at = round(len(steps) * first / count)
        cut = steps[min(max(1, at), len(steps) - 1)] or len(box) * first // count
        if cut < first or len(box) - cut < count - first:
            first = min(max(1, round(count * cut / len(box))), count - 1)
        divide(box[:cut], first)
        divide(box[cut:], count - first)

    divide(np.arange(len(places)), length)
    # Centres that differ by an error of rounding alone are equal along that axis.
    parts.sort(key=lambda box: tuple(places[box].mean(axis=0, dtype=float).round(3)))
    found = np.empty(len(places), dtype=int)
    for number, box in enumerate(parts):
        found[box] = number
    return found


@lru_cache(maxsize=256)
def boxes(places: bytes, axes: int, length: int) -> np.ndarray:
    """`cells` of float32 places, remembered: most clips lie in the same grid."""
    return cells(np.frombuffer(places, np.float32).reshape(-1, axes), length)


# Patch tokens (batch, tokens, width), a length below their number, and their layout -> (batch,
# length, width) and the layout of these; by the compression's name.
Compression = Callable[[Tensor, int, Layout], tuple[Tensor, Layout]]
COMPRESSIONS: dict[str, Compression] = {
    "sliding_window": sliding_window,
    "uniform": uniform,
    "grid": grid,
    "attention": attention,
    "merge": merge,
}


def log2_choices(patches: int, length: int) -> float:
    """Bits that name `length` of so many patches."""
    return math.log2(math.comb(patches, length))


def log2_groups(patches: int, length: int) -> float:
    """Bits that name the groups into which patches went, at most: each patch names one of `length`
    tokens, and lists that differ in the tokens' numbers alone name the same groups."""
    return patches * math.log2(length) - math.log2(math.factorial(length))


# (patches, length) -> bits that a clip must send besides its tokens, so that the receiver knows
# which patches each of them stands for; of those that are not here none, as places alone decide.
SIDE_INFORMATION: dict[str, Callable[[int, int], float]] = {
    "attention": log2_choices,
    "merge": log2_groups,
}


def side_bits(how: str, patches: int, length: int) -> float:
    """Side information of a clip of so many patches that sends `length` tokens of them, in bits.

    None is counted where all patches are sent as they are.
    """
    if how not in SIDE_INFORMATION or length >= patches:
        return 0.0
    return SIDE_INFORMATION[how](patches, length)


def clip_uses(tokens: int, hidden: int, bits: float, snr_db: float) -> float:
    """Complex symbols in which a clip is sent: its tokens' numbers in pairs (analog), and its side
    information at the capacity of log2(1 + SNR) bits a symbol.

    Args:
        tokens: special ones included.
        hidden: width of a token as it is sent.
        bits: of side information.
        snr_db: dB, of a channel without fading.
    """
    return tokens * hidden / 2 + bits / math.log2(1 + 10 ** (snr_db / 10))


def compress(
    tokens: Tensor, length: int, special: int, how: str, layout: Layout
) -> tuple[Tensor, Layout]:
    """Compress the patch tokens; the first `special` (class, distillation) tokens pass through.

    Args:
        tokens: (batch, special + patches, width).
        length: patch tokens asked for, 1 or more; fewer patches than that are all kept.
        special: number of special tokens in front.
        how: a name in `COMPRESSIONS`.
        layout: of the patch tokens.

    Returns:
        (batch, special + min(length, patches), width), and the layout of the patch tokens there.

    Raises:
        ValueError: for a length below 1, an unknown way, or no patch tokens at all.
    """
    if how not in COMPRESSIONS:
        raise ValueError(f"compression {how!r}: unknown, choose from {', '.join(COMPRESSIONS)}")
    if length < 1:
        raise ValueError(f"token length {length}: must be 1 or more")
    if tokens.shape[1] <= special:
        raise ValueError(f"{tokens.shape[1]} tokens: none besides the {special} special ones")
    patches = tokens[:, special:]
    if length < patches.shape[1]:
        patches, layout = COMPRESSIONS[how](patches, length, layout)
    return torch.cat([tokens[:, :special], patches], dim=1), layout


def compress_each(
    tokens: Tensor, lengths: Sequence[int], special: int, how: str, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Compress the patch tokens of each clip to a length of its own.

    Args:
        tokens: (batch, special + patches, width).
        lengths: patch tokens of each clip, (batch,), no more than there are.
        special, how, layout: as for `compress`.

    Returns:
        (batch, special + longest, width), padded with zeros on the right, and the mask of the
        real tokens (batch, special + longest).
    """
    lengths = np.asarray(lengths)
    sent = tokens.new_zeros(len(tokens), special + int(lengths.max()), tokens.shape[2])
    mask = torch.zeros(sent.shape[:2], dtype=torch.bool, device=tokens.device)
    for length in np.unique(lengths):
        clips = np.flatnonzero(lengths == length)
        part = layout.each(lambda of, clips=clips: of[clips])
        short, _ = compress(tokens[clips], int(length), special, how, part)
        sent[clips, : short.shape[1]] = short
        mask[clips, : short.shape[1]] = True
    return sent, mask
