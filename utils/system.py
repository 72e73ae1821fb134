"""Puts the system together from a script's hyperparameters, the same way for both stages."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modules.channel import Channel, TrainingSNR
from modules.foundation_model import FoundationModel
from modules.token_compression import compress
from modules.token_receiver import TokenReceiver
from modules.token_transmitter import TokenTransmitter
from utils.data.clips import Batch
from utils.data.features import Reader
from utils.data.models import load_ast, load_language_model, load_vivit, revision

# What encoders put in front of the patch tokens: ViViT a class token, AST class and distillation.
SPECIAL = {"visual": 1, "audio": 2}


def check_modalities(modalities: list[str]) -> None:
    """ValueError unless they are among `visual` and `audio`, or `none` alone."""
    if modalities != ["none"] and not set(modalities) <= SPECIAL.keys():
        raise ValueError(
            f"modalities {' '.join(modalities)}: choose from {', '.join(SPECIAL)}, or none alone"
        )


class System(nn.Module):
    """Three user devices, their channel, and the base station.

    Args:
        config: a stage's hyperparameters.
        vivit, ast: the frozen encoders, each with its processor.
        language_model: the frozen language model with its tokenizer.
    """

    def __init__(self, config: Any, vivit: tuple, ast: tuple, language_model: tuple):
        super().__init__()
        (vivit, image_processor), (ast, extractor) = vivit, ast
        language_model, self.tokenizer = language_model
        self.readers = {  # media to encoder inputs
            "visual": Reader(image_processor, vivit.config, "visual"),
            "audio": Reader(extractor, ast.config, "audio"),
        }
        self.foundation = FoundationModel(language_model)
        self.text_scale = self.foundation.embedding_rms()
        hidden, how = self.foundation.hidden, config.compression
        self.img_tx = TokenTransmitter(vivit, SPECIAL["visual"], hidden, config.visual_tokens, how)
        self.audio_tx = TokenTransmitter(ast, SPECIAL["audio"], hidden, config.audio_tokens, how)
        self.token_lengths = getattr(config, "token_lengths", [])
        self.channel = Channel(config.channel)
        self.snr_db, self._draw_snr = config.snr_db, TrainingSNR(config.snr_db, config.snr_range)

        def receiver() -> TokenReceiver:
            return TokenReceiver(hidden, config.receiver_width, self.text_scale)

        self.img_receiver = receiver()
        self.audio_receiver = receiver()
        self.text_receiver = receiver()

    def forward(self, step: Callable, *inputs) -> Any:
        """`step(self, *inputs)`. What trains in several processes (DDP, FSDP) must be used within
        one call of one module; this is that call, and the scripts say what happens in it."""
        return step(self, *inputs)

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

    @property
    def lora(self) -> nn.Module | None:
        """The language model that holds LoRA weights, if stage 2 added them."""
        model = self.foundation.language_model
        return model if hasattr(model, "peft_config") else None

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def encode(self, batch: Batch) -> Batch:
        """The batch with encoder tokens; in a run without a cache they are computed here."""
        if batch.windows is None:
            return batch
        visual = self.img_tx.encode(batch.visual)  # (batch, 1 + length, encoder width)
        audio = self.audio_tx.encode(batch.audio, batch.windows)  # (batch, 2 + length, width)
        return replace(batch, visual=visual, audio=audio, windows=None)

    def training_snr(self, clips: int, noise: torch.Generator) -> float | Tensor:
        """dB; over a range of SNRs one a clip (clips,) in training, but the one SNR in evaluation,
        so that losses compare."""
        return self._draw_snr(clips, noise) if self.training else self.snr_db

    def shown(
        self, batch: Batch, modalities: list[str], noise: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The clips' visual and audio tokens; noise of the same power stands for a modality that
        is not among `modalities`, so that only what it says is missing. In training over token
        lengths each modality is compressed to one drawn for this batch."""
        shown = []
        for name, tokens in (("visual", batch.visual), ("audio", batch.audio)):
            if name not in modalities:
                tokens = torch.randn(tokens.shape, generator=noise, device=tokens.device)
            if self.training and self.token_lengths:  # drawn on the host, which knows shapes
                length = self.token_lengths[torch.randint(len(self.token_lengths), ())]
                tokens = compress(tokens, length, SPECIAL[name], self.img_tx.compression)
            shown.append(tokens)
        return tuple(shown)

    def release_encoders(self) -> None:
        """Forget the encoders, whose work is done once every clip is cached."""
        self.img_tx.encoder = self.audio_tx.encoder = None

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


def noise_source(seed: int, accelerator: Accelerator) -> torch.Generator:
    """A source of channel noise that repeats, another one in each process."""
    seed = seed * accelerator.num_processes + accelerator.process_index
    return torch.Generator(accelerator.device).manual_seed(seed)


def build_system(config: Any) -> System:
    """Load the frozen models and make the trained parts, initialised from `config.seed`."""
    check_modalities(getattr(config, "modalities", []))
    torch.manual_seed(config.seed)
    return System(
        config,
        load_vivit(config.visual_encoder),
        load_ast(config.audio_encoder),
        load_language_model(config.foundation_model, getattr(torch, config.dtype)),
    )


def models_used(config: Any) -> dict[str, dict]:
    """Where the frozen models came from: folders, and repository and commit where recorded."""
    names = ("visual_encoder", "audio_encoder", "foundation_model")
    folders = {name: getattr(config, name) for name in names}
    return {name: {"path": str(path), **revision(path)} for name, path in folders.items()}
