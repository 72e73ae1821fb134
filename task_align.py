"""Stage 1, token alignment: teach the transceivers of picture and sound to send tokens that the
language model's own text embeddings would recognise. Frozen encoders and language model, InfoNCE
against each clip's caption (VALOR-32K) plus text reconstruction. arXiv 2505.07841.

    python task_align.py                        the mini world, made when missing
    python task_align.py --preset paper         the published models and data
    python task_align.py --temperature 0.03     every field below is a flag
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
    cache: str = "datasets/cache"  # encoder tokens of every clip, computed once
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
    receiver_width: int = 512  # hidden units of a receiver; paper: 1024

    # Loss and optimisation
    temperature: float = 0.07  # tau of InfoNCE; paper: 0.07, swept over 0.03, 0.07, 0.13
    one_way: bool = False  # modality to text alone instead of both directions
    reconstruction_weight: float = 1.0  # of the text reconstruction beside the two InfoNCE
    batch: int = 64  # clips a step; paper: 32
    steps: int = 600  # paper: 500
    lr: float = 3e-3  # AdamW, peak; paper: 1e-4
    lr_min: float = 1e-6  # end of the cosine; paper: 1e-6
    validate_every: int = 100  # steps

    # Output folders
    out: str = "checkpoint"
    figures: str = "imgs"


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


def main(config: Config) -> None:
    import math
    from pathlib import Path

    import torch
    from torch.optim.lr_scheduler import CosineAnnealingLR
    from tqdm import tqdm

    from modules.losses import info_nce, masked_mean, reconstruction, same_caption
    from utils import plots
    from utils.checkpoints import save_checkpoint
    from utils.clips import Collate, in_order, training_loader
    from utils.datasets import read_splits, read_valor
    from utils.metrics import recall_at_1
    from utils.mini_world import prepare
    from utils.run_log import RunLog
    from utils.system import build_system, encode_clips, pick_device, plain

    name = config.name or f"align-{config.preset}-tau{config.temperature:g}"
    print(f"stage 1, token alignment: run {name}", flush=True)
    device = pick_device()
    root = Path(config.data)
    if config.preset == "mini":
        prepare(root.parent, root.name, config.mini_clips, workers=config.workers)

    system = build_system(config, device)
    rows, files, _ = read_splits(read_valor, root)
    clips = encode_clips(system, config, root, rows)
    collate = Collate(system.tokenizer, config.caption_tokens)

    def forward(batch, noise):
        """Three users send their tokens at config.snr_db, the base station restores them."""
        visual = system.receive_visual(batch.visual, config.snr_db, noise)
        audio = system.receive_audio(batch.audio, config.snr_db, noise)
        sent = system.foundation.embed(batch.ids)  # (batch, text tokens, hidden)
        text = system.receive_text(sent, batch.mask, config.snr_db, noise)
        features = {
            "visual": system.img_tx.features(visual),  # (batch, hidden), the class token
            "audio": system.audio_tx.features(audio),  # (batch, hidden), class and distillation
            "text": masked_mean(text, batch.mask),  # (batch, hidden)
        }
        same = same_caption([row.text for row in batch.rows])
        against_text = (features["text"], config.temperature, same, config.one_way)
        losses = {
            "visual_to_text": info_nce(features["visual"], *against_text),
            "audio_to_text": info_nce(features["audio"], *against_text),
            "reconstruction": reconstruction(text, sent, batch.mask),
        }
        contrastive = losses["visual_to_text"] + losses["audio_to_text"]
        total = contrastive + config.reconstruction_weight * losses["reconstruction"]
        return {"loss": total, **losses}, features

    @torch.inference_mode()
    def evaluate(split):
        """Mean losses over a split's whole batches (a short one is easier), all its features."""
        system.train(False)
        noise = system.noise(config.seed)
        done = [forward(b.to(device), noise) for b in in_order(clips[split], collate, config.batch)]
        system.train(True)
        whole = [losses for losses, _ in done[: max(1, len(clips[split]) // config.batch)]]
        means = {k: torch.stack([row[k] for row in whole]).mean().item() for k in whole[0]}
        return means, {k: torch.cat([f[k] for _, f in done]).cpu() for k in done[0][1]}

    optimizer = torch.optim.AdamW(system.trainable(), lr=config.lr)
    schedule = CosineAnnealingLR(optimizer, config.steps, config.lr_min)
    loader = training_loader(
        clips["train"], collate, config.batch, config.steps, config.seed, config.workers
    )
    noise = system.noise(config.seed)
    log = RunLog(Path(config.out) / name)
    _, before = evaluate("test")
    validation = []
    bar = tqdm(loader, f"aligning at {config.snr_db:g} dB", unit="step")
    for step, batch in enumerate(bar, start=1):
        losses, _ = forward(batch.to(device), noise)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        schedule.step()
        log.add(step, losses, bar)
        if step % config.validate_every == 0 or step == config.steps:
            validation.append((step, evaluate("val")[0]["loss"]))

    checkpoint = Path(config.out) / f"{name}.pth"
    about = {"task": "align", "config": plain(config), "models": system.about, "step": config.steps}
    save_checkpoint(checkpoint, system.transceivers, None, about)

    held_out, after = evaluate("test")
    texts = [row.text for row in clips["test"].rows]
    retrieval = {
        "audio_to_text_r1": recall_at_1(after["audio"], after["text"], texts),
        "visual_to_text_r1": recall_at_1(after["visual"], after["text"], texts),
        "chance_r1": 1 / len(set(texts)),
        "n": len(texts),
    }
    log.read()
    keys = ["loss", "visual_to_text", "audio_to_text", "reconstruction"]
    stem, shown = Path(config.figures) / name, 150
    figures = [
        plots.loss_curve(log.rows, validation, keys, Path(f"{stem}-loss.png"), "token alignment"),
        plots.tsne_before_after(
            {k: v[:shown].numpy() for k, v in before.items()},
            {k: v[:shown].numpy() for k, v in after.items()},
            config.seed,
            Path(f"{stem}-tsne.png"),
            f"t-SNE of {min(shown, len(texts))} held-out clips at {config.snr_db:g} dB",
        ),
    ]
    log.finish(
        {
            "task": "align",
            "preset": config.preset,
            "config": plain(config),
            "steps": config.steps,
            "loss": log.ends(),
            "held_out_loss": held_out,
            "log_batch": math.log(min(config.batch, len(texts))),
            "retrieval": retrieval,
            "annotations": {split: vars(file) for split, file in files.items()},
            "clips": {split: len(part) for split, part in clips.items()},
            "figures": figures,
        }
    )
    print(
        f"held-out clips ({len(texts)}): R@1 visual to text {retrieval['visual_to_text_r1']:.3f}, "
        f"audio to text {retrieval['audio_to_text_r1']:.3f}, chance {retrieval['chance_r1']:.4f}"
    )
    print("look at:", checkpoint, f"{config.out}/{name}.json", *figures, sep="\n  ")


if __name__ == "__main__":
    from utils.config import run

    run(main, PRESETS, PRESET, __doc__)
