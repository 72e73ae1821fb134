"""What the runs of an experiment are compared by: metrics, and answers question by question."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.report.avqa import read_answers
from utils.report.statistics import crossed
from utils.runs import Run

Metrics = dict[str, dict]  # a run's R.json by its name


def metrics_of(runs: list[Run], metrics: Metrics) -> list[dict]:
    return [metrics[run.name] for run in runs]


def accuracies(found: list[dict]) -> list[float]:
    return [run["accuracy"]["overall"] for run in found]


def validation_losses(found: list[dict]) -> list[float]:
    """At the end of training, nats a token."""
    return [run["validation_loss"][-1][1] for run in found]


def answers_of(run: Run) -> tuple[list[str], dict[str, np.ndarray]]:
    """The clip of each test question, and by SNR, as "12", or token lengths, as "16x4", whether it
    was answered right (questions,)."""
    return read_answers(Path(run.config.out) / f"{run.name}.answers.csv")


def scores(sides: Sequence[list[Run]], tested: Sequence[float | str] = ()) -> np.ndarray:
    """How far each test question is answered right, (seeds, questions): 0 to 1, the mean over
    `sides`, each a list of runs with the same seeds, and over test SNRs in dB or token lengths;
    without any, at the SNR of training."""

    def right(run: Run) -> np.ndarray:
        found = answers_of(run)[1]
        names = [t if isinstance(t, str) else f"{t:g}" for t in tested or [run.config.snr_db]]
        return np.mean([found[name] for name in names], axis=0)

    return np.mean([[right(run) for run in side] for side in sides], axis=0)


def gain(
    ours: Sequence[list[Run]],
    theirs: Sequence[list[Run]],
    tested: Sequence[float | str] = (),
    theirs_tested: Sequence[float | str] = (),
) -> dict:
    """Accuracy of our runs less that of theirs, as a fraction: `mean` and `ci95` over seeds and
    clips, of what `scores` gives of the same tests, or of `theirs_tested`."""
    apart = scores(ours, tested) - scores(theirs, theirs_tested or tested)
    return crossed(apart, answers_of(ours[0][0])[0])
