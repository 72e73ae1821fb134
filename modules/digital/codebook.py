"""Tokens by a learned codebook: each group of a token's entries is named by the nearest of some
vectors that were learnt from tokens of the same kind (utils/network/codebooks.py).

This is product quantisation (Jegou, Douze and Schmid, Product quantization for nearest neighbor
search, IEEE TPAMI 33, 2011). It can take less than a bit an entry, and a token needs no scale: the
vectors have it. GROUPS says which numbers of bits there are. They are not whole, so that a number
of bits tells whether a codebook or the uniform quantiser is meant.
"""

import numpy as np
import torch
from torch import Tensor

from modules.digital.quantisation import SCALE_BITS

# Entries of a group, by bits an entry: b bits name one of 2^(b entries) vectors, 256 or 64.
GROUPS = {0.25: 32, 0.5: 16, 0.75: 8, 1.5: 4}


def token_bits(hidden: int, bits: float | np.ndarray) -> np.ndarray:
    """Bits of a token of `hidden` entries at `bits` an entry, and of its scale where it has one."""
    return hidden * np.asarray(bits) + np.where(np.isin(bits, list(GROUPS)), 0, SCALE_BITS)


def nearest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """What comes back of tokens (n, hidden) by a codebook (groups, vectors, entries): the nearest
    vector of every group, float32."""
    groups, _, entries = codebook.shape
    parts = tokens.float().reshape(-1, groups, entries)
    # The square of the distance, but for that of the token itself, which all vectors share.
    apart = codebook.square().sum(dim=2) - 2 * torch.einsum("nge,gve->ngv", parts, codebook)
    each = torch.arange(groups, device=codebook.device)
    return codebook[each, apart.argmin(dim=2)].flatten(1)
