"""Stage 2, audio-visual question answering: from stage 1's checkpoint, train transceivers and LoRA
so that the language model answers from received tokens by generating text (MUSIC-AVQA), over the
whole vocabulary and without a classification head. arXiv 2505.07841.

    python task_avqa.py                         the mini world, made when missing
    python task_avqa.py --preset paper          the published models and data
    python task_avqa.py --init none             start unaligned
"""

PRESET = "mini"  # "mini" (embedded world, any machine) or "paper"; edit here, or say --preset

from dataclasses import dataclass, field  # noqa: E402


@dataclass
class Config:
    """Hyperparameters of stage 2 in the mini preset; the paper's value in each comment."""

    preset: str = "mini"
    name: str = ""  # of the run's files in checkpoint/; empty: avqa-PRESET
    init: str = "checkpoint/align-mini-tau0.07.pth"  # stage 1's checkpoint, or none
    seed: int = 1111  # paper: 1111

    # Data and frozen models (folders)
    data: str = "datasets/mini/MUSIC-AVQA"  # paper: datasets/MUSIC-AVQA
    mini_clips: list[int] = field(  # of the mini world, made when missing: train, val, test
        default_factory=lambda: [1200, 96, 256]
    )
    visual_encoder: str = "checkpoint/mini/vivit"  # paper: google/vivit-b-16x2
    audio_encoder: str = "checkpoint/mini/ast"  # paper: MIT/ast-finetuned-audioset-10-10-0.4593
    foundation_model: str = "checkpoint/mini/qwen2"  # paper: Qwen/Qwen2.5-1.5B
    dtype: str = "float32"  # of the frozen foundation model; paper preset: bfloat16
    cache: str = "datasets/cache"  # encoder tokens, computed once; on a scratch disk, or none
    encode_batch: int = 64  # clips an encoder call; paper preset: 16
    workers: int = 2  # processes that decode media; paper preset: 8

    # Tokens
    compression: str = "sliding_window"  # or uniform; paper: sliding window
    visual_tokens: int = 8  # after compression, besides the class token; paper: 128
    audio_tokens: int = 8  # after compression, besides class and distillation; paper: 128
    token_lengths: list[int] = field(default_factory=list)  # of which each training batch draws

    # Channel and receiver
    channel: str = "awgn"  # awgn, rayleigh, rician or none; paper: awgn
    snr_db: float = 12.0  # dB, training; paper: 12
    snr_range: list[float] = field(  # dB, lowest and highest: each training clip draws its own
        default_factory=list
    )
    question_snr_db: float | None = None  # dB, of the question alone; None: as its clip's
    modalities: list[str] = field(  # sent; noise in place of the rest; none: question only
        default_factory=lambda: ["visual", "audio"]
    )
    test_snr_db: list[float] = field(  # dB, the sweep; the training SNR is always tested
        default_factory=lambda: [-12.0, -6.0, 0.0, 6.0, 12.0, 18.0]
    )
    receiver_width: int = 512  # hidden units of a receiver; paper: 1024

    # Fine-tuning
    lora_rank: int = 4  # 0 switches LoRA off; paper: 4
    lora_alpha: float = 16.0  # paper: 16
    lora_dropout: float = 0.1  # paper: 0.1
    lora_targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])  # the paper's
    batch: int = 64  # questions, over all processes; paper: 8
    accumulate: int = 1  # batches a step
    group_by_length: bool = False  # questions of like length share a batch: less padding, less mix
    steps: int = 600  # paper: 300
    lr: float = 3e-3  # AdamW, peak; paper: 1e-4
    lr_min: float = 1e-6  # end of the cosine
    clip: float = 0.5  # largest norm of a step's gradient; paper preset: 0, as it is
    gradient_checkpointing: bool = False  # less memory: layers are computed again going backward
    compile: bool = False  # the language model's layers, by torch.compile
    validate_every: int = 100  # steps
    question_only: bool = True  # also run the blind baseline: the same with --modalities none
    answer_tokens: int = 8  # most tokens of a generated answer
    test_batch: int = 256  # questions a generation call; paper preset: 32

    # Output folders, and states of training to go on from
    out: str = "checkpoint"
    figures: str = "imgs"  # or none
    resume: bool = False  # go on where a run of this name was stopped
    save_every: int = 50  # steps between two states; each is also saved when told to stop
    keep: int = 2  # of the last states


