"""Codebooks: learnt of what users send, they lose less than rounding for as many bits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modules.digital.codebook import GROUPS, nearest
from modules.digital.quantisation import rounded
from tests.helpers.draw import gaussian
from tests.helpers.stages import RandomClips, answering, questions
from utils.network import codebooks
from utils.network.codebooks import learn


@pytest.fixture(scope="module")
def made():
    """A model, training clips with two questions each, and the tokenizer."""
    model, processors = answering()
    names = [str(i // 2) for i in range(16)]
    rows = questions(["What sounds?"] * 16, ["drum"] * 16, names)
    return model.eval(), {"train": RandomClips(model.system, rows)}, processors.tokenizer


def test_tokens_as_users_send_them(made):
    """Of each clip once, at a length of its own for each user, special ones with them, at unit
    power; the same again for the same seed."""
    model, data, tokenizer = made
    sent = codebooks.sent_tokens(model, data, tokenizer, [1, 4], seed=0)
    source = np.random.default_rng(0)
    count = sum(source.choice([1, 4], 8).sum() + 8 * special for special in (1, 2))
    assert sent.shape == (count, model.system.foundation.hidden)
    assert sent.square().mean() == pytest.approx(1, abs=1e-3)
    assert torch.equal(sent, codebooks.sent_tokens(model, data, tokenizer, [1, 4], seed=0))


def test_codebooks_are_learnt_once(made, tmp_path, monkeypatch):
    """Those that were asked for; a second time, of the same model, they are read."""
    config = SimpleNamespace(bits_levels=[0.25, 1.0, 1.5], lengths=[1, 4], seed=0)
    first = codebooks.codebooks(*made, config, tmp_path / "new", "a")
    assert first.keys() == {0.25, 1.5}
    monkeypatch.setattr(codebooks, "learn", None)
    again = codebooks.codebooks(*made, config, tmp_path / "new", "a")
    assert all(torch.equal(first[bits], again[bits]) for bits in first)
    with pytest.raises(TypeError):
        codebooks.codebooks(*made, config, tmp_path / "new", "b")


def alike(count: int, seed: int) -> torch.Tensor:
    """Tokens (count, 64) whose entries go together, as those of a transmitter do: 12 directions."""
    return gaussian(count, 12, seed=seed) @ gaussian(12, 64, seed=1) / 12**0.5


@pytest.mark.parametrize("bits", GROUPS)
def test_a_codebook_has_as_many_vectors_as_its_bits_name(bits):
    """2^(bits of a group) for each group of entries."""
    entries = GROUPS[bits]
    book = learn(gaussian(600, 64), bits)
    assert book.shape == (64 // entries, 2 ** round(bits * entries), entries)


def test_what_was_learnt_loses_less_than_rounding():
    """Of other tokens of the same kind; and more bits lose less."""
    tokens = alike(400, seed=3)
    lost = [
        (nearest(tokens, learn(alike(3000, seed=4), bits)) - tokens).square().mean()
        for bits in (0.25, 0.5, 1.5)
    ]
    at_one = (rounded(tokens, 1) - tokens).square().mean()
    assert lost[0] > lost[1] > lost[2] and lost[2] < 0.8 * at_one
    assert lost[0] < 0.9 * tokens.square().mean()


def test_few_tokens_make_a_small_codebook():
    """No more vectors than tokens; a width that groups do not divide is named."""
    assert learn(gaussian(5, 64), 0.25).shape == (2, 5, 32)
    with pytest.raises(ValueError, match="0.25 bits an entry: needs tokens of a multiple of 32"):
        learn(gaussian(5, 48), 0.25)
