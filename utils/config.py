"""Hyperparameters: what both stages share, a flag for each field, and which values are refused."""

import inspect
import json
import math
import re
import sys
import threading
import warnings
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections import ChainMap
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NoReturn

import torch
from torch import distributed as dist
from transformers import HfArgumentParser
from transformers.utils import logging

from modules.channel import CHANNELS
from modules.digital.quantised import QUANTISED
from modules.system import CONTRASTS, MEDIA
from modules.token_compression import COMPRESSIONS
from modules.token_receiver import RECEIVERS, TEXT_RECEIVERS


def values(*items: Any) -> Any:
    """A list as the default of a dataclass field."""
    return field(default_factory=lambda: list(items))


@dataclass
class StageConfig:
    """What both stages share, in the mini preset; the paper's value in each comment."""

    preset: str = "mini"  # mini, paper or published
    name: str = ""  # of the run's files in checkpoint/; empty: by stage and preset

    # Frozen models: folders, or OWNER/NAME or OWNER/NAME@REVISION of the Hugging Face hub
    visual_encoder: str = "checkpoint/mini/vivit"  # paper: google/vivit-b-16x2
    audio_encoder: str = "checkpoint/mini/ast"  # paper: MIT/ast-finetuned-audioset-10-10-0.4593
    foundation_model: str = "checkpoint/mini/qwen2"  # paper: Qwen/Qwen2.5-1.5B
    dtype: str = "float32"  # of the frozen foundation model; paper preset: bfloat16
    media: str = "extraction"  # in DATA, what is encoded: the preprocessing's folders, or videos
    cache: str = "datasets/cache"  # encoder tokens, computed once; on a scratch disk, or none
    cache_shard: int = 1  # clips that share a file of the cache; paper preset: 256
    encode_batch: int = 64  # clips an encoder call; paper preset: 16
    workers: int = 2  # processes that decode media; paper preset: 8
    threads: int = 1  # of each process on a CPU; 0: all its cores; paper preset: 0

    # Tokens
    compression: str = "grid"  # paper: sliding_window
    visual_tokens: int = 16  # after compression, besides the class token; paper: 128
    audio_tokens: int = 16  # after compression, besides class and distillation; paper: 128

    # Channel and receiver
    channel: str = "awgn"  # quantised: SNRs are then bits an entry, 0 to 8; paper: awgn
    snr_range: list[float] = values()  # dB, lowest and highest: each training clip draws its own
    receiver: str = "residual"  # of picture and sound; paper: mlp
    text_receiver: str = "detect"  # the most likely word, untrained; paper: mlp
    receiver_width: int = 512  # hidden units of a receiver; paper: 1024

    # Optimisation
    accumulate: int = 1  # batches a step
    warm_up: int = 0  # steps in which learning rates rise, at most half of all; paper: 0
    lr_min: float = 1e-6  # end of the cosine; paper: 1e-6
    validate_every: int = 100  # steps

    # Output folders, and states of training to go on from
    out: str = "checkpoint"  # folder of checkpoints and metrics
    figures: str = "imgs"  # folder of figures, or none
    resume: bool = False  # go on where a run of this name was stopped
    save_every: int = 50  # steps between two states; each is also saved when told to stop
    keep: int = 2  # of the last states


# The values of the paper preset that both stages share.
PAPER = dict(
    preset="paper",
    visual_encoder="models/vivit-b-16x2",
    audio_encoder="models/ast-finetuned-audioset-10-10-0.4593",
    foundation_model="models/Qwen2.5-1.5B",
    dtype="bfloat16",
    cache_shard=256,
    encode_batch=16,
    workers=8,
    threads=0,
    visual_tokens=128,
    audio_tokens=128,
    receiver_width=1024,
)

# Where the published recipe differs from the paper preset, which keeps to the paper's sizes and has
# what works better.
PUBLISHED = dict(
    preset="published",
    compression="sliding_window",
    receiver="mlp",
    text_receiver="mlp",
    warm_up=0,
    clip=0.0,
)

# The names that a field may have; `--help` lists them.
CHOICES = {
    "preset": ("mini", "paper", "published"),
    "media": ("extraction", "videos"),
    "dtype": ("float32", "bfloat16", "float16"),
    "compression": COMPRESSIONS,
    "channel": ChainMap({QUANTISED: None}, CHANNELS),  # also of a channel that is added later
    "contrast": CONTRASTS,
    "receiver": RECEIVERS,
    "text_receiver": TEXT_RECEIVERS,
}
COUNTS = (  # 1 or more
    *("batch", "accumulate", "steps", "validate_every", "save_every", "keep", "encode_batch"),
    "cache_shard",
    *("visual_tokens", "audio_tokens", "caption_tokens", "receiver_width", "mini_clips"),
    *("answer_tokens", "test_batch", "token_lengths", "packed"),
)
NOT_NEGATIVE = (
    *("workers", "threads", "clip", "lr_min", "warm_up", "lora_rank", "lora_dropout", "lora_lr"),
    *("contrastive_weight", "reconstruction_weight", "caption_weight"),
)
POSITIVE = ("lr", "temperature", "lora_alpha")


