"""The page of results, in Markdown: the claims, each figure with its command, its cost and its
numbers, and an appendix of what decides nothing by itself."""

from collections.abc import Sequence
from pathlib import Path

from utils.files import write_whole

# Published figures beside which these stand; they are of other data, and not comparable.
ANCHORS = [
    [
        "gain in test accuracy by the paper's scheme, over several SNRs",
        "13.7 %",
        "arXiv 2505.07841 v1, abstract; later versions give no number there",
    ],
    ["AVST, MUSIC-AVQA test", "71.5 %", "Li et al., CVPR 2022, arXiv 2203.14072"],
    ["VideoLLaMA2.1-7B-AV, MUSIC-AVQA test", "80.9 %", "Cheng et al., arXiv 2406.07476"],
    [
        "majority answer by type and template, MUSIC-AVQA test",
        "51.1 %",
        "the published annotations, fitted on val; `tests/utils/report/test_metrics.py`",
    ],
]


def percent(entry: dict, at: int | None = None) -> str:
    """`mean ± ci95` in percent, of an entry or of a point of its curve."""
    mean, width = (entry[k] if at is None else entry[k][at] for k in ("mean", "ci95"))
    return f"{100 * mean:.1f}" + ("" if width is None else f" ± {100 * width:.1f}")


def number(entry: dict, at: int | None = None) -> str:
    """`mean ± ci95` as it is."""
    mean, width = (entry[k] if at is None else entry[k][at] for k in ("mean", "ci95"))
    return f"{mean:.3f}" + ("" if width is None else f" ± {width:.3f}")


def signed(difference: dict, scale: float = 1, digits: int = 1) -> str:
    """A difference with its sign, `mean ± ci95` times `scale`."""
    mean, width = difference["mean"], difference["ci95"]
    said = f"{scale * mean:+.{digits}f}"
    return said if width is None else f"{said} ± {scale * width:.{digits}f}"


def listed(words: Sequence[str]) -> str:
    """`a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def table(head: Sequence[str], rows: Sequence[Sequence[object]], rule: str = " --- ") -> str:
    """A table in Markdown, `rule` in each cell under the head."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + len(head) * f"{rule}|")
    return "\n".join(lines) + "\n"


def heading(results: dict, name: str, title: str) -> str:
    """The section's title, the command that makes it, and what that took."""
    cost = results["cost"][name]
    return (
        f"\n## {title}\n\n`{cost['command']}`, commit {cost['commit']}: {cost['runs']} runs; the "
        f"{cost['ran']} that were not on disk yet took {cost['minutes']:.1f} minutes, "
        f"{cost['jobs']} at a time.\n"
    )


def write_page(path: Path, results: dict, claims: str, sections: Sequence[str]) -> str:
    """Write the page; returns its path."""
    cost = results["cost"].values()
    questions = results["steps"] * results["batch"]
    intro = (
        "# Results with intervals\n\n"
        f"Preset {results['preset']}, seeds {', '.join(map(str, results['seeds']))}, the same "
        f"clips on every side. Alignment takes {results['align_steps']} steps, fine-tuning "
        f"{results['steps']} steps of {results['batch']} questions"
        + (f" (the paper's budget, {questions:,} questions)" if questions == 2400 else "")
        + f", with {results['tokens']} tokens of each modality where no length is swept.\n\n"
        "Numbers are means ± half of their 95 % interval. That of a single model is over seeds "
        "(Student's t). Where two sides are compared they have the same seeds, and their "
        "accuracies the same questions: that interval is of the paired difference, over seeds and "
        "clips at once (`crossed` in `utils/report/statistics.py`); losses and steps are paired by "
        "seed. Each claim is decided by one pooled test. Numbers as they are: "
        f"[results.json](results.json). The runs that were not on disk yet took "
        f"{sum(c['minutes'] for c in cost):.1f} minutes.\n"
    )
    anchors = (
        "\n## Published numbers\n\nOf other data and models, not to be compared directly.\n\n"
        + table(["what", "number", "source"], ANCHORS)
    )
    write_whole(path, intro + claims + "".join(sections) + anchors)
    return str(path)
