"""The model fetcher against a hub made up here: no test leaves this machine."""

import errno
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "utils" / "hf-download.py"
VIVIT = "google/vivit-b-16x2"
COMMIT, LATER = "a" * 40, "b" * 40
WEIGHTS = bytes(range(256)) * 40
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"code",
}
WHOLE = {"config.json": 8, "model.safetensors": len(WEIGHTS)}  # bytes


@pytest.fixture
def script():
    # A fresh module a test: what one test patches must not reach the next.
    spec = importlib.util.spec_from_file_location("hf_download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sibling(name, content):
    """One entry of the hub's file list, weights stored the large-file way."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(".safetensors"):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 130}
    return entry


def answer(files, commit=COMMIT):
    return {"id": VIVIT, "sha": commit, "siblings": [sibling(*item) for item in files.items()]}


# In this process: the two calls that leave the script are replaced.


@pytest.fixture
def hub(script, monkeypatch):
    """A hub without a network: `files` it lists, `faulty` ones it sends otherwise, `trouble` it
    raises when asked, names it was asked for, seconds the script waited."""
    state = SimpleNamespace(files=FILES, faulty={}, commit=COMMIT, trouble=[], got=[], waits=[])

    def model_info(repo_id, **_):
        if state.trouble:
            raise state.trouble.pop(0)
        return script.ModelInfo(**answer(state.files, state.commit))

    def http_get(url, sink, resume_size, displayed_filename, **_):
        state.got.append(displayed_filename)
        content = (state.files | state.faulty)[displayed_filename]
        if isinstance(content, BaseException):
            raise content
        sink.write(content[resume_size:])

    monkeypatch.setattr(script, "HfApi", lambda: SimpleNamespace(model_info=model_info))
    monkeypatch.setattr(script, "http_get", http_get)
    monkeypatch.setattr(script.time, "sleep", state.waits.append)
    return state


def run(script, folder, *more):
    return script.main(["--models-dir", str(folder), "--only", "vivit-b-16x2", *more])


def record_in(folder):
    return json.loads((folder / "vivit-b-16x2" / "revision.json").read_text())


def http_error(script, status, kind=None):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    kind = kind or sys.modules["huggingface_hub.errors"].HfHubHTTPError
    return kind(f"HTTP {status}", response=response)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("config.json", True),
        ("tokenizer.json", True),
        ("vocab.json", True),
        ("vocab.txt", True),
        ("merges.txt", True),
        ("pytorch_model.bin", False),
        ("pytorch_model.bin.index.json", False),
        ("model.pt", False),
        ("flax_model.msgpack", False),
        ("tf_model.h5", False),
        ("modeling.py", False),
        ("README.md", False),
        ("checkpoint-1/model.safetensors", False),
        ("../config.json", False),
        ("revision.json", False),
    ],
)
def test_only_safetensors_configuration_and_tokenizer_are_wanted(script, name, wanted):
    # Protects: no pickle, no code, nothing outside the model's folder, no clash with the record.
    assert script.is_wanted(name) is wanted


def test_the_record_is_complete_and_the_second_run_fetches_nothing(script, hub, tmp_path, capsys):
    # Protects: what other code reads from revision.json, and no download twice.
    assert run(script, tmp_path) == 0
    assert record_in(tmp_path) == {
        "repo_id": VIVIT,
        "requested_revision": "main",
        "commit": COMMIT,
        "files": WHOLE,
    }
    assert sorted(hub.got) == sorted(WHOLE)
    assert run(script, tmp_path) == 0
    assert sorted(hub.got) == sorted(WHOLE)
    assert "already at commit " + COMMIT in capsys.readouterr().out


def test_a_lost_file_is_fetched_again(script, hub, tmp_path):
    # Protects: a record beside missing files is not taken for a whole model.
    run(script, tmp_path)
    (tmp_path / "vivit-b-16x2" / "config.json").unlink()
    hub.got.clear()
    assert run(script, tmp_path) == 0
    assert hub.got == ["config.json"]


def test_a_failed_update_leaves_the_old_model_and_its_record(script, hub, tmp_path):
    # Protects: the record never names files that are not there, nor a mix of two commits.
    run(script, tmp_path)
    hub.commit = LATER
    hub.files = {"config.json": b'{"a": 2}', "new.safetensors": WEIGHTS[::-1]}
    hub.faulty = {"new.safetensors": OSError("cut")}
    folder = tmp_path / "vivit-b-16x2"
    assert run(script, tmp_path, "--retries", "1") == 1
    assert record_in(tmp_path)["commit"] == COMMIT
    assert (folder / "config.json").read_bytes() == FILES["config.json"]

    hub.faulty = {}
    assert run(script, tmp_path) == 0
    assert record_in(tmp_path)["commit"] == LATER
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "new.safetensors",
        "revision.json",
    ]


def test_the_record_appears_whole_or_not_at_all(script, hub, tmp_path, monkeypatch):
    # Protects: a stop while the record is written must not leave half of one.
    def stop(self, target):
        if Path(target).name == "revision.json":
            raise KeyboardInterrupt
        return os.replace(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    assert run(script, tmp_path) == 130
    assert not (tmp_path / "vivit-b-16x2" / "revision.json").exists()


def test_a_damaged_file_is_fetched_again_and_never_recorded(script, hub, tmp_path, capsys):
    # Protects: the size alone does not pass; what is recorded is what the hub lists.
    hub.faulty = {"model.safetensors": WEIGHTS[::-1]}
    assert run(script, tmp_path, "--retries", "2") == 1
    assert "model.safetensors arrived damaged" in capsys.readouterr().err
    assert not (tmp_path / "vivit-b-16x2" / "revision.json").exists()
    assert hub.got.count("model.safetensors") == 3


def test_a_part_longer_than_its_file_is_started_afresh(script, hub, tmp_path):
    # Protects: asking the hub for bytes past the end is refused, on every later run too.
    folder = tmp_path / "vivit-b-16x2"
    folder.mkdir()
    blob = sibling("config.json", FILES["config.json"])["blobId"]
    (folder / f"config.json.{blob[:12]}.part").write_bytes(b"far too long")
    assert run(script, tmp_path) == 0
    assert hub.waits == []


def test_retries_are_bounded_and_back_off(script, hub, tmp_path, capsys):
    # Protects: a dead hub ends the run with one line that names the model and the remedy.
    hub.trouble = [ConnectionError("unplugged\nand more")] * 99
    assert run(script, tmp_path, "--retries", "8") == 1
    assert hub.waits == [1, 2, 4, 8, 16, 32, 60, 60]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {VIVIT}: unplugged (tries: 9); check the network")


def test_a_passing_trouble_is_outlasted(script, hub, tmp_path):
    # Protects: a busy hub (429, 5xx) is not taken for a refusal.
    hub.trouble = [http_error(script, 503), http_error(script, 429), ConnectionError("x")]
    assert run(script, tmp_path) == 0
    assert hub.waits == [1, 2, 4]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_retried(script, hub, tmp_path, capsys, status):
    # Protects: no minute of waiting for an answer that will not change.
    hub.trouble = [http_error(script, status)]
    assert run(script, tmp_path) == 1
    assert hub.waits == []
    expected = f"error: {VIVIT}: no such model or no access (HTTP {status})"
    assert capsys.readouterr().err.startswith(expected)


def test_an_unknown_revision_says_so(script, hub, tmp_path, capsys):
    # Protects: a mistyped --revision is told from a missing model.
    hub.trouble = [http_error(script, 404, script.RevisionNotFoundError)]
    assert run(script, tmp_path, "--revision", "vivit-b-16x2=refs/pr/99") == 1
    assert "no such revision" in capsys.readouterr().err


def test_a_whole_model_is_kept_when_the_hub_is_out_of_reach(script, hub, tmp_path, capsys):
    # Protects: work offline goes on at once, but never with another revision than asked.
    run(script, tmp_path)
    hub.trouble = [ConnectionError("unplugged")] * 9
    assert run(script, tmp_path) == 0
    assert hub.waits == []
    assert "kept at commit " + COMMIT in capsys.readouterr().out
    assert run(script, tmp_path, "--retries", "0", "--revision", f"{VIVIT}={COMMIT}") == 0
    assert run(script, tmp_path, "--retries", "0", "--revision", f"{VIVIT}=refs/pr/1") == 1


def test_a_full_disk_ends_in_one_line(script, hub, tmp_path, capsys):
    # Protects: no retry and no traceback where only the user can help.
    hub.faulty = {"model.safetensors": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))}
    assert run(script, tmp_path) == 1
    assert hub.waits == []
    assert capsys.readouterr().err.splitlines() == [
        f"error: {VIVIT}: the disk is full; free some space, then run again to resume"
    ]


def test_a_folder_that_cannot_be_made_ends_in_one_line(script, hub, tmp_path, capsys):
    # Protects: a wrong --models-dir is no traceback either.
    (tmp_path / "file").write_text("")
    assert run(script, tmp_path / "file") == 1
    assert re.fullmatch(r"error: .*check --models-dir\n", capsys.readouterr().err)


def test_an_interrupt_says_how_to_go_on(script, hub, tmp_path, capsys):
    # Protects: the status shells expect after Ctrl-C.
    hub.trouble = [KeyboardInterrupt()]
    assert run(script, tmp_path) == 130
    assert "run again to resume" in capsys.readouterr().err


def test_a_stranger_at_the_address_is_told(script, hub, tmp_path, capsys):
    # Protects: a login page or a half mirror at HF_ENDPOINT is no traceback.
    hub.trouble = [json.JSONDecodeError("not JSON", "<html>", 0)]
    assert run(script, tmp_path) == 1
    assert "not a model hub's; check HF_ENDPOINT" in capsys.readouterr().err


def test_names_and_revisions_are_parsed(script):
    # Protects: both spellings of NAME, and revisions with slashes or equals signs.
    assert script.preset_model("Qwen2.5-1.5B") == "Qwen/Qwen2.5-1.5B"
    assert script.model_revision("vivit-b-16x2=refs/pr/2") == (VIVIT, "refs/pr/2")
    assert script.model_revision(f"{VIVIT}=a=b") == (VIVIT, "a=b")


@pytest.mark.parametrize("text", ["vivit-b-16x2", "vivit-b-16x2=", "=main", "other=main"])
def test_a_wrong_revision_option_is_a_usage_error(script, capsys, text):
    # Protects: a mistyped option must not silently fetch main.
    with pytest.raises(SystemExit) as end:
        script.main(["--revision", text])
    assert end.value.code == 2
    assert text.partition("=")[0] in capsys.readouterr().err


# As a user runs it: a process of its own against a server on the loopback.


class Answers(BaseHTTPRequestHandler):
    """The two addresses of the hub that the script needs."""

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if VIVIT in path:  # the hub client has questions of its own
            self.server.asked.append((path, self.headers.get("Range")))
        files = self.server.files
        if path.startswith(f"/api/models/{VIVIT}/revision/"):
            revision = path.rpartition("/revision/")[2]
            return self.send(200, json.dumps(answer(files[revision])).encode())
        prefix, _, name = path.rpartition("/")
        if prefix != f"/{VIVIT}/resolve/{COMMIT}" or name not in self.server.served:
            return self.send(404, b"")
        content = self.server.served[name]
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        return self.send(206 if start else 200, content[start:], start, len(content))

    def send(self, status, body, start=0, total=0):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    pickled = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.files = {"main": pickled, "refs/pr/2": FILES}
    server.served = FILES
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def run_process(server, folder, *more):
    unset = ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, str(SCRIPT), "--models-dir", str(folder), "--only", "vivit-b-16x2"]
    return subprocess.run(
        [*command, *more], env=environment, capture_output=True, text=True, timeout=30
    )


def test_a_process_fetches_from_the_mirror_it_is_given(server, tmp_path):
    # Protects: HF_ENDPOINT, the pinned commit in every address, and that pickles are not asked for.
    done = run_process(server, tmp_path, "--revision", "vivit-b-16x2=refs/pr/2")
    assert done.returncode == 0, done.stderr
    assert COMMIT in done.stdout
    assert [path for path, _ in server.asked] == [
        f"/api/models/{VIVIT}/revision/refs/pr/2",
        f"/{VIVIT}/resolve/{COMMIT}/config.json",
        f"/{VIVIT}/resolve/{COMMIT}/model.safetensors",
    ]
    assert (tmp_path / "vivit-b-16x2" / "model.safetensors").read_bytes() == WEIGHTS
    assert record_in(tmp_path)["requested_revision"] == "refs/pr/2"
    assert record_in(tmp_path)["files"] == WHOLE


def test_a_process_refuses_pickled_weights(server, tmp_path):
    # Protects: no fallback to pickle, and the one line that says what to pass instead.
    done = run_process(server, tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {VIVIT}: revision main has no safetensors file")
    assert "--revision vivit-b-16x2=REV" in line
    assert not (tmp_path / "vivit-b-16x2").exists()


def test_a_process_goes_on_where_the_last_one_stopped(server, tmp_path):
    # Protects: gigabytes on disk are not fetched again after an interrupted run.
    blob = sibling("model.safetensors", WEIGHTS)["blobId"]
    folder = tmp_path / "vivit-b-16x2"
    folder.mkdir()
    (folder / f"model.safetensors.{blob[:12]}.part").write_bytes(WEIGHTS[:1000])
    done = run_process(server, tmp_path, "--revision", "vivit-b-16x2=refs/pr/2")
    assert done.returncode == 0, done.stderr
    assert server.asked[-1] == (f"/{VIVIT}/resolve/{COMMIT}/model.safetensors", "bytes=1000-")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_process_ends_without_a_traceback_when_files_are_gone(server, tmp_path):
    # Protects: what the real client raises, not only what the tests above make up.
    server.served = {"config.json": FILES["config.json"]}
    done = run_process(server, tmp_path, "--revision", "vivit-b-16x2=refs/pr/2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {VIVIT}: no such model or no access")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "vivit-b-16x2" / "revision.json").exists()
