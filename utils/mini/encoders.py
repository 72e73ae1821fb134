"""Pretraining of the mini encoders: AST names what is heard, ViViT what is seen.

`utils/mini/pretrain.py` runs it. The tags are read from the very features that the contrastive loss
reads later: what those do not state, alignment cannot reach.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
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
from utils.mini.scenes import (
    BANNERS,
    DURATION,
    INSTRUMENTS,
    PITCHES,
    PLACES,
    POSITIONS,
    TEMPOS,
    Scene,
)
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


def heard_tags(scene: Scene) -> dict[str, int | list[float]]:
    """What AST learns to name: a class index a tag, or a 0/1 vector for the sounding set."""
    names = [INSTRUMENTS.index(p.instrument) for p in scene.sounding]
    levels = [p.level for p in scene.sounding]
    return {
        "sounding": [float(i in names) for i in range(len(INSTRUMENTS))],
        "count": len(names) - 1,
        "first": names[0],
        "second_of_three": names[1] if len(names) == 3 else len(INSTRUMENTS),
        "last": names[-1],
        "loudest": names[levels.index(max(levels))],
        "softest": names[levels.index(min(levels))],
        "tempo": list(TEMPOS).index(scene.tempo),
        "pitch": list(PITCHES).index(scene.pitch),
    }


def seen_tags(scene: Scene) -> dict[str, int]:
    """What ViViT learns to name: who stands where, who moves, who moves first and last."""
    at = {p.position: p for p in scene.on_stage}
    moving = sorted((p for p in scene.on_stage if p.sounding), key=lambda p: p.start)
    tags = {
        "place": PLACES.index(scene.place),
        "banner": BANNERS.index(scene.banner),
        "players": len(at) - 1,
        "moving": len(moving),
        "tempo": list(TEMPOS).index(scene.tempo),
        "first": POSITIONS.index(moving[0].position),
        "last": POSITIONS.index(moving[-1].position),
        "first_instrument": INSTRUMENTS.index(moving[0].instrument),
        "last_instrument": INSTRUMENTS.index(moving[-1].instrument),
    }
    for position in POSITIONS:
        who = at.get(position)
        tags[f"instrument_{position}"] = 1 + INSTRUMENTS.index(who.instrument) if who else 0
        tags[f"motion_{position}"] = 1 + who.sounding if who else 0
    return tags


class Tagger(nn.Module):
    """An encoder with one linear head a tag, on the features that the contrastive loss reads."""

    def __init__(self, encoder: nn.Module, special: int, tags: dict[str, Tensor]):
        super().__init__()
        self.encoder, self.special = encoder, special
        sizes = {k: t.shape[1] if t.ndim == 2 else int(t.max()) + 1 for k, t in tags.items()}
        width = encoder.config.hidden_size
        self.heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in sizes.items()})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder(inputs).last_hidden_state
        feature = tokens[:, : self.special].mean(dim=1)
        return {k: head(feature) for k, head in self.heads.items()}


def tag_losses(scores: dict[str, Tensor], tags: dict[str, Tensor]) -> Tensor:
    return sum(
        binary_cross_entropy_with_logits(s, tags[k]) * s.shape[1] / 3
        if tags[k].ndim == 2
        else cross_entropy(s, tags[k])
        for k, s in scores.items()
    )


@torch.inference_mode()
def tag_accuracy(
    tagger: Tagger, inputs: Tensor, tags: dict[str, Tensor], to_float: Callable
) -> dict:
    """Share of held-out clips whose tag is right; for the sounding set, the whole set."""
    right: dict[str, list] = {k: [] for k in tags}
    tagger.eval()
    for part in torch.arange(len(inputs)).split(128):
        for k, s in tagger(to_float(inputs[part])).items():
            t = tags[k][part]
            ok = ((s > 0) == (t > 0.5)).all(1) if t.ndim == 2 else s.argmax(1) == t
            right[k].append(ok.float())
    return {k: round(torch.cat(v).mean().item(), 3) for k, v in right.items()}


def train_tagger(
    encoder: nn.Module,
    special: int,
    inputs: Tensor,
    tags: dict[str, Tensor],
    epochs: int,
    lr: float,
    augment: Callable[[Tensor], Tensor],
    to_float: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict:
    """Train on all clips but the last tenth; returns the held-out accuracy of each tag."""
    held = len(inputs) // 10
    tagger = Tagger(encoder, special, tags).train()
    optimizer = torch.optim.AdamW(tagger.parameters(), lr=lr, weight_decay=0.05)
    shown = len(inputs) - held
    steps, each = epochs * shown // 64, shown // 64  # in all, and an epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    bar = tqdm(range(steps), type(encoder).__name__)
    for step in bar:
        if step % each == 0:
            batches = torch.randperm(shown).split(64)
        batch = batches[step % each]
        scores = tagger(augment(to_float(inputs[batch])))
        loss = tag_losses(scores, {k: t[batch] for k, t in tags.items()})
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tagger.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return tag_accuracy(tagger, inputs[-held:], {k: t[-held:] for k, t in tags.items()}, to_float)


def stack_tags(rows: list[dict]) -> dict[str, Tensor]:
    return {k: torch.tensor([row[k] for row in rows]) for k in rows[0]}


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

    tags = stack_tags([heard_tags(s) for s in clips.values()])
    accuracy = train_tagger(model, 2, (raw - mean) / (2 * std), tags, epochs, 1e-3, augment)
    model.save_pretrained(out / "ast")
    extractor(mean=mean, std=std).save_pretrained(out / "ast")
    return accuracy


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

    tags = stack_tags([seen_tags(s) for s in clips.values()])
    accuracy = train_tagger(model, 1, frames, tags, epochs, 1e-3, augment, to_float)
    model.save_pretrained(out / "vivit")
    processor.save_pretrained(out / "vivit")
    return accuracy
