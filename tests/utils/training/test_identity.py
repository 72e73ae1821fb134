"""A finished run is stale when code that training goes through was edited, and by nothing else."""

import ast
import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import task_align
from tests.helpers.scripts import ROOT
from utils.checkpoints import sha256
from utils.config import plain
from utils.data.datasets import frames_path, read_valor, wav_path
from utils.data.models import models_used
from utils.training import identity

THROUGH = {  # what a run goes through
    "task_avqa.py": (
        *(f"modules/{name}.py" for name in ("channel", "losses", "system", "foundation_model")),
        *(f"modules/token_{name}.py" for name in ("compression", "receiver", "transmitter")),
        *(f"utils/data/{name}.py" for name in ("clips", "datasets", "encoding", "media", "models")),
        *(f"utils/training/{name}.py" for name in ("run", "states", "log", "processes")),
        *("utils/checkpoints.py", "utils/mini/sounds.py", "utils/config.py"),
        *("task_avqa.py", "utils/report/avqa.py"),
    ),
    "task_align.py": ("task_align.py", "utils/report/metrics.py", "utils/training/run.py"),
}
BESIDE = ("modules/network", "modules/digital/link.py", "modules/digital/code_block.py",
          "utils/network", "utils/report/plots.py",
          "utils/report/tsne.py", "utils/runs.py", "utils/hf-download.py",
          "task_network.py")  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the code, which takes the repository's place."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in ("modules", "utils"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=lambda *_: ["__pycache__"])
    for script in ROOT.glob("task_*.py"):
        shutil.copy(script, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "ROOT", copy)
        yield copy
    identity.code_version.cache_clear()


def version(tree: Path, script: str) -> str:
    identity.code_version.cache_clear()
    return identity.code_version(tree / script)


@contextmanager
def edited(change, *paths: Path):
    """For a while the files hold what `change` makes of them, which is something else."""
    before = {path: path.read_text() for path in paths}
    try:
        for path, source in before.items():
            assert change(source) != source, path
            path.write_text(change(source))
        yield
    finally:
        for path, source in before.items():
            path.write_text(source)


def longer(source: str) -> str:
    """A file whose first function does one thing more."""
    function = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))
    lines = source.splitlines(keepends=True)
    lines.insert(function.end_lineno, " " * function.body[0].col_offset + "print()\n")
    return "".join(lines)


@pytest.mark.parametrize("script", THROUGH)
def test_what_a_run_goes_through_counts(tree, script):
    """Channel, losses, data reading, training loop, figures in numbers, and the script's functions:
    a statement more in any of them is other code."""
    seen = {version(tree, script)}
    for path in THROUGH[script]:
        with edited(longer, tree / path):
            seen.add(version(tree, script))
    assert len(seen) == 1 + len(THROUGH[script])


@pytest.mark.parametrize("script", THROUGH)
def test_what_a_run_does_not_go_through_does_not_count(tree, script):
    """Allocation, digital links, plots, downloads, and the other scripts."""
    before = version(tree, script)
    other = next(name for name in THROUGH if name != script)
    parts = [tree / path for path in (*BESIDE, other)]
    files = [file for part in parts for file in ([part] if part.suffix else part.glob("*.py"))]
    with edited(longer, *(file for file in files if "def " in file.read_text())):
        assert version(tree, script) == before


def rewritten(source: str) -> str:
    return "# Another comment\n" + ast.unparse(ast.parse(source))


def test_comments_and_formatting_do_not_count(tree):
    """All files written anew, without their comments and line breaks."""
    before = version(tree, "task_avqa.py")
    with edited(rewritten, *(tree / path for path in THROUGH["task_avqa.py"])):
        assert version(tree, "task_avqa.py") == before


def test_a_finished_run_becomes_stale(tree, tmp_path):
    """Once a run is finished, an edit of the channel unmakes it and an edit of a plot does not."""
    config = replace(task_align.PRESETS["mini"], name="run", out=str(tmp_path))
    (tmp_path / "run.pth").write_bytes(b"weights")
    identity.code_version.cache_clear()
    metrics = {"config": plain(config), "annotations": {}, "left_out": {}}
    metrics["models"] = models_used(config)
    metrics["code"] = identity.code_of(config)
    metrics["checkpoint_sha256"] = sha256(tmp_path / "run.pth")
    (tmp_path / "run.json").write_text(json.dumps(metrics))
    for path, stands in (("utils/report/plots.py", True), ("modules/channel.py", False)):
        with edited(longer, tree / path):
            identity.code_version.cache_clear()
            assert bool(identity.finished(config)) == stands
    identity.code_version.cache_clear()
    assert identity.finished(config) == metrics


def test_a_finished_run_belongs_to_its_models(tmp_path):
    """Other weights under the same path unmake it; the same ones written again do not."""
    folder = shutil.copytree(ROOT / "checkpoint/mini/ast", tmp_path / "ast")
    config = replace(task_align.PRESETS["mini"], name="run", out=str(tmp_path))
    config = replace(config, audio_encoder=str(folder))
    (tmp_path / "run.pth").write_bytes(b"weights")
    metrics = {"config": plain(config), "annotations": {}, "left_out": {}}
    metrics |= {"models": models_used(config), "code": identity.code_of(config)}
    metrics["checkpoint_sha256"] = sha256(tmp_path / "run.pth")
    (tmp_path / "run.json").write_text(json.dumps(metrics))
    assert identity.finished(config) == metrics
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not identity.finished(config)
    weights.write_bytes(content)
    os.utime(weights, (0, 0))
    assert identity.finished(config) == metrics


