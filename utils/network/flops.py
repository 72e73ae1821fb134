"""What the frozen models compute, counted on shapes alone: no weights, no data, no time."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from utils.data.models import check_folder, load


def config_of(folder: str | Path) -> Any:
    """A model's configuration; FileNotFoundError or ModelError, in a line, where there is none."""
    return load(AutoConfig, check_folder(folder))


def forward_flops(folder: str | Path, *shape: int, embeddings: bool = False) -> int:
    """FLOPs of the matrix products of one forward pass of the model in a folder, head apart.

    Args:
        folder: with a config.json; weights are not read.
        shape: of the input: frames (1, n, 3, height, width), spectrogram (1, time, mel), or with
            `embeddings` token embeddings (1, tokens, hidden).
    """
    config = config_of(folder)
    with torch.device("meta"):
        # eager: attention is then made of matrix products, which are counted
        model = AutoModel.from_config(config, attn_implementation="eager").eval()
        inputs = torch.empty(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if embeddings:
            no_mask = dict.fromkeys(config.layer_types)  # to make one, values would be read
            model(inputs_embeds=inputs, attention_mask=no_mask, use_cache=False)
        else:
            model(inputs)
    return counter.get_total_flops()


@cache
def visual_flops(folder: str) -> int:
    """Of ViViT, for a clip."""
    c = config_of(folder)
    return forward_flops(folder, 1, c.num_frames, c.num_channels, c.image_size, c.image_size)


@cache
def audio_flops(folder: str, seconds: float) -> int:
    """Of AST, for a clip of so many seconds in windows of 10 ms a frame."""
    c = config_of(folder)
    windows = math.ceil(100 * seconds / c.max_length)
    return windows * forward_flops(folder, 1, c.max_length, c.num_mel_bins)


@cache
def foundation_flops(folder: str, tokens: int) -> int:
    """Of the language model's decoder, reading a sequence of so many tokens."""
    hidden = config_of(folder).hidden_size
    return forward_flops(folder, 1, tokens, hidden, embeddings=True)