def check(config: Any) -> None:
    """ValueError, in one line, for a hyperparameter that no run can use."""
    for name, value in vars(config).items():
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, float) and (math.isnan(v) or v == -math.inf):
                raise ValueError(f"--{name} {v}: must be a number")
            if name in COUNTS and v < 1:
                raise ValueError(f"--{name} {v}: must be 1 or more")
            if name in NOT_NEGATIVE and v < 0:
                raise ValueError(f"--{name} {v}: must be 0 or more")
            if name in POSITIVE and v <= 0:
                raise ValueError(f"--{name} {v}: must be above 0")
            if name == "seed" and not 0 <= v < 2**31:  # what all libraries take, and room to count
                raise ValueError(f"--seed {v}: must be from 0 to {2**31 - 1}")
            if name in CHOICES and v not in CHOICES[name]:
                raise ValueError(f"--{name} {v}: unknown, choose from {', '.join(CHOICES[name])}")
    for pair in getattr(config, "test_lengths", []):
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", pair):
            raise ValueError(f"--test_lengths {pair}: give visual by audio tokens, as 16x4")
        for kind, count in zip(MEDIA, pair.split("x"), strict=True):
            if int(count) > (most := getattr(config, f"{kind}_tokens")):
                raise ValueError(f"--test_lengths {pair}: the run has {most} {kind} tokens")
    asked = getattr(config, "modalities", ["none"])
    if asked != ["none"] and (not asked or not set(asked) <= {*MEDIA}):
        named = " ".join(asked) or "(empty)"
        raise ValueError(f"--modalities {named}: choose from {', '.join(MEDIA)}, or none alone")


def plain(config: Any) -> dict:
    """A config as JSON can hold it, which knows no infinite number: that is the text "Infinity"."""
    return json.loads(json.dumps(vars(config), default=str), parse_constant=str)


def of_plain(presets: dict[str, Any], values: dict) -> Any:
    """The config that `plain` made these values of. A field that was not there then is its preset's
    now, and one that is gone is left out."""
    values = json.loads(json.dumps(values).replace('"Infinity"', "Infinity"))
    preset = presets[values["preset"]]
    return replace(preset, **{f.name: values[f.name] for f in fields(preset) if f.name in values})


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows the lines of the script's docstring as they are, and each flag's default."""


def comments(kind: type) -> dict[str, str]:
    """What stands behind each field of a dataclass and of those that it builds on."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        found |= re.findall(r"^    (\w+): .*?# (.+)$", inspect.getsource(base), re.M)
    return found


def parse_config(presets: dict[str, Any], default: str, doc: str | None) -> Any:
    """The chosen preset (`--preset`, else `default`) with the fields given as flags replaced.

    Ends the program in one line, with status 2, for an unknown preset, field or value.
    """
    kind = type(presets[default])
    parser = HfArgumentParser(
        kind, description=doc, usage="%(prog)s [flags]", formatter_class=HelpFormatter
    )
    parser.error = lambda message: fail(message, status=2)
    said = comments(kind)
    for action in parser._actions:
        if action.dest in said:
            choices = presets if action.dest == "preset" else CHOICES.get(action.dest)
            text = said[action.dest] + (f"; one of {', '.join(choices)}" if choices else "")
            action.help = text.replace("%", "%%")
    parser.set_defaults(preset=default)
    chosen = parser.parse_known_args()[0].preset
    if chosen not in presets:
        fail(f"--preset {chosen}: unknown, choose from {', '.join(presets)}", status=2)
    parser.set_defaults(**asdict(presets[chosen]))
    config, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        fail(f"{unknown[0]}: no such field; see --help", status=2)
    return config


class Stopped(Exception):
    """A signal asked the run to stop, and what it did is saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.status = 128 + number


def fail(message: object, status: int = 1) -> NoReturn:
    """End the program with one line on stderr."""
    print(f"{sys.argv[0]}: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(status)


def told(error: Exception) -> str:
    """An error's message; of one in a loader's process, which brings its whole traceback along, the
    last line."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else text


def quieten() -> None:
    """No messages about which a user can do nothing."""
    logging.disable_progress_bar()  # of loading weights, which takes no time worth a bar
    logging.set_verbosity_error()  # weights that no part reads; what is wrong is raised
    # peft asks transformers by a name that is going.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    # TensorBoard writes in a thread, whose full disk is raised again by the next value to write.
    told = threading.excepthook
    threading.excepthook = lambda e: None if issubclass(e.exc_type, OSError) else told(e)


def run_script(main: Callable, presets: dict[str, Any], default: str, doc: str | None) -> None:
    """Run a task script by its flags."""
    run(main, parse_config(presets, default, doc))


def run(main: Callable, config: Any) -> None:
    """Call `main(config)`; what a user can cause ends in one line instead of a traceback."""
    quieten()
    try:
        main(config)
    except (FileNotFoundError, ValueError) as error:  # of data, media and checkpoints as well
        fail(told(error))
    except OSError as error:  # a full disk, a folder that may not be written
        if error.strerror is None:  # it says all in its message
            fail(told(error))
        where = f"{error.filename or 'output'}: {error.strerror}"
        fail(f"{where}; make room there or name another folder, then run again")
    except torch.OutOfMemoryError as error:
        said = str(error).split(". ")[0]
        fail(f"{said}; run again with a smaller --batch, --test_batch or --encode_batch")
    except RuntimeError as error:
        killed = isinstance(error, BrokenProcessPool) or str(error).startswith("DataLoader worker")
        if not killed:
            raise
        wrong = "a process that makes or reads media was killed, for lack of memory perhaps"
        fail(f"{wrong}; run again, with fewer --workers or a smaller --encode_batch")
    except Stopped as stop:
        fail(stop, stop.status)
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
