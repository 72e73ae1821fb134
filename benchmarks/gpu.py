"""The parts of benchmarks/gpu.sh: models and clips, measurements, and what the scripts left.

    python -m benchmarks.gpu make FOLDER        full-size encoders, Qwen2 of 1.5 B, 24 clips
    python -m benchmarks.gpu measure FOLDER     what the parts cost, each in a process of its own
    python -m benchmarks.gpu collect FOLDER OUT all of it as one JSON, printed too

`--small` makes everything narrow, for a machine without a GPU. A measurement that fails (too little
memory, no compiler) is kept as its reason, and the others go on.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

import task_align
import task_avqa
from benchmarks import full_size, measure
from benchmarks.efficiency import device_name
from benchmarks.experiments.page import table
from benchmarks.measure import alone
from modules.system import Batch

SECONDS = 240  # after which no measurement begins on a GPU, which may be borrowed
NARROW = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
CAPTION, QUESTION, ANSWER = 40, 20, 3  # tokens of each text
RUNS = ("align", "avqa", "avqa-compiled")  # of the scripts, by the names that gpu.sh gives them


def make(folder: Path, small: bool) -> None:
    """Models and a data set in the published layouts, with random weights."""
    full_size.save_encoders(folder, **(NARROW if small else {}))
    size = measure.SIZES["small" if small else "full"]
    full_size.save_language_model(folder / "qwen", getattr(torch, measure.dtype()), **size)
    clips = {"train": 2, "val": 1, "test": 1} if small else {"train": 16, "val": 4, "test": 4}
    full_size.save_dataset(folder / "data", clips)


def step_of(stage: str, size: str, compiled: bool = False) -> dict:
    """A step of a stage in the paper preset, on random tokens in memory: time, memory, rate."""
    preset = (task_align if stage == "stage1" else task_avqa).PRESETS["paper"]
    batch = preset.batch if size == "full" else 4
    if stage == "stage1":
        model, optimizer = measure.stage_1(size, preset.visual_tokens)
        made = captioned(model.system, batch)
    else:
        model, optimizer = measure.stage_2(size, preset.visual_tokens)
        shared = min(preset.packed, batch)
        made = measure.random_batch(model.system, batch, QUESTION, ANSWER, shared)
    flops = measure.step_flops(model, made)
    if compiled:
        model.system.foundation.compile()
    step = partial(measure.take, model, optimizer, made)
    first = measure.once(step)  # which compiles
    measure.reset_peak()
    taken = measure.seconds(step, least=4.0 if size == "full" else 0.1)
    return {
        "batch": batch,
        "steps_per_s": 1 / taken,
        "gflop": flops / 1e9,
        "gflops": flops / taken / 1e9,
        "first_step_s": first,
    }


def captioned(system, batch: int) -> Batch:
    """A batch of stage 1: random clips with a caption each."""
    made = measure.random_batch(system, batch, CAPTION, 1)
    return replace(made, answer_ids=None, answer_mask=None, text_tokens=CAPTION)


def kept(function: Callable, *args) -> dict:
    """What `alone` measures, or why it could not."""
    try:
        return alone(function, *args)
    except Exception as error:  # out of memory, a compiler that is missing, a driver's own
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def measurements(folder: Path, small: bool) -> dict[str, tuple]:
    """What is measured, the most wanted first."""
    size = "small" if small else "full"
    batch, count = (2, 2) if small else (task_align.PRESETS["paper"].encode_batch, 64)
    squares = (128,) if small else (2048, 4096, 8192)
    return {
        "bf16_peak": (measure.matmul_peak, torch.bfloat16, squares),
        "stage1": (step_of, "stage1", size),
        "stage2": (step_of, "stage2", size),
        "encoding": (measure.encoding, folder, batch, count),
        "stage2_compiled": (step_of, "stage2", size, True),
        "stage1_compiled": (step_of, "stage1", size, True),
    }


def about() -> dict:
    """What the numbers were measured on, and with."""
    names = ("torch", "transformers", "peft", "accelerate")
    return {
        "device": device_name(),
        "dtype": measure.dtype(),
        "packages": {name: version(name) for name in names},
    }


def measure_all(folder: Path, small: bool) -> None:
    """Write FOLDER/measured.json, anew after each measurement."""
    began, found = time.monotonic(), about()
    for name, (function, *args) in measurements(folder, small).items():
        print(f"measuring {name}", flush=True)
        late = not small and time.monotonic() - began > SECONDS
        found[name] = {"error": "no time was left"} if late else kept(function, *args)
        peak = found["bf16_peak"].get("gflops")  # none where it could not be measured
        if peak and "gflops" in found[name] and name != "bf16_peak":
            found[name]["peak_fraction"] = found[name]["gflops"] / peak
        (folder / "measured.json").write_text(json.dumps(found))


def script_run(path: Path) -> dict:
    """What a script's run says of itself, if it ended well."""
    if not path.is_file():
        return {"error": "the script did not end well; see what it printed"}
    metrics = json.loads(path.read_text())
    return {key: metrics[key] for key in ("steps", "seconds", "loss", "peak_rss_mb")}


def collect(folder: Path, out: Path) -> None:
    """One JSON of the measurements and of the scripts' runs."""
    found = json.loads((folder / "measured.json").read_text())
    found["torchrun"] = {name: script_run(folder / "out" / f"{name}.json") for name in RUNS}
    content = json.dumps({**found, "commit": measure.commit()}, indent=2)
    out.write_text(content + "\n")
    print(content)


def tables(found: dict) -> str:
    """What docs/paper_preset.md shows of the results."""
    on = f"on one {found['device'].removeprefix('NVIDIA ')}"
    rows = []
    for stage, name, what in (("stage 1", "stage1", "clips"), ("stage 2", "stage2", "questions")):
        step = found[name]
        rates = (f"{step['steps_per_s']:.1f}", f"{step['peak_gb']:.1f}")
        share = f"{100 * step['peak_fraction']:.0f}"
        rows.append([stage, f"{step['batch']} {what}", *rates, share])
    head = [on, "batch", "steps/s", "peak memory, GB", "share of the GPU's matrix rate, %"]
    encoding = found["encoding"]
    row = ["both encoders", f"{encoding['clips_per_s']:.0f}", f"{encoding['peak_gb']:.1f}"]
    return table(head, rows) + "\n" + table([on, "clips/s", "peak memory, GB"], [row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["make", "measure", "collect"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--small", action="store_true")
    said = parser.parse_args()
    if said.part == "collect":
        collect(said.folder, said.out)
    else:
        {"make": make, "measure": measure_all}[said.part](said.folder, said.small)


if __name__ == "__main__":
    main()
