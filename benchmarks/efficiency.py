"""What clips, steps and logits cost: `python benchmarks/efficiency.py`, about 25 minutes, 2 cores.

`--only contended` measures only steps beside other work, `--only packed` only what questions that
share a clip's media save; the other results in the file are kept.

Everything is measured in one run, each measurement in a process of its own so that its peak memory
is its own, on models of the published sizes with random weights (benchmarks/full_size.py). The
language model of the comparisons has 42 M parameters and the real vocabulary. Prints tables, writes
benchmarks/efficiency.json and imgs/efficiency.png.
"""

import argparse
import json
import platform
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

import task_avqa  # noqa: E402
from benchmarks import full_size, measure  # noqa: E402
from benchmarks.measure import BATCH, alone  # noqa: E402
from utils.files import write_whole  # noqa: E402
from utils.machine import cores  # noqa: E402
from utils.report.plots import draw_all  # noqa: E402

WRITTEN = ROOT / "benchmarks" / "efficiency.json"
VALOR_32K = 32_318  # clips of the published annotations


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {len(cores())} cores ({platform.machine()})"


def say(text: str) -> None:
    print(text, flush=True)


def compare_stages(folder: Path) -> dict:
    """Encoding at every step against the cache, for both stages."""
    found = {}
    for stage in ("stage1", "stage2"):
        say(f"{stage}: encoding at every step, then from the cache")
        naive = alone(measure.encode_every_step, folder, stage)
        fast = alone(measure.cached, folder, stage)
        found[stage] = {
            "encode_every_step_clips_per_s": naive["clips_per_s"],
            "cached_clips_per_s": fast["clips_per_s"],
            "speedup": fast["clips_per_s"] / naive["clips_per_s"],
            "encode_every_step_peak_gb": naive["peak_gb"],
            "cached_peak_gb": fast["peak_gb"],
            "estimated_cache_bytes_per_clip": fast["estimated_cache_bytes_per_clip"],
            "cache_bytes_per_clip": fast["cache_bytes_per_clip"],
        }
    return found


def compare_batches(folder: Path) -> dict:
    """One clip at a time against batches, through both encoders."""
    found = {}
    for name, where, count in (("full size", folder, BATCH), ("mini", None, 64)):
        say(f"encoding, {name}: one clip at a time, then {count}")
        one, many = (alone(measure.encoding, where, n, count) for n in (1, count))
        found[name] = {
            "batch": count,
            "one_at_a_time_clips_per_s": one["clips_per_s"],
            "batched_clips_per_s": many["clips_per_s"],
            "one_at_a_time_peak_gb": one["peak_gb"],
            "batched_peak_gb": many["peak_gb"],
        }
    return found


def compare_heads() -> dict:
    """Logits at every position against the answers' alone, at several lengths of a sequence."""
    found = {}
    for tokens in (75, 150, 300):
        say(f"vocabulary head, {tokens} tokens")
        full, few = (alone(measure.head, tokens, every) for every in (True, False))
        found[str(tokens)] = {
            "full_gb": full["gb"],
            "answer_only_gb": few["gb"],
            "time_ratio": full["seconds"] / few["seconds"],
        }
    return found


def rates(peak: float) -> dict:
    """The stage 2 step beside the machine's matrix products, and where its time goes."""
    found = {}
    for size, batch, tokens in (("mini", 64, 8), ("mid", 8, 128)):
        say(f"stage 2 step, {size}")
        step = alone(measure.stage_2_step, size, batch, tokens, True)
        found[size] = {"batch": batch, **step, "peak_fraction": step["gflops"] / peak}
    return {**found, "peak_fraction": found["mid"]["peak_fraction"]}


def costs() -> dict:
    """Seconds against the number of clips encoded, of media tokens and of questions in a step."""
    say("costs against clips, tokens and batch")
    step = measure.stage_2_step
    return {
        "clips": {
            str(n): alone(measure.encoding, None, 32, n)["seconds"] for n in (32, 64, 128, 256)
        },
        "tokens": {str(2 * n): alone(step, "mid", 8, n)["seconds"] for n in (16, 64, 128, 256)},
        "batch": {str(n): alone(step, "mid", n, 128)["seconds"] for n in (2, 4, 8, 16)},
    }


