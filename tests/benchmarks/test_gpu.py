"""The script for a GPU, every line of it, on the CPU at reduced size."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu
from tests.helpers.limit import LIMIT
from tests.helpers.scripts import ROOT

MEASURED = ("bf16_peak", "stage1", "stage2", "encoding", "stage2_compiled", "stage1_compiled")


def script(*words: object) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHON": sys.executable}
    command = [ROOT / "benchmarks" / "gpu.sh", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT, env=env)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_every_line_of_it_runs(tmp_path):
    """Small models are measured and both scripts launched by torchrun, compiled and not; the JSON
    has the form that the GPU's will have, and nothing is left behind."""
    before = {*gpu.Path(gpu.__file__).parent.iterdir()}
    done = script("small", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    about = {"device", "dtype", "packages", "commit"}
    assert found.keys() == {*about, *MEASURED, "torchrun"}
    assert "error" not in json.dumps(found)
    for name in MEASURED:
        assert found[name]["peak_gb"] > 0
    for name in ("stage1", "stage2", "stage1_compiled", "stage2_compiled"):
        step = found[name]
        assert step["steps_per_s"] > 0 and step["gflop"] > 0.1 and step["peak_fraction"] > 0
    assert found["encoding"]["clips_per_s"] > 0
    assert found["stage2"]["gflop"] == found["stage2_compiled"]["gflop"]
    assert found["torchrun"].keys() == {*gpu.RUNS}
    for run in found["torchrun"].values():
        assert run["steps"] == 2 and 0 < run["loss"]["last"] < 100
    losses = [found["torchrun"][name]["loss"]["first"] for name in ("avqa", "avqa-compiled")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {*gpu.Path(gpu.__file__).parent.iterdir()} == before


def fails() -> dict:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    """A GPU with too little memory still gives the other numbers."""
    monkeypatch.setattr(gpu, "alone", lambda function, *_: function())
    parts = {"bf16_peak": (lambda: {"gflops": 10.0},), "stage1": (fails,)}
    parts["stage2"] = (lambda: {"gflops": 4.0},)
    monkeypatch.setattr(gpu, "measurements", lambda *_: parts)
    gpu.measure_all(tmp_path, small=True)
    gpu.collect(tmp_path, tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    wrong = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    assert found["stage1"] == {"error": wrong}
    assert found["stage2"]["peak_fraction"] == 0.4
    assert "did not end well" in found["torchrun"]["align"]["error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path):
    """In one line, before anything is made."""
    done = script("full", tmp_path / "gpu.json")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "no GPU here" in done.stderr and "small OUT.json" in done.stderr
    assert not (tmp_path / "gpu.json").exists()
