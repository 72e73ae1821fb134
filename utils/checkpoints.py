"""Checkpoints: the trained parts of the system in one file that loads with weights_only=True."""

import io
import pickle
from pathlib import Path

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from utils.files import write_whole


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in one line: the file, what is wrong, what to do."""


def trained_state(module: nn.Module) -> dict:
    """The weights of a transmitter or receiver without its frozen encoder."""
    state = module.state_dict()
    return {k: v.cpu() for k, v in state.items() if not k.startswith("encoder.")}


def save_checkpoint(path: Path, parts: dict[str, nn.Module], lora: nn.Module | None, about: dict):
    """Write the parts by name, the LoRA weights of `lora` if given, and plain facts about them."""
    content = {name: trained_state(part) for name, part in parts.items()}
    if lora is not None:
        content["lora"] = {k: v.cpu() for k, v in get_peft_model_state_dict(lora).items()}
    buffer = io.BytesIO()
    torch.save({**content, "about": about}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint without running code from it.

    Raises:
        FileNotFoundError, CheckpointError: with a line that says which file and why.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no parts; make it with task_align.py")
    return content


def load_parts(path: str | Path, parts: dict[str, nn.Module], lora: nn.Module | None = None):
    """Fill the parts, and `lora` if given, from a checkpoint. Encoder weights in it are ignored.

    Raises:
        CheckpointError: naming the part whose keys or shapes differ.
    """
    content = load_checkpoint(path)
    for name, part in parts.items():
        if name not in content:
            raise CheckpointError(f"{path}: has no {name}; make it with task_align.py")
        saved = {k: v for k, v in content[name].items() if not k.startswith("encoder.")}
        wanted = trained_state(part)
        for key in wanted.keys() ^ saved.keys():
            raise CheckpointError(f"{path}: {name} and this model differ in the key {key!r}")
        for key, value in saved.items():
            if value.shape != wanted[key].shape:
                raise CheckpointError(
                    f"{path}: {name}.{key} is {tuple(value.shape)}, this model wants "
                    f"{tuple(wanted[key].shape)}; use the preset that made it"
                )
        part.load_state_dict(saved, strict=False)
    if lora is not None:
        if "lora" not in content:
            raise CheckpointError(f"{path}: has no lora; make it with task_avqa.py")
        set_peft_model_state_dict(lora, content["lora"])
    return content.get("about", {})


def require(path: str | Path, command: str) -> None:
    """FileNotFoundError naming the command that makes the checkpoint, if it is missing."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; run `{command}` first")
