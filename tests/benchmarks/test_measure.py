"""What the benchmark counts and compares: FLOPs by hand, and equal losses on both sides."""

import pytest
import torch
from torch import nn

from benchmarks import measure
from tests.helpers.draw import seeded
from tests.helpers.stages import answering


@pytest.fixture(scope="module")
def model():
    model, _ = answering(lora_dropout=0.0)
    model.system.release_encoders()
    return model.eval()


def test_flops_of_a_step_are_those_of_its_products(model):
    """Two FLOPs for each multiplication: forward, the gradient of what comes in where something
    before it is trained, and the gradient of weights only where these are trained."""
    batch = measure.random_batch(model.system, 3)
    expected = 0

    def count(module, inputs, output):
        nonlocal expected
        product = 2 * output.numel() * module.in_features
        trained, before = module.weight.requires_grad, inputs[0].requires_grad
        expected += product * (1 + trained + before)

    handles = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    measure.loss_of(model, batch, None)
    for handle in handles:
        handle.remove()
    config = model.system.foundation.decoder.config
    length = 17 + 18 + 20 + 3
    scores = 3 * config.num_attention_heads * length**2 * (config.hidden_size // 4)
    expected += config.num_hidden_layers * (2 + 4) * 2 * scores // 2  # half under causal attention
    assert measure.step_flops(model, batch) == pytest.approx(expected, rel=0.01)


def test_both_sides_of_the_comparison_compute_the_same_loss(model):
    """Logits at every position give the loss of logits at the answers alone."""
    batch = measure.random_batch(model.system, 4)
    batch.mask[1, 12:] = False
    batch.answer_mask[2, 2:] = False
    losses = (measure.loss_of, measure.full_logits)
    found = [loss(model, batch, seeded()) for loss in losses]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert found[0] > 1
