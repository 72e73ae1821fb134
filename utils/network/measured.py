"""What task_network.py asks of models: surfaces, their agreement with drops, methods compared by
answers, and analog beside digital messages."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, product
from typing import Any

import numpy as np

from modules.digital.codebook import GROUPS, token_bits
from modules.digital.quantisation import STEPS
from modules.network.cell import from_db, to_db
from modules.network.links import EFFICIENCY, efficiency
from utils.mini.text import caption
from utils.mini.world import scenes
from utils.network.answers import LOST, Answers, Asked, measure
from utils.network.study import LINKS, Method, Study, arrives
from utils.report.statistics import crossed

DRAWS = 1000  # of a bootstrap
HELD_OUT = 10_000  # the first drop that nothing else looks at
BANDWIDTHS = (1.0, 0.25, 0.06)  # shares of the study's, with which predictions are checked
FADES = 24  # of each scene there, where fades are not known


def surface_points(config: Any, ask: list[dict]) -> dict[str, list[dict]]:
    """The points of each link's loss surface, of the first model's validation questions."""
    levels = dict(zip(LINKS, (config.snr_levels, config.bits_levels), strict=True))
    return {
        link: measure(ask[0][link]["val"], config.surface_lengths, levels[link], config.repeats)
        for link in LINKS
    }


def parts(study: Study, ask: list[dict]) -> dict[str, Callable[[], dict]]:
    """What computes each part of this file that needs a study, by its name. `ask` has the val and
    test questions of both links, of each trained seed."""
    c, first = study.config, ask[0]
    captions = mini_captions(c.mini_clips[2]) if c.preset == "mini" else None
    held_out = range(HELD_OUT, HELD_OUT + max(1, c.few // 2) * len(BANDWIDTHS))
    return {
        "agreement": partial(agreement, study, {k: first[k]["val"] for k in LINKS}, held_out),
        "by_deadline": partial(by_deadline, study, ask, c.drops, c.passes),
        "over_messages": partial(over_messages, study, first, captions),
    }


def mini_captions(count: int) -> dict[str, str]:
    """The captions of the mini world's test clips, which MUSIC-AVQA itself has none of."""
    drawn = scenes("MUSIC-AVQA", "test", count, seed=0)
    return {k: caption(s, np.random.default_rng((*s.seed, 50))) for k, s in drawn.items()}


def agreement(study: Study, answers: dict[str, Answers], drops: Sequence[int]) -> dict:
    """Predicted against measured validation loss of drops that nothing was fitted to, by the joint
    allocation and the equal split; drops take turns in the study's weights, and in shares of its
    bandwidth, so that losses spread. Each takes all questions of the split. The `line` is of those
    in which somebody sends; what is lost without a message was measured for the surface."""
    budgets = [*product(BANDWIDTHS, study.config.weights)]
    found = {}
    for link, answer in answers.items():
        points = []
        for drop, (share, weight) in zip(drops, cycle(budgets), strict=False):
            bandwidth = share * study.config.bandwidth
            for name in ("joint", "equal split"):
                problem = study.drop(drop, link, weight=weight, bandwidth=bandwidth)
                result = study.methods[name](problem)
                lost = (problem.importance * result.loss).sum()
                times = FADES if np.isfinite(problem.link.coherence) else 1
                asked = answer(*arrives(problem, result, times, drop), seed=1000 + drop)
                points.append({
                    "drop": drop, "method": name, "silent": not result.option.any(),
                    "predicted": problem.floor + float(lost), "measured": asked.loss,
                })  # fmt: skip
        heard = [p for p in points if not p["silent"]]
        found[link] = {"points": points, "silent": len(points) - len(heard), **line(heard)}
    return found


def line(points: list[dict]) -> dict:
    """The straight line through measured against predicted losses: `slope`, `offset` at the mean
    prediction, and `r2`, the share of the variance of what was measured that it explains."""
    if not points:
        return {"slope": 0.0, "offset": 0.0, "r2": 0.0}
    x, y = (np.array([p[k] for p in points]) for k in ("predicted", "measured"))
    spread = np.square(x - x.mean()).sum()
    slope = ((x - x.mean()) * y).sum() / spread if spread > 0 else 0.0
    rest = y - y.mean() - slope * (x - x.mean())
    varying = np.square(y - y.mean()).sum()
    r2 = 1 - np.square(rest).sum() / varying if varying > 0 else 0.0
    return {"slope": float(slope), "offset": float(y.mean() - x.mean()), "r2": float(r2)}


