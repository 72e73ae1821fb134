"""Clips as training reads them: encoder tokens from the cache, with a caption or a question."""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from modules.foundation_model import PROMPT, PROMPT_END
from modules.system import Batch
from modules.token_compression import joined
from modules.token_transmitter import Encoded, Windows
from utils.data.datasets import AnnotationFile, Caption, Question, contradicting
from utils.data.features import store
from utils.data.loading import loading
from utils.data.media import Reader

IN_MEMORY = 2 << 30  # bytes; a data set below this is read once and kept


class ClipTokens(Dataset):
    """Rows (captions or questions) with their clip's visual and audio tokens.

    Small data sets are held in memory, large ones are read from the cache as they are asked for.
    """

    def __init__(self, rows: list[Caption] | list[Question], folders: dict[str, Path]):
        self.rows, self.folders = rows, folders
        self.stores = [store(folders[kind]) for kind in ("visual", "audio")]
        self.kept: dict[str, tuple[Encoded, Encoded]] = {}
        names = list(dict.fromkeys(row.video_id for row in rows))
        if len(names) * sum(clip.tokens.nbytes for clip in self._read(names[0])) < IN_MEMORY:
            self.kept = {name: self._read(name) for name in names}

    def _read(self, video_id: str) -> tuple[Encoded, Encoded]:
        # Their media was checked against the cache when the run began.
        found = [kept.read(video_id) for kept in self.stores]
        if None in found:
            path = self.stores[found.index(None)].path(video_id)
            raise OSError(f"{path}: unreadable; remove it, run again")
        return found[0], found[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Any, dict]:
        """Visual and audio tokens (tokens, encoder width), the row, and both layouts by kind."""
        video_id = self.rows[i].video_id
        visual, audio = self.kept.get(video_id) or self._read(video_id)
        layouts = {"visual": visual.layout, "audio": audio.layout}
        return visual.tokens, audio.tokens, self.rows[i], layouts


@dataclass
class ClipMedia(Dataset):
    """Rows with what the encoders read of their clip, for a run without a cache."""

    rows: list[Caption] | list[Question]
    root: Path
    readers: dict[str, Reader]
    last: tuple = field(default=(None,), init=False)  # the last clip, and its media
    kept = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, tuple[Tensor, Windows], Any]:
        """Frames (1, frames, 3, height, width), sound (windows, time, mel) with how much of it is
        the clip, and the row."""
        row = self.rows[i]
        if self.last[0] != row.video_id:  # questions of a clip follow each other
            visual, audio = (
                self.readers[kind](self.readers[kind].path(self.root, row.video_id))
                for kind in ("visual", "audio")
            )
            self.last = (row.video_id, visual[0], audio)
        return *self.last[1:], row


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


