"""Batches from other processes: little shared memory, and whatever ends one of the processes."""

import os
import shutil
import signal
import struct
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from queue import Empty

import pytest

from tests.helpers.big_clips import big, readers, wait_for_part
from tests.helpers.limit import LIMIT
from utils.data import loading
from utils.data.loading import BatchQueue
from utils.files import ROOT

LOST = "^DataLoader worker .* exited unexpectedly"


def python(code: str, before: tuple = (), **more: str) -> subprocess.Popen:
    """A process that runs the code with what the helpers define, and a changed environment."""
    code = f"import signal\nfrom tests.helpers.big_clips import *\n{code}"
    return subprocess.Popen(
        [*before, sys.executable, "-c", code],
        cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | more, text=True,
    )  # fmt: skip


def said(process: subprocess.Popen) -> str:
    """What a process printed, once it and all that it started have ended."""
    try:
        return process.communicate(timeout=LIMIT)[0]
    finally:
        process.kill()


def test_batches_need_no_shared_memory():
    """They come by value, each from one of two processes."""
    assert readers(big()) == 2


@pytest.mark.slow
def test_a_stock_container():
    """With 1 MB of /dev/shm clips of 4 MB arrive: nothing is handed over there."""
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    before = ("unshare", "-m", "sh", "-c", mount, "sh")
    if not shutil.which("unshare") or subprocess.run([*before, "true"]).returncode:
        pytest.skip("needs the right to mount a small file system")
    assert said(python("print(readers(big()))", before)) == "2\n"


@pytest.mark.slow
def test_a_long_name_of_the_temporary_folder(tmp_path):
    """No socket can be made there; clips arrive all the same."""
    folder = tmp_path / ("x" * (114 - len(str(tmp_path))))
    folder.mkdir()
    assert said(python("print(readers(big()))", TMPDIR=str(folder))) == "2\n"


def test_a_killed_worker_is_noticed():
    """One that is killed in the middle of a batch, as most are: the loader raises, though the rest
    of that batch never comes."""
    iterator = iter(big(workers=1))
    next(iterator)
    wait_for_part(iterator)
    os.kill(iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=LOST):
        list(iterator)


def unsendable(_clip) -> object:
    return lambda: None  # cannot be pickled


def test_a_batch_that_cannot_be_sent_is_noticed():
    """Its worker ends, and the loader raises in place of waiting for it."""
    with pytest.raises(RuntimeError, match=LOST):
        next(iter(big(workers=1, collate_fn=unsendable)))


@pytest.mark.slow
def test_nothing_outlives_a_killed_run():
    """A worker that waits for room in the pipe ends with the main process, which had no time to
    end it; so does what starts workers."""
    code = "iterator = iter(big())\nwait_for_part(iterator)\nprint('begun', flush=True)\n"
    process = python(code + "signal.pause()")
    assert process.stdout.readline() == "begun\n"
    process.kill()
    assert said(process) == ""


@pytest.mark.parametrize("size", [0, 3, 40_000])
def test_a_message_comes_in_parts(size):
    """A reader that waited for the rest in vain goes on where it stopped; the next message is read
    from its own beginning."""
    queue, content = BatchQueue(ctx=get_context("spawn")), "x" * size
    message = bytes(ForkingPickler.dumps(content))
    message = struct.pack("!i", len(message)) + message
    for part in (message[:2], message[2:9], message[9:-1]):
        with pytest.raises(Empty):
            queue.get(timeout=0)
        os.write(queue._writer.fileno(), part)
    with pytest.raises(Empty):
        queue.get(block=False)
    os.write(queue._writer.fileno(), message[-1:] + message)
    for _ in range(2):
        queue._sem.acquire()  # as `put` does, which cannot send a part
        assert queue.get() == content
    with pytest.raises(Empty):
        queue.get(timeout=0)
    queue.close()


def test_the_length_of_a_message():
    """Two gigabytes and more are told in another form."""
    large = bytearray(struct.pack("!iQ", -1, 3 << 30))
    assert loading.content(large, 4) == slice(12, 12)
    assert loading.content(large, 12) == slice(12, 12 + (3 << 30))
