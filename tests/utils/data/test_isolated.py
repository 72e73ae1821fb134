"""Calls in processes of their own: whatever one does to its process, the others come to an end."""

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.limit import LIMIT
from utils.data import isolated
from utils.data.isolated import in_processes

CRASH = "__import__('os')._exit(1)"
HANG = "__import__('time').sleep(100)"
LOCK = "__import__('ctypes').PyDLL(None).sleep(100)"  # meanwhile no other thread of it runs
CRASHED, LATE = ["the decoder crashed on it or ran out of memory"], ["took longer than 2 s"]


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert not multiprocessing.active_children()


def wait_for(path):
    deadline = time.monotonic() + LIMIT
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "call, workers, named",
    [(CRASH, 0, CRASHED), (CRASH, 1, CRASHED), (CRASH, 3, CRASHED), (LOCK, 1, LATE)],
    ids=["crash, 0 workers", "crash, 1 worker", "crash, 3 workers", "hang"],
)
def test_a_process_that_ends_costs_one_call(call, workers, named):
    """A crash and a hang are named, with one worker as with more; all others are finished, and
    each is answered once."""
    found = sorted(in_processes(eval, ["[]", call, "[1]"], workers, 2))
    assert found == sorted([("[]", []), (call, named), ("[1]", [1])])


def test_a_process_that_is_killed_between_calls_costs_one_call():
    """Memory that runs out then ends no run: the next call is named, and the one after it is
    finished by a new process."""
    answers = in_processes(eval, ["[1]", "[2]", "[3]"], workers=1, seconds=60)
    assert next(answers) == ("[1]", [1])
    (process,) = multiprocessing.active_children()
    process.kill()
    process.join()
    assert list(answers) == [("[2]", CRASHED), ("[3]", [3])]


def touch_once_no_alarm_is_set(path):
    def watch():
        while signal.getitimer(signal.ITIMER_REAL)[0]:
            time.sleep(0.01)
        path.touch()

    seconds = signal.getitimer(signal.ITIMER_REAL)[0]
    threading.Thread(target=watch).start()
    return [seconds]


def test_the_time_is_that_of_the_call(tmp_path):
    """It begins with the call, not with its process or its turn, and a call that ended in time
    leaves no alarm behind for a process that waits."""
    paths = [tmp_path / "first", tmp_path / "second"]
    for path, (seconds,) in in_processes(touch_once_no_alarm_is_set, paths, workers=1, seconds=60):
        wait_for(path)
        assert 50 < seconds <= 60


class Noticed(OSError):
    """An exception that leaves a file where it is received."""

    def __reduce__(self):
        return notice, self.args


def notice(path):
    path.touch()
    return Noticed(path)


def fail_or_wait(call):
    kind, path = call
    if kind == "fail":
        raise Noticed(path)
    if kind == "wait":
        wait_for(path)
    return [kind]


def test_an_exception_ends_the_run_after_what_is_under_way(tmp_path):
    """What is under way is answered, what waits is not begun, and the exception comes as it was."""
    path, found = tmp_path / "noticed", []
    with pytest.raises(Noticed):
        calls = [("wait", path), ("fail", path), *[("new", path)] * 3]
        for call, _ in in_processes(fail_or_wait, calls, workers=2, seconds=LIMIT):
            found.append(call)
    assert found == [("wait", path)]


def test_an_interrupt_is_the_callers():
    """The terminal sends Ctrl-C to all processes, but it must not look like a crash."""
    call = "__import__('os').kill(__import__('os').getpid(), 2) or []"
    assert list(in_processes(eval, [call], workers=1, seconds=60)) == [(call, [])]


@pytest.mark.parametrize("call, seconds", [(HANG, 600), (LOCK, 2)], ids=["runs", "hangs"])
def test_nothing_outlives_a_killed_run(call, seconds):
    """A worker ends with its parent, which had no time to end it; where it hangs so that nothing
    else runs in it, when its time is up. An idle one ends, too."""
    calls = ["[]", f"print('begun', flush=True) or {call}"]
    code = f"from utils.data.isolated import *; list(in_processes(eval, {calls}, 2, {seconds}))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
    ) as run:
        assert run.stdout.readline() == "begun\n"
        run.kill()
        assert run.communicate(timeout=LIMIT)[0] == ""  # ends when no process holds it any more


def test_nothing_to_do(monkeypatch):
    """Without calls no process is started."""
    monkeypatch.setattr(isolated, "new_worker", None)
    assert list(in_processes(eval, [], workers=4, seconds=60)) == []
