"""The record of answers that a run leaves, from which runs are compared question by question."""

import csv

import numpy as np

from utils.data.datasets import Question
from utils.report.avqa import read_answers, write_answers
from utils.report.metrics import accuracy_report


def questions(*answers: str) -> list[Question]:
    return [
        Question(f"{i // 2:08d}", "Audio Counting", "?", f'Is it "{i}", or more?', answer)
        for i, answer in enumerate(answers)
    ]


def test_every_answer_is_kept_with_its_clip(tmp_path):
    """Clips keep leading zeros and the split's order; right is what the scores count as right, at
    each SNR; whatever a model says is one cell."""
    asked, path = questions("two", "yes", "no"), tmp_path / "run.answers.csv"
    answers = {-6.0: ["3", "yes\r", 'no, "a\nb"'], 12.0: ["2", "Yes", "yes"]}
    write_answers(path, asked, answers)
    clips, right = read_answers(path)
    assert clips == ["00000000", "00000000", "00000001"]
    assert {snr: found.tolist() for snr, found in right.items()} == {
        "-6": [False, True, False],
        "12": [True, True, False],
    }
    assert accuracy_report(asked, right["12"])["overall"] == np.mean(right["12"])
    rows = list(csv.DictReader(open(path, newline="", encoding="utf-8")))
    assert [row["said_-6"] for row in rows] == answers[-6.0]
    assert [row["question"] for row in rows] == [q.text for q in asked]
