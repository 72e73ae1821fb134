"""What a run leaves beside its checkpoint: R.csv (a row a step), TensorBoard events, R.json."""

import csv
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from glob import escape
from pathlib import Path

import psutil
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from utils.files import check_writable, naming, write_whole

try:
    import resource
except ImportError:  # Windows
    resource = None

# Of the files beside R that are written whole or not at all.
SUFFIXES = (".pth", ".json", ".csv", ".answers.csv", ".features.safetensors")


class NotFinite(ValueError):
    """A loss or gradient that is no number: the step, its clips, and where to go on from."""

    def __init__(self, step: int, name: str, value: float, clips: list[str], folder: Path):
        good = sorted(folder.glob("step-*.pt"))
        shown = ", ".join(clips[:8]) + (", ..." if len(clips) > 8 else "")
        super().__init__(
            f"step {step}: {name} is {value}, of clips {shown or 'unknown'}; "
            + (f"the last good state is {good[-1]}" if good else "no state was saved before")
            + ", go on with a smaller --lr or with --clip"
        )


class RunLog:
    """Collects losses without stopping the device: they are read every `every` steps at once.

    One process `writes`; the others' logs only do what keeps them in step.

    Raises:
        ValueError: while another run of this name is under way, or where nothing can be written.
        NotFinite: in `read`, for a loss or gradient that is no number.
    """

    def __init__(self, stem: Path, every: int = 20, writes: bool = True):
        self.stem, self.every, self.writes = stem, every, writes
        self.rows: list[dict[str, float]] = []
        self.waiting: list[tuple[int, dict[str, Tensor], list[str]]] = []
        self.began = time.time()
        if writes:
            check_writable(stem.parent, "--out")
            check_writable(stem, "--out")
            self.lock = FileLock(stem / "lock")  # held while this log is
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                raise ValueError(
                    f"{stem}: another run of this name is under way; give this one another --name"
                ) from None
            for suffix in SUFFIXES:  # what a killed run left half written
                for partial in stem.parent.glob(f".{escape(stem.name)}{suffix}.*.partial"):
                    partial.unlink(missing_ok=True)
            with naming(stem):
                self.events = SummaryWriter(str(stem))

    def go_on(self, rows: list[dict[str, float]], seconds: float) -> None:
        """Take over the rows and the time of the run before it was stopped."""
        self.rows, self.began = rows, time.time() - seconds
        if self.writes:
            with naming(self.stem):
                self.events.close()
                self.events = SummaryWriter(str(self.stem), purge_step=rows[-1]["step"] + 1)

    def path(self, suffix: str) -> Path:
        """The run's file of this suffix."""
        return self.stem.with_name(self.stem.name + suffix)

    def add(self, step: int, values: dict[str, Tensor], clips: Sequence[str] = ()) -> None:
        """Losses of a step, and whose clips they are; of the batches that one step accumulates,
        the mean of a value is kept."""
        if self.waiting and step - self.waiting[0][0] >= self.every:
            self.read()
        self.waiting.append((step, {k: v.detach() for k, v in values.items()}, list(clips)))

    def read(self) -> None:
        """Bring the waiting values to the host."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []
        numbers = torch.stack([v.float() for _, row, _ in waiting for v in row.values()]).tolist()
        steps: dict[int, dict[str, list[float]]] = {}
        for step, row, clips in waiting:
            for k in row:
                value = numbers.pop(0)
                if not math.isfinite(value):
                    raise NotFinite(step, k, value, clips, self.path(".resume"))
                steps.setdefault(step, {}).setdefault(k, []).append(value)
        if not self.writes:
            return
        for step, parts in steps.items():
            values = {k: sum(part) / len(part) for k, part in parts.items()}
            self.rows.append({"step": step, **values})
            with naming(self.stem):
                for k, v in values.items():
                    self.events.add_scalar(k, v, step)

    def ends(self, key: str = "loss", span: int = 10) -> dict[str, float]:
        """The mean of the first and of the last `span` values."""
        self.read()
        values = [row[key] for row in self.rows]
        first, last = values[:span], values[-span:]
        return {"first": sum(first) / len(first), "last": sum(last) / len(last)}

    def save_features(self, sets: dict[str, dict[str, Tensor]], ids: list[str]) -> None:
        """Write R.features.safetensors: `SET.MODALITY` (clips, hidden) in half precision, and the
        clips' ids in its metadata; figures are drawn from it without the model."""
        tensors = {
            f"{name}.{modality}": values.half().contiguous()
            for name, features in sets.items()
            for modality, values in features.items()
        }
        write_whole(self.path(".features.safetensors"), save(tensors, {"ids": json.dumps(ids)}))

    def write_metrics(self, metrics: dict) -> None:
        """R.json."""
        write_whole(self.path(".json"), json.dumps(metrics, indent=2) + "\n")

    def finish(self) -> None:
        """Write R.csv."""
        self.read()
        with naming(self.stem):
            self.events.close()
        table = io.StringIO()
        writer = csv.DictWriter(table, list(self.rows[0]))
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path(".csv"), table.getvalue())

    def close(self) -> None:
        """Let go of the run's name: another run may have it."""
        self.lock.release()


def read_features(path: Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """What `RunLog.save_features` wrote: sets of features by modality, and the clips' ids."""
    sets: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping)
            name, modality = key.split(".")
            sets.setdefault(name, {})[modality] = file.get_tensor(key).float()
        return sets, json.loads(file.metadata()["ids"])


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, MB."""
    if resource is None:
        info = psutil.Process().memory_info()
        return getattr(info, "peak_wset", info.rss) / 1024**2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2
