"""The models that answer: trained where they are missing, each with its link's channel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules.channel import Channel
from modules.digital.quantised import QUANTISED, Quantised
from utils.checkpoints import load_parts, require, sha256
from utils.data.datasets import read_music_avqa
from utils.data.encoding import load_clips
from utils.network.answers import Answers
from utils.network.codebooks import codebooks
from utils.runs import Run, run_all
from utils.training.identity import code_version
from utils.training.processes import start


def trained(config: Any, stages: list[dict[str, Any]], build: Callable) -> list[dict]:
    """What asks the questions of a split, by seed, link and split.

    Args:
        config: of task_network.py.
        stages: of each seed the stage 2 configuration of each link.
        build: a stage 2 configuration -> model and processors.
    """
    every = [stage for of in stages for stage in of.values()]
    require(config.init, f"python task_align.py --preset {config.preset}")
    accelerator = start(every[0])
    if accelerator.num_processes > 1:
        raise ValueError("task_network.py runs in one process: start it with python")
    model, processors = build(every[0])
    # Loaded first: runs that train beside each other find data and cache made.
    data = load_clips(every[0], read_music_avqa, model.system, processors.readers, accelerator)
    run_all([Run("task_avqa", stage) for stage in every], label="models")

    def ask(stage: Any) -> dict[str, Answers]:
        model, _ = build(stage)
        weights = Path(stage.out) / f"{stage.name}.pth"
        load_parts(weights, model.system.transceivers, model.system.lora)
        model.system.release_encoders()
        model = model.to(accelerator.device).eval()
        kept = Path(config.out) / f"{config.name}-asked"
        version = f"{sha256(weights)} {code_version(Path(__file__).resolve())}"
        if stage.channel == QUANTISED:
            books = codebooks(model, data, processors.tokenizer, config, kept, version)
            model.system.channel = Quantised(books)
        else:
            model.system.channel = Channel(config.channel, config.rician_k)
        splits = ("val", "test")
        return {s: Answers(model, data, processors.tokenizer, s, kept, version) for s in splits}

    return [{link: ask(stage) for link, stage in of.items()} for of in stages]
