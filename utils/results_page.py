"""The page of results, in Markdown: each figure with its command, its cost and its numbers."""

from collections.abc import Iterator
from pathlib import Path

from utils.files import write_whole

COMMAND = "python benchmarks/sweeps.py"
TEMPERATURES = "python task_align.py --temperatures"
# Published figures beside which these stand; they are of other data, and not comparable.
ANCHORS = (
    (
        "gain in test accuracy by the paper's scheme, over several SNRs",
        "13.7 %",
        "arXiv 2505.07841 v1, abstract; later versions give no number there",
    ),
    ("AVST, MUSIC-AVQA test", "71.5 %", "Li et al., CVPR 2022, arXiv 2203.14072"),
    ("VideoLLaMA2.1-7B-AV, MUSIC-AVQA test", "80.9 %", "Cheng et al., arXiv 2406.07476"),
    (
        "majority answer by type and template, MUSIC-AVQA test",
        "51.1 %",
        "the published annotations, fitted on val; `tests/utils/test_metrics.py`",
    ),
)


def percent(entry: dict, at: int | None = None, sign: str = "") -> str:
    """`mean ± ci95` in percent, of an entry or of a point of its curve."""
    mean, width = (entry[k] if at is None else entry[k][at] for k in ("mean", "ci95"))
    return f"{100 * mean:{sign}.1f}" + ("" if width is None else f" ± {100 * width:.1f}")


def number(entry: dict, at: int | None = None) -> str:
    mean, width = (entry[k] if at is None else entry[k][at] for k in ("mean", "ci95"))
    return f"{mean:.3f}" + ("" if width is None else f" ± {width:.3f}")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def heading(results: dict, name: str, title: str, command: str) -> str:
    cost = results["cost"][name]
    return (
        f"\n## {title}\n\n`{command}`: {cost['runs']} runs, {cost['core_minutes']:.0f} minutes of "
        f"one core each in all, {len(results['seeds'])} seeds.\n"
    )


def temperatures(results: dict) -> Iterator[str]:
    found = results["temperatures"]
    taus = [name for name in found if name != "none"]
    command = f"{TEMPERATURES} {' '.join(taus)}"
    yield heading(results, "temperatures", "Temperature of the alignment", command)
    yield "![losses of fine-tuning](Temp.png)\n"
    rows = [
        [
            "no alignment" if name == "none" else f"τ = {name}",
            percent(entry["accuracy"]),
            ""
            if name == "none"
            else f"{percent(entry['gain'], 0, '+')}, " + entry["gain"]["verdict"][0],
            "" if name == "none" else steps(entry["steps_ratio"]),
        ]
        for name, entry in found.items()
    ]
    yield table(["fine-tuned from", "accuracy (%)", "gain (points)", "steps (%)"], rows)
    yield (
        "*Gain*: accuracy less that of no alignment, seed by seed. *Steps*: when the validation "
        "loss reaches that of the unaligned run's end, in percent of its steps.\n"
    )
    shown = ["000.png", *(f"{round(100 * float(tau)):03d}.png" for tau in taus)]
    yield "\n" + "".join(f'<img src="{name}" width="24%">' for name in shown) + "\n"
    yield (
        f"\nt-SNE of the same held-out clips (seed {results['seeds'][0]}), same axes; "
        "[points](tsne.csv). The command also writes `tsne.html`, where hovering over a point "
        "shows its clip. Pictures deceive, so the numbers:\n"
    )
    keys = list(found["none"]["features"])
    rows = [
        [key.replace("_", " "), *(number(entry["features"][key]) for entry in found.values())]
        for key in keys
        if key != "chance_r1"
    ]
    names = ["no alignment" if name == "none" else f"τ = {name}" for name in found]
    yield table(["features of held-out clips", *names], rows)
    yield (
        "R@1 (chance "
        f"{found['none']['features']['chance_r1']['mean']:.4f}); *gap*: distance of the centroid "
        "from the captions'; *alignment*: mean squared distance of a clip from its caption; "
        "*uniformity*: log mean exp(−2 d²) over pairs of clips; *silhouette* of the modalities as "
        "clusters.\n"
    )


def steps(ratio: dict | None) -> str:
    return "not reached" if ratio is None else percent(ratio)


def snr(results: dict) -> Iterator[str]:
    yield heading(results, "snr", "Accuracy against SNR", f"{COMMAND} --only snr")
    yield "![accuracy against SNR](snr.png)\n"
    for name, found in results["snr_sweeps"].items():
        channel, trained = name.rsplit("-", 1)
        at = "at one SNR" if trained == "one" else "over the range"
        yield f"\n**{channel}, trained {at}.** {helps(found)} {checks(found)}\n"
        rows = [
            [
                f"{snr:g}",
                *(percent(found[k], i) for k in MODELS),
                percent(found["gain"], i, "+"),
                found["gain"]["verdict"][i],
            ]
            for i, snr in enumerate(found["snr_db"])
        ]
        head = ["test SNR (dB)", *(k.replace("_", " ") for k in MODELS)]
        yield table([*head, "gain by alignment (points)", ""], rows)


MODELS = ("aligned", "unaligned", "question_only", "no_channel")


