"""The measurements of benchmarks/efficiency.py, each a function run in a process of its own."""

import math
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2ForCausalLM

import task_align
import task_avqa
from benchmarks import full_size, shapes
from modules.system import Alignment, Answering, Batch, System
from utils.data import clips
from utils.data.clips import Collate, training_loader
from utils.data.datasets import read_music_avqa, read_valor
from utils.data.encoding import load_clips
from utils.data.features import clip_bytes
from utils.data.models import Processors, build_system
from utils.machine import cores, end_with_parent, take_cores
from utils.training.log import peak_rss_mb
from utils.training.processes import start

BATCH = 4  # clips of the comparison with encoding at every step
PACKED = (1, 4, 9)  # questions of a clip in one sequence
STATUS = Path("/proc/self/status")  # Linux
READ = {"stage1": read_valor, "stage2": read_music_avqa}  # each stage's annotations


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(
    run: Callable, least: float = 2.0, times: int = 3, clock: Callable = time.perf_counter
) -> float:
    """The median time of `run` after a first one, over `least` seconds and `times` runs or more."""
    run()
    taken: list[float] = []
    while len(taken) < times or sum(taken) < least:
        taken.append(once(run, clock))
    return statistics.median(taken)


def once(run: Callable, clock: Callable = time.perf_counter) -> float:
    """The time of `run`."""
    wait()
    began = clock()
    run()
    wait()
    return clock() - began


def peak_gb() -> float:
    """The most memory since `reset_peak`, or since the start: of the accelerator if there is one,
    else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    if not STATUS.exists():
        return peak_rss_mb() * 1024**2 / 1e9
    return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def reset_peak() -> None:
    """Forget the peak so far: from here it is what is held now. (Resident memory: Linux alone.)"""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")


def alone(function: Callable, *args) -> dict:
    """The function's figures and its peak memory, measured in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        return pool.submit(_measured, function, args).result()


def _measured(function: Callable, args: tuple) -> dict:
    warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
    torch.set_num_threads(len(cores()))
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, as in the scripts
    torch.manual_seed(0)
    return {**function(*args), "peak_gb": peak_gb()}


def commit() -> str:
    """The commit that is measured; what was changed since is told by a plus sign."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head, changed = (
            subprocess.run([*git, *what], capture_output=True, text=True, check=True).stdout.strip()
            for what in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy of the files alone
        return "unknown"
    return head + ("+" if changed else "")


def matmul_peak(
    dtype: torch.dtype = torch.float32, sizes: Sequence[int] = (1024, 2048, 4096)
) -> dict:
    """The best rate of a square matrix product, FLOP/s: what the machine can do."""
    rates = []
    for n in sizes:
        a, b = (torch.randn(n, n, device=device(), dtype=dtype) for _ in range(2))
        rates.append(2 * n**3 / seconds(lambda a=a, b=b: a @ b))
    return {"gflops": max(rates) / 1e9}


# Encoding at every step against the cache.


def config_of(folder: Path, stage: str):
    """A stage's paper preset on the full-size models and the data set in `folder`."""
    preset = (task_align if stage == "stage1" else task_avqa).PRESETS["paper"]
    return replace(
        preset,
        data=str(folder / "data"),
        visual_encoder=str(folder / "vivit"),
        audio_encoder=str(folder / "ast"),
        foundation_model=str(folder / "qwen"),
        dtype=dtype(),
        batch=BATCH,
    )


def ready(folder: Path, stage: str) -> tuple[nn.Module, Processors, torch.optim.Optimizer]:
    """A stage's model, the processors of its media and text, and the optimizer."""
    config = config_of(folder, stage)
    if stage == "stage2":
        model, processors = task_avqa.build_model(config)
    else:
        system, processors = build_system(config)
        model = Alignment(system, config)
    return model.to(device()), processors, AdamW(model.system.trainable(), lr=1e-4)


def loss_of(model: nn.Module, batch: Batch, noise: torch.Generator | None) -> Tensor:
    """What a step goes back from."""
    out = model(batch, noise)
    return out[0]["loss"] if isinstance(out, tuple) else out


