"""The losses of stage 1, against references that are written out term by term."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.losses import gather, info_nce, masked_mean, ratio, reconstruction
from tests.helpers.draw import fuzz, gaussian


def numbers(captions):
    """A number for each distinct caption, as `utils.data.clips` gives them: of 56 bits."""
    return torch.tensor([2**55 + sorted(set(captions)).index(caption) for caption in captions])


def one_direction(queries, keys, temperature, same):
    """Mean over i of -log(exp(s_ii) / sum_j exp(s_ij)), j without the other clips of caption i."""

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    total = 0.0
    for i, query in enumerate(queries):
        scores = {
            j: cosine(query, key) / temperature
            for j, key in enumerate(keys)
            if j == i or not same[i][j]
        }
        top = max(scores.values())
        total += top + math.log(sum(math.exp(s - top) for s in scores.values())) - scores[i]
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.03, 0.07, 0.13, 1.0])
@pytest.mark.parametrize("captions", ["abcdef", "abacbd", "aabbcc"])
def test_info_nce_is_its_definition(temperature, captions):
    """InfoNCE agrees with the plain formula in double precision, one way and symmetric."""
    modality, text = gaussian(6, 8, seed=0), gaussian(6, 8, seed=1)
    same = [[a == b for b in captions] for a in captions]
    forth = one_direction(modality.tolist(), text.tolist(), temperature, same)
    back = one_direction(text.tolist(), modality.tolist(), temperature, same)
    found = info_nce(modality, text, temperature, numbers(captions), one_way=True)
    assert found.item() == pytest.approx(forth, rel=1e-4)
    found = info_nce(modality, text, temperature, numbers(captions))
    assert found.item() == pytest.approx((forth + back) / 2, rel=1e-4)
    if captions == "abcdef":
        assert torch.equal(found, info_nce(modality, text, temperature))
    assert abs(forth - back) > 1e-3, "the directions must differ for this to say anything"


def test_info_nce_knows_chance_and_perfection():
    """Features that say nothing cost log(batch), features that say all cost nothing."""
    assert info_nce(torch.ones(8, 4), torch.ones(8, 4), 0.07).item() == pytest.approx(math.log(8))
    assert info_nce(torch.eye(8), torch.eye(8), 0.07).item() < 1e-4
    assert info_nce(torch.eye(8), torch.eye(8).roll(1, 0), 0.07).item() > 10


def test_info_nce_ignores_lengths():
    """Similarity is the cosine: the size of the features does not matter."""
    modality, text = gaussian(6, 8), gaussian(6, 8, seed=1)
    torch.testing.assert_close(
        info_nce(modality, text, 0.07), info_nce(1e-3 * modality, 1e3 * text, 0.07)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_info_nce_is_finite_at_a_small_temperature(dtype):
    """Opposite features of a large size at tau 0.01 give a finite loss and finite gradients."""
    modality = (1e4 * gaussian(16, 8)).to(dtype).requires_grad_()
    text = (-modality.detach()).requires_grad_()
    loss = info_nce(modality, text, 0.01)
    loss.backward()
    assert loss.isfinite() and loss > 100
    assert modality.grad.isfinite().all() and text.grad.isfinite().all()


def test_info_nce_is_finite_for_a_clip_without_features():
    """A caption of padding alone has a feature of zeros, which must not spoil the step."""
    modality, text = gaussian(4, 8).requires_grad_(), gaussian(4, 8, seed=1)
    text[1] = 0
    text.requires_grad_()
    info_nce(modality, text, 0.07).backward()
    assert modality.grad.isfinite().all() and text.grad.isfinite().all()


def test_clips_with_the_same_caption_are_no_negatives():
    """How alike clips of one caption are does not enter the loss."""
    captions = numbers(["dog", "cat", "dog"])
    eye = torch.eye(4)
    modality, text = eye[:3].clone(), eye[:3].clone()
    expected = info_nce(modality, text, 0.5, captions)
    assert expected > 0.1, "the cat is a negative of both"
    modality[2], text[2] = eye[3], eye[3]  # still orthogonal to the cat
    torch.testing.assert_close(info_nce(modality, text, 0.5, captions), expected)
    modality[2], text[2] = eye[0], eye[0]  # now identical to the other dog
    torch.testing.assert_close(info_nce(modality, text, 0.5, captions), expected)
    assert info_nce(modality, text, 0.5) > expected + 0.1


@pytest.mark.parametrize("one_way", [False, True])
def test_a_batch_of_one_caption_costs_nothing(one_way):
    """Without negatives there is nothing to learn: the loss is 0, not NaN."""
    for clips in (1, 3):
        modality, text = gaussian(clips, 8).requires_grad_(), gaussian(clips, 8, seed=1)
        loss = info_nce(modality, text, 0.07, numbers(["a"] * clips), one_way)
        loss.backward()
        assert loss.item() == 0 and modality.grad.eq(0).all()


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e2])
def test_reconstruction_is_relative(scale):
    """Receiving zeros costs 1 and receiving all costs 0, however small embeddings are."""
    sent, mask = scale * gaussian(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    noisy = sent + 0.1 * scale * gaussian(2, 5, 16, seed=1)
    assert reconstruction(sent, sent, mask).item() == 0
    assert reconstruction(torch.zeros_like(sent), sent, mask).item() == pytest.approx(1, rel=1e-3)
    expected = reconstruction(noisy / scale, sent / scale, mask).item()
    assert reconstruction(noisy, sent, mask).item() == pytest.approx(expected, rel=1e-3)


def test_one_process_gathers_nothing():
    """Without other processes `gather` hands back its tensor, and `ratio` is a plain division."""
    rows = gaussian(3, 4).requires_grad_()
    assert gather(rows) is rows
    above, below = torch.tensor(3.0, requires_grad=True), torch.tensor(4)
    found = ratio(above, below)
    found.backward()
    assert found.shape == () and found.item() == 0.75 and above.grad.item() == 0.25
    assert ratio(torch.tensor(0.3, dtype=torch.bfloat16), below).dtype == torch.float32


@fuzz(200)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=8),
    st.integers(1, 6),
    st.floats(0.01, 2),
    st.booleans(),
    st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
)
def test_info_nce_of_any_batch(captions, hidden, temperature, one_way, scale):
    """Any batch, of one clip or of one caption alone, costs a finite loss of 0 or more with finite
    gradients, whatever the size of its features; without a negative it costs nothing."""
    modality = (scale * gaussian(len(captions), hidden)).requires_grad_()
    text = gaussian(len(captions), hidden, seed=1).requires_grad_()
    loss = info_nce(modality, text, temperature, numbers(captions), one_way)
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert modality.grad.isfinite().all() and text.grad.isfinite().all()
    assert len(set(captions)) > 1 or loss == 0


@fuzz(200)
@given(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4)), st.data())
def test_text_losses_are_their_definitions_for_any_mask(size, data):
    """Whatever is padding and whatever it holds, rows or whole batches of it too: reconstruction is
    the squared error over the sent power, and means are means, of real tokens alone; both are
    finite, 0 where there is none, and give gradients to real tokens alone."""
    batch, length, _ = size
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    mask = torch.tensor(data.draw(st.lists(row, min_size=batch, max_size=batch)))
    sent, received = gaussian(*size), gaussian(*size, seed=1)
    received[~mask] = 1e4
    received.requires_grad_()
    loss, means = reconstruction(received, sent, mask), masked_mean(received, mask)
    (loss + means.square().sum()).backward()
    assert loss.isfinite() and received.grad.isfinite().all()
    assert received.grad[~mask].eq(0).all() and received.grad[mask].ne(0).all()
    error, power = (received.detach() - sent)[mask].square().sum(), sent[mask].square().sum()
    assert loss.item() == pytest.approx((error / power).item() if mask.any() else 0, rel=1e-4)
    for mean, tokens, real in zip(means, received, mask, strict=True):
        wanted = tokens[real].mean(dim=0) if real.any() else torch.zeros(size[2])
        torch.testing.assert_close(mean, wanted)
