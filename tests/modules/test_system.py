"""The whole system on the shipped mini models: what each stage trains, what users send, and what
the base station reads."""

import copy
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import task_align
from benchmarks.measure import loss_of
from modules.channel import CHANNELS, Channel, unit_power
from modules.digital.quantised import QUANTISED
from modules.losses import info_nce
from modules.system import CONTRASTS, MEDIA
from modules.token_compression import COMPRESSIONS, compress
from modules.token_receiver import RECEIVERS, TEXT_RECEIVERS
from tests.helpers.draw import seeded
from tests.helpers.stages import RandomClips, alignment, answering, questions
from tests.helpers.tiny import NoHostData, NoHostSync, windows
from utils.config import check, parse_config
from utils.data.datasets import Caption

TEXTS = ["a violin", "a drum on the left", "a violin", "who plays first, and for how long?"]
ANSWERS = ["violin", "no", "more than ten", "left"]
STAGES = pytest.mark.parametrize("make", [alignment, answering])
TRANSCEIVERS = {
    *(f"{tx}.projection.{kind}" for tx in ("img_tx", "audio_tx") for kind in ("weight", "bias")),
    *(
        f"{receiver}.correction.{layer}.{kind}"
        for receiver in ("img_receiver", "audio_receiver", "text_receiver")
        for layer in (0, 2)
        for kind in ("weight", "bias")
    ),
}


class Told(nn.Module):
    """A channel without noise: what arrives tells at which SNR and beside what it was sent."""

    def __init__(self):
        super().__init__()
        self.at = []

    def forward(self, tokens, snr_db, mask=None, generator=None):
        self.at.append(snr_db)
        real = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens)
        sent = tokens * real[..., None]
        mean = sent.sum(dim=1, keepdim=True) / real.sum(dim=1)[:, None, None]
        return (sent + mean) * (1 + torch.as_tensor(snr_db) / 10).reshape(-1, 1, 1)


def stage(make, **changes):
    """A stage as it trains, and a batch."""
    model, processors = make(**changes)
    return model.train(), RandomClips(model.system, questions(TEXTS, ANSWERS)).batch(processors)


def uncached(system, batch):
    """The batch of a run without a cache: encoder inputs, of 1, 3, 1 and 2 windows of sound."""
    seen, heard = (tx.encoder.config for tx in system.transmitters.values())
    return replace(
        batch,
        visual=torch.zeros(4, seen.num_frames, 3, seen.image_size, seen.image_size),
        audio=torch.zeros(1 + 3 + 1 + 2, heard.max_length, heard.num_mel_bins),
        windows=windows(1, 3, 1, 2),
    )


@STAGES
def test_a_stage_trains_its_weights_and_nothing_else(make):
    """Exactly projections, receivers and, in stage 2, LoRA get gradients and move; encoders and
    language model stay, every bit of them."""
    model, batch = stage(make)
    system = model.system
    trained, before = system.trainable(), copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):  # receivers' last layers and LoRA's second factor start at zero: what is
        # before them moves a step later
        optimizer.zero_grad()
        loss_of(model, batch, seeded()).backward()
        optimizer.step()
    moved = {k for k, w in model.state_dict().items() if not torch.equal(w, before[k])}
    weights = dict(model.named_parameters())
    assert moved == {k for k, w in weights.items() if w.grad is not None and w.grad.any()}
    assert {id(w) for w in trained} == {id(weights[k]) for k in moved}
    lora = {k for k in moved if ".lora_" in k}
    assert moved - lora == {f"system.{name}" for name in TRANSCEIVERS}
    assert all("q_proj" in name or "v_proj" in name for name in lora)
    language_model = system.foundation.language_model
    layers = language_model.config.num_hidden_layers
    assert len(lora) == (layers * 2 * 2 if make is answering else 0)
    assert system.lora is (language_model if make is answering else None)


@STAGES
@pytest.mark.parametrize("channel", ["awgn", "rician"])
def test_a_step_waits_for_no_value(make, channel):
    """From tokens to gradients the host never waits for what a tensor holds, nor for a number on
    its way to the device, the SNR say: on the meta device, where tensors hold nothing, a whole step
    is taken all the same."""
    model, batch = stage(make, channel=channel)
    with NoHostSync():
        loss_of(model, batch, seeded()).backward()
    model.zero_grad()
    model, batch = model.to("meta"), batch.to(torch.device("meta"))
    with NoHostSync(), NoHostData():
        loss_of(model, batch, None).backward()
    with_gradient = [p for p in model.parameters() if p.grad is not None]
    assert with_gradient and all(p.grad.is_meta for p in with_gradient)


