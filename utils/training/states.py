"""A training run that was stopped goes on from its last saved state, as if it had never stopped.

A state holds the trained weights, optimizer, schedule, the loss rows so far, how many batches were
read, and every process's random states. It is written whole or not at all, so a run may be killed
at any moment.
"""

import io
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from tqdm import tqdm

from utils.checkpoints import CheckpointError, load_checkpoint
from utils.config import Stopped
from utils.files import write_whole
from utils.training.log import PLACES, RunLog
from utils.training.processes import agree

TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


class Training:
    """The batches of a run from where it stopped, and the states that it leaves on the way.

    Args:
        log: of the run; states go into its folder.
        config: hyperparameters, of which `resume` asks to go on, `save_every` says how many steps
            lie between states, and `keep` how many of the last are kept.
        about: what must be the same for a state to be of this run.
        accelerator: the processes.

    Raises:
        CheckpointError: when asked to go on from a state of other hyperparameters or processes.
    """

    def __init__(self, log: RunLog, config: Any, about: dict, accelerator: Accelerator):
        self.log, self.config, self.accelerator = log, config, accelerator
        self.folder = log.path(".resume")
        self.about = {**about, "processes": accelerator.num_processes}
        self.validation: list[tuple[int, float]] = []  # (step, loss)
        self.read = 0  # batches
        self.seconds = 0.0  # spent on saving
        self.asked: int | None = None  # to stop, by this signal
        self.saved = agree(newest(self.folder, accelerator.print)) if config.resume else None
        if self.saved is not None:
            check_same(self.saved["about"], self.about, self.folder)
            self.read = self.saved["read"]
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            tidy(self.folder, 0 if self.saved is None else config.keep)

    def prepare(self, model, optimizer, schedule, noise: torch.Generator) -> None:
        """What is trained; filled from the saved state if there is one."""
        self.parts = (model, optimizer, schedule, noise)
        if self.saved is None:
            return
        set_state_dict(
            self.accelerator.unwrap_model(model),
            optimizer.optimizer,
            model_state_dict=self.saved["model"],
            optim_state_dict=self.saved["optimizer"],
            options=StateDictOptions(full_state_dict=True, strict=False),
        )
        schedule.load_state_dict(self.saved["schedule"])
        self.validation += [tuple(point) for point in self.saved["validation"]]
        self.log.go_on(self.saved["rows"], self.saved["seconds"])
        self.accelerator.print(f"going on after step {self.saved['step']}", flush=True)

    def batches(self, loader, label: str) -> Iterator[tuple[int, Any]]:
        """The number and content of every batch that is left; SIGTERM and SIGINT stop after the
        step under way."""
        total = self.config.steps * self.config.accumulate
        quiet = not self.accelerator.is_main_process
        with (
            Signals(self),
            tqdm(desc=label, total=total, initial=self.read, unit="batch", disable=quiet) as bar,
        ):
            for batch in loader:
                if self.saved is not None:  # after the loader began, which draws a number
                    self.set_random(self.saved["random"][self.accelerator.process_index])
                    self.saved = None
                yield self.read, batch
                self.read += 1
                if self.log.rows:
                    bar.set_postfix(loss=f"{self.log.rows[-1]['loss']:.3f}", refresh=False)
                bar.update()

    def clip_gradient(self) -> Tensor:
        """Cut the gradient at the norm `config.clip`, if that is not 0; returns its norm before."""
        weights = [w for group in self.parts[1].param_groups for w in group["params"]]
        return self.accelerator.clip_grad_norm_(weights, self.config.clip or math.inf)

    def summary(self) -> dict:
        """For R.json."""
        return {"validation_loss": self.validation, "saving_seconds": self.seconds}

    def done(self, step: int) -> None:
        """A step is done: its state is saved from time to time, at the end, and before stopping."""
        stop = self.must_stop(step)
        if stop or step % self.config.save_every == 0 or step == self.config.steps:
            self.save(step)
        if stop:
            name = signal.Signals(stop).name
            raise Stopped(f"{name}: stopped after step {step}; go on by --resume true", stop)

    def must_stop(self, step: int) -> int | None:
        """The signal that asked any process to stop. Several processes ask each other only when
        losses are read, as they wait for one another then anyway."""
        if self.accelerator.num_processes == 1:
            return self.asked
        if step % self.log.every:
            return None
        return max(gather_object([self.asked or 0])) or None

    def save(self, step: int) -> None:
        """Write a state; every process must call this. Raises if losses so far are not finite."""
        began = time.time()
        self.log.read()
        model, optimizer, schedule, _ = self.parts
        weights, moments = get_state_dict(
            self.accelerator.unwrap_model(model), optimizer.optimizer, options=TRAINED
        )
        state = {
            "about": self.about,
            "step": step,
            "read": self.read + 1,  # the batch under way is done
            "model": weights,
            "optimizer": moments,
            "schedule": schedule.state_dict(),
            "random": gather_object([self.random()]),
            "rows": self.log.rows,
            "validation": self.validation,
            "seconds": time.time() - self.log.began,
        }
        if self.accelerator.is_main_process:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f"step-{step:08d}.pt", buffer.getvalue())
            tidy(self.folder, self.config.keep)
        self.seconds += time.time() - began

    def finish(self) -> None:
        """The run ended and wrote its results: no state is needed any more."""
        if self.accelerator.is_main_process:
            tidy(self.folder, 0)

    def random(self) -> dict:
        """This process's random states."""
        name, keys, *rest = np.random.get_state()
        return {
            "noise": self.parts[-1].get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [name, keys.tolist(), *rest],
            "python": random.getstate(),
        }

    def set_random(self, states: dict) -> None:
        self.parts[-1].set_state(states["noise"])
        torch.set_rng_state(states["torch"])
        if states["cuda"]:
            torch.cuda.set_rng_state_all(states["cuda"])
        name, keys, *rest = states["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), *rest))
        random.setstate(states["python"])


class Signals:
    """Within it SIGTERM and SIGINT are noted by `training`; a second one acts at once."""

    def __init__(self, training: Training):
        self.training, self.before = training, {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self.note)

    def note(self, number: int, _frame) -> None:
        self.training.asked = number
        self.__exit__()

    def __exit__(self, *_error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def states(folder: Path) -> list[Path]:
    """The saved states, oldest first."""
    return sorted(folder.glob("step-*.pt"))


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
        folder.rmdir()


def same_run(config: dict) -> dict:
    """The part of a run's hyperparameters that decides its result."""
    return {k: v for k, v in config.items() if k not in PLACES}


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
