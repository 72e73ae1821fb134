"""The runs that experiments are made of: both stages by seed, which differ in what is swept.

A run is named by its changes, so experiments that agree share a run.
"""

from dataclasses import dataclass, replace
from typing import Any

from utils.runs import Run

# Fields of both stages that stage 1 is trained with too: what has weights, and the compression,
# which would be at a loss behind an alignment of another's tokens. Token lengths are not among
# them, so that one alignment serves all lengths.
ALIGNED_WITH = {"receiver", "text_receiver", "compression"}

# Where these alone are changed, a run is validated on the way and tested at every SNR.
WATCHED = {"temperature", "channel", "question_snr_db", "text_receiver", "modalities"}


@dataclass
class Plan:
    """Runs with each seed, which differ from the two stages' hyperparameters in what is swept."""

    config: Any  # of the sweeps
    align_config: Any
    avqa_config: Any
    answers: str = "avqa"  # what its runs of stage 2 are called

    def few(self) -> "Plan":
        """The same with the first of the seeds alone, for what no claim is about."""
        return replace(
            self, config=replace(self.config, seeds=self.config.seeds[: self.config.few])
        )

    def starts(self, **changes) -> list[Run]:
        """Stage 1 with each seed, and with those of the changes that concern it."""
        kept = vars(self.align_config).keys() - (vars(self.avqa_config).keys() - ALIGNED_WITH)
        changes = {k: v for k, v in self.changed(changes).items() if k in kept}
        return self._runs("task_align", self.align_config, "align", changes)

    def answering(self, aligned: bool = True, **changes) -> list[Run]:
        """Stage 2 with each seed, from stage 1 with the same changes, or from none."""
        swept, base = self.changed(changes), replace(self.avqa_config, init="none")
        if swept.keys() <= WATCHED:
            every = max(1, self.config.steps // self.config.validations)
            base = replace(base, validate_every=every, test_snr_db=self.config.snr_db)
        if not aligned:
            return self._runs("task_avqa", base, f"{self.answers}-unaligned", swept)
        runs = self._runs("task_avqa", base, self.answers, swept)
        pairs = zip(runs, self.starts(**changes), strict=True)
        return [self._after(start, run) for run, start in pairs]

    def both(self, **changes) -> list[Run]:
        """Both stages with the same changes."""
        return self.starts(**changes) + self.answering(**changes)

    def _after(self, start: Run, run: Run) -> Run:
        """The run from the checkpoint that `start` leaves."""
        init = f"{start.config.out}/{start.name}.pth"
        return replace(run, config=replace(run.config, init=init), after=start.name)

    def _runs(self, script: str, base: Any, label: str, changes: dict) -> list[Run]:
        """With each seed, named by all changes, with those that this stage has."""
        words = [label]
        for key, value in sorted(changes.items()):
            words += [key, *map(str, value if isinstance(value, list) else [value])]
        name = f"sweeps/{self.config.preset}/{'-'.join(words)}"
        own = {k: v for k, v in changes.items() if hasattr(base, k)}
        return [
            Run(script, replace(base, name=f"{name}-seed{seed}", seed=seed, **own))
            for seed in self.config.seeds
        ]

    def changed(self, changes: dict) -> dict:
        """The changes that do change something."""
        stands = vars(self.align_config) | vars(self.avqa_config)
        return {k: v for k, v in changes.items() if stands[k] != v}
