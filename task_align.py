"""Stage 1, token alignment: teach the transceivers of picture and sound to send tokens that the
language model's own text embeddings would recognise. Frozen encoders and language model, InfoNCE
against each clip's caption (VALOR-32K) plus text reconstruction. arXiv 2505.07841.

    python task_align.py                        the mini world, made when missing
    python task_align.py --preset paper         the published models and data
    python task_align.py --temperature 0.03     every field below is a flag
    python task_align.py --temperatures 0.03 0.07 0.13   a run each, fine-tuned, compared and drawn
"""

PRESET = "mini"  # "mini" (embedded world, any machine) or "paper"; edit here, or say --preset

from dataclasses import dataclass, field  # noqa: E402


@dataclass
class Config:
    """Hyperparameters of stage 1 in the mini preset; the paper's value in each comment."""

    preset: str = "mini"
    name: str = ""  # of the run's files in checkpoint/; empty: align-PRESET-tauTAU
    seed: int = 3407  # paper: 3407

    # Data and frozen models (folders)
    data: str = "datasets/mini/VALOR"  # paper: datasets/VALOR
    mini_clips: list[int] = field(  # of the mini world, made when missing: train, val, test
        default_factory=lambda: [1600, 128, 160]
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
    caption_tokens: int = 256  # captions are cut there; paper: 256

    # Channel and receiver
    channel: str = "awgn"  # awgn, rayleigh, rician or none; paper: awgn
    snr_db: float = 10.0  # dB, training and evaluation; paper: 10
    snr_range: list[float] = field(  # dB, lowest and highest: each training clip draws its own
        default_factory=list
    )
    receiver_width: int = 512  # hidden units of a receiver; paper: 1024

    # Loss and optimisation
    temperature: float = 0.07  # tau of InfoNCE; paper: 0.07
    temperatures: list[float] = field(  # a sweep instead of one run; paper: 0.03, 0.07, 0.13
        default_factory=list
    )
    one_way: bool = False  # modality to text alone instead of both directions
    contrastive_weight: float = 1.0  # of the two InfoNCE
    reconstruction_weight: float = 1.0  # of the text reconstruction
    batch: int = 64  # clips that are told apart, over all processes; paper: 32
    accumulate: int = 1  # batches a step
    steps: int = 300  # paper: 500
    lr: float = 3e-3  # AdamW, peak; paper: 1e-4
    lr_min: float = 1e-6  # end of the cosine; paper: 1e-6
    clip: float = 0.0  # largest norm of a step's gradient; 0 leaves it as it is
    validate_every: int = 100  # steps

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
        data="datasets/VALOR",
        visual_encoder="models/vivit-b-16x2",
        audio_encoder="models/ast-finetuned-audioset-10-10-0.4593",
        foundation_model="models/Qwen2.5-1.5B",
        dtype="bfloat16",
        encode_batch=16,
        workers=8,
        visual_tokens=128,
        audio_tokens=128,
        receiver_width=1024,
        batch=32,
        steps=500,
        lr=1e-4,
    ),
}


