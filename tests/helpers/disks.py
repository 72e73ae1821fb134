"""File systems that are small or cannot be written; shared by tests, not a test itself."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size` ("256k"); skips the test where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def change(disk: Path, option: str) -> None:
    """Give a small disk another size ("size=1m"), or let nobody write to it any more ("ro")."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def unfinished(folder: Path) -> list[Path]:
    """What a run that ended half way left under `folder`."""
    return [path for path in folder.rglob(".*") if "partial" in path.name]
