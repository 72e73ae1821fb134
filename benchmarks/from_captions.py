"""What the language model answers when it reads each clip's caption as clean text in place of its
media: an upper limit for any transmission. LoRA is trained as in task_avqa.py, for
as many steps, and nothing else is. For the mini world only, which has captions of all clips.
"""

from dataclasses import dataclass

import numpy as np
import torch

import task_avqa
from modules.foundation_model import Received
from modules.system import Answering, Batch, System
from task_avqa import answers, validation_loss
from utils.data.clips import Collate, answer_limit, pad
from utils.data.datasets import read_music_avqa
from utils.data.encoding import load_clips
from utils.mini.scenes import SPLITS
from utils.mini.world import scenes, valor_rows
from utils.report.avqa import print_accuracies, scores, write_answers
from utils.training.run import Run


@dataclass
class Config(task_avqa.Config):
    """Hyperparameters of stage 2, of which those of media, channel and receivers change nothing."""


class FromCaptions(Answering):
    """Stage 2 without transmission: the captions' own embeddings stand for the media.

    Args:
        captions: of each clip, by its name.
        tokenizer: of the language model.
    """

    def __init__(self, system: System, config: Config, captions: dict[str, str], tokenizer):
        super().__init__(system, config, tokenizer.eos_token_id)
        self.captions, self.tokenizer = captions, tokenizer
        for part in system.transceivers.values():
            part.requires_grad_(False)

    def receive(
        self,
        batch: Batch,
        noise: torch.Generator | None,
        snr_db: float | torch.Tensor | dict[str, float | torch.Tensor],
        lengths: dict[str, np.ndarray] | None = None,
    ) -> Received:
        """Captions and questions as they were written; nothing is sent."""
        clips = dict(zip(batch.clip.tolist(), batch.rows, strict=True))  # a question of each
        texts = [self.captions[clips[i].video_id] for i in range(len(batch.visual))]
        captions = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids, mask = pad(captions, self.end_id)  # (clips, caption tokens)
        embed = self.system.foundation.embed
        return Received(
            media=embed(ids.to(batch.ids.device)),
            media_mask=mask.to(batch.ids.device),
            question=embed(batch.ids),
            question_mask=batch.mask,
            clip=batch.clip,
        )


def captions_of(config: Config) -> dict[str, str]:
    """The caption of every clip of the mini world's MUSIC-AVQA, by the clip's name."""
    clips = {}
    for split, count in zip(SPLITS, config.mini_clips, strict=True):
        clips |= scenes("MUSIC-AVQA", split, count, seed=0)
    return {row["video_id"]: row["desc"] for row in valor_rows(clips)}


def main(config: Config) -> dict | None:
    run = Run("avqa", config, "avqa-from-captions")
    if run.finished:
        return run.finished
    config = run.config
    model, processors = task_avqa.build_model(config)
    model = FromCaptions(model.system, config, captions_of(config), processors.tokenizer)
    clips = load_clips(config, read_music_avqa, model.system, processors.readers, run.accelerator)
    model.answer_tokens = answer_limit(clips, processors.tokenizer, config.answer_tokens, run.say)
    collate = Collate(processors.tokenizer)
    model, loaders = run.prepare(model, clips, collate, config.test_batch)
    for step, batch in run.batches(loaders["train"], "fine-tuning"):
        run.step(step, {"loss": model(batch, run.noise)}, batch)
        if run.validates(step):
            run.validated(step, validation_loss(model, loaders["val"], run))
    run.save()
    said = {
        config.snr_db: answers(model, loaders["test"], processors.tokenizer, run, config.snr_db)
    }
    write_answers(run.log.path(".answers.csv"), clips["test"].rows, said)
    found = scores(config, clips, said, None)
    print_accuracies(found)
    return run.finish(found, lambda _: {})
