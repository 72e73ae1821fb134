"""Fetch the models of the `paper` preset into `models/`: safetensors, configuration, tokenizer.

Run `python utils/hf-download.py`; `--help` lists the options. Every file is checked against the
hub's digest. `revision.json` beside the files names the commit and is there only once all are.
"""

import argparse
import errno
import hashlib
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HTTPError, RevisionNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import build_hf_headers

PRESET = ("Qwen/Qwen2.5-1.5B", "MIT/ast-finetuned-audioset-10-10-0.4593", "google/vivit-b-16x2")
ROOT = Path(__file__).resolve().parents[1]
RECORD = "revision.json"
ANSWER_TIMEOUT = 30  # seconds; left alone, the hub client waits for ever


class FetchError(Exception):
    """A model cannot be fetched; the message is one line: what is wrong and what to do."""


class Unreachable(FetchError):
    """Every try failed in a way that may pass."""


def is_wanted(name: str) -> bool:
    """Say whether the repository file `name` is fetched; pickles and code never are."""
    if "/" in name or name == RECORD:  # folders hold checkpoints and exports to other formats
        return False
    if name.endswith(".index.json"):  # pickled weights have an index too
        return name.endswith(".safetensors.index.json")
    return name.endswith((".safetensors", ".json")) or name in ("merges.txt", "vocab.txt")


def wanted_files(info: ModelInfo, model: str, revision: str) -> list[RepoSibling]:
    """List the files to fetch, sizes in bytes; FetchError without safetensors or digests."""
    files = [file for file in info.siblings or [] if is_wanted(file.rfilename)]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        raise FetchError(
            f"revision {revision} has no safetensors file, and pickled weights are not used; "
            f"pass --revision {model}=REV of one with safetensors (often a conversion, refs/pr/N)"
        )
    if not info.sha or any(file.size is None or file.blob_id is None for file in files):
        raise FetchError("the hub names no commit, sizes or digests; check HF_ENDPOINT")
    return files


def is_intact(path: Path, file: RepoSibling) -> bool:
    """Say whether `path` holds exactly the bytes of the hub's `file`."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.lfs:
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest() == file.lfs.sha256
    blob = b"blob %d\0" % file.size + path.read_bytes()  # what git hashes for a blob id
    return hashlib.sha1(blob).hexdigest() == file.blob_id


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a whole model; empty where it or one of its files is not there."""
    try:
        record = json.loads((folder / RECORD).read_text())
        sizes = {name: (folder / name).stat().st_size for name in record["files"]}
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return {}
    return record if sizes == record["files"] else {}


def lasting_trouble(error: Exception) -> str | None:
    """Say what is wrong and what to do where trying again cannot help, else None."""
    code = error.errno if isinstance(error, OSError) else None
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space, then run again to resume"
    if code and not isinstance(error, ConnectionError | TimeoutError):
        return f"{error}; check --models-dir"
    if isinstance(error, RevisionNotFoundError):
        return "no such revision; pass --revision NAME=REV of one that exists"
    if 400 <= status < 500 and status not in (408, 429):
        return f"no such model or no access (HTTP {status}); check HF_TOKEN and HF_ENDPOINT"
    if isinstance(error, KeyError | TypeError | ValueError):
        return "the answer is not a model hub's; check HF_ENDPOINT"
    return None


def patiently(call: Callable[[], Any], retries: int) -> Any:
    """Return `call()`, tried again up to `retries` times, 1, 2, 4... 60 seconds apart.

    Raises FetchError at once where trying again cannot help, and Unreachable after the last try.
    """
    for tries in count(1):
        try:
            return call()
        # A stranger at the hub's address answers in shapes that the client does not check.
        except (HTTPError, OSError, KeyError, TypeError, ValueError) as error:
            if trouble := lasting_trouble(error):
                raise FetchError(trouble) from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if tries > retries:
                advice = "check the network and HF_ENDPOINT, then run again to resume"
                raise Unreachable(f"{reason} (tries: {tries}); {advice}") from error
        wait = min(2 ** (tries - 1), 60)
        print(f"{reason}; trying again in {wait} s", file=sys.stderr)
        time.sleep(wait)


