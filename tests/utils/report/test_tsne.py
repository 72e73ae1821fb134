"""t-SNE: it never fails, repeats, and its pictures share their axes."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.report.metrics import recall_at_1
from utils.report.tsne import limits, one_each, own_captions, tsne_points, write_points


def features(clips, hidden=8, seed=0):
    rng = np.random.default_rng(seed)
    return {m: rng.normal(size=(clips, hidden)) for m in ("visual", "audio", "text")}


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.booleans())
def test_any_number_of_clips_gives_points(clips, hidden, constant):
    """From one clip on, also where features are few or all the same."""
    found = features(clips, hidden)
    if constant:
        found = {m: np.ones_like(f) for m, f in found.items()}
    points = tsne_points(found, seed=0)
    assert points.keys() == found.keys()
    for xy in points.values():
        assert xy.shape == (clips, 2) and np.isfinite(xy).all()


def matching(clips=40, noise=0.5, gap=1.0, seed=0):
    """Pictures and sounds that find their captions, though each kind lies with its own: what the
    clips of a kind share is as large as what tells them apart."""
    rng = np.random.default_rng(seed)
    clip = rng.normal(size=(clips, 32))
    return {
        m: clip + noise * (m != "text") * rng.normal(size=(clips, 32)) + gap * rng.normal(size=32)
        for m in ("visual", "audio", "text")
    }


def test_points_repeat_and_say_what_is_retrieved():
    """The same seed gives the same points; a clip lies beside its own caption as often as its
    features find it, whatever gap lies between the modalities; without alignment it does not."""
    found, texts = matching(), [str(i) for i in range(40)]
    points, again = (tsne_points(found, seed=1) for _ in range(2))
    for m in points:
        np.testing.assert_array_equal(points[m], again[m])
    shares = own_captions(points, texts)
    for m in ("visual", "audio"):
        retrieved = recall_at_1(torch.tensor(found[m]), torch.tensor(found["text"]), texts)
        assert retrieved > 0.9 and shares[m] == pytest.approx(retrieved, abs=0.1)
    assert max(own_captions(tsne_points(features(40), 1), texts).values()) < 0.2


def test_share_of_own_captions():
    """By hand: the nearest caption of each point, a caption of the same words being its own."""
    line = np.array([[0, 0], [10, 0], [20, 0]], float)
    points = {"visual": line + 1, "audio": line[[1, 0, 2]], "text": line}
    assert own_captions(points, ["a", "b", "c"]) == {"visual": 1.0, "audio": pytest.approx(1 / 3)}
    assert own_captions(points, ["a", "a", "c"]) == {"visual": 1.0, "audio": 1.0}


def test_length_of_features_does_not_matter():
    """Features are compared by direction, as the loss does."""
    found = features(12)
    scaled = {m: 8 * f for m, f in found.items()}  # exact in binary: t-SNE magnifies rounding
    for m, xy in tsne_points(found, 0).items():
        np.testing.assert_allclose(xy, tsne_points(scaled, 0)[m], atol=0.1)


def test_all_models_are_drawn_with_the_same_axes(tmp_path):
    """The ranges hold every point of every model; each figure comes as PNG and PDF."""
    models = {"a": tsne_points(features(6), 0), "b": tsne_points(features(6, seed=1), 0)}
    (left, right), (low, high) = limits(list(models.values()))
    for points in models.values():
        for xy in points.values():
            assert (left < xy[:, 0]).all() and (xy[:, 0] < right).all()
            assert (low < xy[:, 1]).all() and (xy[:, 1] < high).all()
    drawn = one_each(models, [tmp_path / "a.png", tmp_path / "b.png"])
    assert drawn == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "a.pdf", "b.png", "b.pdf"}


def test_points_come_as_csv(tmp_path):
    """A row a model, clip and modality, with the clip's own id."""
    points = tsne_points(features(5), 0)
    ids = ["a,b", "2", "-3", '"q"', "é"]
    path = write_points(tmp_path / "new" / "p.csv", {"tau = 1": points}, ids)
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["video_id"] for row in rows] == 3 * ids
    assert {row["modality"] for row in rows} == {"visual", "audio", "text"}
    assert float(rows[7]["y"]) == pytest.approx(points["audio"][2, 1], abs=1e-4)
