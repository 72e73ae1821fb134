"""The digital baseline: tokens quantised, protected by 5G LDPC and sent by QAM, each by itself.

A clip leaves at unit power, as through the analog channel. A token and its scale become bits
(quantisation.py) and these one code block, or a few of equal size where one would be too long
(code_block.py). A token of which a block fails is erased: it comes out as zeros, which is also what
the analog channel's MMSE equaliser makes of a hopeless SNR. Fading and SNR are those of
modules/channel.py, so that an equal SNR is an equal power, and equal channel uses are an equal
bandwidth and time.
"""

import math

import torch
from torch import Tensor, nn

from modules.channel import Channel, unit_power
from modules.digital.code_block import CRC_BITS, CodeBlock
from modules.digital.quantisation import STEPS, from_bits, payload_bits, to_bits

MODULATIONS = (2, 4, 6, 8)
LOWEST, HIGHEST = 1 / 5, 948 / 1024  # code rates of 5G LDPC
AT_ONCE = 128  # blocks: their messages stay in a processor's cache, and memory in bounds


def analog_uses(tokens: int, hidden: int) -> int:
    """Channel uses (complex symbols) in which modules/channel.py sends as many tokens."""
    return tokens * hidden // 2


class DigitalLink(Channel):
    """Stands where a `Channel` stands, in evaluation: no gradient passes; holds no weights.

    Args:
        bits: of an entry after quantisation: 1 to 8.
        modulation: bits a symbol: 2 (QPSK), 4, 6 or 8 (256-QAM).
        rate: of the code, information over coded bits, CRC included; 1/5 to 948/1024.
        kind, rician_k: as Channel's. Through `none` the quantised tokens arrive as they are.

    Raises:
        ValueError: for a setting that does not exist.
    """

    def __init__(
        self,
        bits: int = 6,
        modulation: int = 4,
        rate: float = 1 / 2,
        kind: str = "awgn",
        rician_k: float = 4.0,
    ):
        super().__init__(kind, rician_k)
        if bits not in STEPS:
            raise ValueError(f"bits {bits}: choose from {', '.join(map(str, STEPS))}")
        if modulation not in MODULATIONS:
            choices = ", ".join(map(str, MODULATIONS))
            raise ValueError(f"modulation {modulation}: choose from {choices} bits a symbol")
        if not LOWEST <= rate <= HIGHEST:
            raise ValueError(f"code rate {rate}: must lie between 1/5 and 948/1024")
        self.bits, self.modulation, self.rate = bits, modulation, rate
        self._codes: dict[tuple, CodeBlock] = {}  # by payload bits and device

    def uses(self, tokens: int, hidden: int) -> int:
        """Channel uses (complex symbols) of so many tokens: entries, scale, CRC and padding."""
        blocks, _, coded = self._layout(hidden)
        return tokens * blocks * (coded // self.modulation)

    def tokens_within(self, uses: int, hidden: int) -> int:
        """How many whole tokens fit into so many channel uses."""
        return int(uses // self.uses(1, hidden))

    @torch.no_grad()
    def forward(
        self,
        tokens: Tensor,
        snr_db: float | Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Received tokens, of the shape and dtype of `tokens` and at unit power, zeros where they
        are erased.

        Args:
            tokens: (batch, tokens, hidden), real.
            snr_db: dB, one number or one a clip (batch,).
            mask: (batch, tokens), True at real tokens; padding is not sent and comes out as zeros.
            generator: source of the noise and the fading, on the tokens' device.

        Raises:
            ImportError: Sionna is not installed.
        """
        real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        payload = to_bits(unit_power(tokens, real)[real], self.bits)  # (sent, payload)
        intact = payload.new_ones(len(payload), dtype=torch.bool)  # (sent,)
        if self.kind != "none":
            noise_power = self._noise_power(tokens, snr_db, generator)  # (batch,)
            clip = real.nonzero()[:, 0]  # (sent,)
            hidden = tokens.shape[-1]
            payload, intact = self._transmit(payload, hidden, noise_power[clip], generator)
        arrived = from_bits(payload, self.bits).where(intact[:, None], 0)  # (sent, hidden)
        received = torch.zeros_like(tokens)
        received[real] = arrived.to(tokens.dtype)
        return received

    def _noise_power(
        self, tokens: Tensor, snr_db: float | Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Of each clip's symbols (batch,), relative to theirs and after the fading is undone: the
        demapper knows it, so that dividing by h loses nothing."""
        snr_db = torch.as_tensor(snr_db, dtype=torch.float32, device=tokens.device)
        power = (10 ** (-snr_db / 10)).expand(len(tokens))
        h = self._gain(power.to(torch.complex64), generator)  # (batch,)
        return power / h.abs().square()

    def _layout(self, hidden: int) -> tuple[int, int, int]:
        """Code blocks of a token, payload bits of each, and coded bits of each."""
        longest = 8448 if self.rate > 0.34 else 3824  # bits; below 1/3 the small base graph alone
        payload = payload_bits(hidden, self.bits)
        blocks = math.ceil(payload / (longest - CRC_BITS))
        payload = math.ceil(payload / blocks)
        symbols = math.ceil((payload + CRC_BITS) / (self.rate * self.modulation))
        symbols = min(symbols, int((payload + CRC_BITS) / LOWEST) // self.modulation)
        return blocks, payload, symbols * self.modulation

    def _transmit(
        self, tokens: Tensor, hidden: int, noise_power: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The bits of tokens (sent, bits) as received in noise (sent,), and which are whole."""
        blocks, payload, coded = self._layout(hidden)
        bits = nn.functional.pad(tokens, (0, blocks * payload - tokens.shape[1]))
        bits = bits.reshape(-1, payload)  # (sent * blocks, payload)
        noise_power = noise_power.repeat_interleave(blocks)  # (sent * blocks,)
        intact = torch.zeros_like(noise_power, dtype=torch.bool)

        # No decoder succeeds above the capacity (Shannon), so that none is set to work there.
        capacity = torch.log2(1 + 1 / noise_power)  # bits a symbol
        hopeful = (capacity > payload * self.modulation / coded).nonzero()[:, 0]
        for start in range(0, len(hopeful), AT_ONCE):
            part = hopeful[start : start + AT_ONCE]
            bits[part], intact[part] = self._send(bits[part], coded, noise_power[part], generator)
        bits = bits.reshape(-1, blocks * payload)[:, : tokens.shape[1]]
        return bits, intact.reshape(-1, blocks).all(dim=1)

    def _send(
        self, bits: Tensor, coded: int, noise_power: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Blocks (n, payload) as received in noise (n,), and whether they are intact (n,)."""
        key = bits.shape[1], bits.device
        if key not in self._codes:
            self._codes[key] = CodeBlock(bits.shape[1], coded, self.modulation, bits.device)
        code = self._codes[key]
        symbols = code.send(bits)  # (n, symbols)
        noise = noise_power.sqrt()[:, None] * self._gaussian(symbols, generator)
        return code.receive(symbols + noise, noise_power)
