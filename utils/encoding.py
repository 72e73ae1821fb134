"""Every clip is encoded once, before training, or at every step in a run without a cache."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from utils.clips import ClipMedia, ClipTokens
from utils.datasets import DataError
from utils.feature_cache import (
    cache_folder,
    cache_tokens,
    check_space,
    clip_bytes,
    missing,
    model_fingerprint,
    unreadable,
)
from utils.processes import merge, share, total
from utils.system import System


def encode_clips(
    system: System, config: Any, root: Path, rows: dict[str, list], accelerator: Accelerator
) -> dict[str, ClipTokens | ClipMedia]:
    """The rows of every split with their clips' tokens; bad clips are listed and left out.

    Each process encodes its share of what is not cached yet; then the encoders are released.
    With `--cache none` clips are only checked here, and encoded at every step.
    """
    video_ids = [row.video_id for split in rows.values() for row in split]
    video_ids = share(list(dict.fromkeys(video_ids)), accelerator)
    fill = check_clips if config.cache == "none" else fill_cache
    folders, bad = fill(system, config, root, video_ids, accelerator)
    bad = merge(bad)  # which also waits for all processes
    if bad:
        listed = "\n".join(f"  {video_id}: {reason}" for video_id, reason in sorted(bad.items()))
        accelerator.print(f"{len(bad)} clips left out:\n{listed}")
    if folders:
        system.release_encoders()
    clips = {}
    for split, part in rows.items():
        good = [row for row in part if row.video_id not in bad]
        if not good:
            raise DataError(f"{root}: no clip of the {split} split is left to read")
        clips[split] = (
            ClipTokens(good, folders) if folders else ClipMedia(good, root, system.readers)
        )
    return clips


def fill_cache(
    system: System, config: Any, root: Path, video_ids: list[str], accelerator: Accelerator
) -> tuple[dict[str, Path], dict[str, str]]:
    """Encode the clips that are not cached; the cache's folders, and the bad clips."""
    encoders = {
        "visual": (system.img_tx, config.visual_encoder),
        "audio": (system.audio_tx, config.audio_encoder),
    }
    folders, jobs, bad, size = {}, {}, {}, 0
    for kind, (tx, model) in encoders.items():
        frames = getattr(tx.encoder.config, "num_frames", 0)
        cache = Path(config.cache) / root.name
        folders[kind] = cache_folder(cache, model_fingerprint(model), tx, frames)
        jobs[kind], lost = missing(system.readers[kind], folders[kind], root, video_ids)
        bad |= lost
        size += total(len(jobs[kind])) * clip_bytes(tx)
    if size:
        accelerator.print(f"the cache grows by {check_space(Path(config.cache), size)}", flush=True)
    for kind, (tx, _) in encoders.items():
        bad |= cache_tokens(
            tx,
            system.readers[kind],
            folders[kind],
            jobs[kind],
            accelerator.device,
            config.encode_batch,
            config.workers,
            quiet=not accelerator.is_main_process,
        )
    return folders, bad


def check_clips(
    system: System, config: Any, root: Path, video_ids: list[str], accelerator: Accelerator
) -> tuple[dict[str, Path], dict[str, str]]:
    """Without a cache: no folders, and the clips that cannot be read."""
    bad: dict[str, str] = {}
    for reader in system.readers.values():
        bad |= unreadable(
            reader,
            root,
            video_ids,
            config.encode_batch,
            config.workers,
            quiet=not accelerator.is_main_process,
        )
    return {}, bad
