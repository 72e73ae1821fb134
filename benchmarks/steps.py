"""The losses of both stages as functions of a batch, for measuring and testing a single step."""

import torch
from torch import Tensor

from modules.losses import info_nce, masked_mean, reconstruction
from utils.data.clips import Batch
from utils.system import System


def align(
    system: System, batch: Batch, noise: torch.Generator | None, snr_db: float = 10.0
) -> Tensor:
    """Stage 1's loss, as in task_align.py."""
    batch = system.encode(batch)
    sent = system.foundation.embed(batch.ids)
    text = system.receive_text(sent, batch.mask, snr_db, noise)
    feature = masked_mean(text, batch.mask)
    seen = system.img_tx.features(system.receive_visual(batch.visual, snr_db, noise))
    heard = system.audio_tx.features(system.receive_audio(batch.audio, snr_db, noise))
    return (
        info_nce(seen, feature, 0.07, batch.text)
        + info_nce(heard, feature, 0.07, batch.text)
        + reconstruction(text, sent, batch.mask)
    )


def receive(
    system: System, batch: Batch, noise: torch.Generator | None, snr_db: float = 12.0
) -> tuple[Tensor, Tensor]:
    """Stage 2's received media (batch, tokens, hidden) and question, as in task_avqa.py."""
    batch = system.encode(batch)
    visual = system.receive_visual(batch.visual, snr_db, noise)
    audio = system.receive_audio(batch.audio, snr_db, noise)
    question = system.receive_text(system.foundation.embed(batch.ids), batch.mask, snr_db, noise)
    return torch.cat([visual, audio], dim=1), question


def answer(
    system: System, batch: Batch, noise: torch.Generator | None, snr_db: float = 12.0
) -> Tensor:
    """Stage 2's loss, as in task_avqa.py."""
    media, question = receive(system, batch, noise, snr_db)
    return system.foundation.answer_loss(
        media, question, batch.mask, batch.answer_ids, batch.answer_mask
    )


def full_logits(
    system: System, batch: Batch, noise: torch.Generator | None, snr_db: float = 12.0
) -> Tensor:
    """Stage 2's loss with logits at every position of the sequence, for comparison alone."""
    media, question = receive(system, batch, noise, snr_db)
    said = system.foundation.embed(batch.answer_ids)
    tokens = torch.cat([media.to(said.dtype), question.to(said.dtype), said], dim=1)
    real = torch.cat([batch.mask.new_ones(media.shape[:2]), batch.mask, batch.answer_mask], dim=1)
    labels = torch.full(real.shape, -100, device=real.device)
    labels[:, -batch.answer_ids.shape[1] :] = batch.answer_ids
    labels = labels.masked_fill(~real, -100)
    order = real.long().argsort(dim=1, descending=True, stable=True)  # padding goes to the end
    out = system.foundation.language_model(
        inputs_embeds=tokens.gather(1, order[..., None].expand_as(tokens)),
        attention_mask=real.gather(1, order).long(),
        labels=labels.gather(1, order),
        use_cache=False,
    )
    return out.loss
