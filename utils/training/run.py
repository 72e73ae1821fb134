"""One training run of either stage: its processes, its log, its saved states and its results."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from tqdm import tqdm

from modules.system import Batch
from utils.checkpoints import save_checkpoint, sha256
from utils.config import Stopped, plain
from utils.data.clips import Clips, Collate, in_order, training_loader
from utils.data.datasets import listing, read_splits
from utils.data.models import MODELS, models_used
from utils.hub import is_hub_id
from utils.training.identity import READ, code_of, data_version, finished
from utils.training.log import RunLog, peak_rss_mb
from utils.training.processes import agree, noise_source, start
from utils.training.states import Signals, States


class Run:
    """A run from its first check to its last file.

    Args:
        task: `align` or `avqa`.
        config: hyperparameters of the stage.
        name: of the run's files where `config.name` is empty.

    `finished` holds the metrics if a run of this name ended before and `config.resume` asks to go
    on; then there is nothing to do.

    Raises:
        ValueError: for hyperparameters that no run can use, folders that cannot be written, and
            while another run of this name is under way.
    """

    def __init__(self, task: str, config: Any, name: str):
        self.task, self.config = task, replace(config, name=config.name or name)
        self.accelerator = start(config)  # of one process, or of all that Accelerate started
        self.is_main = self.accelerator.is_main_process
        self.say(f"{task}: run {self.config.name}")
        self.finished = agree(finished(self.config)) if config.resume else None
        if self.finished:
            self.say("finished before")
            return
        if config.preset != "mini" and any(is_hub_id(getattr(config, name)) for name in MODELS):
            read_splits(READ[task], Path(config.data))  # which must be there before any is fetched
        self.log = RunLog(Path(config.out) / self.config.name, writes=self.is_main)
        self.validation: list[tuple[int, float]] = []  # (step, loss)

    def say(self, text: str) -> None:
        self.accelerator.print(text, flush=True)

    def fresh_noise(self) -> torch.Generator:
        """A source of channel noise that is the same at every call."""
        return noise_source(self.config.seed, self.accelerator)

    def prepare(
        self, model: nn.Module, clips: Clips, collate: Collate, held_out_batch: int
    ) -> tuple[nn.Module, dict]:
        """The model on its device, and the loaders of the three splits, ready to train."""
        c, accelerator = self.config, self.accelerator
        processes = accelerator.num_processes
        self.clips = clips
        hashes = {split: file.sha256 for split, file in clips.files.items()}
        self.data = data_version(hashes, clips.left_out)
        self.about = {"task": self.task, "config": plain(c), "models": models_used(c), **self.data}
        self.about["code"] = code_of(c)  # which may be edited while the run is under way
        if hasattr(c, "init"):
            self.about["init_sha256"] = sha256(c.init)
        self.states = States(self.log.path(".resume"), c, self.about, accelerator)
        self.system, self.read = model.system, self.states.read  # batches read so far
        self.model, self.optimizer, train, *held_out = accelerator.prepare(
            model,
            AdamW(groups(model, c), lr=c.lr),
            training_loader(clips["train"], collate, c, self.read, processes),
            *(
                in_order(clips[split], collate, held_out_batch, c.workers, processes)
                for split in ("val", "test")
            ),
        )
        self.schedule = schedule(self.optimizer.optimizer, c)
        self.noise = self.fresh_noise()
        set_seed(c.seed, device_specific=True)  # of dropout
        self.model.train()
        return self.model, dict(zip(("train", "val", "test"), (train, *held_out), strict=True))

    def batches(self, loader, label: str) -> Iterator[tuple[int, Batch]]:
        """The step that each batch belongs to, and the batch, from where the run stopped. After the
        last batch of a step its state is saved from time to time, at the end, and before stopping:
        SIGTERM and SIGINT stop after the step under way."""
        c = self.config
        if saved := self.states.saved:
            self.states.restore(self.model, self.optimizer, self.schedule)
            self.validation = [tuple(point) for point in saved["validation"]]
            self.log.go_on(saved["rows"], saved["seconds"])
            self.say(f"going on after step {saved['step']}")
        bar = tqdm(
            desc=f"{label} {c.name}",
            total=c.steps * c.accumulate,
            initial=self.read,
            unit="batch",
            disable=not self.is_main,
        )
        with Signals() as signals, bar:
            for batch in loader:
                self.states.restore_random(self.noise)
                step = self.read // c.accumulate + 1
                with self.accelerator.accumulate(self.model):
                    yield step, batch
                self.read += 1
                if self.log.rows:
                    bar.set_postfix(loss=f"{self.log.rows[-1]['loss']:.3f}", refresh=False)
                bar.update()
                if self.accelerator.sync_gradients:
                    self._step_done(step, signals)

    def step(self, step: int, losses: dict[str, Tensor], batch: Batch) -> None:
        """Going backward from `losses["loss"]`; optimizer and schedule move with the last batch of
        a step."""
        values = dict(losses)
        self.accelerator.backward(losses["loss"])
        if self.accelerator.sync_gradients:
            weights = [w for group in self.optimizer.param_groups for w in group["params"]]
            most = self.config.clip or math.inf  # the norm is logged in any case
            values["gradient"] = self.accelerator.clip_grad_norm_(weights, most)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.log.add(step, values, [row.video_id for row in batch.rows])
        if self.accelerator.sync_gradients:
            self.schedule.step()

    def validates(self, step: int) -> bool:
        """Whether the validation loss is due: every `validate_every` steps and after the last."""
        c = self.config
        due = step % c.validate_every == 0 or step == c.steps
        return due and self.accelerator.sync_gradients

    def validated(self, step: int, loss: float) -> None:
        self.validation.append((step, loss))

    def _step_done(self, step: int, signals: Signals) -> None:
        stop = self._must_stop(step, signals)
        if stop or step % self.config.save_every == 0 or step == self.config.steps:
            self.log.read()  # which raises if losses so far are not finite
            self.states.save(
                step,
                self.model,
                self.optimizer,
                self.schedule,
                self.noise,
                read=self.read,
                rows=self.log.rows,
                validation=self.validation,
                seconds=time.time() - self.log.began,
            )
        if stop:
            name = signal.Signals(stop).name
            raise Stopped(f"{name}: stopped after step {step}; go on by --resume true", stop)

    def _must_stop(self, step: int, signals: Signals) -> int | None:
        """The signal that asked any process to stop. Several processes ask each other only when
        losses are read, as they wait for one another then anyway."""
        if self.accelerator.num_processes == 1:
            return signals.asked
        if step % self.log.every:
            return None
        return max(gather_object([signals.asked or 0])) or None

    def save(self) -> None:
        """Write R.pth: the transceivers, and LoRA if there is any."""
        about = {**self.about, "step": self.config.steps}
        path = self.log.path(".pth")
        save_checkpoint(path, self.system.transceivers, self.system.lora, about, self.is_main)

    def finish(self, found: dict, draw: Callable[[str], dict]) -> dict:
        """Write R.csv and R.json, then draw the figures by `draw(stem)`, which returns their paths
        as `figures` and what else R.json says of them; returns R.json. For the main process alone.
        """
        c, log, clips = self.config, self.log, self.clips
        log.finish()
        metrics = {
            "task": self.task,
            "preset": c.preset,
            "config": plain(c),
            "steps": c.steps,
            "loss": log.ends(),
            "validation_loss": self.validation,
            **found,
            "annotations": {split: vars(file) for split, file in clips.files.items()},
            "left_out": clips.left_out,
            "figures": [],
            "seconds": time.time() - log.began,
            "saving_seconds": self.states.seconds,
            "peak_rss_mb": peak_rss_mb(),
            "code": self.about["code"],
            "models": self.about["models"],
            "checkpoint_sha256": sha256(log.path(".pth")),
        }
        if "init_sha256" in self.about:
            metrics["init_sha256"] = self.about["init_sha256"]
        log.write_metrics(metrics)
        if c.figures != "none":
            try:
                metrics |= draw(str(Path(c.figures) / c.name))
            except Exception as error:  # what was measured is worth more
                self.say(f"figures of {c.name}: not drawn ({type(error).__name__}: {error})")
            log.write_metrics(metrics)
        self.states.finish()
        log.close()
        if clips.left_out:
            print(listing(clips.left_out))
        print("look at:", log.path(".pth"), log.path(".json"), *metrics["figures"], sep="\n  ")
        return metrics


def groups(model: nn.Module, config: Any) -> list[dict]:
    """The trained weights as AdamW takes them: LoRA's apart where they have a learning rate of
    their own (`lora_lr`)."""
    apart = getattr(config, "lora_lr", 0.0)
    trained = [(name, w) for name, w in model.named_parameters() if w.requires_grad]
    lora = [w for name, w in trained if apart and ".lora_" in name]
    rest = [w for name, w in trained if not apart or ".lora_" not in name]
    found = [{"params": rest}, {"params": lora, "lr": apart}]
    return [group for group in found if group["params"]]


def schedule(optimizer: Optimizer, config: Any) -> LRScheduler:
    """Each learning rate rises in a line over `warm_up` steps, or half of all if these are fewer,
    then falls on a cosine to `lr_min`, where it is when `steps` are done (Loshchilov and Hutter,
    2017)."""
    rise = min(config.warm_up, config.steps // 2)
    cosine = CosineAnnealingLR(optimizer, config.steps - rise, config.lr_min)
    if not rise:
        return cosine
    line = LinearLR(optimizer, 1 / (rise + 1), total_iters=rise)
    return SequentialLR(optimizer, [line, cosine], [rise])
