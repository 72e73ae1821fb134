"""Clips as training reads them: encoder tokens from the cache, with a caption or a question."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modules.foundation_model import PROMPT
from utils.datasets import Caption, DataError, Question
from utils.feature_cache import read_tokens

IN_MEMORY = 2 << 30  # bytes; a data set below this is read once and kept


class ClipTokens(Dataset):
    """Rows (captions or questions) with their clip's visual and audio tokens.

    Small data sets are held in memory, large ones are read from the cache as they are asked for.
    """

    def __init__(self, rows: list[Caption] | list[Question], folders: dict[str, Path]):
        if not rows:
            raise DataError(f"{folders['visual']}: no clip of the split is left to read")
        self.rows, self.folders = rows, folders
        self.kept: dict[str, tuple[Tensor, Tensor]] = {}
        names = list(dict.fromkeys(row.video_id for row in rows))
        if len(names) * sum(t.nbytes for t in self._read(names[0])) < IN_MEMORY:
            self.kept = {name: self._read(name) for name in names}

    def _read(self, video_id: str) -> tuple[Tensor, Tensor]:
        # Their media was checked against the cache when the run began.
        files = [self.folders[kind] / f"{video_id}.safetensors" for kind in ("visual", "audio")]
        visual, audio = (read_tokens(file, None) for file in files)
        if visual is None or audio is None:
            raise OSError(f"{files[0 if visual is None else 1]}: unreadable; remove it, run again")
        return visual, audio

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Any]:
        video_id = self.rows[i].video_id
        return *(self.kept.get(video_id) or self._read(video_id)), self.rows[i]


@dataclass
class Batch:
    """What a step reads; everything is padded on the right."""

    visual: Tensor  # (batch, 1 + visual tokens, encoder width)
    audio: Tensor  # (batch, 2 + audio tokens, encoder width)
    ids: Tensor  # (batch, text tokens): the caption, or the question in its prompt
    mask: Tensor  # (batch, text tokens), True at real tokens
    answer_ids: Tensor | None  # (batch, answer tokens), end of text last
    answer_mask: Tensor | None
    rows: list  # the captions or questions themselves

    def to(self, device: torch.device) -> "Batch":
        moved = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
            for k, v in vars(self).items()
        }
        return Batch(
            **{**moved, "visual": moved["visual"].float(), "audio": moved["audio"].float()}
        )


def pad(rows: list[list[int]], value: int) -> tuple[Tensor, Tensor]:
    """Ids (batch, longest) padded on the right, and the mask of the real ones."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [value] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    return ids, mask


@dataclass
class Collate:
    """Puts rows of `ClipTokens` into a `Batch`; captions are cut at `max_tokens`."""

    tokenizer: Any
    max_tokens: int = 256

    def __call__(self, items: list[tuple[Tensor, Tensor, Any]]) -> Batch:
        rows = [row for _, _, row in items]
        end, answers = self.tokenizer.eos_token_id, (None, None)
        if isinstance(rows[0], Question):
            texts = [PROMPT.format(question=row.text) for row in rows]
            # The space belongs to the answer's first token, as in running text.
            ids = self.tokenizer([" " + row.answer for row in rows])["input_ids"]
            answers = pad([row + [end] for row in ids], end)
        else:
            texts = [row.text for row in rows]
        ids, mask = pad([t[: self.max_tokens] for t in self.tokenizer(texts)["input_ids"]], end)
        return Batch(
            visual=torch.stack([visual for visual, _, _ in items]),
            audio=torch.stack([audio for _, audio, _ in items]),
            ids=ids,
            mask=mask,
            answer_ids=answers[0],
            answer_mask=answers[1],
            rows=rows,
        )


def shuffled_batches(rows: int, batch: int, steps: int, seed: int) -> list[list[int]]:
    """The row numbers of every step: shuffled passes over all rows, whole batches alone."""
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, rows)
    out: list[list[int]] = []
    while len(out) < steps:
        order = torch.randperm(rows, generator=generator)
        out += [part.tolist() for part in order.split(batch) if len(part) == batch]
    return out[:steps]


def training_loader(
    data: ClipTokens, collate: Collate, batch: int, steps: int, seed: int, workers: int
) -> DataLoader:
    """`steps` shuffled batches."""
    return DataLoader(
        data,
        batch_sampler=shuffled_batches(len(data), batch, steps, seed),
        collate_fn=collate,
        num_workers=0 if data.kept else workers,
        pin_memory=torch.cuda.is_available(),
    )


def in_order(data: ClipTokens, collate: Collate, batch: int) -> DataLoader:
    """All rows once, in order, the last batch as short as it comes."""
    return DataLoader(data, batch_size=batch, collate_fn=collate)
