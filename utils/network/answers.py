"""The question-answering system in a cell: any token lengths, each user at a level of its own.

A level is the SNR in dB of a user on the analog link, the bits of an entry on the digital one. Each
link has its own model, trained for what arrives there. What was asked once stands in a folder, so
that a second run does not ask again.
"""

import hashlib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from modules.digital.quantised import Quantised
from modules.foundation_model import IGNORED, Received
from modules.network.links import LOST_DB
from modules.system import MEDIA, Answering, Batch
from utils.data.clips import Clips, ClipTokens, Collate, answer_ids, in_order, pad
from utils.files import whole

LOST = {"analog": LOST_DB, "digital": 0.0}  # the level at which nothing arrives


@dataclass(frozen=True)
class Asked:
    """What came of all questions of a split, in its order; arrays are (questions,)."""

    right: np.ndarray  # answered word for word
    nats: np.ndarray  # of the true answer, all its tokens together
    tokens: np.ndarray  # of the true answer

    @property
    def loss(self) -> float:
        """nats a token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


@dataclass
class Answers:
    """A split's questions, each clip in one of the scenes of many drops."""

    model: Answering  # which holds its link's channel
    data: Clips  # of every split
    tokenizer: PreTrainedTokenizerBase
    split: str
    folder: Path | None = None  # of what was asked before
    version: str = ""  # of the model and the code; another one asks again
    batch: int = 256  # questions at once

    @property
    def clips(self) -> ClipTokens:
        return self.data[self.split]

    @property
    def link(self) -> str:
        return "digital" if isinstance(self.model.system.channel, Quantised) else "analog"

    @cached_property
    def known_as(self) -> str:
        """What an answer depends on besides what is sent."""
        rows = [(row.video_id, row.text, row.answer) for row in self.clips.rows]
        channel = self.model.system.channel
        of = (self.link, self.version, rows, channel.kind, channel.rician_k)
        return hashlib.sha256(repr(of).encode()).hexdigest()

    @cached_property
    def batches(self) -> list[Batch]:
        """All questions in order."""
        device = next(self.model.system.img_tx.parameters()).device
        parts = in_order(self.clips, Collate(self.tokenizer), self.batch)
        return [part.to(device) for part in parts]

    @cached_property
    def clip(self) -> np.ndarray:
        """The number of each question's clip."""
        names = {row.video_id: None for row in self.clips.rows}
        place = {name: i for i, name in enumerate(names)}
        return np.array([place[row.video_id] for row in self.clips.rows])

    def __call__(self, lengths: np.ndarray, levels: np.ndarray, seed: int = 0) -> Asked:
        """What comes of the questions when clips take turns in the scenes.

        Args:
            lengths: patch tokens of each scene's two users, (scenes, 2); all 0 for special tokens
                alone.
            levels: theirs, (scenes, 2).
            seed: of the noise.
        """
        lengths, levels = np.asarray(lengths, int), np.asarray(levels, float)
        name = hashlib.sha256(repr((self.known_as, lengths.shape, seed)).encode())
        name.update(lengths.tobytes() + levels.tobytes())
        path = self.folder and self.folder / f"{name.hexdigest()[:24]}.npy"
        if path and path.is_file():
            return self._asked(np.load(path))
        scene = self.clip % len(lengths)
        found = self._ask(lengths[scene], levels[scene], seed)
        if path:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole(path) as beside, open(beside, "wb") as file:
                np.save(file, found.astype(np.float32))
        return self._asked(found)

    @staticmethod
    def _asked(rows: np.ndarray) -> Asked:
        return Asked(rows[0] > 0.5, rows[1].astype(float), rows[2].astype(float))

    @torch.inference_mode()
    def _ask(self, lengths: np.ndarray, levels: np.ndarray, seed: int) -> np.ndarray:
        """(3, questions): right, nats and tokens; arguments are of each question."""
        system, found, done = self.model.system, [], 0
        noise = torch.Generator(self.batches[0].ids.device).manual_seed(seed)
        for batch in self.batches:
            # The first question of each clip, whose lengths and levels all of them have.
            first = np.unique(batch.clip.cpu(), return_index=True)[1] + done
            sent = of_scenes(lengths[first])
            if not lengths.any():
                batch, sent = without_patches(batch, system), None
            at = sent_at(levels[first], batch.ids.device)
            received = self.model.receive(batch, noise, at, sent)
            found.append(compared(system.foundation, received, batch))
            done += len(batch.rows)
        return torch.cat(found, dim=1).cpu().numpy()

    @torch.inference_mode()
    def from_captions(self, captions: dict[str, str]) -> tuple[Asked, float]:
        """What comes of the questions where each clip's caption is read as clean text by the
        language model as it was before LoRA, and the mean bits of a caption: its tokens, each by
        its number in the vocabulary."""
        foundation = self.model.system.foundation
        ids = answer_ids(self.tokenizer, list(captions.values()))
        written = dict(zip(captions, ids, strict=True))
        each = math.ceil(math.log2(len(foundation.words())))
        found, bits = [], []
        for batch in self.batches:
            names = list(dict.fromkeys(row.video_id for row in batch.rows))
            ids, mask = pad([written[name] for name in names], self.tokenizer.eos_token_id)
            bits += [each * len(written[name]) for name in names]
            device = batch.ids.device
            received = Received(
                media=foundation.embed(ids.to(device)),
                media_mask=mask.to(device),
                question=foundation.embed(batch.ids),
                question_mask=batch.mask,
                clip=batch.clip,
            )
            with getattr(foundation.language_model, "disable_adapter", nullcontext)():
                found.append(compared(foundation, received, batch))
        return self._asked(torch.cat(found, dim=1).cpu().numpy()), float(np.mean(bits))


