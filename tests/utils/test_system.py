"""The whole system on the shipped mini models: what each stage trains, and what it leaves alone."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

import task_align
import task_avqa
from benchmarks import steps
from modules.losses import info_nce, masked_mean, reconstruction
from tests.helpers.tiny import NoHostData, NoHostSync
from utils.data.clips import Batch, Collate
from utils.data.datasets import Caption
from utils.system import build_system, noise_source


def noise_of_one(seed: int) -> torch.Generator:
    """The channel noise of a run in one process."""
    return noise_source(seed, Accelerator(cpu=True))


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
    system = build_system(task_align.PRESETS["mini"])
    visual, audio = clips(system)
    ids, mask = text(system, ["a violin", "a drum on the left", "two bells"])
    noise, sent = noise_of_one(0), system.foundation.embed(ids)
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
    system = build_system(task_avqa.PRESETS["mini"])
    system.foundation.add_lora(4, 16, 0.0, ["q_proj", "v_proj"])
    parts = {**system.transceivers, "foundation": system.foundation}
    before = {k: copy.deepcopy(module.state_dict()) for k, module in parts.items()}
    optimizer = torch.optim.SGD(system.trainable(), lr=0.1)
    visual, audio = clips(system)
    ids, mask = text(system, ["Question: who? Answer:", "Question: where is it? Answer:", "a"])
    answers, answer_mask = text(system, [" violin<|endoftext|>", " left<|endoftext|>", " no"])
    for _ in range(2):  # LoRA's second factor starts at zero: the first factor moves a step later
        noise = noise_of_one(0)
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
    system = build_system(task_align.PRESETS["mini"])
    system.train(False)

    def feature(lines: list[str]) -> torch.Tensor:
        ids, mask = text(system, lines)
        embedded = system.foundation.embed(ids)
        received = system.receive_text(embedded, mask, snr_db, noise_of_one(0))
        return masked_mean(received, mask)[0]

    with torch.inference_mode():
        alone = feature(["The drum stays silent."])
        beside = feature(["The drum stays silent.", "The left violin enters first, then the bell."])
    # The noise of a longer batch is another draw: without noise equal, with noise close.
    tolerance = 1e-5 if snr_db == float("inf") else 0.3
    assert torch.allclose(alone, beside, atol=tolerance * alone.abs().max().item())


def batch_of(system, cached: bool = True) -> Batch:
    """Three clips with texts and answers; encoder inputs of one, three and one windows if not
    cached."""
    ids, mask = text(system, ["a violin", "a drum on the left", "two bells"])
    answer_ids, answer_mask = text(system, [" violin<|endoftext|>", " no", " left<|endoftext|>"])
    visual, audio = clips(system)
    if not cached:
        seen, heard = (system.readers[kind].config for kind in ("visual", "audio"))
        visual = torch.zeros(3, seen.num_frames, 3, seen.image_size, seen.image_size)
        audio = torch.zeros(1 + 3 + 1, heard.max_length, heard.num_mel_bins)
    return Batch(
        visual=visual,
        audio=audio,
        ids=ids,
        mask=mask,
        text=torch.tensor([7, 8, 7]),
        answer_ids=answer_ids,
        answer_mask=answer_mask,
        rows=[],
        windows=None if cached else [1, 3, 1],
    )


def stage(step, **options):
    """The system as it trains in a stage."""
    system = build_system(replace(task_align.PRESETS["mini"], **options))
    if step is steps.answer:
        system.foundation.add_lora(4, 16, 0.1, ["q_proj", "v_proj"])
    return system.train()


STAGES = pytest.mark.parametrize("step", [steps.align, steps.answer])


@STAGES
@pytest.mark.parametrize("channel", ["awgn", "rician"])
def test_a_step_waits_for_no_value(step, channel):
    """From tokens to gradients the host never waits for what a tensor holds: on the meta device,
    where tensors hold nothing, a whole step is taken all the same."""
    system = stage(step, channel=channel)
    batch = batch_of(system)
    with NoHostSync():
        step(system, batch, noise_of_one(0)).backward()
    system.zero_grad()
    system, batch = system.to("meta"), batch.to(torch.device("meta"))
    with NoHostSync():
        step(system, batch, None).backward()
    with_gradient = [p for p in system.parameters() if p.grad is not None]
    assert with_gradient and all(p.grad.is_meta for p in with_gradient)


@STAGES
def test_a_step_copies_no_number_to_the_device(step):
    """Such a copy, of the SNR say, would also let the host wait."""
    system = stage(step).to("meta")
    batch = batch_of(system).to(torch.device("meta"))
    with NoHostData():
        step(system, batch, None).backward()


def test_encoding_within_a_step_waits_for_no_value():
    """The same in a run without a cache, where the step also encodes its clips."""
    system = stage(steps.align)
    batch, source = batch_of(system, cached=False), noise_of_one(0)
    with NoHostSync():
        steps.align(system, batch, source).backward()
    assert system.img_tx.projection.weight.grad.any()


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), x.new_zeros(())),
        lambda x: x.nonzero(),
        lambda x: torch.as_tensor(1.0, device=x.device),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x.cpu(),
    ],
)
def test_waiting_is_noticed(reads):
    """The watch of the tests above sees each way to wait for a tensor's values."""
    with pytest.raises(AssertionError), NoHostSync(), NoHostData():
        reads(torch.ones(3, device="meta"))


