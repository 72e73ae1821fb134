"""How batches come from the processes that read media, wherever they run and whatever ends them."""

import os
import struct
import sys
import tempfile
from contextlib import chdir
from copy import copy
from functools import partial
from io import FileIO
from multiprocessing import forkserver, get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from torch import Tensor

from utils.files import ROOT
from utils.machine import end_with_parent

SOCKET_PATH = 104  # bytes that the path of a socket may have on macOS; on Linux 108


def loading(workers: int) -> dict:
    """How loaders work: in processes that hold no accelerator and none of this process's threads,
    which hand over their batches through a pipe (shared memory is 64 MB in a stock container)."""
    return {
        # Each loader draws its workers' seeds from here, so that reading one changes nothing else.
        "generator": torch.Generator(),
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "multiprocessing_context": context() if workers else None,
        "worker_init_fn": begin,
    }


def context() -> BaseContext:
    """How workers are started: forked from a process that has imported what they need, once, or
    where that cannot be had (on Windows, or below a folder TMPDIR whose name is too long for the
    path of a socket) each on its own. Their batches go through a `BatchQueue`."""
    socket = Path(tempfile.gettempdir()) / "pymp-12345678" / "listener-12345678"
    fits = len(os.fsencode(socket)) < SOCKET_PATH
    forks = fits and "forkserver" in get_all_start_methods()
    if forks:
        forkserver.set_forkserver_preload(["utils.data.clips"])
        with chdir(ROOT):  # where it imports from, once
            forkserver.ensure_running()
    found = copy(get_context("forkserver" if forks else "spawn"))
    if sys.platform != "win32":  # whose pipes hand over whole messages only
        found.Queue = partial(BatchQueue, ctx=found)
    return found


def begin(_worker: int) -> None:
    """A worker begins: it ends with the main process, and sends tensors by value."""
    end_with_parent()
    send_by_value()


def send_by_value() -> None:
    """From now on this process sends tensors through its pipes, not in shared memory."""
    ForkingPickler.register(Tensor, by_value)


def by_value(tensor: Tensor) -> tuple:
    return torch.from_numpy, (tensor.numpy(),)


class BatchQueue(Queue):
    """A queue that no killed process can block.

    The standard library's waits for the rest of a message for ever, and a worker spends most of its
    time in the middle of one: a batch is larger than a pipe. Here a reader waits no longer than its
    timeout between two parts, so that the loader sees that the worker is gone.
    """

    message, came = bytearray(), 0  # with room for what is known of it, of which so much came

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self._rlock.acquire(block, timeout):
            raise Empty
        try:
            pipe = FileIO(self._reader.fileno(), closefd=False)
            while (end := content(self.message, self.came).stop) > self.came:
                if len(self.message) < end:
                    begun, self.message = self.message[: self.came], bytearray(end)
                    self.message[: self.came] = begun
                if not self._reader.poll(timeout if block else 0):
                    raise Empty
                part = pipe.readinto(memoryview(self.message)[self.came : end])
                if not part:
                    raise EOFError
                self.came += part
            message = memoryview(self.message)[content(self.message, self.came)]
            self.message, self.came = bytearray(), 0
            self._sem.release()
        finally:
            self._rlock.release()
        return ForkingPickler.loads(message)

    @staticmethod
    def _on_queue_feeder_error(error: Exception, _batch: Any) -> None:
        """A batch that cannot be sent (no memory) would be waited for for ever."""
        print(f"a process that reads media ends: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


def content(message: bytearray, came: int) -> slice:
    """Where the content of a message stands, behind its length (4 bytes, or -1 and 8 bytes); while
    less of it `came`, what must come before more can be said."""
    if came < 4:
        return slice(4, 4)
    (length,) = struct.unpack_from("!i", message)
    if length >= 0:
        return slice(4, 4 + length)
    if came < 12:
        return slice(12, 12)
    (length,) = struct.unpack_from("!Q", message, 4)
    return slice(12, 12 + length)