def test_encoding_within_a_step_waits_for_no_value():
    """The same in a run without a cache, where the step also encodes its clips."""
    model, batch = stage(alignment)
    batch, source = uncached(model.system, batch), seeded()
    with NoHostSync():
        loss_of(model, batch, source).backward()
    assert model.system.img_tx.projection.weight.grad.any()


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


def test_cached_tokens_are_not_encoded_again():
    """Tokens from the cache pass as they are, with encoders and after these are released."""
    model, batch = stage(alignment)
    system = model.system
    assert system.encode(batch) is batch
    media = uncached(system, batch)
    encoded = system.encode(media)
    assert encoded.windows is None and encoded.ids is media.ids
    assert encoded.visual.shape == batch.visual.shape and encoded.audio.shape == batch.audio.shape
    weights = sum(p.numel() for p in system.parameters())
    encoders = [tx.encoder for tx in system.transmitters.values()]
    system.release_encoders()
    kept = sum(p.numel() for p in system.parameters())
    assert weights - kept == sum(p.numel() for encoder in encoders for p in encoder.parameters())
    assert system.encode(batch) is batch and system.train().training


def test_build_repeats_with_its_seed():
    """The same seed gives the same weights, another seed others."""
    first, again, other = (alignment(**seed)[0].system for seed in ({}, {}, {"seed": 1}))
    for a, b, c in zip(first.trainable(), again.trainable(), other.trainable(), strict=True):
        assert torch.equal(a, b) and (not torch.equal(a, c) or not a.any())


@STAGES
def test_training_draws_its_snr_evaluation_does_not(make):
    """Over a range each training clip has its own SNR, at which all its users send; in evaluation
    all have the one."""
    model, batch = stage(make, snr_db=7.0, snr_range=[-3.0, 5.0])
    drawn = model.system.snr_db(2000, seeded())
    assert drawn.shape == (2000,) and -3 <= drawn.min() < -2.9 and 4.9 < drawn.max() <= 5
    assert abs(drawn.mean() - 1) < 0.2
    model.system.channel = channel = Told()
    model(batch, seeded())
    of_clips = model.system.snr_db(len(batch.ids), seeded())
    assert len(channel.at) == 3 and all(torch.equal(at, of_clips) for at in channel.at)
    model.eval()(batch, seeded())
    assert channel.at[3:] == [7.0] * 3 == [model.system.snr_db(2000, seeded())] * 3


def test_over_token_lengths_each_user_has_its_own_snr():
    """A camera may be heard well while the microphone is not; the question is at the base station.
    In evaluation all have the one SNR."""
    change = dict(token_lengths=[1, 2], snr_range=[-3.0, 5.0], question_snr_db=math.inf)
    model, batch = stage(answering, **change)
    model.system.channel = channel = Told()
    model(batch, seeded())
    visual, audio = channel.at
    assert visual.shape == audio.shape and (visual != audio).all()
    model.eval()(batch, seeded())
    assert channel.at[2:] == [model.system.training_snr.snr_db] * 2


def test_a_quantised_channel_is_one_more_channel():
    """Its SNRs are bits: below one nothing arrives, at 8 nearly all; gradients pass it."""
    model, batch = stage(answering, channel="quantised", question_snr_db=math.inf, snr_db=8.0)
    model(batch, seeded()).backward()
    assert model.system.img_tx.projection.weight.grad.abs().max() > 0
    for kind in MEDIA:
        tokens = model.system.transmitters[kind](getattr(batch, kind))
        lost, arrived = (model.system.channel(tokens, at) for at in (0.5, 8.0))
        assert lost.eq(0).all()
        assert (arrived - unit_power(tokens)).square().mean() < 1e-3


@pytest.mark.parametrize("contrast", ["special", "all"])
def test_the_loss_of_alignment_is_the_weighted_sum_of_its_parts(contrast):
    """InfoNCE of picture and sound against captions, equal ones apart, the reconstruction and the
    writing of the caption, with the features, temperature, direction and weights of the config."""
    weights = {"contrastive_weight": 2.0, "reconstruction_weight": 0.5, "caption_weight": 3.0}
    model, batch = stage(alignment, temperature=0.13, one_way=True, contrast=contrast, **weights)
    losses, features = model(batch, seeded())
    for kind in MEDIA:
        expected = info_nce(features[kind], features["text"], 0.13, batch.text, one_way=True)
        torch.testing.assert_close(losses[f"{kind}_to_text"], expected)
    total = 2 * (losses["visual_to_text"] + losses["audio_to_text"])
    total = total + losses["reconstruction"] / 2 + 3 * losses["caption"]
    torch.testing.assert_close(losses["loss"], total)