def full_logits(model: Answering, batch: Batch, noise: torch.Generator | None) -> Tensor:
    """Stage 2's loss with logits at every position of the sequence, one question a clip, for
    comparison alone."""
    received = model.receive(batch, noise, model.system.snr_db(len(batch.ids), noise))
    foundation = model.system.foundation
    said = foundation.embed(batch.answer_ids)
    tokens = torch.cat([received.media, received.question, said], dim=1).to(said.dtype)
    mask = torch.cat([received.media_mask, received.question_mask], dim=1)
    real = torch.cat([mask, batch.answer_mask], dim=1)
    said_ids = batch.answer_ids.masked_fill(~batch.answer_mask, -100)
    labels = pad(said_ids, (mask.shape[1], 0), value=-100)
    order = real.long().argsort(dim=1, descending=True, stable=True)  # padding goes to the end
    out = foundation.language_model(
        inputs_embeds=tokens.gather(1, order[..., None].expand_as(tokens)),
        attention_mask=real.gather(1, order).long(),
        labels=labels.gather(1, order),
        use_cache=False,
    )
    return out.loss


def take(model: nn.Module, optimizer: AdamW, batch: Batch, loss: Callable = loss_of) -> None:
    """One optimizer step."""
    noise = torch.Generator(device()).manual_seed(0)
    loss(model, batch, noise).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def encode_every_step(folder: Path, stage: str) -> dict:
    """Each clip read and encoded by itself at every step, logits at every position."""
    model, processors, optimizer = ready(folder, stage)
    loss = full_logits if stage == "stage2" else loss_of
    root, rows = folder / "data", READ[stage](folder / "data", "train")[0]
    collate = Collate(processors.tokenizer)

    def step() -> None:
        items = []
        for row in rows:
            tokens = []
            for kind, tx in model.system.transmitters.items():
                reader = processors.readers[kind]
                inputs, windows = reader(reader.path(root, row.video_id))
                tokens.append(tx.encode(inputs.to(device()), windows and [windows]).tokens[0])
            items.append((*tokens, row))
        take(model, optimizer, collate(items).to(device()), loss)

    return {"clips_per_s": BATCH / seconds(step, times=2)}


def cached(folder: Path, stage: str) -> dict:
    """Tokens read from files of a warm disk cache, through the scripts' loader and losses."""
    clips.IN_MEMORY = 0  # as for a data set that does not fit
    model, processors, optimizer = ready(folder, stage)
    system, config = model.system, config_of(folder, stage)
    config = replace(config, cache=str(folder / "cache"), encode_batch=BATCH, steps=10, workers=0)
    estimate = sum(clip_bytes(tx) for tx in system.transmitters.values())
    loaded = load_clips(config, READ[stage], system, processors.readers, start(config))
    data, names = loaded["train"], {row.video_id for part in loaded.values() for row in part.rows}
    files = [file for kind in data.folders.values() for file in kind.iterdir()]
    collate = Collate(processors.tokenizer)

    def epoch() -> None:
        for batch in training_loader(data, collate, config):
            take(model, optimizer, batch.to(device()))

    return {
        "clips_per_s": 10 * BATCH / seconds(epoch),
        "estimated_cache_bytes_per_clip": estimate,
        "cache_bytes_per_clip": sum(f.stat().st_blocks * 512 for f in files) / len(names),
    }


def encoding(folder: Path | None, batch: int, count: int) -> dict:
    """Time of `count` clips through both encoders (of the mini preset without a folder) in batches
    of `batch`, their inputs in memory."""
    config = task_align.PRESETS["mini"] if folder is None else config_of(folder, "stage1")
    system, processors = build_system(config)
    system.to(device())
    visual, audio = (processors.readers[kind].config for kind in ("visual", "audio"))
    frames = torch.randn(count, visual.num_frames, 3, visual.image_size, visual.image_size)
    sound = torch.randn(count, audio.max_length, audio.num_mel_bins)

    @torch.inference_mode()
    def run() -> None:
        for i in range(0, count, batch):
            system.img_tx.encode(frames[i : i + batch].to(device()))
            system.audio_tx.encode(sound[i : i + batch].to(device()))

    taken = seconds(run, times=2)
    return {"seconds": taken, "clips_per_s": count / taken}


# The head.


