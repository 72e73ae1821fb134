"""Stage 1, token alignment: teach the transceivers of picture and sound to send tokens that the
language model's own text embeddings would recognise. Frozen encoders and language model, InfoNCE
against each clip's caption (VALOR-32K) plus the loss of writing it. arXiv 2505.07841.

    python task_align.py                        the mini world, made when missing
    python task_align.py --preset paper         the published models and data
    python task_align.py --preset published     and the published recipe
    python task_align.py --temperature 0.03     every field below, and of StageConfig, is a flag
"""

import utils.machine  # noqa: F401, I001  before torch, which reads how its threads wait

import math
from dataclasses import dataclass, replace
from functools import partial

import torch

from modules.system import Alignment
from utils.config import PAPER, PUBLISHED, StageConfig, run_script, values
from utils.data.clips import Collate
from utils.data.datasets import read_valor
from utils.data.encoding import load_clips
from utils.data.models import build_system
from utils.report.metrics import geometry, retrieval
from utils.report.plots import draw_all, loss_curve
from utils.report.tsne import own_captions, side_by_side, tsne_points
from utils.report.tsne_page import page_of_clips
from utils.training.run import Run

PRESET = "mini"  # "mini" (any machine), "paper" or "published"; edit here, or say --preset
SHOWN = 150  # held-out clips in the t-SNE


@dataclass
class Config(StageConfig):
    """Hyperparameters of stage 1 in the mini preset; the paper's value in each comment. Models,
    tokens, channel and folders stand in StageConfig (utils/config.py)."""

    seed: int = 3407  # paper: 3407
    data: str = "datasets/mini/VALOR"  # folder; mini: only its own; paper: datasets/VALOR
    mini_clips: list[int] = values(1600, 128, 160)  # of the mini world: train, val, test
    threads: int = 2  # of each process on a CPU; 0: all its cores; paper preset: 0
    caption_tokens: int = 256  # captions are cut there; paper: 256
    snr_db: float = 10.0  # dB, training and evaluation; paper: 10

    # Loss
    contrast: str = "all"  # special tokens or all of them; paper: special
    temperature: float = 0.07  # tau of InfoNCE; paper: 0.07
    one_way: bool = False  # modality to text only instead of both directions
    contrastive_weight: float = 1.0  # of the two InfoNCE
    reconstruction_weight: float = 1.0  # of the text reconstruction
    caption_weight: float = 1.0  # of writing the caption, nats a token; paper: 0

    # Optimisation
    batch: int = 32  # clips that are told apart, over all processes; paper: 32
    steps: int = 200  # paper: 500
    lr: float = 3e-3  # AdamW, peak; paper: 1e-4
    clip: float = 0.0  # largest norm of a step's gradient; 0 leaves it as it is


PRESETS = {
    "mini": Config(),
    "paper": Config(**PAPER, data="datasets/VALOR", steps=500, warm_up=30, clip=1.0),
}
PRESETS["published"] = replace(
    PRESETS["paper"], **PUBLISHED, contrast="special", caption_weight=0.0, lr=1e-4
)


def main(config: Config) -> dict | None:
    if config.batch == 1:
        raise ValueError("--batch 1: must be 2 or more, as a clip is told apart from the others")
    run = Run("align", config, f"align-{config.preset}-tau{config.temperature:g}")
    if run.finished:
        return run.finished
    config = run.config

    # Frozen encoders and language model, trained projections and receivers; each clip encoded once.
    system, processors = build_system(config)
    clips = load_clips(config, read_valor, system, processors.readers, run.accelerator)
    if len(clips["train"]) < 2:
        raise ValueError(f"{config.data}: one clip to train on; alignment tells apart 2 or more")
    collate = Collate(processors.tokenizer, config.caption_tokens)
    model, loaders = run.prepare(Alignment(system, config), clips, collate, config.batch)

    _, before = evaluate(model, loaders["test"], run)
    for step, batch in run.batches(loaders["train"], "aligning"):
        losses, _ = model(batch, run.noise)  # three users send, the base station restores
        run.step(step, losses, batch)
        if run.validates(step):
            run.validated(step, evaluate(model, loaders["val"], run)[0]["loss"])
    run.save()

    losses, after = evaluate(model, loaders["test"], run)
    if not run.is_main:
        return None
    rows = clips["test"].rows
    texts, ids = [row.text for row in rows], [row.video_id for row in rows]
    run.log.save_features({"before": before, "after": after}, ids)
    found = retrieval(after, texts)
    print(
        f"held-out clips ({len(texts)}): R@1 visual to text {found['visual_to_text_r1']:.3f}, "
        f"audio to text {found['audio_to_text_r1']:.3f}, chance {found['chance_r1']:.4f}"
    )
    results = {
        "held_out_loss": losses,
        "log_batch": math.log(min(config.batch, len(texts))),
        "retrieval": found,
        "features": {
            "before": {**retrieval(before, texts), **geometry(before)},
            "after": {**found, **geometry(after)},
        },
        "clips": {split: len(part) for split, part in clips.items()},
    }
    sets = {"before alignment": before, "after alignment": after}
    return run.finish(results, partial(draw, run, sets))


@torch.inference_mode()
def evaluate(model, loader, run: Run) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Mean losses over a split's whole batches (a short one is easier), and the features of all its
    clips by modality, (clips, hidden)."""
    noise, losses, features = run.fresh_noise(), [], []
    model.eval()
    for batch in loader:
        of_batch, found = model(batch, noise)
        losses.append(of_batch)
        features.append(run.accelerator.gather_for_metrics(found))
    model.train()
    clips = sum(len(found["text"]) for found in features)
    whole = losses[: max(1, clips // run.config.batch)]
    means = {k: torch.stack([row[k] for row in whole]).mean().item() for k in whole[0]}
    return means, {k: torch.cat([found[k] for found in features]).cpu() for k in features[0]}


def draw(run: Run, sets: dict[str, dict[str, torch.Tensor]], stem: str) -> dict:
    """The losses, and t-SNE of held-out features before and after: a picture, and a page to
    explore. Returns the figures' paths, and the share of clips whose own caption is the nearest."""
    rows = run.clips["test"].rows[:SHOWN]
    texts, ids = [row.text for row in rows], [row.video_id for row in rows]
    models = {
        name: tsne_points({k: v[:SHOWN].numpy() for k, v in features.items()}, run.config.seed)
        for name, features in sets.items()
    }
    shares = {name: own_captions(points, texts) for name, points in models.items()}
    notes = [
        f"own caption nearest: picture {100 * share['visual']:.0f} %, "
        f"sound {100 * share['audio']:.0f} %"
        for share in shares.values()
    ]
    print(f"t-SNE of {len(rows)} of them: {notes[-1]}")

    keys = [key for key in run.log.rows[0] if key not in ("step", "gradient")]
    data = (run.config.data, run.config.media)
    losses = (run.log.rows, run.validation, keys)
    title = f"t-SNE of {len(rows)} held-out clips at {run.config.snr_db:g} dB"
    figures = draw_all({
        f"{stem}-loss.png": partial(loss_curve, *losses, title="alignment"),
        f"{stem}-tsne.png": partial(side_by_side, models, ids, notes, title),
        f"{stem}-tsne.html": partial(page_of_clips, models, rows, *data),
    })  # fmt: skip
    return {"tsne": {"clips": len(rows), "own_caption_nearest": shares}, "figures": figures}


if __name__ == "__main__":
    run_script(main, PRESETS, PRESET, __doc__)
