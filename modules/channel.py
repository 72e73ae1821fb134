"""The wireless channel between a token transmitter and its receiver.

Real numbers are sent in pairs as the in-phase and quadrature part of complex symbols,

    y = h x + n,   n ~ CN(0, N0),

with block fading h (one draw a clip) known to the receiver, which equalises by linear MMSE. The
SNR is the mean received signal power over the noise power, E|h|^2 E|x|^2 / N0 with E|h|^2 = 1,
for each clip by itself and over its real tokens alone: padding is not sent.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Draws circular complex Gaussian numbers of unit power, one a clip.
Draw = Callable[[], Tensor]


def awgn(draw: Draw, rician_k: float) -> float:
    """No fading: h = 1."""
    return 1.0


def rayleigh(draw: Draw, rician_k: float) -> Tensor:
    """Many scattered paths alone."""
    return draw()


def rician(draw: Draw, rician_k: float) -> Tensor:
    """A path in the line of sight, of `rician_k` times the power of the scattered ones."""
    return (rician_k / (rician_k + 1)) ** 0.5 + (1 / (rician_k + 1)) ** 0.5 * draw()


# The gain h of each clip, by the channel's name. A channel of one's own is one more entry: a
# function of `draw` and `rician_k` with E|h|^2 = 1. Through `none` tokens arrive as they were sent.
CHANNELS: dict[str, Callable[[Draw, float], Tensor | float] | None] = {
    "awgn": awgn,
    "rayleigh": rayleigh,
    "rician": rician,
    "none": None,
}


class TrainingSNR:
    """The SNR at which training clips are sent.

    Args:
        snr_db: dB, of every clip.
        snr_range: empty, or [lowest, highest] in dB: each clip then draws its own, uniformly.
    """

    def __init__(self, snr_db: float, snr_range: list[float] | None = None):
        if snr_range and not (len(snr_range) == 2 and snr_range[0] <= snr_range[1] < math.inf):
            raise ValueError(f"snr_range {snr_range}: must be the lowest and highest SNR in dB")
        self.snr_db, self.snr_range = snr_db, snr_range

    def __call__(self, clips: int, generator: torch.Generator | None = None) -> float | Tensor:
        """dB, one number or one a clip (clips,)."""
        if not self.snr_range:
            return self.snr_db
        low, high = self.snr_range
        device = generator.device if generator is not None else None
        return low + (high - low) * torch.rand(clips, generator=generator, device=device)


class Channel(nn.Module):
    """Sends tokens at a given SNR; holds no weights.

    Args:
        kind: a name in `CHANNELS`.
        rician_k: power of the line-of-sight path over the scattered ones (linear), for `rician`.

    Raises:
        ValueError: for an unknown kind.
    """

    def __init__(self, kind: str = "awgn", rician_k: float = 4.0):
        super().__init__()
        if kind not in CHANNELS:
            raise ValueError(f"channel {kind!r}: unknown, choose from {', '.join(CHANNELS)}")
        self.kind, self.rician_k = kind, rician_k

    def forward(
        self,
        tokens: Tensor,
        snr_db: float | Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Received tokens, of the shape and dtype of `tokens`.

        Args:
            tokens: (batch, tokens, hidden), real; hidden must be even.
            snr_db: dB, one number or one a clip (batch,). +inf sends without noise.
            mask: (batch, tokens), True at real tokens; padding comes out as zeros.
            generator: source of the noise and the fading, on the tokens' device.
        """
        sent = tokens if mask is None else tokens * mask[..., None]
        if self.kind == "none":
            return sent
        if tokens.shape[-1] % 2:
            raise ValueError(f"hidden size {tokens.shape[-1]}: must be even to pair into symbols")
        batch, length, hidden = tokens.shape
        symbols = torch.view_as_complex(sent.float().reshape(batch, length, hidden // 2, 2))

        real_tokens = length if mask is None else mask.sum(dim=1)[:, None, None]
        energy = symbols.abs().square().sum(dim=(1, 2), keepdim=True)  # (batch, 1, 1)
        power = energy / (real_tokens * (hidden // 2) + (real_tokens == 0))  # mean over symbols
        if not isinstance(snr_db, Tensor):  # filled in on the device, which no copy has to reach
            snr_db = torch.full((1,), snr_db, device=tokens.device)
        snr = 10 ** (snr_db.to(tokens.device).float() / 10)
        snr = snr.reshape(-1, 1, 1)

        # Two roots, and not of 0, so that gradients stay finite at +inf dB and in empty clips.
        amplitude = power.clamp(min=1e-30).sqrt() / snr.sqrt()
        noise = amplitude * self._gaussian(symbols, generator)
        h = self._gain(symbols[:, :1, :1], generator)  # 1, or (batch, 1, 1)
        if isinstance(h, float):
            received = symbols + noise
        else:
            equaliser = h.conj() / (h.abs().square() + 1 / snr)
            received = equaliser * (h * symbols + noise)
        received = torch.view_as_real(received).reshape(batch, length, hidden).to(tokens.dtype)
        return received if mask is None else received * mask[..., None]

    def _gain(self, like: Tensor, generator: torch.Generator | None) -> Tensor | float:
        """h of each clip, of the shape of `like`."""
        return CHANNELS[self.kind](lambda: self._gaussian(like, generator), self.rician_k)

    @staticmethod
    def _gaussian(like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Circular complex Gaussian of unit power."""
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
