"""Codebooks for the digital link (modules/digital/codebook.py): k-means of what a trained model's
users send of training clips."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from modules.channel import unit_power
from modules.digital.codebook import GROUPS
from modules.system import MEDIA, Answering
from utils.data.clips import Clips, Collate
from utils.files import whole

TAUGHT = 256  # training clips of which codebooks are learnt


def learn(tokens: Tensor, bits: float, seed: int = 0) -> Tensor:
    """The codebook (groups, vectors, entries) of tokens (n, hidden), at clips' unit power.

    Raises:
        ValueError: where `hidden` is not a multiple of the group's entries.
    """
    entries, hidden = GROUPS[bits], tokens.shape[1]
    if hidden % entries:
        raise ValueError(f"{bits:g} bits an entry: needs tokens of a multiple of {entries} numbers")
    vectors = min(round(2 ** (bits * entries)), len(tokens))
    means = KMeans(vectors, init="random", n_init=1, max_iter=25, random_state=seed)
    parts = tokens.detach().float().cpu().unflatten(1, (-1, entries)).numpy()  # (n, groups, .)
    found = [means.fit(part).cluster_centers_ for part in parts.swapaxes(0, 1)]
    return torch.from_numpy(np.array(found, np.float32))


def codebooks(
    model: Answering, data: Clips, tokenizer: Any, config: Any, kept: Path, version: str
) -> dict[float, Tensor]:
    """Those of `config.bits_levels`, learnt from what the model's users send of training clips, or
    as they were kept in a folder."""
    found: dict[float, Tensor] = {}
    tokens = None
    for bits in (b for b in config.bits_levels if b in GROUPS):
        name = hashlib.sha256(repr((version, bits, config.lengths)).encode()).hexdigest()[:24]
        path = kept / f"codebook-{name}.npy"
        if not path.is_file():
            if tokens is None:
                tokens = sent_tokens(model, data, tokenizer, config.lengths, config.seed)
            kept.mkdir(parents=True, exist_ok=True)
            with whole(path) as beside, open(beside, "wb") as file:
                np.save(file, learn(tokens, bits, config.seed).numpy())
        found[bits] = torch.from_numpy(np.load(path))
    return found


@torch.inference_mode()
def sent_tokens(
    model: Answering, data: Clips, tokenizer: Any, lengths: Sequence[int], seed: int
) -> Tensor:
    """Tokens (n, hidden) that cameras and microphones send of training clips, each clip at a length
    of its own and at unit power."""
    rows = data["train"]
    first = {row.video_id: i for i, row in reversed(list(enumerate(rows.rows)))}
    taught = [rows[i] for i in sorted(first.values())[:TAUGHT]]
    batch = Collate(tokenizer)(taught).to(next(model.system.img_tx.parameters()).device)
    source, found = np.random.default_rng(seed), []
    for kind in MEDIA:
        drawn = {kind: source.choice(lengths, len(taught))}
        tokens, mask = model.sent(kind, batch, None, drawn)
        sent = unit_power(model.system.transmitters[kind](tokens), mask)
        found.append(sent[mask] if mask is not None else sent.flatten(0, 1))
    return torch.cat(found)
