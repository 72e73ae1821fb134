"""Puts the system together from a script's hyperparameters, the same way for both stages."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.channel import Channel
from modules.foundation_model import FoundationModel
from modules.token_receiver import TokenReceiver
from modules.token_transmitter import TokenTransmitter
from utils.clips import ClipTokens
from utils.feature_cache import Reader, cache_folder, cache_tokens, model_fingerprint
from utils.pretrained import load_ast, load_language_model, load_vivit, revision


def pick_device() -> torch.device:
    """The accelerator if there is one, else the CPU with one thread a usable core."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.device("cpu")


@dataclass
class System:
    """Three user devices, their channel, and the base station."""

    img_tx: TokenTransmitter
    audio_tx: TokenTransmitter
    img_receiver: TokenReceiver
    audio_receiver: TokenReceiver
    text_receiver: TokenReceiver
    channel: Channel
    foundation: FoundationModel
    tokenizer: Any
    readers: dict[str, Reader]  # "visual", "audio": media to encoder inputs
    device: torch.device
    text_scale: float  # root mean square of an embedding entry
    about: dict  # where the frozen models came from

    @property
    def transceivers(self) -> dict[str, nn.Module]:
        """What stage 1 trains, by the names that checkpoints use."""
        return {
            "img_tx": self.img_tx,
            "audio_tx": self.audio_tx,
            "text_receiver": self.text_receiver,
            "img_receiver": self.img_receiver,
            "audio_receiver": self.audio_receiver,
        }

    def trainable(self) -> list[nn.Parameter]:
        modules = [*self.transceivers.values(), self.foundation]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def train(self, mode: bool = True) -> None:
        for module in [*self.transceivers.values(), self.foundation]:
            module.train(mode)

    # What one user sends and the base station restores, at `snr_db` and with a given noise source.

    def receive_visual(self, encoded: Tensor, snr_db: float, noise: torch.Generator) -> Tensor:
        """(batch, 1 + length, encoder width) to (batch, 1 + length, hidden)."""
        return self.img_receiver(self.channel(self.img_tx(encoded), snr_db, generator=noise))

    def receive_audio(self, encoded: Tensor, snr_db: float, noise: torch.Generator) -> Tensor:
        """(batch, 2 + length, encoder width) to (batch, 2 + length, hidden)."""
        return self.audio_receiver(self.channel(self.audio_tx(encoded), snr_db, generator=noise))

    def receive_text(
        self, embedded: Tensor, mask: Tensor, snr_db: float, noise: torch.Generator
    ) -> Tensor:
        """(batch, text tokens, hidden), padded where `mask` is False, to the same shape."""
        sent = embedded.float() / self.text_scale  # embeddings of 1e-2 leave at about unit power
        return self.text_receiver(self.channel(sent, snr_db, mask, noise))

    def noise(self, seed: int) -> torch.Generator:
        """A source of channel noise that repeats."""
        return torch.Generator(self.device).manual_seed(seed)


def build_system(config: Any, device: torch.device) -> System:
    """Load the frozen models and make the trained parts, initialised from `config.seed`."""
    torch.manual_seed(config.seed)
    vivit, image_processor = load_vivit(config.visual_encoder)
    ast, extractor = load_ast(config.audio_encoder)
    language_model, tokenizer = load_language_model(
        config.foundation_model, getattr(torch, config.dtype)
    )
    foundation = FoundationModel(language_model)
    hidden = foundation.hidden
    scale = foundation.embedding_rms()

    def receiver() -> TokenReceiver:
        return TokenReceiver(hidden, config.receiver_width, scale)

    how = config.compression
    system = System(
        img_tx=TokenTransmitter(vivit, 1, hidden, config.visual_tokens, how),
        audio_tx=TokenTransmitter(ast, 2, hidden, config.audio_tokens, how),
        img_receiver=receiver(),
        audio_receiver=receiver(),
        text_receiver=receiver(),
        channel=Channel(config.channel),
        foundation=foundation,
        tokenizer=tokenizer,
        readers={
            "visual": Reader(image_processor, vivit.config, "visual"),
            "audio": Reader(extractor, ast.config, "audio"),
        },
        device=device,
        text_scale=scale,
        about={
            name: {"path": str(path), **revision(path)}
            for name, path in {
                "visual_encoder": config.visual_encoder,
                "audio_encoder": config.audio_encoder,
                "foundation_model": config.foundation_model,
            }.items()
        },
    )
    for module in system.transceivers.values():
        for name, child in module.named_children():
            if name != "encoder":  # the encoder goes to the device only when a clip is encoded
                child.to(device)
    foundation.to(device)
    return system


def encode_clips(
    system: System, config: Any, root: Path, rows: dict[str, list]
) -> dict[str, ClipTokens]:
    """Encode what is not cached; the rows of every split with their tokens, bad clips left out."""
    video_ids = [row.video_id for split in rows.values() for row in split]
    folders, bad = {}, {}
    for kind, tx, model in (
        ("visual", system.img_tx, config.visual_encoder),
        ("audio", system.audio_tx, config.audio_encoder),
    ):
        frames = getattr(tx.encoder.config, "num_frames", 0)
        folders[kind] = cache_folder(
            Path(config.cache) / root.name, model_fingerprint(model), tx, frames
        )
        bad |= cache_tokens(
            tx,
            system.readers[kind],
            folders[kind],
            root,
            video_ids,
            system.device,
            config.encode_batch,
            config.workers,
        )
        tx.encoder.cpu()
    if bad:
        listed = "\n".join(f"  {video_id}: {reason}" for video_id, reason in bad.items())
        print(f"{len(bad)} clips left out:\n{listed}")
    return {
        split: ClipTokens([row for row in part if row.video_id not in bad], folders)
        for split, part in rows.items()
    }


def plain(config: Any) -> dict:
    """A config as JSON can hold it."""
    return json.loads(json.dumps(vars(config), default=str))