def test_noise_is_another_in_each_process():
    """Noise repeats with its seed, and no two seeds or processes draw the same."""

    def draw(seed, processes, index):
        alike = SimpleNamespace(num_processes=processes, process_index=index, device="cpu")
        return tuple(torch.randn(4, generator=noise_source(seed, alike)).tolist())

    for processes in (1, 2, 4):
        drawn = [draw(seed, processes, i) for seed in range(5) for i in range(processes)]
        assert len(set(drawn)) == len(drawn)
        assert drawn[0] == draw(0, processes, 0)
    assert draw(5, 1, 0) == tuple(torch.randn(4, generator=noise_of_one(5)).tolist())


def test_system_is_one_module():
    """What trains, saves and moves is reached as of one module: a call of it is a step's, its
    trained weights are the transceivers', then LoRA's as well."""
    system = build_system(task_align.PRESETS["mini"])
    assert system(lambda *read: read, 1, "a") == (system, 1, "a")
    trained = {id(p) for p in system.trainable()}
    parts = {id(p) for m in system.transceivers.values() for p in m.parameters() if p.requires_grad}
    assert trained == parts and len(trained) == len(TRANSCEIVERS)
    assert system.lora is None
    system.foundation.add_lora(4, 16, 0.1, ["q_proj", "v_proj"])
    assert system.lora is system.foundation.language_model
    added = {id(p) for p in system.foundation.parameters() if p.requires_grad}
    assert added and {id(p) for p in system.trainable()} == trained | added


def test_cached_tokens_are_not_encoded_again():
    """Tokens from the cache pass as they are, with encoders and after these are released."""
    system = build_system(task_align.PRESETS["mini"])
    batch = batch_of(system)
    assert system.encode(batch) is batch
    media = batch_of(system, cached=False)
    encoded = system.encode(media)
    assert encoded.windows is None and encoded.ids is media.ids
    assert encoded.visual.shape == batch.visual.shape and encoded.audio.shape == batch.audio.shape
    weights = sum(p.numel() for p in system.parameters())
    encoders = [tx.encoder for tx in (system.img_tx, system.audio_tx)]
    system.release_encoders()
    kept = sum(p.numel() for p in system.parameters())
    assert weights - kept == sum(p.numel() for encoder in encoders for p in encoder.parameters())
    assert system.encode(batch) is batch and system.train().training


def test_build_repeats_with_its_seed():
    """The same seed gives the same weights, another seed others."""
    first, again = (build_system(task_align.PRESETS["mini"]) for _ in range(2))
    other = build_system(replace(task_align.PRESETS["mini"], seed=1))
    for a, b, c in zip(first.trainable(), again.trainable(), other.trainable(), strict=True):
        assert torch.equal(a, b) and (not torch.equal(a, c) or not a.any())


def test_training_draws_its_snr_evaluation_does_not():
    """Over a range each training clip has its own SNR; in evaluation all have the one."""
    config = replace(task_avqa.PRESETS["mini"], snr_db=7.0, snr_range=[-3.0, 5.0])
    system = build_system(config)
    drawn = system.training_snr(2000, noise_of_one(0))
    assert drawn.shape == (2000,) and -3 <= drawn.min() < -2.9 and 4.9 < drawn.max() <= 5
    assert abs(drawn.mean() - 1) < 0.2
    assert torch.equal(drawn, system.training_snr(2000, noise_of_one(0)))
    assert system.eval().training_snr(2000, noise_of_one(0)) == 7.0


@pytest.mark.parametrize("snr_range", [[5.0], [5.0, -5.0], [1.0, 2.0, 3.0], [0.0, float("inf")]])
def test_a_range_is_two_numbers_in_order(snr_range):
    """Anything else is refused, by its name."""
    with pytest.raises(ValueError, match="snr_range"):
        build_system(replace(task_avqa.PRESETS["mini"], snr_range=snr_range))


@pytest.mark.parametrize("modalities", [["visaul"], ["visual", "none"], ["audio", "text"]])
def test_unknown_modalities_are_refused(modalities):
    """A misspelt modality would otherwise be left out in silence."""
    with pytest.raises(ValueError, match=modalities[-1]):
        build_system(replace(task_avqa.PRESETS["mini"], modalities=modalities))


@pytest.mark.parametrize("shown", [["visual", "audio"], ["visual"], ["audio"], ["none"]])
def test_what_is_not_shown_is_noise(shown):
    """A modality that is left out tells nothing of the clip; the other passes as it is."""
    system = build_system(task_avqa.PRESETS["mini"])
    batch = batch_of(system)
    other = replace(batch, visual=batch.visual + 1, audio=batch.audio + 1)
    seen = system.shown(batch, shown, noise_of_one(0))
    again = system.shown(other, shown, noise_of_one(0))
    for name, given, out, out_of_other in zip(
        ("visual", "audio"), (batch.visual, batch.audio), seen, again, strict=True
    ):
        assert out.shape == given.shape
        if name in shown:
            assert out is given
        else:
            assert torch.equal(out, out_of_other)


@pytest.mark.parametrize("lines", [[""], ["a drum"], ["", ""], ["", "a drum", "two bells"]])
@pytest.mark.parametrize("snr_db", [10.0, float("inf")])
def test_empty_captions_and_a_batch_of_one_train(lines, snr_db):
    """A caption without a token, alone or beside others, and a single clip give a finite loss and
    finite gradients in stage 1."""
    system = build_system(task_align.PRESETS["mini"])
    rows = [Caption(f"{i}", line) for i, line in enumerate(lines)]
    batch = Collate(system.tokenizer)(list(zip(*clips(system, len(lines)), rows, strict=True)))
    assert batch.mask.any(dim=1).tolist() == [bool(line) for line in lines]
    loss = steps.align(system, batch, noise_of_one(0), snr_db)
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert all(weight.grad.isfinite().all() for weight in system.trainable())
