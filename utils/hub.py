"""Models by the name that they have on the Hugging Face hub, from the user's cache or fetched.

All that concerns the network is huggingface_hub's: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN
and proxies mean what they mean there.
"""

import json
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import huggingface_hub as hub

from utils.files import write_whole
from utils.pickled import as_safetensors

ID = r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?"  # OWNER/NAME, or OWNER/NAME@REVISION
OURS = ("checkpoint", "datasets", "models")  # folders that no owner on the hub is meant by
# Configuration, tokenizer and weights, never code, and nothing in folders, which hold checkpoints
# and exports.
WANTED = ("*.safetensors", "*.json", "merges.txt", "vocab.txt", "tokenizer.model")
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")
LIBRARY = "token-communication"  # ours in the cache of what was made from the hub's files


def is_hub_id(name: str | Path) -> bool:
    """Whether a model's name is one of the hub: OWNER/NAME, where no such folder is."""
    named = re.fullmatch(ID, str(name)) and str(name).split("/")[0] not in OURS
    return bool(named) and not Path(name).exists()


@cache
def fetch(name: str) -> Path:
    """The folder of a model named `OWNER/NAME` or `OWNER/NAME@REVISION`, which is called as its
    commit. What is not in the cache yet is fetched; the hub is asked once a process.

    Raises:
        FileNotFoundError: in one line, where it is not there and cannot be fetched.
    """
    repo_id, _, revision = name.partition("@")
    get = partial(
        hub.snapshot_download, repo_id, revision=revision or None, ignore_patterns=["*/*"]
    )
    try:
        folder = Path(get(allow_patterns=[*WANTED]))
        if any(folder.glob("*.safetensors")):
            return folder
        return from_pickles(repo_id, folder, get)
    except Exception as error:  # the client, proxies and strangers' answers raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise FileNotFoundError(
            f"{name}: no such folder, and no model of the hub to be had by this name ({reason}); "
            "check the name, HF_ENDPOINT, HF_HUB_OFFLINE and the network"
        ) from None


def from_pickles(repo_id: str, snapshot: Path, get: Callable[..., str]) -> Path:
    """A folder beside the cache that holds the files of a snapshot without safetensors, and its
    pickled weights as such, made when it is first asked for.

    Args:
        get: brings the files that match `allow_patterns` into the snapshot's folder.
    """
    folder = hub.cached_assets_path(LIBRARY, repo_id, snapshot.name)
    record = folder / "revision.json"
    if not record.is_file():
        source = Path(get(allow_patterns=[*WANTED, *PICKLED]))
        if not as_safetensors(source, folder):
            raise ValueError(f"commit {snapshot.name} has neither safetensors nor {PICKLED[0]}")
        for path in source.iterdir():
            if path.suffix in (".json", ".txt", ".model") and ".bin." not in path.name:
                write_whole(folder / path.name, path.read_bytes())
        write_whole(record, json.dumps({"repo_id": repo_id, "commit": snapshot.name}) + "\n")
    return folder