def used_clips(root: Path, *names: str) -> None:
    """A data set of one caption a clip, and media of as many; what reads media is not asked."""
    for split in ("train", "val", "test"):
        rows = [{"video_id": f"{split}-{name}", "desc": name} for name in names]
        path = root / "annotations" / f"desc_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
        for row in rows:
            wav, frames = wav_path(root, row["video_id"]), frames_path(root, row["video_id"])
            wav.parent.mkdir(parents=True, exist_ok=True)
            wav.write_bytes(b"RIFF")
            frames.mkdir(parents=True, exist_ok=True)


def test_a_finished_run_belongs_to_its_data(tmp_path):
    """Other annotations, a clip that was lost, one that came since, and one that could not be read
    and was replaced unmake it; a clip that still cannot be read does not."""
    root = tmp_path / "VALOR"
    used_clips(root, "good", "bad", "gone")
    shutil.rmtree(frames_path(root, "val-gone"))
    config = replace(task_align.PRESETS["mini"], name="run", out=str(tmp_path), data=str(root))
    (tmp_path / "run.pth").write_bytes(b"weights")
    left_out = {"val-gone": "not extracted", "train-bad": "not a wav"}
    metrics = {
        "task": "align",
        "config": plain(config),
        "annotations": {s: vars(read_valor(root, s)[1]) for s in ("train", "val", "test")},
        "left_out": left_out,
        "code": identity.code_of(config),
        "models": models_used(config),
        "checkpoint_sha256": sha256(tmp_path / "run.pth"),
    }

    def written() -> None:
        (tmp_path / "run.json").write_text(json.dumps(metrics))
        later = time.time() + 1  # than what was done to the data so far
        os.utime(tmp_path / "run.json", (later, later))

    written()
    assert identity.finished(config) == metrics
    path = root / "annotations/desc_test.json"
    whole = path.read_text()
    path.write_text(whole.replace("good", "better"))
    assert not identity.finished(config)
    path.unlink()
    assert not identity.finished(config)
    path.write_text(whole)
    assert identity.finished(config)
    sound = wav_path(root, "train-good").rename(tmp_path / "sound.wav")
    assert not identity.finished(config)
    sound.rename(wav_path(root, "train-good"))
    assert identity.finished(config)
    frames_path(root, "val-gone").mkdir()
    os.utime(tmp_path / "run.json", (0, 0))
    assert not identity.finished(config)
    frames_path(root, "val-gone").rmdir()
    written()
    assert identity.finished(config)
    wav_path(root, "train-bad").write_bytes(b"RIFF mended")
    os.utime(tmp_path / "run.json", (0, 0))
    assert not identity.finished(config)
    # What was read since is known better.
    hashes = {split: file["sha256"] for split, file in metrics["annotations"].items()}
    assert identity.finished(config, identity.data_version(hashes, left_out))
    assert not identity.finished(config, identity.data_version(hashes, {**left_out, "x": ""}))


SMALL = {
    "script.py": """
        from dataclasses import dataclass
        from utils.config import Shared, PAPER
        PRESET = "mini"
        @dataclass
        class Config(Shared):
            lr: float = 0.1
        PRESETS = {"paper": Config(**PAPER)}
        def main(config):
            from modules import part
            from utils.draw import draw
            return part.forward(config.lr)
        """,
    "utils/config.py": """
        from dataclasses import dataclass
        PAPER = dict(width=1024)
        @dataclass
        class Shared:
            width: int = 512
        """,
    "modules/part.py": """
        from dataclasses import dataclass
        import modules.deep as deep
        LIMIT = 5
        @dataclass
        class Part:
            width: int = 3
            def run(self, x=1): return x * self.width
        def forward(x): return Part().run(x)
        """,
    "modules/deep.py": "VALUE = 1",
    "utils/draw.py": "import matplotlib.pyplot\nfrom utils.colours import RED",
    "utils/colours.py": "RED = 1",
}


@pytest.mark.parametrize(
    "path, old, new, counts",
    [
        ("script.py", "config.lr)", "2 * config.lr)", True),
        ("script.py", "lr: float", "lr: int", True),
        ("script.py", "0.1", "0.2", False),
        ("script.py", '"mini"', '"paper"', False),
        ("utils/config.py", "512", "256", False),
        ("utils/config.py", "1024", "2048", False),
        ("modules/part.py", "LIMIT = 5", "LIMIT = 6", True),
        ("modules/part.py", "x=1", "x=2", True),
        ("modules/part.py", "width: int = 3", "width: int = 4", True),
        ("modules/deep.py", "1", "2", True),
        ("utils/draw.py", "RED", "RED as red", False),
        ("utils/colours.py", "1", "2", False),
    ],
)
def test_values_of_hyperparameters_alone_do_not_count(
    tmp_path, monkeypatch, path, old, new, counts
):
    """A run's own are in its configuration. Constants and defaults of any other code count, however
    it is imported; what is imported only to draw does not."""
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    for name, source in SMALL.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(re.sub("^        ", "", source, flags=re.M))
    before = version(tmp_path, "script.py")
    with edited(lambda source: source.replace(old, new), tmp_path / path):
        assert (version(tmp_path, "script.py") != before) == counts
