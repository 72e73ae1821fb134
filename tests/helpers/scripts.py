"""Scripts run as a user runs them, in this process or one of their own; not a test itself."""

import gc
import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from accelerate.state import AcceleratorState

from tests.helpers.limit import LIMIT
from utils.config import run, run_script

ROOT = Path(__file__).resolve().parents[2]


def places(script: str, folder: Path) -> tuple:
    """Flags by which a task script keeps a small mini world and all that it writes in `folder`."""
    dataset = "VALOR" if script == "task_align.py" else "MUSIC-AVQA"
    return (
        *("--out", folder / "checkpoint", "--figures", folder / "imgs"),
        *("--data", folder / "mini" / dataset, "--cache", folder / "cache"),
        *("--mini_clips", 24, 8, 12),
    )


def here(script: str, *flags: object, root: Path = ROOT, ok: bool = True) -> CompletedProcess:
    """Run a script in this process, which has imported what it needs, as its command line would
    from `root`."""
    module = import_module(script.removesuffix(".py").replace("/", "."))
    return called(
        lambda: run_script(module.main, module.PRESETS, module.PRESET, module.__doc__),
        [script, *map(str, flags)],
        root,
        ok,
    )


def asked(*flags: object, root: Path = ROOT, ok: bool = True) -> CompletedProcess:
    """Run ask.py, likewise."""
    ask = import_module("ask")
    return called(lambda: run(ask.main, ask.parse()), ["ask.py", *map(str, flags)], root, ok)


def called(script: Callable[[], None], words: list[str], root: Path, ok: bool) -> CompletedProcess:
    """What a script leaves on the screen when it is called with such a command line."""
    status = 0
    out, errors = io.StringIO(), io.StringIO()
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.chdir(root)
        patch.setattr(sys, "argv", words)
        patch.setattr(threading, "excepthook", threading.excepthook)  # put back afterwards
        try:
            script()
        except SystemExit as end:
            status = end.code
    gc.collect()  # what the end of a process would free: the lock of a run that failed
    AcceleratorState._reset_state(reset_partial_state=True)
    return ended(CompletedProcess(words, status, out.getvalue(), errors.getvalue()), ok)


def apart(script: str, *flags: object, root: Path = ROOT, ok: bool = True) -> CompletedProcess:
    """Run a script in a process of its own, from `root`, to its end."""
    words = [sys.executable, script, *map(str, flags)]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=LIMIT)
    return ended(done, ok)


def ended(done: CompletedProcess, ok: bool) -> CompletedProcess:
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def refused(done: CompletedProcess, *says: str, bars: bool = False, status: int = 1) -> None:
    """The script ended in one line that says all this, without a traceback; with `bars` lines of
    progress may stand before it."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert bars or len(lines) == 1, done.stderr
    script = next(word for word in done.args if word.endswith(".py"))
    assert lines[-1].startswith(f"{script}: ") and len(lines[-1]) < 600, lines[-1]
    assert all(part in lines[-1] for part in says), lines[-1]


def until(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait for what a process does; fails where it ends, or hangs, without having done it."""
    began = time.monotonic()
    while not happened():
        assert process.poll() is None, "ended before"
        assert time.monotonic() - began < LIMIT, "hangs"
        time.sleep(0.01)