def compared(foundation: Any, received: Received, batch: Batch) -> Tensor:
    """(3, questions): whether the true answer would be written, its nats and its tokens."""
    sent = (received, batch.answer_ids, batch.answer_mask, batch.text_tokens)
    logits = foundation.answer_logits(*sent)  # (questions, answer tokens, vocabulary)
    right = ((logits.argmax(dim=-1) == batch.answer_ids) | ~batch.answer_mask).all(dim=1)
    target = batch.answer_ids.masked_fill(~batch.answer_mask, IGNORED)
    nats = cross_entropy(
        logits.float().transpose(1, 2), target, ignore_index=IGNORED, reduction="none"
    ).sum(dim=1)
    return torch.stack([right.float(), nats, batch.answer_mask.sum(dim=1).float()])


def without_patches(batch: Batch, system: Any) -> Batch:
    """The batch with special tokens alone."""
    special = {kind: tx.special for kind, tx in system.transmitters.items()}
    visual, audio = (getattr(batch, kind)[:, : special[kind]] for kind in MEDIA)
    return replace(batch, visual=visual, audio=audio)


def of_scenes(values: np.ndarray) -> dict[str, np.ndarray]:
    """What the two users of each scene have (scenes, 2), by what they send (scenes,)."""
    return {kind: values[:, i] for i, kind in enumerate(MEDIA)}


def sent_at(levels: np.ndarray, device: torch.device) -> dict[str, Tensor | float]:
    """Levels (scenes, 2) as the model takes them; questions are asked at the base station."""
    each = of_scenes(torch.as_tensor(levels, dtype=torch.float32, device=device))
    return {**each, "text": math.inf}


def measure(
    answer: Answers, lengths: Sequence[int], levels: Sequence[float], repeats: int
) -> list[dict]:
    """Points of a loss surface: every pair of length and level of one modality while the other is
    at its best, every second pair of both alike, and what is lost where nothing arrives; each with
    noise of `repeats` seeds."""
    best, nothing = (lengths[-1], levels[-1]), (lengths[0], LOST[answer.link])
    pairs = [(n, at) for n in lengths for at in levels]
    points = [(nothing, best), (best, nothing), (nothing, nothing)]
    for i, pair in enumerate(pairs):
        points += [(pair, best), (best, pair)]
        if (i // len(levels) + i) % 2 == 0:
            points.append((pair, pair))
    found = []
    for sent in dict.fromkeys(points):
        for seed in range(repeats):
            asked = answer(*(np.array([[of[i] for of in sent]]) for i in (0, 1)), seed)
            of = dict(zip(MEDIA, sent, strict=True))
            found.append({**of, "seed": seed, "loss": asked.loss, "accuracy": asked.accuracy})
    return found