def test_features_are_of_special_tokens_or_of_all():
    """What contrast reads of a user's tokens; the published recipe reads the special ones."""
    model, _ = stage(alignment)
    received = torch.randn(2, 6, 8)
    tx = model.system.audio_tx
    torch.testing.assert_close(CONTRASTS["special"](tx, received), received[:, :2].mean(dim=1))
    torch.testing.assert_close(CONTRASTS["all"](tx, received), received.mean(dim=1))


def test_the_published_recipe_writes_no_caption():
    """At weight 0 the language model is not run at all."""
    model, batch = stage(alignment, caption_weight=0.0)
    model.system.foundation.hidden_states = None
    losses, _ = model(batch, seeded())
    assert "caption" not in losses


def test_the_caption_is_written_from_media_alone():
    """Its loss is the language model's own over the caption behind the received media tokens, and
    moves projections and receivers of picture and sound."""
    model, batch = stage(alignment, channel="none", caption_weight=1.0)
    losses, _ = model(batch, seeded())
    system, language_model = model.system, model.system.foundation.language_model
    media = [system.receive_media(kind, getattr(batch, kind), math.inf, None) for kind in MEDIA]
    tokens = torch.cat([*media, system.foundation.embed(batch.ids)], dim=1)
    logits = language_model(inputs_embeds=tokens).logits[:, sum(m.shape[1] for m in media) - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits[batch.mask], batch.ids[batch.mask])
    torch.testing.assert_close(losses["caption"], expected)
    losses["caption"].backward()
    for part in (system.img_tx.projection, system.audio_tx.projection):
        assert part.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("snr_range", [[5.0], [5.0, -5.0], [1.0, 2.0, 3.0], [0.0, math.inf]])
def test_a_range_is_two_numbers_in_order(snr_range):
    """Anything else is refused, by its name."""
    with pytest.raises(ValueError, match="snr_range"):
        alignment(snr_range=snr_range)


@pytest.mark.parametrize(
    "flag, names",
    [
        *(("channel", (*CHANNELS, QUANTISED)), ("compression", COMPRESSIONS)),
        *(("receiver", RECEIVERS), ("text_receiver", TEXT_RECEIVERS)),
    ],
)
def test_every_name_is_a_flag_that_trains(flag, names, monkeypatch):
    """Each entry of the dictionaries is taken by its flag and gives a system that trains; a name
    that is not among them is refused in one line that lists them."""
    for name in names:
        monkeypatch.setattr(sys, "argv", ["task_align.py", f"--{flag}", name])
        config = parse_config(task_align.PRESETS, "mini", None)
        check(config)
        assert getattr(config, flag) == name
        model, batch = stage(alignment, **{flag: name})
        optimizer = torch.optim.SGD(model.system.trainable(), lr=0.1)
        for _ in range(2):  # a residual receiver's last layer starts at zero
            optimizer.step()
            optimizer.zero_grad()
            loss_of(model, batch, seeded()).backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in model.system.trainable())
    listed = f"^--{flag} nakagami: unknown, choose from {', '.join(names)}$"
    with pytest.raises(ValueError, match=listed):
        check(replace(config, **{flag: "nakagami"}))


@pytest.mark.parametrize("snr_db, tolerance", [(math.inf, 1e-5), (20.0, 0.3)])
def test_received_captions_do_not_depend_on_their_padding(snr_db, tolerance):
    """A caption's text feature is the same alone and beside a longer one."""
    model, processors = alignment(snr_db=snr_db)
    rows = [Caption("0", "The drum stays silent."),
            Caption("1", "The left violin enters first, then the bell.")]  # fmt: skip
    clips = RandomClips(model.eval().system, rows)
    with torch.inference_mode():
        alone, beside = (
            model(clips.batch(processors, *which), seeded())[1]["text"][0]
            for which in ([0], [0, 1])
        )
    # The noise of a longer batch is another draw: without noise equal, with noise close.
    assert torch.allclose(alone, beside, atol=tolerance * alone.abs().max().item())


