"""The feature cache: what the frozen encoders say of a clip is computed once and kept on disk.

A clip's file holds its compressed encoder tokens in half precision, the special tokens that are its
features first. The folder's name is a hash of all that shapes them (encoder weights and
configuration, frame count, compression, length), the file names the media it was made from, so that
a changed encoder, setting or clip never reads stale tokens.
"""

import hashlib
import inspect
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from modules.token_compression import COMPRESSIONS
from modules.token_transmitter import TokenTransmitter
from utils.data.datasets import frames_path, wav_path
from utils.data.media import MediaError, frame_paths
from utils.data.models import audio_input, check_folder, video_input
from utils.files import write_whole

VERSION = 1  # raise it when the way inputs are made changes


def model_fingerprint(folder: str | Path) -> str:
    """A hash of a model folder's weights and configuration: names, sizes and contents."""
    digest = hashlib.sha256()
    for path in sorted(check_folder(folder).iterdir()):
        if path.suffix not in (".json", ".safetensors") or path.name == "revision.json":
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def cache_folder(root: str | Path, fingerprint: str, tx: TokenTransmitter, frames: int) -> Path:
    """Where the tokens of one encoder and one way to compress them are kept."""
    key = {
        "version": VERSION,
        "code": inspect.getsource(COMPRESSIONS[tx.compression]),
        "encoder": fingerprint,
        "frames": frames,
        "compression": tx.compression,
        "length": tx.length,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Path(root) / f"{type(tx.encoder).__name__}-{digest}"


def media_stamp(path: Path) -> str:
    """Names the state of a clip's media: sizes and times of its files, to the nanosecond."""
    files = frame_paths(path) if path.is_dir() else [path]
    stamps = [(f.name, (s := f.stat()).st_size, s.st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]


def read_tokens(path: Path, stamp: str | None) -> Tensor | None:
    """A clip's tokens (tokens, width), float16; None if absent, damaged or of other media."""
    try:
        with safe_open(path, "pt") as file:
            if stamp is None or (file.metadata() or {}).get("media") == stamp:
                return file.get_tensor("tokens").clone()  # it would hang on the mapped file
    except (FileNotFoundError, SafetensorError, KeyError):
        pass
    return None


@dataclass(frozen=True)
class Reader:
    """Turns a clip's media into encoder inputs (rows, ...); picklable, for loader workers."""

    processor: object
    config: object
    kind: str  # "visual" or "audio"

    def __call__(self, path: Path) -> Tensor:
        if self.kind == "audio":
            return audio_input(self.processor, path)
        return video_input(self.processor, path, self.config)[None]

    def path(self, root: str | Path, video_id: str) -> Path:
        """Where a clip's media of this kind lies."""
        return (wav_path if self.kind == "audio" else frames_path)(root, video_id)


class Job(NamedTuple):
    """A clip to encode."""

    video_id: str
    path: Path
    stamp: str


def missing(
    reader: Reader, folder: Path, root: str | Path, video_ids: list[str]
) -> tuple[list[Job], dict[str, str]]:
    """The clips whose tokens are not cached yet, and the bad ones with their reasons."""
    todo, bad = [], {}
    for video_id in dict.fromkeys(video_ids):
        path = reader.path(root, video_id)
        try:
            stamp = media_stamp(path)
        except (MediaError, OSError) as error:
            bad[video_id] = " ".join(str(error).split())
            continue
        if read_tokens(folder / f"{video_id}.safetensors", stamp) is None:
            todo.append(Job(video_id, path, stamp))
    return todo, bad


def packed(tokens: Tensor, stamp: str) -> bytes:
    """A clip's file."""
    return save({"tokens": tokens.half().contiguous()}, metadata={"media": stamp})


def clip_bytes(tx: TokenTransmitter, block: int = 4096) -> int:
    """Bytes on disk of the file of a clip of one window, in whole blocks of the file system."""
    patches = tx.encoder.embeddings.position_embeddings.shape[1] - tx.special
    tokens = torch.zeros(tx.special + min(tx.length, patches), tx.encoder.config.hidden_size)
    return -(-len(packed(tokens, 16 * "0")) // block) * block


def check_space(folder: Path, needed: int) -> str:
    """What the cache will take and what is free, to be read before it starts.

    Raises:
        OSError: when it does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    sizes = f"{needed / 1e9:.2f} GB in {folder}, where {free / 1e9:.1f} GB are free"
    if needed > free:
        raise OSError(f"the cache takes {sizes}; name a larger disk by --cache, or --cache none")
    return sizes


@dataclass
class Inputs(Dataset):
    """Reads clips as an encoder wants them; a bad clip gives its reason instead."""

    paths: list[Path]
    read: Reader

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[int, Tensor | str]:
        try:
            return i, self.read(self.paths[i])
        except (MediaError, OSError) as error:
            return i, " ".join(str(error).split())


def join_inputs(
    items: list[tuple[int, Tensor | str]],
) -> tuple[Tensor | None, list[tuple[int, int]], list[tuple[int, str]]]:
    """A batch's inputs, the number and rows of each good clip, the number and reason of each bad
    one. Done in the workers, so that what they hand over can be pinned as it is."""
    good = [(i, x) for i, x in items if not isinstance(x, str)]
    bad = [(i, x) for i, x in items if isinstance(x, str)]
    inputs = torch.cat([x for _, x in good]) if good else None
    return inputs, [(i, len(x)) for i, x in good], bad


def loading(workers: int) -> dict:
    """How loaders work: in processes that hold no accelerator and none of this process's threads,
    forked from one that has imported what they need, once."""
    if workers:
        get_context("forkserver").set_forkserver_preload(["utils.data.clips"])
    return {
        # Each loader draws its workers' seeds from here, so that reading one changes nothing else.
        "generator": torch.Generator(),
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "multiprocessing_context": "forkserver" if workers else None,
    }


def media_batches(reader: Reader, paths: list[Path], batch: int, workers: int) -> DataLoader:
    """Clips as `join_inputs` gives them, read in workers that hold no accelerator."""
    return DataLoader(
        Inputs(paths, reader), batch_size=batch, collate_fn=join_inputs, **loading(workers)
    )


def unreadable(
    reader: Reader,
    root: str | Path,
    video_ids: list[str],
    batch: int,
    workers: int,
    quiet: bool = False,
) -> dict[str, str]:
    """The clips that cannot be read, with their reasons: the check of a run without a cache."""
    paths = [reader.path(root, video_id) for video_id in video_ids]
    loader = media_batches(reader, paths, batch, workers)
    bar = tqdm(loader, f"checking {reader.kind}", unit="batch", disable=quiet)
    return {video_ids[i]: reason for _, _, bad in bar for i, reason in bad}


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

    Clips are read in loader workers, encoded in batches and written by a thread beside, each as
    soon as it is done, so that an interrupted run goes on where it stopped.
    """
    bad: dict[str, str] = {}
    if not todo:
        return bad
    for folder in ways:
        folder.mkdir(parents=True, exist_ok=True)
    tx = next(iter(ways.values()))
    tx.encoder.to(device)

    def keep(jobs: list[Job], tokens: dict[Path, Tensor]) -> None:
        for folder, clips in tokens.items():
            for job, clip in zip(jobs, clips, strict=True):
                write_whole(folder / f"{job.video_id}.safetensors", packed(clip, job.stamp))

    name = type(tx.encoder).__name__.removesuffix("Model")
    bar = tqdm(
        total=len(todo), desc=f"encoding {reader.kind} by {name}", unit="clip", disable=quiet
    )
    with bar, ThreadPoolExecutor(1) as disk:
        writing = None
        for inputs, good, failed in media_batches(reader, [j.path for j in todo], batch, workers):
            bad |= {todo[i].video_id: reason for i, reason in failed}
            if inputs is not None:
                clips = tx.read(inputs.to(device, non_blocking=True), [rows for _, rows in good])
                tokens = {f: way.compress(clips).half().cpu() for f, way in ways.items()}
                if writing is not None:
                    writing.result()  # a full disk shows here
                writing = disk.submit(keep, [todo[i] for i, _ in good], tokens)
            bar.update(len(good) + len(failed))
        if writing is not None:
            writing.result()
    return bad
