"""The model fetcher as a user runs it, against a hub made up here: no test leaves this machine."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.hub import MISSING, serving
from tests.helpers.limit import LIMIT

SCRIPT = Path(__file__).resolve().parents[2] / "utils" / "hf-download.py"
VIVIT, PR = "google/vivit-b-16x2", "vivit-b-16x2=refs/pr/2"
COMMIT, LATER = "a" * 40, "b" * 40
FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 40}
REFUSING = {"HF_ENDPOINT": "http://127.0.0.1:1"}  # nothing listens there


@pytest.fixture
def hub():
    """A hub with the one repository that is asked for here."""
    with serving({VIVIT: {"main": (COMMIT, FILES)}}) as server:
        yield server


def call(hub, folder, *more, blocks="unlimited", **settings):
    """How to call the script in `folder`, free of this user's settings; `blocks` limit a file."""
    usual = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    usual["HF_ENDPOINT"] = hub.address
    shell = ["sh", "-c", f'ulimit -f {blocks} && exec "$@"', "sh"]
    command = [*shell, sys.executable, str(SCRIPT), "--only", "vivit-b-16x2", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {"args": command, "cwd": folder, "env": usual | settings, **pipes}


def run(hub, folder, *more, status=0, **settings):
    """Run the script to its end; return what it said, or its last line where it failed."""
    done = subprocess.run(**call(hub, folder, *more, **settings), timeout=LIMIT)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1] if status else done.stdout


def model(folder):
    """The content of the fetched model's files, by name, and its record."""
    entries = (folder / "models/vivit-b-16x2").iterdir()
    files = {path.name: path.read_bytes() for path in entries if path.is_file()}
    return files, json.loads(files.pop("revision.json", b"{}"))


def test_fetches_a_whole_model_and_records_its_commit(hub, tmp_path):
    """Protects: models/NAME of the working directory, the record that others read, and that no
    pickle, code, sub-folder or foreign record is fetched."""
    wanted = FILES | {"vocab.txt": b"1", "a.safetensors.index.json": b"2"}
    junk = "a.bin a.bin.index.json a.py b/a.json ../a.json ..\\a.json revision.json".split()
    hub.repos[VIVIT] = {"refs/pr/2": (COMMIT, wanted | dict.fromkeys(junk, b"junk"))}
    assert f"fetched at commit {COMMIT}" in run(hub, tmp_path, "--revision", PR)
    record = {"repo_id": VIVIT, "requested_revision": "refs/pr/2", "commit": COMMIT}
    record["files"] = {name: len(content) for name, content in wanted.items()}
    assert model(tmp_path) == (wanted, record)
    assert sorted(hub.asked) == sorted((name, 0) for name in wanted)


def test_second_run_fetches_nothing_and_a_lost_file_is_fetched_again(hub, tmp_path):
    """Protects: no download twice, and no record beside missing files that passes for a model."""
    run(hub, tmp_path)
    hub.asked.clear()
    assert f"already at commit {COMMIT}" in run(hub, tmp_path, "--models-dir", "models")
    assert not hub.asked
    (tmp_path / "models/vivit-b-16x2/config.json").unlink()
    run(hub, tmp_path)
    assert model(tmp_path)[0] == FILES


def test_another_revision_replaces_the_model_once_it_is_whole(hub, tmp_path):
    """Protects: no mix of two commits, not after a failure either; the user's own file stays."""
    run(hub, tmp_path)
    (tmp_path / "models/vivit-b-16x2/notes.txt").write_text("mine")
    before, new = model(tmp_path), {"config.json": b'{"a": 2}', "new.safetensors": b"new"}
    hub.repos[VIVIT]["main"], hub.sent = (LATER, new), {"new.safetensors": b"bad"}
    run(hub, tmp_path, status=1)
    assert model(tmp_path) == before
    hub.sent = {}
    run(hub, tmp_path)
    files, record = model(tmp_path)
    assert (files, record["commit"]) == (new | {"notes.txt": b"mine"}, LATER)


def test_a_model_of_ones_own_is_not_replaced(hub, tmp_path):
    """Protects: weights that a user put there, by hand or by another tool."""
    folder = tmp_path / "models/vivit-b-16x2"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"mine")
    said = run(hub, tmp_path, status=1)
    assert said.endswith("model.safetensors: not fetched by this script; move it away first")
    assert model(tmp_path) == ({"model.safetensors": b"mine"}, {})


@pytest.mark.parametrize("name, sent", [("config.json", b'{"a": 2}'), ("model.safetensors", b"12")])
def test_a_damaged_or_short_file_is_refused_and_fetched_anew(hub, tmp_path, name, sent):
    """Protects: only what the hub lists is recorded; the next run does not trust the damage."""
    hub.sent = {name: sent}
    assert f"{name} arrived damaged" in run(hub, tmp_path, status=1)
    assert model(tmp_path) == ({}, {})
    hub.sent = {}
    run(hub, tmp_path)
    assert model(tmp_path)[0] == FILES


def test_a_dropped_connection_is_taken_up_where_it_broke(hub, tmp_path):
    """Protects: gigabytes that came over a bad line are not asked for again."""
    weights = bytes(range(256)) * 50_000  # the client keeps what came in steps of 10 MiB
    hub.repos[VIVIT]["main"] = (COMMIT, FILES | {"model.safetensors": weights})
    hub.cuts = {"model.safetensors": 11 << 20}
    run(hub, tmp_path)
    assert hub.asked[-2:] == [("model.safetensors", 0), ("model.safetensors", 10 << 20)]
    assert model(tmp_path)[0]["model.safetensors"] == weights


