"""What a run leaves beside its checkpoint: R.csv (a row a step), TensorBoard events, R.json."""

import csv
import io
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.checkpoints import sha256
from utils.config import plain
from utils.files import write_whole

# What does not change a run's result: where things lie and how the work is shared out.
PLACES = ("name", "out", "figures", "cache", "workers", "encode_batch", "question_only")


def finished(config: Any) -> dict | None:
    """The metrics of the run `config.name` if it ended with these hyperparameters, from the same
    checkpoint, and its weights stand; else None."""
    stem = Path(config.out) / config.name
    try:
        metrics = json.loads(stem.with_name(stem.name + ".json").read_text())
        same = all(metrics["config"][k] == v for k, v in plain(config).items() if k not in PLACES)
        same &= metrics.get("init_sha256") == sha256(getattr(config, "init", "none"))
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or of other hyperparameters
        return None
    return metrics if same and stem.with_name(stem.name + ".pth").is_file() else None


class RunLog:
    """Collects losses without stopping the device: they are read every `every` steps at once.

    One process `writes`; the others' logs only do what keeps them in step.
    """

    def __init__(self, stem: Path, every: int = 20, writes: bool = True):
        self.stem, self.every, self.writes = stem, every, writes
        self.rows: list[dict[str, float]] = []
        self.waiting: list[tuple[int, dict[str, Tensor]]] = []
        self.began = time.time()
        if writes:
            stem.parent.mkdir(parents=True, exist_ok=True)
            self.events = SummaryWriter(str(stem))

    def path(self, suffix: str) -> Path:
        """The run's file of this suffix."""
        return self.stem.with_name(self.stem.name + suffix)

    def save_features(self, sets: dict[str, dict[str, Tensor]], ids: list[str]) -> None:
        """Write R.features.safetensors: `SET.MODALITY` (clips, hidden) in half precision, and the
        clips' ids in its metadata; figures are drawn from it without the model."""
        tensors = {
            f"{name}.{modality}": values.half().contiguous()
            for name, features in sets.items()
            for modality, values in features.items()
        }
        write_whole(self.path(".features.safetensors"), save(tensors, {"ids": json.dumps(ids)}))

    def add(self, step: int, values: dict[str, Tensor], bar: tqdm | None = None) -> None:
        """Losses of a step; of the batches that one step accumulates, their mean is kept."""
        if self.waiting and step - self.waiting[0][0] >= self.every:
            self.read()
            if bar is not None and self.rows:
                bar.set_postfix(loss=f"{self.rows[-1]['loss']:.3f}", refresh=False)
        self.waiting.append((step, {k: v.detach() for k, v in values.items()}))

    def read(self) -> None:
        """Bring the waiting values to the host."""
        if not self.waiting or not self.writes:
            self.waiting.clear()
            return
        numbers = torch.stack([v.float() for _, row in self.waiting for v in row.values()]).tolist()
        steps: dict[int, list[dict[str, float]]] = {}
        for step, row in self.waiting:
            steps.setdefault(step, []).append({k: numbers.pop(0) for k in row})
        for step, parts in steps.items():
            values = {k: sum(part[k] for part in parts) / len(parts) for k in parts[0]}
            self.rows.append({"step": step, **values})
            for k, v in values.items():
                self.events.add_scalar(k, v, step)
        self.waiting.clear()

    def ends(self, key: str = "loss", span: int = 10) -> dict[str, float]:
        """The mean of the first and of the last `span` values."""
        self.read()
        values = [row[key] for row in self.rows]
        first, last = values[:span], values[-span:]
        return {"first": sum(first) / len(first), "last": sum(last) / len(last)}

    def finish(self, metrics: dict) -> dict:
        """Write R.csv and R.json; returns what R.json holds."""
        self.read()
        self.events.close()
        table = io.StringIO()
        writer = csv.DictWriter(table, list(self.rows[0]))
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path(".csv"), table.getvalue())
        whole = {**metrics, "seconds": time.time() - self.began, "peak_rss_mb": peak_rss_mb()}
        write_whole(self.path(".json"), json.dumps(whole, indent=2) + "\n")
        return whole


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2
