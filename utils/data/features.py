"""The feature cache: what the frozen encoders say of a clip is computed once and kept on disk.

What is kept of a clip are its compressed encoder tokens in half precision, the special tokens that
are its features first, and the layout of the others, by which they may be compressed further. They
are a file of their own, or share a large one, a shard, with other clips. The folder's name is a
hash of all that shapes them (encoder weights and configuration, frame count, compression, length),
and each clip stands with the state of the media it was made from, so that a changed encoder,
setting or clip never reads stale tokens.
"""

import hashlib
import inspect
import json
import shutil
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from modules.token_compression import COMPRESSIONS, Layout
from modules.token_transmitter import Encoded, TokenTransmitter
from utils.data.media import MediaError, Reader, frame_paths
from utils.data.sources import VERSION as EXTRACTION
from utils.files import write_whole

VERSION = 3  # raise it when the way inputs are made or kept changes
SHARDS = "-shards"  # ends the name of a folder of shards


def cache_folder(
    root: str | Path,
    fingerprint: str,
    tx: TokenTransmitter,
    frames: int,
    media: str = "extraction",
    shard: int = 1,
) -> Path:
    """Where the tokens of one encoder and one way to compress them are kept, in shards of so many
    clips."""
    key = {
        "version": VERSION,
        "code": inspect.getsource(COMPRESSIONS[tx.compression]),
        "encoder": fingerprint,
        "frames": frames,
        "compression": tx.compression,
        "length": tx.length,
    }
    if media != "extraction":
        key["media"] = (media, EXTRACTION)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Path(root) / f"{type(tx.encoder).__name__}-{digest}{SHARDS if shard > 1 else ''}"


def media_stamp(path: Path) -> str:
    """Names the state of a clip's media: sizes and times of its files, to the nanosecond."""
    files = frame_paths(path) if path.is_dir() else [path]
    stamps = [(f.name, (s := f.stat()).st_size, s.st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]


def read_tokens(path: Path, stamp: str | None) -> Encoded | None:
    """A clip's tokens (tokens, width), float16, and their layout; None if absent, damaged or of
    other media."""
    try:
        with safe_open(path, "pt") as file:
            if stamp is None or (file.metadata() or {}).get("media") == stamp:
                # Copies, which do not hang on the mapped file.
                parts = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return Encoded(parts["tokens"], Layout(parts["places"], parts.get("attention")))
    except (FileNotFoundError, SafetensorError, KeyError):
        pass
    return None


class Job(NamedTuple):
    """A clip to encode."""

    video_id: str
    path: Path
    stamp: str


def missing(
    reader: Reader, folder: Path, root: str | Path, video_ids: list[str]
) -> tuple[list[Job], dict[str, str]]:
    """The clips whose tokens are not cached yet, and the bad ones with their reasons."""
    kept = store(folder)
    todo, bad = [], {}
    for video_id in dict.fromkeys(video_ids):
        path = reader.path(root, video_id)
        try:
            stamp = media_stamp(path)
        except (MediaError, OSError) as error:
            bad[video_id] = " ".join(str(error).split())
            continue
        if not kept.holds(video_id, stamp):
            todo.append(Job(video_id, path, stamp))
    return todo, bad


def parts_of(clip: Encoded) -> dict[str, Tensor]:
    """The tensors of a clip's tokens (tokens, width) and their layout, as they are kept."""
    parts = {"tokens": clip.tokens.half(), **clip.layout._asdict()}
    return {name: part.contiguous() for name, part in parts.items() if part is not None}


def packed(clip: Encoded, stamp: str) -> bytes:
    """A clip's file."""
    return save(parts_of(clip), metadata={"media": stamp})


class Files:
    """A folder with a file for each clip."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, video_id: str) -> Path:
        return self.folder / f"{video_id}.safetensors"

    def holds(self, video_id: str, stamp: str) -> bool:
        """Whether a clip's tokens are there, of media in this state."""
        return read_tokens(self.path(video_id), stamp) is not None

    def read(self, video_id: str) -> Encoded | None:
        """A clip's tokens (tokens, width), float16, and their layout; None if absent or damaged."""
        return read_tokens(self.path(video_id), None)

    def add(self, job: Job, clip: Encoded) -> None:
        write_whole(self.path(job.video_id), packed(clip, job.stamp))

    def flush(self) -> None:
        """All that was added is on disk already."""


class Shards:
    """A folder whose files, the shards, hold `size` clips each, or fewer.

    A shard is written once, whole, under a name that no other process uses, and never changed. Its
    tensors are those of clips in a row, (clips, ...), its metadata name them. Of a clip that is in
    several shards, as its media changed, the newest counts. Reading maps the file into memory and
    copies one clip's part.
    """

    def __init__(self, folder: Path, size: int = 1):
        self.folder, self.size = folder, size
        self.waiting: list[tuple[Job, dict[str, Tensor]]] = []
        self.places: dict[str, tuple[Path, int, str]] = {}  # of a clip: its shard, row and media
        files = [(path.stat().st_mtime_ns, path) for path in folder.glob("*.safetensors")]
        for _, path in sorted(files):
            try:
                with safe_open(path, "pt") as file:
                    clips = json.loads((file.metadata() or {})["clips"])
            except (SafetensorError, KeyError, ValueError):  # damaged: its clips are made again
                continue
            for row, (video_id, stamp) in enumerate(clips):
                self.places[video_id] = path, row, stamp

    def path(self, video_id: str) -> Path:
        return self.places[video_id][0] if video_id in self.places else self.folder

    def holds(self, video_id: str, stamp: str) -> bool:
        """As `Files`; a shard that is cut off or not there has no readable list of its clips."""
        return video_id in self.places and self.places[video_id][2] == stamp

    def read(self, video_id: str) -> Encoded | None:
        """As `Files`."""
        try:
            path, row, _ = self.places[video_id]
            with safe_open(path, "pt") as file:
                names = file.keys()
                parts = {name: file.get_slice(name)[row].clone() for name in names}
            return Encoded(parts["tokens"], Layout(parts["places"], parts.get("attention")))
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def add(self, job: Job, clip: Encoded) -> None:
        """Keep a clip until `size` of them make a shard, or `flush` one of fewer."""
        self.waiting.append((job, parts_of(clip)))
        if len(self.waiting) >= self.size:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        jobs, clips = zip(*self.waiting, strict=True)
        content = {name: torch.stack([parts[name] for parts in clips]) for name in clips[0]}
        names = json.dumps([(job.video_id, job.stamp) for job in jobs])
        path = self.folder / f"{uuid4().hex}.safetensors"
        write_whole(path, save(content, metadata={"clips": names}))
        self.waiting = []


def store(folder: Path, shard: int = 1) -> Files | Shards:
    """What keeps the clips of a `cache_folder`; the size of a shard matters where it is written."""
    return Shards(folder, shard) if folder.name.endswith(SHARDS) else Files(folder)


def clip_bytes(tx: TokenTransmitter, block: int = 4096) -> int:
    """Bytes on disk of a clip's file, in whole blocks of the file system."""
    tokens = torch.zeros(tx.special + tx.length, tx.encoder.config.hidden_size)
    attention = torch.zeros(tx.length) if tx.needs_attention else None
    layout = Layout(torch.zeros(tx.length, tx.places.shape[1]), attention)
    return -(-len(packed(Encoded(tokens, layout), 16 * "0")) // block) * block


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
