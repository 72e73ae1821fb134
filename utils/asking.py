"""The trained system, used: a video is encoded, sent with a question, and answered."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from modules.system import MEDIA, Answering
from modules.token_compression import clip_uses, side_bits
from modules.token_transmitter import Encoded
from utils.data.clips import Collate
from utils.data.datasets import Question
from utils.data.encoding import halved
from utils.data.extraction import extract_clip
from utils.data.media import MediaError
from utils.data.models import Processors

ANSWERS = 5  # of a question: the system's own and its runners-up


@dataclass
class Clip:
    """A clip as its devices hold it before they send it, by `visual` and `audio`."""

    encoded: dict[str, Encoded]  # as the cache keeps clips
    patches: dict[str, int]  # before compression


@dataclass
class Told:
    """What came of a question."""

    answers: dict[str, float]  # with probabilities: the system's own first, then runners-up
    sent: dict[str, tuple[int, float]]  # tokens and channel uses, by user


@dataclass
class Trained:
    """A system that was trained, and its run's hyperparameters."""

    model: Answering
    processors: Processors
    config: Any  # of stage 2

    def __post_init__(self):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.eval().to(self.device)
        self.system = self.model.system
        self.lengths = [getattr(self.config, f"{kind}_tokens") for kind in MEDIA]  # that are sent

    @torch.inference_mode()
    def encode(self, video: str) -> Clip:
        """Preprocess and encode a video as a data set's clips are; MediaError, in a line, where it
        has no picture or no sound."""
        path, clip = Path(video), Clip({}, {})
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; name a video")
        straight = self.config.media == "videos"
        with TemporaryDirectory() as root:
            made = sampling(self.config.data)
            problems = [] if straight else extract_clip(path, Path(root) / "extraction", **made)
            if problems:
                wrong = "; ".join(problems)
                raise MediaError(f"{path}: {wrong}; give a video with picture and sound")
            for kind, tx in self.system.transmitters.items():
                reader = self.processors.readers[kind]
                # (rows, ...)
                inputs, windows = reader(path if straight else reader.path(root, path.stem))
                of_clip = windows and [windows]
                tokens = tx.encode(inputs.to(self.device), of_clip, self.config.encode_batch)
                clip.encoded[kind] = halved(tokens)  # (1, special + length, encoder width)
                clip.patches[kind] = len(windows.patches if windows else tx.places)
        return clip

    @torch.inference_mode()
    def ask(self, clip: Clip, question: str, snr_db: float, lengths: list[int]) -> Told:
        """Send the clip and the question, and answer from what arrives. Each question meets the
        same noise.

        Args:
            snr_db: dB, of picture and sound, and of a question without an SNR of its own.
            lengths: patch tokens of picture and sound.
        """
        tokenizer = self.processors.tokenizer
        visual, audio = (clip.encoded[kind].tokens[0] for kind in MEDIA)
        layouts = {k: each.layout.each(lambda part: part[0]) for k, each in clip.encoded.items()}
        row = Question("", "", "", question, "")  # nobody knows the true answer
        batch = Collate(tokenizer)([(visual, audio, row, layouts)]).to(self.device)
        noise = torch.Generator(self.device).manual_seed(self.config.seed)
        each = {kind: np.array([length]) for kind, length in zip(MEDIA, lengths, strict=True)}
        received = self.model.receive(batch, noise, snr_db, each)
        ids, probability = self.system.foundation.alternatives(
            received, self.model.end_id, self.model.answer_tokens, ANSWERS
        )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        answers: dict[str, float] = {}
        for text, p in zip(map(str.strip, texts), probability.tolist(), strict=True):
            answers[text] = answers.get(text, 0.0) + p  # a text may be written in several ways
        own, *others = answers
        ranked = [own, *sorted(others, key=answers.get, reverse=True)]
        sent = self.sent(clip, batch.mask.sum().item(), snr_db, lengths)
        return Told({text: answers[text] for text in ranked}, sent)

    def sent(self, clip: Clip, asked: int, snr_db: float, lengths: list[int]) -> dict:
        """Tokens and channel uses by user; `asked` are the question's tokens."""
        hidden, found = self.system.foundation.hidden, {}
        for (kind, tx), length in zip(self.system.transmitters.items(), lengths, strict=True):
            if kind in self.model.modalities:
                bits = side_bits(tx.compression, clip.patches[kind], length)
                tokens = tx.special + length
                found[kind] = tokens, clip_uses(tokens, hidden, bits, snr_db)
        if self.config.question_snr_db != math.inf:  # else it is written at the base station
            found["question"] = asked, clip_uses(asked, hidden, 0.0, snr_db)
        return found


def sampling(data: str) -> dict:
    """How many frames of what size the run's data set has of a clip; {}, for those that
    preprocessing takes if not told otherwise, where the data set is not there."""
    path = Path(data) / "extraction" / "extraction.json"
    made = json.loads(path.read_text()) if path.is_file() else {}
    return {k: v for k, v in made.items() if k in ("frames", "fps", "size")}


def table(sent: dict[str, tuple[int, float]], bandwidth: float) -> str:
    """What each user sent: tokens, channel uses, and how long they take at a bandwidth in Hz."""
    together = sum(tokens for tokens, _ in sent.values()), sum(uses for _, uses in sent.values())
    lines = [f"{'sent':10}{'tokens':>8}{'channel uses':>15}{f'ms at {bandwidth / 1e6:g} MHz':>17}"]
    for name, (tokens, uses) in {**sent, "together": together}.items():
        ms = 1000 * uses / bandwidth  # a symbol a hertz and second
        lines.append(f"{name:10}{tokens:8,}{uses:15,.0f}{ms:17,.3f}")
    return "\n".join(lines)
