"""t-SNE: it never fails, repeats, and its pictures share their axes."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.report.tsne import limits, one_each, tsne_points, write_points


def features(clips, hidden=8, seed=0, apart=0.0):
    rng = np.random.default_rng(seed)
    return {
        m: rng.normal(size=(clips, hidden)) + apart * k
        for k, m in enumerate(("visual", "audio", "text"))
    }


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


def test_points_repeat_and_keep_clusters():
    """The same seed gives the same points; modalities that lie apart stay apart."""
    found = features(40, apart=8.0)
    found["text"] *= -1
    points, again = (tsne_points(found, seed=1) for _ in range(2))
    for m in points:
        np.testing.assert_array_equal(points[m], again[m])
    centres = [xy.mean(axis=0) for xy in points.values()]
    spread = max(xy.std() for xy in points.values())
    assert np.linalg.norm(centres[2] - centres[0]) > spread


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
