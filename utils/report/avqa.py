"""What task_avqa.py says of its answers: scores, and a few test clips to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.config import plain
from utils.data.datasets import AnnotationFile, Question, frames_path, wav_path
from utils.data.media import read_frames, read_wav
from utils.report import plots
from utils.report.metrics import accuracy_report, is_right, majority_answers, majority_right
from utils.training.log import RunLog


def score(predictions: Sequence[str], questions: Sequence[Question]) -> dict:
    """Accuracies of generated answers, as `accuracy_report`."""
    right = [is_right(p, q.answer) for p, q in zip(predictions, questions, strict=True)]
    return accuracy_report(questions, right)


def example_clips(
    root: Path, questions: Sequence[Question], predictions: Sequence[str], clips: int = 4
) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Test clips spread over the split, each with its first questions: frames, waveform, lines."""
    names = list(dict.fromkeys(q.video_id for q in questions))
    picked = [names[i] for i in np.linspace(0, len(names) - 1, clips + 2).astype(int)[1:-1]]
    shown = []
    for name in picked:
        lines = []
        for question, prediction in zip(questions, predictions, strict=True):
            if question.video_id == name and len(lines) < 8:
                mark = "right" if is_right(prediction, question.answer) else "wrong"
                lines.append(question.text)
                lines.append(f"  {question.answer} | said {prediction.strip()!r}: {mark}")
        shown.append((read_frames(frames_path(root, name)), read_wav(wav_path(root, name)), lines))
    return shown


def print_accuracies(accuracy: dict, baselines: dict[str, dict], by_snr: dict[str, float]) -> None:
    """The table that a run ends with, in percent."""
    columns = {"model": accuracy, **baselines}
    print(f"{'accuracy (%)':26}" + "".join(f"{name:>15}" for name in columns))
    for kind in ("overall", *accuracy["by_type"]):
        cells = [
            r["overall"] if kind == "overall" else r["by_type"][kind] for r in columns.values()
        ]
        print(f"{kind:26}" + "".join(f"{100 * cell:15.1f}" for cell in cells))
    print("by test SNR:", ", ".join(f"{s} dB {100 * a:.1f} %" for s, a in by_snr.items()))


def coverage(total: dict[str, int], scored: dict[str, int]) -> dict[str, dict[str, int]]:
    """For each split how many questions were read, lacked media, and there are in all."""
    return {
        split: {"scored": scored[split], "without_media": n - scored[split], "total": n}
        for split, n in total.items()
    }


def draw_figures(
    stem: str, losses: tuple, accuracies: tuple, examples: list, snr_db: float
) -> list[str]:
    """Loss curve, accuracy by question type and by SNR, example clips; returns their paths."""
    accuracy, baselines, by_snr = accuracies
    return [
        plots.loss_curve(*losses, ["loss"], Path(f"{stem}-loss.png"), "fine-tuning"),
        plots.accuracy_by_type(
            accuracy["by_type"],
            {name: report["by_type"] for name, report in baselines.items()},
            Path(f"{stem}-types.png"),
            f"{accuracy['n']} test questions at {snr_db:g} dB",
        ),
        plots.accuracy_by_snr({"model": by_snr}, snr_db, Path(f"{stem}-snr.png")),
        plots.examples(examples, Path(f"{stem}-examples.png")),
    ]


def report(
    log: RunLog,
    config: Any,
    questions: dict[str, list[Question]],
    answers: dict[float, list[str]],
    baseline: dict | None,
    about: dict,
    files: dict[str, AnnotationFile],
    total: dict[str, int],
) -> dict:
    """Score the test split beside its baselines, print, draw, and write R.json, which it returns.

    Args:
        log: of the training run.
        config: the run's hyperparameters.
        questions: of each split, those that have media.
        answers: to the test questions, by SNR in dB.
        baseline: what the question-only run wrote, if there was one.
        about: more to write, `validation_loss` as (step, loss) among it.
        files, total: each split's annotation file and number of questions.
    """
    asked, said = questions["test"], answers[config.snr_db]
    accuracy = score(said, asked)
    majority = majority_right(majority_answers(questions["train"]), asked)
    baselines = {"majority": accuracy_report(asked, majority)}
    if baseline is not None:
        baselines["question_only"] = baseline["accuracy"]
    by_snr = {f"{snr:g}": score(part, asked)["overall"] for snr, part in answers.items()}
    figures = []
    if config.figures != "none":
        log.read()
        figures = draw_figures(
            str(Path(config.figures) / log.stem.name),
            losses=(log.rows, about["validation_loss"]),
            accuracies=(accuracy, baselines, by_snr),
            examples=example_clips(Path(config.data), asked, said),
            snr_db=config.snr_db,
        )
    metrics = log.finish(
        {
            "task": "avqa",
            "preset": config.preset,
            "config": plain(config),
            "steps": config.steps,
            "loss": log.ends(),
            **about,
            "accuracy": accuracy,
            "baselines": {k: each["overall"] for k, each in baselines.items()},
            "baselines_by_type": {k: each["by_type"] for k, each in baselines.items()},
            "accuracy_by_snr": by_snr,
            "annotations": {split: vars(file) for split, file in files.items()},
            "questions": coverage(total, {split: len(part) for split, part in questions.items()}),
            "figures": figures,
        }
    )
    print_accuracies(accuracy, baselines, by_snr)
    print("look at:", log.path(".pth"), log.path(".json"), *figures, sep="\n  ")
    return metrics
