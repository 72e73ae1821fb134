"""Calls in processes of their own: whatever one does to its process, the others come to an end."""

import multiprocessing
import time

import pytest

from utils.data.isolated import in_processes

CRASH, HANG = "__import__('os')._exit(1)", "__import__('time').sleep(60)"


def run(calls, workers, seconds=60):
    """The problems of each call, and that no process outlives them."""
    try:
        return dict(in_processes(eval, calls, workers, seconds))
    finally:
        assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_crash_costs_one_call(workers):
    """The call at fault is named, with one worker as with more; all others are finished."""
    assert run(["[]", CRASH, "[1]"], workers) == {
        "[]": [],
        CRASH: ["the decoder crashed on it or ran out of memory"],
        "[1]": [1],
    }


def test_a_hang_costs_one_call_and_its_time():
    """A call that does not end is ended, once; one that ended in time leaves no alarm behind."""
    began = time.monotonic()
    calls = [
        "[]",
        HANG,
        "__import__('time').sleep(1.2) or []",
        "__import__('time').sleep(1.1) or []",
    ]
    found = run(calls, workers=1, seconds=2)
    assert found.pop(HANG) == ["took longer than 2 s"] and set(map(tuple, found.values())) == {()}
    assert time.monotonic() - began < 30


def test_an_exception_is_raised():
    """A call's exception comes as it was, after what is under way; what waits is not begun."""
    with pytest.raises(ZeroDivisionError):
        run(["1/0", *["[]"] * 9], workers=2)


def test_nothing_to_do():
    """Without calls no process is started."""
    assert run([], workers=4) == {}
