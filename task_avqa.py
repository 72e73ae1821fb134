"""Stage 2, audio-visual question answering (MUSIC-AVQA): from stage 1's checkpoint, train
transceivers and LoRA so that the language model answers by writing text. arXiv 2505.07841.

    python task_avqa.py                         the mini world, made when missing
    python task_avqa.py --preset paper          the published models and data
    python task_avqa.py --preset published      and the published recipe
"""

import utils.machine  # noqa: F401, I001  before torch, which reads how its threads wait

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from tqdm import tqdm

from modules.system import MEDIA, Answering
from utils.checkpoints import load_parts, require
from utils.config import PAPER, PUBLISHED, StageConfig, run_script, values
from utils.data.clips import Collate, answer_limit
from utils.data.datasets import read_music_avqa
from utils.data.encoding import load_clips
from utils.data.models import build_system, models_used
from utils.report.avqa import draw, print_accuracies, scores, write_answers
from utils.training.beside import afterwards, beside
from utils.training.processes import own_rows
from utils.training.run import Run

PRESET = "mini"  # "mini" (any machine), "paper" or "published"; edit here, or say --preset


@dataclass
class Config(StageConfig):
    """Hyperparameters of stage 2 in the mini preset; the paper's value in each comment. Models,
    tokens, channel and folders stand in StageConfig (utils/config.py)."""

    init: str = "checkpoint/align-mini-tau0.07.pth"  # stage 1's checkpoint, or none
    seed: int = 1111  # paper: 1111
    data: str = "datasets/mini/MUSIC-AVQA"  # folder; mini: only its own; paper: datasets/MUSIC-AVQA
    mini_clips: list[int] = values(1200, 96, 256)  # of the mini world: train, val, test
    token_lengths: list[int] = values()  # of which each training batch draws; empty: all tokens

    # Channel
    snr_db: float = 12.0  # dB, training; paper: 12
    question_snr_db: float | None = None  # dB, of the question alone; None: as its clip's
    modalities: list[str] = values("visual", "audio")  # sent; noise for the rest, or none
    test_snr_db: list[float] = values(-12.0, -6.0, 0.0, 6.0, 12.0, 18.0)  # dB, and that of training

    # LoRA
    lora_rank: int = 4  # 0 switches LoRA off; paper: 4
    lora_alpha: float = 16.0  # paper: 16
    lora_dropout: float = 0.1  # paper: 0.1
    lora_targets: list[str] = values()  # empty: as is usual of the family; paper: q_proj, v_proj

    # Optimisation
    batch: int = 32  # questions, over all processes; paper: 8
    packed: int = 4  # most questions of a clip that share a sequence and its media; paper: 1
    steps: int = 400  # paper: 300
    lr: float = 1e-3  # AdamW, peak; paper: 1e-4
    lora_lr: float = 0.0  # likewise, of LoRA alone; 0: as all others
    clip: float = 0.5  # largest norm of a step's gradient; 0: as it is; paper: 0; paper preset: 1
    gradient_checkpointing: bool = False  # less memory: layers are computed again going backward
    compile: bool = False  # the language model's layers, by torch.compile

    # Test
    question_only: bool = True  # also run the blind baseline: the same with --modalities none
    test_lengths: list[str] = values()  # as 16x4, visual by audio tokens: sent so few as well
    answer_tokens: int = 8  # most tokens of a generated answer, or those of the longest true one
    test_batch: int = 256  # questions a generation call; paper preset: 32


LORA = dict(lora_rank=8, lora_dropout=0.0, lora_targets=["all-linear"], lora_lr=5e-4)
THEIRS = dict(lora_rank=4, lora_dropout=0.1, lora_targets=["q_proj", "v_proj"], lora_lr=0.0)
MORE = dict(data="datasets/MUSIC-AVQA", test_batch=32, batch=8, steps=300, warm_up=20, clip=1.0)
START = {name: f"checkpoint/align-{name}-tau0.07.pth" for name in ("paper", "published")}
PRESETS = {"mini": Config(), "paper": Config(**PAPER, **LORA, **MORE, init=START["paper"])}
THEIRS |= dict(**PUBLISHED, packed=1, lr=1e-4, init=START["published"])
PRESETS["published"] = replace(PRESETS["paper"], **THEIRS)


