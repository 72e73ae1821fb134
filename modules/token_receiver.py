"""Token receivers at the base station: they restore the tokens that came over the channel.

Each maps what a channel gives, clips at about unit power or less, to tokens at the scale of the
language model's embeddings, (batch, tokens, hidden) to the same shape.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

AT_ONCE = 1 << 24  # numbers of words, or of their distances to tokens, held at a time, 64 MB


class TokenReceiver(nn.Sequential):
    """Linear(hidden, width), ReLU, Linear(width, hidden), on each token by itself.

    Source: arXiv 2505.07841. With a width below `hidden` it is a bottleneck.

    Args:
        hidden: width of the language model's embeddings.
        width: width between the two layers.
        scale: root mean square of the language model's embedding entries. The last layer starts
            so that tokens of unit power leave at about this scale: beside real embeddings of 1e-2
            a token of size 1 would drown what the first layers add to it.
    """

    def __init__(self, hidden: int, width: int = 1024, scale: Tensor | float | None = None):
        super().__init__(nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, hidden))
        if scale is not None:
            with torch.no_grad():
                out = self(torch.randn(256, hidden))
                self[2].weight.mul_(scale / out.square().mean().sqrt())
                self[2].bias.zero_()

    def forward(self, received: Tensor) -> Tensor:
        """(batch, tokens, hidden) to the same shape."""
        return super().forward(received)


class ResidualReceiver(nn.Module):
    """What arrived plus a correction by an MLP whose last layer starts at zero, scaled to the
    embeddings' root mean square: before any training a token passes as it is (He et al., 2016).

    The correction is in the same units because Adam moves each weight by about its learning rate,
    whatever the gradient's size: else a step would change the tokens of a model with small
    embeddings (0.14 in SmolLM2-135M, about 0.01 in Qwen2.5) by several times their size.

    Args:
        hidden, width, scale: as for `TokenReceiver`.
    """

    def __init__(self, hidden: int, width: int, scale: Tensor | float):
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale), persistent=False)
        self.correction = TokenReceiver(hidden, width)
        nn.init.zeros_(self.correction[2].weight)
        nn.init.zeros_(self.correction[2].bias)

    def forward(self, received: Tensor) -> Tensor:
        """(batch, tokens, hidden) to the same shape."""
        return self.scale * (received + self.correction(received))


class WordDetector(nn.Module):
    """Each received text token becomes the embedding of the most likely word.

    The base station knows the vocabulary. In Gaussian noise the most likely word is the nearest one
    in Euclidean distance, after two unknowns are undone. The shrinkage of the equaliser is the mean
    power with which a clip arrives (modules/channel.py). The scale by which the transmitter divided
    is the root mean square of the clip's own words: words are first found by their direction alone,
    which is the nearest word at whatever scale suits it best, then anew at the scale of those.
    Nothing is trained, no gradient passes, and no weight is held.

    Args:
        words: gives the embeddings of all words, (vocabulary, hidden). The language model owns
            them; asked for at every call, they are found on whatever device they were moved to.
    """

    def __init__(self, words: Callable[[], Tensor]):
        super().__init__()
        self.words = words

    @torch.no_grad()
    def forward(self, received: Tensor) -> Tensor:
        """(batch, tokens, hidden), at unit power before the channel, to float32 embeddings of the
        same shape. Tokens of zeros, padding and what a digital link lost, stay zeros."""
        table, received = self.words(), received.float()
        real = received.ne(0).any(dim=2, keepdim=True)  # (batch, tokens, 1)
        sent = received / mean_power(received, real)  # and noise
        words = embedding(nearest(sent, table, by_direction=True), table).float()
        scale = mean_power(words, real).sqrt()
        words = embedding(nearest(scale * sent, table), table).float()
        return words.masked_fill(~real, 0)


def mean_power(tokens: Tensor, real: Tensor) -> Tensor:
    """Mean square of each clip's numbers over its real tokens, above 0: (batch, 1, 1)."""
    powers = tokens.square().mean(dim=2, keepdim=True) * real  # (batch, tokens, 1)
    mean = powers.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.clamp(min=1e-30)


def nearest(tokens: Tensor, table: Tensor, by_direction: bool = False) -> Tensor:
    """The row of the table that is nearest to each token, (batch, tokens).

    The squared distance to a word w is |t|^2 - 2 t.w + |w|^2, and the nearest one has the largest
    t.w - |w|^2 / 2: a matrix product, of so many words at a time that memory stays in bounds.

    Args:
        tokens: (batch, tokens, hidden), float32.
        table: (vocabulary, hidden), of any dtype.
        by_direction: words are scaled to unit length first.
    """
    best = tokens.new_full(tokens.shape[:2], -torch.inf)
    found = torch.zeros_like(best, dtype=torch.long)
    step = max(1, AT_ONCE // max(best.numel(), tokens.shape[2]))
    for start in range(0, len(table), step):
        words = table[start : start + step].float()  # (step, hidden)
        lengths = words.square().sum(dim=1)  # squared
        if by_direction:
            scores = tokens @ (words / lengths.clamp(min=1e-30).sqrt()[:, None]).T
        else:
            scores = tokens @ words.T - lengths / 2  # (batch, tokens, step)
        score, word = scores.max(dim=2)
        found = torch.where(score > best, word + start, found)
        best = torch.maximum(score, best)
    return found


# (hidden, width, scale) -> a module, by the receiver's name.
RECEIVERS = {"residual": ResidualReceiver, "mlp": TokenReceiver}


def of_text(kind: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A receiver of any tokens as one of text, which has no use for the vocabulary."""
    return lambda hidden, width, scale, words: kind(hidden, width, scale)


# (hidden, width, scale, words) -> a module, by the text receiver's name; `words` as for
# `WordDetector`.
TEXT_RECEIVERS = {
    **{name: of_text(kind) for name, kind in RECEIVERS.items()},
    "detect": lambda hidden, width, scale, words: WordDetector(words),
}
