"""Files are whole or not there, and a folder that cannot be written is found out beforehand."""

import pytest

from tests.helpers.disks import change, small_disk, unfinished
from utils.files import check_writable, whole, write_whole


def test_a_file_is_replaced_in_one_step(tmp_path):
    """Until the end a reader sees the old file; an error on the way leaves it, and nothing else."""
    path = tmp_path / "x"
    write_whole(path, "old")
    with whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), whole(path) as partial:
        partial.write_text("newer")
        raise KeyboardInterrupt
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_a_full_disk_is_named(tmp_path):
    """The error names the file that was to be written, whose old content stands."""
    with small_disk(tmp_path / "disk", "16k") as disk:
        write_whole(disk / "x", "old")
        with pytest.raises(OSError, match="No space left") as error:
            write_whole(disk / "x", bytes(1 << 20))
        assert error.value.filename == str(disk / "x")
        assert (disk / "x").read_text() == "old" and not unfinished(disk)


def test_a_folder_is_made_and_left_empty(tmp_path):
    """Seeing whether a folder can be written leaves nothing in it."""
    check_writable(tmp_path / "a" / "b", "--out")
    check_writable(tmp_path / "a" / "b", "--out")
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_folder(tmp_path, place):
    """A file in the place of a folder, or of the one above it, is named with what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{place}: no file can be .*another folder by --out"):
        check_writable(tmp_path / place, "--out")


@pytest.mark.parametrize("place", [".", "new"])
def test_a_folder_that_is_read_only(tmp_path, place):
    """Neither a folder that is there nor one to be made can be written: one line says it."""
    with small_disk(tmp_path / "disk", "16k") as disk:
        change(disk, "ro")
        with pytest.raises(ValueError, match="Read-only file system.*by --figures"):
            check_writable(disk / place, "--figures")