@pytest.mark.parametrize("snr_db", [10.0, math.inf])
def test_empty_captions_and_a_batch_of_one_train(snr_db):
    """A caption without a token, alone or beside others, and a single clip give a finite loss and
    finite gradients in stage 1."""
    model, processors = alignment(snr_db=snr_db)
    for lines in ([""], ["a drum"], ["", ""], ["", "a drum", "two bells"]):
        rows = [Caption(f"{i}", line) for i, line in enumerate(lines)]
        batch = RandomClips(model.system, rows).batch(processors)
        assert batch.mask.any(dim=1).tolist() == [bool(line) for line in lines]
        model.zero_grad()
        loss = loss_of(model, batch, seeded())
        loss.backward()
        assert loss.isfinite() and loss >= 0
        assert all(weight.grad.isfinite().all() for weight in model.system.trainable())


@pytest.mark.parametrize("shown", [["visual", "audio"], ["visual"], ["audio"], ["none"]])
def test_what_is_not_shown_is_noise(shown):
    """A modality that is left out tells nothing of the clip; the other passes as it is."""
    model, batch = stage(answering, modalities=shown)
    other = replace(batch, visual=batch.visual + 1, audio=batch.audio + 1)
    for kind in MEDIA:
        (out, mask), (of_other, _) = (model.sent(kind, b, seeded(), None) for b in (batch, other))
        assert out.shape == getattr(batch, kind).shape and mask is None
        assert (out is getattr(batch, kind)) == (kind in shown)
        assert torch.equal(out, of_other) == (kind not in shown)


def test_lengths_of_training_are_drawn_for_each_batch():
    """In training over token lengths both modalities are compressed to drawn ones; in evaluation
    they keep theirs."""
    model, batch = stage(answering, token_lengths=[1, 2, 4, 8])
    torch.manual_seed(0)
    draws = ([model.sent(kind, batch, None, None)[0] for kind in MEDIA] for _ in range(99))
    shapes = {tuple(tokens.shape[1] for tokens in drawn) for drawn in draws}
    assert shapes == {(1 + v, 2 + a) for v in (1, 2, 4, 8) for a in (1, 2, 4, 8)}
    model.eval()
    assert all(model.sent(kind, batch, None, None)[0] is getattr(batch, kind) for kind in MEDIA)


@pytest.mark.parametrize("how", COMPRESSIONS)
def test_further_compression_goes_by_where_tokens_came_from(how):
    """What the batch says of its tokens' places and attention decides which of them go together,
    whether a length is drawn for all clips or each has its own; a step then takes it all the same
    on a device that would have to be waited for."""
    model, batch = stage(answering, compression=how, token_lengths=[3])
    each = {kind: np.full(4, 3) for kind in MEDIA}
    for kind, tx in model.system.transmitters.items():
        layout, tokens = batch.layouts[kind], getattr(batch, kind)
        assert layout.places.shape[:2] == layout.attention.shape == (4, 16)
        wanted, _ = compress(tokens, 3, tx.special, how, layout)
        torch.testing.assert_close(model.sent(kind, batch, None, None)[0], wanted)
        torch.testing.assert_close(model.sent(kind, batch, None, each)[0], wanted)
    if how != "merge":  # whose layout is known to the device alone
        model, batch = model.to("meta"), batch.to(torch.device("meta"))
        loss_of(model, batch, None).backward()


# A cell: each scene's own token lengths, each user's own SNR.

LENGTHS = {"visual": np.array([1, 2, 8, 4]), "audio": np.array([8, 5, 1, 4])}


@pytest.fixture(scope="module")
def scenes():
    """Stage 2 in evaluation, four clips, and the processors."""
    model, processors = answering()
    model.eval().system.release_encoders()
    return model, RandomClips(model.system, questions(TEXTS, ANSWERS)), processors


def sequences(received):
    """What is read of each of several clips with one question, and the mask of its real tokens."""
    assert received.clip.tolist() == list(range(len(received.media)))
    tokens = torch.cat([received.media, received.question], dim=1)
    return tokens, torch.cat([received.media_mask, received.question_mask], dim=1)


def cut(ids, end):
    """Ids up to the first end token."""
    return ids[: ids.index(end)] if end in ids else ids


