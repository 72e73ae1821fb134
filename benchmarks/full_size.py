"""Models of the published sizes with random weights, and clips for them: the code path of the paper
preset without a download.

Weights are random, so answers mean nothing; shapes, memory and time are those of the real ones.
"""

import json
import shutil
from itertools import count, islice
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
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

from utils.data.datasets import frames_path, wav_path

TOKENIZER = Path(__file__).resolve().parents[1] / "checkpoint" / "mini" / "qwen2"
VOCABULARY = 151_936  # of Qwen2.5

# Qwen2.5-1.5B: 1.31 G parameters in 28 layers, 233 M in the embeddings.
QWEN_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
# About 42 M parameters, 39 M of them the embeddings of the real vocabulary.
QWEN_SMALL = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def qwen(vocabulary: int = VOCABULARY, **sizes: int) -> Qwen2Config:
    """A configuration with tied embeddings, as the published small ones have."""
    return Qwen2Config(
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
        attn_implementation="sdpa",
        **sizes,
    )


def save_encoders(folder: Path, **sizes: int) -> None:
    """Folders of a ViViT-B of 89 M and an AST of 86 M parameters, in float32, but for `sizes` of
    both."""
    vivit, ast = folder / "vivit", folder / "ast"
    torch.manual_seed(0)
    VivitModel(VivitConfig(**sizes), add_pooling_layer=False).save_pretrained(vivit)
    VivitImageProcessor().save_pretrained(vivit)
    ASTModel(ASTConfig(**sizes)).save_pretrained(ast)
    ASTFeatureExtractor().save_pretrained(ast)


def save_language_model(folder: Path, dtype: torch.dtype, **sizes: int) -> None:
    """A folder of a Qwen2 of these sizes over the real vocabulary; the mini world's tokenizer."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # where 1.5 G numbers are drawn at once
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(qwen(**sizes), dtype=dtype)
    model.save_pretrained(folder)
    for file in TOKENIZER.glob("*token*"):
        shutil.copy(file, folder)


def write_clip(root: Path, video_id: str, seed: int) -> None:
    """32 frames of 224x224 and 10 s of sound at 16 kHz, as the preprocessing leaves them: moving
    gradients with noise, which cost as much to decode as filmed ones."""
    rng = np.random.default_rng(seed)
    folder, wav = frames_path(root, video_id), wav_path(root, video_id)
    folder.mkdir(parents=True, exist_ok=True)
    wav.parent.mkdir(parents=True, exist_ok=True)
    x = np.linspace(0, 2 * np.pi, 224)
    for i in range(32):
        wave = np.sin(x[None, :, None] * (1 + np.arange(3)) + 0.2 * i + x[:, None, None])
        frame = 128 + 90 * wave + rng.normal(scale=6, size=(224, 224, 3))
        Image.fromarray(frame.clip(0, 255).astype(np.uint8)).save(folder / f"frame_{i + 1:04}.png")
    soundfile.write(wav, rng.normal(scale=0.1, size=160_000), 16_000)


def caption_row(video_id: str, i: int) -> dict:
    return {"video_id": video_id, "desc": f"Clip {i}: a man plays the violin beside a drum."}


def question_row(video_id: str, i: int) -> dict:
    return {
        "video_id": video_id,
        "question_id": i,
        "type": json.dumps(["Audio", "Counting"]),
        "question_content": "How many musical instruments were heard throughout the video?",
        "templ_values": "[]",
        "question_deleted": 0,
        "anser": ("one", "two", "more than ten")[i % 3],
    }


def save_dataset(root: Path, clips: dict[str, int]) -> Path:
    """`clips` clips in each split, with a caption and a question each: VALOR and MUSIC-AVQA in one
    folder, whose cache both stages then share."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    numbers = count()
    for split, many in clips.items():
        named = [(f"{i:08}", i) for i in islice(numbers, many)]
        for video_id, i in named:
            write_clip(root, video_id, i)
        for name, row in ((f"desc_{split}", caption_row), (f"avqa-{split}", question_row)):
            rows = [row(*each) for each in named]
            (root / "annotations" / f"{name}.json").write_text(json.dumps(rows))
    return root
