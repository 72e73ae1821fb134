"""Loading pretrained models from a folder in the Hugging Face layout, and feeding them.

The mini models and the published ones go through the same functions.
"""

import json
from pathlib import Path

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

from utils.media import MediaError, read_frames, read_wav


def check_folder(folder: str | Path) -> Path:
    """The folder if a model stands in it; FileNotFoundError, in one line, if not."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder}: no config.json with *.safetensors there; fetch the published models by "
            "`python utils/hf-download.py`, make the mini ones by `python -m utils.mini_pretrain`"
        )
    return folder


def revision(folder: str | Path) -> dict:
    """Where a model came from, as recorded beside it by the download; {} if nothing is."""
    record = Path(folder) / "revision.json"
    if not record.is_file():
        return {}
    return {k: v for k, v in json.loads(record.read_text()).items() if k in ("repo_id", "commit")}


def load_ast(folder: str | Path) -> tuple[nn.Module, ASTFeatureExtractor]:
    """The audio encoder and its feature extractor."""
    folder = check_folder(folder)
    model = ASTModel.from_pretrained(folder, use_safetensors=True)
    return model, ASTFeatureExtractor.from_pretrained(folder)


def load_vivit(folder: str | Path) -> tuple[nn.Module, VivitImageProcessor]:
    """The video encoder and its image processor."""
    folder = check_folder(folder)
    model = VivitModel.from_pretrained(folder, use_safetensors=True, add_pooling_layer=False)
    return model, VivitImageProcessor.from_pretrained(folder)


def load_language_model(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The causal language model and its tokenizer; its end-of-text token also pads."""
    folder = check_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, dtype=dtype, attn_implementation="sdpa"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
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