PRESETS = {
    "mini": Config(),
    "paper": Config(
        preset="paper",
        init="checkpoint/align-paper-tau0.07.pth",
        data="datasets/MUSIC-AVQA",
        visual_encoder="models/vivit-b-16x2",
        audio_encoder="models/ast-finetuned-audioset-10-10-0.4593",
        foundation_model="models/Qwen2.5-1.5B",
        dtype="bfloat16",
        encode_batch=16,
        workers=8,
        visual_tokens=128,
        audio_tokens=128,
        receiver_width=1024,
        batch=8,
        steps=300,
        lr=1e-4,
        clip=0.0,
        test_batch=32,
    ),
}


def main(config: Config) -> dict | None:
    from dataclasses import replace
    from pathlib import Path

    import torch
    from accelerate.utils import set_seed
    from torch.optim.lr_scheduler import CosineAnnealingLR
    from tqdm import tqdm

    from utils.checkpoints import load_parts, require, save_checkpoint, sha256
    from utils.config import plain
    from utils.data.clips import Collate, in_order, training_loader
    from utils.data.datasets import read_music_avqa, read_splits
    from utils.data.encoding import encode_clips
    from utils.mini.world import prepare_mini
    from utils.report.avqa import report
    from utils.system import build_system, models_used, noise_source
    from utils.training.log import RunLog, finished
    from utils.training.processes import agree, start
    from utils.training.states import Training

    accelerator = start(config)  # of one process, or of all that `accelerate launch` started
    is_main = accelerator.is_main_process
    name = config.name or f"avqa-{config.preset}"
    accelerator.print(f"stage 2, question answering: run {name}", flush=True)
    config = replace(config, name=name)
    if config.resume and (metrics := agree(finished(config))):
        accelerator.print("finished before")
        return metrics
    log = RunLog(Path(config.out) / name, writes=is_main)
    root = Path(config.data)
    if config.init != "none":
        require(config.init, f"python task_align.py --preset {config.preset}")
    prepare_mini(config, accelerator)

    # The system as stage 1 left it, with fresh LoRA weights.
    system = build_system(config)
    if config.init != "none":
        load_parts(config.init, system.transceivers, preset=config.preset)
    system.foundation.add_lora(
        config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets
    )
    if config.gradient_checkpointing:
        system.foundation.save_memory()
    if config.compile:
        system.foundation.compile()
    rows, files = read_splits(read_music_avqa, root)
    clips, log.left_out = encode_clips(system, config, root, rows, accelerator)

    def receive(system, batch, snr_db, noise):
        """Three users send picture, sound and question at snr_db; what the base station reads."""
        batch = system.encode(batch)  # in the cache already, or now
        seen, heard = system.shown(batch, config.modalities, noise)
        visual = system.receive_visual(seen, snr_db, noise)
        audio = system.receive_audio(heard, snr_db, noise)
        media = torch.cat([visual, audio], dim=1)  # (batch, 1 + visual + 2 + audio, hidden)
        sent = system.foundation.embed(batch.ids)  # (batch, question tokens, hidden)
        asked_at = snr_db if config.question_snr_db is None else config.question_snr_db
        question = system.receive_text(sent, batch.mask, asked_at, noise)
        return media, question

    def answer_loss(system, batch, noise):
        snr_db = system.training_snr(len(batch.ids), noise)  # dB, one number or (batch,)
        media, question = receive(system, batch, snr_db, noise)
        return system.foundation.answer_loss(
            media, question, batch.mask, batch.answer_ids, batch.answer_mask
        )

    def answers(system, batch, snr_db, noise):
        media, question = receive(system, batch, snr_db, noise)
        end = system.tokenizer.eos_token_id
        ids = system.foundation.generate(media, question, batch.mask, end, config.answer_tokens)
        return system.tokenizer.batch_decode(ids, skip_special_tokens=True)

    @torch.inference_mode()
    def validation_loss():
        source, losses, tokens = noise_source(config.seed, accelerator), [], []
        model.eval()
        for batch in held_out["val"]:
            losses.append(model(answer_loss, batch, source))
            tokens.append(accelerator.reduce(batch.answer_mask.sum()))
        model.train()
        losses, tokens = torch.stack(losses), torch.stack(tokens)
        return ((losses * tokens).sum() / tokens.sum()).item()

    @torch.inference_mode()
    def predict(snr_db):
        """The test questions' answers, generated from what arrives at snr_db."""
        source, said = noise_source(config.seed, accelerator), []
        label = f"testing at {snr_db:g} dB"
        model.eval()
        for batch in tqdm(held_out["test"], label, unit="batch", leave=False, disable=not is_main):
            part = model(answers, batch, snr_db, source)
            said += accelerator.gather_for_metrics(part, use_gather_object=True)
        return said

    about = {"task": "avqa", "config": plain(config), "models": models_used(config)}
    about["init_sha256"] = sha256(config.init)
    training = Training(log, config, about, accelerator)

    # Fine-tune projections, receivers and LoRA on the answer tokens.
    collate = Collate(system.tokenizer)
    model, optimizer, loader, *others = accelerator.prepare(
        system,
        torch.optim.AdamW(system.trainable(), lr=config.lr),
        training_loader(clips["train"], collate, config, training.read, config.group_by_length),
        *(in_order(clips[s], collate, config.test_batch, config.workers) for s in ("val", "test")),
    )
    held_out = dict(zip(("val", "test"), others, strict=True))
    schedule = CosineAnnealingLR(optimizer.optimizer, config.steps, config.lr_min)
    source = noise_source(config.seed, accelerator)
    set_seed(config.seed, device_specific=True)  # of LoRA's dropout
    training.prepare(model, optimizer, schedule, source)
    model.train()
    for number, batch in training.batches(loader, f"fine-tuning {name}"):
        step = number // config.accumulate + 1
        with accelerator.accumulate(model):
            loss = model(answer_loss, batch, source)
            accelerator.backward(loss)
            values = {"loss": loss}
            if accelerator.sync_gradients:
                values["gradient"] = training.clip_gradient()
            optimizer.step()
            optimizer.zero_grad()
        log.add(step, values, [row.video_id for row in batch.rows])
        if accelerator.sync_gradients:
            schedule.step()
            if step % config.validate_every == 0 or step == config.steps:
                training.validation.append((step, validation_loss()))
            training.done(step)
    about["step"] = config.steps
    save_checkpoint(log.path(".pth"), system.transceivers, system.lora, about, is_main)

    # The test split is read here, once, after every choice was made.
    predictions = {snr: predict(snr) for snr in sorted({*config.test_snr_db, config.snr_db})}
    baseline = None
    if config.question_only and config.modalities != ["none"]:
        blind = replace(config, modalities=["none"], question_only=False, test_snr_db=[])
        blind = replace(blind, name=f"{name}-question-only", figures="none")
        baseline = agree(finished(blind)) or main(blind)
    if not is_main:
        return None
    metrics = report(
        log,
        config,
        questions={split: part.rows for split, part in clips.items()},
        answers=predictions,
        baseline=baseline,
        about={**training.summary(), "init_sha256": about["init_sha256"]},
        files=files,
        total={split: len(part) for split, part in rows.items()},
    )
    training.finish()
    return metrics


if __name__ == "__main__":
    from utils.config import run

    run(main, PRESETS, PRESET, __doc__)
