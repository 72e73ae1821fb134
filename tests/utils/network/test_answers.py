"""The system in a cell: each scene's own token lengths, each user's own SNR, the mini models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import task_avqa
from utils.data.clips import Collate
from utils.data.datasets import Question
from utils.network.answers import loss_at, receive, right_answers
from utils.system import SPECIAL, build_system

KINDS = tuple(SPECIAL)
LONGEST = 8


class Clips(torch.utils.data.Dataset):
    """Questions about clips of random tokens."""

    kept = True  # in memory

    def __init__(self, system, count: int = 12):
        generator = torch.Generator().manual_seed(0)
        self.tokens = [
            torch.randn(count, SPECIAL[k] + LONGEST, tx.encoder.config.hidden_size,
                        generator=generator)
            for k, tx in zip(KINDS, (system.img_tx, system.audio_tx), strict=True)
        ]  # fmt: skip
        kinds = ["Audio Counting", "Visual Location"]
        texts = ["How many instruments sound?", "Where is the cello?"]
        self.rows = [
            Question(str(i), kinds[i % 2], texts[i % 2], texts[i % 2], "two") for i in range(count)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return *(tokens[i] for tokens in self.tokens), self.rows[i]


@pytest.fixture(scope="module")
def system():
    config = replace(task_avqa.PRESETS["mini"], visual_tokens=LONGEST, audio_tokens=LONGEST)
    return build_system(config).eval()


@pytest.fixture(scope="module")
def clips(system):
    return Clips(system)


def batch_of(system, clips):
    return Collate(system.tokenizer)([clips[i] for i in range(4)])


def same(batch, *values):
    """The same lengths or SNRs for every scene, (batch, 2)."""
    return np.broadcast_to(values, (len(batch.rows), 2))


def test_a_scene_sends_its_own_lengths(system, clips):
    """Special tokens and so many patches of each modality arrive, padding apart; without noise
    they are those of a scene sent alone."""
    batch = batch_of(system, clips)
    lengths = np.array([[1, 8], [2, 5], [8, 1], [4, 4]])
    still = np.full((4, 2), np.inf)
    with torch.inference_mode():
        tokens, mask = receive(system, batch, lengths, still, torch.Generator().manual_seed(0))
        assert mask[:, :19].sum(dim=1).tolist() == [1 + 2 + sum(pair) for pair in lengths]
        assert torch.equal(mask[:, 19:], batch.mask)
        for i, pair in enumerate(lengths):
            got, own = receive(system, single(batch, i), pair[None], still[:1], torch.Generator())
            torch.testing.assert_close(tokens[i][mask[i]], got[0][own[0]])


def single(batch, i):
    """One scene of a batch."""
    return replace(batch, **{k: v[i : i + 1] for k, v in vars(batch).items() if v is not None})


def test_padding_does_not_change_an_answer(system, clips):
    """The loss of scenes of different lengths is that of each alone."""
    batch = batch_of(system, clips)
    lengths, still = np.array([[1, 8], [2, 5], [8, 1], [4, 4]]), np.full((4, 2), np.inf)

    def loss(part, pairs):
        tokens, mask = receive(system, part, pairs, still[: len(pairs)], torch.Generator())
        answers = part.answer_ids, part.answer_mask
        return system.foundation.answer_loss(tokens[:, :0], tokens, mask, *answers)

    with torch.inference_mode():
        together = loss(batch, lengths)
        alone = [loss(single(batch, i), lengths[i : i + 1]) for i in range(4)]
        count = batch.answer_mask.sum(dim=1)
        expected = (torch.stack(alone) * count).sum() / count.sum()
    torch.testing.assert_close(together, expected)


def test_each_user_has_its_own_channel(system, clips):
    """A user without noise is received as sent; noise of another's channel does not reach it, and
    the question crosses no channel."""
    batch = batch_of(system, clips)
    snr = same(batch, np.inf, -6.0).copy()
    snr[3, 0] = -6.0

    def received(seed):
        with torch.inference_mode():
            noise = torch.Generator().manual_seed(seed)
            return receive(system, batch, same(batch, 4, 4), snr, noise)[0]

    a, b = received(0), received(1)
    assert torch.equal(a[:, 11:], b[:, 11:])
    assert torch.equal(a[:3, :5], b[:3, :5]), "clips whose camera has no noise"
    assert (a[3, :5] != b[3, :5]).any() and (a[:, 5:11] != b[:, 5:11]).any()


def test_every_question_is_answered_at_its_own(system, clips, monkeypatch):
    """Each question of all batches once, at the lengths and SNRs of its row."""
    seen, asked = [], []
    monkeypatch.setattr(system.foundation, "generate", lambda media, tokens, *rest: (
        torch.zeros(len(tokens), 1, dtype=torch.long)))  # fmt: skip

    def spy(system, batch, lengths, snr_db, noise):
        seen.append((lengths, snr_db))
        asked.extend(row.video_id for row in batch.rows)
        return torch.zeros(len(batch.rows), 1, 1), batch.mask[:, :1]

    monkeypatch.setattr("utils.network.answers.receive", spy)
    monkeypatch.setattr("utils.network.answers.is_right", lambda said, answer: True)
    lengths, snr = np.arange(24).reshape(12, 2), np.arange(24.0).reshape(12, 2)
    assert right_answers(system, clips, lengths, snr, seed=0).tolist() == [True] * 12
    assert asked == [str(i) for i in range(12)]
    assert np.array_equal(np.concatenate([pair for pair, _ in seen]), lengths)
    assert np.array_equal(np.concatenate([db for _, db in seen]), snr)


def test_loss_at_is_the_mean_over_answer_tokens(system, clips):
    """It does not depend on the seed without noise, and repeats with noise."""
    still = [loss_at(system, clips, (4, 4), np.inf, seed) for seed in (0, 1)]
    assert still[0] == pytest.approx(still[1], rel=1e-6)
    noisy = [loss_at(system, clips, (4, 4), -6.0, seed) for seed in (0, 0, 1)]
    assert noisy[0] == noisy[1] != noisy[2]


def test_lengths_of_training_are_drawn_for_each_batch(clips):
    """In training over token lengths both modalities are compressed to drawn ones; in evaluation
    they keep theirs."""
    config = replace(
        task_avqa.PRESETS["mini"],
        visual_tokens=LONGEST,
        audio_tokens=LONGEST,
        token_lengths=[1, 2, 4, 8],
    )
    system = build_system(config)
    batch, noise = batch_of(system, clips), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    shapes = {
        tuple(t.shape[1] for t in system.shown(batch, ["visual", "audio"], noise))
        for _ in range(99)
    }
    assert shapes == {(1 + v, 2 + a) for v in (1, 2, 4, 8) for a in (1, 2, 4, 8)}
    system.eval()
    seen, heard = system.shown(batch, ["visual", "audio"], noise)
    assert torch.equal(seen, batch.visual) and torch.equal(heard, batch.audio)