@pytest.mark.parametrize(
    "channel, snr_db",
    [
        (Channel(), dict.fromkeys((*MEDIA, "text"), torch.full((4,), math.inf))),
        (
            Told(),
            {
                "visual": torch.tensor([-9.0, 3.0, 12.0, 0.0]),
                "audio": torch.tensor([5.0, -6.0, 1.0, 20.0]),
                "text": torch.tensor([2.0, 8.0, -3.0, 15.0]),
            },
        ),
    ],
)
@torch.inference_mode()
def test_scenes_together_are_answered_as_each_alone(scenes, monkeypatch, channel, snr_db):
    """Special tokens and so many patches of each modality arrive, padding apart, at each user's own
    SNR; tokens, loss and answers are those of a scene that is sent alone."""
    model, clips, processors = scenes
    monkeypatch.setitem(model.system._modules, "channel", channel)
    batch = clips.batch(processors)
    at = (seeded(), snr_db, LENGTHS)
    (tokens, mask), loss = sequences(model.receive(batch, *at)), model(batch, *at)
    ids = model(batch, *at, do="write")
    sent = LENGTHS["visual"] + LENGTHS["audio"]
    assert mask[:, :19].sum(dim=1).tolist() == (1 + 2 + sent).tolist()
    assert torch.equal(mask[:, 19:], batch.mask)
    expected = 0
    for i in range(len(clips)):
        one = clips.batch(processors, i)
        own = {k: v[i : i + 1] for k, v in snr_db.items()}
        at = (seeded(), own, {k: v[i : i + 1] for k, v in LENGTHS.items()})
        alone, real = sequences(model.receive(one, *at))
        torch.testing.assert_close(tokens[i][mask[i]], alone[0][real[0]])
        expected += model(one, *at) * one.answer_mask.sum()
        said = model(one, *at, do="write")[0].tolist()
        assert cut(ids[i].tolist(), model.end_id) == cut(said, model.end_id)
    torch.testing.assert_close(loss, expected / batch.answer_mask.sum())


@torch.inference_mode()
def test_each_user_has_its_own_channel(scenes):
    """A user without noise is received as sent; noise of another's channel does not reach it, and
    the question crosses no channel."""
    model, clips, processors = scenes
    snr_db = {
        "visual": torch.tensor([math.inf, math.inf, math.inf, -6.0]),
        "audio": torch.full((4,), -6.0),
        "text": math.inf,
    }
    fours = {kind: np.full(4, 4) for kind in MEDIA}
    batch = clips.batch(processors)
    a, b = (sequences(model.receive(batch, seeded(seed), snr_db, fours))[0] for seed in (0, 1))
    assert torch.equal(a[:, 11:], b[:, 11:])
    assert torch.equal(a[:3, :5], b[:3, :5]), "clips whose camera has no noise"
    assert (a[3, :5] != b[3, :5]).any()
    assert (a[:, 5:11] != b[:, 5:11]).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("channel", ["awgn", "rayleigh"])
@torch.inference_mode()
def test_a_question_at_infinite_snr_draws_no_noise(scenes, monkeypatch, channel):
    """It is written at the base station: whether said for this call or for all of stage 2, the
    source of noise stands where picture and sound left it, and their noise stays the same."""
    model, clips, processors = scenes
    monkeypatch.setitem(model.system._modules, "channel", Channel(channel))
    system, batch, media = model.system, clips.batch(processors), seeded()
    received = [system.receive_media(k, getattr(batch, k), 0.0, media) for k in MEDIA]
    as_sent = system.text_receiver(unit_power(system.foundation.embed(batch.ids), batch.mask))
    written = {"visual": 0.0, "audio": 0.0, "text": math.inf}
    for asked_at, snr_db, still in (
        (None, written, True),
        (math.inf, 0.0, True),
        (None, 0.0, False),
    ):
        monkeypatch.setattr(model, "question_snr_db", asked_at)
        noise = seeded()
        tokens, _ = sequences(model.receive(batch, noise, snr_db))
        media_tokens = torch.cat(received, dim=1)
        asked = tokens[:, media_tokens.shape[1] :]
        assert torch.equal(tokens[:, : media_tokens.shape[1]], media_tokens)
        assert torch.equal(asked, as_sent) == still
        assert torch.equal(noise.get_state(), media.get_state()) == still


# Questions that share their clip.

ABOUT = [7, 7, 3, 3, 3, 9]  # the clip of each question


@pytest.fixture(scope="module")
def shared():
    """Stage 2 with LoRA that is not zero and no dropout, and its batches of six questions about
    three clips, by how many may share one."""
    model, processors = answering(lora_dropout=0.0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1, generator=seeded())
    model.system.release_encoders()
    rows = questions([*TEXTS, "is it?", "a bell"], [*ANSWERS, "yes", "two"], ABOUT)
    clips = RandomClips(model.system, rows)
    return model, {packed: clips.batch(processors, packed=packed) for packed in (1, 2, 4)}


