"""What the mini language model is asked, and in which order."""

from collections import Counter
from itertools import islice

import numpy as np

from utils.mini.lessons import (
    FRONT,
    ORDER,
    REHEARSED,
    THOUGHTS,
    Progress,
    asked,
    steps_of_thought,
    thoughts,
)
from utils.mini.scenes import draw_scene
from utils.mini.text import LEVEL_WORDS, ORDER_WORDS

SCENES = [draw_scene(0, "train", i) for i in range(60)]


def test_all_lessons_are_asked():
    """No template in the order, or among those with thoughts, is misspelt or has gone."""
    rng = np.random.default_rng(0)
    known = {row[3] for scene in SCENES for row in asked(scene, rng, 1000, {})}
    assert {*ORDER, *THOUGHTS} <= known


def test_a_few_lessons_at_a_time():
    """The first ones in order; one makes room when it is learnt, or when patience ends."""
    progress = Progress(learnt=0.1, patience=500)
    assert [*progress.shares()] == [*ORDER[:FRONT]]
    progress.mark([(ORDER[0], True)] * 200)  # learnt
    assert [*progress.shares()] == [*ORDER[1 : FRONT + 1]]
    progress.mark([(ORDER[1], False)] * 499)
    assert ORDER[1] in progress.shares()
    progress.mark([(ORDER[1], False)])
    assert [*progress.shares()] == [*ORDER[2 : FRONT + 2]]
    progress.mark([(ORDER[0], False)] * 100)  # forgotten
    assert [*progress.shares()] == [ORDER[0], *ORDER[2 : FRONT + 1]]


def test_in_the_end_all_lessons_come_by_how_often_they_are_answered_wrongly():
    """None is left out, however well it is known."""
    progress = Progress(learnt=0.1, patience=500, weak=True)
    progress.mark([(ORDER[0], True)] * 500)
    progress.mark([(ORDER[1], right) for right in (True, False)] * 250)
    shares = progress.shares()
    assert shares[ORDER[0]] == REHEARSED and 0.4 < shares[ORDER[1]] < 0.6


def test_what_is_to_be_learnt_comes_more_often():
    """Of a dozen questions most are of the templates with a share of 1."""
    rng = np.random.default_rng(1)
    front = dict.fromkeys(ORDER[:FRONT], 1.0)
    rows = [row[3] for scene in SCENES for row in asked(scene, rng, 4, front)]
    assert np.mean([template in front for template in rows]) > 0.7
    rows = [row[3] for scene in SCENES for row in asked(scene, rng, 4)]
    assert np.mean([template in front for template in rows]) < 0.4


def test_answers_follow_from_what_is_thought_of():
    """Levels and turns of the two players decide each comparison; the first sound comes from a side
    if the thoughts there and there are the same."""
    rng, seen = np.random.default_rng(2), Counter()
    ranks = {"level": LEVEL_WORDS, "turn": ORDER_WORDS}
    for scene in SCENES:
        for _, answer, _, template, values in asked(scene, rng, 1000, {}):
            if len(values) < 2 or template not in THOUGHTS:
                continue
            one, other = (thoughts(scene, template, value) for value in values)
            if THOUGHTS[template] == ("turn", "instrument"):
                holds = one == other
            else:
                words = ranks[THOUGHTS[template][0]]
                holds = words.index(one[0]) < words.index(other[0])
            assert answer == (" yes" if holds else " no")
            seen[template] += 1
    assert len(seen) == 5 and min(seen.values()) > 20


def test_steps_of_thought_are_true():
    """Each names the performer, level or turn that the scene has."""
    for scene in islice(SCENES, 20):
        loud = max(scene.sounding, key=lambda p: p.level)
        answers = {question: answer for _, _, question, answer in steps_of_thought(scene)}
        assert answers["Who is loud?"].endswith(loud.instrument.replace("_", " "))
        assert answers[f"How loud is the {loud.instrument}?"] == "loud"
        for turn, performer in zip(ORDER_WORDS, scene.sounding, strict=False):
            assert answers[f"When does the {performer.instrument} enter?"] == turn
            assert answers[f"Does the {performer.instrument} rest?"] == (
                "yes" if performer.rests else "no"
            )
