"""The mini world, part 6: written to disk exactly as VALOR-32K and MUSIC-AVQA are laid out.

    datasets/mini/VALOR/        videos/ID.mp4  annotations/desc_{train,val,test}.json  extraction/
    datasets/mini/MUSIC-AVQA/   videos/ID.mp4  annotations/avqa-{train,val,test}.json  extraction/

Everything is generated from a seed: `python -m utils.mini.world` writes it, and both task scripts
call `prepare` when the preset is `mini` and the data is missing.
"""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from utils.data.sources import VERSION
from utils.files import whole, write_whole
from utils.machine import end_with_parent
from utils.mini.scenes import SPLITS, Scene, draw_scene
from utils.mini.sounds import SAMPLE_RATE, render_sound
from utils.mini.sprites import FPS, HEIGHT, WIDTH, render_frames
from utils.mini.text import caption, questions
from utils.raw_video_preprocess import preprocess

MARKER = "world.json"
MADE = ("annotations", "videos", "extraction")  # in a data set's folder
CLIPS = {"VALOR": (1600, 128, 160), "MUSIC-AVQA": (1200, 96, 256)}  # train, val, test
QUESTIONS_A_CLIP = {"train": 12, "val": 6, "test": 6}
WORLD = 2  # raise it when the same seed gives other clips or texts
FRAMES, FRAME_SIZE = 16, 64  # what preprocessing extracts from a clip: frames, pixels
# Each data set, and the pretraining of the mini models, reads its own stretch of a split's
# endless stream of scenes, so that no two of them share a clip.
FIRST_SCENE = {"VALOR": 0, "MUSIC-AVQA": 100_000, "pretraining": 200_000}


def write_video(path: Path, scene: Scene) -> None:
    """Render a scene to an H.264 + AAC mp4, written whole or not at all."""
    with whole(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        video = container.add_stream(
            "libx264", rate=FPS, options={"preset": "veryfast", "crf": "20"}
        )
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1
        # The default coder takes ten times as long for a difference that no model hears.
        coder = {"aac_coder": "fast"}
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options=coder)
        audio.bit_rate = 64_000
        for image in render_frames(scene):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(render_sound(scene)[None], format="fltp", layout="mono")
        sound.sample_rate = SAMPLE_RATE
        container.mux(audio.encode(sound))
        container.mux(audio.encode())


def clip_id(dataset: str, split: str, index: int, scene: Scene) -> str:
    """An id in the data set's own form: VALOR's YouTube id with times, MUSIC-AVQA's number."""
    if dataset == "VALOR":
        return f"mini-{split[:2]}{index:04d}_0.000_3.000"
    number = f"{SPLITS.index(split) * 10_000 + index:08d}"
    # MUSIC-AVQA's synthetic videos, whose sound was replaced, have letters before the number.
    return f"sa{number}" if scene.off_stage is not None else number


def scenes(dataset: str, split: str, count: int, seed: int) -> dict[str, Scene]:
    """The scenes of a split by clip id."""
    drawn = (draw_scene(seed, split, FIRST_SCENE[dataset] + i) for i in range(count))
    return {clip_id(dataset, split, i, scene): scene for i, scene in enumerate(drawn)}


def valor_rows(clips: dict[str, Scene]) -> list[dict]:
    """VALOR's annotation: one caption a clip."""
    return [
        {"video_id": name, "desc": caption(s, np.random.default_rng((*s.seed, 50)))}
        for name, s in clips.items()
    ]


def music_avqa_rows(clips: dict[str, Scene], a_clip: int) -> list[dict]:
    """MUSIC-AVQA's annotation: up to `a_clip` questions a clip, the answers of each template
    balanced so that the question alone says little about its answer."""
    pools = {n: questions(s, np.random.default_rng((*s.seed, 51))) for n, s in clips.items()}
    taken: dict[str, Counter] = defaultdict(Counter)
    for row in chain(*pools.values()):
        taken[row["question_content"]][row["anser"]] = 0
    kept = []

    def share(row: dict) -> float:  # how far a row's answer is taken, comparable over templates
        answers = taken[row["question_content"]]
        return answers[row["anser"]] * len(answers)

    for name, pool in pools.items():
        for _ in range(a_clip):
            answers = ((row, taken[row["question_content"]]) for row in pool)
            fair = [r for r, c in answers if c[r["anser"]] <= 1.1 * min(c.values()) + 2]
            if not fair:
                break
            row = min(fair, key=share)
            pool.remove(row)
            taken[row["question_content"]][row["anser"]] += 1
            kept.append({"video_id": name, **row, "question_id": len(kept), "question_deleted": 0})
    return kept


