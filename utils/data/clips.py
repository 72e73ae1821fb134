"""Clips as training reads them: encoder tokens from the cache, with a caption or a question."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from modules.foundation_model import PROMPT
from modules.system import Batch
from utils.data.datasets import AnnotationFile, Caption, Question
from utils.data.features import read_tokens
from utils.data.media import Reader

IN_MEMORY = 2 << 30  # bytes; a data set below this is read once and kept


class ClipTokens(Dataset):
    """Rows (captions or questions) with their clip's visual and audio tokens.

    Small data sets are held in memory, large ones are read from the cache as they are asked for.
    """

    def __init__(self, rows: list[Caption] | list[Question], folders: dict[str, Path]):
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
class ClipMedia(Dataset):
    """Rows with what the encoders read of their clip, for a run without a cache."""

    rows: list[Caption] | list[Question]
    root: Path
    readers: dict[str, Reader]
    kept = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Any]:
        """Frames (1, frames, 3, height, width), sound (windows, time, mel), and the row."""
        row = self.rows[i]
        readers = (self.readers["visual"], self.readers["audio"])
        return *(reader(reader.path(self.root, row.video_id)) for reader in readers), row


class Clips(dict[str, ClipTokens | ClipMedia]):
    """The rows of every split that have media, by split.

    Args:
        files: each split's annotation file.
        total: rows of each split, those without media included.
        left_out: clips that are missing or cannot be read, with the reason.
    """

    def __init__(
        self,
        splits: dict[str, ClipTokens | ClipMedia],
        files: dict[str, AnnotationFile],
        total: dict[str, int],
        left_out: dict[str, str],
    ):
        super().__init__(splits)
        self.files, self.total, self.left_out = files, total, left_out


def pad(rows: list[list[int]], value: int) -> tuple[Tensor, Tensor]:
    """Ids (batch, longest) padded on the right, and the mask of the real ones."""
    longest = max(1, *map(len, rows))  # a batch of nothing but empty captions is padding alone
    ids = torch.tensor([row + [value] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    return ids, mask


def text_number(text: str) -> int:
    """A number of 56 bits that equal texts share, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


@dataclass
class Collate:
    """Puts rows with their clips into a `Batch`; captions are cut at `max_tokens`.

    Texts are padded to the longest of the batch, no further.
    """

    tokenizer: Any
    max_tokens: int = 256

    def __call__(self, items: list[tuple[Tensor, Tensor, Any]]) -> Batch:
        visual, audio, rows = zip(*items, strict=True)
        end, answers = self.tokenizer.eos_token_id, (None, None)
        if isinstance(rows[0], Question):
            texts = [PROMPT.format(question=row.text) for row in rows]
            # The space belongs to the answer's first token, as in running text.
            ids = self.tokenizer([" " + row.answer for row in rows])["input_ids"]
            answers = pad([row + [end] for row in ids], end)
        else:
            texts = [row.text for row in rows]
        ids, mask = pad([t[: self.max_tokens] for t in self.tokenizer(texts)["input_ids"]], end)
        media = audio[0].ndim == 3  # encoder inputs; clips have as many windows as they are long
        join = torch.cat if media else torch.stack
        return Batch(
            visual=join(visual),
            audio=join(audio),
            ids=ids,
            mask=mask,
            text=torch.tensor([text_number(text) for text in texts]),
            answer_ids=answers[0],
            answer_mask=answers[1],
            rows=list(rows),
            windows=[len(clip) for clip in audio] if media else None,
        )


@dataclass
class ShuffledBatches(Sampler):
    """The row numbers of every batch: shuffled passes over all rows, whole batches alone.

    The same in every process, of which each takes its share of a batch.
    """

    rows: int
    batch_size: int
    batches: int
    seed: int
    skip: int = 0  # batches that a run read before it was stopped
    drop_last = True

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, self.rows)

    def __len__(self) -> int:
        return self.batches - self.skip

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._passes(), self.skip, self.batches)

    def _passes(self) -> Iterator[list[int]]:
        generator, whole = torch.Generator().manual_seed(self.seed), self.rows // self.batch_size
        while True:
            order = torch.randperm(self.rows, generator=generator)[: whole * self.batch_size]
            yield from (part.tolist() for part in order.split(self.batch_size))


def loading(workers: int) -> dict:
    """How loaders work: in processes that hold no accelerator and none of this process's threads,
    forked from one that has imported what they need, once."""
    if workers:
        get_context("forkserver").set_forkserver_preload(["utils.data.clips"])
    return {
        # Each loader draws its workers' seeds from here, so that reading one changes nothing else.
        "generator": torch.Generator(),
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "multiprocessing_context": "forkserver" if workers else None,
    }


def training_loader(data: Dataset, collate: Collate, config: Any, skip: int = 0) -> DataLoader:
    """Shuffled batches for `config.steps` steps of `config.accumulate` batches each, without the
    first `skip`."""
    batches = config.steps * config.accumulate
    sampler = ShuffledBatches(len(data), config.batch, batches, config.seed, skip)
    options = loading(0 if data.kept else config.workers)
    return DataLoader(data, batch_sampler=sampler, collate_fn=collate, **options)


def in_order(data: Dataset, collate: Collate, batch: int, workers: int = 0) -> DataLoader:
    """All rows once, in order, the last batch as short as it comes; with several processes
    Accelerate fills it up with the first rows, which `gather_for_metrics` drops again."""
    options = loading(0 if data.kept else workers)
    options["persistent_workers"] = options["num_workers"] > 0  # it is read again and again
    return DataLoader(data, batch_size=batch, collate_fn=collate, **options)
