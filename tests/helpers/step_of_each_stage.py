"""One step of each stage on the mini models, by as many processes as started it; not a test itself.

    torchrun --nproc_per_node 2 -m tests.helpers.step_of_each_stage OUT

Writes losses and gradients of the trained weights to OUT, for one batch of eight clips a step and
for two of four.
"""

import sys
from dataclasses import replace

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import task_align
import task_avqa
from benchmarks import steps
from utils.checkpoints import whole
from utils.data.clips import Batch
from utils.system import System, build_system
from utils.training.processes import start

BATCH = 8
CAPTIONS = ["a drum", "two bells ring on the left", "a drum", "silence", "a long, low flute",
            "a bell", "a drum and a violin beside it", "nothing"]  # fmt: skip
ANSWERS = [" two", " yes", " violin", " no", " more than ten", " left", " no", " zero"]


def make_batch(tokenizer, generator: torch.Generator) -> Batch:
    """Random clips with captions, two of them equal, and answers of several lengths."""
    texts = tokenizer(CAPTIONS, padding=True, padding_side="right", return_tensors="pt")
    said = tokenizer(ANSWERS, padding=True, padding_side="right", return_tensors="pt")
    return Batch(
        visual=torch.randn(BATCH, 9, 96, generator=generator),
        audio=torch.randn(BATCH, 10, 96, generator=generator),
        ids=texts["input_ids"],
        mask=texts["attention_mask"].bool(),
        text=torch.tensor([CAPTIONS.index(caption) for caption in CAPTIONS]),
        answer_ids=said["input_ids"],
        answer_mask=said["attention_mask"].bool(),
        rows=[],
    )


def rows(batch: Batch, first: int, count: int) -> Batch:
    """Some rows of a batch, as a process's share."""
    return Batch(**{
        k: v[first : first + count] if isinstance(v, torch.Tensor) else v
        for k, v in vars(batch).items()
    })  # fmt: skip


def gradients(accelerator, system, step, batch, accumulate):
    """Losses and gradients of one optimizer step over `accumulate` equal parts of the batch."""
    model = accelerator.prepare(system)
    share = BATCH // accumulate // accelerator.num_processes
    losses = []
    for part in range(accumulate):
        first = (part * accelerator.num_processes + accelerator.process_index) * share
        with accelerator.accumulate(model):
            loss = model(step, rows(batch, first, share), None)
            accelerator.backward(loss)
        losses.append(loss.item())
    grads = {k: p.grad.clone() for k, p in system.named_parameters() if p.requires_grad}
    return losses, grads


def make(config, stage: str) -> tuple[System, Batch]:
    """The system of a stage, and a batch."""
    generator = torch.Generator().manual_seed(0)
    system = build_system(config)
    batch = make_batch(system.tokenizer, generator)
    if stage == "avqa":
        system.foundation.add_lora(4, 16, 0.0, task_avqa.PRESETS["mini"].lora_targets)
        for name, weight in system.named_parameters():
            if "lora_B" in name:  # it starts at zero and would hide lora_A's gradient
                torch.nn.init.normal_(weight, std=0.1, generator=generator)
    system.release_encoders()
    return system, batch


def sharded(accelerator, system: System, batch: Batch):
    """Loss and gradients of stage 2 with every weight spread over the processes (FSDP2)."""
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    for layer in system.foundation.decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(system, mesh=mesh)
    share = BATCH // accelerator.num_processes
    loss = system(steps.answer, rows(batch, accelerator.process_index * share, share), None)
    loss.backward()
    # What is spread is put together as for a checkpoint.
    return [loss.item()], {
        k: whole(p.grad) for k, p in system.named_parameters() if p.requires_grad
    }


def main(out: str) -> None:
    config = replace(task_align.PRESETS["mini"], channel="none")
    accelerator = start(config)
    found = {"processes": accelerator.num_processes}
    for accumulate in (1, 2):
        accelerator.gradient_accumulation_steps = accumulate
        for stage, step in (("align", steps.align), ("avqa", steps.answer)):
            system, batch = make(config, stage)
            key = f"{stage}-{accumulate}"
            found[key] = gradients(accelerator, system, step, batch, accumulate)
    if accelerator.num_processes > 1:
        found["sharded"] = sharded(accelerator, *make(config, "avqa"))
    if accelerator.is_main_process:
        torch.save(found, out)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