def by_deadline(study: Study, ask: list[dict], drops: int, passes: int) -> dict:
    """Every method's accuracy where each drop minimises its loss within a deadline, so that methods
    are compared at the same latency; and the joint allocation's latency over each method's where
    they are equally accurate. Over training seeds (one of `ask` each) and clips.

    Clips take turns in the drops' scenes, and begin `passes` times elsewhere.
    """
    found = {}
    for link in LINKS:
        right, latencies, answers = {}, {}, [each[link]["test"] for each in ask]
        for name, method in study.methods.items():
            curves, times = [], []
            for deadline in study.config.deadlines:
                asked, ends = answered(study, answers, link, method, deadline, drops, passes)
                curves.append(np.array([[a.right for a in each] for each in asked]))
                times.append(ends)
            # (deadlines, seeds, questions), each question's over all passes
            right[name] = np.array(curves, float).mean(axis=2)
            latencies[name] = [float(np.median(t)) for t in times]
        clips = answers[0].clip
        ours = right["joint"]
        found[link] = {
            "deadlines_s": study.config.deadlines,
            "accuracy": {k: of.mean(axis=(1, 2)).tolist() for k, of in right.items()},
            "median_latency_s": latencies,
            "by_deadline": {
                k: [crossed(a - b, clips) for a, b in zip(ours, of, strict=True)]
                for k, of in right.items()
                if k != "joint"
            },
            "accuracy_at_equal_latency": {
                k: crossed((ours - of).mean(axis=0), clips) for k, of in right.items()
                if k != "joint"
            },
            "latency_at_equal_accuracy": {
                k: latency_ratio(study.config.deadlines, ours, of, clips)
                for k, of in right.items()
                if k != "joint"
            },
        }  # fmt: skip
    return found


def answered(
    study: Study, answers: list[Answers], link: str, method: Method, deadline: float, drops: int,
    passes: int,
) -> tuple[list[list[Asked]], list[float]]:  # fmt: skip
    """What comes of the questions, by seed and pass, and each drop's latency in s."""
    problems = [study.drop(d, link, deadline=deadline, weight=0.0) for d in range(drops)]
    solved = [method(problem) for problem in problems]
    sent = [arrives(*each, seed=d) for d, each in enumerate(zip(problems, solved, strict=True))]
    lengths, levels = (np.concatenate([s[i] for s in sent]) for i in (0, 1))
    turns = [len(lengths) * k // passes for k in range(passes)]
    asked = [
        [answer(np.roll(lengths, -t, 0), np.roll(levels, -t, 0), seed=t) for t in turns]
        for answer in answers
    ]
    return asked, [result.latency for result in solved]


def latency_ratio(deadlines: Sequence[float], ours: np.ndarray, theirs: np.ndarray, clips) -> dict:
    """Ours over their latency where ours is as accurate as they are at their middle deadline:
    `ratio`, with the 95 % interval of a bootstrap over clips and seeds, None where ours never is;
    `least`, at which it is so with the shortest deadline already: the ratio is that or less.

    Args:
        ours, theirs: right answers (deadlines, seeds, questions).
        clips: the clip of each question.
    """
    middle, log = len(deadlines) // 2, np.log(deadlines)
    names, clip = np.unique(clips, return_inverse=True)
    count = np.bincount(clip)
    # (deadlines, seeds, clips)
    sums = [np.apply_along_axis(lambda x: np.bincount(clip, x), 2, of) for of in (ours, theirs)]

    def ratio(seeds: np.ndarray, some: np.ndarray) -> float:
        a, b = (of[:, seeds][:, :, some].sum(axis=(1, 2)) / count[some].sum() for of in sums)
        target, curve = b[middle], np.maximum.accumulate(a)
        if target > curve[-1]:
            return np.inf
        if target <= curve[0]:  # as accurate with the shortest: the ratio is no more than this
            return float(np.exp(log[0] - log[middle]))
        i = int(np.searchsorted(curve, target))
        share = (target - curve[i - 1]) / (curve[i] - curve[i - 1])
        return float(np.exp(log[i - 1] + share * (log[i] - log[i - 1]) - log[middle]))

    source, seeds = np.random.default_rng(0), ours.shape[1]
    found = ratio(np.arange(seeds), np.arange(len(names)))
    drawn = [
        ratio(source.integers(seeds, size=seeds), source.integers(len(names), size=len(names)))
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975), method="inverted_cdf")
    least = np.exp(log[0] - log[middle])
    return {k: None if np.isinf(v) else float(v) for k, v in
            (("ratio", found), ("low", low), ("high", high), ("least", least))}  # fmt: skip


