"""Which run is which: two runs are one if data, hyperparameters, start and code are the same.

The code of a run is all that its script imports from this repository, directly or not, but for what
only draws; comments, formatting and the values of hyperparameters do not count. So an edit of the
channel makes a finished run stale, and an edit of a plot or of an allocation does not.
"""

import ast
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from utils.checkpoints import sha256
from utils.config import plain
from utils.data.datasets import media_paths, read_music_avqa, read_valor, without_media
from utils.data.models import fingerprints, models_used

ROOT = Path(__file__).resolve().parents[2]
READ = {"align": read_valor, "avqa": read_music_avqa}  # a task's annotations
DRAWING = {"matplotlib", "plotly"}  # what imports these only draws

# What does not change a run's result: where things lie and how the work is shared out.
PLACES = (
    *("name", "out", "figures", "cache", "workers", "threads", "encode_batch", "question_only"),
    *("cache_shard", "resume", "save_every", "keep"),
    "init",  # whose contents are compared
)


def imported(tree: ast.Module) -> Iterator[str]:
    """The names of all modules that a file imports, and of what may be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def without_values(tree: ast.Module) -> ast.Module:
    """A file of hyperparameters without their values: dataclass fields and presets."""
    for node in tree.body:
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, ast.AnnAssign):
                part.value = None
    tree.body = [node for node in tree.body if not isinstance(node, ast.Assign)]
    return tree


@cache
def code_version(script: Path) -> str:
    """A hash of the code that a script runs."""
    code: dict[Path, str] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path in code or not path.is_file():
            continue
        tree = ast.parse(path.read_bytes())
        names = set(imported(tree))
        if path != script and DRAWING & {name.split(".")[0] for name in names}:
            code[path] = ""
            continue
        if path in (script, ROOT / "utils/config.py"):
            tree = without_values(tree)
        code[path] = ast.dump(tree)
        waiting += [ROOT / f"{name.replace('.', '/')}.py" for name in names]
    return hashlib.sha256("".join(sorted(code.values())).encode()).hexdigest()


def code_of(config: Any) -> str:
    """A hash of the code of the script whose hyperparameters these are."""
    return code_version(Path(inspect.getfile(type(config))).resolve())


def same_run(config: dict) -> dict:
    """The part of a run's hyperparameters that decides its result."""
    return {k: v for k, v in config.items() if k not in PLACES}


def data_version(annotations: dict[str, str | None], left_out: Iterable[str]) -> dict:
    """What names a run's data: each split's annotation file by its SHA-256, and those clips of them
    that cannot be used."""
    return {"annotations": annotations, "left_out": sorted(left_out)}


@cache
def annotated(task: str, root: Path, annotations: tuple) -> list[str]:
    """The clips of the splits whose annotation files have these hashes."""
    return [row.video_id for split, _ in annotations for row in READ[task](root, split)[0]]


def data_now(metrics: dict, config: Any, ended: float) -> dict:
    """The data that a run which ended then would find now. A clip that could not be read stays left
    out unless its media changed since."""
    root = Path(config.data)
    hashes = {split: sha256(file["path"]) for split, file in metrics["annotations"].items()}
    names = annotated(metrics["task"], root, tuple(hashes.items())) if hashes else []
    left_out = set(without_media(root, names, config.media))
    for name in metrics["left_out"].keys() - left_out:
        paths = media_paths(root, name, config.media)
        if all(path.stat().st_ctime < ended for path in paths):
            left_out.add(name)
    return data_version(hashes, left_out)


def finished(config: Any, data: dict | None = None) -> dict | None:
    """The metrics of the run `config.name` if it ended with these hyperparameters and this code,
    from the same checkpoint and data, and its weights stand; else None.

    `data` is what `data_version` says of the data that was read, if it was; else it is looked at.
    """
    stem = Path(config.out) / config.name
    path = stem.with_name(stem.name + ".json")
    try:
        metrics = json.loads(path.read_text())
        wanted = same_run(plain(config))
        same = all(metrics["config"][k] == v for k, v in wanted.items())
        same &= metrics.get("init_sha256") == sha256(getattr(config, "init", "none"))
        same &= metrics["code"] == code_of(config)
        same = same and fingerprints(metrics["models"]) == fingerprints(models_used(config))
        same &= metrics["checkpoint_sha256"] == sha256(stem.with_name(stem.name + ".pth"))
        if not same or not metrics["checkpoint_sha256"]:
            return None
        hashes = {split: file["sha256"] for split, file in metrics["annotations"].items()}
        found = data or data_now(metrics, config, path.stat().st_mtime)
        return metrics if found == data_version(hashes, metrics["left_out"]) else None
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or of other hyperparameters
        return None
