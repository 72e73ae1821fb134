"""The feature cache: what the frozen encoders say of a clip is computed once and kept on disk.

A clip's file holds its compressed encoder tokens in half precision. The folder's name is a hash of
all that shapes them (encoder weights, frame count, compression, length), the file names the media
it was made from, so that a changed encoder, setting or clip never reads stale tokens.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from modules.token_transmitter import TokenTransmitter
from utils.datasets import frames_path, wav_path
from utils.files import write_whole
from utils.media import MediaError, frame_paths
from utils.pretrained import audio_input, check_folder, video_input

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


@dataclass
class Inputs(Dataset):
    """Reads clips as an encoder wants them; a bad clip gives its reason instead."""

    paths: list[Path]
    read: object  # path -> (rows, ...) float32

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[int, Tensor | str]:
        try:
            return i, self.read(self.paths[i])
        except (MediaError, OSError) as error:
            return i, " ".join(str(error).split())


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


@torch.inference_mode()
def cache_tokens(
    tx: TokenTransmitter,
    reader: Reader,
    folder: Path,
    root: str | Path,
    video_ids: list[str],
    device: torch.device,
    batch: int = 32,
    workers: int = 2,
) -> dict[str, str]:
    """Encode the clips whose tokens are not cached yet; returns the bad clips with their reasons.

    Clips are read in loader workers and encoded in batches, and each is kept as soon as it is
    done, so that an interrupted run goes on where it stopped.
    """
    media = wav_path if reader.kind == "audio" else frames_path
    todo, bad = [], {}
    for video_id in dict.fromkeys(video_ids):
        try:
            stamp = media_stamp(media(root, video_id))
            if read_tokens(folder / f"{video_id}.safetensors", stamp) is None:
                todo.append((video_id, media(root, video_id), stamp))
        except (MediaError, OSError) as error:
            bad[video_id] = " ".join(str(error).split())
    if not todo:
        return bad
    folder.mkdir(parents=True, exist_ok=True)
    encoder = tx.encoder.to(device)
    loader = DataLoader(
        Inputs([path for _, path, _ in todo], reader),
        batch_size=batch,
        num_workers=workers,
        collate_fn=list,
        pin_memory=device.type == "cuda",
        # Workers hold no accelerator and start clean of this process's threads.
        multiprocessing_context="spawn" if workers else None,
    )
    name = type(encoder).__name__.removesuffix("Model")
    with tqdm(total=len(todo), desc=f"encoding {reader.kind} by {name}", unit="clip") as bar:
        for rows in loader:
            bar.update(len(rows))
            bad |= {todo[i][0]: x for i, x in rows if isinstance(x, str)}
            good = [(i, x) for i, x in rows if not isinstance(x, str)]
            if not good:
                continue
            inputs = torch.cat([x for _, x in good]).to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                tokens = tx.encode(inputs, [len(x) for _, x in good])
            for (i, _), clip in zip(good, tokens.half().cpu(), strict=True):
                video_id, _, stamp = todo[i]
                content = save({"tokens": clip.contiguous()}, metadata={"media": stamp})
                write_whole(folder / f"{video_id}.safetensors", content)
    return bad