def helps(found: dict) -> str:
    """At which SNRs alignment is better, worse, or neither is shown."""
    said = []
    for verdict, words in (
        ("better", "Alignment helps at {} dB"),
        ("worse", "It hurts at {} dB"),
        ("undecided", "Neither is shown at {} dB"),
    ):
        levels = [
            f"{snr:g}"
            for snr, v in zip(found["snr_db"], found["gain"]["verdict"], strict=True)
            if v == verdict
        ]
        if levels:
            said.append(words.format(", ".join(levels)) + ".")
    return " ".join(said)


def checks(found: dict) -> str:
    """Whether the curves are as they must be: rising, flat, and below the one without noise."""
    said = []
    for name in ("aligned", "unaligned"):
        drops = falls(found[name])
        if drops:
            levels = ", ".join(f"{found['snr_db'][i]:g}" for i in drops)
            said.append(f"The {name} curve falls by more than its intervals after {levels} dB.")
    if not said:
        said.append("Both curves rise with SNR within their intervals.")
    flat = found["question_only"]["mean"]
    said.append(f"Question only spans {100 * (max(flat) - min(flat)):.1f} points.")
    bound = found["no_channel"]
    above = [
        f"{name} at {found['snr_db'][i]:g} dB"
        for name in ("aligned", "unaligned")
        for i, mean in enumerate(found[name]["mean"])
        if mean - (found[name]["ci95"][i] or 0) > bound["mean"][i] + (bound["ci95"][i] or 0)
    ]
    said.append(
        f"Above the bound without noise by more than the intervals: {', '.join(above)}."
        if above
        else "None is above the bound without noise by more than the intervals."
    )
    return " ".join(said)


def falls(curve: dict) -> list[int]:
    """The points after which a curve falls by more than both intervals allow."""
    mean, width = curve["mean"], [w or 0 for w in curve["ci95"]]
    return [i for i in range(len(mean) - 1) if mean[i] - width[i] > mean[i + 1] + width[i + 1]]


def lengths(results: dict) -> Iterator[str]:
    sweep = results["token_length_sweep"]
    yield heading(results, "lengths", "Token length", f"{COMMAND} --only lengths")
    yield "![accuracy and validation loss against token length](token_length.png)\n"
    ways = [k for k in sweep if k not in ("lengths", "channel_uses", "gain")]
    for m in ("visual", "audio"):
        head = [f"{m} tokens", "channel uses"]
        for how in ways:
            head += [f"{how.replace('_', ' ')}: accuracy (%)", "validation loss"]
        rows = []
        for i, n in enumerate(sweep["lengths"]):
            row = [str(n), f"{sweep['channel_uses'][m][i]:,}"]
            for how in ways:
                curves = sweep[how][m]
                row += [percent(curves["accuracy"], i), number(curves["validation_loss"], i)]
            rows.append(row)
        yield "\n" + table(head, rows)
        for other, gains in sweep["gain"].items():
            verdicts = zip(sweep["lengths"], gains[m]["verdict"], strict=True)
            shown = ", ".join(f"{n}: {v}" for n, v in verdicts)
            yield f"\n{ways[0].replace('_', ' ')} against {other}, by tokens: {shown}.\n"
    yield (
        "\nThe other modality keeps its length. Channel uses are complex symbols a clip, of both "
        "modalities. [token_length.csv](token_length.csv) holds every run.\n"
    )


def ablations(results: dict) -> Iterator[str]:
    yield heading(results, "ablations", "Ablations", f"{COMMAND} --only ablations")
    yield "![accuracy without each part](ablations.png)\n"
    rows = [
        [
            part,
            percent(entry["accuracy"]),
            ""
            if part == "full"
            else f"{percent(entry['gain'], 0, '+')}, " + entry["gain"]["verdict"][0],
            number(entry["validation_loss"]),
            percent(entry["visual_to_text_r1"]),
            percent(entry["audio_to_text_r1"]),
        ]
        for part, entry in results["ablations"].items()
    ]
    head = ["system", "accuracy (%)", "less the full (points)", "validation loss"]
    yield table([*head, "R@1 visual to text (%)", "R@1 audio to text (%)"], rows)
    yield (
        "\nParts of the contrastive stage are taken from stage 1, which then trains anew; stage 2 "
        "starts from it. A modality left out is replaced by noise of the same power.\n"
    )


def write_page(path: Path, results: dict) -> str:
    """Write what `results.json` holds as a page; returns its path."""
    parts = [
        "# Results with error bars\n\n"
        f"Preset {results['preset']}, seeds {', '.join(map(str, results['seeds']))}, the same "
        "clips on every side. Numbers are means over seeds ± half of their 95 % interval "
        "(Student's t); differences are taken seed by seed, and are called better or worse where "
        f"the interval leaves out 0. Alignment is {results['align_steps']} steps, fine-tuning "
        f"{results['steps']} steps of {results['batch']} questions: a short schedule that leaves "
        "time for many runs, so accuracies are below the main page's. One command makes "
        f"everything here, finished runs are skipped: `{COMMAND}`.\n"
    ]
    for name, section in SECTIONS.items():
        if name in results["cost"]:
            parts += section(results)
    parts.append(
        "\n## Published numbers\n\nOf other data and models, not to be compared directly.\n\n"
    )
    parts.append(table(["what", "number", "source"], [list(row) for row in ANCHORS]))
    write_whole(path, "".join(parts))
    return str(path)


SECTIONS = {
    "temperatures": temperatures,
    "snr": snr,
    "lengths": lengths,
    "ablations": ablations,
}
