"""The system of the paper, and what each training stage computes with it.

`System` holds three users (a camera, a microphone, a person who writes), their channel and the base
station. `Alignment` and `Answering` are the two stages' forward passes, from a batch of encoder
tokens to the losses. They are modules, because what trains in several processes (DDP, FSDP) has to
be used within one call of one module.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modules.channel import Channel, TrainingSNR, unit_power
from modules.digital.quantised import QUANTISED, Quantised
from modules.foundation_model import FoundationModel, Received
from modules.losses import info_nce, masked_mean, reconstruction
from modules.token_compression import Layout, compress, compress_each
from modules.token_receiver import RECEIVERS, TEXT_RECEIVERS
from modules.token_transmitter import TokenTransmitter, Windows

MEDIA = ("visual", "audio")


@dataclass
class Batch:
    """What a step reads; everything is padded on the right. A text is a caption, of which each has
    its clip, or a question in its prompt; questions that follow each other may share their clip."""

    visual: Tensor  # (clips, 1 + visual tokens, encoder width)
    audio: Tensor  # (clips, 2 + audio tokens, encoder width)
    clip: Tensor  # (texts,), the number of each text's clip
    ids: Tensor  # (texts, text tokens)
    mask: Tensor  # (texts, text tokens), True at real tokens
    text: Tensor  # (texts,), a number for each distinct text
    answer_ids: Tensor | None  # (texts, answer tokens), end of text last
    answer_mask: Tensor | None
    text_tokens: int  # real ones of texts and answers together, at the clip that has most
    rows: list  # the captions or questions themselves
    # Without a cache `visual` and `audio` are encoder inputs, the latter in each clip's windows.
    windows: list[Windows] | None = None
    # Of the patch tokens of `visual` and `audio`, by which they may be compressed further.
    layouts: dict[str, Layout] | None = None

    def to(self, device: torch.device, non_blocking: bool = True) -> "Batch":
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, visual=moved.visual.float(), audio=moved.audio.float())

    def pin_memory(self) -> "Batch":
        """The loader asks for this, so that copies to an accelerator do not hold up the host."""
        return self._each(Tensor.pin_memory)

    def _each(self, change) -> "Batch":
        return Batch(
            **{k: change(v) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        )


class System(nn.Module):
    """Three user devices, their channel, and the base station.

    Args:
        config: a stage's hyperparameters, of tokens, channel and receiver.
        encoders: under `visual` and `audio` a frozen encoder, and how many special tokens it puts
            in front of its patch tokens.
        language_model: the frozen causal language model.
        start: as for `FoundationModel`.
    """

    def __init__(
        self,
        config: Any,
        encoders: dict[str, tuple[nn.Module, int]],
        language_model: nn.Module,
        start: Sequence[int] = (),
    ):
        super().__init__()
        self.foundation = FoundationModel(language_model, start)
        hidden, how = self.foundation.hidden, config.compression
        self.img_tx = TokenTransmitter(*encoders["visual"], hidden, config.visual_tokens, how)
        self.audio_tx = TokenTransmitter(*encoders["audio"], hidden, config.audio_tokens, how)
        self.encode_batch = config.encode_batch
        quantised = config.channel == QUANTISED
        self.channel = Quantised() if quantised else Channel(config.channel)
        self.training_snr = TrainingSNR(config.snr_db, config.snr_range)
        sizes = (hidden, config.receiver_width, self.foundation.embedding_rms())
        self.img_receiver = RECEIVERS[config.receiver](*sizes)
        self.audio_receiver = RECEIVERS[config.receiver](*sizes)
        text_receiver = TEXT_RECEIVERS[config.text_receiver]
        self.text_receiver = text_receiver(*sizes, self.foundation.words)

    @property
    def transceivers(self) -> dict[str, nn.Module]:
        """What stage 1 trains, by the names that checkpoints use."""
        names = ("img_tx", "audio_tx", "text_receiver", "img_receiver", "audio_receiver")
        return {name: getattr(self, name) for name in names}

    @property
    def transmitters(self) -> dict[str, TokenTransmitter]:
        return {"visual": self.img_tx, "audio": self.audio_tx}

    @property
    def receivers(self) -> dict[str, nn.Module]:
        return {"visual": self.img_receiver, "audio": self.audio_receiver}

    @property
    def lora(self) -> nn.Module | None:
        """The language model that holds LoRA weights, if stage 2 added them."""
        model = self.foundation.language_model
        return model if hasattr(model, "peft_config") else None

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def release_encoders(self) -> None:
        """Forget the encoders, whose work is done once every clip is cached."""
        self.img_tx.encoder = self.audio_tx.encoder = None

    def encode(self, batch: Batch) -> Batch:
        """The batch with encoder tokens; in a run without a cache they are computed here."""
        if batch.windows is None:
            return batch
        # (batch, special + length, encoder width)
        visual, seen = self.img_tx.encode(batch.visual, rows=self.encode_batch)
        audio, heard = self.audio_tx.encode(batch.audio, batch.windows, self.encode_batch)
        layouts = {"visual": seen, "audio": heard}
        return replace(batch, visual=visual, audio=audio, windows=None, layouts=layouts)

    def snr_db(self, clips: int, noise: torch.Generator | None) -> float | Tensor:
        """dB; over a range of SNRs one a clip (clips,) in training, but the one SNR in evaluation,
        so that losses compare."""
        draw = self.training_snr
        return draw(clips, noise) if self.training else draw.snr_db

    def receive_media(
        self,
        kind: str,
        encoded: Tensor,
        snr_db: float | Tensor,
        noise: torch.Generator | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What one user sends and the base station restores.

        Args:
            kind: `visual` or `audio`.
            encoded: (batch, special + length, encoder width), padded where `mask` is False.
            snr_db: dB, one number or one a clip (batch,).
            noise: source of the channel's noise and fading.

        Returns:
            (batch, special + length, hidden).
        """
        sent = self.transmitters[kind](encoded)  # (batch, special + length, hidden)
        return self.receivers[kind](self.channel(sent, snr_db, mask, noise))

    def receive_text(
        self, embedded: Tensor, mask: Tensor, snr_db: float | Tensor, noise: torch.Generator | None
    ) -> Tensor:
        """(batch, text tokens, hidden), padded where `mask` is False, to the same shape. At +inf dB
        the text is written at the base station: nothing crosses the channel, and its receiver reads
        what a channel without noise would give."""
        if isinstance(snr_db, float) and snr_db == math.inf:
            return self.text_receiver(unit_power(embedded, mask))
        return self.text_receiver(self.channel(embedded.float(), snr_db, mask, noise))


