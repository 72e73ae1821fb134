"""What the stages report: retrieval, and over which questions accuracy is averaged."""

import pytest
import torch

from utils.data.datasets import QUESTION_TYPES, Question
from utils.report.metrics import (
    accuracy_report,
    geometry,
    majority_answers,
    majority_right,
    recall_at_1,
    retrieval,
    uniformity,
)


def ask(answer="yes", kind="Audio Counting", video_id="00000001", template="How many?"):
    return Question(video_id, kind, template, template, answer)


def test_recall_finds_the_own_caption():
    """The share of clips whose nearest caption by cosine is their own."""
    gallery = torch.eye(4)
    queries = torch.tensor([[9.0, 1, 0, 0], [0, 0.1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    assert recall_at_1(queries, gallery, list("abcd")) == 0.5
    assert (
        recall_at_1(queries, gallery * torch.tensor([[1e-3], [1], [7], [50]]), list("abcd")) == 0.5
    )
    assert recall_at_1(gallery, gallery, list("abcd")) == 1
    assert recall_at_1(gallery.bfloat16(), gallery, list("abcd")) == 1


def test_recall_counts_equal_captions_once():
    """A clip is right at its caption, whichever of the clips with that caption comes first."""
    texts = ["dog", "cat", "dog", "cat", "cow"]
    gallery = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert recall_at_1(gallery, gallery, texts) == 1
    queries = torch.tensor([[0.0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]])
    assert recall_at_1(queries, gallery, texts) == pytest.approx(3 / 5)
    # The noise on a caption's other copy is no second chance.
    gallery[2] = torch.tensor([0.0, 0, 9])
    assert recall_at_1(torch.tensor([[0.0, 0, 1]] * 5), gallery, texts) == pytest.approx(1 / 5)


def test_accuracy_groups():
    """Overall is over questions, and each group is over its own."""
    rows = [
        (ask(kind="Audio Counting"), True),
        (ask(kind="Audio Counting"), False),
        (ask(kind="Audio Comparative"), True),
        (ask(kind="Visual Location", video_id="sa00000001"), False),
        (ask(kind="Audio-Visual Temporal"), True),
        (ask(kind="Audio-Visual Counting", video_id="vv00000002"), True),
        (ask(kind="Audio-Visual Counting"), False),
    ]
    report = accuracy_report(*zip(*rows, strict=True))
    assert report["overall"] == pytest.approx(4 / 7) and report["n"] == 7
    assert report["by_type"] == {
        "Audio Counting": 0.5,
        "Audio Comparative": 1.0,
        "Visual Location": 0.0,
        "Audio-Visual Counting": 0.5,
        "Audio-Visual Temporal": 1.0,
    }
    assert report["by_modality"] == pytest.approx(
        {"Audio": 2 / 3, "Visual": 0.0, "Audio-Visual": 2 / 3}
    )
    assert report["by_source"] == pytest.approx({"real": 3 / 5, "synthetic": 1 / 2})


def test_accuracy_of_all_types():
    """All nine question types are told apart, and the groups add up to the whole. A prediction too
    many or too few is an error, not a shorter test."""
    questions = [ask(kind=kind) for kind in QUESTION_TYPES for _ in range(3)]
    report = accuracy_report(questions, [i % 4 == 0 for i in range(27)])
    assert list(report["by_type"]) == list(QUESTION_TYPES)
    assert sum(report["by_type"].values()) / 9 == pytest.approx(report["overall"])
    with pytest.raises(ValueError):
        accuracy_report([ask(), ask()], [True])


def test_majority_answers():
    """Majority by template falls back on the majority of all where the template is new."""
    train = [
        ask("yes", "Audio-Visual Existential", template="Is it?"),
        ask("no", "Audio Comparative", template="Is it?"),
        ask("no", "Audio Comparative", template="Is it?"),
        ask("yes", "Audio Comparative", template="Is <Object>?"),
        ask("yes", "Audio Comparative", template="Is <Object>?"),
        ask("one", "Audio Counting"),
    ]
    test = [
        ask("yes", "Audio-Visual Existential", template="Is it?"),
        ask("no", "Audio Comparative", template="Is it?"),
        ask("yes", "Audio Comparative", template="Is <Object>?"),
        ask("one", "Audio Counting"),
        ask("yes", "Visual Location", template="Never seen?"),
    ]
    assert majority_right(majority_answers(train), test) == [True] * 5
    by_type = majority_right(majority_answers(train, "type"), test, "type")
    assert by_type == [True, True, False, True, True]  # a tie: no comes before yes
    by_all = majority_right(majority_answers(train, "all"), test, "all")
    assert by_all == [True, False, True, False, True]


def directions(*angles):
    """Unit vectors in the plane, (clips, 2), of any length."""
    angles = torch.tensor(angles)
    return 3 * torch.stack([angles.cos(), angles.sin()], dim=1)


def test_geometry_of_features_that_coincide():
    """Modalities that say the same have no gap and no distance, and form no clusters."""
    same = directions(0.0, 1.0, 2.0, 4.0)
    found = geometry({"visual": same, "audio": 2 * same, "text": same})
    for key in ("gap_visual", "gap_audio", "alignment_visual", "alignment_audio"):
        assert found[key] == pytest.approx(0, abs=1e-6)
    assert found["uniformity_text"] == found["uniformity_audio"]
    assert found["silhouette"] < 0


def test_geometry_by_hand():
    """Centroids, distances and silhouette of features that lie at known angles."""
    pi = torch.pi
    found = geometry({
        "visual": directions(pi, pi),
        "audio": directions(pi / 2, pi / 2),
        "text": directions(0.0, 0.0),
    })  # fmt: skip
    assert found["gap_visual"] == pytest.approx(2, abs=1e-5)
    assert found["gap_audio"] == pytest.approx(2**0.5, abs=1e-5)
    assert found["alignment_visual"] == pytest.approx(4, abs=1e-5)
    assert found["alignment_audio"] == pytest.approx(2, abs=1e-5)
    assert found["uniformity_visual"] == pytest.approx(0, abs=1e-5)
    assert found["silhouette"] == pytest.approx(1, abs=1e-5)


def test_uniformity_by_hand():
    """Opposite points lie at a distance of 2: exp(-8) each."""
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
    drawn = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    spread = torch.nn.functional.normalize(drawn, dim=-1)
    assert uniformity(spread) < uniformity(spread.abs()) < 0
    assert uniformity(spread[:1]) == 0


def test_retrieval_is_both_modalities_beside_chance():
    """R@1 of each modality; equal captions count once in chance."""
    text = torch.eye(4)
    found = retrieval({"visual": text, "audio": text.roll(1, 0), "text": text}, list("abca"))
    assert found["visual_to_text_r1"] == 1 and found["chance_r1"] == 1 / 3 and found["n"] == 4
    assert found["audio_to_text_r1"] < 0.5


def test_geometry_of_one_clip():
    """A single held-out clip has a gap and a distance; there is nothing to cluster or spread."""
    found = geometry({m: directions(float(i)) for i, m in enumerate(("visual", "audio", "text"))})
    assert found["silhouette"] == 0 and found["uniformity_text"] == 0
    assert found["gap_visual"] ** 2 == pytest.approx(found["alignment_visual"])