def over_messages(study: Study, ask: dict, captions: dict[str, str] | None) -> dict:
    """Accuracy against SNR in as many channel uses as `link_length` analog tokens of each modality
    take: at each SNR the best number of analog tokens, and the best digital message that fits
    (`digital_messages`). Channel uses, time and energy are the same for all, or the same energy
    goes into fewer uses; each link has its own model. And the same over Rayleigh fades that the
    sender knows, against the average SNR.
    """
    c, analog, digital = study.config, ask["analog"]["test"], ask["digital"]["test"]
    special = np.array(list(study.special.values()))
    uses = (special + c.link_length) * study.hidden / 2  # of each modality
    snr_db = np.array(c.link_snr_db)
    fewer = [n for n in c.surface_lengths if n < c.link_length]
    gains_db = {n: to_db(uses / ((special + n) * study.hidden / 2)) for n in (0, *fewer)}
    gains_db[c.link_length] = np.zeros(len(uses))
    asked = {
        n: [analog(np.full((1, 2), n), [at + gain]).accuracy for at in snr_db]
        for n, gain in gains_db.items()
    }
    messages = digital_messages(study, digital, uses, captions)
    nothing = digital(np.ones((1, 2)), np.full((1, 2), LOST["digital"])).accuracy
    lowest = snr_db[0] - 20  # dB, at which nothing is heard of an analog token

    def at(levels: np.ndarray) -> dict[str, np.ndarray]:
        """Accuracies at these SNRs in dB, by what is sent."""
        alone, *tokens = (
            np.interp(levels, [lowest, *snr_db], [nothing, *of]) for of in asked.values()
        )
        found = {"analog tokens": np.max(tokens, axis=0), "analog special tokens alone": alone}
        best = best_messages(messages, levels, c.gap_db, nothing)
        return {**found, **best, "digital envelope": np.max([*best.values()], axis=0)}

    # Fades in a thousand steps of equal probability, (SNRs, fades)
    faded = snr_db[:, None] + to_db(-np.log1p(-(np.arange(1000) + 0.5) / 1000))
    return {
        "snr_db": snr_db.tolist(),
        "channel_uses": int(uses.sum()),
        "questions": len(digital.clip),
        "nothing": nothing,
        "curves": {k: of.tolist() for k, of in at(snr_db).items()},
        "over_rayleigh": {k: of.mean(axis=1).tolist() for k, of in at(faded).items()},
        "messages": messages,
    }


def best_messages(
    messages: list[dict], snr_db: np.ndarray, gap_db: float, nothing: float
) -> dict[str, np.ndarray]:
    """Accuracy of the best message of each kind that fits at these SNRs, or of `nothing`."""
    snr = from_db(snr_db)
    needed = from_db(gap_db) * np.expm1(np.log(2) * EFFICIENCY)
    carried = efficiency(snr, np.broadcast_to(needed, (*snr.shape, len(needed))))
    found: dict[str, np.ndarray] = {}
    for message in messages:
        before = found.get(message["kind"], np.full(snr.shape, nothing))
        heard = np.where(message["needs"] <= carried, message["accuracy"], nothing)
        found[message["kind"]] = np.maximum(before, heard)
    return found


def digital_messages(
    study: Study, answer: Answers, uses: np.ndarray, captions: dict[str, str] | None
) -> list[dict]:
    """What can be sent in so many channel uses of each modality at the highest rate: every length
    at 1 to 8 bits an entry and by the codebooks, special tokens alone, and the caption as text
    where there are captions. Each with its accuracy and the bits a channel use that it needs."""
    c, special = study.config, np.array(list(study.special.values()))
    books, messages = [b for b in c.bits_levels if b in GROUPS], []
    for bits in (*books, *STEPS):
        for length in (0, *c.surface_lengths):
            needs = float(((special + length) * token_bits(study.hidden, bits) / uses).max())
            if needs > EFFICIENCY[-1]:
                continue
            asked = answer(np.full((1, 2), length), np.full((1, 2), bits))
            kind = "learned codebook" if bits in books else "quantised tokens"
            messages.append({
                "kind": kind if length else "digital special tokens alone",
                "tokens": length, "bits": bits, "needs": needs, "accuracy": asked.accuracy,
            })  # fmt: skip
    if captions:
        asked, bits = answer.from_captions(captions)
        needs = bits / float(uses.sum())
        messages.append({"kind": "caption as text", "bits": bits, "needs": needs,
                         "accuracy": asked.accuracy})  # fmt: skip
    return messages
