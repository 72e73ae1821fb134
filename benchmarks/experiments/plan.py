"""The runs that experiments are made of, named so that experiments which agree share a run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from utils.report.statistics import interval
from utils.runs import Run

Metrics = dict[str, dict]  # a run's R.json by its name


@dataclass
class Plan:
    """Runs by seed, which differ from the two stages' hyperparameters in what is swept."""

    config: Any  # of the sweeps
    align_config: Any
    avqa_config: Any

    def align(self, seed: int, label: str, **changes) -> Run:
        """A run of stage 1."""
        return self._run("task_align", self.align_config, f"align-{label}", seed, changes)

    def answer(self, seed: int, label: str, start: Run | None, **changes) -> Run:
        """A run of stage 2 from a run of stage 1, or unaligned."""
        changes["init"] = f"{start.config.out}/{start.name}.pth" if start else "none"
        run = self._run("task_avqa", self.avqa_config, f"avqa-{label}", seed, changes)
        return replace(run, after=start.name if start else "")

    def start(self, seed: int, tau: float | None = None) -> Run:
        """Stage 1 as it stands, from which other runs start."""
        tau = tau or self.config.temperature
        return self.align(seed, f"tau{tau:g}", temperature=tau)

    def aligned(self, seed: int, tau: float | None = None) -> Run:
        """Both stages as they stand, with which others are compared."""
        tau = tau or self.config.temperature
        return self.answer(seed, f"tau{tau:g}", self.start(seed, tau), **self._watched())

    def unaligned(self, seed: int) -> Run:
        """Stage 2 alone."""
        return self.answer(seed, "unaligned", None, **self._watched())

    def _watched(self) -> dict:
        """Validated on the way, and tested at every SNR."""
        every = max(1, self.config.steps // self.config.validations)
        return {"validate_every": every, "test_snr_db": self.config.snr_db}

    def _run(self, script: str, base: Any, label: str, seed: int, changes: dict) -> Run:
        name = f"sweeps/{self.config.preset}/{label}-seed{seed}"
        return Run(script, replace(base, name=name, seed=seed, **changes))

    def by_seed(self, metrics: Metrics, make: Callable[..., Run], *args) -> list[dict]:
        """The metrics of the run `make(plan, seed, *args)`, seed by seed."""
        return [metrics[make(self, seed, *args).name] for seed in self.config.seeds]


def accuracies(runs: list[dict]) -> list[float]:
    return [run["accuracy"]["overall"] for run in runs]


def validation_losses(runs: list[dict]) -> list[float]:
    """At the end of training, nats a token."""
    return [run["validation_loss"][-1][1] for run in runs]


def summary(values: list[float]) -> dict:
    """`mean`, `ci95` and the `values` themselves, a seed each."""
    mean, width = interval(values)
    return {"mean": mean, "ci95": width, "values": values}
