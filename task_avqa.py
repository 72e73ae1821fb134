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
    cache: str = "datasets/cache"  # encoder tokens of every clip, computed once
    encode_batch: int = 64  # clips an encoder call; paper preset: 16
    workers: int = 2  # processes that decode media; paper preset: 8

    # Tokens
    compression: str = "sliding_window"  # or uniform; paper: sliding window
    visual_tokens: int = 8  # after compression, besides the class token; paper: 128
    audio_tokens: int = 8  # after compression, besides class and distillation; paper: 128

    # Channel and receiver
    channel: str = "awgn"  # awgn, rayleigh, rician or none; paper: awgn
    snr_db: float = 12.0  # dB, training; paper: 12
    test_snr_db: list[float] = field(  # dB, the sweep; the training SNR is always tested
        default_factory=lambda: [-12.0, -6.0, 0.0, 6.0, 12.0, 18.0]
    )
    receiver_width: int = 512  # hidden units of a receiver; paper: 1024

    # Fine-tuning
    lora_rank: int = 4  # 0 switches LoRA off; paper: 4
    lora_alpha: float = 16.0  # paper: 16
    lora_dropout: float = 0.1  # paper: 0.1
    lora_targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])  # the paper's
    batch: int = 64  # questions a step; paper: 8
    steps: int = 600  # paper: 300
    lr: float = 3e-3  # AdamW, peak; paper: 1e-4
    lr_min: float = 1e-6  # end of the cosine
    validate_every: int = 100  # steps
    question_only: bool = True  # also train the blind baseline, as long and from the same start
    answer_tokens: int = 8  # most tokens of a generated answer
    test_batch: int = 256  # questions a generation call; paper preset: 32

    # Output folders
    out: str = "checkpoint"
    figures: str = "imgs"


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
        test_batch=32,
    ),
}


