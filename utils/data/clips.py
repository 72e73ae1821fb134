"""Clips as training reads them: encoder tokens from the cache, with a caption or a question."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from modules.foundation_model import PROMPT, PROMPT_END
from modules.system import Batch
from modules.token_transmitter import Windows
from utils.data.datasets import AnnotationFile, Caption, Question, contradicting
from utils.data.features import read_tokens
from utils.data.loading import loading
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

    def __getitem__(self, i: int) -> tuple[Tensor, tuple[Tensor, Windows], Any]:
        """Frames (1, frames, 3, height, width), sound (windows, time, mel) with how much of it is
        the clip, and the row."""
        row = self.rows[i]
        visual, audio = (
            self.readers[kind](self.readers[kind].path(self.root, row.video_id))
            for kind in ("visual", "audio")
        )
        return visual[0], audio, row


class Clips(dict[str, ClipTokens | ClipMedia]):
    """The rows of every split that have media, by split.

    Args:
        files: each split's annotation file.
        total: rows of each split that are not deleted, those without media included.
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

    def counts(self, split: str) -> dict[str, int]:
        """What became of the rows of a split's annotation file; contradicting ones are scored."""
        rows, everything = self[split].rows, self.files[split].rows
        return {
            "scored": len(rows),
            "without_media": self.total[split] - len(rows),
            "deleted": everything - self.total[split],
            "contradicting": contradicting(rows),
            "total": everything,
        }

    def summary(self) -> str:
        """The data in a line a split."""
        lines = []
        for split in self:
            n = self.counts(split)
            line = f"{split}: {n['scored']:,} of {n['total']:,} rows"
            if n["without_media"]:
                line += f", {n['without_media']:,} without media"
            if n["deleted"]:
                line += f", {n['deleted']:,} deleted"
            if n["contradicting"]:
                line += f"; {n['contradicting']:,} contradict another of their clip and question"
            lines.append(line)
        return "\n".join(lines)


def pad(rows: list[list[int]], value: int) -> tuple[Tensor, Tensor]:
    """Ids (batch, longest) padded on the right, and the mask of the real ones."""
    longest = max(1, *map(len, rows))  # a batch of nothing but empty captions is padding alone
    ids = torch.tensor([row + [value] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    return ids, mask


def cut(ids: list[int], most: int, kept: int) -> list[int]:
    """At most `most` token ids of a text, of which the last `kept` are the text's own last ones."""
    return ids if len(ids) <= most else ids[: most - kept] + ids[len(ids) - kept :]


def answer_ids(tokenizer: Any, answers: list[str]) -> list[list[int]]:
    """Token ids of answers; the space before belongs to the first token, as in running text."""
    return tokenizer([" " + answer for answer in answers])["input_ids"]


def answer_limit(clips: Clips, tokenizer: Any, most: int, say: Callable = print) -> int:
    """`most` tokens an answer, or as many as the longest answer of any split has, which could never
    be right with fewer; then `say` tells."""
    answers = sorted({row.answer for part in clips.values() for row in part.rows})
    longest = max(map(len, answer_ids(tokenizer, answers)))
    if longest > most:
        say(f"--answer_tokens {most}: raised to {longest}, the tokens of the longest answer")
    return max(most, longest)


def text_number(text: str) -> int:
    """A number of 56 bits that equal texts share, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


@dataclass
class Collate:
    """Puts rows with their clips into a `Batch`; texts are cut at `max_tokens`, a question keeping
    the ending that asks for its answer.

    Texts are padded to the longest of the batch, no further.
    """

    tokenizer: Any
    max_tokens: int = 256

    def __call__(self, items: list[tuple[Tensor, Any, Any]]) -> Batch:
        visual, audio, rows = zip(*items, strict=True)
        windows = None
        if not isinstance(audio[0], Tensor):  # encoder inputs, in as many windows as a clip is long
            audio, windows = zip(*audio, strict=True)
        end, answers, kept = self.tokenizer.eos_token_id, (None, None), 0
        if isinstance(rows[0], Question):
            texts = [PROMPT.format(question=row.text) for row in rows]
            kept = len(self.tokenizer([PROMPT_END])["input_ids"][0])
            ids = answer_ids(self.tokenizer, [row.answer for row in rows])
            answers = pad([row + [end] for row in ids], end)
        else:
            texts = [row.text for row in rows]
        ids = [cut(text, self.max_tokens, kept) for text in self.tokenizer(texts)["input_ids"]]
        ids, mask = pad(ids, end)
        join = torch.stack if windows is None else torch.cat
        return Batch(
            visual=join(visual),
            audio=join(audio),
            ids=ids,
            mask=mask,
            text=torch.tensor([text_number(text) for text in texts]),
            answer_ids=answers[0],
            answer_mask=answers[1],
            rows=list(rows),
            windows=windows and list(windows),
        )


@dataclass
class ShuffledBatches(Sampler):
    """The row numbers of every batch: shuffled passes over all rows, whole batches alone.

    The same in every process, of which each takes its share of a batch. Raises ValueError where
    there are fewer rows than processes.
    """

    rows: int
    batch_size: int
    batches: int
    seed: int
    skip: int = 0  # batches that a run read before it was stopped
    processes: int = 1
    drop_last = True

    def __post_init__(self) -> None:
        self.batch_size = shared_batch(self.batch_size, self.rows, self.processes)
        if self.rows < self.processes:
            raise ValueError(
                f"{self.rows} rows to train on for {self.processes} processes; start fewer of them"
            )

    def __len__(self) -> int:
        return self.batches - self.skip

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._passes(), self.skip, self.batches)

    def _passes(self) -> Iterator[list[int]]:
        generator, whole = torch.Generator().manual_seed(self.seed), self.rows // self.batch_size
        while True:
            order = torch.randperm(self.rows, generator=generator)[: whole * self.batch_size]
            yield from (part.tolist() for part in order.split(self.batch_size))


def shared_batch(batch: int, rows: int, processes: int) -> int:
    """The batch size where there are fewer rows than `batch`: as many as processes can share."""
    return min(batch, max(processes, rows // processes * processes))


def training_loader(
    data: Dataset, collate: Collate, config: Any, skip: int = 0, processes: int = 1
) -> DataLoader:
    """Shuffled batches for `config.steps` steps of `config.accumulate` batches each, without the
    first `skip`."""
    batches = config.steps * config.accumulate
    sampler = ShuffledBatches(len(data), config.batch, batches, config.seed, skip, processes)
    options = loading(0 if data.kept else config.workers)
    return DataLoader(data, batch_sampler=sampler, collate_fn=collate, **options)


def in_order(
    data: Dataset, collate: Collate, batch: int, workers: int = 0, processes: int = 1
) -> DataLoader:
    """All rows once, in order, the last batch as short as it comes; with several processes
    Accelerate fills it up with the first rows, which `gather_for_metrics` drops again, and of which
    `own_rows` tells."""
    options = loading(0 if data.kept else workers)
    options["persistent_workers"] = options["num_workers"] > 0  # it is read again and again
    batch = shared_batch(batch, len(data), processes)
    return DataLoader(data, batch_size=batch, collate_fn=collate, **options)
