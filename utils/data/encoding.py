"""Every clip is encoded once, before training, or at every step in a run without a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from utils.data.clips import ClipMedia, ClipTokens
from utils.data.datasets import DataError, listing, without_media
from utils.data.features import (
    Job,
    cache_folder,
    cache_tokens,
    check_space,
    clip_bytes,
    missing,
    model_fingerprint,
    unreadable,
)
from utils.system import System
from utils.training.processes import merge, share, total

# Visual tokens, audio tokens and compression, for which clips are cached.
Way = tuple[int, int, str]


def encode_clips(
    system: System,
    config: Any,
    root: Path,
    rows: dict[str, list],
    accelerator: Accelerator,
    also: Sequence[Way] = (),
) -> tuple[dict[str, ClipTokens | ClipMedia], dict[str, str]]:
    """The rows of every split with their clips' tokens, and the clips that are left out because
    their media are missing or cannot be read, each with the reason.

    Each process encodes its share of what is not cached yet; then the encoders are released.
    With `--cache none` clips are only checked here, and encoded at every step. Compressions named
    in `also` are cached along, at no further call of the encoders.
    """
    absent, video_ids = {}, []
    for split in rows.values():
        absent |= without_media(root, [row.video_id for row in split])
        video_ids += [row.video_id for row in split if row.video_id not in absent]
    video_ids = share(list(dict.fromkeys(video_ids)), accelerator)
    if config.cache == "none":
        folders, bad = check_clips(system, config, root, video_ids, accelerator)
    else:
        folders, bad = fill_cache(system, config, root, video_ids, accelerator, also)
    left_out = absent | merge(bad)  # which also waits for all processes
    if left_out:
        accelerator.print(listing(left_out), flush=True)
    if folders:
        system.release_encoders()
    clips = {}
    for split, part in rows.items():
        good = [row for row in part if row.video_id not in left_out]
        if not good:
            raise DataError(f"{root}: no clip of the {split} split is left to read")
        clips[split] = (
            ClipTokens(good, folders) if folders else ClipMedia(good, root, system.readers)
        )
    return clips, dict(sorted(left_out.items()))


def fill_cache(
    system: System,
    config: Any,
    root: Path,
    video_ids: list[str],
    accelerator: Accelerator,
    also: Sequence[Way] = (),
) -> tuple[dict[str, Path], dict[str, str]]:
    """Encode the clips that are not cached; the cache's folders, and the bad clips."""
    transmitters = {"visual": system.img_tx, "audio": system.audio_tx}
    models = {"visual": config.visual_encoder, "audio": config.audio_encoder}
    folders, ways, jobs, bad, size = {}, {}, {}, {}, 0
    for i, (kind, tx) in enumerate(transmitters.items()):
        frames = getattr(tx.encoder.config, "num_frames", 0)
        fingerprint = model_fingerprint(models[kind])
        wanted: dict[str, Job] = {}
        ways[kind] = {}
        for way in (tx, *(tx.compressing(w[i], w[2]) for w in also)):
            folder = cache_folder(Path(config.cache) / root.name, fingerprint, way, frames)
            if folder in ways[kind]:
                continue
            ways[kind][folder] = way
            todo, lost = missing(system.readers[kind], folder, root, video_ids)
            wanted |= {job.video_id: job for job in todo}
            bad |= lost
            size += total(len(todo)) * clip_bytes(way)
        folders[kind] = next(iter(ways[kind]))
        jobs[kind] = list(wanted.values())
    if size:
        accelerator.print(f"the cache grows by {check_space(Path(config.cache), size)}", flush=True)
    for kind in transmitters:
        bad |= cache_tokens(
            ways[kind],
            system.readers[kind],
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