def main(config: Config) -> None:
    from pathlib import Path

    import torch
    from torch.optim.lr_scheduler import CosineAnnealingLR
    from tqdm import tqdm

    from utils.avqa_report import coverage, draw_figures, example_clips, print_accuracies, score
    from utils.checkpoints import load_parts, made_with, require, save_checkpoint, sha256
    from utils.clips import Collate, in_order, training_loader
    from utils.datasets import read_music_avqa, read_splits
    from utils.metrics import accuracy_report, majority_answers, majority_right
    from utils.mini_world import prepare
    from utils.run_log import RunLog
    from utils.system import build_system, encode_clips, pick_device, plain

    name = config.name or f"avqa-{config.preset}"
    print(f"stage 2, question answering: run {name}", flush=True)
    device = pick_device()
    root = Path(config.data)
    if config.init != "none":
        require(config.init, f"python task_align.py --preset {config.preset}")
    if config.preset == "mini":
        prepare(root.parent, root.name, config.mini_clips, workers=config.workers)

    rows, files, total = read_splits(read_music_avqa, root)

    def start():
        """The system as stage 1 left it, with fresh LoRA weights."""
        system = build_system(config, device)
        if config.init != "none":
            load_parts(config.init, system.transceivers)
        system.foundation.add_lora(
            config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets
        )
        system.foundation.to(device)
        return system

    system = start()
    clips = encode_clips(system, config, root, rows)
    collate = Collate(system.tokenizer)

    def receive(system, batch, snr_db, noise, blind):
        """Three users send picture, sound and question at snr_db; what the base station reads."""
        if blind:  # the question-only baseline: noise of the same power in place of the clip
            batch.visual = torch.randn(batch.visual.shape, generator=noise, device=device)
            batch.audio = torch.randn(batch.audio.shape, generator=noise, device=device)
        visual = system.receive_visual(batch.visual, snr_db, noise)
        audio = system.receive_audio(batch.audio, snr_db, noise)
        media = torch.cat([visual, audio], dim=1)  # (batch, 1 + visual + 2 + audio, hidden)
        sent = system.foundation.embed(batch.ids)  # (batch, question tokens, hidden)
        question = system.receive_text(sent, batch.mask, snr_db, noise)
        return media, question

    def answer_loss(system, batch, noise, blind):
        media, question = receive(system, batch, config.snr_db, noise, blind)
        return system.foundation.answer_loss(
            media, question, batch.mask, batch.answer_ids, batch.answer_mask
        )

    @torch.inference_mode()
    def validation_loss(system, blind):
        system.train(False)
        noise = system.noise(config.seed)
        batches = in_order(clips["val"], collate, config.test_batch)
        sums = torch.zeros(2)
        for batch in batches:
            count = batch.answer_mask.sum()
            loss = answer_loss(system, batch.to(device), noise, blind).cpu()
            sums += torch.stack([loss * count, count])
        system.train(True)
        return (sums[0] / sums[1]).item()

    def train(system, log, blind):
        """Fine-tune projections, receivers and LoRA on the answer tokens."""
        optimizer = torch.optim.AdamW(system.trainable(), lr=config.lr)
        schedule = CosineAnnealingLR(optimizer, config.steps, config.lr_min)
        noise = system.noise(config.seed)
        loader = training_loader(
            clips["train"], collate, config.batch, config.steps, config.seed, config.workers
        )
        validation = []
        label = "question-only baseline" if blind else f"fine-tuning at {config.snr_db:g} dB"
        bar = tqdm(loader, label, unit="step")
        system.train(True)
        for step, batch in enumerate(bar, start=1):
            loss = answer_loss(system, batch.to(device), noise, blind)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            log.add(step, {"loss": loss}, bar)
            if step % config.validate_every == 0 or step == config.steps:
                validation.append((step, validation_loss(system, blind)))
        log.read()
        return validation

    @torch.inference_mode()
    def predict(system, snr_db, blind=False):
        """The test questions' answers, generated from what arrives at snr_db."""
        system.train(False)
        noise = system.noise(config.seed)
        answers = []
        batches = in_order(clips["test"], collate, config.test_batch)
        for batch in tqdm(batches, f"testing at {snr_db:g} dB", unit="batch", leave=False):
            media, question = receive(system, batch.to(device), snr_db, noise, blind)
            end = system.tokenizer.eos_token_id
            mask = batch.mask.to(device)
            ids = system.foundation.generate(media, question, mask, end, config.answer_tokens)
            answers += system.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return answers

    def lora(system):
        return system.foundation.language_model if config.lora_rank else None

    log = RunLog(Path(config.out) / name)
    validation = train(system, log, blind=False)
    about = {"task": "avqa", "config": plain(config), "models": system.about, "step": config.steps}
    about["init_sha256"] = sha256(config.init)
    checkpoint = Path(config.out) / f"{name}.pth"
    save_checkpoint(checkpoint, system.transceivers, lora(system), about)
    blind = None
    if config.question_only:
        blind = start()
        kept = Path(config.out) / f"{name}-question-only.pth"
        if made_with(kept, about):  # the same baseline stands from an earlier run
            load_parts(kept, blind.transceivers, lora(blind))
        else:
            train(blind, RunLog(kept.with_suffix("")), blind=True)
            save_checkpoint(kept, blind.transceivers, lora(blind), about)

    # The test split is read here, once, after every choice was made.
    questions = clips["test"].rows
    predictions = {snr: predict(system, snr) for snr in {*config.test_snr_db, config.snr_db}}
    accuracy = score(predictions[config.snr_db], questions)
    majority = majority_answers(clips["train"].rows)
    baselines = {"majority": accuracy_report(questions, majority_right(majority, questions))}
    if blind is not None:
        baselines["question_only"] = score(predict(blind, config.snr_db, blind=True), questions)
    by_snr = {f"{s:g}": score(predictions[s], questions)["overall"] for s in sorted(predictions)}

    print_accuracies(accuracy, baselines, by_snr)
    figures = draw_figures(
        f"{config.figures}/{name}",
        losses=(log.rows, validation),
        accuracies=(accuracy, baselines, by_snr),
        examples=example_clips(root, questions, predictions[config.snr_db]),
        snr_db=config.snr_db,
    )
    log.finish(
        {
            "task": "avqa",
            "preset": config.preset,
            "config": plain(config),
            "steps": config.steps,
            "loss": log.ends(),
            "validation_loss": validation,
            "accuracy": accuracy,
            "baselines": {k: report["overall"] for k, report in baselines.items()},
            "baselines_by_type": {k: report["by_type"] for k, report in baselines.items()},
            "accuracy_by_snr": by_snr,
            "annotations": {split: vars(file) for split, file in files.items()},
            "questions": coverage(total, {split: len(part) for split, part in clips.items()}),
            "figures": figures,
        }
    )
    print("look at:", checkpoint, f"{config.out}/{name}.json", *figures, sep="\n  ")


if __name__ == "__main__":
    from utils.config import run

    run(main, PRESETS, PRESET, __doc__)
