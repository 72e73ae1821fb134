"""How a run's learning rates go: LoRA's apart from the others', up first, then down."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from tests.helpers.tiny import tiny_lora
from utils.training.run import groups, schedule


def settings(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{"steps": 12, "warm_up": 0, "lr_min": 1e-6, "lora_lr": 0.0, **changes})


def rates(config: SimpleNamespace, most: float = 1e-3) -> list[float]:
    """The learning rate of each step, and where the last one leaves it."""
    optimizer = AdamW([nn.Parameter(torch.zeros(1))], lr=most)
    steps = schedule(optimizer, config)
    found = []
    for _ in range(config.steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        steps.step()
    return [*found, optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize(("asked", "rise"), [(0, 0), (4, 4), (30, 6)])
def test_rates_rise_to_their_peak_and_fall_to_their_end(asked, rise):
    """In a line over the warm-up, which takes half of a short run at most, and on a cosine over
    what is left of the steps."""
    found = rates(settings(warm_up=asked))
    assert found[:rise] == pytest.approx([1e-3 * (i + 1) / (rise + 1) for i in range(rise)])
    assert found[rise] == pytest.approx(1e-3) and found[-1] == pytest.approx(1e-6)
    middle = rise + (12 - rise) // 2
    assert found[middle] == pytest.approx((1e-3 + 1e-6) / 2)
    assert found[rise:] == sorted(found[rise:], reverse=True)


def test_a_rate_goes_on_where_it_stopped():
    """A saved schedule, in either part, leaves the rates that it would have had."""
    config, whole = settings(warm_up=4), rates(settings(warm_up=4))
    for stop in (2, 4, 7):
        optimizers = [AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3) for _ in range(2)]
        first, second = (schedule(optimizer, config) for optimizer in optimizers)
        for _ in range(stop):
            optimizers[0].step()
            first.step()
        optimizers[1].load_state_dict(optimizers[0].state_dict())
        second.load_state_dict(first.state_dict())
        found = []
        for _ in range(stop, config.steps):
            found.append(optimizers[1].param_groups[0]["lr"])
            optimizers[1].step()
            second.step()
        assert found == pytest.approx(whole[stop:-1])


def test_lora_has_a_rate_of_its_own():
    """With `lora_lr` each weight is in one group, LoRA's at that rate; without it all share one."""
    model = nn.ModuleDict({"receiver": nn.Linear(4, 4), "language": tiny_lora()})
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    (alone,) = groups(model, settings())
    assert [*map(id, alone["params"])] == [*map(id, trained)] and "lr" not in alone
    rest, lora = groups(model, settings(lora_lr=5e-4))
    assert [*map(id, rest["params"])] == [*map(id, model["receiver"].parameters())]
    assert lora["lr"] == 5e-4 and len(lora["params"]) == len(trained) - 2
    model["receiver"].requires_grad_(False)
    assert [group["lr"] for group in groups(model, settings(lora_lr=5e-4))] == [5e-4]
