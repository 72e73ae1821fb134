"""The token transmitter of a user device: frozen encoder, token compression, projection."""

from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.token_compression import compress


class Windows(NamedTuple):
    """How much of the windows in which an encoder reads a clip is the clip itself: the last one is
    filled up with padding."""

    frames: Tensor  # (windows,), frames of the clip
    # (kept,), the patch tokens that begin within the clip, counted through all of its windows
    patches: Tensor


class TokenTransmitter(nn.Module):
    """From a clip's picture or sound to a short sequence of tokens as wide as the language model.

    `encode` is the frozen part and runs once a clip; `forward` is the trained part and runs at
    every step on what `encode` gave.

    Args:
        encoder: a transformers encoder whose `last_hidden_state` begins with `special` tokens.
        special: its special tokens: 1 for ViViT (class), 2 for AST (class, distillation).
        hidden: width of the language model's embeddings.
        length: patch tokens after compression.
        compression: a name in `COMPRESSIONS`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        special: int,
        hidden: int,
        length: int,
        compression: str = "sliding_window",
    ):
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.special, self.length, self.compression = special, length, compression
        self.projection = nn.Linear(encoder.config.hidden_size, hidden)

    def train(self, mode: bool = True) -> "TokenTransmitter":
        super().train(mode)
        if self.encoder is not None:  # gone once every clip is cached
            self.encoder.eval()  # a frozen encoder draws no dropout
        return self

    def encode(
        self, inputs: Tensor, windows: list[Windows] | None = None, rows: int | None = None
    ) -> Tensor:
        """Compressed encoder tokens, (clips, special + length, encoder width); arguments as
        `read`."""
        return self.compress(self.read(inputs, windows, rows))

    def compress(self, clips: list[Tensor]) -> Tensor:
        """What `read` gave, compressed and put together: (clips, special + length, width). A clip
        of fewer patches than that has them repeated evenly."""
        found = []
        for tokens in clips:
            patches = tokens.shape[1] - self.special
            if patches < self.length:
                even = torch.arange(self.length, device=tokens.device) * patches // self.length
                special, rest = tokens.split([self.special, patches], dim=1)
                tokens = torch.cat([special, rest[:, even]], dim=1)
            found.append(compress(tokens, self.length, self.special, self.compression))
        return torch.cat(found)

    @torch.no_grad()  # not inference_mode: `forward` trains on what this gives
    def read(
        self, inputs: Tensor, windows: list[Windows] | None = None, rows: int | None = None
    ) -> list[Tensor]:
        """All encoder tokens of whole clips, (clips, special + patches, encoder width); one clip a
        part where clips are read in windows, with as many patches as it is long.

        Args:
            inputs: what the encoder reads: ViViT (clips, frames, 3, height, width); AST
                (windows, time, mel) with a clip's consecutive windows one after the other.
            windows: of each clip; None for one row of `inputs` a clip. The windows' patch tokens
                are joined, without those of padding, and their special tokens averaged in
                proportion to the frames that are the clip's, before compression.
            rows: of `inputs` an encoder call, at most; None for all.

        On an accelerator that has bfloat16 the encoder computes in it.
        """
        half = inputs.is_cuda and torch.cuda.is_bf16_supported()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            calls = inputs.split(rows or len(inputs))
            # (rows, special + patches, width)
            tokens = torch.cat([self.encoder(part).last_hidden_state.float() for part in calls])
        if windows is None:
            return [tokens]
        clips = []
        for clip, of in zip(tokens.split([len(w.frames) for w in windows]), windows, strict=True):
            weights = (of.frames / of.frames.sum()).to(clip)  # (windows,)
            special = torch.einsum("w,wtd->td", weights, clip[:, : self.special])
            patches = clip[:, self.special :].flatten(0, 1)[of.patches.to(clip.device)]
            clips.append(torch.cat([special, patches])[None])
        return clips

    def compressing(self, length: int, compression: str) -> "TokenTransmitter":
        """This transmitter with another compression; encoder and projection are shared."""
        other = copy(self)
        other.length, other.compression = length, compression
        return other

    def forward(self, encoded: Tensor) -> Tensor:
        """Project (batch, special + length, encoder width) to (batch, special + length, hidden)."""
        return self.projection(encoded)

    def features(self, tokens: Tensor) -> Tensor:
        """What the contrastive loss reads of received tokens: the mean of the special ones, that
        is ViViT's class token, or AST's class and distillation tokens; of all tokens where an
        encoder has no special ones. (batch, hidden)."""
        return tokens[:, : self.special or None].mean(dim=1)
