"""Pretrained models from folders in the Hugging Face layout or from the hub, what feeds them, and
the system that they make. The mini models and the published ones go through the same functions.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ASTFeatureExtractor,
    ASTModel,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
    SiglipVisionModel,
    VideoMAEImageProcessor,
    VideoMAEModel,
    VivitImageProcessor,
    VivitModel,
    WhisperFeatureExtractor,
    WhisperModel,
)

from modules.foundation_model import FoundationModel, misread
from modules.frame_encoder import FrameEncoder
from modules.system import System
from modules.token_transmitter import Windows
from utils.data.media import Reader, audio_input, video_input, whisper_input
from utils.files import shipped
from utils.hub import fetch, is_hub_id

KEPT = ("repo_id", "commit")  # of what the download records


class ModelError(ValueError):
    """A model folder that cannot be used, in one line: the folder, what is wrong, what to do."""

    def __init__(self, folder: str | Path, wrong: str):
        super().__init__(f"{folder}: {wrong}; {AGAIN}")


AGAIN = (
    "fetch the published models by `python utils/hf-download.py` or name them as the hub does "
    "(Qwen/Qwen2.5-1.5B), make the mini ones by `python -m utils.mini.pretrain`"
)
# The hyperparameters that name a model: a folder, or OWNER/NAME or OWNER/NAME@REVISION of the hub.
MODELS = ("visual_encoder", "audio_encoder", "foundation_model")


def check_folder(folder: str | Path) -> Path:
    """The folder if a model stands in it, and that of a model of the hub, which is fetched if it is
    not in the cache; FileNotFoundError, in one line, if there is none."""
    folder = fetch(str(folder)) if is_hub_id(folder) else shipped(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder}: no config.json with *.safetensors there; {AGAIN}")
    return folder


def revision(folder: str | Path) -> dict:
    """Where a model came from, as recorded beside it by the download; {} if nothing is."""
    if is_hub_id(folder):
        return {"repo_id": str(folder).partition("@")[0], "commit": fetch(str(folder)).name}
    record = Path(folder) / "revision.json"
    if not record.is_file():
        return {}
    try:
        return {k: v for k, v in json.loads(record.read_text()).items() if k in KEPT}
    except (ValueError, AttributeError):
        raise ModelError(record, "not what the download writes there") from None


def load(kind: type, folder: Path, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder, which never runs or offers to run code that lies there.

    Raises:
        ModelError: whatever is wrong with the folder's files.
    """
    try:
        return kind.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # the libraries below raise many kinds on a damaged file
        reason = " ".join(str(error).split())[:160]
        raise ModelError(folder, f"cannot be read by {kind.__name__} ({reason})") from None


def load_weights(kind: type, folder: Path, **options: Any) -> nn.Module:
    """A model from safetensors alone; ModelError too where a weight is missing or of another
    shape, which would be drawn at random."""
    model, found = load(
        kind,
        folder,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # which are named below
        output_loading_info=True,
        **options,
    )
    unfit = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if unfit:
        raise ModelError(
            folder,
            f"holds no fitting weight for {unfit[0]!r} of {kind.__name__} "
            f"({len(unfit)} in all): it is another model, or its config.json of another",
        )
    return model


