"""Calls in processes of their own, so that one that crashes or hangs costs itself alone.

The standard library's pool breaks as a whole when one of its processes dies, and cannot end a call
that hangs; Pebble's can, under the LGPL.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from utils.machine import end_with_parent

LATE = -getattr(signal, "SIGALRM", -14)  # status of a process that its time ended


def in_processes(
    call: Callable[[Any], Any],
    items: Iterable,
    workers: int,
    seconds: float,
    start: BaseContext | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, call(item)) as worker processes finish them.

    A call that ends its process, or takes longer than `seconds` and is ended with it, gives that in
    a list, [problem], as its answer; a new process takes over. An exception is raised here, once
    what is under way has ended; an interrupt ends it at once. Function, items and answers must be
    picklable.

    Args:
        start: how processes are started, of multiprocessing; each anew (spawn) if not said. A
            plain fork will not do: the caller may run threads of torch, which do not survive it.
    """
    queue, idle, busy, failure = deque(items), [], {}, None
    try:
        while queue or busy:
            while queue and len(busy) < max(1, workers):
                item = queue.popleft()
                pipe, process = idle.pop() if idle else new_worker(call, seconds, start)
                busy[pipe] = process, item
                with suppress(OSError):  # it was killed meanwhile, which is noticed below
                    pipe.send(item)
            for pipe in wait(busy):
                process, item = busy.pop(pipe)
                try:
                    answer = pipe.recv()
                    idle.append((pipe, process))
                except (EOFError, OSError):
                    process.join()
                    late = process.exitcode == LATE
                    crashed = "the decoder crashed on it or ran out of memory"
                    answer = [f"took longer than {seconds:g} s" if late else crashed]
                if isinstance(answer, Exception):
                    failure = answer
                    queue.clear()
                else:
                    yield item, answer
        if failure:
            raise failure
    finally:
        for process in [p for _, p in idle] + [p for p, _ in busy.values()]:
            process.kill()
            process.join()


def new_worker(
    call: Callable, seconds: float, start: BaseContext | None
) -> tuple[Connection, BaseProcess]:
    start = start or get_context("spawn")
    pipe, end = start.Pipe()
    process = start.Process(target=work, args=(end, call, seconds), daemon=True)
    with end, blocked_interrupts():
        process.start()
    return pipe, process


@contextmanager
def blocked_interrupts() -> Iterator[None]:
    """Ctrl-C is the caller's: a process that starts here inherits that it is blocked, so even its
    start is quiet."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # or `start` would begin it, and that unblocks Ctrl-C
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def work(pipe: Connection, call: Callable, seconds: float) -> None:
    """Answer what comes through the pipe, and end with the caller's process, even if it is killed:
    at once, or when the time is up if a decoder hangs so that no other thread runs."""
    end_with_parent()
    # Interrupts: a process forked by a server inherits the server's mask, not the caller's.
    # EOFError, OSError: the caller's end, seen before the thread saw it.
    with blocked_interrupts(), suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            with ending_after(seconds):
                try:
                    answer = call(item)
                except Exception as error:
                    answer = error
            pipe.send(answer)


@contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """What takes longer ends this process. The system does it, whatever runs: a decoder that hangs
    runs no Python any more. Only where it cannot (Windows) does a thread."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
    else:
        timer = threading.Timer(seconds, os._exit, (LATE,))
        timer.start()
        yield
        timer.cancel()
