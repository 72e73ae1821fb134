"""The losses of stage 1. Source: arXiv 2505.07841, cross-modal alignment."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def same_caption(captions: list[str]) -> Tensor:
    """(batch, batch), True where two clips of the batch have the same caption."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[caption] for caption in captions])
    return ids[:, None] == ids[None, :]


def info_nce(
    modality: Tensor,
    text: Tensor,
    temperature: float,
    same: Tensor | None = None,
    one_way: bool = False,
) -> Tensor:
    """InfoNCE between clips and their captions, in log-sum-exp form (van den Oord et al., 2018).

    Args:
        modality: (batch, hidden), visual or audio features; row i belongs to caption i.
        text: (batch, hidden), caption features.
        temperature: tau, above 0.
        same: (batch, batch), True where captions are equal; such clips are not each other's
            negatives.
        one_way: from modality to text alone, instead of the mean of both directions.

    Returns:
        The mean loss over the batch, in nats; log(batch) is chance.
    """
    logits = normalize(modality.float(), dim=-1) @ normalize(text.float(), dim=-1).T / temperature
    target = torch.arange(len(logits), device=logits.device)
    if same is not None:
        others = same.to(logits.device) & ~torch.eye(
            len(logits), dtype=torch.bool, device=logits.device
        )
        logits = logits.masked_fill(others, float("-inf"))
    loss = cross_entropy(logits, target)
    return loss if one_way else (loss + cross_entropy(logits.T, target)) / 2


def reconstruction(received: Tensor, sent: Tensor, mask: Tensor) -> Tensor:
    """Text reconstruction: squared error over the mean power of what was sent, real tokens only.

    Args:
        received, sent: (batch, tokens, hidden).
        mask: (batch, tokens), True at real tokens.

    Returns:
        A number without unit: 0 is perfect, 1 is as bad as receiving zeros.
    """
    weight = mask[..., None].float()
    error = ((received.float() - sent.float()).square() * weight).sum()
    return error / ((sent.float().square() * weight).sum() + 1e-12)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (batch, tokens, hidden) to (batch, hidden)."""
    weight = mask[..., None].to(tokens.dtype)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
