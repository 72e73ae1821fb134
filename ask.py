"""The trained system, asked about a clip of one's own: what it answers from what arrives, how
sure it is of that, and what was sent.

    python ask.py clip.mp4 "What does the left player hold?"
    python ask.py clip.mp4 --snr_db 0 --visual_tokens 8     reads questions, one a line
    python ask.py --page                                    a page in the browser, by Gradio
"""

import utils.machine  # noqa: F401, I001  before torch, which reads how its threads wait

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache, partial

from modules.digital.quantised import QUANTISED
from modules.system import MEDIA
from task_avqa import PRESETS, build_model
from utils.asking import Trained, table
from utils.checkpoints import CheckpointError, load_checkpoint, load_parts, require
from utils.config import check, fail, of_plain, run
from utils.data.models import models_used
from utils.report import page

OWN = "its run's own"


def load(checkpoint: str, **changes) -> Trained:
    """The system that a checkpoint of stage 2 holds.

    Args:
        changes: hyperparameters in place of those of the run that made the checkpoint.

    Raises:
        FileNotFoundError, ValueError: in a line, for a checkpoint or models that cannot be used.
    """
    require(checkpoint, "python task_avqa.py")
    about = load_checkpoint(checkpoint).get("about", {})
    if about.get("task") != "avqa":
        raise CheckpointError(f"{checkpoint}: not of stage 2; make one with task_avqa.py")
    made = replace(of_plain(PRESETS, about["config"]), compile=False)
    if made.channel == QUANTISED:
        raise CheckpointError(f"{checkpoint}: of quantised tokens, which cross no channel here")
    made = replace(made, answer_tokens=about.get("answer_tokens", made.answer_tokens))
    config = replace(made, **changes)
    check(config)
    # A clip is compressed as in the run, and then to the asked length; to a larger one at once.
    names = [f"{kind}_tokens" for kind in MEDIA]
    most = {name: max(getattr(made, name), getattr(config, name)) for name in names}
    model, processors = build_model(replace(config, **most))
    load_parts(checkpoint, model.system.transceivers, model.system.lora, models_used(config))
    return Trained(model, processors, config)


def questions(given: str | None) -> Iterable[str]:
    """The one that was given, or lines of standard input up to an empty one."""
    if given is not None:
        return [given]
    if sys.stdin.isatty():
        print("A question a line; an empty line ends.", flush=True)
    return iter(lambda: sys.stdin.readline().strip(), "")


def tell(
    trained: Trained, encode: Callable, bandwidth: float, video: str, question: str, *settings
) -> tuple[dict[str, float], str]:
    """The answers to a question that was asked on the page, and the table of what was sent."""
    snr_db, *lengths = settings
    told = trained.ask(encode(video), question, snr_db, lengths)
    return told.answers, table(told.sent, bandwidth)


def main(args: argparse.Namespace) -> None:
    flags = ("snr_db", "question_snr_db", "visual_tokens", "audio_tokens", "seed")
    changes = {k: v for k, v in vars(args).items() if k in flags and v is not None}
    if not 0 < args.bandwidth < math.inf:
        raise ValueError(f"--bandwidth {args.bandwidth:g}: must be a positive number of Hz")
    if args.page:
        page.check_gradio()
    elif args.clip is None:
        raise ValueError("no clip; name a video, or give --page")
    trained = load(args.checkpoint, **changes)
    c = trained.config
    if args.page:
        answers = partial(tell, trained, lru_cache(8)(trained.encode), args.bandwidth)
        longest = [tx.length for tx in trained.system.transmitters.values()]
        page.serve(page.build(answers, c.data, c.snr_db, trained.lengths, longest), c.data)
        return
    clip = trained.encode(args.clip)
    for question in questions(args.question):
        told = trained.ask(clip, question, c.snr_db, trained.lengths)
        own, *others = [f"{text or '(nothing)'} {p:.3f}" for text, p in told.answers.items()]
        print(f"answer: {own}\nrunners-up: {', '.join(others)}")
        print(table(told.sent, args.bandwidth), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: fail(message, status=2)
    parser.add_argument("clip", nargs="?", help="a video with picture and sound")
    parser.add_argument("question", nargs="?", help="without it: lines of standard input")
    parser.add_argument("--page", action="store_true", help="ask on a page in the browser")
    parser.add_argument("--checkpoint", default="checkpoint/avqa-mini.pth", help="of stage 2")
    parser.add_argument("--snr_db", type=float, help=f"dB; without it {OWN}")
    parser.add_argument("--question_snr_db", type=float, help="dB, of the question alone")
    parser.add_argument("--visual_tokens", type=int, help=f"after compression; without it {OWN}")
    parser.add_argument("--audio_tokens", type=int, help=f"after compression; without it {OWN}")
    parser.add_argument("--seed", type=int, help=f"of the noise; without it {OWN}")
    parser.add_argument("--bandwidth", type=float, default=1e6, help="Hz (%(default)g)")
    return parser.parse_args()


if __name__ == "__main__":
    run(main, parse())
