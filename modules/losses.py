"""The losses of stage 1. Source: arXiv 2505.07841, cross-modal alignment.

With several processes each loss is that of the batch of all processes, with the gradients that one
process would give: features, or the sums that a mean is made of, are gathered here and nowhere
else. DDP then averages the gradients of all processes, each of which saw the whole loss.
"""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed._functional_collectives import all_gather_single
from torch.nn.functional import cross_entropy, normalize


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, (processes x rows, ...), with gradients to each; every process
    must bring as many. With one process, `rows` itself."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    return all_gather_single(rows, gather_dim=0, group=dist.group.WORLD)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Numerator over denominator, each a number that is summed over all processes first; 0 where
    there is nothing to sum."""
    above, below = gather(torch.stack([numerator.float(), denominator.float()])[None]).sum(dim=0)
    return above / below.clamp(min=1e-12)


def info_nce(
    modality: Tensor,
    text: Tensor,
    temperature: float,
    captions: Tensor | None = None,
    one_way: bool = False,
) -> Tensor:
    """InfoNCE between clips and their captions, in log-sum-exp form (van den Oord et al., 2018).

    Args:
        modality: (batch, hidden), visual or audio features; row i belongs to caption i.
        text: (batch, hidden), caption features.
        temperature: tau, above 0.
        captions: (batch,), a number for each caption's text; clips of equal captions are not each
            other's negatives.
        one_way: from modality to text alone, instead of the mean of both directions.

    Returns:
        The mean loss over the batch of all processes, in nats; log(batch) is chance.
    """
    modality, text = gather(modality), gather(text)
    logits = normalize(modality.float(), dim=-1) @ normalize(text.float(), dim=-1).T / temperature
    target = torch.arange(len(logits), device=logits.device)
    if captions is not None:
        captions = gather(captions)
        same = (captions[:, None] == captions).fill_diagonal_(False)
        logits = logits.masked_fill(same, float("-inf"))
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
    return ratio(error, (sent.float().square() * weight).sum())


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (batch, tokens, hidden) to (batch, hidden)."""
    weight = mask[..., None].to(tokens.dtype)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
