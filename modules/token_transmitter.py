"""The token transmitter of a user device: frozen encoder, token compression, projection."""

from copy import copy

import torch
from torch import Tensor, nn

from modules.token_compression import compress


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

    def encode(self, inputs: Tensor, windows: list[int] | None = None) -> Tensor:
        """Compressed encoder tokens, (clips, special + length, encoder width); arguments as
        `read`."""
        return self.compress(self.read(inputs, windows))

    def compress(self, clips: list[Tensor]) -> Tensor:
        """What `read` gave, compressed and put together: (clips, special + length, width)."""
        return torch.cat([compress(c, self.length, self.special, self.compression) for c in clips])

    @torch.no_grad()  # not inference_mode: `forward` trains on what this gives
    def read(self, inputs: Tensor, windows: list[int] | None = None) -> list[Tensor]:
        """All encoder tokens of whole clips, (clips, special + patches, encoder width); in parts
        of one clip where clips have several windows, and so as many patches as they are long.

        Args:
            inputs: what the encoder reads: ViViT (clips, frames, 3, height, width); AST
                (windows, time, mel) with a clip's consecutive windows one after the other.
            windows: how many rows of `inputs` each clip has; None for one a clip. The windows'
                patch tokens are joined and their special tokens averaged before compression.

        On an accelerator that has bfloat16 the encoder computes in it.
        """
        half = inputs.is_cuda and torch.cuda.is_bf16_supported()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            tokens = self.encoder(inputs).last_hidden_state  # (rows, special + patches, width)
        tokens = tokens.float()
        if windows is None or max(windows) == 1:
            return [tokens]
        clips = []
        for clip in tokens.split(windows):  # (windows, special + patches, width)
            special = clip[:, : self.special].mean(dim=0)
            patches = clip[:, self.special :].flatten(0, 1)
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