def by_clip(rows: Sequence) -> list:
    """Rows in the order in which their clips first come, those of a clip one after the other."""
    place = {name: i for i, name in enumerate(dict.fromkeys(row.video_id for row in rows))}
    return sorted(rows, key=lambda row: place[row.video_id])


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
    """Token ids of answers; the space before belongs to the first token, as in running text, and no
    token that begins a text stands there, as Llama's and Gemma's tokenizers would put."""
    return tokenizer([" " + answer for answer in answers], add_special_tokens=False)["input_ids"]


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

    Questions of a clip that follow each other share it, up to `packed` of them; captions share
    none. Texts are padded to the longest of the batch, no further.
    """

    tokenizer: Any
    max_tokens: int = 256
    packed: int = sys.maxsize

    def __call__(self, items: list[tuple]) -> Batch:
        rows = [item[2] for item in items]
        end, answers, kept = self.tokenizer.eos_token_id, (None, None), 0
        if isinstance(rows[0], Question):
            texts = [PROMPT.format(question=row.text) for row in rows]
            kept = len(answer_ids(self.tokenizer, [PROMPT_END.strip()])[0])
            ids = answer_ids(self.tokenizer, [row.answer for row in rows])
            answers = pad([row + [end] for row in ids], end)
            shared = side_by_side(rows, self.packed)
        else:
            texts = [row.text for row in rows]
            shared = side_by_side(rows, 1)
        said = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids = [cut(text, self.max_tokens, kept) for text in said]
        ids, mask = pad(ids, end)
        tokens = mask.sum(dim=1) + (0 if answers[1] is None else answers[1].sum(dim=1))
        visual, audio, _, *known = zip(*(items[of_clip[0]] for of_clip in shared), strict=True)
        windows = layouts = None
        if known:  # tokens from the cache
            (of_clips,) = known
            layouts = {k: joined([clip[k] for clip in of_clips], torch.stack) for k in of_clips[0]}
        if not isinstance(audio[0], Tensor):  # encoder inputs, in as many windows as a clip is long
            audio, windows = zip(*audio, strict=True)
        join = torch.stack if windows is None else torch.cat
        return Batch(
            visual=join(visual),
            audio=join(audio),
            clip=torch.tensor([i for i, of_clip in enumerate(shared) for _ in of_clip]),
            ids=ids,
            mask=mask,
            text=torch.tensor([text_number(text) for text in texts]),
            answer_ids=answers[0],
            answer_mask=answers[1],
            text_tokens=max(tokens[of_clip].sum().item() for of_clip in shared),
            rows=rows,
            windows=windows and list(windows),
            layouts=layouts,
        )


def side_by_side(rows: Sequence, most: int) -> list[list[int]]:
    """The numbers of all rows, those of one clip that follow each other together, up to `most`."""
    runs = groupby(range(len(rows)), key=lambda i: rows[i].video_id)
    return [part for _, run in runs for part in parts(list(run), most)]


def parts(items: list, most: int) -> list[list]:
    """The items in lists of `most`, the last as short as it comes."""
    return [items[i : i + most] for i in range(0, len(items), most)]


@dataclass
class ShuffledBatches(Sampler):
    """The row numbers of every batch: shuffled passes over all rows, whole batches alone.

    Up to `packed` rows of a clip follow each other, unless the end of a batch parts them. The same
    in every process, of which each takes its share of a batch. Raises ValueError where there are
    fewer rows than processes.
    """

    clips: Sequence  # of each row
    batch_size: int
    batches: int
    seed: int
    skip: int = 0  # batches that a run read before it was stopped
    processes: int = 1
    packed: int = 1
    drop_last = True

    def __post_init__(self) -> None:
        rows = len(self.clips)
        self.batch_size = shared_batch(self.batch_size, rows, self.processes)
        if rows < self.processes:
            raise ValueError(
                f"{rows} rows to train on for {self.processes} processes; start fewer of them"
            )

    def __len__(self) -> int:
        return self.batches - self.skip

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._passes(), self.skip, self.batches)

    def _passes(self) -> Iterator[list[int]]:
        generator, size = torch.Generator().manual_seed(self.seed), self.batch_size
        while True:
            of_clip = defaultdict(list)
            for row in torch.randperm(len(self.clips), generator=generator).tolist():
                of_clip[self.clips[row]].append(row)
            together = [part for rows in of_clip.values() for part in parts(rows, self.packed)]
            shuffled = torch.randperm(len(together), generator=generator).tolist()
            order = [row for i in shuffled for row in together[i]]
            yield from parts(order[: len(order) // size * size], size)


def shared_batch(batch: int, rows: int, processes: int) -> int:
    """The batch size where there are fewer rows than `batch`: as many as processes can share."""
    return min(batch, max(processes, rows // processes * processes))


def training_loader(
    data: Dataset, collate: Collate, config: Any, skip: int = 0, processes: int = 1
) -> DataLoader:
    """Shuffled batches for `config.steps` steps of `config.accumulate` batches each, without the
    first `skip`."""
    batches, packed = config.steps * config.accumulate, getattr(config, "packed", 1)
    clips = [row.video_id for row in data.rows]
    sampler = ShuffledBatches(clips, config.batch, batches, config.seed, skip, processes, packed)
    options = loading(0 if data.kept else config.workers)
    collate = replace(collate, packed=packed)
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
