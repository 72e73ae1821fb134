"""What clips, steps and logits cost: `python benchmarks/efficiency.py`, some 12 minutes on 2 cores.

Everything is measured in one run, each measurement in a process of its own so that its peak memory
is its own, on models of the published sizes with random weights (benchmarks/full_size.py). The
language model of the comparisons has 42 M parameters and the real vocabulary. Prints tables, writes
benchmarks/efficiency.json and imgs/efficiency.png.
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from benchmarks import full_size, measure  # noqa: E402
from benchmarks.measure import BATCH, alone  # noqa: E402

VALOR_32K = 32_318  # clips of the published annotations


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {len(os.sched_getaffinity(0))} cores ({platform.machine()})"


def say(text: str) -> None:
    print(text, flush=True)


def compare_stages(folder: Path) -> dict:
    """Encoding at every step against the cache, for both stages."""
    found = {}
    for stage in ("stage1", "stage2"):
        naive = alone(measure.encode_every_step, folder, stage)
        fast = alone(measure.cached, folder, stage)
        found[stage] = {
            "encode_every_step_clips_per_s": naive["clips_per_s"],
            "cached_clips_per_s": fast["clips_per_s"],
            "speedup": fast["clips_per_s"] / naive["clips_per_s"],
            "encode_every_step_peak_gb": naive["peak_gb"],
            "cached_peak_gb": fast["peak_gb"],
            "caching_clips_per_s": fast["caching_clips_per_s"],
            "estimated_cache_bytes_per_clip": fast["estimated_cache_bytes"] / BATCH,
            "cache_bytes_per_clip": fast["cache_bytes"] / BATCH,
        }
        row = found[stage]
        say(
            f"| {stage} | {row['encode_every_step_clips_per_s']:.3f} | "
            f"{row['cached_clips_per_s']:.1f} | {row['speedup']:.0f} | "
            f"{naive['peak_gb']:.1f} | {fast['peak_gb']:.1f} |"
        )
    return found


def main() -> None:
    result = {"device": device_name()}
    peak = alone(measure.matmul_peak)["gflops"]
    result["matmul_peak_gflops"] = peak
    say(f"{result['device']}, matrix products at {peak:.0f} GFLOP/s in float32")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        full_size.save_encoders(folder)
        full_size.save_language_model(folder / "qwen", torch.float32, **full_size.QWEN_SMALL)
        full_size.save_dataset(folder / "data", {"train": BATCH})
        say("\n| clips/s, batch 4 | encode every step | cached | ratio | GB | GB cached |")
        say("|---|---|---|---|---|---|")
        result |= compare_stages(folder)
        say("\n| encoding, clips/s | one at a time | batched | ratio |\n|---|---|---|---|")
        result["encoding"] = {}
        for name, where, count in (("full size", folder, BATCH), ("mini", None, 64)):
            one, many = (alone(measure.encoding, where, n, count) for n in (1, count))
            result["encoding"][name] = {
                "one_at_a_time_clips_per_s": one["clips_per_s"],
                "batched_clips_per_s": many["clips_per_s"],
                "batch": count,
                "one_at_a_time_peak_gb": one["peak_gb"],
                "batched_peak_gb": many["peak_gb"],
            }
            ratio = many["clips_per_s"] / one["clips_per_s"]
            say(f"| {name} | {one['clips_per_s']:.2f} | {many['clips_per_s']:.2f} | {ratio:.2f} |")

    per_clip = result["stage1"]["cache_bytes_per_clip"]
    estimate = result["stage1"]["estimated_cache_bytes_per_clip"]
    result["valor_32k_cache_gb"] = {
        "estimated": VALOR_32K * estimate / 1e9,
        "from_files": VALOR_32K * per_clip / 1e9,
    }
    say(f"\ncache of VALOR-32K: {result['valor_32k_cache_gb']}")

    say("\n| head, batch 8 | every position | answers | ratio of time |\n|---|---|---|---|")
    heads = {}
    for tokens in (75, 150, 300):
        full, few = (alone(measure.head, tokens, every) for every in (True, False))
        heads[tokens] = {"full_gb": full["gb"], "answer_only_gb": few["gb"]}
        ratio = full["seconds"] / few["seconds"]
        say(f"| {tokens} tokens | {full['gb']:.2f} GB | {few['gb']:.2f} GB | {ratio:.0f} |")
    result["answer_only_logits"] = {**heads[300], "by_tokens": heads}

    say("\n| stage 2 step | GFLOP | GFLOP/s | of the peak | where its time goes |")
    say("|---|---|---|---|---|")
    for size, batch, tokens in (("mini", 64, 8), ("mid", 8, 128)):
        step = alone(measure.stage_2_step, size, batch, tokens, True)
        step["peak_fraction"] = step["gflops"] / peak
        result["stage2"][size] = step
        shares = ", ".join(f"{k} {100 * v:.0f} %" for k, v in step["time_share"].items())
        say(
            f"| {size}, batch {batch} | {step['gflop']:.1f} | {step['gflops']:.1f} | "
            f"{100 * step['peak_fraction']:.0f} % | {shares} |"
        )
    result["stage2"]["peak_fraction"] = result["stage2"]["mid"]["peak_fraction"]

    result["cost"] = {
        "clips": {n: alone(measure.encoding, None, 32, n)["seconds"] for n in (32, 64, 128, 256)},
        "tokens": {
            2 * n: alone(measure.stage_2_step, "mid", 8, n)["seconds"] for n in (16, 64, 128, 256)
        },
        "batch": {n: alone(measure.stage_2_step, "mid", n, 128)["seconds"] for n in (2, 4, 8, 16)},
    }
    for what, row in result["cost"].items():
        say(f"seconds against {what}: " + ", ".join(f"{k}: {v:.2f}" for k, v in row.items()))
    (ROOT / "benchmarks" / "efficiency.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, ROOT / "imgs" / "efficiency.png")


def draw(result: dict, path: Path) -> None:
    """Clips a second, memory of the head, and how costs grow."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    stages = [result["stage1"], result["stage2"]]
    for shift, key, label in (
        (-0.2, "encode_every_step_clips_per_s", "encoded at every step"),
        (0.2, "cached_clips_per_s", "cached"),
    ):
        bars = axes[0].bar([i + shift for i in (0, 1)], [s[key] for s in stages], 0.4, label=label)
        axes[0].bar_label(bars, fmt="%.3g", fontsize=8)
    axes[0].set_yscale("log")
    axes[0].set_ylim(top=10 * max(s["cached_clips_per_s"] for s in stages))
    axes[0].set_xticks([0, 1], ["stage 1", "stage 2"])
    axes[0].set(title="training, full-size encoders", ylabel="clips a second")
    axes[0].legend(fontsize=8, loc="upper right")

    heads = result["answer_only_logits"]["by_tokens"]
    tokens = [int(n) for n in heads]
    for key, label in (("full_gb", "every position"), ("answer_only_gb", "answers alone")):
        axes[1].plot(tokens, [row[key] for row in heads.values()], "o-", label=label)
    axes[1].set(title="logits, vocabulary 151,936, batch 8", xlabel="tokens of a sequence")
    axes[1].set(ylabel="peak memory (GB)", ylim=(0, None))
    axes[1].legend(fontsize=8)

    for axis, what, title in (
        (axes[2], "clips", "encoding, mini encoders"),
        (axes[3], "tokens", "stage 2 step, 42 M parameters"),
    ):
        row = {int(k): v for k, v in result["cost"][what].items()}
        axis.plot(list(row), list(row.values()), "o-", label="against media tokens")
        axis.set(title=title, xlabel=what, ylabel="seconds", ylim=(0, None))
    batches = {int(k): v for k, v in result["cost"]["batch"].items()}
    twin = axes[3].twiny()
    twin.plot(list(batches), list(batches.values()), "s--", color="C1", label="against batch")
    twin.set_xlabel("batch", color="C1")
    axes[3].set_xlabel("media tokens of a clip (batch 8)", color="C0")
    figure.suptitle(result["device"], fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
