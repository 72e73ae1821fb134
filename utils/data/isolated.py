"""Calls in processes of their own, so that one that crashes or hangs costs itself alone."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def in_processes(
    find_problems: Callable[[Any], list[str]], items: Iterable, workers: int, seconds: float
) -> Iterator[tuple[Any, list[str]]]:
    """Yield (item, find_problems(item)) as worker processes finish them.

    A call that ends its process, or takes longer than `seconds` and is ended with it, gives that
    as the item's only problem; a new process takes over. An exception is raised here, once what is
    under way has ended. Function and items must be picklable.
    """
    queue, running = deque(items), {}
    idle = [new_pool() for _ in range(min(max(1, workers), len(queue)))]
    try:
        while queue or running:
            while queue and idle:
                pool, item = idle.pop(), queue.popleft()
                future = pool.submit(limited, seconds, find_problems, item)
                running[future] = pool, item, time.monotonic()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pool, item, began = running[future]
                try:
                    problems = future.result()
                except BrokenProcessPool:
                    late = time.monotonic() - began >= seconds
                    problems = [
                        f"took longer than {seconds:g} s"
                        if late
                        else "the decoder crashed on it or ran out of memory"
                    ]
                    pool.shutdown()
                    pool = new_pool()
                del running[future]
                idle.append(pool)
                yield item, problems
    finally:
        for pool in (*idle, *(pool for pool, *_ in running.values())):
            pool.shutdown()


def limited(seconds: float, call: Callable, item: Any) -> Any:
    """call(item), in a process that ends when it takes longer."""
    # The system ends it, whatever it is doing: a decoder that hangs runs no Python any more.
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return call(item)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def new_pool() -> ProcessPoolExecutor:
    """A pool of one process, so that it is known whose call ended it."""
    # spawn, not fork: the caller may run threads of torch, which do not survive a fork
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=follow_parent)


def follow_parent() -> None:
    """Leave Ctrl-C to the parent process, end with it even if it is killed, and by the alarm."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
