"""The whole system on the shipped mini models: what each stage trains, and what it leaves alone."""

import copy

import pytest
import torch

import task_align
import task_avqa
from modules.losses import info_nce, masked_mean, reconstruction
from utils.system import build_system

CPU = torch.device("cpu")


def clips(system, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Random encoder tokens of the right shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(tx.special + tx.length, tx.encoder.config.hidden_size)
              for tx in (system.img_tx, system.audio_tx)]  # fmt: skip
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)


def text(system, lines: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    system.tokenizer.padding_side = "right"
    out = system.tokenizer(lines, padding=True, return_tensors="pt")
    return out["input_ids"], out["attention_mask"].bool()


def names_with_gradient(system) -> set[str]:
    """Every weight of the system that got a gradient other than zero."""
    parts = {**system.transceivers, "foundation": system.foundation}
    return {
        f"{part}.{name}"
        for part, module in parts.items()
        for name, weight in module.named_parameters()
        if weight.grad is not None and weight.grad.abs().sum() > 0
    }


TRANSCEIVERS = {
    *(f"{tx}.projection.{kind}" for tx in ("img_tx", "audio_tx") for kind in ("weight", "bias")),
    *(
        f"{receiver}.{layer}.{kind}"
        for receiver in ("img_receiver", "audio_receiver", "text_receiver")
        for layer in (0, 2)
        for kind in ("weight", "bias")
    ),
}


def test_stage_1_gradients_reach_the_transceivers_and_nothing_else():
    """Projections and receivers learn; encoders and language model get no gradient."""
    system = build_system(task_align.PRESETS["mini"], CPU)
    visual, audio = clips(system)
    ids, mask = text(system, ["a violin", "a drum on the left", "two bells"])
    noise, sent = system.noise(0), system.foundation.embed(ids)
    received = system.receive_text(sent, mask, 10.0, noise)
    feature = masked_mean(received, mask)
    loss = (
        info_nce(system.img_tx.features(system.receive_visual(visual, 10.0, noise)), feature, 0.07)
        + info_nce(
            system.audio_tx.features(system.receive_audio(audio, 10.0, noise)), feature, 0.07
        )
        + reconstruction(received, sent, mask)
    )
    loss.backward()
    assert names_with_gradient(system) == TRANSCEIVERS


def test_stage_2_trains_transceivers_and_lora_and_changes_nothing_else():
    """After steps on the answer loss, exactly projections, receivers and LoRA have moved."""
    system = build_system(task_avqa.PRESETS["mini"], CPU)
    system.foundation.add_lora(4, 16, 0.0, ["q_proj", "v_proj"])
    parts = {**system.transceivers, "foundation": system.foundation}
    before = {k: copy.deepcopy(module.state_dict()) for k, module in parts.items()}
    optimizer = torch.optim.SGD(system.trainable(), lr=0.1)
    visual, audio = clips(system)
    ids, mask = text(system, ["Question: who? Answer:", "Question: where is it? Answer:", "a"])
    answers, answer_mask = text(system, [" violin<|endoftext|>", " left<|endoftext|>", " no"])
    for _ in range(2):  # LoRA's second factor starts at zero: the first factor moves a step later
        noise = system.noise(0)
        media = torch.cat(
            [system.receive_visual(visual, 12.0, noise), system.receive_audio(audio, 12.0, noise)],
            1,
        )
        question = system.receive_text(system.foundation.embed(ids), mask, 12.0, noise)
        optimizer.zero_grad()
        loss = system.foundation.answer_loss(media, question, mask, answers, answer_mask)
        loss.backward()
        optimizer.step()
    moved = {
        f"{part}.{name}"
        for part, module in parts.items()
        for name, weight in module.state_dict().items()
        if not torch.equal(weight, before[part][name])
    }
    assert {name for name in moved if not name.startswith("foundation.")} == TRANSCEIVERS
    lora = {name for name in moved if name.startswith("foundation.")}
    layers = system.foundation.language_model.config.num_hidden_layers
    assert len(lora) == layers * 2 * 2
    assert all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in lora)


@pytest.mark.parametrize("snr_db", [float("inf"), 10.0])
def test_received_captions_do_not_depend_on_their_padding(snr_db):
    """A caption's text feature is the same alone and beside a longer one."""
    system = build_system(task_align.PRESETS["mini"], CPU)
    system.train(False)

    def feature(lines: list[str]) -> torch.Tensor:
        ids, mask = text(system, lines)
        embedded = system.foundation.embed(ids)
        received = system.receive_text(embedded, mask, snr_db, system.noise(0))
        return masked_mean(received, mask)[0]

    with torch.inference_mode():
        alone = feature(["The drum stays silent."])
        beside = feature(["The drum stays silent.", "The left violin enters first, then the bell."])
    # The noise of a longer batch is another draw: without noise equal, with noise close.
    tolerance = 1e-5 if snr_db == float("inf") else 0.3
    assert torch.allclose(alone, beside, atol=tolerance * alone.abs().max().item())
