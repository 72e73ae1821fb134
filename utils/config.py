"""Hyperparameters: the dataclass at the top of a script, its presets, and a flag for each field."""

import json
import math
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn

import torch
from torch import distributed as dist
from transformers import HfArgumentParser
from transformers.utils import logging


def fail(message: object, status: int = 1) -> NoReturn:
    """End the program with one line on stderr."""
    print(f"{sys.argv[0]}: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(status)


def parse_config(presets: dict[str, Any], default: str, doc: str | None) -> Any:
    """The chosen preset (`--preset`, else `default`) with the fields given as flags replaced.

    Ends the program in one line, with status 2, for an unknown preset, field or value.
    """
    parser = HfArgumentParser(type(presets[default]), description=doc, usage="%(prog)s [flags]")
    parser.error = lambda message: fail(message, status=2)
    parser.set_defaults(preset=default)
    chosen = parser.parse_known_args()[0].preset
    if chosen not in presets:
        fail(f"--preset {chosen}: unknown, choose from {', '.join(presets)}", status=2)
    parser.set_defaults(**asdict(presets[chosen]))
    config, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        fail(f"{unknown[0]}: no such field; see --help", status=2)
    return config


# The least that a field may be; those below must be above 0.
LEAST = (
    dict.fromkeys(
        (
            *(
                "batch",
                "accumulate",
                "steps",
                "validate_every",
                "save_every",
                "keep",
                "encode_batch",
            ),
            *("visual_tokens", "audio_tokens", "caption_tokens", "receiver_width", "mini_clips"),
            *("answer_tokens", "test_batch", "token_lengths"),
        ),
        1,
    )
    | dict.fromkeys(
        ("workers", "clip", "lr_min", "lora_rank", "lora_dropout", "contrastive_weight"), 0
    )
    | {"reconstruction_weight": 0}
)
POSITIVE = ("lr", "temperature", "temperatures", "lora_alpha")


def check(config: Any) -> None:
    """ValueError, in one line, for a hyperparameter that no run can use."""
    for name, value in vars(config).items():
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, float) and (math.isnan(v) or v == -math.inf):
                raise ValueError(f"--{name} {v}: must be a number")
            if name in LEAST and v < LEAST[name]:
                raise ValueError(f"--{name} {v}: must be {LEAST[name]} or more")
            if name in POSITIVE and v <= 0:
                raise ValueError(f"--{name} {v}: must be above 0")
    if not isinstance(getattr(torch, config.dtype, None), torch.dtype):
        raise ValueError(f"--dtype {config.dtype}: unknown, say float32, bfloat16 or float16")


def plain(config: Any) -> dict:
    """A config as JSON can hold it, which knows no infinite number: that is the text "Infinity"."""
    return json.loads(json.dumps(vars(config), default=str), parse_constant=str)


class Stopped(Exception):
    """A signal asked the run to stop, and what it did is saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.status = 128 + number


def quieten() -> None:
    """No messages about which a user can do nothing."""
    logging.disable_progress_bar()  # of loading weights, which takes no time worth a bar
    logging.set_verbosity_error()  # weights that no part reads; what is wrong is raised
    # peft asks transformers by a name that is going.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    # TensorBoard writes in a thread, whose full disk is raised again by the next value to write.
    told = threading.excepthook
    threading.excepthook = lambda e: None if issubclass(e.exc_type, OSError) else told(e)


def run(main: Callable, presets: dict[str, Any], default: str, doc: str | None) -> None:
    """Run a task script; what a user can cause ends in one line instead of a traceback."""
    config = parse_config(presets, default, doc)
    quieten()
    try:
        main(config)
    except (FileNotFoundError, ValueError) as error:  # of data, media and checkpoints as well
        fail(error)
    except OSError as error:  # a full disk, a folder that may not be written
        if error.strerror is None:  # it says all in its message
            fail(error)
        where = f"{error.filename or 'output'}: {error.strerror}"
        fail(f"{where}; make room there or name another folder, then run again")
    except Stopped as stop:
        fail(stop, stop.status)
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
