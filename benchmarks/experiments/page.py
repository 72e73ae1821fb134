"""The page of results, in Markdown: each figure with its command, its cost and its numbers."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from utils.files import write_whole
from utils.report.statistics import paired, seeds_needed

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


def percent(entry: dict, at: int | None = None, sign: str = "") -> str:
    """`mean ± ci95` in percent, of an entry or of a point of its curve."""
    mean, width = (entry[k] if at is None else entry[k][at] for k in ("mean", "ci95"))
    return f"{100 * mean:{sign}.1f}" + ("" if width is None else f" ± {100 * width:.1f}")


def number(entry: dict, at: int | None = None) -> str:
    """`mean ± ci95` as it is."""
    mean, width = (entry[k] if at is None else entry[k][at] for k in ("mean", "ci95"))
    return f"{mean:.3f}" + ("" if width is None else f" ± {width:.3f}")


def gain(entry: dict, at: int = 0) -> str:
    """A paired difference in points, and what it says; if nothing, how many seeds would."""
    said = entry["verdict"][at]
    if said == "undecided" and (needed := seeds_needed(entry["values"][at])):
        said += f" (some {needed} seeds)" if needed < 100 else " (100 seeds or more)"
    return f"{percent(entry, at, '+')}, {said}"


def changes(curve: dict) -> dict[tuple[int, int], str]:
    """What the seeds say of the curve at j against i, by pairs of its points i < j."""
    pairs = combinations(enumerate(curve["values"]), 2)
    return {(i, j): paired([later], [first])["verdict"][0] for (i, first), (j, later) in pairs}


def falls(curve: dict) -> list[tuple[int, int]]:
    """Pairs of points i < j of a curve where the seeds agree that it lies lower at j."""
    return [pair for pair, verdict in changes(curve).items() if verdict == "worse"]


def differs(curve: dict) -> list[tuple[int, int]]:
    """Pairs of points of a curve that the seeds agree to differ."""
    return [pair for pair, verdict in changes(curve).items() if verdict != "undecided"]


def table(head: Sequence[str], rows: Sequence[Sequence[object]], rule: str = " --- ") -> str:
    """A table in Markdown, `rule` in each cell under the head."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + len(head) * f"{rule}|")
    return "\n".join(lines) + "\n"


def heading(results: dict, name: str, title: str) -> str:
    """The section's title, the command that makes it, and what that took."""
    cost = results["cost"][name]
    return (
        f"\n## {title}\n\n`{cost['command']}`: {cost['runs']} runs; the {cost['ran']} that no "
        f"section before had made took {cost['minutes']:.1f} minutes, {cost['jobs']} at a time.\n"
    )


def write_page(path: Path, results: dict, sections: Sequence[str]) -> str:
    """Write the page; returns its path."""
    cost = results["cost"].values()
    intro = (
        "# Results with error bars\n\n"
        f"Preset {results['preset']}, seeds {', '.join(map(str, results['seeds']))}, the same "
        "clips on every side. Numbers are means over seeds ± half of their 95 % interval "
        "(Student's t). Differences are taken seed by seed; they are called better or worse where "
        "the interval leaves out 0, else undecided, with the number of seeds that would settle a "
        "difference of that size and spread. Of so many comparisons one in twenty looks decided "
        "by chance.\n\n"
        f"Alignment takes {results['align_steps']} steps, fine-tuning {results['steps']} steps of "
        f"{results['batch']} questions"
        + (
            ", fewer than in task_avqa.py, so that there is time for many runs: accuracies are "
            "below those of the main page"
            if results["preset"] == "mini"
            else ""
        )
        + ". Numbers as they are: [results.json](results.json). All sections took "
        f"{sum(c['minutes'] for c in cost):.1f} minutes.\n"
    )
    anchors = (
        "\n## Published numbers\n\nOf other data and models, not to be compared directly.\n\n"
        + table(["what", "number", "source"], ANCHORS)
    )
    write_whole(path, intro + "".join(sections) + anchors)
    return str(path)
