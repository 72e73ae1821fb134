"""Pickled weights (pytorch_model.bin) as safetensors, without running code that lies in them."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from utils.checkpoints import what_is_wrong
from utils.files import whole, write_whole


def as_safetensors(source: Path, target: Path) -> list[str]:
    """Write the weights of every pytorch_model*.bin in one folder as safetensors into another, the
    index of several as well; the names of what was written.

    Raises:
        ValueError: in one line, for a file that holds anything but named tensors, or a number that
            is not finite.
    """
    written = []
    for path in sorted(source.glob("pytorch_model*.bin")):
        name = plain_name(path.name)
        weights = read_pickled(path)
        with whole(target / name) as partial:
            save_file(weights, partial, metadata={"format": "pt"})
        written.append(name)
    for path in source.glob("pytorch_model*.bin.index.json"):
        write_whole(target / plain_name(path.name), plain_name(path.read_text()))
        written.append(plain_name(path.name))
    return written


def plain_name(text: str) -> str:
    """The text with the names that safetensors have by convention in place of pickles'."""
    return text.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """The weights by name, each in memory of its own, as tied ones are not; ValueError as above."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise ValueError(f"{path.name}: no readable weights ({what_is_wrong(error)})") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path.name}: holds no named weights")
    for name, weight in content.items():
        plain = isinstance(weight, torch.Tensor) and weight.layout is torch.strided
        if not isinstance(name, str) or not plain:
            raise ValueError(f"{path.name}: {str(name)[:80]!r} is no plain tensor")
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(f"{path.name}: {name!r} holds numbers that are not finite")
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in content.items()}