def load_language_model(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The causal language model and its tokenizer; its end-of-text token also pads.

    Raises:
        FileNotFoundError, ModelError: in a line, for a folder without one, or with one that reads
            embeddings otherwise than this system takes for granted.
    """
    folder = check_folder(folder)
    config = load(AutoConfig, folder)
    if config.is_encoder_decoder or config.get_text_config() is not config:
        raise ModelError(folder, f"a {config.model_type} is not a causal language model alone")
    model = load_weights(AutoModelForCausalLM, folder, dtype=dtype, attn_implementation="sdpa")
    check_causal(model, folder)
    tokenizer = load(AutoTokenizer, folder)
    ids = tokenizer("What is it?")["input_ids"]
    if not ids or tokenizer.eos_token_id is None or max(ids) >= model.config.vocab_size:
        raise ModelError(folder, "its tokenizer's files are missing or another model's")
    tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def check_causal(model: nn.Module, folder: Path) -> None:
    """ModelError for a language model in which two questions of a sequence would not get the
    answers that they get alone: one with bidirectional attention, say, or without masks."""
    try:
        by = misread(FoundationModel(model))
    except Exception as error:  # of a class that takes other arguments
        by = " ".join(str(error).split())[:160]
    rounding = max(1e-4, 16 * torch.finfo(model.dtype).eps)
    if isinstance(by, str) or not by <= rounding:
        how = by if isinstance(by, str) else f"its scores are off by {by:.2g}"
        raise ModelError(
            folder,
            f"{type(model).__name__} is no causal language model that reads embeddings under the "
            f"masks that it is given ({how})",
        )


@dataclass(frozen=True)
class Encoder:
    """How encoders of one architecture are loaded and fed."""

    kind: str  # of media that it reads: visual or audio
    model: type
    processor: type
    special: int  # tokens that it puts in front of its patch tokens
    # processor, configuration, media -> (rows, ...), and what of it is the clip
    read: Callable[[Any, Any, Path], tuple[Tensor, Windows | None]]
    options: dict[str, Any]  # for loading the model
    # What encodes a clip: the model itself, which `eval` returns, a part of it, or what uses it.
    part: Callable[[nn.Module], nn.Module] = nn.Module.eval


def of_frames(model: type, processor: type, special: int) -> Encoder:
    """An encoder of pictures, which reads a clip frame by frame."""
    part = partial(FrameEncoder, special=special)
    return Encoder("visual", model, processor, special, video_input, {}, part)


# By the `model_type` of a folder's config.json. Another architecture is one more entry, and one in
# `GRIDS` (modules/token_transmitter.py), under the `model_type` of what encodes.
ENCODERS = {
    "vivit": Encoder(
        "visual", VivitModel, VivitImageProcessor, 1, video_input, {"add_pooling_layer": False}
    ),
    "videomae": Encoder("visual", VideoMAEModel, VideoMAEImageProcessor, 0, video_input, {}),
    # Under the first name with their encoder of text, as published.
    "clip": of_frames(CLIPVisionModel, CLIPImageProcessor, 1),
    "clip_vision_model": of_frames(CLIPVisionModel, CLIPImageProcessor, 1),
    "siglip": of_frames(SiglipVisionModel, SiglipImageProcessor, 0),
    "siglip_vision_model": of_frames(SiglipVisionModel, SiglipImageProcessor, 0),
    "audio-spectrogram-transformer": Encoder(
        "audio", ASTModel, ASTFeatureExtractor, 2, audio_input, {}
    ),
    "whisper": Encoder(
        "audio", WhisperModel, WhisperFeatureExtractor, 0, whisper_input, {}, attrgetter("encoder")
    ),
}


def encoder_of(folder: str | Path, kind: str) -> Encoder:
    """How the encoder in a folder is loaded and fed.

    Args:
        kind: of media that it must read, `visual` or `audio`.

    Raises:
        FileNotFoundError, ModelError: in a line, for a folder without such an encoder.
    """
    name = load(AutoConfig, check_folder(folder)).model_type
    if name not in ENCODERS or ENCODERS[name].kind != kind:
        known = ", ".join(name for name, encoder in ENCODERS.items() if encoder.kind == kind)
        raise ModelError(
            folder, f"its model_type is {name}, which is no {kind} encoder's ({known})"
        )
    return ENCODERS[name]


def special_tokens(config: Any) -> dict[str, int]:
    """How many special tokens the `visual` and the `audio` encoder put before their patches."""
    return {
        kind: encoder_of(getattr(config, f"{kind}_encoder"), kind).special
        for kind in ("visual", "audio")
    }


def load_encoder(folder: str | Path, kind: str) -> tuple[nn.Module, Reader]:
    """A frozen encoder of `visual` or `audio` media, and what reads media for it; errors as for
    `encoder_of`."""
    entry, folder = encoder_of(folder, kind), check_folder(folder)
    model = entry.part(load_weights(entry.model, folder, **entry.options))
    processor = load(entry.processor, folder)
    return model, Reader(entry.kind, entry.read, processor, model.config)


@dataclass(frozen=True)
class Processors:
    """What turns media and text into what the system reads."""

    readers: dict[str, Reader]  # by `visual` and `audio`
    tokenizer: PreTrainedTokenizerBase


def build_system(config: Any) -> tuple[System, Processors]:
    """Load the frozen models and make the trained parts, initialised from `config.seed`."""
    for name in sorted((getattr(config, field) for field in MODELS), key=is_hub_id):
        check_folder(name)  # those of this machine before any is fetched
    torch.manual_seed(config.seed)
    special, encoders, readers = special_tokens(config), {}, {}
    for kind in special:
        model, reader = load_encoder(getattr(config, f"{kind}_encoder"), kind)
        encoders[kind], readers[kind] = (model, special[kind]), replace(reader, media=config.media)
    dtype = getattr(torch, config.dtype)
    language_model, tokenizer = load_language_model(config.foundation_model, dtype)
    start = tokenizer("")["input_ids"]  # what its texts begin with, if anything
    return System(config, encoders, language_model, start), Processors(readers, tokenizer)


def model_fingerprint(folder: str | Path) -> str:
    """A hash of a model folder's weights and configuration: names, sizes and contents."""
    files = [
        (path, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(check_folder(folder).iterdir())
        if path.suffix in (".json", ".safetensors") and path.name != "revision.json"
    ]
    return _contents(tuple(files))


@cache
def _contents(files: tuple[tuple[Path, int, int], ...]) -> str:
    """A hash of files of these sizes and times, which are read once as long as they stay so."""
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{path.name}:{size}:".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def models_used(config: Any) -> dict[str, dict]:
    """Which the frozen models are: folders, hashes of what lies there, and repository and commit
    where recorded."""
    folders = {name: getattr(config, name) for name in MODELS}
    return {
        name: {"path": str(path), "sha256": model_fingerprint(path), **revision(path)}
        for name, path in folders.items()
    }


def fingerprints(models: dict[str, dict]) -> dict[str, str]:
    """Of `models_used`, what does not depend on where they lie."""
    return {name: model["sha256"] for name, model in models.items()}
