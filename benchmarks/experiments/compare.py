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
    """The clip of each test question, and by SNR whether it was answered right (questions,)."""
    return read_answers(Path(run.config.out) / f"{run.name}.answers.csv")


def scores(sides: Sequence[list[Run]], snr_db: Sequence[float] = ()) -> np.ndarray:
    """How far each test question is answered right, (seeds, questions): 0 to 1, the mean over
    `sides`, each a list of runs with the same seeds, and over test SNRs in dB; without any, at the
    SNR of training."""

    def right(run: Run) -> np.ndarray:
        by_snr = answers_of(run)[1]
        return np.mean([by_snr[f"{snr:g}"] for snr in snr_db or [run.config.snr_db]], axis=0)

    return np.mean([[right(run) for run in side] for side in sides], axis=0)


def gain(
    ours: Sequence[list[Run]],
    theirs: Sequence[list[Run]],
    snr_db: Sequence[float] = (),
    their_snr_db: Sequence[float] = (),
) -> dict:
    """Accuracy of our runs less that of theirs, as a fraction: `mean` and `ci95` over seeds and
    clips, of what `scores` gives at the same SNRs, or at `their_snr_db`."""
    apart = scores(ours, snr_db) - scores(theirs, their_snr_db or snr_db)
    return crossed(apart, answers_of(ours[0][0])[0])
