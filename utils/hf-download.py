"""Fetch the models of the paper preset: weights, configuration and tokenizer, never code.

Weights are safetensors; where a repository has pickled ones alone they are read without running
what lies in them, and kept as safetensors. NAME is an id or its last part; HF_ENDPOINT, HF_TOKEN
and proxies work as for huggingface_hub.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub as hub  # loads its parts on first use, so a bad setting is reported below

if __name__ == "__main__":  # run as a file: what it needs lies beside utils/, not in it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

PRESET = ("Qwen/Qwen2.5-1.5B", "MIT/ast-finetuned-audioset-10-10-0.4593", "google/vivit-b-16x2")
NAMES = {name: repo_id for repo_id in PRESET for name in (repo_id, Path(repo_id).name)}
# Nothing in folders, which hold checkpoints and exports, and no index of pickled weights.
WANTED = r"[\w.-]+\.safetensors(\.index\.json)?|(?!revision\.)[\w-]+\.json|(merges|vocab)\.txt"
PICKLED = r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"  # where there is nothing better


def fetch(repo_id: str, revision: str, folder: Path) -> str:
    """Bring a model into `folder`, all of it or nothing, with a record; return what was done."""
    record, stage = folder / "revision.json", folder / ".partial"
    try:
        former = json.loads(record.read_text())
        whole = former["files"].items() <= {(p.name, p.stat().st_size) for p in folder.iterdir()}
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        former, whole = {"files": {}}, False
    try:
        info = hub.model_info(repo_id, revision=revision, files_metadata=True, timeout=10)
    except (ConnectionError, hub.errors.HTTPError) as error:
        refused = isinstance(error, hub.errors.HfHubHTTPError) and error.response.status_code < 429
        if refused or not whole or revision not in (former["requested_revision"], former["commit"]):
            raise
        return f"kept at commit {former['commit']}, the hub is out of reach: {error!r}"
    if whole and info.sha == former.get("commit"):
        return f"already at commit {info.sha} in {folder}"
    files = {f.rfilename: f for f in info.siblings if re.fullmatch(WANTED, f.rfilename)}
    if not any(name.endswith(".safetensors") for name in files):
        files |= {f.rfilename: f for f in info.siblings if re.fullmatch(PICKLED, f.rfilename)}
    if not info.sha or not any(name.endswith((".safetensors", ".bin")) for name in files):
        sys.exit(f"error: {repo_id}: revision {revision} has no weights; {advice(folder)}")
    if not record.exists() and not (stage / record.name).exists():
        for name in files:
            if (folder / name).exists():
                sys.exit(f"error: {folder / name}: not fetched by this script; move it away first")
    new = {"repo_id": repo_id, "requested_revision": revision, "commit": info.sha, "files": {}}
    for name, file in files.items():  # not by snapshot_download, which would sit out a Ctrl-C
        path = Path(hub.hf_hub_download(repo_id, name, revision=info.sha, local_dir=stage))
        new["files"][name] = size = path.stat().st_size
        hasher = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % size)  # as git does
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, hasher.copy).hexdigest()
        if digest != (file.lfs.sha256 if file.lfs else file.blob_id):
            path.unlink()
            sys.exit(f"error: {repo_id}: {name} arrived damaged; run again to fetch it anew")
    if pickled := [name for name in files if re.fullmatch(PICKLED, name)]:
        for name in unpickle(repo_id, stage, folder):
            new["files"][name] = (stage / name).stat().st_size
        for name in pickled:
            del new["files"][name]
    (stage / record.name).write_text(json.dumps(new, indent=2) + "\n")
    for name in [record.name, *former["files"]]:
        (folder / name).unlink(missing_ok=True)
    for name in [*new["files"], record.name]:
        (stage / name).replace(folder / name)
    shutil.rmtree(stage, ignore_errors=True)
    return f"fetched at commit {info.sha} into {folder}"


def unpickle(repo_id: str, stage: Path, folder: Path) -> list[str]:
    """Write pickled weights that lie in `stage` as safetensors beside them; what was written."""
    from utils.pickled import as_safetensors  # with torch, which takes seconds to load

    try:
        return as_safetensors(stage, stage)
    except ValueError as error:
        sys.exit(f"error: {repo_id}: {error}; {advice(folder)}")


def advice(folder: Path) -> str:
    return f"pass --revision {folder.name}=REV of one with safetensors (often refs/pr/N)"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    where = "folder to write (%(default)s in the working directory, where --preset paper reads it)"
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help=where)
    several = {"nargs": "+", "action": "extend"}
    what = "models to fetch; all three without it"
    parser.add_argument("--only", metavar="NAME", choices=NAMES, help=what, **several)
    what = "branch, tag or commit of a model; main without it"
    parser.add_argument("--revision", metavar="NAME=REV", default=[], help=what, **several)
    options = parser.parse_args()
    revisions = {NAMES.get(n): rev for n, _, rev in (r.partition("=") for r in options.revision)}
    if None in revisions or "" in revisions.values():
        parser.error(f"--revision takes NAME=REV, NAME one of {', '.join(NAMES)}")
    for repo_id in map(NAMES.get, options.only or PRESET):
        folder = options.models_dir / Path(repo_id).name
        try:
            print(f"{repo_id}: {fetch(repo_id, revisions.get(repo_id, 'main'), folder)}")
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:  # the client, proxies and strangers' answers raise many kinds
            check = "--models-dir" if getattr(error, "errno", 0) else "HF_ENDPOINT and the network"
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            sys.exit(f"error: {repo_id}: {reason}; check {check}")
