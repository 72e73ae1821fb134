"""What the mini encoders' tokens are taught to say of a scene."""

import numpy as np
import pytest

from utils.mini.facts import (
    HEARD,
    NAMES,
    SEEN,
    SLICES,
    blend,
    heard_at_all,
    heard_by_patch,
    seen_at_all,
    seen_by_patch,
)
from utils.mini.scenes import draw_scene

SCENES = [draw_scene(0, "train", i) for i in range(40)]


def test_facts_are_shares():
    """Every fact is a number from 0 to 1 beside a word; no word stands twice in a list."""
    assert len(set(SEEN)) == len(SEEN) and len(set(HEARD)) == len(HEARD)
    for scene in SCENES:
        for facts, words in (
            (seen_by_patch(scene), SEEN),
            (seen_at_all(scene), SEEN),
            (heard_by_patch(scene), HEARD),
            (heard_at_all(scene), HEARD),
        ):
            assert facts.shape[-1] == len(words)
            assert facts.min() >= 0 and facts.max() <= 1.001


def test_patches_say_who_is_where_and_plays_when():
    """A performer is told in its own third of the picture, and plays there when it sounds."""
    for scene in SCENES:
        facts = seen_by_patch(scene)
        for p in scene.on_stage:
            told = facts[..., NAMES.index(p.instrument.replace("_", " "))].sum(axis=(0, 1))
            column = {"left": [0], "middle": [1, 2], "right": [3]}[p.position]
            assert told[column].sum() > 0.6 * told.sum()
    for scene in (s for s in SCENES if len(s.on_stage) == 1):
        plays = seen_by_patch(scene)[..., SEEN.index("plays")].sum(axis=(1, 2))
        for tubelet in range(8):
            share = scene.on_stage[0].share(tubelet * 0.375, (tubelet + 1) * 0.375)
            assert (plays[tubelet] > 0) == (share > 0)


def test_slices_say_how_loud_each_instrument_is_now():
    """Nothing is told of an instrument before its start; the loudest is told loudest."""
    for scene in SCENES:
        facts = heard_by_patch(scene)
        assert facts.shape[0] == SLICES
        peaks = {}
        for p in scene.sounding:
            told = facts[:, NAMES.index(p.instrument.replace("_", " "))]
            assert not told[: max(0, int(p.start / 0.1) - 1)].any()
            peaks[p.level] = told.max()
        assert sorted(peaks, reverse=True) == sorted(peaks, key=peaks.get, reverse=True)


def test_a_mean_over_all_patches_keeps_what_and_loses_where():
    """Two scenes that differ only in which of two performers stands left say the same on average,
    and not so by halves of the picture."""
    scene = next(s for s in SCENES if len(s.on_stage) == 3)
    facts = seen_by_patch(scene)
    mirrored = facts[:, :, ::-1].copy()
    places = slice(SEEN.index("left"), SEEN.index("right") + 1)
    mirrored[..., places] = facts[..., places]
    np.testing.assert_allclose(facts.mean(axis=(0, 1, 2)), mirrored.mean(axis=(0, 1, 2)))
    assert np.abs(facts[:, :, :2] - mirrored[:, :, :2]).mean() > 0.01


@pytest.mark.parametrize("count", [2, 3])
def test_places_lie_between_words(count):
    """The shares of a place add up to 1, and each word is whole somewhere."""
    shares = blend(np.linspace(0, 1, 31), count)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares.max(axis=0), 1, atol=0.06)
