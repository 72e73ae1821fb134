"""What one operating system has and another lacks: nothing that only some have is needed."""

import os
import subprocess
import sys

import pytest

from tests.helpers.scripts import LIMIT, ROOT, ended, places
from utils import machine, runs
from utils.training import log

# What Python does at its start, in every process: forget what macOS and Windows lack.
FORGET = """
import multiprocessing, os, signal
for module, names in {
    os: ("sched_getaffinity", "sched_setaffinity"),
    signal: ("pthread_sigmask", "setitimer", "getitimer", "SIGALRM", "ITIMER_REAL"),
}.items():
    for name in names:
        delattr(module, name)
from multiprocessing import context
del context._concrete_contexts["forkserver"]
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""


@pytest.fixture
def forgetful(tmp_path):
    """An environment whose Python knows nothing but what all systems have."""
    folder = tmp_path / "forget"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FORGET)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def python(env, *words) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, env=env)
    return ended(done, ok=True)


@pytest.mark.slow
def test_a_stage_runs_on_any_system(tmp_path, forgetful):
    """From the rendering of the world, by preprocessing, encoding and training, to the metrics."""
    flags = ("--steps", 2, "--batch", 4, "--workers", 1, "--figures", "none")
    words = ("task_align.py", *places("task_align.py", tmp_path), *flags)
    python(forgetful, *words, "--mini_clips", 8, 4, 4)
    assert (tmp_path / "checkpoint/align-mini-tau0.07.json").is_file()


def test_a_notebooks_way_to_draw_is_not_ours(forgetful):
    """Jupyter names a matplotlib backend of its own to whatever is started from it."""
    env = forgetful | {"MPLBACKEND": "module://matplotlib_inline.backend_that_is_not_there"}
    assert "alignment" in python(env, "task_align.py", "--help").stdout


def test_a_call_that_hangs_is_ended_on_any_system(forgetful):
    """Where no alarm can be set a thread ends it."""
    code = (
        "from utils.data.isolated import in_processes\n"
        "calls = ['[1]', '__import__(\"time\").sleep(600)']\n"
        "print([found for _, found in in_processes(eval, calls, 1, 3)])"
    )
    assert python(forgetful, "-c", code).stdout == "[[1], ['took longer than 3 s']]\n"


def test_cores_without_a_list_of_them(monkeypatch):
    """All of the machine's, or the share that this process was given."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.setattr(machine, "taken", [])
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.cores() == list(range(6)) and runs.jobs_at_a_time(0) in (1, 6)
    machine.take_cores([1, 4])
    assert machine.cores() == [1, 4]


def test_memory_without_the_module(monkeypatch):
    """Some megabytes are told, on any system."""
    told = log.peak_rss_mb()
    monkeypatch.setattr(log, "resource", None)
    assert 10 < log.peak_rss_mb() < 1.5 * told + 100


def test_memory_on_macos(monkeypatch):
    """It counts bytes where Linux counts kilobytes."""
    told = log.peak_rss_mb()
    monkeypatch.setattr(log.sys, "platform", "darwin")
    assert log.peak_rss_mb() == pytest.approx(told / 1024, rel=0.2)
