"""Clips as training reads them: encoder tokens from the cache, with a caption or a question."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from modules.foundation_model import PROMPT
from utils.data.datasets import Caption, Question
from utils.data.features import Reader, loading, read_tokens

IN_MEMORY = 2 << 30  # bytes; a data set below this is read once and kept
STRETCH = 8  # batches among which rows are sorted by length


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


@dataclass
class Batch:
    """What a step reads; everything is padded on the right."""

    visual: Tensor  # (batch, 1 + visual tokens, encoder width)
    audio: Tensor  # (batch, 2 + audio tokens, encoder width)
    ids: Tensor  # (batch, text tokens): the caption, or the question in its prompt
    mask: Tensor  # (batch, text tokens), True at real tokens
    text: Tensor  # (batch,), a number for each distinct text
    answer_ids: Tensor | None  # (batch, answer tokens), end of text last
    answer_mask: Tensor | None
    rows: list  # the captions or questions themselves
    # Without a cache `visual` and `audio` are encoder inputs, and this counts each clip's windows.
    windows: list[int] | None = None

    def to(self, device: torch.device, non_blocking: bool = True) -> "Batch":
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, visual=moved.visual.float(), audio=moved.audio.float())

    def pin_memory(self) -> "Batch":
        """The loader asks for this, so that copies to an accelerator do not hold up the host."""
        return self._each(Tensor.pin_memory)

    def _each(self, change) -> "Batch":
        return Batch(
            **{k: change(v) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        )


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

    With the rows' lengths given, rows of like length share a batch, so that little is padding:
    each stretch of a pass, `STRETCH` batches long, is sorted by length before it is cut into
    batches, whose order is shuffled again. The same in every process, of which each takes its
    share of a batch.
    """

    rows: int
    batch_size: int
    batches: int
    seed: int
    lengths: list[int] | None = None
    skip: int = 0  # batches that a run read before it was stopped
    drop_last = True

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, self.rows)

    def __len__(self) -> int:
        return self.batches - self.skip

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._passes(), self.skip, self.batches)

    def _passes(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from self._a_pass(generator)

    def _a_pass(self, generator: torch.Generator) -> list[list[int]]:
        size = self.batch_size
        order = torch.randperm(self.rows, generator=generator)[: self.rows // size * size]
        if self.lengths is None:
            return [part.tolist() for part in order.split(size)]
        length, batches = torch.tensor(self.lengths), []
        for stretch in order.split(STRETCH * size):
            parts = stretch[length[stretch].argsort(stable=True)].split(size)
            batches += [parts[i].tolist() for i in torch.randperm(len(parts), generator=generator)]
        return batches


def training_loader(
    data: Dataset, collate: Collate, config: Any, skip: int = 0, by_length: bool = False
) -> DataLoader:
    """Shuffled batches for `config.steps` steps of `config.accumulate` batches each, without the
    first `skip`; `by_length` puts texts of like length together."""
    lengths = [len(row.text) for row in data.rows] if by_length else None
    batches = config.steps * config.accumulate
    sampler = ShuffledBatches(len(data), config.batch, batches, config.seed, lengths, skip)
    options = loading(0 if data.kept else config.workers)
    return DataLoader(data, batch_sampler=sampler, collate_fn=collate, **options)


def in_order(data: Dataset, collate: Collate, batch: int, workers: int = 0) -> DataLoader:
    """All rows once, in order, the last batch as short as it comes; with several processes
    Accelerate fills it up with the first rows, which `gather_for_metrics` drops again."""
    options = loading(0 if data.kept else workers)
    options["persistent_workers"] = options["num_workers"] > 0  # it is read again and again
    return DataLoader(data, batch_size=batch, collate_fn=collate, **options)
