"""What a run leaves beside its checkpoint: R.csv (a row a step), TensorBoard events, R.json."""

import csv
import io
import json
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.files import write_whole


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
        write_whole(self.stem.with_name(self.stem.name + ".csv"), table.getvalue())
        whole = {**metrics, "seconds": time.time() - self.began, "peak_rss_mb": peak_rss_mb()}
        path = self.stem.with_name(self.stem.name + ".json")
        write_whole(path, json.dumps(whole, indent=2) + "\n")
        return whole


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2
