"""An encoder of pictures (CLIP, SigLIP) that reads a clip frame by frame, like one of video."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

FRAMES = 16  # of a clip, where the encoder's config.json does not say `num_frames`


class FrameEncoder(nn.Module):
    """The tokens of all frames in a row; their special tokens become one by their mean, as in
    CLIP4Clip (Luo et al., 2022).

    Args:
        tower: a transformers encoder of pictures whose `last_hidden_state` begins with `special`
            tokens.
        special: its special tokens: 1 for CLIP (class), 0 for SigLIP.
    """

    def __init__(self, tower: nn.Module, special: int):
        super().__init__()
        self.tower, self.special = tower, special
        self.config: Any = tower.config
        self.config.num_frames = getattr(self.config, "num_frames", FRAMES)

    def forward(self, frames: Tensor) -> BaseModelOutput:
        """(clips, frames, 3, height, width) to (clips, special + frames * patches, width), patches
        in the order of `frames_grid`."""
        states = self.tower(frames.flatten(0, 1)).last_hidden_state
        states = states.unflatten(0, frames.shape[:2])  # (clips, frames, special + patches, width)
        special = states[:, :, : self.special].mean(dim=1)
        patches = states[:, :, self.special :].flatten(1, 2)
        return BaseModelOutput(last_hidden_state=torch.cat([special, patches], dim=1))