def main(config: Config) -> dict | None:
    run = Run("avqa", config, f"avqa-{config.preset}")
    if run.finished:
        return run.finished
    config = run.config
    if config.init != "none":
        require(config.init, f"python task_align.py --preset {config.preset}")

    # The system as stage 1 left it, with fresh LoRA weights; each clip encoded once.
    model, processors = build_model(config)
    if config.init != "none":
        same = {k: getattr(config, k) for k in ("preset", "receiver", "compression")}
        load_parts(config.init, model.system.transceivers, models=models_used(config), **same)
    clips = load_clips(config, read_music_avqa, model.system, processors.readers, run.accelerator)
    model.answer_tokens = answer_limit(clips, processors.tokenizer, config.answer_tokens, run.say)
    model, loaders = run.prepare(model, clips, Collate(processors.tokenizer), config.test_batch)
    baseline = question_only(config, run)

    for step, batch in run.batches(loaders["train"], "fine-tuning"):
        loss = model(batch, run.noise)  # of the answers' tokens, and of nothing else
        run.step(step, {"loss": loss}, batch)
        if run.validates(step):
            run.validated(step, validation_loss(model, loaders["val"], run))
    run.about["answer_tokens"] = run.accelerator.unwrap_model(model).answer_tokens
    run.save()

    # The test split is read here, once, after every choice was made.
    write = partial(answers, model, loaders["test"], processors.tokenizer, run)
    said = {snr_db: write(snr_db) for snr_db in sorted({*config.test_snr_db, config.snr_db})}
    short = {pair: at_lengths(model, loaders, run, pair) for pair in config.test_lengths}
    if run.is_main:
        write_answers(run.log.path(".answers.csv"), clips["test"].rows, said, short)
    blind = baseline()
    if not run.is_main:
        return None
    found = scores(config, clips, said, blind, short)
    print_accuracies(found)
    return run.finish(found, partial(draw, run, found, said[config.snr_db]))


def build_model(config: Config):
    """The system with LoRA, ready to answer, and the processors of its media and text."""
    system, processors = build_system(config)
    model = Answering(system, config, processors.tokenizer.eos_token_id)
    c, foundation = config, system.foundation
    foundation.add_lora(c.lora_rank, c.lora_alpha, c.lora_dropout, c.lora_targets)
    if config.gradient_checkpointing:
        foundation.save_memory()
    if config.compile:
        foundation.compile()
    return model, processors


@torch.inference_mode()
def validation_loss(model, loader, run: Run, lengths: dict | None = None) -> float:
    """nats a token of the answers, from all tokens or so many patch tokens of each modality."""
    noise, losses, tokens = run.fresh_noise(), [], []
    model.eval()
    for batch in loader:
        batch.answer_mask[own_rows(len(batch.rows), run.accelerator) :] = False  # each row once
        losses.append(model(batch, noise, lengths=lengths))
        tokens.append(run.accelerator.reduce(batch.answer_mask.sum()))
    model.train()
    losses, tokens = torch.stack(losses), torch.stack(tokens)  # (batches,)
    return ((losses * tokens).sum() / tokens.sum()).item()


@torch.inference_mode()
def answers(model, loader, tokenizer, run: Run, snr_db: float) -> list[str]:
    """The answers to a split's questions, generated from what arrives at `snr_db`."""
    noise, said = run.fresh_noise(), []
    model.eval()
    label = {"desc": f"testing at {snr_db:g} dB", "unit": "batch", "disable": not run.is_main}
    for batch in tqdm(loader, leave=False, **label):
        ids = model(batch, noise, snr_db, do="write")  # (batch, new tokens)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        said += run.accelerator.gather_for_metrics(texts, use_gather_object=True)
    return said


@torch.inference_mode()
def at_lengths(model, loaders, run: Run, pair: str) -> tuple[float, list[bool]]:
    """With so many patch tokens of picture and sound: the validation loss, and which questions of
    the test split are answered right, word for word."""
    lengths, right = dict(zip(MEDIA, map(int, pair.split("x")), strict=True)), []
    loss = validation_loss(model, loaders["val"], run, lengths)
    model.eval()
    noise = run.fresh_noise()
    for batch in loaders["test"]:
        found = model(batch, noise, run.config.snr_db, lengths, do="check")  # (batch,)
        right += run.accelerator.gather_for_metrics(found).tolist()
    return loss, right


def question_only(config: Config, run: Run) -> Callable[[], dict | None]:
    """What gives the metrics of the blind baseline on the same data, a run of its own with noise in
    place of picture and sound. On the CPU it trains beside this one: the second core of a pair
    brings more to another run than to the same one."""
    if not config.question_only or config.modalities == ["none"]:
        return lambda: None
    blind = replace(config, modalities=["none"], question_only=False, test_snr_db=[])
    blind = replace(blind, name=f"{config.name}-question-only", figures="none")
    if run.accelerator.num_processes == 1 and run.accelerator.device.type == "cpu":
        return beside("task_avqa", blind, run.data)
    return partial(afterwards, main, blind, run.data)


if __name__ == "__main__":
    run_script(main, PRESETS, PRESET, __doc__)
