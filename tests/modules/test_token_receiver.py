"""The token receivers: the published layers and those with a skip, starting at the size of real
embeddings, and the detector of words."""

import copy
import math

import pytest
import torch
from torch import nn

from modules import token_receiver
from modules.channel import Channel, unit_power
from modules.token_receiver import (
    RECEIVERS,
    TEXT_RECEIVERS,
    ResidualReceiver,
    TokenReceiver,
    WordDetector,
    nearest,
)
from tests.helpers.draw import gaussian, seeded
from tests.helpers.stages import alignment
from utils.checkpoints import trained_state


def test_layers():
    """Linear(hidden, 1024), ReLU, Linear(1024, hidden), all trained."""
    receiver = TokenReceiver(48)
    assert [type(layer) for layer in receiver] == [nn.Linear, nn.ReLU, nn.Linear]
    assert receiver[0].weight.shape == (1024, 48) and receiver[0].bias.shape == (1024,)
    assert receiver[2].weight.shape == (48, 1024) and receiver[2].bias.shape == (48,)
    assert all(p.requires_grad for p in receiver.parameters())
    assert list(receiver.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert TokenReceiver(48, 512)[0].weight.shape == (512, 48)


def test_forward_is_the_mlp():
    """The receiver computes W2 relu(W1 x + b1) + b2 and keeps the shape of its input."""
    torch.manual_seed(0)
    receiver, x = TokenReceiver(8, 16, 0.02), gaussian(2, 5, 8)
    w1, b1, w2, b2 = receiver.parameters()
    assert receiver(x).shape == x.shape
    torch.testing.assert_close(receiver(x), (x @ w1.T + b1).clamp(min=0) @ w2.T + b2)


@pytest.mark.parametrize("hidden", [128, 512])
@pytest.mark.parametrize("scale", [1e-2, 0.08, 1.0])
@pytest.mark.parametrize("name", RECEIVERS)
def test_starting_scale(name, hidden, scale):
    """Tokens of unit power leave a fresh receiver at about the size of real embeddings."""
    torch.manual_seed(0)
    receiver = RECEIVERS[name](hidden, 1024, scale)
    with torch.no_grad():
        rms = receiver(gaussian(2000, hidden)).square().mean().sqrt().item()
    assert rms == pytest.approx(scale, rel=0.1)
    if name == "mlp":
        assert receiver[2].bias.eq(0).all()
    assert all(p.requires_grad and p.grad_fn is None for p in receiver.parameters())


def test_a_fresh_residual_receiver_passes_tokens_as_they_are():
    """Its correction starts at zero, then learns: the last layer first, and with it the first. Its
    weights are named otherwise than the MLP's, for which they cannot be taken."""
    receiver, x = ResidualReceiver(8, 16, torch.tensor(0.02)), gaussian(2, 5, 8)
    assert torch.equal(receiver(x), 0.02 * x)
    optimizer = torch.optim.SGD(receiver.parameters(), lr=0.1)
    for moved in (["2.weight", "2.bias"], ["0.weight", "0.bias", "2.weight", "2.bias"]):
        optimizer.zero_grad()
        (receiver(x) - x).square().sum().backward()
        found = [name for name, p in receiver.correction.named_parameters() if p.grad.any()]
        assert sorted(found) == sorted(moved)
        optimizer.step()
    names = [f"correction.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    assert list(receiver.state_dict()) == names


def test_a_step_is_the_same_beside_every_model():
    """Protects: with the same learning rate, a first step of Adam changes a token by the same share
    of its size, however small the language model's embeddings are."""
    change = []
    for scale in (1.0, 0.01):
        torch.manual_seed(0)
        receiver, x = RECEIVERS["residual"](8, 16, torch.tensor(scale)), gaussian(2, 5, 8)
        assert torch.equal(receiver(x), scale * x)
        optimizer = torch.optim.Adam(receiver.parameters(), lr=1e-2, eps=1e-12)
        receiver(x).sum().backward()
        optimizer.step()
        change.append((receiver(x) - scale * x).norm().item() / scale)
    assert change[0] == pytest.approx(change[1], rel=1e-3)


@pytest.mark.parametrize("name", RECEIVERS)
def test_tokens_are_received_one_by_one(name):
    """A token's restoration does not depend on the tokens beside it, in no receiver."""
    torch.manual_seed(0)
    receiver, x = RECEIVERS[name](8, 16, torch.tensor(0.02)), gaussian(2, 5, 8)
    assert receiver(x).shape == x.shape
    torch.testing.assert_close(receiver(x)[:, 3], receiver(x[:, 3]))


# The detector of words.


def vocabulary(words=2000, hidden=256):
    """Embeddings as a language model's: small, and some twice as long as others."""
    return 1e-2 * (0.7 + 0.7 * torch.rand(words, 1, generator=seeded(1))) * gaussian(words, hidden)


def sentences(table, clips=64, length=12):
    """Texts of other lengths (clips, length), their embeddings, and the mask of real tokens."""
    ids = torch.randint(len(table), (clips, length), generator=seeded(2))
    real = torch.randint(4, length + 1, (clips, 1), generator=seeded(3))
    return ids, table[ids], torch.arange(length) < real


@pytest.mark.parametrize(
    "kind, snr, least, most",
    [
        *(("awgn", 0.0, 1.0, 1.0), ("awgn", -6.0, 0.99, 0.3)),
        *(("rician", 0.0, 0.98, 0.9), ("rayleigh", 0.0, 0.9, 0.8)),
    ],
)
def test_words_are_detected_in_noise(kind, snr, least, most):
    """At 0 dB all words are found, but for clips whose path is all but gone; without undoing the
    equaliser's shrinkage, one for each clip in fading, far fewer would be. What the detector finds
    out about scales, it finds well: knowing them would bring no more."""
    table = vocabulary()
    ids, sent, mask = sentences(table)
    unit = unit_power(sent, mask)
    received = Channel(kind)(sent, snr, mask, seeded())
    shrinkage = (received * unit).sum((1, 2), True) / unit.square().sum((1, 2), True)
    scale = (sent * mask[..., None]).norm(dim=(1, 2), keepdim=True)
    scale = scale / unit.norm(dim=(1, 2), keepdim=True)

    def kept(found):
        return found.eq(sent).all(dim=2)[mask].float().mean()

    found = kept(WordDetector(lambda: table)(received))
    assert found >= least
    assert found > kept(table[nearest(scale * received / shrinkage, table)]) - 0.005
    assert kept(table[nearest(scale * received, table)]) <= most


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_scale_of_sender_and_table_does_not_matter(scale):
    """What a transmitter divided by is not known, nor is it needed: texts of long and of short
    words alone are found all the same, whatever the embeddings' size."""
    table = vocabulary() * scale
    order = table.norm(dim=1).argsort()
    for ids in (order[:40], order[-40:]):
        sent = table[ids].view(4, 10, -1)
        for snr in (0.0, math.inf):
            found = WordDetector(lambda: table)(Channel()(sent, snr, generator=seeded()))
            assert torch.equal(found, sent)


def test_padding_and_lost_tokens_stay_zeros():
    """They are no words, and take no part in the power from which the shrinkage is told: of a clip
    of which half is missing, the rest is found as before. A clip of nothing else is no error."""
    table = vocabulary()
    ids, sent, _ = sentences(table)
    received = Channel()(sent, -3.0, generator=seeded())
    received[:, ::2] = 0
    received[0] = 0
    found = WordDetector(lambda: table)(received)
    assert found[:, ::2].eq(0).all() and found[0].eq(0).all()
    assert found[1:, 1::2].eq(sent[1:, 1::2]).all(dim=2).float().mean() > 0.95


@pytest.mark.parametrize("by_direction", [False, True])
def test_the_nearest_word_is_found_in_parts(monkeypatch, by_direction):
    """As by all distances at once, however few words are looked at together; never more distances
    are held than allowed."""
    table, tokens = gaussian(301, 16), gaussian(3, 7, 16, seed=5)
    rows = table / table.norm(dim=1, keepdim=True) if by_direction else table
    whole = torch.cdist(tokens.flatten(0, 1), rows).argmin(dim=1).view(3, 7)
    for at_once in (1, 21 * 10, 21 * 300, 1 << 26):
        monkeypatch.setattr(token_receiver, "AT_ONCE", at_once)
        assert torch.equal(nearest(tokens, table, by_direction), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_table_of_half_precision(dtype):
    """The frozen model's embeddings may be of less precision than what arrives."""
    table = vocabulary().to(dtype)
    _, sent, mask = sentences(table)
    found = WordDetector(lambda: table)(Channel()(sent.float(), 6.0, mask, seeded()))
    assert found.dtype == torch.float32 and torch.equal(found[mask], sent[mask].float())


def test_the_detector_has_no_weights_and_passes_no_gradient():
    """The language model's table is read where it stands: nothing of it is trained, saved or held
    twice; a copy of the system reads the copy's own."""
    system = alignment(text_receiver="detect")[0].system
    detector = system.text_receiver
    assert not [*detector.parameters(), *detector.buffers()] and not detector.state_dict()
    assert trained_state(detector) == {}
    weight = system.foundation.language_model.get_input_embeddings().weight
    assert detector.words() is weight
    other = copy.deepcopy(system)
    assert other.text_receiver.words() is not weight
    assert other.text_receiver.words() is other.foundation.words()
    sent = weight[None, :5].detach().clone().requires_grad_()
    assert not detector(unit_power(sent)).requires_grad


def test_a_written_question_is_its_clean_embeddings():
    """At +inf dB, where a question is written at the base station, detection gives the embeddings
    themselves; over the mini model's channel at 12 dB as well, in a batch of padded texts."""
    model, processors = alignment(text_receiver="detect")
    system = model.system
    said = ["Is the drum on the left?", "How many?", "Which one plays first, the bell or the harp?"]
    ids = processors.tokenizer(said, padding=True, return_tensors="pt")
    ids, mask = ids["input_ids"], ids["attention_mask"].bool()
    sent = system.foundation.embed(ids)
    for snr_db in (math.inf, 12.0):
        found = system.receive_text(sent, mask, snr_db, seeded())
        assert torch.equal(found[mask], sent[mask]) and found[~mask].eq(0).all()


def test_every_receiver_may_be_one_of_text():
    """The names of all receivers, and detection; each is built of sizes and the vocabulary."""
    table = vocabulary(50, 8)
    assert TEXT_RECEIVERS.keys() == {*RECEIVERS, "detect"}
    for name, kind in TEXT_RECEIVERS.items():
        receiver = kind(8, 16, 0.01, lambda: table)
        assert receiver(gaussian(2, 3, 8)).shape == (2, 3, 8)
        assert name == "detect" or type(receiver) is RECEIVERS[name]