@pytest.mark.parametrize("packed", [2, 4])
@pytest.mark.parametrize("snr_db", [math.inf, dict.fromkeys((*MEDIA, "text"), math.inf)])
def test_sharing_a_clip_changes_nothing_that_is_learned_or_said(shared, packed, snr_db):
    """Loss and every gradient are those of one question at a time, to 1e-5, and so are the answers,
    where nothing is lost on the way."""
    model, batches = shared
    found = []
    for batch in (batches[1], batches[packed]):
        model.train().zero_grad()
        loss = model(batch, seeded(), snr_db)
        loss.backward()
        gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.requires_grad}
        with torch.inference_mode():
            said = model.eval()(batch, seeded(), snr_db, do="write")
        found.append((loss.detach(), gradients, said))
    (wanted, of_each, alone), (loss, gradients, together) = found
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    for name, grad in gradients.items():
        scale = of_each[name].abs().max().item()
        torch.testing.assert_close(grad, of_each[name], rtol=1e-5, atol=1e-5 * max(1, scale))
    assert torch.equal(together, alone)


@torch.inference_mode()
def test_media_are_sent_once_and_questions_by_themselves(shared, monkeypatch):
    """A clip's picture and sound cross the channel once for all its questions, and every question
    by itself, at the SNR of its clip: it arrives as it does alone."""
    model, batches = shared
    at = torch.tensor([-9.0, 3.0, 12.0])
    received, channels = {}, {}
    for packed, snr_db in ((1, at[[0, 0, 1, 1, 1, 2]]), (4, at)):
        channels[packed] = Told()
        monkeypatch.setitem(model.system._modules, "channel", channels[packed])
        received[packed] = model.eval().receive(batches[packed], None, snr_db)
    together, alone = received[4], received[1]
    assert [len(snr_db) for snr_db in channels[4].at] == [3, 3, 6]
    assert together.clip.tolist() == [0, 0, 1, 1, 1, 2] and len(together.media) == 3
    torch.testing.assert_close(together.question, alone.question)
    torch.testing.assert_close(together.media[together.clip], alone.media)


@torch.inference_mode()
def test_scenes_with_several_questions(shared):
    """In a cell, where clips have token lengths of their own, loss and answers of questions that
    share a clip are those of one at a time."""
    model, batches = shared
    lengths = {"visual": np.array([1, 8, 4]), "audio": np.array([8, 2, 1])}
    each = {kind: of_clip[[0, 0, 1, 1, 1, 2]] for kind, of_clip in lengths.items()}
    model.eval()
    losses = [
        model(batch, None, math.inf, of_clip)
        for batch, of_clip in ((batches[4], lengths), (batches[1], each))
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    together = model(batches[4], None, math.inf, lengths, do="write")
    assert torch.equal(together, model(batches[1], None, math.inf, each, do="write"))


@torch.inference_mode()
def test_an_answer_is_checked_as_it_would_be_written(shared):
    """One pass says of an answer whether writing it word by word would give it."""
    model, batches = shared
    model.eval()
    batch = batches[4]
    said = model(batch, None, math.inf, do="write")  # (questions, new tokens)
    ended = (said == model.end_id).long()
    mask = ended.cumsum(dim=1) - ended == 0  # up to the first end of text
    needed = torch.zeros(len(batch.visual), dtype=torch.long)
    needed.index_add_(0, batch.clip, batch.mask.sum(dim=1) + mask.sum(dim=1))
    for changed in (None, 0, 3):
        ids = said.clone()
        if changed is not None:
            ids[changed, mask[changed].sum() - 1] ^= 1
        own = replace(batch, answer_ids=ids, answer_mask=mask, text_tokens=needed.max().item())
        right = model(own, None, math.inf, do="check")
        assert right.tolist() == [i != changed for i in range(len(ids))]


def test_a_step_of_shared_clips_waits_for_no_value(shared):
    """On the meta device, too, a step is taken."""
    model, batches = shared
    meta = copy.deepcopy(model).train().to("meta")
    batch = batches[4].to(torch.device("meta"))
    with NoHostSync(), NoHostData():
        loss_of(meta, batch, None).backward()
    assert all(p.grad.is_meta for p in meta.system.trainable())
