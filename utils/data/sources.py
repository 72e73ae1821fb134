"""What the extraction made of which file: whether a clip's results are its own.

OUT/sources/ID.json holds the size and the time of the video that the results of a clip were made
of, and notes of what is to be known about it. Results without such a record are somebody's own.
"""

import json
import shutil
from pathlib import Path

from utils.files import write_whole

VERSION = 2  # raise it when a video would give other sound or frames
RECORDS = "sources"  # in OUT, what each clip was made of
SCRATCH = ".partial-"  # prefix in OUT of what is not finished


def targets(clip: Path, out: Path) -> tuple[Path, Path]:
    """Where the sound and the frames of a clip go."""
    return out / "ast_audio" / f"{clip.stem}.wav", out / "vivit_frames" / clip.stem


def there(target: Path) -> bool:
    """Whether a target is there; it is whole if it is, but somebody may have emptied a folder."""
    return target.is_file() or (target.is_dir() and any(target.iterdir()))


def source_of(path: Path) -> dict:
    """What a clip's results must have been made of to be those of the file as it is now."""
    stat = path.stat()
    return {"version": VERSION, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def record_path(clip: Path, out: Path) -> Path:
    return out / RECORDS / f"{clip.stem}.json"


def read_record(clip: Path, out: Path) -> dict | None:
    """What the extraction of a clip noted, {"source": {...}, "made": ["ast_audio", "vivit_frames"],
    "notes": [...]}; None if nothing."""
    try:
        return json.loads(record_path(clip, out).read_text())
    except (FileNotFoundError, ValueError):
        return None


def write_record(clip: Path, out: Path, record: dict) -> None:
    record_path(clip, out).parent.mkdir(exist_ok=True)
    write_whole(record_path(clip, out), json.dumps(record) + "\n")


def begin_record(clip: Path, out: Path, source: dict) -> dict:
    """Note what is to be made of a source, before any of it is there, so that what a killed run
    leaves has its record. What was made of another source goes."""
    old = record = read_record(clip, out)
    if record is None or record["source"] != source:
        for target in targets(clip, out):
            if record is not None and target.parent.name in record["made"]:
                remove(target)
        record = {"source": source, "made": [], "notes": []}
    lacking = {target.parent.name for target in targets(clip, out) if not there(target)}
    record = record | {"made": sorted({*record["made"], *lacking})}
    if record != old:
        write_record(clip, out, record)
    return record


def end_record(clip: Path, out: Path, record: dict, notes: list[str]) -> None:
    """Note what was made in the end; what could not be, somebody may put there by hand."""
    names = [target.parent.name for target in targets(clip, out) if there(target)]
    made = [name for name in names if name in record["made"]]
    ended = record | {"made": made, "notes": list(dict.fromkeys(record["notes"] + notes))}
    if ended != record:
        write_record(clip, out, ended)


def finished(clip: Path, out: Path) -> bool:
    """Whether both results of a clip are there and of this very file."""
    record = read_record(clip, out)
    made = record is not None and record["source"] == source_of(clip)
    return made and all(map(there, targets(clip, out)))


def by_hand(clip: Path, out: Path) -> bool:
    """Whether a clip has results of which no record tells the source: somebody's own."""
    return read_record(clip, out) is None and any(map(there, targets(clip, out)))


def remove(part: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