def contended() -> dict:
    """Steps a second of the mini preset on two cores, alone and beside four busy loops."""
    found = {}
    for stage in ("stage1", "stage2"):
        say(f"{stage}: alone, then beside four busy loops")
        found[stage] = alone(measure.beside_busy_loops, stage)
    return {**found["stage2"], "stage1": found["stage1"], "commit": measure.commit()}


def packed() -> dict:
    """Questions that share their clip's media against one at a time, in the mini preset and through
    one layer of Qwen2.5-1.5B at the paper's lengths."""
    found = {}
    mini = task_avqa.PRESETS["mini"]
    for name, size, tokens, batch, question, answer in (
        ("mini", "mini", mini.visual_tokens, mini.batch, 14, 2),  # about the mean of its questions
        ("paper, one layer", "layer", 128, 4, 20, 3),
    ):
        say(f"questions of a clip in one sequence, {name}")
        found[name] = alone(measure.packed, size, tokens, batch, question, answer)
    return {**found, "commit": measure.commit()}


def tables(result: dict) -> str:
    """The figures in Markdown, as the README shows them."""
    rows = [
        f"Measured on: {result['device']}, {result['matmul_peak_gflops']:.0f} GFLOP/s in float32 "
        "matrix products.",
        "",
        "| training, batch 4, clips a second | every step | cached | ratio | peak GB: every step "
        "| cached |",
        "|---|---|---|---|---|---|",
    ]
    row = (
        "| stage {} | {encode_every_step_clips_per_s:.3f} | {cached_clips_per_s:.1f} | "
        "{speedup:.0f} | {encode_every_step_peak_gb:.1f} | {cached_peak_gb:.1f} |"
    )
    rows += [row.format(n, **result[f"stage{n}"]) for n in (1, 2)]
    rows += ["", "| encoding, clips a second | one at a time | batched | ratio | peak GB: one "
             "| batched |", "|---|---|---|---|---|---|"]  # fmt: skip
    row = (
        "| {}, {batch} a batch | {one_at_a_time_clips_per_s:.2f} | {batched_clips_per_s:.2f} | "
        "{ratio:.2f} | {one_at_a_time_peak_gb:.1f} | {batched_peak_gb:.1f} |"
    )
    for name, r in result["encoding"].items():
        ratio = r["batched_clips_per_s"] / r["one_at_a_time_clips_per_s"]
        rows.append(row.format(name, ratio=ratio, **r))
    rows += ["", "| vocabulary head, batch 8 | GB: every position | answers | ratio of time |",
             "|---|---|---|---|"]  # fmt: skip
    row = "| {} tokens | {full_gb:.2f} | {answer_only_gb:.2f} | {time_ratio:.0f} |"
    rows += [row.format(n, **r) for n, r in result["answer_only_logits"]["by_tokens"].items()]
    rows += ["", "| stage 2 step | GFLOP | GFLOP/s | of the peak | where its time goes |",
             "|---|---|---|---|---|"]  # fmt: skip
    row = "| {}, batch {batch} | {gflop:.1f} | {gflops:.1f} | {percent:.0f} % | {where} |"
    for size in ("mini", "mid"):
        r = result["stage2"][size]
        shares = sorted(r["time_share"].items(), key=lambda share: -share[1])
        where = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
        rows.append(row.format(size, percent=100 * r["peak_fraction"], where=where, **r))
    gb = "The cache of VALOR-32K: {estimated:.2f} GB as announced, {from_files:.2f} GB by the size "
    rows += ["", gb.format(**result["valor_32k_cache_gb"]) + "of files on disk."]
    rows += ["", "| mini preset on two cores, steps a second | alone | beside four busy loops | of "
             "alone |", "|---|---|---|---|"]  # fmt: skip
    beside = result["contended"]
    for name, r in (("stage 1", beside["stage1"]), ("stage 2", beside)):
        one, other = r["alone_steps_per_s"], r["contended_steps_per_s"]
        rows.append(f"| {name} | {one:.1f} | {other:.1f} | {other / one:.2f} |")
    rows += ["", "| questions a second | one at a time | 4 share a clip | 9 share a clip |",
             "|---|---|---|---|"]  # fmt: skip
    for name in ("mini", "paper, one layer"):
        for what in ("training", "answering"):
            one, four, nine = (result["packed"][name][what][n] for n in ("1", "4", "9"))
            rows.append(
                f"| {name}, {what} | {one:.3g} | {four:.3g} ({four / one:.2f} times) "
                f"| {nine:.3g} ({nine / one:.2f} times) |"
            )
    return "\n".join(rows)


