"""Both stages over several seeds, mean and spread: `python benchmarks/seeds.py`.

Runs task_align.py and task_avqa.py with each seed on the same clips, several at a time, and keeps
finished runs. Writes benchmarks/seeds.json and prints the tables of the README.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.experiments.page import gain  # noqa: E402
from benchmarks.sweeps import fill_caches  # noqa: E402
from task_align import PRESETS as ALIGN  # noqa: E402
from task_avqa import PRESETS as AVQA  # noqa: E402
from utils.report.statistics import paired  # noqa: E402
from utils.runs import Run, run_all  # noqa: E402


def runs_of(seed: int) -> tuple[Run, Run, Run]:
    """The demo's two runs with another seed, and its second without the first."""
    changes = {"seed": seed, "figures": "none"}
    align = replace(ALIGN["mini"], name=f"seeds/align-{seed}", **changes)
    avqa = replace(AVQA["mini"], name=f"seeds/avqa-{seed}", **changes)
    alone = replace(avqa, name=f"seeds/unaligned-{seed}", init="none", question_only=False)
    avqa = replace(avqa, init=f"{align.out}/{align.name}.pth")
    return (
        Run("task_align", align),
        Run("task_avqa", avqa, after=align.name),
        Run("task_avqa", alone),
    )


def summary(values: list[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}


def cell(values: list[float]) -> str:
    s = summary(values)
    return f"{100 * s['mean']:.1f} ({100 * s['min']:.1f} to {100 * s['max']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    seeds = parser.parse_args().seeds
    runs = [runs_of(seed) for seed in seeds]
    fill_caches([run.config for part in runs for run in part])
    metrics = run_all([run for part in runs for run in part], label="seeds")
    align, avqa, alone = ([metrics[run.name] for run in part] for part in zip(*runs, strict=True))

    retrieval = {k: [r["retrieval"][k] for r in align] for k in align[0]["retrieval"]}
    held_out = {
        k: [r["held_out_loss"][k] / r["log_batch"] for r in align]
        for k in ("visual_to_text", "audio_to_text")
    }
    print(f"\nstage 1, {len(seeds)} seeds, % as mean (min to max)")
    for k in ("visual_to_text_r1", "audio_to_text_r1"):
        print(f"| {k} | {cell(retrieval[k])} |")
    for k, v in held_out.items():
        print(f"| InfoNCE {k} / log(batch) | {cell(v)} |")

    kinds = list(avqa[0]["accuracy"]["by_type"])
    names = list(avqa[0]["baselines"])
    print("\n| stage 2, accuracy in % | model | " + " | ".join(names) + " |")
    print("|---|---|" + "---|" * len(names))
    row = [cell([r["baselines"][n] for r in avqa]) for n in names]
    print(
        f"| overall | {cell([r['accuracy']['overall'] for r in avqa])} | " + " | ".join(row) + " |"
    )
    for kind in kinds:
        row = [cell([r["baselines_by_type"][n][kind] for r in avqa]) for n in names]
        own = cell([r["accuracy"]["by_type"][kind] for r in avqa])
        print(f"| {kind} | {own} | " + " | ".join(row) + " |")
    by_snr = {s: [r["accuracy_by_snr"][s] for r in avqa] for s in avqa[0]["accuracy_by_snr"]}
    unaligned = {s: [r["accuracy_by_snr"][s] for r in alone] for s in by_snr}
    gains = paired(list(by_snr.values()), list(unaligned.values()))
    print("\n| test SNR (dB) | accuracy in % | unaligned | gain (points ± 95 %) |")
    print("|---|---|---|---|")
    for i, (snr, values) in enumerate(by_snr.items()):
        print(f"| {snr} | {cell(values)} | {cell(unaligned[snr])} | {gain(gains, i)} |")
    whole = {
        "seeds": seeds,
        "retrieval": {k: summary(v) for k, v in retrieval.items()},
        "held_out_info_nce_over_log_batch": {k: summary(v) for k, v in held_out.items()},
        "accuracy": summary([r["accuracy"]["overall"] for r in avqa]),
        "by_type": {k: summary([r["accuracy"]["by_type"][k] for r in avqa]) for k in kinds},
        "baselines": {n: summary([r["baselines"][n] for r in avqa]) for n in names},
        "baselines_by_type": {
            n: {k: summary([r["baselines_by_type"][n][k] for r in avqa]) for k in kinds}
            for n in names
        },
        "accuracy_by_snr": {s: summary(v) for s, v in by_snr.items()},
        "unaligned_by_snr": {s: summary(v) for s, v in unaligned.items()},
        "gain_by_alignment": gains,
    }
    (ROOT / "benchmarks" / "seeds.json").write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