# What the contrastive loss reads of a user's received tokens, (batch, tokens, hidden) to (batch,
# hidden): as published the special ones (ViViT's class token, the mean of AST's class and
# distillation tokens), or all of them.
CONTRASTS: dict[str, Callable[[TokenTransmitter, Tensor], Tensor]] = {
    "special": TokenTransmitter.features,
    "all": lambda tx, received: received.mean(dim=1),
}


class Alignment(nn.Module):
    """Stage 1: tokens of picture and sound come to lie beside those of the caption.

    Source: arXiv 2505.07841, cross-modal alignment by contrast. With `caption_weight` the frozen
    language model must also write the caption from the tokens that arrive, as in the first stage of
    LLaVA (Liu et al., 2023); 0 is the published recipe.

    Args:
        config: temperature, direction, features and weights of the losses.
    """

    def __init__(self, system: System, config: Any):
        super().__init__()
        self.system = system
        self.temperature, self.one_way = config.temperature, config.one_way
        self.contrast = CONTRASTS[config.contrast]
        self.contrastive_weight = config.contrastive_weight
        self.reconstruction_weight = config.reconstruction_weight
        self.caption_weight = config.caption_weight

    def forward(
        self, batch: Batch, noise: torch.Generator | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses (`loss` is their weighted sum), and features (batch, hidden) by modality."""
        system = self.system
        batch = system.encode(batch)  # in the cache already, or now
        snr_db = system.snr_db(len(batch.ids), noise)
        visual = system.receive_media("visual", batch.visual, snr_db, noise)
        audio = system.receive_media("audio", batch.audio, snr_db, noise)
        sent = system.foundation.embed(batch.ids)  # (batch, text tokens, hidden)
        text = system.receive_text(sent, batch.mask, snr_db, noise)
        features = {
            "visual": self.contrast(system.img_tx, visual),
            "audio": self.contrast(system.audio_tx, audio),
            "text": masked_mean(text, batch.mask),
        }
        against_text = (features["text"], self.temperature, batch.text, self.one_way)
        losses = {
            "visual_to_text": info_nce(features["visual"], *against_text),
            "audio_to_text": info_nce(features["audio"], *against_text),
            "reconstruction": reconstruction(text, sent, batch.mask),
        }
        total = self.contrastive_weight * (losses["visual_to_text"] + losses["audio_to_text"])
        total = total + self.reconstruction_weight * losses["reconstruction"]
        if self.caption_weight:
            media = torch.cat([visual, audio], dim=1)  # (batch, media tokens, hidden)
            received = Received(
                media=media,
                media_mask=batch.mask.new_ones(media.shape[:2]),
                question=media[:, :0],  # nothing is asked: the caption is the answer
                question_mask=batch.mask[:, :0],
                clip=batch.clip,
            )
            losses["caption"] = system.foundation.answer_loss(
                received, batch.ids, batch.mask, batch.text_tokens
            )
            total = total + self.caption_weight * losses["caption"]
        return {"loss": total, **losses}, features


class Answering(nn.Module):
    """Stage 2: the language model answers a question from the tokens that arrive.

    Args:
        config: which modalities are sent, the question's SNR, token lengths to draw from in
            training, and the most tokens of an answer.
        end_id: the end-of-text token.
    """

    def __init__(self, system: System, config: Any, end_id: int):
        super().__init__()
        self.system, self.modalities = system, config.modalities
        self.question_snr_db, self.token_lengths = config.question_snr_db, config.token_lengths
        self.answer_tokens, self.end_id = config.answer_tokens, end_id

    def forward(
        self,
        batch: Batch,
        noise: torch.Generator | None,
        snr_db: float | dict | None = None,
        lengths: dict[str, int | np.ndarray] | None = None,
        do: str = "loss",
    ) -> Tensor:
        """The loss of the answers in nats a token; or with `do="write"` the ids of answers of its
        own, (questions, new tokens), with `do="check"` whether these would be the true ones,
        (questions,).

        Args:
            snr_db, lengths: as for `receive`; without an SNR that of training.
        """
        if snr_db is None:
            snr_db = self.own_snr_db(len(batch.visual), noise)
        received = self.receive(batch, noise, snr_db, lengths)
        foundation = self.system.foundation
        if do == "write":
            return foundation.generate(received, self.end_id, self.answer_tokens)
        compare = foundation.would_write if do == "check" else foundation.answer_loss
        return compare(received, batch.answer_ids, batch.answer_mask, batch.text_tokens)

    def own_snr_db(
        self, clips: int, noise: torch.Generator | None
    ) -> float | Tensor | dict[str, float | Tensor]:
        """dB, as for `receive`: one a clip for all of its users; but in training over token lengths
        each user's message is its own, and so is the SNR at which it arrives."""
        at = self.system.snr_db(clips, noise)
        if not (self.training and self.token_lengths):
            return at
        asked_at = at if self.question_snr_db is None else self.question_snr_db
        return {"visual": at, "audio": self.system.snr_db(clips, noise), "text": asked_at}

    def receive(
        self,
        batch: Batch,
        noise: torch.Generator | None,
        snr_db: float | Tensor | dict[str, float | Tensor],
        lengths: dict[str, int | np.ndarray] | None = None,
    ) -> Received:
        """What the base station reads. A clip's media cross the channel once for all questions
        about it, each question by itself, at unit power and at its clip's SNR.

        Args:
            snr_db: dB, one number or one a clip (clips,); or one of these for each of the users
                `visual`, `audio` and `text`.
            lengths: patch tokens that each clip's camera and microphone send, one number each or
                (clips,); without them all that are in the batch.
        """
        system = self.system
        batch = system.encode(batch)  # in the cache already, or now
        if not isinstance(snr_db, dict):
            asked_at = snr_db if self.question_snr_db is None else self.question_snr_db
            snr_db = {"visual": snr_db, "audio": snr_db, "text": asked_at}
        sent = {kind: self.sent(kind, batch, noise, lengths) for kind in MEDIA}
        media = [
            system.receive_media(kind, tokens, snr_db[kind], noise, mask)
            for kind, (tokens, mask) in sent.items()
        ]
        masks = [
            batch.mask.new_ones(tokens.shape[:2]) if mask is None else mask
            for tokens, mask in sent.values()
        ]
        asked_db = snr_db["text"]
        if isinstance(asked_db, Tensor):
            asked_db = asked_db[batch.clip]  # (questions,)
        embedded = system.foundation.embed(batch.ids)  # (questions, question tokens, hidden)
        return Received(
            media=torch.cat(media, dim=1),
            media_mask=torch.cat(masks, dim=1),
            question=system.receive_text(embedded, batch.mask, asked_db, noise),
            question_mask=batch.mask,
            clip=batch.clip,
        )

    def sent(
        self,
        kind: str,
        batch: Batch,
        noise: torch.Generator | None,
        lengths: dict[str, int | np.ndarray] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """A user's encoder tokens (clips, special + length, encoder width), and their mask if they
        are padded.

        Noise of the same power stands for a modality that is not among `modalities`, so that only
        what it says is missing. In training over token lengths one is drawn for the whole batch.
        """
        tokens, tx = getattr(batch, kind), self.system.transmitters[kind]
        if kind not in self.modalities:
            tokens = torch.randn(tokens.shape, generator=noise, device=tokens.device)
        if lengths is not None:
            way = (tx.special, tx.compression, batch.layouts[kind])
            return compress_each(tokens, np.broadcast_to(lengths[kind], len(tokens)), *way)
        if self.training and self.token_lengths:  # drawn on the host, which knows shapes
            way = (tx.special, tx.compression, batch.layouts[kind])
            length = self.token_lengths[torch.randint(len(self.token_lengths), ())]
            tokens, _ = compress(tokens, length, *way)
        return tokens, None
