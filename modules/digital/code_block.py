"""A block of bits on its way over the air: CRC, LDPC, scrambling and QAM of 5G NR, by Sionna.

3GPP TS 38.212 (5.1 CRC24A, 5.3.2 LDPC, 5.4.2 rate matching) and TS 38.211 (5.1 Gray-labelled QAM,
7.3.1.1 scrambling). Sionna is optional and imported when the first block is made.
"""

import torch
from torch import Tensor

CRC_BITS = 24
ROUNDS, ROUND = 10, 2  # at most 20 iterations of belief propagation, with a look at the CRC every 2


class CodeBlock:
    """Encoder and decoder of blocks of one size.

    Args:
        payload: bits of a block, without its CRC.
        coded: bits sent of it, a multiple of `modulation`; (payload + 24) / coded within 1/5
            and 948/1024.
        modulation: bits a symbol: 2 (QPSK), 4, 6 or 8 (256-QAM).
        device: on which blocks are.

    Raises:
        ImportError: Sionna is not installed.
    """

    def __init__(self, payload: int, coded: int, modulation: int, device: torch.device):
        try:
            with torch.random.fork_rng():  # Sionna's import reseeds PyTorch's own generators
                from sionna.phy import mapping
                from sionna.phy.fec import crc, ldpc, scrambling
        except ImportError as error:
            raise ImportError("the digital link needs Sionna: pip install sionna-no-rt") from error
        to = {"precision": "single", "device": str(device)}
        self._crc = crc.CRCEncoder("CRC24A", k=payload, **to)
        self._check = crc.CRCDecoder(self._crc, **to)
        self._encoder = ldpc.LDPC5GEncoder(payload + CRC_BITS, coded, modulation, **to)
        self._decoder = ldpc.LDPC5GDecoder(self._encoder, return_state=True, **to)
        # Quantised entries favour some bits: unscrambled, their symbols would not have unit power.
        self._scrambler = scrambling.TB5GScrambler(**to)
        self._mapper = mapping.Mapper("qam", modulation, **to)
        # Gray-labelled QAM is two independent PAMs, which saves the demapper most distances.
        self._demapper = mapping.Demapper("app", "pam", modulation // 2, **to)

    def send(self, bits: Tensor) -> Tensor:
        """Blocks (n, payload) as complex symbols of unit mean power (n, coded / modulation)."""
        return self._mapper(self._scrambler(self._encoder(self._crc(bits))))

    def receive(self, symbols: Tensor, noise_power: Tensor) -> tuple[Tensor, Tensor]:
        """What arrived of equalised symbols (n, coded / modulation) in noise (n,): blocks
        (n, payload), and whether their CRC holds (n,)."""
        logits = self._logits(symbols, noise_power)
        bits, intact = logits.new_zeros(len(logits), self._crc.k), logits.new_zeros(len(logits)) > 0
        left, state = torch.arange(len(logits), device=logits.device), None
        for _ in range(ROUNDS):  # as a receiver does: a block whose CRC holds is done
            decoded, state = self._decoder(logits[left], num_iter=ROUND, msg_v2c=state)
            bits[left], holds = self._check(decoded)
            intact[left] = holds[:, 0]
            left, state = left[~holds[:, 0]], state[~holds[:, 0]]
            if not len(left):
                break
        return bits, intact

    def _logits(self, symbols: Tensor, noise_power: Tensor) -> Tensor:
        """log P(1) / P(0) of the coded bits (n, coded)."""
        parts = torch.view_as_real(symbols).transpose(1, 2) * 2**0.5  # (n, 2, symbols), unit power
        # A real part has half of the noise, and Sionna takes a PAM's for half of a complex one.
        noise_power = (2 * noise_power)[:, None, None].expand(parts.shape)
        logits = self._demapper(parts, noise_power)  # (n, 2, coded / 2)
        logits = logits.unflatten(2, (symbols.shape[1], -1))  # (n, 2, symbols, modulation / 2)
        return self._scrambler(logits.permute(0, 2, 3, 1).flatten(1), binary=False)
