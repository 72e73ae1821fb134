"""Every clip is encoded once, before training, or at every step in a run without a cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from modules.system import System
from modules.token_transmitter import Encoded, TokenTransmitter, Windows
from utils.data.clips import ClipMedia, Clips, ClipTokens, by_clip
from utils.data.datasets import DataError, listing, read_splits, without_media
from utils.data.features import (
    Job,
    cache_folder,
    check_space,
    clip_bytes,
    missing,
    model_fingerprint,
    packed,
)
from utils.data.loading import loading
from utils.data.media import MediaError, Reader
from utils.files import write_whole
from utils.mini.world import prepare_mini
from utils.training.processes import merge, share, total

# Visual tokens, audio tokens and compression, for which clips are cached.
Way = tuple[int, int, str]


def load_clips(
    config: Any,
    read: Callable,
    system: System,
    readers: dict[str, Reader],
    accelerator: Accelerator,
    also: Sequence[Way] = (),
) -> Clips:
    """The rows of every split with their clips' tokens, those of a clip one after the other.

    Each process encodes its share of what is not cached yet; then the encoders are released.
    With `--cache none` clips are only checked here, and encoded at every step. Compressions named
    in `also` are cached along, at no further call of the encoders. In the mini preset the data set
    is made first if it is missing.

    Args:
        read: `read_valor` or `read_music_avqa`.
        readers: of media, as `build_system` gives them.

    Raises:
        DataError: for annotations that cannot be read, or a split of which no clip is left.
    """
    root = Path(config.data)
    prepare_mini(config, accelerator)
    rows, files = read_splits(read, root)
    absent, video_ids = {}, []
    for split in rows.values():
        absent |= without_media(root, [row.video_id for row in split])
        video_ids += [row.video_id for row in split if row.video_id not in absent]
    video_ids = share(list(dict.fromkeys(video_ids)), accelerator)
    if config.cache == "none":
        folders, bad = {}, unreadable_clips(config, readers, root, video_ids, accelerator)
    else:
        folders, bad = fill_cache(system, config, readers, root, video_ids, accelerator, also)
    left_out = dict(sorted((absent | merge(bad)).items()))  # which also waits for all processes
    if left_out:
        accelerator.print(listing(left_out), flush=True)
    if folders:
        system.release_encoders()
    splits = {}
    for split, part in rows.items():
        good = by_clip([row for row in part if row.video_id not in left_out])
        if not good:
            raise DataError(f"{root}: no clip of the {split} split is left to read")
        splits[split] = ClipTokens(good, folders) if folders else ClipMedia(good, root, readers)
    clips = Clips(splits, files, {split: len(part) for split, part in rows.items()}, left_out)
    accelerator.print(clips.summary(), flush=True)
    return clips


def fill_cache(
    system: System,
    config: Any,
    readers: dict[str, Reader],
    root: Path,
    video_ids: list[str],
    accelerator: Accelerator,
    also: Sequence[Way] = (),
) -> tuple[dict[str, Path], dict[str, str]]:
    """Encode the clips that are not cached; the cache's folders, and the bad clips."""
    models = {"visual": config.visual_encoder, "audio": config.audio_encoder}
    folders, ways, jobs, bad, size = {}, {}, {}, {}, 0
    for i, (kind, tx) in enumerate(system.transmitters.items()):
        frames = getattr(tx.encoder.config, "num_frames", 0)
        fingerprint = model_fingerprint(models[kind])
        wanted: dict[str, Job] = {}
        ways[kind] = {}
        for way in (tx, *(tx.compressing(w[i], w[2]) for w in also)):
            folder = cache_folder(Path(config.cache) / root.name, fingerprint, way, frames)
            if folder in ways[kind]:
                continue
            ways[kind][folder] = way
            todo, lost = missing(readers[kind], folder, root, video_ids)
            wanted |= {job.video_id: job for job in todo}
            bad |= lost
            size += total(len(todo)) * clip_bytes(way)
        folders[kind] = next(iter(ways[kind]))
        jobs[kind] = list(wanted.values())
    if size:
        accelerator.print(f"the cache grows by {check_space(Path(config.cache), size)}", flush=True)
    for kind in ways:
        bad |= cache_tokens(
            ways[kind],
            readers[kind],
            jobs[kind],
            accelerator.device,
            config.encode_batch,
            config.workers,
            quiet=not accelerator.is_main_process,
        )
    return folders, bad