PARTS = {"contended": contended, "packed": packed}  # that are also measured by themselves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*PARTS])
    if only := parser.parse_args().only:
        result = json.loads(WRITTEN.read_text()) | {only: PARTS[only]()}
    else:
        result = measure_all()
        draw_all({str(ROOT / "imgs" / "efficiency.png"): partial(draw, result)})
    write_whole(WRITTEN, json.dumps(result, indent=2) + "\n")
    print(tables(result))


def measure_all() -> dict:
    peak = alone(measure.matmul_peak)["gflops"]
    result = {"device": device_name(), "matmul_peak_gflops": peak}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        full_size.save_encoders(folder)
        full_size.save_language_model(folder / "qwen", torch.float32, **full_size.QWEN_SMALL)
        full_size.save_dataset(folder / "data", {"train": BATCH, "val": 1, "test": 1})
        result |= compare_stages(folder)
        result["encoding"] = compare_batches(folder)
    sizes = ("estimated_cache_bytes_per_clip", "cache_bytes_per_clip")
    announced, written = (VALOR_32K * result["stage1"][key] / 1e9 for key in sizes)
    result["valor_32k_cache_gb"] = {"estimated": announced, "from_files": written}
    heads = compare_heads()
    result["answer_only_logits"] = {**heads["300"], "by_tokens": heads}
    result["stage2"] |= rates(peak)
    result["cost"] = costs()
    result |= {name: part() for name, part in PARTS.items()}
    return result | {"commit": measure.commit()}


def draw(result: dict, path: str) -> None:
    """Clips a second, memory of the head, and how costs grow."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    stages = [result["stage1"], result["stage2"]]
    for shift, key, label in (
        (-0.2, "encode_every_step_clips_per_s", "encoded at every step"),
        (0.2, "cached_clips_per_s", "cached"),
    ):
        bars = axes[0].bar([shift, 1 + shift], [s[key] for s in stages], 0.4, label=label)
        axes[0].bar_label(bars, fmt="%.3g", fontsize=8)
    axes[0].set(title="training, full-size encoders", ylabel="clips a second", yscale="log")
    axes[0].set_ylim(top=10 * max(s["cached_clips_per_s"] for s in stages))
    axes[0].set_xticks([0, 1], ["stage 1", "stage 2"])
    axes[0].legend(fontsize=8, loc="upper right")

    heads = result["answer_only_logits"]["by_tokens"]
    tokens = [int(n) for n in heads]
    for key, label in (("full_gb", "every position"), ("answer_only_gb", "answers alone")):
        axes[1].plot(tokens, [row[key] for row in heads.values()], "o-", label=label)
    axes[1].set(title="logits, vocabulary 151,936, batch 8", ylim=(0, None))
    axes[1].set(xlabel="tokens of a sequence", ylabel="peak memory (GB)")
    axes[1].legend(fontsize=8)

    cost, twin = result["cost"], axes[3].twiny()
    for axis, what, style in (
        (axes[2], "clips", "C0o-"),
        (axes[3], "tokens", "C0o-"),
        (twin, "batch", "C1s--"),
    ):
        axis.plot([int(n) for n in cost[what]], list(cost[what].values()), style)
    axes[2].set(title="encoding, mini encoders", xlabel="clips", ylim=(0, None))
    axes[3].set(title="stage 2 step, 42 M parameters")
    axes[3].set_ylim(0, 1.1 * max(*cost["tokens"].values(), *cost["batch"].values()))
    axes[3].set_xlabel("media tokens of a clip (batch 8)", color="C0")
    twin.set_xlabel("batch", color="C1")
    for axis in axes[2:]:
        axis.set_ylabel("seconds")
    figure.suptitle(result["device"], fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
