"""What differs between operating systems and machines: cores, and how processes end."""

import os
import threading
from multiprocessing import parent_process

# Threads that wait for one another soon sleep. Awake, they hold the core that the one they wait for
# needs: beside four busy processes on two cores, a step of the mini preset on two threads takes
# nine times as long as alone, and so only four times. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# Figures are files. A notebook hands its own way to draw on to what it starts, which may lack it.
os.environ["MPLBACKEND"] = "agg"

taken: list[int] = []  # this process's share, where the system keeps no such list


def cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return taken or list(range(os.cpu_count() or 1))


def take_cores(share: list[int]) -> None:
    """Use these cores alone; where the system cannot be told, only `cores` knows."""
    taken[:] = share
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)


def end_with_parent(*_args: object) -> None:
    """From now on this process ends when the one that started it does, even by SIGKILL, and
    whatever it waits for. May serve as the initializer of a pool's processes."""
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
