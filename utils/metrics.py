"""What the two stages report: retrieval, answers, accuracies and the baselines beside them."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from utils.datasets import QUESTION_TYPES, Question


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


def normalise_answer(text: str) -> str:
    """The form in which answers are compared: lower case, words parted by single spaces, an
    underscore read as a space, no quotes, and no full stop, comma, ! or ? at the ends."""
    text = re.sub(r"[\s_]+", " ", text.lower().replace('"', "").replace("'", ""))
    return text.strip(" .,!?")


def is_right(prediction: str, answer: str) -> bool:
    """Exact match of the normalised forms; part of an answer is not an answer."""
    return normalise_answer(prediction) == normalise_answer(answer)


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
    return {
        "all": (),
        "type": (question.type,),
        "template": (question.type, question.template),
    }[by]
