"""Every clip is encoded once, before training, or at every step in a run without a cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
    Files,
    Job,
    Shards,
    cache_folder,
    check_space,
    clip_bytes,
    missing,
    store,
)
from utils.data.isolated import in_processes
from utils.data.loading import context, loading, send_by_value
from utils.data.media import MediaError, Reader
from utils.data.models import model_fingerprint
from utils.mini.world import prepare_mini
from utils.training.processes import merge, share, total

CLIP_SECONDS = 600  # that the decoding of a video may take, as in the preprocessing
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
        absent |= without_media(root, [row.video_id for row in split], config.media)
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
            place = Path(config.cache) / root.name
            kept = config.media, config.cache_shard
            folder = cache_folder(place, fingerprint, way, frames, *kept)
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
            shard=config.cache_shard,
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
        with closing(read_ahead(reader, paths, config.workers)) as clips:
            for i, clip in tqdm(clips, label, len(paths), disable=quiet):
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

    def apart(self, i: int) -> tuple[Tensor, Windows | None] | str:
        """A clip, read in a process of its own."""
        torch.set_num_threads(1)
        send_by_value()
        return self[i][1]


def read_ahead(reader: Reader, paths: list[Path], workers: int) -> Iterator[tuple]:
    """Yields the items of `Inputs`, read in workers that hold no accelerator: clips one by one, of
    which the longest may fill many encoder calls. Videos come as they are ready, each decoded in a
    process of its own, as one may crash the decoder or hang it."""
    inputs = Inputs(paths, reader)
    if reader.media == "videos":
        clips = in_processes(inputs.apart, range(len(paths)), workers, CLIP_SECONDS, context())
        with closing(clips):
            for i, clip in clips:
                yield i, f"{paths[i]}: {clip[0]}" if isinstance(clip, list) else clip
    else:
        yield from DataLoader(inputs, batch_size=None, **loading(workers))


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
    shard: int = 1,
) -> dict[str, str]:
    """Encode clips and keep their tokens; returns the bad clips with their reasons.

    `ways` holds a folder for each compression, with a transmitter; they share the encoder, which
    reads a clip once for all of them.

    Clips are read in processes beside, encoded `batch` rows (clips of picture, windows of sound) at
    a time and written by a thread, each as soon as it is done, or `shard` of them in a file; so an
    interrupted run goes on where it stopped.
    """
    bad: dict[str, str] = {}
    if not todo:
        return bad
    for folder in ways:
        folder.mkdir(parents=True, exist_ok=True)
    stores = {folder: store(folder, shard) for folder in ways}
    tx = next(iter(ways.values()))
    tx.encoder.to(device)
    attention = any(way.needs_attention for way in ways.values())

    name = type(tx.encoder).__name__.removesuffix("Model")
    bar = tqdm(
        total=len(todo), desc=f"encoding {reader.kind} by {name}", unit="clip", disable=quiet
    )
    reading = read_ahead(reader, [job.path for job in todo], workers)
    with closing(reading), bar, ThreadPoolExecutor(1) as disk:
        writing = disk.submit(keep, stores, [], {})
        try:
            for part in in_calls(reading, batch):
                bad |= {todo[i].video_id: clip for i, clip in part if isinstance(clip, str)}
                good = [(todo[i], *clip) for i, clip in part if not isinstance(clip, str)]
                if good:
                    jobs, inputs, windows = map(list, zip(*good, strict=True))
                    inputs = torch.cat(inputs).to(device, non_blocking=True)  # (rows, ...)
                    clips = tx.read(inputs, windows if windows[0] else None, batch, attention)
                    found = {folder: halved(way.compress(clips)) for folder, way in ways.items()}
                    writing.result()  # a full disk shows here
                    writing = disk.submit(keep, stores, jobs, found)
                bar.update(len(part))
        finally:  # an interrupt loses nothing that was encoded
            writing.result()
            for kept in stores.values():
                kept.flush()
    return bad


def keep(stores: dict[Path, Files | Shards], jobs: list[Job], found: dict[Path, Encoded]) -> None:
    """Add the clips of a batch to each folder's store."""
    for folder, clips in found.items():
        for i, job in enumerate(jobs):
            clip = Encoded(clips.tokens[i], clips.layout.each(lambda part, i=i: part[i]))
            stores[folder].add(job, clip)
