"""Turn a folder of videos into the extraction folder that the data sets read.

`python utils/raw_video_preprocess.py VIDEOS OUT` writes OUT/ast_audio/ID.wav (16 kHz, mono, 16 bit)
and OUT/vivit_frames/ID/frame_0001.png and so on for each video ID.mp4, over the whole clip. A clip
is finished when its results are those of the file that lies there now: the same command continues
an interrupted run, and does a replaced file again. Results that were made by hand, or by an earlier
version, are kept. Let only one run at a time write to OUT. Bad clips are listed at the end with
their reasons and leave the exit status 0; it is 1 if the run could not go on. Clips are decoded in
processes of their own, so that one that crashes or hangs the decoder costs itself alone. `--help`
lists the options.
"""

import argparse
import json
import math
import os
import sys
from collections import Counter
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

if __name__ == "__main__":  # run as a file: what it needs lies beside utils/, not in it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.data.extraction import SAMPLE_RATE, extract_clip  # noqa: E402
from utils.data.isolated import in_processes  # noqa: E402
from utils.data.sources import (  # noqa: E402
    RECORDS,
    SCRATCH,
    by_hand,
    finished,
    read_record,
    remove,
)
from utils.data.tracks import SUFFIXES  # noqa: E402
from utils.files import write_whole  # noqa: E402

LONGEST = 1_000_000  # s that a clip may be given


@dataclass
class Summary:
    """Clips finished by this run and before it, and by name: the reasons of those that failed, what
    else is to be known of any, and results that were there before; files not taken, by suffix."""

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    not_taken: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        # repr, because a name may hold control characters or bytes that no terminal can show
        lines = [
            f"{self.done} done, {self.skipped} already finished, {len(self.failed)} incomplete"
        ]
        lines += [f"  {name!r}: {why}" for name, why in sorted(self.failed.items())]
        if self.notes:
            lines.append(f"{len(self.notes)} with notes:")
        lines += [f"  {name!r}: {what}" for name, what in sorted(self.notes.items())]
        if self.kept:
            names = ", ".join(map(repr, self.kept[:10])) + (", ..." if len(self.kept) > 10 else "")
            lines.append(
                f"{len(self.kept)} kept as they were, made by hand or by an earlier version; "
                f"remove their sound and frames to have them made anew: {names}"
            )
        if self.not_taken:
            kinds = ", ".join(f"{count} {kind!r}" for kind, count in self.not_taken.most_common(10))
            lines.append(f"{self.not_taken.total()} not taken, no videos by name: {kinds}")
        return "\n".join(lines)


def preprocess(
    videos: Path,
    out: Path,
    frames: int = 32,
    fps: float | None = None,
    size: int = 224,
    workers: int = 2,
    clip_seconds: float = 600,
    quiet: bool = False,
) -> Summary:
    """Extract each video lying in `videos` to `out`, `workers` clips at a time.

    Takes `frames` frames a clip, or about `fps` frames a second, each size x size pixels. A bad
    clip, or one that takes longer than `clip_seconds`, is listed, keeps what it has (frames without
    sound, say) and is tried again next time.
    Raises ValueError if there are no videos, a setting is impossible or `out` was made with other
    settings, and OSError if `out` cannot be written.
    """
    videos, out, summary = Path(videos), Path(out), Summary()
    if not 0 < clip_seconds <= LONGEST:
        raise ValueError(f"clip_seconds {clip_seconds}: give a number above 0, at most {LONGEST}")
    clips = find_clips(videos, summary)
    settle_settings(out, frames, fps, size)
    # A second run waits for the first one, and finds its clips done. A folder that is complete may
    # be read-only.
    with FileLock(out / RECORDS / ".lock") if os.access(out, os.W_OK) else nullcontext():
        remove_unfinished(out)  # of a run that was killed
        todo = []
        for clip in clips:
            if by_hand(clip, out):
                summary.kept.append(clip.name)
            elif finished(clip, out):
                summary.skipped += 1
            else:
                todo.append(clip)
        extract = partial(extract_clip, out=out, frames=frames, fps=fps, size=size)
        bar = tqdm(total=len(todo), unit="clip", disable=quiet or not todo)
        try:
            with bar, closing(in_processes(extract, todo, workers, clip_seconds)) as results:
                for clip, problems in results:
                    if problems:
                        summary.failed[clip.name] = "; ".join(problems)
                    else:
                        summary.done += 1
                    bar.update()
        finally:
            remove_unfinished(out)  # of a decoder that was ended
    records = {clip.name: read_record(clip, out) for clip in clips}
    summary.notes = {name: "; ".join(r["notes"]) for name, r in records.items() if r and r["notes"]}
    if not quiet:
        print(summary)
    return summary


