"""A run in a process of its own, which other work does not wait for."""

import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from utils.checkpoints import CheckpointError
from utils.config import quieten
from utils.machine import cores, end_with_parent, take_cores
from utils.training.identity import finished
from utils.training.processes import agree


def beside(script: str, config: Any, data: dict) -> Callable[[], dict]:
    """Start a run on these data on half of the cores, while this process goes on with the other
    half; it ends when this process does, and is not repeated if it has ended well before.

    Args:
        script: `task_align` or `task_avqa`.
        config: its hyperparameters, the run's name among them.
        data: as `data_version` names them.

    Returns what waits for the run and gives its metrics, or raises ValueError if it failed.
    """
    config = replace(config, resume=False, workers=0)
    log = str(Path(config.out) / f"{config.name}.log")
    found, half = finished(config, data), len(cores()) // 2
    # In any case, finished or not: the number of threads decides a sum's last digit.
    torch.set_num_threads(config.threads or max(1, half))
    args = (cores()[half:], script, asdict(config), log)
    process = get_context("spawn").Process(target=_begin, args=args, daemon=True)
    if not found:
        process.start()

    def metrics() -> dict:
        if found:
            return found
        process.join()
        if ended := finished(config, data):
            return ended
        raise ValueError(f"run {config.name} ended with status {process.exitcode}; see {log}")

    return metrics


def afterwards(main: Callable, config: Any, data: dict) -> dict | None:
    """The metrics of a run of `main` on these data in this process, which is not repeated if it has
    ended well before."""
    if found := agree(finished(config, data)):
        return found
    with suppress(CheckpointError):  # a saved state of other data, or of other code
        return main(config)
    return main(replace(config, resume=False))


def _begin(share: list[int], script: str, fields: dict, log: str) -> None:
    settle(share)
    try:
        run_logged(script, fields, log)
    except BaseException:  # which stands in the log
        sys.exit(1)


def settle(share: list[int]) -> None:
    """A new process takes its cores, and ends when the one that started it does."""
    take_cores(share)
    end_with_parent()
    quieten()


def run_logged(script: str, fields: dict, log: str) -> dict:
    """Run a script in this process, from where it stopped; what it prints goes into `log`."""
    module = import_module(script)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as out, redirect_stdout(out), redirect_stderr(out):
        try:
            if "resume" in fields:
                with suppress(CheckpointError):  # saved by another run of this name
                    return module.main(module.Config(**{**fields, "resume": True}))
            return module.main(module.Config(**fields))
        except BaseException:
            traceback.print_exc()
            raise
