"""Checkpoints: the trained parts of the system in one file that loads with weights_only=True."""

import hashlib
import io
from pathlib import Path

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from utils.files import write_whole


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in one line: the file, what is wrong, what to do."""


def whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight on the host, put together from its shards (FSDP) if there are any."""
    return (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).cpu()


def trained_state(module: nn.Module) -> dict:
    """The weights of a transmitter or receiver without its frozen encoder."""
    state = module.state_dict()
    return {k: whole(v) for k, v in state.items() if not k.startswith("encoder.")}


def save_checkpoint(
    path: Path,
    parts: dict[str, nn.Module],
    lora: nn.Module | None,
    about: dict,
    writes: bool = True,
) -> None:
    """Write the parts by name, the LoRA weights of `lora` if given, and plain facts about them.

    Every process must call this, as weights may be spread over them; one of them `writes`.
    """
    content = {name: trained_state(part) for name, part in parts.items()}
    if lora is not None:
        content["lora"] = {k: whole(v) for k, v in get_peft_model_state_dict(lora).items()}
    if not writes:
        return
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
    except Exception as error:  # torch.load raises many kinds on a damaged file
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no parts; make it with task_align.py")
    return content


def weights_of(content: dict, name: str, path: str | Path) -> dict:
    """A part's weights without those of an encoder; CheckpointError if it holds anything else."""
    part = content[name]
    if not isinstance(part, dict) or not all(isinstance(v, torch.Tensor) for v in part.values()):
        raise CheckpointError(f"{path}: {name} holds no weights; make it with task_align.py")
    return {k: v for k, v in part.items() if not k.startswith("encoder.")}


def check_weights(saved: dict, wanted: dict, where: str) -> None:
    """CheckpointError, beginning with `where`, if keys or shapes differ."""
    for key in sorted(wanted.keys() ^ saved.keys()):
        raise CheckpointError(f"{where} and this model differ in the key {key!r}")
    for key, value in saved.items():
        if value.shape != wanted[key].shape:
            raise CheckpointError(
                f"{where}.{key} is {tuple(value.shape)}, this model wants "
                f"{tuple(wanted[key].shape)}; use the preset that made it"
            )


def load_parts(path: str | Path, parts: dict[str, nn.Module], lora: nn.Module | None = None):
    """Fill the parts, and `lora` if given, from a checkpoint. Encoder weights in it are ignored.

    Raises:
        CheckpointError: naming the part whose keys or shapes differ.
    """
    content = load_checkpoint(path)
    for name, part in parts.items():
        if name not in content:
            raise CheckpointError(f"{path}: has no {name}; make it with task_align.py")
        saved = weights_of(content, name, path)
        check_weights(saved, trained_state(part), f"{path}: {name}")
        part.load_state_dict(saved, strict=False)
    if lora is not None:
        if "lora" not in content:
            raise CheckpointError(f"{path}: has no lora; make it with task_avqa.py")
        saved = weights_of(content, "lora", path)
        check_weights(saved, get_peft_model_state_dict(lora), f"{path}: lora")
        set_peft_model_state_dict(lora, saved)
    return content.get("about", {})


def require(path: str | Path, command: str) -> None:
    """FileNotFoundError naming the command that makes the checkpoint, if it is missing."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; run `{command}` first")


def sha256(path: str | Path) -> str | None:
    """A file's hash; None if there is no such file."""
    path = Path(path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