def test_ctrl_c_ends_at_once_and_the_next_run_goes_on(hub, tmp_path):
    """Protects: status 130 while a file is on its way, no model yet, no file fetched twice."""
    hub.cuts = {"model.safetensors": 1000}
    hub.may_close.clear()
    process = subprocess.Popen(**call(hub, tmp_path))
    try:
        assert hub.is_cut.wait(LIMIT)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=LIMIT)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and model(tmp_path) == ({}, {})
    hub.asked.clear()
    run(hub, tmp_path)
    assert hub.asked == [("model.safetensors", 0)] and model(tmp_path)[0] == FILES


def test_a_model_that_stands_is_kept_while_the_hub_is_away(hub, tmp_path):
    """Protects: offline work goes on, with the revision asked for alone; a refusal is heard of."""
    run(hub, tmp_path)
    assert f"kept at commit {COMMIT}" in run(hub, tmp_path, **REFUSING)
    assert "kept" in run(hub, tmp_path, "--revision", f"{VIVIT}={COMMIT}", HF_HUB_OFFLINE="1")
    run(hub, tmp_path, "--revision", PR, status=1, HF_HUB_OFFLINE="1")
    hub.trouble = (503, b"busy\nfor long")
    assert "kept" in run(hub, tmp_path)
    hub.trouble = (403, b"")
    run(hub, tmp_path, status=1)


@pytest.mark.parametrize(
    ("settings", "trouble", "reason"),
    [
        (REFUSING, None, "Connection refused"),
        ({"HF_ENDPOINT": "hub.example"}, None, "missing an 'http://' or 'https://' protocol"),
        ({"HF_ENDPOINT": "localhost:1"}, None, "missing an 'http://' or 'https://' protocol"),
        ({"HF_ENDPOINT": "http://127.0.0.1:99999"}, None, "Port out of range"),
        ({"HF_HUB_OFFLINE": "1"}, None, "offline mode is enabled"),
        ({"ALL_PROXY": "socks5://127.0.0.1:1"}, None, "SOCKS proxy"),
        ({"blocks": "8"}, None, "too large"),  # stands for a full disk
        ({}, MISSING, "Revision Not Found"),
        ({}, (401, b"", {"X-Error-Code": "RepoNotFound"}), "Repository Not Found"),
        ({}, (200, b"<html>log in</html>"), "JSONDecodeError"),
        ({}, (200, b"{}"), "KeyError"),
    ],
)
def test_a_failure_is_one_line(hub, tmp_path, settings, trouble, reason):
    """Protects: what is wrong and where to look, at once, without a traceback: whoever waits to try
    again what cannot succeed fails here."""
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep = None\n")
    hub.trouble = trouble
    line = run(hub, tmp_path, status=1, PYTHONPATH=str(tmp_path), **settings)
    assert line.startswith(f"error: {VIVIT}: ") and reason in line and "; check " in line


def test_a_folder_that_cannot_be_made_is_one_line(hub, tmp_path):
    """Protects: a wrong --models-dir is named."""
    line = run(hub, tmp_path, "--models-dir", str(SCRIPT), status=1)
    assert str(SCRIPT) in line and line.endswith("check --models-dir")


def test_a_hub_that_never_answers_is_given_up(hub, tmp_path):
    """Protects: no hang."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "Timeout" in run(hub, tmp_path, status=1, HF_ENDPOINT=endpoint)


def pickled(content):
    """The files of a repository with nothing but pickled weights."""
    torch.save(content, buffer := io.BytesIO())
    files = {"config.json": b"{}", "training_args.bin": b"junk"}
    return {**files, "pytorch_model.bin": buffer.getvalue()}


@pytest.mark.slow
def test_pickled_weights_alone_become_safetensors(hub, tmp_path):
    """Protects: a repository as google/vivit-b-16x2 may stand ends in a model that everything here
    reads, with no pickle left beside it, and is not fetched twice; one that holds anything but
    weights ends in a line that says what to pass instead (more: tests/utils/test_pickled.py)."""
    hub.repos[VIVIT]["main"] = (COMMIT, pickled({"a": 1}))
    line = run(hub, tmp_path, status=1)
    assert "'a' is no plain tensor" in line and "pass --revision vivit-b-16x2=REV" in line
    assert model(tmp_path) == ({}, {})
    weights = {"a": torch.arange(6.0)}
    hub.repos[VIVIT]["main"] = (LATER, pickled(weights))
    assert f"fetched at commit {LATER}" in run(hub, tmp_path)
    files, record = model(tmp_path)
    assert files.keys() == record["files"].keys() == {"config.json", "model.safetensors"}
    found = load_file(tmp_path / "models/vivit-b-16x2/model.safetensors")
    assert torch.equal(found["a"], weights["a"])
    hub.asked.clear()
    assert "already at commit" in run(hub, tmp_path) and not hub.asked


def test_no_weights_at_all_name_the_remedy(hub, tmp_path):
    """Protects: a repository without weights is no model."""
    hub.repos[VIVIT]["main"] = (COMMIT, {"config.json": b"{}", "flax_model.msgpack": b"1"})
    line = run(hub, tmp_path, status=1)
    assert "main has no weights; pass --revision vivit-b-16x2=REV" in line
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("text", ["vivit-b-16x2", "vivit-b-16x2=", "other=main"])
def test_a_wrong_revision_option_is_a_usage_error(hub, tmp_path, text):
    """Protects: a mistyped option must not silently fetch main."""
    assert "NAME=REV" in run(hub, tmp_path, "--revision", text, status=2)