def head(tokens: int, every: bool, batch: int = 8, answer: int = 4, hidden: int = 256) -> dict:
    """Forward and backward of the vocabulary head alone: at every position or at the answers'."""
    weight = torch.randn(full_size.VOCABULARY, hidden, device=device()).div_(hidden**0.5)
    states = torch.randn(batch, tokens, hidden, device=device(), requires_grad=True)
    target = torch.randint(full_size.VOCABULARY, (batch, answer), device=device())
    reset_peak()
    before = peak_gb()

    def run() -> None:
        read = states if every else states[:, -answer:]
        labels = pad(target, (read.shape[1] - answer, 0), value=-100)
        logits = read.flatten(0, 1) @ weight.T
        cross_entropy(logits.float(), labels.flatten()).backward()

    return {"seconds": seconds(run, least=0.0, times=2), "gb": peak_gb() - before}


# The stage 2 step against the machine's peak.


def random_batch(
    system: System, batch: int, question: int = 20, answer: int = 3, packed: int = 1
) -> Batch:
    """A batch of stage 2 with random tokens and full lengths, `packed` questions a clip."""
    vocabulary, clips = system.foundation.decoder.config.vocab_size, batch // packed
    full = {"device": device(), "dtype": torch.bool}
    made = {
        kind: torch.randn(clips, tx.special + tx.length, tx.projection.in_features, device=device())
        for kind, tx in system.transmitters.items()
    }
    return Batch(
        **made,
        clip=torch.arange(clips, device=device()).repeat_interleave(packed),
        ids=torch.randint(vocabulary, (batch, question), device=device()),
        mask=torch.ones(batch, question, **full),
        text=torch.arange(batch, device=device()),
        answer_ids=torch.randint(vocabulary, (batch, answer), device=device()),
        answer_mask=torch.ones(batch, answer, **full),
        text_tokens=packed * (question + answer),
        rows=[],
    )


SIZES = {
    "full": full_size.QWEN_1_5B,
    "mid": full_size.QWEN_SMALL,  # 42 M parameters
    "small": {**full_size.QWEN_SMALL, "num_hidden_layers": 1, "vocabulary": 4096},
    # One layer of Qwen2.5-1.5B; logits of answers alone make the vocabulary matter little.
    "layer": {**full_size.QWEN_1_5B, "num_hidden_layers": 1, "vocabulary": 4096},
}


def stage_2(size: str, tokens: int) -> tuple[Answering, AdamW]:
    """Stage 2 without encoders: `mini` as shipped, or a language model in `SIZES`."""
    preset = "mini" if size == "mini" else "paper"
    config = replace(task_avqa.PRESETS[preset], visual_tokens=tokens, audio_tokens=tokens)
    if size == "mini":
        model, _ = task_avqa.build_model(config)
        model.system.release_encoders()
    else:
        model = Answering(without_encoders(config, size), config, end_id=0)
        lora = (config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
        model.system.foundation.add_lora(*lora)
    return model.to(device()), AdamW(model.system.trainable(), lr=1e-4)


def stage_1(size: str, tokens: int) -> tuple[Alignment, AdamW]:
    """Stage 1 of the paper preset without encoders, over a language model in `SIZES`."""
    config = replace(task_align.PRESETS["paper"], visual_tokens=tokens, audio_tokens=tokens)
    model = Alignment(without_encoders(config, size), config).to(device())
    return model, AdamW(model.system.trainable(), lr=1e-4)


def without_encoders(config: Any, size: str) -> System:
    """A system as wide as the paper's encoders are, which are gone, with random weights."""
    with torch.device("meta"):
        encoders = shapes.encoders_of(shapes.PAPER)
    with device():
        language = full_size.qwen(**SIZES[size])
        language_model = Qwen2ForCausalLM._from_config(language, dtype=getattr(torch, dtype()))
    system = System(config, encoders, language_model)
    system.release_encoders()
    return system


def attention_flops(shape, keys: tuple, causal: bool, products: int) -> int:
    """FLOPs of so many products of the size of queries times keys; causal attention needs half."""
    count = 2 * products * math.prod(shape) * keys[-2]
    return count // 2 if causal else count


def attention(query, key, value, dropout=0.0, causal=False, *rest, out_shape=None, **kwargs) -> int:
    return attention_flops(query, key, causal, 2)


def attention_backward(grad, query, key, value, *rest, out_shape=None, **kwargs) -> int:
    # Gradients of scores, queries, keys and values; that the kernel computes the scores again is
    # its own affair. Attention is causal in all that is measured here.
    return attention_flops(query, key, True, 4)


KERNELS = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{way}"): formula
    for kernel in KERNELS
    for way, formula in (("", attention), ("_backward", attention_backward))
}


