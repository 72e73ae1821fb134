"""One process or several, on one machine or more: Hugging Face Accelerate, set up in one place."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)

from utils.config import check
from utils.files import check_writable
from utils.machine import cores


def start(config: Any) -> Accelerator:
    """The processes that `accelerate launch` started, or this one alone.

    Batch sizes are counted over all processes: each takes its share of every batch. On the CPU
    each computes on `config.threads` threads, or for 0 on its share of the cores.

    Raises:
        ValueError: for a hyperparameter that no run can use, a folder that cannot be written, or a
            batch size that the processes cannot share evenly.
    """
    check(config)
    accelerator = Accelerator(
        # The plugin, for ACCELERATE_GRADIENT_ACCUMULATION_STEPS would overrule a plain number.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulate),
        dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
        kwargs_handlers=[
            # Processes wait for one another while a large data set is encoded.
            InitProcessGroupKwargs(timeout=timedelta(hours=12)),
            # The only buffers are constants.
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
    )
    if accelerator.is_main_process:
        check_places(config)
    processes = accelerator.num_processes
    for field in ("batch", "test_batch"):
        if getattr(config, field, processes) % processes:
            raise ValueError(
                f"--{field} {getattr(config, field)}: must be a multiple of {processes} processes"
            )
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what is left in float32
    else:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        torch.set_num_threads(config.threads or max(1, len(cores()) // here))
    return accelerator


def check_places(config: Any) -> None:
    """ValueError where figures or cached tokens cannot be written; a cache that stands may be
    complete, so it may be read-only."""
    figures, cache = (getattr(config, name, "none") for name in ("figures", "cache"))
    if figures != "none":
        check_writable(Path(figures), "--figures")
    if cache != "none" and not Path(cache).exists():
        check_writable(Path(cache), "--cache")


def noise_source(seed: int, accelerator: Accelerator) -> torch.Generator:
    """A source of channel noise that repeats, another one in each process."""
    seed = seed * accelerator.num_processes + accelerator.process_index
    return torch.Generator(accelerator.device).manual_seed(seed)


def own_rows(rows: int, accelerator: Accelerator) -> int:
    """How many of the `rows` that this process reads of a held-out batch count: the last batch is
    filled up with rows that were read before, so that every process has as many."""
    state = accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder < 1:
        return rows
    return min(rows, max(0, state.remainder - accelerator.process_index * rows))


def share(items: list, accelerator: Accelerator) -> list:
    """This process's items; those of all processes together are `items`."""
    return items[accelerator.process_index :: accelerator.num_processes]


def merge(dictionary: dict) -> dict:
    """The entries of all processes' dictionaries, in every process."""
    return dict(gather_object(list(dictionary.items())))


def agree(value: Any) -> Any:
    """What the main process found, in every process: its disk alone holds the run's files."""
    return broadcast_object_list([value])[0]


def total(number: int) -> int:
    """The sum over all processes, in every process."""
    return sum(gather_object([number]))