def download(repo_id: str, commit: str, file: RepoSibling, part: Path) -> None:
    """Fetch `file` into `part`, going on from the bytes there; OSError where they are wrong."""
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    with part.open("ab") as sink:
        http_get(
            hf_hub_url(repo_id, file.rfilename, revision=commit),
            sink,
            resume_size=sink.tell(),
            # Compressed answers could not be continued: ranges count the bytes that are sent.
            headers=build_hf_headers() | {"Accept-Encoding": "identity"},
            expected_size=file.size,
            displayed_filename=file.rfilename,
        )
    if not is_intact(part, file):
        part.unlink()
        raise OSError(f"{file.rfilename} arrived damaged")


def install(folder: Path, parts: dict[str, Path], former: dict, record: dict) -> None:
    """Put the fetched parts in place, drop files of the former record, write the new one last."""
    (folder / RECORD).unlink(missing_ok=True)
    for name, part in parts.items():
        part.replace(folder / name)
    dropped = former.get("files", {}).keys() - record["files"].keys()
    for path in [*(folder / name for name in dropped), *folder.glob("*.part")]:
        path.unlink(missing_ok=True)
    draft = folder / f"{RECORD}.part"
    draft.write_text(json.dumps(record, indent=2) + "\n")
    draft.replace(folder / RECORD)


def fetch(repo_id: str, revision: str, models_dir: Path, retries: int) -> str:
    """Bring one model into `models_dir` at the commit of `revision`; return a closing line.

    A model that stands is left alone until the new one has arrived. Raises FetchError, or
    OSError where the disk refuses.
    """
    folder = models_dir / Path(repo_id).name
    former = read_record(folder)
    stands = revision in (former.get("requested_revision"), former.get("commit"))
    asked = {"revision": revision, "files_metadata": True, "timeout": ANSWER_TIMEOUT}
    try:
        info = patiently(partial(HfApi().model_info, repo_id, **asked), 0 if stands else retries)
    except Unreachable as error:
        if not stands:
            raise
        return f"{repo_id}: kept at commit {former['commit']}; the hub is out of reach: {error}"
    if former and info.sha == former["commit"]:
        return f"{repo_id}: already at commit {info.sha} in {folder}"
    files = wanted_files(info, folder.name, revision)
    sizes = {file.rfilename: file.size for file in files}
    record = {"repo_id": repo_id, "requested_revision": revision, "commit": info.sha}
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for file in files:
        if not is_intact(folder / file.rfilename, file):
            # Named after the content too: one revision must not go on from another's bytes.
            part = folder / f"{file.rfilename}.{file.blob_id[:12]}.part"
            patiently(partial(download, repo_id, info.sha, file, part), retries)
            parts[file.rfilename] = part
    install(folder, parts, former, record | {"files": sizes})
    return f"{repo_id}: {sum(sizes.values()) / 1e6:,.1f} MB at commit {info.sha} in {folder}"


def preset_model(name: str) -> str:
    """Return the repository id that `name`, an id or its last part, stands for."""
    for repo_id in PRESET:
        if name in (repo_id, Path(repo_id).name):
            return repo_id
    raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PRESET)}")


def model_revision(text: str) -> tuple[str, str]:
    """Split NAME=REV into a repository id and a revision."""
    name, _, revision = text.partition("=")
    if not revision:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=REV")
    return preset_model(name), revision


def main(arguments: list[str] | None = None) -> int:
    """Fetch the models that `arguments` ask for; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Fetch the models of the paper preset: safetensors, configuration, tokenizer.",
        epilog="NAME is a repository id or its last part. A mirror is named by the environment "
        "variable HF_ENDPOINT, a token by HF_TOKEN. Run again to resume.",
    )
    many = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models")
    parser.add_argument("--only", type=preset_model, metavar="NAME", **many)
    parser.add_argument("--revision", type=model_revision, metavar="NAME=REV", **many)
    parser.add_argument("--retries", type=int, default=5, help="tries after a failure (5)")
    options = parser.parse_args(arguments)
    revisions = dict(options.revision)
    try:
        for repo_id in options.only or PRESET:
            revision = revisions.get(repo_id, "main")
            print(fetch(repo_id, revision, options.models_dir, options.retries), flush=True)
    except (FetchError, OSError) as error:
        print(f"error: {repo_id}: {lasting_trouble(error) or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run again to resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
