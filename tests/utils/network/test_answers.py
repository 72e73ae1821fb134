"""The system in a cell: each scene's own token lengths, each user's own SNR, the mini models."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers.stages import RandomClips, answering, questions
from utils.network.answers import Answers, loss_at, of_scenes, right_answers, sent_at

LONGEST = 8
LENGTHS = np.array([[1, 8], [2, 5], [8, 1], [4, 4]])
STILL = {"visual": math.inf, "audio": math.inf, "text": math.inf}


@pytest.fixture(scope="module")
def made():
    """The model, its processors, and clips with questions of two lengths."""
    model, processors = answering(visual_tokens=LONGEST, audio_tokens=LONGEST)
    texts = ["How many instruments sound?", "Where is the cello?"] * 6
    return model.eval(), processors, RandomClips(model.system, questions(texts, ["two"] * 12))


def single(batch, i):
    """One scene of a batch."""
    return replace(batch, **{k: v[i : i + 1] for k, v in vars(batch).items() if v is not None})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_scene_sends_its_own_lengths(made):
    """Special tokens and so many patches of each modality arrive, padding apart; without noise
    they are those of a scene sent alone."""
    model, processors, clips = made
    batch = clips.batch(processors, 0, 1, 2, 3)
    with torch.inference_mode():
        tokens, mask = model.receive(batch, generator(), STILL, of_scenes(LENGTHS))
        assert mask[:, :19].sum(dim=1).tolist() == [1 + 2 + sum(pair) for pair in LENGTHS]
        assert torch.equal(mask[:, 19:], batch.mask)
        for i in range(4):
            alone = of_scenes(LENGTHS[i : i + 1])
            got, own = model.receive(single(batch, i), generator(), STILL, alone)
            torch.testing.assert_close(tokens[i][mask[i]], got[0][own[0]])


def test_padding_does_not_change_an_answer(made):
    """The loss of scenes of different lengths is that of each alone."""
    model, processors, clips = made
    batch = clips.batch(processors, 0, 1, 2, 3)
    with torch.inference_mode():
        together = model(batch, generator(), STILL, of_scenes(LENGTHS))
        alone = [
            model(single(batch, i), generator(), STILL, of_scenes(LENGTHS[i : i + 1]))
            for i in range(4)
        ]
    count = batch.answer_mask.sum(dim=1)
    torch.testing.assert_close(together, (torch.stack(alone) * count).sum() / count.sum())


def test_each_user_has_its_own_channel(made):
    """A user without noise is received as sent; noise of another's channel does not reach it, and
    the question crosses no channel."""
    model, processors, clips = made
    batch = clips.batch(processors, 0, 1, 2, 3)
    snr = np.tile([np.inf, -6.0], (4, 1))
    snr[3, 0] = -6.0
    at, lengths = sent_at(snr, torch.device("cpu")), of_scenes(np.full((4, 2), 4))

    def received(seed):
        with torch.inference_mode():
            return model.receive(batch, generator(seed), at, lengths)[0]

    a, b = received(0), received(1)
    assert torch.equal(a[:, 11:], b[:, 11:])
    assert torch.equal(a[:3, :5], b[:3, :5]), "clips whose camera has no noise"
    assert (a[3, :5] != b[3, :5]).any() and (a[:, 5:11] != b[:, 5:11]).any()


def test_every_question_is_answered_at_its_own(made, monkeypatch):
    """Each question of all batches once, at the lengths and SNRs of its row."""
    model, processors, clips = made
    seen, asked = [], []

    def spy(batch, noise, snr_db, lengths, write):
        seen.append([*snr_db.values(), *lengths.values()])
        asked.extend(row.video_id for row in batch.rows)
        return torch.zeros(len(batch.rows), 1, dtype=torch.long)

    monkeypatch.setattr(model, "forward", spy)
    monkeypatch.setattr("utils.network.answers.is_right", lambda said, answer: True)
    lengths, snr = np.arange(24).reshape(12, 2), np.arange(24.0).reshape(12, 2)
    right = right_answers(model, clips, processors.tokenizer, lengths, snr, seed=0)
    assert right.tolist() == [True] * 12 and asked == [str(i) for i in range(12)]
    ((visual_db, audio_db, text_db, visual, audio),) = seen
    assert np.array_equal(np.stack([visual, audio], 1), lengths) and text_db == math.inf
    assert np.array_equal(np.stack([visual_db, audio_db], 1), snr)


def test_clips_are_spread_over_the_scenes(made, monkeypatch):
    """All questions of a clip are answered in one scene, clips take turns, and a link stands in
    place of the channel for one call."""
    model, processors, clips = made
    rows = [replace(row, video_id=str(i // 3)) for i, row in enumerate(clips.rows)]  # 4 clips
    monkeypatch.setattr(clips, "rows", rows)
    channel, link, seen = model.system.channel, type(model.system.channel)("none"), []

    def right(model, clips, tokenizer, lengths, snr_db, seed):
        seen.append((lengths.tolist(), model.system.channel))
        return np.arange(12) % 3 == 0

    monkeypatch.setattr("utils.network.answers.right_answers", right)
    answer = Answers(model, clips, processors.tokenizer, channel, seed=0)
    lengths = np.array([[1, 2], [3, 4]])
    assert answer(lengths, lengths * 1.0, link) == pytest.approx([1 / 3] * 4)
    answer(lengths, lengths * 1.0)
    assert seen[0][0] == 3 * [[1, 2]] + 3 * [[3, 4]] + 3 * [[1, 2]] + 3 * [[3, 4]]
    assert seen[0][1] is link and seen[1][1] is channel


def test_loss_at_is_the_mean_over_answer_tokens(made):
    """It does not depend on the seed without noise, and repeats with noise."""
    model, processors, clips = made

    def loss(snr_db, seed):
        return loss_at(model, clips, processors.tokenizer, (4, 4), snr_db, seed)

    assert loss(np.inf, 0) == pytest.approx(loss(np.inf, 1), rel=1e-6)
    assert loss(-6.0, 0) == loss(-6.0, 0) != loss(-6.0, 1)


def test_lengths_of_training_are_drawn_for_each_batch():
    """In training over token lengths both modalities are compressed to drawn ones; in evaluation
    they keep theirs."""
    grid = [1, 2, 4, 8]
    model, processors = answering(visual_tokens=LONGEST, audio_tokens=LONGEST, token_lengths=grid)
    batch = RandomClips(model.system, questions(["Who?"], ["two"])).batch(processors)
    torch.manual_seed(0)
    model.train()
    shapes = {
        tuple(model.sent(kind, batch, None, None)[0].shape[1] for kind in ("visual", "audio"))
        for _ in range(99)
    }
    assert shapes == {(1 + v, 2 + a) for v in grid for a in grid}
    model.eval()
    assert torch.equal(model.sent("visual", batch, None, None)[0], batch.visual)
    assert torch.equal(model.sent("audio", batch, None, None)[0], batch.audio)
