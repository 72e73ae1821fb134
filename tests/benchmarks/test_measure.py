"""What the benchmark counts and compares: FLOPs by hand, and equal losses on both sides."""

import pytest
import torch
from torch import nn

import task_avqa
from benchmarks import measure, steps
from utils.system import build_system


@pytest.fixture(scope="module")
def system():
    system = build_system(task_avqa.PRESETS["mini"])
    system.foundation.add_lora(4, 16, 0.0, ["q_proj", "v_proj"])
    system.release_encoders()
    return system


def test_flops_of_a_step_are_those_of_its_products(system):
    """Two FLOPs for each multiplication: forward, the gradient of what comes in where something
    before it is trained, and the gradient of weights only where these are trained."""
    batch = measure.random_batch(system, 3)
    expected = 0

    def count(module, inputs, output):
        nonlocal expected
        product = 2 * output.numel() * module.in_features
        trained, before = module.weight.requires_grad, inputs[0].requires_grad
        expected += product * (1 + trained + before)

    handles = [
        module.register_forward_hook(count)
        for module in system.modules()
        if isinstance(module, nn.Linear)
    ]
    steps.answer(system, batch, None)
    for handle in handles:
        handle.remove()
    config = system.foundation.decoder.config
    length = 9 + 10 + 20 + 3
    scores = 3 * config.num_attention_heads * length**2 * (config.hidden_size // 4)
    expected += config.num_hidden_layers * (2 + 4) * 2 * scores // 2  # half under causal attention
    assert measure.step_flops(system, batch) == pytest.approx(expected, rel=0.01)


def test_both_sides_of_the_comparison_compute_the_same_loss(system):
    """Logits at every position give the loss of logits at the answers alone."""
    batch = measure.random_batch(system, 4)
    batch.mask[1, 12:] = False
    batch.answer_mask[2, 2:] = False
    found = [loss(system, batch, None, float("inf")) for loss in (steps.answer, steps.full_logits)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert found[0] > 1