def find_clips(videos: Path, summary: Summary) -> list[Path]:
    """The videos of a folder in order of name; a second one of the same ID is listed as failed."""
    if not videos.is_dir():
        raise ValueError(f"{videos}: no such folder; give the folder that holds the videos")
    clips = {}
    for path in sorted(videos.iterdir()):
        if other := no_video(path):
            summary.not_taken[other] += 1
            continue
        if not path.is_file():  # to read a pipe would wait for ever
            summary.failed[path.name] = "is not a file, or a link to nothing"
            continue
        if len(os.fsencode(path.stem)) > 200:  # of the 255 that a file's name may have
            summary.failed[path.name] = "has a name of more than 200 bytes; rename it"
            continue
        first = clips.setdefault(path.stem, path)
        if first != path:
            summary.failed[path.name] = f"has the same ID as {first.name!r}; rename one of the two"
    if not clips:
        raise ValueError(f"{videos}: holds no videos ({' '.join(SUFFIXES)}); give their own folder")
    return list(clips.values())


def no_video(path: Path) -> str | None:
    """What a path is by its name, if that is no video."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "folder"
    suffix = path.suffix.lower()
    return None if suffix in SUFFIXES else suffix or "no suffix"


def settle_settings(out: Path, frames: int, fps: float | None, size: int) -> None:
    """Keep the settings beside the results, so that a folder never mixes clips of two kinds."""
    if min(frames, size) < 1 or (fps is not None and not 0 < fps < math.inf):
        raise ValueError(f"frames {frames}, fps {fps}, size {size}: give positive numbers")
    settings = {"frames": None if fps else frames, "fps": fps and float(fps), "size": size}
    asked = settings | {"sample_rate": SAMPLE_RATE}
    path = out / "extraction.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asked) + "\n")
        return
    try:
        kept = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path}: not valid JSON; use another output folder") from None
    if kept != asked:
        raise ValueError(
            f"{path}: this folder was made with {kept}, not {asked}; "
            "use the same settings or another output folder"
        )


def remove_unfinished(out: Path) -> None:
    for part in out.glob(SCRATCH + "*"):
        remove(part)


def main() -> None:
    parser = argparse.ArgumentParser(description="Turn a folder of videos into frames and sound.")
    parser.add_argument("videos", type=Path, help="folder of videos (" + " ".join(SUFFIXES) + ")")
    parser.add_argument("out", type=Path, help="extraction folder to write")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--frames", type=int, default=32, help="frames a clip (%(default)s)")
    amount.add_argument("--fps", type=float, help="frames a second, in place of --frames")
    parser.add_argument("--size", type=int, default=224, help="side of a frame, pixels (224)")
    parser.add_argument("--workers", type=int, default=2, help="clips at a time (%(default)s)")
    seconds = "longest that a clip may take before it is given up (%(default)s)"
    parser.add_argument("--clip_seconds", type=float, default=600, help=seconds)
    try:
        preprocess(**vars(parser.parse_args()))
    except ValueError as error:
        sys.exit(str(error))
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        sys.exit(f"{what}; free space or give another OUT, then run again: finished clips are kept")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")


if __name__ == "__main__":
    main()
