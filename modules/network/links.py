"""The two ways in which a user's tokens reach the base station: what they take and what arrives.

With B Hz, p W and a power gain g, the SNR is p g / (N0 B). Both links answer the same questions
for a user of some kind (camera, microphone) that chooses one of the link's options:

**Analog.** A token's D numbers go in pairs, so L patch tokens and s special ones are
n = (L + s) D / 2 channel uses and take n / B seconds at any SNR. What the SNR decides is the loss.

**Digital.** A token's numbers have b bits each and it has 16 more for its scale: (L + s)(D b + 16)
bits. Where b is not whole, a learned codebook names them, which needs no scale. The message takes
bits / (B eta) seconds, eta being the most bits a channel use that a modulation and code of 5G (TS
38.214, Table 5.1.3.1-1, from rate 1/5 on) carries at this SNR: those whose Shannon limit lies
`gap_db` below it. At a lower SNR than all need, the lowest one is repeated, which carries as much
as all of the power in a narrower band. The loss is that of tokens so quantised; if the SNR was
below what the code needs, nothing arrives.

In both the first option is silence: nothing is sent and nothing arrives.

A fade stays for `coherence` seconds. If that is without end, the fade is part of the gain that the
allocation knows. Else gains are means, and an uplink of t s meets N = max(1, t / coherence) fades:
an analog loss is averaged over the fade, and a code is used at the SNR at which N fades carry its
rate but for `outage` of all cases (Ozarow, Shamai and Wyner, IEEE Trans. Vehicular Technology,
1994; for many fades this is the ergodic rate). `pilots` channel uses a fade are spent to learn it,
and what is not learnt is noise: the SNR falls to SNR^2 P / (1 + (1 + P) SNR) (Hassibi and Hochwald,
IEEE Trans. Information Theory 49, 2003, at equal power and one antenna).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from modules.digital.codebook import token_bits
from modules.network.cell import from_db, to_db

FINE = np.arange(-60.0, 60.5, 0.5)  # dB, at which losses of the analog link are tabulated
LOST_DB = -300.0  # dB, at which nothing arrives, not even noise: the base station knows of silence

# Bits a channel use of 5G's modulations and codes up to 64-QAM: bits a symbol and rate x 1024 (TS
# 38.214, Table 5.1.3.1-1), but for rates below 1/5, which repeat, and for the row that carries less
# than the one before.
MODULATION_AND_CODE = np.array([
    (2, 251), (2, 308), (2, 379), (2, 449), (2, 526), (2, 602), (2, 679),
    (4, 340), (4, 378), (4, 434), (4, 490), (4, 553), (4, 616), (4, 658),
    (6, 466), (6, 517), (6, 567), (6, 616), (6, 666), (6, 719), (6, 772), (6, 822), (6, 873),
    (6, 910), (6, 948),
])  # fmt: skip
EFFICIENCY = np.r_[2 / 5, MODULATION_AND_CODE.prod(axis=1) / 1024]  # QPSK at rate 1/5 first

Fading = Callable[[tuple], np.ndarray]  # draws |h|^2 of mean 1 of this shape


@dataclass(frozen=True)
class Link:
    """What both links hold; arrays are (options,) or (kinds, options)."""

    lengths: np.ndarray  # (options,) patch tokens; 0 for silence, which comes first
    bits: np.ndarray  # (options,) bits an entry, 0 where entries are not quantised
    hidden: int  # D, numbers of a token
    special: np.ndarray  # (kinds,) tokens sent besides
    excess: np.ndarray  # nats against the best: (kinds, options, FINE), or (kinds, options) digital
    coherence: float = np.inf  # s
    pilots: int = 0  # channel uses a fade; 0: it is known, at no cost
    outage: float = 0.05  # of a code over fades that are not known
    gap_db: float = 3.5  # of a code from Shannon's limit
    fading: Fading | None = None  # of fades that are not known; needed where coherence ends

    @cached_property
    def sent(self) -> np.ndarray:
        """Tokens of each kind and option, special ones included, (kinds, options)."""
        return np.where(self.lengths > 0, self.lengths + self.special[:, None], 0)

    def fades(self, seconds: np.ndarray) -> np.ndarray:
        """How many fades an uplink of so many seconds meets."""
        return np.maximum(1, seconds / self.coherence)

    def filled(self, uses: np.ndarray, hertz: np.ndarray) -> np.ndarray:
        """s in which so many channel uses, and the pilots of each fade, are through."""
        with np.errstate(divide="ignore", invalid="ignore"):
            one = (uses + self.pilots) / hertz
            more = uses / np.maximum(hertz - self.pilots / self.coherence, 0)
        return np.where(one <= self.coherence, one, more)

    def learnt(self, snr: np.ndarray) -> np.ndarray:
        """The SNR that is left of one when the fade is learnt from pilots."""
        return snr**2 * self.pilots / (1 + (1 + self.pilots) * snr) if self.pilots else snr


class Analog(Link):
    """Tokens as they are; see the module."""

    def uses(self, kind, option) -> np.ndarray:
        """Channel uses, without pilots."""
        return self.sent[kind, option] * (self.hidden / 2)

    def hertz(self, kind, option, seconds, strength) -> np.ndarray:
        """The least bandwidth with which an option is through in so many s; `strength` is
        p g / N0 in Hz. Arguments broadcast, here and below."""
        uses = self.uses(kind, option)
        return (uses + self.pilots * self.fades(seconds)) / seconds + 0 * strength

    def seconds(self, kind, option, hertz, strength) -> np.ndarray:
        """s of the uplink."""
        return self.filled(self.uses(kind, option), hertz)

    def loss(self, kind, option, hertz, strength, seconds=None, truth=None) -> np.ndarray:
        """nats against the best, at the SNR of `truth` where it is not `strength`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = np.nan_to_num(self.learnt((strength if truth is None else truth) / hertz))
        at = (to_db(np.maximum(snr, 1e-12)) - FINE[0]) / (FINE[1] - FINE[0])
        at = np.clip(at, 0, len(FINE) - 1.001)
        low, table = at.astype(int), self._faded
        share = at - low
        return table[kind, option, low] * (1 - share) + table[kind, option, low + 1] * share

    def level(self, kind, option, hertz, seconds, truth) -> np.ndarray:
        """The SNR in dB at which tokens arrive."""
        snr = self.learnt(truth / np.maximum(hertz, 1e-300))
        return np.where(option > 0, to_db(np.maximum(snr, from_db(LOST_DB))), LOST_DB)

    def faded(self, level, source: np.random.Generator) -> np.ndarray:
        """Levels after a fade each, drawn where fades are not known."""
        if np.isinf(self.coherence):
            return level
        return level + to_db(source.choice(self._drawn, level.shape))

    @cached_property
    def _drawn(self) -> np.ndarray:
        """|h|^2 of 999 fades."""
        return np.maximum(np.sort(self.fading((999,))), 1e-6)

    @cached_property
    def _faded(self) -> np.ndarray:
        """`excess`, on average over the fade where it is not known."""
        if np.isinf(self.coherence):
            return self.excess
        db = to_db(self._drawn)
        rows = self.excess.reshape(-1, len(FINE))
        mean = [np.interp(FINE[:, None] + db, FINE, row).mean(axis=1) for row in rows]
        return np.array(mean).reshape(self.excess.shape)


