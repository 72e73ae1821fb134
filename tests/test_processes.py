"""Two processes on the CPU do what one does: losses, gradients, answers, and one writer."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def launch(processes: int, *command: str, ok: bool = True) -> subprocess.CompletedProcess:
    """Run a script by so many processes of this machine's CPU, as the README says."""
    launcher = [] if processes == 1 else [
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def step(folder: Path, processes: int) -> dict:
    """Losses and gradients of steps of each stage by so many processes."""
    out = folder / "found.pt"
    launch(processes, "-m", "tests.helpers.step_of_each_stage", str(out))
    found = torch.load(out, weights_only=True)
    assert found.pop("processes") == processes
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return step(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return step(tmp_path_factory.mktemp("two"), 2)


def assert_same_gradients(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        scale = wanted[name].abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(grad, wanted[name], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stage", ["align", "avqa"])
def test_two_processes_give_the_loss_and_gradients_of_one(one, two, stage, accumulate):
    """The contrastive loss spans the global batch, each answer token weighs the same, and DDP's
    mean of gradients is the gradient of that loss; so too over two batches a step."""
    losses, gradients = two[f"{stage}-{accumulate}"]
    wanted_losses, wanted = one[f"{stage}-{accumulate}"]
    assert len(losses) == accumulate and losses == pytest.approx(wanted_losses, rel=1e-5)
    assert any("lora_A" in name for name in gradients) == (stage == "avqa")
    assert_same_gradients(gradients, wanted)


def test_sharded_weights_give_the_loss_and_gradients_of_one_process(one, two):
    """FSDP spreads frozen and trained weights over the processes; a stage 2 step stays the same."""
    losses, gradients = two["sharded"]
    wanted_losses, wanted = one["avqa-1"]
    assert losses == pytest.approx(wanted_losses, rel=1e-5)
    assert_same_gradients(gradients, wanted)


def test_smaller_batches_contrast_with_fewer_clips(one):
    """Accumulating is not a larger batch for the contrastive loss: two of four are easier."""
    whole, parts = one["align-1"][0][0], one["align-2"][0]
    assert all(part < whole - 0.1 for part in parts)


def metrics(folder: Path, name: str) -> tuple[dict, list[float]]:
    """R.json and the losses of R.csv."""
    rows = csv.DictReader((folder / "checkpoint" / f"{name}.csv").open())
    content = json.loads((folder / "checkpoint" / f"{name}.json").read_text())
    return content, [float(row["loss"]) for row in rows]


def test_both_scripts_run_alike_in_one_and_in_two_processes(tmp_path):
    """Without noise and dropout: the same losses step by step, the same held-out figures, each clip
    encoded once by one of the processes, files written by one of them."""
    common = ("--out", str(tmp_path / "checkpoint"), "--figures", str(tmp_path / "imgs"),
              "--mini_clips", "16", "5", "7", "--steps", "4", "--batch", "4", "--channel", "none",
              "--validate_every", "2", "--workers", "1",
              "--cache", str(tmp_path / "cache"))  # fmt: skip
    runs = {}
    for processes in (2, 1):
        align, avqa = f"align-{processes}", f"avqa-{processes}"
        data = ("--data", str(tmp_path / "mini/VALOR"))
        first = launch(processes, "task_align.py", "--name", align, *data, *common)
        runs[processes] = [metrics(tmp_path, align)]
        data = ("--data", str(tmp_path / "mini/MUSIC-AVQA"))
        second = launch(
            processes, "task_avqa.py", "--name", avqa, "--init", "none", "--lora_dropout", "0",
            "--test_batch", "8", "--test_snr_db", "12", "--question_only", "false", *data, *common,
        )  # fmt: skip
        runs[processes].append(metrics(tmp_path, avqa))
        for done in (first, second):
            assert done.stdout.count("look at:") == 1 and "left out" not in done.stdout
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2 * 2 * 28
        assert ("encoding" in first.stderr) == (processes == 2)
    for (found, losses), (wanted, wanted_losses) in zip(runs[2], runs[1], strict=True):
        assert len(losses) == 4
        assert losses == pytest.approx(wanted_losses, rel=1e-3)
        assert found.get("accuracy") == wanted.get("accuracy")
        for key in ("retrieval", "held_out_loss"):
            assert found.get(key, {}) == pytest.approx(wanted.get(key, {}), rel=1e-3)


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path):
    """One line that says what must divide what."""
    done = launch(2, "task_align.py", "--batch", "7", "--out", str(tmp_path), ok=False)
    assert "--batch 7: must be a multiple of 2 processes" in done.stderr
