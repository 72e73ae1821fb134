"""The system in a cell, as the study asks it: every question in the scene that it belongs to."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from modules.channel import Channel
from modules.digital.quantised import Quantised
from modules.network.links import LOST_DB
from tests.helpers.draw import gaussian
from tests.helpers.stages import RandomClips, answering, questions
from utils.network.answers import Answers, measure


@pytest.fixture(scope="module")
def made():
    """The model, clips with questions and answers of two lengths, and the tokenizer."""
    model, processors = answering()
    texts = ["How many instruments sound?", "Where is the cello?"]
    rows = questions(texts * 6, ["two", "more than ten"] * 6)
    return model.eval(), RandomClips(model.system, rows), processors.tokenizer


@pytest.fixture
def asking(made):
    """What asks them, in batches of five questions of which the last is short."""
    model, clips, tokenizer = made
    return partial(Answers, model, {"val": clips}, tokenizer, "val", batch=5)


@pytest.fixture
def quantised(made, monkeypatch):
    """The model behind the digital link, with a codebook of a quarter of a bit."""
    books = {0.25: gaussian(4, 256, 32)}
    monkeypatch.setitem(made[0].system._modules, "channel", Quantised(books))


def pairs(*values):
    return np.array(values).reshape(-1, 2)


def test_what_comes_is_what_the_model_says(made, asking):
    """Right answers, nats and tokens of every question are those of the model's own `check` and
    `loss`, where nothing is random."""
    model, clips, tokenizer = made
    answer = asking(batch=12)
    (batch,) = answer.batches
    found = answer(pairs(4, 4), pairs(math.inf, math.inf))
    at = {"visual": math.inf, "audio": math.inf, "text": math.inf}
    lengths = dict.fromkeys(("visual", "audio"), np.full(12, 4))
    with torch.inference_mode():
        right = model(batch, None, at, lengths, do="check")
        assert found.loss == pytest.approx(model(batch, None, at, lengths).item(), rel=1e-4)
    assert found.right.tolist() == right.tolist()
    assert found.tokens.tolist() == batch.answer_mask.sum(dim=1).tolist()
    parts = asking()(pairs(4, 4), pairs(math.inf, math.inf))
    assert parts.nats == pytest.approx(found.nats, rel=1e-4)


def test_every_question_is_asked_in_its_scene(made, asking, monkeypatch):
    """Clips take turns in the scenes, with the lengths and levels of these, asked at the base
    station; all questions of a clip in one scene, also where a batch ends between them."""
    model, clips, _ = made
    rows = [replace(row, video_id=str(i // 3)) for i, row in enumerate(clips.rows)]  # 4 clips
    monkeypatch.setattr(clips, "rows", rows)
    seen, receive = [], model.receive

    def spy(batch, noise, snr_db, lengths):
        assert snr_db["text"] == math.inf
        levels = [snr_db[k].tolist() for k in ("visual", "audio")]
        seen.extend(zip(lengths["visual"], lengths["audio"], *levels, strict=True))
        return receive(batch, noise, snr_db, lengths)

    monkeypatch.setattr(model, "receive", spy)
    asking()(pairs(1, 2, 3, 4), pairs(0.0, 6.0, -6.0, 12.0))
    a, b = (1, 2, 0.0, 6.0), (3, 4, -6.0, 12.0)
    assert seen == [a, b, b, a, b, b]  # batches of 5, 5 and 2 questions about clips 0 to 3


def test_noise_is_of_its_seed(asking):
    """The same seed is the same noise, another one another."""
    a, b, c = (asking()(pairs(4, 4), pairs(-6.0, -6.0), seed=s) for s in (0, 0, 1))
    assert (a.nats == b.nats).all() and (a.nats != c.nats).any()


def test_nothing_arrives_at_the_lowest_level(asking, request):
    """On both links alike, whatever was sent; and bits matter on the digital one."""
    analog = asking()
    clear = analog(pairs(4, 4), pairs(math.inf, math.inf)).nats
    lost = analog(pairs(1, 1), pairs(LOST_DB, LOST_DB)).nats
    assert analog.link == "analog"
    request.getfixturevalue("quantised")
    answer = asking()
    assert answer.link == "digital"
    assert answer(pairs(1, 1), pairs(0.0, 0.0)).nats == pytest.approx(lost, rel=1e-2)
    coarse, fine, least = (answer(pairs(4, 4), pairs(q, q)).nats for q in (1.0, 8.0, 0.25))
    assert np.abs(fine - clear).max() < np.abs(coarse - clear).max()
    assert (least != coarse).any() and np.abs(least - lost).max() > 1e-3


def test_special_tokens_alone(made, asking):
    """Length 0 sends no patch token: patches do not change the answer."""
    model, clips, _ = made
    answer = asking()
    before = answer(pairs(0, 0), pairs(math.inf, math.inf)).nats
    with torch.inference_mode():
        for batch in answer.batches:
            batch.visual[:, 1:], batch.audio[:, 2:] = 0.5, -0.5
    after = answer(pairs(0, 0), pairs(math.inf, math.inf)).nats
    assert after == pytest.approx(before, rel=1e-5)


def test_what_was_asked_is_kept(made, asking, tmp_path, monkeypatch):
    """A second time it is read, but for other lengths, another seed, channel or version."""
    sent = (pairs(4, 4), pairs(0.0, 0.0))
    first = asking(folder=tmp_path, version="a")(*sent)
    asked = []

    def ask(self, *rest):
        asked.append((self.link, rest[2]))
        return np.zeros((3, 12))

    monkeypatch.setattr(Answers, "_ask", ask)
    again = asking(folder=tmp_path, version="a")
    assert (again(*sent).nats == first.nats.astype(np.float32)).all() and not asked
    again(pairs(4, 2), sent[1])
    again(*sent, seed=1)
    asking(folder=tmp_path, version="b")(*sent)
    for channel in (Quantised(), Channel("rayleigh")):
        monkeypatch.setitem(made[0].system._modules, "channel", channel)
        asking(folder=tmp_path, version="a")(*sent)
    analog = [("analog", 0), ("analog", 1), ("analog", 0)]
    assert asked == [*analog, ("digital", 0), ("analog", 0)]


def test_captions_are_read_as_text(made, asking):
    """By the language model without LoRA; a caption costs its tokens by their numbers."""
    model, clips, tokenizer = made
    captions = {row.video_id: "In a park we see a cello." for row in clips.rows}
    answer = asking()
    found, bits = answer.from_captions(captions)
    each = math.ceil(math.log2(len(model.system.foundation.words())))
    words = len(tokenizer([" In a park we see a cello."])["input_ids"][0])
    assert bits == each * words and (found.nats > 0).all() and len(found.right) == 12
    other, _ = answer.from_captions(dict.fromkeys(captions, "On a street a drum."))
    assert (other.nats != found.nats).any()


def test_points_of_a_surface(asking, monkeypatch):
    """Each pair of length and level of one modality with the other at its best, some of both alike,
    and nothing of either or both; once for every seed."""
    asked = []

    def ask(self, lengths, levels, seed):
        asked.append((tuple(zip(lengths[0].tolist(), levels[0].tolist(), strict=True)), seed))
        return np.ones((3, 12))

    monkeypatch.setattr(Answers, "_ask", ask)
    found = measure(asking(), [1, 4], [-9.0, 9.0], repeats=2)
    best, lost = (4, 9.0), (1, LOST_DB)
    sent = {point for point, _ in asked}
    assert {(lost, best), (best, lost), (lost, lost), (best, best)} <= sent
    for pair in ((1, -9.0), (1, 9.0), (4, -9.0)):
        assert {(pair, best), (best, pair)} <= sent
    assert sorted(asked) == sorted((point, seed) for point in sent for seed in (0, 1))
    assert all(point["loss"] == 1 and point["accuracy"] == 1 for point in found)
