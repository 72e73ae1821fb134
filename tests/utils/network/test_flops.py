"""FLOPs: counted on shapes alone they are those of the real model, and of a count by hand."""

import math
from copy import deepcopy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.tiny import WINDOW, tiny_qwen2
from utils.network.flops import audio_flops, foundation_flops, visual_flops


def counted(model, inputs) -> int:
    """FLOPs of a real pass of a copy of the model."""
    model = deepcopy(model)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return counter.get_total_flops()


def test_encoders_cost_what_a_pass_of_theirs_does(models, encoders):
    """A pass of the real models, with weights and data, counts the same."""
    vivit, ast = encoders["visual"][0], encoders["audio"][0]
    frames = torch.zeros(1, vivit.config.num_frames, 3, 32, 32)
    pooler = 2 * vivit.config.hidden_size**2  # which is not loaded
    assert visual_flops(str(models / "visual")) == counted(vivit, frames) + pooler
    window = counted(ast, torch.zeros(1, WINDOW, 32))
    assert audio_flops(str(models / "audio"), WINDOW / 100) == window > 0


def test_every_window_of_a_long_sound_counts(models):
    """60 s are read as consecutive windows, the last one filled up."""
    one, long = (audio_flops(str(models / "audio"), s) for s in (0.1, 60.0))
    assert long == math.ceil(6000 / WINDOW) * one


def test_the_language_model_by_hand(tmp_path):
    """Projections, gated MLP and attention of each layer; no vocabulary head."""
    hidden, wide, layers, tokens = 16, 40, 3, 7
    sizes = dict(hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=1000)
    tiny_qwen2(**sizes, **heads).config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()  # weights are not read
    weights = 2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * wide
    attention = 2 * 2 * tokens * tokens * hidden
    rotary = foundation_flops(str(tmp_path), tokens) - layers * (2 * tokens * weights + attention)
    assert 0 <= rotary <= 2 * tokens * hidden, "but for the angles of rotary positions"


def test_a_missing_model_is_named_in_a_line():
    """Nothing is looked for anywhere else."""
    with pytest.raises(FileNotFoundError, match="models/nowhere: no config.json") as error:
        visual_flops("models/nowhere")
    assert "\n" not in str(error.value)