class Digital(Link):
    """Quantised tokens behind a modulation and code; see the module."""

    def payload(self, kind, option) -> np.ndarray:
        """Bits."""
        return self._payload[kind, option]

    @cached_property
    def _payload(self) -> np.ndarray:
        """Bits of each kind and option, (kinds, options)."""
        return self.sent * token_bits(self.hidden, self.bits)

    def hertz(self, kind, option, seconds, strength) -> np.ndarray:
        """The least bandwidth with which an option is through in so many s; infinite where no
        modulation and code could do it. A narrower band has a higher SNR."""
        bits, fades = self.payload(kind, option), self.fades(seconds)
        uses = np.asarray(bits)[..., None] / EFFICIENCY + (self.pilots * fades)[..., None]
        needed = self.thresholds(fades) * uses / seconds[..., None]  # p g / N0 that each code takes
        code = (needed <= strength[..., None] * (1 + 1e-9)).sum(axis=-1) - 1
        hertz = (bits / EFFICIENCY[code] + self.pilots * fades) / seconds
        return np.where(code >= 0, hertz, np.inf)

    def seconds(self, kind, option, hertz, strength) -> np.ndarray:
        """s of the uplink, with the code that a single fade allows."""
        snr = np.asarray(strength / hertz)
        rate = efficiency(snr, self.thresholds(np.ones(snr.shape)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.filled(self.payload(kind, option) / rate, hertz)

    def loss(self, kind, option, hertz, strength, seconds=None, truth=None) -> np.ndarray:
        """nats against the best; what does not arrive counts as silence. `seconds` of the uplink
        are needed with a `truth`."""
        sent, silent = self.excess[kind, option], self.excess[kind, 0 * option]
        if np.isfinite(self.coherence):
            sent = np.where(option > 0, sent + self.outage * (silent - sent), sent)
        if truth is None:
            return sent + 0 * strength
        return np.where(self.lost(kind, option, hertz, seconds, truth), silent, sent)

    def lost(self, kind, option, hertz, seconds, truth) -> np.ndarray:
        """Whether the code that carries an option over so many Hz in so many s needs more SNR than
        there is."""
        fades = self.fades(seconds)
        with np.errstate(divide="ignore", invalid="ignore"):
            carried = self.payload(kind, option) / (hertz * seconds - self.pilots * fades)
            snr = truth / hertz
        code = np.searchsorted(EFFICIENCY, np.nan_to_num(carried) * (1 - 1e-9))
        needed = np.take_along_axis(
            self.thresholds(fades), np.minimum(code, len(EFFICIENCY) - 1)[..., None], axis=-1
        )[..., 0] * np.minimum(1, carried / EFFICIENCY[0])
        return (option > 0) & ((snr < needed * (1 - 1e-9)) | (code == len(EFFICIENCY)))

    def level(self, kind, option, hertz, seconds, truth) -> np.ndarray:
        """Bits an entry, 0 where nothing arrives."""
        arrives = (option > 0) & ~self.lost(kind, option, hertz, seconds, truth)
        return np.where(arrives, self.bits[option], 0)

    def faded(self, level, source: np.random.Generator) -> np.ndarray:
        """Levels but for outages, drawn where fades are not known."""
        out = np.isfinite(self.coherence) & (source.random(level.shape) < self.outage)
        return np.where(out, 0, level)

    def thresholds(self, fades: np.ndarray) -> np.ndarray:
        """The mean SNR that each code needs over so many fades, (..., codes)."""
        gap = float(from_db(self.gap_db))
        if np.isinf(self.coherence):
            needed = gap * np.expm1(np.log(2) * EFFICIENCY)
            return np.broadcast_to(self._with_pilots(needed), (*np.shape(fades), len(EFFICIENCY)))
        # Fades come in powers of 2: a number between them counts as the one below, up to 64.
        power = np.clip(np.log2(fades), 0, 6).astype(int)
        used = np.arange(power.max() + 1)
        tables = [faded_thresholds(self.fading, 2**n, self.outage, gap) for n in used]
        return self._with_pilots(np.array(tables))[power]

    def _with_pilots(self, needed: np.ndarray) -> np.ndarray:
        """The SNR of which so much is left when the fade is learnt (the inverse of `learnt`)."""
        if not self.pilots:
            return needed
        half = needed * (1 + self.pilots)
        return (half + np.sqrt(half**2 + 4 * self.pilots * needed)) / (2 * self.pilots)


def efficiency(snr: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Bits a channel use at an SNR (...), for codes that need at least `thresholds` (..., codes):
    of the best one, or where it is below all, of the lowest one repeated."""
    code = (thresholds <= snr[..., None]).sum(axis=-1) - 1
    return EFFICIENCY[np.maximum(code, 0)] * np.minimum(1, snr / thresholds[..., 0])


@lru_cache(maxsize=64)
def faded_thresholds(fading: Fading, fades: int, outage: float, gap: float) -> np.ndarray:
    """The mean SNR at which each of EFFICIENCY is carried over so many fades but for `outage` of
    all cases, (codes,): by 4,000 drawn cases."""
    h = fading((4000, fades))
    snr_db = np.arange(-20.0, 70.0, 0.5)
    carried = [
        np.quantile(np.log2(1 + snr * h / gap).mean(axis=1), outage) for snr in from_db(snr_db)
    ]
    return from_db(np.interp(EFFICIENCY, np.maximum.accumulate(carried), snr_db))
