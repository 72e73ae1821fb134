"""Both stages over several seeds, mean and spread: `python benchmarks/seeds.py`.

Runs task_align.py and task_avqa.py as a user would, one seed after the other, on the same clips,
and keeps finished runs. Writes benchmarks/seeds.json and prints the tables of the README.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, name: str, *flags: str) -> dict:
    """Run a script under a name unless its metrics stand; returns them."""
    metrics = ROOT / "checkpoint" / f"{name}.json"
    if not metrics.exists():
        command = [sys.executable, script, "--name", name, "--figures", "checkpoint/seeds", *flags]
        subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(metrics.read_text())


def summary(values: list[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}


def cell(values: list[float]) -> str:
    s = summary(values)
    return f"{100 * s['mean']:.1f} ({100 * s['min']:.1f} to {100 * s['max']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    seeds = parser.parse_args().seeds
    align, avqa = [], []
    for seed in seeds:
        align.append(run("task_align.py", f"seeds/align-{seed}", "--seed", str(seed)))
        start = f"checkpoint/seeds/align-{seed}.pth"
        flags = ("--seed", str(seed), "--init", start)
        avqa.append(run("task_avqa.py", f"seeds/avqa-{seed}", *flags))

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
    print("\n| test SNR (dB) | accuracy in % |\n|---|---|")
    for snr, values in by_snr.items():
        print(f"| {snr} | {cell(values)} |")
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
    }
    (ROOT / "benchmarks" / "seeds.json").write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
