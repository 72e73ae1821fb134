"""Clips of which each fills more than a pipe, for tests of loaders; not a test itself. Processes of
their own import it, so it needs little."""

import fcntl
import os
import struct
import termios
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from utils.data.loading import loading

NUMBERS = 1 << 20  # of a clip, 4 MiB


class Big(Dataset):
    """Each clip says where it was read, and holds numbers and flags."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        return os.getpid(), torch.full((NUMBERS,), float(i)), torch.tensor([True, False])


def big(count: int = 6, workers: int = 2, **options: Any) -> DataLoader:
    return DataLoader(Big(count), batch_size=None, **options, **loading(workers))


def readers(loader: DataLoader) -> int:
    """How many processes read its clips, which arrive all, in order, and in no shared memory."""
    found = []
    for i, (reader, numbers, flags) in enumerate(loader):
        assert numbers.shape == (NUMBERS,) and (numbers == i).all() and flags.tolist() == [1, 0]
        assert not numbers.is_shared()
        numbers += 1  # which may be written
        found.append(reader)
    assert len(found) == len(loader)
    return len(set(found))


def wait_for_part(iterator: Any) -> None:
    """Until a worker is in the middle of a clip, of which the pipe can only hold a part."""
    pipe = iterator._data_queue._reader
    while not struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]:
        time.sleep(0.01)
