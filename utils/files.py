"""Files are written whole or not at all: written beside, flushed, renamed."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of this repository
SHIPPED = "checkpoint/mini"  # comes with it


def shipped(path: str | Path) -> Path:
    """A path in the working directory, as all are; what comes with this repository is found there
    where the working directory has none of its own."""
    path = Path(path)
    ours = path.is_relative_to(SHIPPED) and not path.exists()
    return ROOT / path if ours else path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within names `path`: a full disk does not say which file it is about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` in one step at the end; nothing is left if that fails."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")  # also over machines
    with naming(path):
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` in one step; a reader sees the old file or the new one."""
    data = content.encode() if isinstance(content, str) else content
    with whole(path) as partial, open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def check_writable(folder: Path, flag: str) -> None:
    """Make the folder that `flag` names, and see that files can be written there.

    Raises:
        ValueError: in one line, where they cannot; better before a run than at its end.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{folder}: no file can be written there ({error.strerror}); "
            f"name another folder by {flag}"
        ) from None
