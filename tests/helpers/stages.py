"""Both stages on the shipped mini models, and clips of random tokens; not a test itself."""

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import Dataset

import task_align
import task_avqa
from modules.system import Alignment, Answering, Batch, System
from tests.helpers.draw import gaussian
from utils.data.clips import Collate
from utils.data.datasets import Caption, Question
from utils.data.models import Processors, build_system


def alignment(**changes) -> tuple[Alignment, Processors]:
    """Stage 1 in the mini preset, but for `changes`."""
    config = replace(task_align.PRESETS["mini"], **changes)
    system, processors = build_system(config)
    return Alignment(system, config), processors


def answering(**changes) -> tuple[Answering, Processors]:
    """Stage 2 in the mini preset, but for `changes`."""
    return task_avqa.build_model(replace(task_avqa.PRESETS["mini"], **changes))


def questions(texts: Sequence[str], answers: Sequence[str]) -> list[Question]:
    both = enumerate(zip(texts, answers, strict=True))
    return [Question(f"{i}", "Audio Counting", text, text, answer) for i, (text, answer) in both]


class RandomClips(Dataset):
    """Rows about clips of random encoder tokens, of the shapes that the system caches."""

    kept = True  # in memory

    def __init__(self, system: System, rows: list[Question] | list[Caption]):
        self.rows = rows
        self.tokens = [
            gaussian(len(rows), tx.special + tx.length, tx.projection.in_features, seed=100 + i)
            for i, tx in enumerate(system.transmitters.values())
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple:
        return *(tokens[i] for tokens in self.tokens), self.rows[i]

    def batch(self, processors: Processors, *rows: int) -> Batch:
        """These rows, or all; stage 1 takes questions for captions."""
        return Collate(processors.tokenizer)([self[i] for i in rows or range(len(self))])
