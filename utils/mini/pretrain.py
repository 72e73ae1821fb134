"""Pretrain the mini preset's models: `python -m utils.mini.pretrain`.

Writes `checkpoint/mini/{ast,vivit,qwen2}` in the Hugging Face layout: small models of the
published classes with their own feature extractor, image processor and byte-level BPE tokenizer.
The encoders learn token by token what is heard and seen, the language model learns captions, bags
of facts, and questions about them, from scenes of the training split that neither task trains on.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch

from utils.mini.encoders import pretrain_ast, pretrain_vivit
from utils.mini.language import pretrain_qwen2
from utils.mini.world import FRAME_SIZE, FRAMES, scenes, write_videos
from utils.raw_video_preprocess import preprocess


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=6000, help="clips for the encoders")
    parser.add_argument("--texts", type=int, default=30_000, help="scenes for the language model")
    parser.add_argument("--epochs", type=int, default=14, help="passes over the clips")
    parser.add_argument("--steps", type=int, default=7500, help="language model steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=["ast", "vivit", "qwen2"], nargs="*")
    parser.add_argument("--out", type=Path, default=Path("checkpoint/mini"))
    parser.add_argument("--scratch", type=Path, default=Path("datasets/mini/pretraining"))
    args = parser.parse_args()
    wanted = args.only or ["ast", "vivit", "qwen2"]
    clips = scenes("pretraining", "train", max(args.clips, args.texts), args.seed)
    shown = dict(list(clips.items())[: args.clips])
    videos, extraction = args.scratch / "videos", args.scratch / "extraction"
    if {"ast", "vivit"} & set(wanted):
        write_videos(videos, shown, args.workers, "writing videos")
        preprocess(videos, extraction, frames=FRAMES, size=FRAME_SIZE, workers=args.workers)
    pretrain = {
        "ast": partial(pretrain_ast, extraction, shown, args.epochs),
        "vivit": partial(pretrain_vivit, extraction, shown, args.epochs),
        "qwen2": partial(pretrain_qwen2, clips, args.steps),
    }
    for name in wanted:
        torch.manual_seed(args.seed)
        began = time.time()
        result = pretrain[name](out=args.out)
        print(f"{name}: {time.time() - began:.0f} s, held out: {json.dumps(result)}")


if __name__ == "__main__":
    main()
