"""The wireless channel between a token transmitter and its receiver.

Real numbers are sent in pairs as the in-phase and quadrature part of complex symbols,

    y = h x + n,   n ~ CN(0, N0),

with block fading h (one draw a clip). A transmitter sends each clip at unit mean power over its
real tokens, and padding not at all; what it divided by to get there is not known at the receiver.
The SNR is the mean received signal power over the noise power, E|h|^2 E|x|^2 / N0 with E|h|^2 = 1,
for each clip by itself. The receiver knows h and N0 and multiplies y by the linear MMSE equaliser
h* / (|h|^2 + 1/SNR), on every channel: what is left of a token is |h|^2 / (|h|^2 + 1/SNR) of it, a
factor between 0 and 1, and noise. On average over the noise a clip arrives with this factor as its
mean power, from which a receiver can tell it.
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
# function of `draw` and `rician_k` with E|h|^2 = 1. Through `none` tokens arrive as they were sent,
# which is how they arrive through any other at +inf dB.
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


def unit_power(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """What a transmitter sends: each clip over the root of its mean power.

    Args:
        tokens: (batch, tokens, hidden), real.
        mask: (batch, tokens), True at real tokens.

    Returns:
        The same shape in float32: the mean square of a clip's numbers is 1 over its real tokens;
        padding is zeros, and so is a clip of zeros alone.
    """
    tokens, count = tokens.float(), tokens.shape[1]
    if mask is not None:
        tokens = tokens.masked_fill(~mask[..., None], 0)
        count = mask.sum(dim=1)[:, None, None].clamp(min=1)  # (batch, 1, 1)
    power = tokens.square().sum(dim=(1, 2), keepdim=True) / (count * tokens.shape[2])
    # The root is not of 0, so that gradients stay finite in empty clips.
    return tokens / power.clamp(min=1e-30).sqrt()


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
        """Received tokens, of the shape and dtype of `tokens` and at the scale of `unit_power`.

        Args:
            tokens: (batch, tokens, hidden), real; hidden must be even.
            snr_db: dB, one number or one a clip (batch,). +inf sends without noise.
            mask: (batch, tokens), True at real tokens; padding comes out as zeros.
            generator: source of the noise and the fading, on the tokens' device.
        """
        sent = unit_power(tokens, mask)
        if self.kind == "none":
            return sent.to(tokens.dtype)
        batch, length, hidden = tokens.shape
        if hidden % 2:
            raise ValueError(f"hidden size {hidden}: must be even to pair into symbols")
        pairs = sent.reshape(batch, length, hidden // 2, 2).contiguous()
        symbols = torch.view_as_complex(pairs)  # of mean power 2, that is 1 in each part

        if not isinstance(snr_db, Tensor):  # filled in on the device, which no copy has to reach
            snr_db = torch.full((1,), snr_db, device=tokens.device)
        noise_power = 10 ** (-snr_db.to(tokens.device).float() / 10)  # of each part
        noise_power = noise_power.reshape(-1, 1, 1)  # (1 or batch, 1, 1)
        noise = (2 * noise_power).sqrt() * self._gaussian(symbols, generator)
        h = self._gain(symbols[:, :1, :1], generator)  # (batch, 1, 1)
        equaliser = h.conj() / (h.abs().square() + noise_power)
        received = torch.view_as_real(equaliser * (h * symbols + noise)).reshape(tokens.shape)
        if mask is not None:
            received = received.masked_fill(~mask[..., None], 0)
        return received.to(tokens.dtype)

    def _gain(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """h of each clip, complex, of the shape of `like`."""
        h = CHANNELS[self.kind](lambda: self._gaussian(like, generator), self.rician_k)
        return h * torch.ones_like(like)

    @staticmethod
    def _gaussian(like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Circular complex Gaussian of unit power."""
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
