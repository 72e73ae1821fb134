"""What the two stages report: retrieval, answers, accuracies and the baselines beside them."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn.functional import normalize

from utils.data.answers import is_right
from utils.data.datasets import QUESTION_TYPES, Question


def recall_at_1(queries: Tensor, gallery: Tensor, texts: Sequence[str]) -> float:
    """Share of clips whose nearest caption (cosine) is theirs; equal captions are one entry.

    Args:
        queries: (clips, hidden), visual or audio features.
        gallery: (clips, hidden), caption features; row i belongs to clip i.
        texts: the captions, for telling which are equal.
    """
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    own = torch.tensor([first[text] for text in texts])
    rows = torch.tensor(sorted(set(first.values())))
    scores = normalize(queries.float(), dim=-1) @ normalize(gallery.float()[rows], dim=-1).T
    return (rows[scores.argmax(dim=1).cpu()] == own).float().mean().item()


def retrieval(features: dict[str, Tensor], texts: Sequence[str]) -> dict[str, float]:
    """R@1 from audio and from visual features (clips, hidden) to captions, beside chance."""
    return {
        "audio_to_text_r1": recall_at_1(features["audio"], features["text"], texts),
        "visual_to_text_r1": recall_at_1(features["visual"], features["text"], texts),
        "chance_r1": 1 / len(set(texts)),
        "n": len(texts),
    }


def geometry(features: dict[str, Tensor]) -> dict[str, float]:
    """How the modalities lie on the unit sphere in numbers, since a picture of it deceives.

    Args:
        features: (clips, hidden) under `visual`, `audio` and `text`; row i of each is clip i.

    Returns:
        For visual and audio features `gap_*`: distance between their centroid and the captions'
        (Liang et al., 2022), and `alignment_*`: mean squared distance of a clip from its caption.
        For all three `uniformity_*`: log of the mean of exp(-2 d^2) over pairs of clips, lower is
        more even (both Wang and Isola, 2020). `silhouette`: of the modalities as clusters, 1 apart,
        0 mixed.
    """
    unit = {k: normalize(v.float(), dim=-1) for k, v in features.items()}
    centre = {k: v.mean(dim=0) for k, v in unit.items()}
    media = [k for k in unit if k != "text"]
    labels = np.repeat(list(unit), [len(v) for v in unit.values()])
    apart = {k: (unit[k] - unit["text"]).square().sum(dim=-1).mean().item() for k in media}
    return {
        **{f"gap_{k}": (centre[k] - centre["text"]).norm().item() for k in media},
        **{f"alignment_{k}": value for k, value in apart.items()},
        **{f"uniformity_{k}": uniformity(v) for k, v in unit.items()},
        # A cluster of one has no inside; by convention its silhouette is 0.
        "silhouette": float(silhouette_score(torch.cat(list(unit.values())).numpy(), labels))
        if len(labels) > len(unit)
        else 0.0,
    }


def uniformity(unit: Tensor) -> float:
    """log of the mean of exp(-2 d^2) over all pairs of rows (clips, hidden) of length 1; 0 for one
    clip or clips that coincide."""
    if len(unit) < 2:
        return 0.0
    return torch.pdist(unit).square().mul(-2).exp().mean().log().item()


def accuracy_report(questions: Sequence[Question], right: Sequence[bool]) -> dict:
    """Accuracies as fractions: over all questions, by type, by modality, and by whether the
    video is real or synthetic; a group without questions is left out."""
    groups: dict[str, dict[str, list[bool]]] = {
        "by_type": {t: [] for t in QUESTION_TYPES},
        "by_modality": {m: [] for m in ("Audio", "Visual", "Audio-Visual")},
        "by_source": {"real": [], "synthetic": []},
    }
    for question, ok in zip(questions, right, strict=True):
        groups["by_type"][question.type].append(ok)
        groups["by_modality"][question.type.split()[0]].append(ok)
        groups["by_source"]["synthetic" if question.synthetic else "real"].append(ok)
    report: dict = {"overall": sum(right) / max(1, len(right)), "n": len(right)}
    for name, parts in groups.items():
        report[name] = {k: sum(v) / len(v) for k, v in parts.items() if v}
    return report


def majority_answers(train: Sequence[Question], by: str = "template") -> dict:
    """The most frequent answer of each group of the training questions, and of all under None.

    `by` is `all`, `type` or `template` (of a type).
    """
    counts: dict = defaultdict(Counter)
    for q in train:
        counts[_group(q, by)][q.answer] += 1
        counts[None][q.answer] += 1
    # Ties go to the answer that comes first in the alphabet, so that runs agree.
    return {k: min(c, key=lambda a: (-c[a], a)) for k, c in counts.items()}


def majority_right(
    majority: dict, questions: Sequence[Question], by: str = "template"
) -> list[bool]:
    """Which questions the majority answers get right."""
    return [is_right(majority.get(_group(q, by), majority[None]), q.answer) for q in questions]


def _group(question: Question, by: str) -> tuple:
    fields = {"all": (), "type": ("type",), "template": ("type", "template")}
    return tuple(getattr(question, field) for field in fields[by])
