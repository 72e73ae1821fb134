"""Pretraining of the mini encoders: what their tokens have to say of scenes (utils/mini/facts.py).

`utils/mini/pretrain.py` runs it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    VivitConfig,
    VivitImageProcessor,
    VivitModel,
)

from utils.data.media import audio_input, video_input
from utils.data.models import ENCODERS
from utils.mini.facts import (
    BANDS,
    HEARD,
    SEEN,
    heard_at_all,
    heard_by_patch,
    seen_at_all,
    seen_by_patch,
)
from utils.mini.optimiser import Optimiser
from utils.mini.scenes import DURATION, Scene
from utils.mini.sounds import SAMPLE_RATE
from utils.mini.world import FRAME_SIZE, FRAMES

WIDTH = 96
SIZES = dict(
    hidden_size=WIDTH,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=4 * WIDTH,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.0,
)
MELS, TIME = 64, int((DURATION - 0.025) * 100) + 1  # mel bands, frames of 10 ms


class Teller(nn.Module):
    """An encoder whose tokens are read by one linear layer: the facts that each of them states.

    Linear and trained by squared error, so that an average of tokens states the average facts.
    """

    def __init__(self, encoder: nn.Module, facts: int):
        super().__init__()
        self.encoder, self.read = encoder, nn.Linear(encoder.config.hidden_size, facts)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, tokens, facts)."""
        return self.read(self.encoder(inputs).last_hidden_state)


def told_well(told: Tensor, facts: Tensor) -> Tensor:
    """The share of each fact's variance that is told, (facts,)."""
    error = (told - facts).square().mean(dim=(0, 1))
    return 1 - error / facts.var(dim=(0, 1)).clamp(min=1e-4)


def train_teller(
    encoder: nn.Module,
    inputs: Tensor,
    facts: Tensor,
    words: Sequence[str],
    epochs: int,
    augment: Callable[[Tensor], Tensor],
    to_float: Callable[[Tensor], Tensor] = lambda x: x,
    lr: float = 2e-3,
) -> dict[str, float]:
    """Train on all clips but the last tenth; returns how well each word is told of those.

    Args:
        inputs: (clips, ...), as the encoder reads them after `to_float`.
        facts: (clips, tokens, facts), special tokens first.
    """
    held, special = len(inputs) // 10, ENCODERS[encoder.config.model_type].special
    teller = Teller(encoder, facts.shape[2]).train()
    # A fact weighs by how rarely it varies, the special tokens as much as all patches together.
    variance = facts.float().var(dim=(0, 1)).clamp(min=1e-3)
    shown = len(inputs) - held
    steps, each = epochs * (shown // 64), shown // 64  # in all, and an epoch
    optimiser = Optimiser(teller, encoder.layers, lr, steps, decay=0.05)
    bar = tqdm(range(steps), type(encoder).__name__, mininterval=10)
    for step in bar:
        if step % each == 0:
            batches = torch.randperm(shown).split(64)
        batch = batches[step % each]
        told = teller(augment(to_float(inputs[batch])))
        error = (told - facts[batch].float()).square() / variance
        loss = error.mean() + 0.2 * error[:, :special].mean()
        optimiser.step(loss)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    teller.eval()
    with torch.inference_mode():
        told = torch.cat([teller(to_float(part)) for part in inputs[-held:].split(128)])
    share = told_well(told, facts[-held:].float())
    return {word: round(v.item(), 3) for word, v in zip(words, share, strict=True)}


def seen_facts(scene: Scene) -> np.ndarray:
    """(1 + patches, facts), float16, in the order of ViViT's tokens."""
    patches = seen_by_patch(scene).reshape(-1, len(SEEN))
    return np.concatenate([seen_at_all(scene)[None], patches]).astype(np.float16)


def heard_facts(scene: Scene) -> np.ndarray:
    """(2 + patches, facts), float16, in the order of AST's tokens: frequency before time."""
    patches = np.tile(heard_by_patch(scene), (BANDS, 1))
    return np.concatenate([np.tile(heard_at_all(scene), (2, 1)), patches]).astype(np.float16)


def pretrain_ast(extraction: Path, clips: dict[str, Scene], epochs: int, out: Path) -> dict:
    """Train the audio encoder; the extractor's mean and deviation are those of the clips."""
    config = ASTConfig(num_mel_bins=MELS, max_length=TIME, **SIZES)
    extractor = partial(
        ASTFeatureExtractor, sampling_rate=SAMPLE_RATE, num_mel_bins=MELS, max_length=TIME
    )
    plain = extractor(do_normalize=False)
    wavs = [extraction / "ast_audio" / f"{name}.wav" for name in clips]
    raw = torch.cat([audio_input(plain, config, w)[0][:1] for w in tqdm(wavs, "spectrograms")])
    mean, std = raw.mean().item(), raw.std().item()
    model = ASTModel(config)

    def augment(x: Tensor) -> Tensor:  # (batch, time, mel): loudness, noise, a masked band
        x = x + torch.randn(len(x), 1, 1) * 0.1 + torch.randn_like(x) * 0.05
        start = torch.randint(0, MELS - 6, (1,)).item()
        x[:, :, start : start + torch.randint(1, 7, (1,)).item()] = 0
        return x

    facts = torch.from_numpy(np.stack([heard_facts(s) for s in clips.values()]))
    told = train_teller(model, (raw - mean) / (2 * std), facts, HEARD, epochs, augment)
    model.save_pretrained(out / "ast")
    extractor(mean=mean, std=std).save_pretrained(out / "ast")
    return told


def pretrain_vivit(extraction: Path, clips: dict[str, Scene], epochs: int, out: Path) -> dict:
    """Train the video encoder."""
    config = VivitConfig(
        image_size=FRAME_SIZE,
        num_frames=FRAMES,
        tubelet_size=[2, 16, 16],
        **SIZES,
    )
    size = {"height": FRAME_SIZE, "width": FRAME_SIZE}
    processor = VivitImageProcessor(size=size, crop_size=size, offset=True, do_normalize=False)
    folders = tqdm([extraction / "vivit_frames" / name for name in clips], "frames")
    videos = (video_input(processor, config, folder)[0][0] for folder in folders)
    frames = torch.stack([((v + 1) * 127.5).round().to(torch.uint8) for v in videos])
    model = VivitModel(config, add_pooling_layer=False)

    def augment(x: Tensor) -> Tensor:  # (batch, frames, 3, height, width): brightness and colour
        contrast, shift = (torch.randn(len(x), 1, 3, 1, 1) * 0.1 for _ in range(2))
        return x * (1 + contrast) + shift

    def to_float(x: Tensor) -> Tensor:
        return x.float() / 127.5 - 1

    facts = torch.from_numpy(np.stack([seen_facts(s) for s in clips.values()]))
    told = train_teller(model, frames, facts, SEEN, epochs, augment, to_float)
    model.save_pretrained(out / "vivit")
    processor.save_pretrained(out / "vivit")
    return told
