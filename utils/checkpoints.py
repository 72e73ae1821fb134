"""Checkpoints: the trained parts of the system in one file that loads with weights_only=True."""

import hashlib
import io
import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from utils.files import write_whole

# What older files have before all keys of a part: DataParallel's, and the published receivers'.
WRAPPERS = ("module.", "receiver.")


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
        file = intact(path)
        with warnings.catch_warnings():  # of what an error says
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({what_is_wrong(error)}); copy or make it again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no parts; make it with task_align.py")
    return content


def what_is_wrong(error: Exception) -> str:
    """What torch.load says, without its advice to run the code in the file."""
    said = " ".join(str(error).split())
    if isinstance(error, UnpicklingError):
        code = re.search(r"GLOBAL (\S{1,60})", said)
        return f"names the code {code[1]}, which is never run" if code else "holds no plain weights"
    return said[:120] or type(error).__name__


def intact(path: Path) -> io.BytesIO:
    """The file, after every checksum in it was found right, which torch.load does not look at.

    The archive is written anew in memory: of damaged ones torch.load and zipfile may each read
    something else. Files of torch before 1.6 are no archives and have no checksums.
    """
    content = path.read_bytes()
    if not content.startswith(b"PK"):
        return io.BytesIO(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    anew = io.BytesIO()
    with zipfile.ZipFile(anew, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    anew.seek(0)
    return anew


def weights_of(content: dict, name: str, path: str | Path) -> dict:
    """A part's weights without those of an encoder; CheckpointError if it holds anything else."""
    part = content[name]
    if isinstance(part, dict) and all(isinstance(key, str) for key in part):
        for wrapper in WRAPPERS:
            if all(key.startswith(wrapper) for key in part):
                part = {key.removeprefix(wrapper): value for key, value in part.items()}
        part = {k: v for k, v in part.items() if not k.startswith("encoder.")}
        if all(is_weight(value) for value in part.values()):
            return part
    raise CheckpointError(f"{path}: {name} holds no weights; make it with task_align.py")


def is_weight(value: object) -> bool:
    """Whether it is a plain tensor of real numbers."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )


def check_weights(saved: dict, wanted: dict, where: str) -> None:
    """CheckpointError, beginning with `where`, for other keys or shapes, or numbers not finite."""
    lacking, foreign = wanted.keys() - saved.keys(), saved.keys() - wanted.keys()
    if lacking or foreign:
        says = [f"lacks {shown(lacking)}"] if lacking else []
        says += [f"has the unknown {shown(foreign)}"] if foreign else []
        raise CheckpointError(
            f"{where} {' and '.join(says)}; it is of another model or receiver, or its keys are "
            "named otherwise (those of an encoder must begin with 'encoder.')"
        )
    for key, value in saved.items():
        if value.shape != wanted[key].shape:
            raise CheckpointError(
                f"{where}.{key} is {tuple(value.shape)}, this model wants "
                f"{tuple(wanted[key].shape)}; use the preset and models that made it"
            )
        if not value.float().isfinite().all():
            raise CheckpointError(f"{where}.{key} holds numbers that are not finite; train it anew")


def shown(keys: set[str], most: int = 2) -> str:
    """The first of the keys, and how many more there are."""
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(repr(key[:80]) for key in sorted(keys)[:most]) + rest


def said_of(content: dict, name: str) -> dict:
    """What a checkpoint says under `name` of the run that made it; nothing if it does not say."""
    about = content.get("about")
    found = about.get(name) if isinstance(about, dict) else None
    return found if isinstance(found, dict) else {}


def load_parts(
    path: str | Path,
    parts: dict[str, nn.Module],
    lora: nn.Module | None = None,
    models: dict[str, dict] | None = None,
    **shared: str,
) -> dict:
    """Fill the parts, and `lora` if given, from a checkpoint. Encoder weights in it are ignored,
    and so is what it holds of a part that has no weights.

    Args:
        models: the frozen models by name, each with its `sha256`, that the run which made the file
            must have had as well, if the file says which it had.
        shared: hyperparameters that the run which made the file must have had as well, if the file
            says which it had: `preset`, say, or `receiver`.

    Returns the facts that stand beside the weights, if there are any.

    Raises:
        CheckpointError: naming the part whose keys or shapes differ, or the hyperparameter that
            does.
    """
    content = load_checkpoint(path)
    for name, value in shared.items():
        theirs = said_of(content, "config").get(name, value)
        if isinstance(theirs, str) and theirs != value:
            raise CheckpointError(
                f"{path}: made with {name} {theirs!r}, this run has {value!r}; "
                f"give both stages the same --{name}"
            )
    made = said_of(content, "models")
    for name, model in (models or {}).items():
        if name in made and made[name]["sha256"] != model["sha256"]:
            raise CheckpointError(
                f"{path}: made with another {name}; give both stages the same --{name}"
            )
    for name, part in parts.items():
        if name not in content:
            raise CheckpointError(f"{path}: has no {name}; make it with task_align.py")
        saved, wanted = weights_of(content, name, path), trained_state(part)
        if not wanted:
            continue
        check_weights(saved, wanted, f"{path}: {name}")
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