def unreadable_clips(
    config: Any,
    readers: dict[str, Reader],
    root: Path,
    video_ids: list[str],
    accelerator: Accelerator,
) -> dict[str, str]:
    """The clips that cannot be read, with their reasons: the check of a run without a cache."""
    found = {}
    for reader in readers.values():
        paths = [reader.path(root, video_id) for video_id in video_ids]
        quiet = not accelerator.is_main_process
        label = f"checking {reader.kind}"
        for i, clip in tqdm(read_ahead(reader, paths, config.workers), label, disable=quiet):
            if isinstance(clip, str):
                found[video_ids[i]] = clip
    return found


@dataclass
class Inputs(Dataset):
    """Reads clips as an encoder wants them; a bad clip gives its reason instead."""

    paths: list[Path]
    read: Reader

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[int, tuple[Tensor, Windows | None] | str]:
        try:
            return i, self.read(self.paths[i])
        except (MediaError, OSError) as error:
            return i, " ".join(str(error).split())


def read_ahead(reader: Reader, paths: list[Path], workers: int) -> DataLoader:
    """Yields the items of `Inputs`, read in workers that hold no accelerator: clips one by one, of
    which the longest may fill many encoder calls."""
    return DataLoader(Inputs(paths, reader), batch_size=None, **loading(workers))


def in_calls(clips: Iterable, rows: int) -> Iterator[list]:
    """Clips as they fill encoder calls of about so many rows, bad ones among them."""
    waiting, count = [], 0
    for i, clip in clips:
        waiting.append((i, clip))
        count += 0 if isinstance(clip, str) else len(clip[0])
        if count >= rows:
            yield waiting
            waiting, count = [], 0
    if waiting:
        yield waiting


def halved(clips: Encoded) -> Encoded:
    """As clips are kept: their tokens in half precision, in the host's memory."""
    return clips._replace(tokens=clips.tokens.half().cpu())


@torch.inference_mode()
def cache_tokens(
    ways: dict[Path, TokenTransmitter],
    reader: Reader,
    todo: list[Job],
    device: torch.device,
    batch: int = 32,
    workers: int = 2,
    quiet: bool = False,
) -> dict[str, str]:
    """Encode clips and keep their tokens; returns the bad clips with their reasons.

    `ways` holds a folder for each compression, with a transmitter; they share the encoder, which
    reads a clip once for all of them.

    Clips are read in loader workers, encoded `batch` rows (clips of picture, windows of sound) at a
    time and written by a thread beside, each as soon as it is done, so that an interrupted run goes
    on where it stopped.
    """
    bad: dict[str, str] = {}
    if not todo:
        return bad
    for folder in ways:
        folder.mkdir(parents=True, exist_ok=True)
    tx = next(iter(ways.values()))
    tx.encoder.to(device)
    attention = any(way.needs_attention for way in ways.values())

    def keep(jobs: list[Job], found: dict[Path, Encoded]) -> None:
        for folder, clips in found.items():
            for i, job in enumerate(jobs):
                clip = Encoded(clips.tokens[i], clips.layout.each(lambda part, i=i: part[i]))
                write_whole(folder / f"{job.video_id}.safetensors", packed(clip, job.stamp))

    name = type(tx.encoder).__name__.removesuffix("Model")
    bar = tqdm(
        total=len(todo), desc=f"encoding {reader.kind} by {name}", unit="clip", disable=quiet
    )
    with bar, ThreadPoolExecutor(1) as disk:
        writing = None
        for part in in_calls(read_ahead(reader, [job.path for job in todo], workers), batch):
            bad |= {todo[i].video_id: clip for i, clip in part if isinstance(clip, str)}
            good = [(todo[i], *clip) for i, clip in part if not isinstance(clip, str)]
            if good:
                jobs, inputs, windows = map(list, zip(*good, strict=True))
                inputs = torch.cat(inputs).to(device, non_blocking=True)  # (rows, ...)
                clips = tx.read(inputs, windows if windows[0] else None, batch, attention)
                found = {folder: halved(way.compress(clips)) for folder, way in ways.items()}
                if writing is not None:
                    writing.result()  # a full disk shows here
                writing = disk.submit(keep, jobs, found)
            bar.update(len(part))
        if writing is not None:
            writing.result()
    return bad
