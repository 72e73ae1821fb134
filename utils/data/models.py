"""Loading pretrained models from a folder in the Hugging Face layout, and feeding them.

The mini models and the published ones go through the same functions.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    ASTFeatureExtractor,
    ASTModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    VivitImageProcessor,
    VivitModel,
)

from utils.data.media import MediaError, read_frames, read_wav

KEPT = ("repo_id", "commit")  # of what the download records


class ModelError(ValueError):
    """A model folder that cannot be used, in one line: the folder, what is wrong, what to do."""

    def __init__(self, folder: str | Path, wrong: str):
        super().__init__(f"{folder}: {wrong}; {AGAIN}")


AGAIN = (
    "fetch the published models by `python utils/hf-download.py`, make the mini ones by "
    "`python -m utils.mini.pretrain`"
)


def check_folder(folder: str | Path) -> Path:
    """The folder if a model stands in it; FileNotFoundError, in one line, if not."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder}: no config.json with *.safetensors there; {AGAIN}")
    return folder


def revision(folder: str | Path) -> dict:
    """Where a model came from, as recorded beside it by the download; {} if nothing is."""
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


def load_ast(folder: str | Path) -> tuple[nn.Module, ASTFeatureExtractor]:
    """The audio encoder and its feature extractor."""
    folder = check_folder(folder)
    return load_weights(ASTModel, folder), load(ASTFeatureExtractor, folder)


def load_vivit(folder: str | Path) -> tuple[nn.Module, VivitImageProcessor]:
    """The video encoder and its image processor."""
    folder = check_folder(folder)
    model = load_weights(VivitModel, folder, add_pooling_layer=False)
    return model, load(VivitImageProcessor, folder)


def load_language_model(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The causal language model and its tokenizer; its end-of-text token also pads."""
    folder = check_folder(folder)
    model = load_weights(AutoModelForCausalLM, folder, dtype=dtype, attn_implementation="sdpa")
    tokenizer = load(AutoTokenizer, folder)
    ids = tokenizer("What is it?")["input_ids"]
    if not ids or tokenizer.eos_token_id is None or max(ids) >= model.config.vocab_size:
        raise ModelError(folder, "its tokenizer's files are missing or another model's")
    tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def video_input(processor: VivitImageProcessor, folder: Path, config) -> Tensor:
    """A clip's frames as ViViT reads them: (frames, 3, height, width), float32.

    Frames are resized to the model's size whole: a centre crop would cut off the performers at
    the sides.
    """
    frames = read_frames(folder, config.num_frames)  # (frames, height, width, 3)
    side = config.image_size
    wanted = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
    out = processor(
        list(frames),
        do_resize=frames.shape[1:3] != wanted,
        size={"height": wanted[0], "width": wanted[1]},
        do_center_crop=False,
        input_data_format="channels_last",  # not guessed: a picture may be 3 pixels high
        return_tensors="np",
    )
    return torch.from_numpy(out["pixel_values"][0].astype(np.float32))


def audio_input(extractor: ASTFeatureExtractor, path: Path) -> Tensor:
    """A clip's sound as AST reads it: (windows, time, mel), float32.

    The whole clip is read as consecutive windows of the model's length (10.24 s for the published
    one), so that no sound is dropped.
    """
    rate = extractor.sampling_rate
    wave = read_wav(path, rate)
    if len(wave) < 0.025 * rate:
        raise MediaError(f"{path}: shorter than 25 ms; remove the clip")
    hop, frame = rate // 100, rate // 40  # kaldi's 10 ms hop and 25 ms frame
    step = extractor.max_length * hop
    windows = [wave[i : i + step + frame - hop] for i in range(0, len(wave) - frame + 1, step)]
    out = extractor(windows, sampling_rate=rate, return_tensors="np")
    return torch.from_numpy(np.asarray(out["input_values"], dtype=np.float32))
