"""The question-answering system in a cell: any token lengths, each user at its own SNR."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modules.channel import Channel
from modules.system import MEDIA, Answering, Batch
from utils.data.clips import ClipTokens, Collate, in_order


def of_scenes(values: np.ndarray) -> dict[str, np.ndarray]:
    """What the two users of each scene have (scenes, 2), by what they send (scenes,)."""
    return {kind: values[:, i] for i, kind in enumerate(MEDIA)}


def sent_at(snr_db: np.ndarray, device: torch.device) -> dict[str, Tensor | float]:
    """SNRs in dB (scenes, 2) as the model takes them; questions are asked at the base station."""
    levels = of_scenes(torch.as_tensor(snr_db, dtype=torch.float32, device=device))
    return {**levels, "text": math.inf}


@torch.inference_mode()
def loss_at(
    model: Answering,
    clips: ClipTokens,
    tokenizer: PreTrainedTokenizerBase,
    lengths: tuple[int, int],
    snr_db: float,
    seed: int,
) -> float:
    """Validation loss, nats a token of the answers: all users at one SNR, cameras and microphones
    with so many patch tokens."""
    sums = []
    for batch, noise in batches(model, clips, tokenizer, seed):
        users = (len(batch.visual), 2)
        at = sent_at(np.full(users, snr_db), batch.ids.device)
        loss = model(batch, noise, at, of_scenes(np.broadcast_to(lengths, users)))
        count = batch.answer_mask.sum()
        sums.append(torch.stack([loss * count, count]))
    total, count = torch.stack(sums).sum(dim=0)
    return (total / count).item()


def measure_lengths(config: Any, model: Answering, clips: ClipTokens, tokenizer) -> list[dict]:
    """Validation losses at `config.curve_snr_db`, with noise of `config.repeats` seeds: over the
    lengths of one modality, the other at `config.reference_length`, and over both together."""
    reference, points = config.reference_length, []
    pairs = [p for n in config.lengths for p in ((n, reference), (reference, n), (n, n))]
    for visual, audio in dict.fromkeys(pairs):
        for seed in range(config.repeats):
            pair = (visual, audio)
            loss = loss_at(model, clips, tokenizer, pair, config.curve_snr_db, seed)
            points.append({"visual": visual, "audio": audio, "seed": seed, "loss": loss})
    return points


@torch.inference_mode()
def right_answers(
    model: Answering,
    clips: ClipTokens,
    tokenizer: PreTrainedTokenizerBase,
    lengths: np.ndarray,
    snr_db: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Which questions are answered right, word for word, (questions,).

    Args:
        lengths: patch tokens of the two users of each question's scene, (questions, 2); all
            questions of a clip are of one scene.
        snr_db: their SNRs in dB, (questions, 2).
    """
    right: list[Tensor] = []
    done = 0
    for batch, noise in batches(model, clips, tokenizer, seed):
        first = np.unique(batch.clip.cpu(), return_index=True)[1]  # question of each clip
        here = done + first
        at = sent_at(snr_db[here], batch.ids.device)
        right.append(model(batch, noise, at, of_scenes(lengths[here]), do="check"))
        done += len(batch.rows)
    return torch.cat(right).cpu().numpy()


@dataclass
class Answers:
    """Test clips spread over the scenes of many drops, and answered."""

    model: Answering
    clips: ClipTokens
    tokenizer: PreTrainedTokenizerBase
    channel: Channel  # by which tokens are sent
    seed: int

    def __call__(
        self, lengths: np.ndarray, snr_db: np.ndarray, link: Channel | None = None
    ) -> np.ndarray:
        """The share of each clip's questions that is answered right, (clips,).

        Args:
            lengths: patch tokens of each scene's two users, (scenes, 2).
            snr_db: their SNRs in dB, (scenes, 2).
            link: in place of the channel.
        """
        self.model.system.channel = link or self.channel
        ids = [row.video_id for row in self.clips.rows]
        clip = np.unique(ids, return_inverse=True)[1]  # of each question
        scene = clip % len(lengths)
        sent = (lengths[scene].astype(int), snr_db[scene])
        right = right_answers(self.model, self.clips, self.tokenizer, *sent, self.seed)
        return np.bincount(clip, right) / np.bincount(clip)


def batches(
    model: Answering,
    clips: ClipTokens,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    batch: int = 256,
) -> Iterator[tuple[Batch, torch.Generator]]:
    """All rows in order, each batch with the source of its noise."""
    device = next(model.system.img_tx.parameters()).device
    noise = torch.Generator(device).manual_seed(seed)
    for part in in_order(clips, Collate(tokenizer), batch):
        yield part.to(device), noise
