"""One step of each stage on the mini models, by as many processes as started it; not a test itself.

    torchrun --nproc_per_node 2 -m tests.helpers.step_of_each_stage OUT

Writes losses and gradients of the trained weights to OUT, for one batch of eight clips a step and
for two of four; and what is read of splits that no whole batches make.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import task_align
import task_avqa
from benchmarks.measure import loss_of
from modules.system import Batch
from tests.helpers.draw import seeded
from tests.helpers.stages import RandomClips, alignment, answering, questions
from utils.checkpoints import whole
from utils.data.clips import Collate, in_order, training_loader
from utils.training.processes import start

BATCH = 8
CAPTIONS = ["a drum", "two bells ring on the left", "a drum", "silence", "a long, low flute",
            "a bell", "a drum and a violin beside it", "nothing"]  # fmt: skip
ANSWERS = ["two", "yes", "violin", "no", "more than ten", "left", "no", "zero"]
ABOUT = [5, 5, 5, 0, 0, 2, 7, 7]  # the clip of each, where several questions share one


def make(stage: str) -> tuple[nn.Module, Callable[[int, int], Batch]]:
    """The model of a stage, and what gives so many rows from the first one on: random clips with
    captions, two of them equal, and answers of several lengths; in `packed`, stage 2 where several
    rows share a clip."""
    if stage == "align":
        model, processors = alignment(channel="none")
    else:
        model, processors = answering(channel="none", lora_dropout=0.0)
    about = ABOUT if stage == "packed" else None
    clips = RandomClips(model.system, questions(CAPTIONS, ANSWERS, about))
    for name, weight in model.named_parameters():
        # These start at zero, and would hide the gradient of what comes before them.
        if "lora_B" in name or "correction.2" in name:
            nn.init.normal_(weight, std=0.1, generator=seeded())
    model.system.release_encoders()
    return model, lambda first, count: clips.batch(processors, *range(first, first + count))


def found_by(loss: list[float], model: nn.Module) -> tuple[list[float], dict]:
    """Losses and gradients; what is spread is put together as for a checkpoint."""
    return loss, {k: whole(p.grad) for k, p in model.named_parameters() if p.requires_grad}


def gradients(accelerator, stage: str, accumulate: int) -> tuple[list[float], dict]:
    """Of one optimizer step over `accumulate` equal parts of the batch."""
    model, clips = make(stage)
    accelerator.gradient_accumulation_steps, accelerator.step = accumulate, 0  # anew from here
    wrapped = accelerator.prepare(model)
    share = BATCH // accumulate // accelerator.num_processes
    losses = []
    for part in range(accumulate):
        first = (part * accelerator.num_processes + accelerator.process_index) * share
        with accelerator.accumulate(wrapped):
            loss = loss_of(wrapped, clips(first, share), None)
            accelerator.backward(loss)
        losses.append(loss.item())
    return found_by(losses, model)


def sharded(accelerator) -> tuple[list[float], dict]:
    """Of stage 2 with every weight spread over the processes (FSDP2)."""
    model, clips = make("avqa")
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    for layer in model.system.foundation.decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    share = BATCH // accelerator.num_processes
    loss = loss_of(model, clips(accelerator.process_index * share, share), None)
    loss.backward()
    return found_by([loss.item()], model)


def held_out(accelerator) -> dict[int, float]:
    """Stage 2's validation loss over so many questions, four a batch."""
    model, processors = answering(channel="none")
    noise = SimpleNamespace(accelerator=accelerator, fresh_noise=lambda: None)
    collate, losses = Collate(processors.tokenizer), {}
    for rows in (1, 3, 5, 6, 8):
        asked = questions(CAPTIONS[:rows], ANSWERS[:rows], ABOUT[:rows])
        clips = RandomClips(model.system, asked)
        loader = in_order(clips, collate, 4, processes=accelerator.num_processes)
        losses[rows] = task_avqa.validation_loss(model, accelerator.prepare(loader), noise)
    return losses


def said(accelerator) -> list[str]:
    """Stage 2's answers to seven questions, four a batch."""
    model, processors = answering(channel="none")
    asked = questions(CAPTIONS[:7], ANSWERS[:7], ABOUT[:7])
    clips, tokenizer = RandomClips(model.system, asked), processors.tokenizer
    loader = in_order(clips, Collate(tokenizer), 4, processes=accelerator.num_processes)
    run = SimpleNamespace(accelerator=accelerator, fresh_noise=lambda: None, is_main=False)
    return task_avqa.answers(model, accelerator.prepare(loader), tokenizer, run, 12.0)


def few_clips(accelerator) -> list[list[str]]:
    """The clips of three training steps over five clips in batches of eight."""
    model, processors = alignment(batch=BATCH, steps=3)
    clips = RandomClips(model.system, questions(CAPTIONS[:5], ANSWERS[:5]))
    config, collate = task_align.Config(batch=BATCH, steps=3), Collate(processors.tokenizer)
    loader = training_loader(clips, collate, config, processes=accelerator.num_processes)
    batches = accelerator.prepare(loader)
    return [gather_object([row.video_id for row in batch.rows]) for batch in batches]


def main(out: str) -> None:
    accelerator = start(task_align.PRESETS["mini"])
    found = {"processes": accelerator.num_processes}
    for accumulate in (1, 2):
        for stage in ("align", "avqa", "packed"):
            found[f"{stage}-{accumulate}"] = gradients(accelerator, stage, accumulate)
    found |= {"held_out": held_out(accelerator), "few_clips": few_clips(accelerator)}
    found["said"] = said(accelerator)
    if accelerator.num_processes > 1:
        found["sharded"] = sharded(accelerator)
    if accelerator.is_main_process:
        torch.save(found, out)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
