"""Both stages on the shipped mini models, and clips of random tokens; not a test itself."""

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import Dataset

import task_align
import task_avqa
from modules.system import Alignment, Answering, Batch, System
from modules.token_compression import Layout
from tests.helpers.draw import gaussian
from utils.data.clips import Collate
from utils.data.datasets import Caption, Question
from utils.data.models import Processors, build_system


def alignment(**changes) -> tuple[Alignment, Processors]:
    """Stage 1 in the mini preset with all receivers trained, but for `changes`."""
    config = replace(task_align.PRESETS["mini"], **{"text_receiver": "residual", **changes})
    system, processors = build_system(config)
    return Alignment(system, config), processors


def answering(**changes) -> tuple[Answering, Processors]:
    """Stage 2 in the mini preset with all receivers trained, but for `changes`."""
    changes = {"text_receiver": "residual", **changes}
    return task_avqa.build_model(replace(task_avqa.PRESETS["mini"], **changes))


def questions(
    texts: Sequence[str], answers: Sequence[str], clips: Sequence | None = None
) -> list[Question]:
    """One a clip, or each about the clip of that name in `clips`."""
    asked = zip(clips or range(len(texts)), texts, answers, strict=True)
    return [Question(f"{clip}", "Audio Counting", text, text, said) for clip, text, said in asked]


class RandomClips(Dataset):
    """Rows about clips of random encoder tokens, of the shapes that the system caches."""

    kept = True  # in memory

    def __init__(self, system: System, rows: list[Question] | list[Caption]):
        self.rows = rows
        self.place = {row.video_id: i for i, row in enumerate(rows)}
        self.tokens, self.layouts = [], {}
        for i, (kind, tx) in enumerate(system.transmitters.items()):
            shape = (tx.special + tx.length, tx.projection.in_features)
            self.tokens.append(gaussian(len(rows), *shape, seed=100 + i))
            self.layouts[kind] = Layout(tx.places[: tx.length], gaussian(tx.length, seed=200 + i))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple:
        row = self.rows[i]
        return *(tokens[self.place[row.video_id]] for tokens in self.tokens), row, self.layouts

    def batch(self, processors: Processors, *rows: int, **options) -> Batch:
        """These rows, or all; stage 1 takes questions for captions."""
        collate = Collate(processors.tokenizer, **options)
        return collate([self[i] for i in rows or range(len(self))])