def main(config: Config) -> dict | None:
    import math
    from dataclasses import replace
    from pathlib import Path

    import torch
    from torch.optim.lr_scheduler import CosineAnnealingLR

    from modules.losses import info_nce, masked_mean, reconstruction
    from utils.checkpoints import save_checkpoint
    from utils.config import plain
    from utils.data.clips import Collate, in_order, training_loader
    from utils.data.datasets import read_splits, read_valor
    from utils.data.encoding import encode_clips
    from utils.mini.world import prepare_mini
    from utils.report import plots
    from utils.report.metrics import geometry, retrieval
    from utils.report.tsne import side_by_side
    from utils.system import build_system, models_used, noise_source
    from utils.training.log import RunLog, finished
    from utils.training.processes import agree, start
    from utils.training.states import Training

    if config.temperatures:
        from benchmarks.sweeps import temperatures

        return temperatures(config)
    accelerator = start(config)  # of one process, or of all that `accelerate launch` started
    is_main = accelerator.is_main_process
    name = config.name or f"align-{config.preset}-tau{config.temperature:g}"
    accelerator.print(f"stage 1, token alignment: run {name}", flush=True)
    config = replace(config, name=name)
    if config.resume and (metrics := agree(finished(config))):
        accelerator.print("finished before")
        return metrics
    log = RunLog(Path(config.out) / name, writes=is_main)
    root = Path(config.data)
    prepare_mini(config, accelerator)

    system = build_system(config)
    rows, files = read_splits(read_valor, root)
    clips, log.left_out = encode_clips(system, config, root, rows, accelerator)

    def forward(system, batch, noise):
        """Three users send their tokens, the base station restores them."""
        batch = system.encode(batch)  # in the cache already, or now
        snr_db = system.training_snr(len(batch.ids), noise)  # dB, one number or (batch,)
        visual = system.receive_visual(batch.visual, snr_db, noise)
        audio = system.receive_audio(batch.audio, snr_db, noise)
        sent = system.foundation.embed(batch.ids)  # (batch, text tokens, hidden)
        text = system.receive_text(sent, batch.mask, snr_db, noise)
        features = {
            "visual": system.img_tx.features(visual),  # (batch, hidden), the class token
            "audio": system.audio_tx.features(audio),  # (batch, hidden), class and distillation
            "text": masked_mean(text, batch.mask),  # (batch, hidden)
        }
        against_text = (features["text"], config.temperature, batch.text, config.one_way)
        losses = {
            "visual_to_text": info_nce(features["visual"], *against_text),
            "audio_to_text": info_nce(features["audio"], *against_text),
            "reconstruction": reconstruction(text, sent, batch.mask),
        }
        total = config.contrastive_weight * (losses["visual_to_text"] + losses["audio_to_text"])
        total = total + config.reconstruction_weight * losses["reconstruction"]
        return {"loss": total, **losses}, features

    @torch.inference_mode()
    def evaluate(split):
        """Mean losses over a split's whole batches (a short one is easier), all its features."""
        model.eval()
        source, done = noise_source(config.seed, accelerator), []
        for batch in held_out[split]:
            losses, features = model(forward, batch, source)
            done.append((losses, accelerator.gather_for_metrics(features)))
        model.train()
        whole = [losses for losses, _ in done[: max(1, len(clips[split]) // config.batch)]]
        means = {k: torch.stack([row[k] for row in whole]).mean().item() for k in whole[0]}
        return means, {k: torch.cat([f[k] for _, f in done]).cpu() for k in done[0][1]}

    about = {"task": "align", "config": plain(config), "models": models_used(config)}
    training = Training(log, config, about, accelerator)
    collate = Collate(system.tokenizer, config.caption_tokens)
    model, optimizer, loader, *others = accelerator.prepare(
        system,
        torch.optim.AdamW(system.trainable(), lr=config.lr),
        training_loader(clips["train"], collate, config, training.read),
        *(in_order(clips[s], collate, config.batch, config.workers) for s in ("val", "test")),
    )
    held_out = dict(zip(("val", "test"), others, strict=True))
    schedule = CosineAnnealingLR(optimizer.optimizer, config.steps, config.lr_min)
    _, before = evaluate("test")
    source = noise_source(config.seed, accelerator)
    training.prepare(model, optimizer, schedule, source)
    for number, batch in training.batches(loader, f"aligning {name}"):
        step = number // config.accumulate + 1
        with accelerator.accumulate(model):
            losses, _ = model(forward, batch, source)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                losses["gradient"] = training.clip_gradient()
            optimizer.step()
            optimizer.zero_grad()
        log.add(step, losses, [row.video_id for row in batch.rows])
        if accelerator.sync_gradients:
            schedule.step()
            if step % config.validate_every == 0 or step == config.steps:
                training.validation.append((step, evaluate("val")[0]["loss"]))
            training.done(step)

    about["step"] = config.steps
    save_checkpoint(log.path(".pth"), system.transceivers, None, about, writes=is_main)

    test_loss, after = evaluate("test")
    if not is_main:
        return None
    texts = [row.text for row in clips["test"].rows]
    ids = [row.video_id for row in clips["test"].rows]
    log.save_features({"before": before, "after": after}, ids)
    found, figures = retrieval(after, texts), []
    if config.figures != "none":
        log.read()
        keys = ["loss", "visual_to_text", "audio_to_text", "reconstruction"]
        stem, shown = Path(config.figures) / log.stem.name, 150
        title = f"t-SNE of {min(shown, len(texts))} held-out clips at {config.snr_db:g} dB"
        columns = {
            f"{when} alignment": {k: v[:shown].numpy() for k, v in features.items()}
            for when, features in (("before", before), ("after", after))
        }
        figures = [
            plots.loss_curve(
                log.rows, training.validation, keys, Path(f"{stem}-loss.png"), "alignment"
            ),
            side_by_side(columns, ids[:shown], config.seed, Path(f"{stem}-tsne.png"), title),
        ]
    metrics = log.finish(
        {
            "task": "align",
            "preset": config.preset,
            "config": plain(config),
            "steps": config.steps,
            "loss": log.ends(),
            **training.summary(),
            "held_out_loss": test_loss,
            "log_batch": math.log(min(config.batch, len(texts))),
            "retrieval": found,
            "features": {
                "before": {**retrieval(before, texts), **geometry(before)},
                "after": {**found, **geometry(after)},
            },
            "annotations": {split: vars(file) for split, file in files.items()},
            "clips": {split: len(part) for split, part in clips.items()},
            "figures": figures,
        }
    )
    training.finish()
    print(
        f"held-out clips ({len(texts)}): R@1 visual to text {found['visual_to_text_r1']:.3f}, "
        f"audio to text {found['audio_to_text_r1']:.3f}, chance {found['chance_r1']:.4f}"
    )
    print("look at:", log.path(".pth"), log.path(".json"), *figures, sep="\n  ")
    return metrics


if __name__ == "__main__":
    from utils.config import run

    run(main, PRESETS, PRESET, __doc__)