def write_videos(folder: Path, clips: dict[str, Scene], workers: int, label: str) -> None:
    """Write the clips that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / f"{name}.mp4": scene for name, scene in clips.items()}
    lacking = {path: scene for path, scene in paths.items() if not path.exists()}
    if not lacking:
        return
    with ProcessPoolExecutor(max(1, workers), get_context("spawn"), end_with_parent) as pool:
        written = pool.map(write_video, lacking, lacking.values(), chunksize=4)
        list(tqdm(written, label, len(lacking), unit="clip"))


def check_own(folder: Path) -> None:
    """ValueError where a folder cannot be a mini world's: by its name, or as it holds something and
    no marker, which is the first file that is written there."""
    if folder.name not in CLIPS:
        raise ValueError(
            f"{folder}: a mini world's folder is named {' or '.join(CLIPS)}; "
            "name it so by --data, or add --preset paper for data of your own"
        )
    others = folder.iterdir() if folder.exists() and not (folder / MARKER).exists() else ()
    if any(not path.name.startswith(f".{MARKER}.") for path in others):
        raise ValueError(
            f"{folder}: holds data that is not the mini world's, which is only written into a "
            "folder of its own; add --preset paper to read it, or name an empty folder by --data"
        )


def settle_marker(folder: Path, stamp: dict) -> None:
    """See that a folder has the marker of this mini world."""
    marker = folder / MARKER
    if marker.exists():
        found = json.loads(marker.read_text())
        if found == stamp:
            return
        if any(found.get(key) != stamp[key] for key in ("seed", "clips")):
            raise ValueError(
                f"{folder}: holds a mini world of another seed or size; remove it first"
            )
        # What an earlier version made here is made anew.
        outdated = ["extraction"] if found.get("world") == WORLD else [*MADE]
        for part in outdated:
            shutil.rmtree(folder / part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(marker, json.dumps(stamp))


def prepare(
    root: Path, dataset: str, clips: Sequence[int], seed: int = 0, workers: int = 2
) -> Path:
    """Write one data set of the mini world and preprocess it; what stands is kept, and nothing is
    written where all of it does.

    Its marker is the first file that is written, and only into a folder that is empty or not there:
    whatever else lies in a folder of that name is somebody's own.

    Args:
        root: folder of the mini world.
        dataset: `VALOR` or `MUSIC-AVQA`, the data set's folder in it.
        clips: number of clips in train, val and test.
        seed: of the world.
        workers: processes.

    Returns the data set's folder. Raises ValueError for a data set of another name, and where
    another world or data of one's own stands in its place.
    """
    counts = dict(zip(SPLITS, clips, strict=True))
    folder = root / dataset
    stamp = {"seed": seed, "clips": counts, "world": WORLD, "extraction": VERSION}
    check_own(folder)  # before anything is written beside it
    root.mkdir(parents=True, exist_ok=True)
    # A second first run waits for this one. A world that is complete may be read-only.
    with FileLock(root / f".{dataset}.lock") if os.access(root, os.W_OK) else nullcontext():
        write(folder, stamp, workers)
    return folder


def write(folder: Path, stamp: dict, workers: int) -> None:
    """What `prepare` says, as the only process that does."""
    dataset, counts, seed = folder.name, stamp["clips"], stamp["seed"]
    settle_marker(folder, stamp)
    annotations, everything = folder / "annotations", {}
    annotations.mkdir(exist_ok=True)
    for split in SPLITS:
        drawn = scenes(dataset, split, counts[split], seed)
        everything |= drawn
        valor = dataset == "VALOR"
        path = annotations / (f"desc_{split}.json" if valor else f"avqa-{split}.json")
        if not path.exists():
            rows = valor_rows(drawn) if valor else music_avqa_rows(drawn, QUESTIONS_A_CLIP[split])
            write_whole(path, json.dumps(rows, indent=1))
    videos, extraction = folder / "videos", folder / "extraction"
    write_videos(videos, everything, workers, f"{dataset}-mini: writing videos")
    preprocess(videos, extraction, frames=FRAMES, size=FRAME_SIZE, workers=workers)


def prepare_mini(config: Any, accelerator: Any) -> None:
    """In the mini preset, make the data set that a task script's hyperparameters name, once."""
    folder = Path(config.data)
    if config.preset == "mini":
        with accelerator.main_process_first():
            prepare(folder.parent, folder.name, config.mini_clips, workers=config.workers)


if __name__ == "__main__":
    for each, counts_ in CLIPS.items():
        print(prepare(Path("datasets/mini"), each, counts_))