def step_flops(model: Answering, batch: Batch) -> int:
    """FLOPs of the matrix products that one step needs, as they are executed: two for each product
    going forward, as many for the gradient of its input where something before it is trained, and
    for the gradient of its weight where that is trained."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        loss_of(model, batch, None).backward()
    return counter.get_total_flops()


GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention kernel": ("scaled_dot_product",),
    "random numbers (dropout, noise)": ("aten::bernoulli_", "aten::normal_"),
    "optimizer": ("Optimizer",),
    "element-wise, copies, dispatch": ("",),  # all the rest
}


def time_share(run: Callable) -> dict[str, float]:
    """Where the time of three runs goes, as shares of it."""
    activities, kind = [ProfilerActivity.CPU], "cpu"
    if torch.cuda.is_available():
        activities, kind = [*activities, ProfilerActivity.CUDA], "device"
    with profile(activities=activities) as seen:
        for _ in range(3):
            run()
    shares: Counter = Counter()
    for event in seen.key_averages():
        group = next(g for g, parts in GROUPS.items() if any(p in event.key for p in parts))
        shares[group] += getattr(event, f"self_{kind}_time_total")
    return {group: time / shares.total() for group, time in sorted(shares.items())}


def stage_2_step(size: str, batch: int, tokens: int, split: bool = False) -> dict:
    """Time, FLOPs and rate of a stage 2 step on random tokens; with `split`, where time goes."""
    model, optimizer = stage_2(size, tokens)
    made = random_batch(model.system, batch)
    step = partial(take, model, optimizer, made)
    taken = seconds(step, least=4.0)
    flops = step_flops(model, made)
    found = {"seconds": taken, "gflop": flops / 1e9, "gflops": flops / taken / 1e9}
    return {**found, "time_share": time_share(step)} if split else found


# Questions of a clip that share its media.


def packed(size: str, tokens: int, batch: int, question: int, answer: int) -> dict:
    """Questions a second of training steps and of answering, by how many questions of a clip share
    its media: medians of three turns, in which all take part.

    Args:
        tokens: patch tokens of either medium.
        batch: questions, about.
        question, answer: their tokens.
    """
    if threads := task_avqa.PRESETS["mini" if size == "mini" else "paper"].threads:
        torch.set_num_threads(threads)
    model, optimizer = stage_2(size, tokens)
    model.answer_tokens = answer
    runs = {}
    for n in PACKED:
        made = random_batch(model.system, max(1, batch // n) * n, question, answer, n)
        runs["training", n] = partial(take, model, optimizer, made), len(made.ids)
        runs["answering", n] = partial(write, model, made), len(made.ids)
    taken: dict[tuple, list[float]] = {which: [] for which in runs}
    for _ in range(4):
        for which, (run, questions) in runs.items():
            taken[which].append(once(run) / questions)
    found: dict[str, dict] = {"training": {}, "answering": {}}
    for (what, n), times in taken.items():
        found[what][str(n)] = 1 / statistics.median(times[1:])  # the first turn warms up
    return found


@torch.inference_mode()
def write(model: Answering, batch: Batch) -> None:
    """Answers to the questions of a batch."""
    model.eval()
    model(
        batch, torch.Generator(device()), model.system.snr_db(len(batch.visual), None), do="write"
    )
    model.train()


# Steps beside other work.


def beside_busy_loops(stage: str) -> dict:
    """Steps a second of the mini preset on two cores, alone and beside four busy loops."""
    take_cores(cores()[:2])
    config = (task_align if stage == "stage1" else task_avqa).PRESETS["mini"]
    torch.set_num_threads(config.threads)
    if stage == "stage1":
        model = Alignment(build_system(config)[0], config)
        optimizer = AdamW(model.system.trainable(), lr=1e-4)
    else:
        model, optimizer = stage_2("mini", tokens=8)
    step = partial(take, model, optimizer, random_batch(model.system, 64))
    found = {"alone_steps_per_s": steps_per_s(step, least=5)}
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        found["contended_steps_per_s"] = steps_per_s(step, least=30)
    finally:
        for loop in loops:
            loop.kill()
    return found


def steps_per_s(step: Callable, least: float) -> float:
    """The mean over so many seconds: the slowest steps count as much as they last."""
    step()
    began, count = time.perf_counter(), 0
    while time.perf_counter() < began + least:
        step()
        count += 1
    return count / (time.perf_counter() - began)
