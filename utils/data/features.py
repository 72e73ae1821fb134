"""The feature cache: what the frozen encoders say of a clip is computed once and kept on disk.

A clip's file holds its compressed encoder tokens in half precision, the special tokens that are its
features first, and the layout of the others, by which they may be compressed further. The folder's
name is a hash of all that shapes them (encoder weights and configuration, frame count, compression,
length), the file names the media it was made from, so that a changed encoder, setting or clip never
reads stale tokens.
"""

import hashlib
import inspect
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from modules.token_compression import COMPRESSIONS, Layout
from modules.token_transmitter import Encoded, TokenTransmitter
from utils.data.media import MediaError, Reader, frame_paths
from utils.data.models import check_folder

VERSION = 3  # raise it when the way inputs are made or kept changes


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


def packed(clip: Encoded, stamp: str) -> bytes:
    """A clip's file, of its tokens (tokens, width) and their layout."""
    parts = {"tokens": clip.tokens.half(), **clip.layout._asdict()}
    held = {name: part.contiguous() for name, part in parts.items() if part is not None}
    return save(held, metadata={"media": stamp})


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
