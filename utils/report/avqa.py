"""What task_avqa.py says of its answers: each of them, scores, and a few test clips to look at."""

import csv
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.answers import is_right
from utils.data.clips import Clips
from utils.data.datasets import Question, media_paths
from utils.data.media import clip_frames, clip_sound
from utils.files import shipped, write_whole
from utils.report import plots
from utils.report.metrics import accuracy_report, majority_answers, majority_right


def scores(
    config: Any,
    clips: Clips,
    answers: dict[float, list[str]],
    baseline: dict | None,
    short: dict[str, tuple[float, list[bool]]] | None = None,
) -> dict:
    """The test split scored beside its baselines, as R.json holds it.

    Args:
        config: the run's hyperparameters.
        clips: of every split.
        answers: to the test questions, by SNR in dB.
        baseline: the metrics of the question-only run, if there was one.
        short: by numbers of tokens, as "16x4", the validation loss and which test questions are
            answered right.
    """
    asked = clips["test"].rows

    def score(said: list[str]) -> dict:
        right = [is_right(text, q.answer) for text, q in zip(said, asked, strict=True)]
        return accuracy_report(asked, right)

    accuracy = score(answers[config.snr_db])
    majority = majority_right(majority_answers(clips["train"].rows), asked)
    baselines = {"majority": accuracy_report(asked, majority)}
    if baseline is not None:
        baselines["question_only"] = baseline["accuracy"]
    return {
        "accuracy": accuracy,
        "baselines": {k: each["overall"] for k, each in baselines.items()},
        "baselines_by_type": {k: each["by_type"] for k, each in baselines.items()},
        "accuracy_by_snr": {f"{snr:g}": score(said)["overall"] for snr, said in answers.items()},
        "by_lengths": {
            pair: {"validation_loss": loss, "accuracy": float(np.mean(right))}
            for pair, (loss, right) in (short or {}).items()
        },
        "ceilings": ceilings(config.foundation_model),
        "questions": {split: clips.counts(split) for split in clips},
    }


def ceilings(folder: str) -> dict[str, dict[str, float]]:
    """By question type, what the mini language model answers right from captions as clean text and
    from ideal tokens, as its pretraining measured it; {} for a model that has no such file."""
    path = shipped(folder) / "ceilings.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write_answers(
    path: Path,
    asked: Sequence[Question],
    answers: dict[float, list[str]],
    short: dict[str, tuple[float, list[bool]]] | None = None,
) -> None:
    """R.answers.csv, from which runs are compared question by question: for each test question, in
    the split's order, its clip, text and true answer, and at each SNR in dB what was said and
    whether that is right (1 or 0); the latter also for each pair of token lengths in `short`."""
    columns = {"clip": [q.video_id for q in asked], "question": [q.text for q in asked]}
    columns["answer"] = [q.answer for q in asked]
    for snr, said in answers.items():
        right = (is_right(text, q.answer) for text, q in zip(said, asked, strict=True))
        columns |= {f"said_{snr:g}": said, f"right_{snr:g}": [int(ok) for ok in right]}
    columns |= {
        f"right_{pair}": list(map(int, right)) for pair, (_, right) in (short or {}).items()
    }
    table = io.StringIO()
    rows = zip(*columns.values(), strict=True)
    csv.writer(table).writerows([columns, *rows])
    write_whole(path, table.getvalue())


def read_answers(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """What `write_answers` wrote: the clip of each question, and by SNR, as "12", or token lengths,
    as "16x4", whether it was answered right (questions,)."""
    with open(path, newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    columns = dict(zip(head, zip(*rows, strict=True), strict=True))
    kept = {k.removeprefix("right_"): v for k, v in columns.items() if k.startswith("right_")}
    return list(columns["clip"]), {name: np.array(v) == "1" for name, v in kept.items()}


def print_accuracies(found: dict) -> None:
    """The table that a run ends with, in percent, of what `scores` found."""
    columns = {"model": found["accuracy"]["by_type"], **found["baselines_by_type"]}
    overall = [found["accuracy"]["overall"], *found["baselines"].values()]
    columns |= {f"from {name}": column for name, column in found["ceilings"].items()}
    print(f"{'accuracy (%)':26}" + "".join(f"{name:>15}" for name in columns))
    print(f"{'overall':26}" + "".join(f"{100 * value:15.1f}" for value in overall))
    for kind in found["accuracy"]["by_type"]:
        cells = (100 * column[kind] for column in columns.values())
        print(f"{kind:26}" + "".join(f"{cell:15.1f}" for cell in cells))
    by_snr = found["accuracy_by_snr"].items()
    print("by test SNR:", ", ".join(f"{snr} dB {100 * a:.1f} %" for snr, a in by_snr))


def draw(run: Any, found: dict, said: list[str], stem: str) -> dict:
    """Loss curve, accuracy by question type and by SNR, example clips; returns their paths as
    `figures`.

    Args:
        run: the training run.
        found: what `scores` found.
        said: answers at the training SNR.
    """
    c, accuracy = run.config, found["accuracy"]
    title = f"{accuracy['n']} test questions at {c.snr_db:g} dB"
    types, baselines = accuracy["by_type"], found["baselines_by_type"]
    by_snr = {"model": found["accuracy_by_snr"]}
    losses = (run.log.rows, run.validation, ["loss"])
    figures = plots.draw_all({
        f"{stem}-loss.png": partial(plots.loss_curve, *losses, title="fine-tuning"),
        f"{stem}-types.png": partial(plots.accuracy_by_type, types, baselines, title=title),
        f"{stem}-snr.png": partial(plots.accuracy_by_snr, by_snr, c.snr_db),
        f"{stem}-examples.png": partial(
            draw_examples, Path(c.data), c.media, run.clips["test"].rows, said
        ),
    })  # fmt: skip
    return {"figures": figures}


def draw_examples(
    root: Path, media: str, questions: Sequence[Question], predictions: Sequence[str], path: str
) -> str:
    return plots.examples(example_clips(root, questions, predictions, media=media), path)


def example_clips(
    root: Path,
    questions: Sequence[Question],
    predictions: Sequence[str],
    clips: int = 4,
    media: str = "extraction",
) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Test clips spread over the split, each with its first questions: frames, waveform, lines."""
    names = list(dict.fromkeys(q.video_id for q in questions))
    picked = names
    if len(names) > clips:
        picked = [names[i] for i in np.linspace(0, len(names) - 1, clips + 2).astype(int)[1:-1]]
    shown = []
    for name in picked:
        lines = []
        pairs = zip(questions, predictions, strict=True)
        for q, said in [(q, said) for q, said in pairs if q.video_id == name][:4]:
            mark = "right" if is_right(said, q.answer) else "wrong"
            lines += [q.text, f"  {q.answer} | said {said.strip()!r}: {mark}"]
        paths = media_paths(root, name, media)  # the sound first, or one video for both
        shown.append((clip_frames(paths[-1], 32, 224), clip_sound(paths[0]), lines))
    return shown
