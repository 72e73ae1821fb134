"""The demo over ten seeds, mean and spread: `python benchmarks/seeds.py`.

Runs task_align.py and task_avqa.py with each seed on the same clips, several at a time, and keeps
finished runs. Writes benchmarks/seeds.json and prints the tables of docs/results.md.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.experiments.compare import gain  # noqa: E402
from benchmarks.experiments.page import signed, table  # noqa: E402
from benchmarks.measure import commit  # noqa: E402
from benchmarks.sweeps import fill_caches  # noqa: E402
from task_align import PRESETS as ALIGN  # noqa: E402
from task_avqa import PRESETS as AVQA  # noqa: E402
from utils.files import write_whole  # noqa: E402
from utils.runs import Run, run_all  # noqa: E402


def runs_of(seed: int) -> tuple[Run, Run, Run, Run]:
    """The demo's two runs with another seed; its second without the first, and its second with one
    question a sequence instead of up to four that share a clip."""
    changes = {"seed": seed, "figures": "none", "threads": 1}  # others train beside it
    align = replace(ALIGN["mini"], name=f"seeds/align-{seed}", **changes)
    avqa = replace(AVQA["mini"], name=f"seeds/avqa-{seed}", **changes)
    alone = replace(avqa, name=f"seeds/unaligned-{seed}", init="none", question_only=False)
    avqa = replace(avqa, init=f"{align.out}/{align.name}.pth")
    single = replace(avqa, name=f"seeds/single-{seed}", packed=1, question_only=False)
    after = [Run("task_avqa", config, after=align.name) for config in (avqa, single)]
    return Run("task_align", align), after[0], Run("task_avqa", alone), after[1]


def summary(values: list[float]) -> dict[str, float]:
    """Mean, extremes and standard deviation over seeds (0 for one)."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    mean = statistics.fmean(values)
    return {"mean": mean, "min": min(values), "max": max(values), "sd": spread}


def by_key(parts: list[dict]) -> dict[str, dict[str, float]]:
    """The summary of each number in a part of the runs' metrics."""
    return {key: summary([part[key] for part in parts]) for key in parts[0]}


def cell(found: dict[str, float]) -> str:
    """Mean (lowest to highest) in percent."""
    return f"{100 * found['mean']:.1f} ({100 * found['min']:.1f} to {100 * found['max']:.1f})"


def tables(found: dict) -> str:
    """What docs/results.md shows of benchmarks/seeds.json."""
    rows = [
        [f"R@1 {name}", cell(found["retrieval"][f"{name.replace(' ', '_')}_r1"])]
        for name in ("visual to text", "audio to text")
    ]
    rows += [
        [f"InfoNCE {k.replace('_', ' ')}, share of log(batch)", cell(v)]
        for k, v in found["held_out_info_nce_over_log_batch"].items()
    ]
    said = table(["stage 1", "%"], rows)

    names = [name.replace("_", " ") for name in found["baselines"]]
    rows = [["overall", *map(cell, (found["accuracy"], *found["baselines"].values()))]]
    spreads = [found["accuracy"]["sd"], *(b["sd"] for b in found["baselines"].values())]
    rows.append(["standard deviation of overall", *(f"{100 * sd:.1f}" for sd in spreads)])
    columns = (found["by_type"], *found["baselines_by_type"].values())
    rows += [[kind, *(cell(column[kind]) for column in columns)] for kind in found["by_type"]]
    head = ["accuracy in %", "model", *names]
    said += "\n" + table(head, rows)

    gains = found["gain_by_alignment"]
    pairs = [
        (snr, own, found["unaligned_by_snr"][snr], gains["by_snr"][snr])
        for snr, own in found["accuracy_by_snr"].items()
    ]
    rows = [[snr, cell(own), cell(other), signed(apart, 100)] for snr, own, other, apart in pairs]
    rows.append(["all", "", "", signed(gains["pooled"], 100)])
    head = ["test SNR (dB)", "accuracy in %", "without stage 1", "gain by it (points ± 95 %)"]
    said += "\n" + table(head, rows)

    rows = [["1", cell(found["unpacked"]), ""]]
    rows.append(["4", cell(found["accuracy"]), signed(found["gain_by_packing"], 100)])
    head = ["most questions a sequence", "accuracy in %", "gain by sharing (points ± 95 %)"]
    return said + "\n" + table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(11, 21)))
    seeds = parser.parse_args().seeds
    runs = [runs_of(seed) for seed in seeds]
    fill_caches([run.config for part in runs for run in part])
    metrics = run_all([run for part in runs for run in part], label="seeds")
    of_kind = zip(*runs, strict=True)
    align, avqa, alone, single = ([metrics[run.name] for run in part] for part in of_kind)
    by_snr = {s: [r["accuracy_by_snr"][s] for r in avqa] for s in avqa[0]["accuracy_by_snr"]}
    sides = [[[part[i] for part in runs]] for i in (1, 2, 3)]  # the demo, unaligned, unpacked
    unaligned = {s: [r["accuracy_by_snr"][s] for r in alone] for s in by_snr}
    found = {
        "seeds": seeds,
        "retrieval": by_key([r["retrieval"] for r in align]),
        "held_out_info_nce_over_log_batch": {
            k: summary([r["held_out_loss"][k] / r["log_batch"] for r in align])
            for k in ("visual_to_text", "audio_to_text")
        },
        "accuracy": summary([r["accuracy"]["overall"] for r in avqa]),
        "by_type": by_key([r["accuracy"]["by_type"] for r in avqa]),
        "baselines": by_key([r["baselines"] for r in avqa]),
        "baselines_by_type": {
            name: by_key([r["baselines_by_type"][name] for r in avqa])
            for name in avqa[0]["baselines"]
        },
        "accuracy_by_snr": {s: summary(v) for s, v in by_snr.items()},
        "unaligned_by_snr": {s: summary(v) for s, v in unaligned.items()},
        "gain_by_alignment": {
            "pooled": gain(*sides[:2], [float(snr) for snr in by_snr]),
            "by_snr": {snr: gain(*sides[:2], [float(snr)]) for snr in by_snr},
        },
        "unpacked": summary([r["accuracy"]["overall"] for r in single]),
        "gain_by_packing": gain(sides[0], sides[2]),
        "commit": commit(),
    }
    write_whole(ROOT / "benchmarks" / "seeds.json", json.dumps(found, indent=2) + "\n")
    print(tables(found))


if __name__ == "__main__":
    main()
