"""Many runs of the task scripts: each on its share of the cores, finished ones skipped.

Sweeps are lists of runs. A worker process runs one after the other, so that libraries are loaded
once, and on one core each unless there is an accelerator: small models gain little from a second.
"""

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.machine import cores
from utils.training.beside import run_logged, settle
from utils.training.identity import finished


@dataclass(frozen=True)
class Run:
    """A run of a task script.

    Args:
        script: `task_align` or `task_avqa`.
        config: its hyperparameters; the name is the run's.
        after: the name of the run from whose checkpoint it starts, if any.
    """

    script: str
    config: Any
    after: str = ""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def log(self) -> Path:
        return Path(self.config.out) / f"{self.name}.log"


class RunsFailed(ValueError):
    """Some runs failed; the message names the first, its reason and its log."""


def unique(runs: Sequence[Run]) -> list[Run]:
    """Each run once. ValueError where two of one name differ, or one starts from none of them."""
    by_name: dict[str, Run] = {}
    for run in runs:
        if by_name.setdefault(run.name, run) != run:
            raise ValueError(f"run {run.name}: asked for twice, with different hyperparameters")
    for run in runs:
        if run.after and run.after not in by_name:
            raise ValueError(
                f"run {run.name}: starts from {run.after}, which is not among the runs"
            )
    return list(by_name.values())


def jobs_at_a_time(jobs: int = 0) -> int:
    """`jobs`, or for 0 one a core, or one on an accelerator."""
    return jobs or (1 if torch.cuda.is_available() else len(cores()))


def run_all(runs: Sequence[Run], jobs: int = 0, label: str = "runs") -> dict[str, dict]:
    """Run what has not been run with these hyperparameters yet; every run's metrics by its name.

    Args:
        runs: in any order; a run waits for the one that it starts from.
        jobs: runs at a time; 0 for one a core, or one on an accelerator.
        label: of the progress bar.

    Raises:
        RunsFailed: after all others are done, so that good results are kept.
    """
    waiting = {run.name: run for run in unique(runs)}
    metrics: dict[str, dict] = {}
    failed: dict[str, str] = {}
    running: dict[Future, Run] = {}
    with workers(jobs) as pool, tqdm(total=len(waiting), desc=label, unit="run") as bar:
        try:
            while waiting or running:
                ready = [r for r in waiting.values() if r.after in ("", *metrics, *failed)]
                for run in ready:
                    del waiting[run.name]
                    if run.after in failed:
                        failed[run.name] = f"needs {run.after}, which failed"
                    elif found := finished(run.config):
                        metrics[run.name] = found
                    else:
                        job = pool.submit(run_logged, run.script, asdict(run.config), str(run.log))
                        running[job] = run
                        continue
                    bar.update()
                for job in wait(running, 0 if ready else None, FIRST_COMPLETED).done:
                    run = running.pop(job)
                    if error := job.exception():
                        failed[run.name] = _reason(error, run)
                    else:
                        metrics[run.name] = job.result()
                    bar.update()
        except BaseException:  # an interrupt does not wait for the runs under way
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise
    if failed:
        name, reason = next(iter(failed.items()))
        raise RunsFailed(
            f"{len(failed)} of {len(failed) + len(metrics)} runs failed; {name}: {reason}"
        )
    return metrics


def workers(jobs: int) -> ProcessPoolExecutor:
    """So many workers, each with its share of the cores."""
    jobs = jobs_at_a_time(jobs)
    context = get_context("spawn")
    shares = context.SimpleQueue()
    for i in range(jobs):
        shares.put(cores()[i::jobs] or cores())
    return ProcessPoolExecutor(jobs, context, _begin, (shares,))


def _reason(error: BaseException, run: Run) -> str:
    """Why a run failed. Raises RunsFailed where its worker was killed: no other can go on."""
    if isinstance(error, BrokenProcessPool):
        raise RunsFailed(
            f"the process of {run.name} was killed, for lack of memory perhaps; run again, with "
            "fewer --jobs"
        )
    return f"{type(error).__name__}: {error}; see {run.log}"


def _begin(shares) -> None:
    settle(shares.get())
