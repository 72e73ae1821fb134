"""The scripts started from another folder: shipped models are found, all else is of that folder."""

import os
from pathlib import Path

import pytest

from tests.helpers.scripts import ROOT, apart, here, refused
from utils.files import shipped

SMALL = ("--mini_clips", 8, 4, 4, "--steps", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder, with a module that is named as one of ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "utils.py").write_text("raise SystemExit('imported')")
    return folder


@pytest.fixture(scope="module")
def aligned(folder):
    flags = (*SMALL, "--batch", 4, "--figures", "none")
    return apart(str(ROOT / "task_align.py"), *flags, root=folder)


@pytest.mark.slow
def test_both_stages_run_from_an_empty_folder(folder, aligned):
    """With no flag that names a place they leave all that they write there, nothing beside the
    code; the second starts from the first's checkpoint."""
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "checkpoint").rglob("*")}
    answer = (*SMALL, "--batch", 4, "--question_only", "false", "--test_snr_db", 12)
    apart(str(ROOT / "task_avqa.py"), *answer, root=folder)
    for name in ("align-mini-tau0.07", "avqa-mini"):
        assert (folder / f"checkpoint/{name}.json").is_file()
    assert (folder / "imgs/avqa-mini-types.png").is_file()
    assert {path.name for path in (folder / "datasets").iterdir()} == {"mini", "cache"}
    assert before == {path: path.stat().st_mtime_ns for path in (ROOT / "checkpoint").rglob("*")}


@pytest.mark.slow
def test_the_network_study_runs_there(folder, aligned):
    """From the same checkpoint, and what it asked is kept there."""
    flags = (*SMALL, "--users", 2, "--lengths", 1, 2, "--reference_length", 2, "--seeds", 5)
    flags += ("--surface_lengths", 2, "--snr_levels", 0, "--bits_levels", 4, "--link_length", 2)
    flags += ("--drops", 2, "--few", 1, "--instances", 1, "--many_users", 2, "--deadlines", 0.1)
    flags += ("--user_counts", 2, "--weights", 0.5, "--link_snr_db", 0, "--figures", "none")
    done = apart(str(ROOT / "task_network.py"), *flags, root=folder)
    for link in ("analog", "digital"):
        assert f"{link}, 1 drops of 2 users: " in done.stdout
    assert list((folder / "checkpoint/network-mini-asked").iterdir())
    assert (folder / "checkpoint/network-mini.json").is_file()


@pytest.mark.parametrize(
    ("script", "flags", "says"),
    [
        ("task_align.py", ("--foundation_model", "models/none"), "models/none: no config.json"),
        ("task_align.py", ("--cache", "utils.py/cache"), "by --cache"),
        ("task_avqa.py", (), "run `python task_align.py --preset mini` first"),
        ("task_avqa.py", ("--init", "none", "--modalities", "smell"), "smell"),
        ("task_network.py", (), "run `python task_align.py --preset mini` first"),
        ("task_network.py", ("--lengths", 8, 2), "--lengths [8, 2]: must ascend"),
    ],
)
def test_cheap_checks_come_first(tmp_path, script, flags, says):
    """In an empty folder a mistake is named before anything is rendered."""
    (tmp_path / "utils.py").touch()
    refused(here(script, *flags, root=tmp_path, ok=False), says)
    assert not (tmp_path / "datasets/mini").exists()


def test_what_is_shipped(tmp_path, monkeypatch):
    """A folder's own models come first; nothing but what is shipped is looked for elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert shipped("checkpoint/mini/ast") == ROOT / "checkpoint/mini/ast"
    for other in ("models/vivit-b-16x2", "checkpoint/mini-2/ast", "README.md"):
        assert shipped(other) == Path(other)
    os.makedirs("checkpoint/mini/ast")
    assert shipped("checkpoint/mini/ast") == Path("checkpoint/mini/ast")
