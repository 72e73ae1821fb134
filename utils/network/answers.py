"""The question-answering system in a cell: any token lengths, each user at its own SNR."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from modules.token_compression import compress
from utils.checkpoints import load_parts
from utils.data.clips import Batch, ClipTokens, Collate, in_order
from utils.data.datasets import read_music_avqa, read_splits
from utils.data.encoding import encode_clips
from utils.report.metrics import is_right
from utils.system import System, build_system


def load_system(
    stage_2: Any, path: Any, root: Any, accelerator: Accelerator
) -> tuple[System, dict[str, ClipTokens]]:
    """What stage 2 trained with these hyperparameters, and its clips at the most tokens."""
    system = build_system(stage_2)
    system.foundation.add_lora(
        stage_2.lora_rank, stage_2.lora_alpha, stage_2.lora_dropout, stage_2.lora_targets
    )
    rows, _ = read_splits(read_music_avqa, root)
    clips, _ = encode_clips(system, stage_2, root, rows, accelerator)
    load_parts(path, system.transceivers, system.lora)
    return system.to(accelerator.device).eval(), clips


def shortened(tokens: Tensor, lengths: np.ndarray, special: int, how: str) -> tuple:
    """Tokens (batch, special + most, width) with the patches of each clip compressed to a length of
    its own (batch,), padded to the longest; and the mask of the real ones (batch, tokens)."""
    sent = tokens.new_zeros(len(tokens), special + int(lengths.max()), tokens.shape[2])
    mask = torch.zeros(sent.shape[:2], dtype=torch.bool, device=tokens.device)
    for length in np.unique(lengths):
        clips = np.flatnonzero(lengths == length)
        short = compress(tokens[clips], int(length), special, how)
        sent[clips, : short.shape[1]] = short
        mask[clips, : short.shape[1]] = True
    return sent, mask


def receive(
    system: System, batch: Batch, lengths: np.ndarray, snr_db: np.ndarray, noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the base station reads: the received tokens of both users and the question, which is
    asked at the base station, (batch, tokens, hidden), and the mask of the real ones.

    Args:
        lengths: patch tokens of each scene's two users, (batch, 2).
        snr_db: their SNRs in dB, (batch, 2).
    """
    users = (system.img_tx, system.img_receiver), (system.audio_tx, system.audio_receiver)
    parts, masks = [], []
    for i, (tokens, (tx, rx)) in enumerate(zip((batch.visual, batch.audio), users, strict=True)):
        sent, mask = shortened(tokens, lengths[:, i], tx.special, tx.compression)
        snr = torch.as_tensor(snr_db[:, i], dtype=torch.float32, device=sent.device)
        parts.append(rx(system.channel(tx(sent), snr, mask, noise)))
        masks.append(mask)
    asked = system.text_receiver(system.foundation.embed(batch.ids).float() / system.text_scale)
    return torch.cat([*parts, asked], dim=1), torch.cat([*masks, batch.mask], dim=1)


@torch.inference_mode()
def loss_at(
    system: System, clips: ClipTokens, lengths: tuple[int, int], snr_db: float, seed: int
) -> float:
    """Validation loss, nats a token of the answers: all users at one SNR, cameras and microphones
    with so many patch tokens."""
    sums = []
    for batch, noise in batches(system, clips, seed):
        users = (len(batch.rows), 2)
        everyone = (np.broadcast_to(lengths, users), np.full(users, snr_db))
        tokens, mask = receive(system, batch, *everyone, noise)
        count = batch.answer_mask.sum()
        # With everything in the place of the question, padding may stand anywhere before it.
        answers = (batch.answer_ids, batch.answer_mask)
        loss = system.foundation.answer_loss(tokens[:, :0], tokens, mask, *answers)
        sums.append(torch.stack([loss * count, count]))
    total, count = torch.stack(sums).sum(dim=0)
    return (total / count).item()


@torch.inference_mode()
def right_answers(
    system: System,
    clips: ClipTokens,
    lengths: np.ndarray,
    snr_db: np.ndarray,
    seed: int,
    answer_tokens: int = 8,
) -> np.ndarray:
    """Which questions are answered right, (questions,).

    Args:
        lengths: patch tokens of the two users of each question's scene, (questions, 2).
        snr_db: their SNRs, (questions, 2).
    """
    right: list[bool] = []
    for batch, noise in batches(system, clips, seed):
        here = slice(len(right), len(right) + len(batch.rows))
        tokens, mask = receive(system, batch, lengths[here], snr_db[here], noise)
        end = system.tokenizer.eos_token_id
        ids = system.foundation.generate(tokens[:, :0], tokens, mask, end, answer_tokens)
        said = system.tokenizer.batch_decode(ids, skip_special_tokens=True)
        right += [is_right(s, q.answer) for s, q in zip(said, batch.rows, strict=True)]
    return np.array(right)


def batches(
    system: System, clips: ClipTokens, seed: int, batch: int = 256
) -> Iterator[tuple[Batch, torch.Generator]]:
    """All rows in order, each batch with the source of its noise."""
    device = next(system.img_tx.parameters()).device
    noise = torch.Generator(device).manual_seed(seed)
    for part in in_order(clips, Collate(system.tokenizer), batch):
        yield part.to(device), noise
