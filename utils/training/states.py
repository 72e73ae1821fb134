"""Saved states of a training run, from which it goes on as if it had never stopped.

A state holds the trained weights, optimizer, schedule, the loss rows so far, how many batches were
read, and every process's random states. It is written whole or not at all, so a run may be killed
at any moment. (Accelerate's own checkpoints hold the frozen weights too, are several files that are
not replaced in one step, and carry no checksum.)
"""

import io
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from utils.checkpoints import CheckpointError, load_checkpoint
from utils.files import write_whole
from utils.training.identity import same_run
from utils.training.processes import agree

TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


class States:
    """The states of one run, in a folder of their own.

    Args:
        folder: of the states.
        config: hyperparameters, of which `resume` asks to go on, and `keep` says how many of the
            last states are kept.
        about: what must be the same for a state to be of this run.
        accelerator: the processes.

    Raises:
        CheckpointError: when asked to go on from a state of other hyperparameters, another number
            of processes or another kind of device.
    """

    def __init__(self, folder: Path, config: Any, about: dict, accelerator: Accelerator):
        self.folder, self.keep, self.accelerator = folder, config.keep, accelerator
        device = accelerator.device.type  # whose random states no other kind can take
        self.about = {**about, "processes": accelerator.num_processes, "device": device}
        self.seconds = 0.0  # spent on saving
        self.saved = agree(newest(folder, accelerator.print)) if config.resume else None
        if self.saved is not None:
            check_same(self.saved["about"], self.about, folder)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            tidy(folder, 0 if self.saved is None else config.keep)

    @property
    def read(self) -> int:
        """Batches that were read before the run was stopped."""
        return self.saved["read"] if self.saved else 0

    def restore(self, model, optimizer, schedule) -> None:
        """Fill what is trained from the saved state."""
        set_state_dict(
            self.accelerator.unwrap_model(model),
            optimizer.optimizer,
            model_state_dict=self.saved["model"],
            optim_state_dict=self.saved["optimizer"],
            options=StateDictOptions(full_state_dict=True, strict=False),
        )
        schedule.load_state_dict(self.saved["schedule"])

    def restore_random(self, noise: torch.Generator) -> None:
        """Random states as they were; to be called once the loader began, which draws a number."""
        if self.saved is not None:
            set_random(self.saved["random"][self.accelerator.process_index], noise)
            self.saved = None

    def save(self, step: int, model, optimizer, schedule, noise: torch.Generator, **more) -> None:
        """Write a state; every process must call this."""
        began = time.time()
        weights, moments = get_state_dict(
            self.accelerator.unwrap_model(model), optimizer.optimizer, options=TRAINED
        )
        state = {
            "about": self.about,
            "step": step,
            "model": weights,
            "optimizer": moments,
            "schedule": schedule.state_dict(),
            "random": gather_object([get_random(noise)]),
            **more,
        }
        if self.accelerator.is_main_process:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f"step-{step:08d}.pt", buffer.getvalue())
            tidy(self.folder, self.keep)
        self.seconds += time.time() - began

    def finish(self) -> None:
        """The run ended and wrote its results: no state is needed any more."""
        if self.accelerator.is_main_process:
            tidy(self.folder, 0)


def get_random(noise: torch.Generator) -> dict:
    """This process's random states."""
    name, keys, *rest = np.random.get_state()
    return {
        "noise": noise.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if noise.device.type == "cuda" else None,
        "numpy": [name, keys.tolist(), *rest],
        "python": random.getstate(),
    }


def set_random(states: dict, noise: torch.Generator) -> None:
    noise.set_state(states["noise"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    random.setstate(states["python"])


class Signals:
    """Within it SIGTERM and SIGINT are noted in `asked`; a second one acts at once."""

    asked: int | None = None

    def __enter__(self) -> "Signals":
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number: int, _frame) -> None:
        self.asked = number
        self.__exit__()

    def __exit__(self, *_error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def states(folder: Path) -> list[Path]:
    """The saved states, oldest first."""
    return sorted(folder.glob(f"step-{8 * '[0-9]'}.pt"))


def newest(folder: Path, say: Callable = print) -> dict | None:
    """The newest state that can be read; damaged ones are named by `say` and passed over."""
    for path in reversed(states(folder)):
        try:
            state = load_checkpoint(path)
            if state.keys() >= {"about", "read", "random"}:
                return state
            say(f"{path}: holds no state of training; passed over")
        except CheckpointError as error:
            say(f"{error}; passed over")
    return None


def tidy(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` states, and what a killed run left half written."""
    if not folder.is_dir():
        return
    old = states(folder)
    for path in [*old[: max(0, len(old) - keep)], *folder.glob(".*.partial")]:
        path.unlink(missing_ok=True)
    if not keep:
        with suppress(OSError):  # a file of the user's own lies there
            folder.rmdir()


def check_same(saved: dict, wanted: dict, folder: Path) -> None:
    """CheckpointError, in one line, where a state is of another run."""
    saved, wanted = ({**a, "config": same_run(a["config"])} for a in (saved, wanted))
    differ = [k for k in wanted["config"] if saved["config"].get(k) != wanted["config"][k]]
    differ += [k for k in wanted if k != "config" and saved.get(k) != wanted[k]]
    if differ:
        raise CheckpointError(
            f"{folder}: saved by a run that differs in {', '.join(differ)}; "
            "give it that again, or start anew without --resume"
        )
