"""Models, clips and a watch on the device that several tests share; not a test itself."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    VivitConfig,
    VivitImageProcessor,
    VivitModel,
)

from modules.foundation_model import FoundationModel
from modules.token_receiver import TokenReceiver
from modules.token_transmitter import TokenTransmitter, Windows
from utils.data.datasets import frames_path, wav_path

RATE, WINDOW = 16_000, 48  # Hz, frames of 10 ms that the encoder reads at once
PATCHES = 8  # of both encoders
SIZES = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    initializer_range=0.2,
)


def tiny_vivit(**sizes) -> VivitModel:
    config = VivitConfig(
        image_size=32, num_frames=4, tubelet_size=[2, 16, 16], **{**SIZES, **sizes}
    )
    return VivitModel(config, add_pooling_layer=False)


def tiny_ast(**sizes) -> ASTModel:
    return ASTModel(ASTConfig(num_mel_bins=32, max_length=WINDOW, **{**SIZES, **sizes}))


def windows(*counts: int) -> list[Windows]:
    """Of clips that fill so many windows of `tiny_ast`, without padding."""
    return [Windows(torch.full((n,), WINDOW), torch.arange(n * PATCHES)) for n in counts]


def tiny_qwen2(**sizes) -> Qwen2ForCausalLM:
    options = {**SIZES, "vocab_size": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}
    return Qwen2ForCausalLM(Qwen2Config(**{**options, **sizes}))


def tiny_parts(hidden: int = 16, seed: int = 0) -> dict[str, nn.Module]:
    """Transmitter and receivers as a checkpoint holds them, over an encoder of width 24."""
    torch.manual_seed(seed)
    return {
        "img_tx": TokenTransmitter(tiny_vivit(hidden_size=24), 1, hidden, 4),
        "text_receiver": TokenReceiver(hidden, 20),
        "img_receiver": TokenReceiver(hidden, 20, 1e-2),
    }


def tiny_lora(
    rank: int = 4, seed: int = 0, hidden: int = 16, targets: tuple[str, ...] = ("q_proj", "v_proj")
) -> nn.Module:
    """A language model of two layers, always the same, with LoRA weights that are not zero."""
    torch.manual_seed(1)
    foundation = FoundationModel(tiny_qwen2(hidden_size=hidden, num_hidden_layers=2))
    foundation.add_lora(rank, 16, 0.1, list(targets))
    torch.manual_seed(seed)
    for weight in foundation.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight)
    return foundation.language_model


def save_models(root: Path) -> Path:
    """Folders `visual` and `audio` of tiny encoders in the published layout."""
    torch.manual_seed(0)
    tiny_vivit().save_pretrained(root / "visual")
    side = {"height": 32, "width": 32}
    VivitImageProcessor(size=side, crop_size=side).save_pretrained(root / "visual")
    tiny_ast().save_pretrained(root / "audio")
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=WINDOW)
    extractor.save_pretrained(root / "audio")
    return root


def write_clip(root: Path, name: str, seconds: float, seed: int) -> None:
    """A few frames and a sound, as the preprocessing writes them."""
    rng = np.random.default_rng(seed)
    folder, wav = frames_path(root, name), wav_path(root, name)
    folder.mkdir(parents=True, exist_ok=True)
    wav.parent.mkdir(parents=True, exist_ok=True)
    for i in range(3 + seed % 3):
        frame = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(frame).save(folder / f"frame_{i + 1:04}.png")
    soundfile.write(wav, rng.normal(scale=0.1, size=round(seconds * RATE)), RATE)


aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique2,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class NoHostSync(TorchDispatchMode):
    """Fails where the host would have to wait until an accelerator has a tensor's values, or where
    values move between devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operation = func.overloadpacket
        assert operation not in WAITING, f"{func} waits for values"
        if operation in INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} by a mask"
        if operation in (aten._to_copy, aten.copy_):
            other = args[1].device if operation is aten.copy_ else kwargs.get("device")
            assert other in (None, args[0].device), f"{func} from {args[0].device} and {other}"
        return func(*args, **kwargs)


class NoHostData(TorchFunctionMode):
    """Fails where numbers of the host are copied to an accelerator, for which the host waits."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            device = kwargs.get("device")
            assert device is None or torch.device(device).type == "cpu", f"{func.__name__}{args}"
        return func(*args, **kwargs)
