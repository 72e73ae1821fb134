"""The system in a cell, as the study asks it: every question in the scene that it belongs to."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import task_network
from modules.channel import Channel
from tests.helpers.stages import RandomClips, answering, questions
from utils.network import answers
from utils.network.answers import Answers, loss_at, measure_lengths, right_answers


@pytest.fixture(scope="module")
def made():
    """The model, clips with questions and answers of two lengths, and the tokenizer."""
    model, processors = answering()
    texts = ["How many instruments sound?", "Where is the cello?"]
    rows = questions(texts * 6, ["two", "more than ten"] * 6)
    return model.eval(), RandomClips(model.system, rows), processors.tokenizer


@pytest.fixture
def in_parts(monkeypatch):
    """Batches of five questions, of which the last is short."""
    monkeypatch.setattr(answers, "batches", partial(answers.batches, batch=5))


def test_every_question_is_answered_at_its_own(made, in_parts, monkeypatch):
    """Each question of all batches once, at the lengths and SNRs of its row, and asked at the base
    station."""
    model, clips, tokenizer = made
    seen, asked = [], []

    def spy(batch, noise, snr_db, lengths, do):
        assert snr_db.pop("text") == math.inf and do == "check"
        seen.append([np.stack([of[k] for k in ("visual", "audio")], 1) for of in (lengths, snr_db)])
        asked.extend(row.video_id for row in batch.rows)
        return torch.tensor([row.answer == "two" for row in batch.rows])

    monkeypatch.setattr(model, "forward", spy)
    lengths, snr = np.arange(24).reshape(12, 2), np.arange(24.0).reshape(12, 2)
    right = right_answers(model, clips, tokenizer, lengths, snr, seed=0)
    assert right.tolist() == [True, False] * 6 and asked == [str(i) for i in range(12)]
    for found, wanted in zip(zip(*seen, strict=True), (lengths, snr), strict=True):
        assert len(found) == 3 and np.array_equal(np.concatenate(found), wanted)


def test_loss_at_is_the_mean_over_answer_tokens(made, in_parts):
    """That of all questions in one batch. It does not depend on the seed without noise, and repeats
    with noise."""
    still = [loss_at(*made, (4, 4), math.inf, seed) for seed in (0, 1)]
    assert still[0] == pytest.approx(still[1], rel=1e-6)
    noisy = [loss_at(*made, (4, 4), -6.0, seed) for seed in (0, 0, 1)]
    assert noisy[0] == noisy[1] != noisy[2]
    model, clips, tokenizer = made
    ((batch, noise),) = answers.batches.func(model, clips, tokenizer, seed=0)
    lengths = dict.fromkeys(("visual", "audio"), np.full(12, 4))
    with torch.inference_mode():
        assert model(batch, noise, math.inf, lengths).item() == pytest.approx(still[0], rel=1e-5)


def test_lengths_are_measured_for_each_modality_and_both(made, monkeypatch):
    """Each point once for every seed: one modality at the reference length while the other takes
    all, and both together."""
    monkeypatch.setattr(answers, "loss_at", lambda *asked: asked[3:])
    config = replace(
        task_network.PRESETS["mini"], lengths=[1, 4], reference_length=4, repeats=2, curve_snr_db=-5
    )
    found = [tuple(point.values()) for point in measure_lengths(config, *made)]
    pairs = [(1, 4), (4, 1), (1, 1), (4, 4)]
    assert found == [(*pair, seed, (pair, -5, seed)) for pair in pairs for seed in (0, 1)]


def test_clips_are_spread_over_the_scenes(made, monkeypatch):
    """All questions of a clip are answered in one scene, clips take turns, and a link stands in
    place of the channel for one call."""
    model, clips, tokenizer = made
    rows = [replace(row, video_id=str(i // 3)) for i, row in enumerate(clips.rows)]  # 4 clips
    monkeypatch.setattr(clips, "rows", rows)
    channel, link, seen = Channel(), Channel("none"), []

    def right(model, clips, tokenizer, lengths, snr_db, seed):
        seen.append((lengths.tolist(), model.system.channel))
        return np.arange(12) % 3 == 0

    monkeypatch.setattr(answers, "right_answers", right)
    answer = Answers(model, clips, tokenizer, channel, seed=0)
    lengths = np.array([[1, 2], [3, 4]])
    assert answer(lengths, lengths * 1.0, link) == pytest.approx([1 / 3] * 4)
    answer(lengths, lengths * 1.0)
    assert seen[0][0] == 3 * [[1, 2]] + 3 * [[3, 4]] + 3 * [[1, 2]] + 3 * [[3, 4]]
    assert seen[0][1] is link and seen[1][1] is channel


def test_questions_of_a_clip_are_asked_in_one_scene(made, in_parts, monkeypatch):
    """Where questions share a clip its lengths and SNRs are given once for all of them, also where
    the end of a batch parts them."""
    model, clips, tokenizer = made
    rows = [replace(row, video_id=str(i // 3)) for i, row in enumerate(clips.rows)]  # 4 clips
    monkeypatch.setattr(clips, "rows", rows)
    seen = []

    def spy(batch, noise, snr_db, lengths, do):
        seen.extend(np.stack([lengths[k] for k in ("visual", "audio")], 1).tolist())
        assert all(len(snr_db[k]) == len(batch.visual) for k in ("visual", "audio"))
        return torch.ones(len(batch.rows), dtype=torch.bool)

    monkeypatch.setattr(model, "forward", spy)
    of_clip = np.arange(8).reshape(4, 2)
    lengths = of_clip.repeat(3, axis=0)
    assert len(right_answers(model, clips, tokenizer, lengths, lengths * 1.0, seed=0)) == 12
    assert seen == of_clip[[0, 1, 1, 2, 3, 3]].tolist()  # batches of 5, 5 and 2 questions
