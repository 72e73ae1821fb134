"""A task script that only writes its files, for tests of what runs scripts; not a test itself."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.checkpoints import sha256
from utils.config import plain
from utils.data.models import models_used
from utils.machine import cores
from utils.training.identity import code_of


@dataclass
class Config:
    name: str
    out: str
    data: str = "none"
    media: str = "extraction"
    visual_encoder: str = "checkpoint/mini/vivit"
    audio_encoder: str = "checkpoint/mini/ast"
    foundation_model: str = "checkpoint/mini/qwen2"
    seed: int = 0
    init: str = "none"
    fails: bool = False
    waits: bool = False  # for a signal
    workers: int = 0  # does not change the result
    threads: int = 1


def main(config: Config) -> dict:
    stem = Path(config.out) / config.name
    if config.fails:
        raise ValueError("told to fail")
    if config.init != "none":
        assert Path(config.init).is_file(), "started before the run it starts from"
    print("says", config.name, flush=True)
    if config.waits:
        signal.pause()
    torch.save({"seed": config.seed}, f"{stem}.pth")
    metrics = {
        "code": code_of(config),
        "checkpoint_sha256": sha256(f"{stem}.pth"),
        "config": plain(config),
        "models": models_used(config),
        "annotations": {},
        "left_out": {},
        "init_sha256": sha256(config.init),
        "cores": len(cores()),
        "when": time.monotonic(),
        "process": os.getpid(),
    }
    Path(f"{stem}.json").write_text(json.dumps(metrics))
    return metrics
