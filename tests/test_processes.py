"""Two processes on the CPU do what one does: losses, gradients, answers, and one writer."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.helpers import step_of_each_stage
from tests.helpers.scripts import LIMIT, ROOT, ended, here, places, refused
from utils.data.clips import ShuffledBatches
from utils.training.processes import noise_source


def by_two(*command: object) -> subprocess.CompletedProcess:
    """Run a script by two processes of this machine's CPU, as the README says."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    words = [sys.executable, *launcher, *map(str, command)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, env=env)
    return ended(done, ok=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Losses and gradients of steps of each stage by two processes."""
    out = tmp_path_factory.mktemp("two") / "found.pt"
    by_two("-m", "tests.helpers.step_of_each_stage", out)
    found = torch.load(out, weights_only=True)
    assert found.pop("processes") == 2
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same by this process."""
    out, threads = tmp_path_factory.mktemp("one") / "found.pt", torch.get_num_threads()
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        step_of_each_stage.main(out)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)
    found = torch.load(out, weights_only=True)
    assert found.pop("processes") == 1
    return found


def assert_same_gradients(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        scale = wanted[name].abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(grad, wanted[name], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stage", ["align", "avqa", "packed"])
def test_two_processes_give_the_loss_and_gradients_of_one(one, two, stage, accumulate):
    """The contrastive loss spans the global batch, each answer token weighs the same, and DDP's
    mean of gradients is the gradient of that loss; so too over two batches a step, and where the
    questions of a clip come to different processes."""
    losses, gradients = two[f"{stage}-{accumulate}"]
    wanted_losses, wanted = one[f"{stage}-{accumulate}"]
    assert len(losses) == accumulate and losses == pytest.approx(wanted_losses, rel=1e-5)
    assert any("lora_A" in name for name in gradients) == (stage != "align")
    assert_same_gradients(gradients, wanted)


@pytest.mark.slow
def test_sharded_weights_give_the_loss_and_gradients_of_one_process(one, two):
    """FSDP spreads frozen and trained weights over the processes; a stage 2 step stays the same."""
    losses, gradients = two["sharded"]
    wanted_losses, wanted = one["avqa-1"]
    assert losses == pytest.approx(wanted_losses, rel=1e-5)
    assert_same_gradients(gradients, wanted)


@pytest.mark.slow
def test_each_held_out_row_counts_once(one, two):
    """The validation loss over a split that makes no whole batches, or not even one: Accelerate
    fills the last batch up with the first rows, which do not count again."""
    assert two["held_out"] == pytest.approx(one["held_out"], rel=1e-5)
    assert len(set(two["held_out"].values())) == 5


@pytest.mark.slow
def test_answers_come_in_the_order_of_their_questions(one, two):
    """Whichever process read a question, and whichever questions shared its clip."""
    assert two["said"] == one["said"] and len(two["said"]) == 7
    assert len(set(two["said"])) > 1


@pytest.mark.slow
def test_fewer_clips_than_a_batch(one, two):
    """Each step reads as many clips as the processes can share, each of them once."""
    for found, clips in ((one, 5), (two, 4)):
        assert [len(set(step)) for step in found["few_clips"]] == [clips] * 3
        assert all(len(step) == clips for step in found["few_clips"])


def test_fewer_clips_than_processes():
    """They end in a line."""
    with pytest.raises(ValueError, match="1 rows to train on for 2 processes; start fewer"):
        ShuffledBatches(["a"], 8, 3, 0, processes=2)


def test_smaller_batches_contrast_with_fewer_clips(one):
    """Accumulating is not a larger batch for the contrastive loss: two of four are easier."""
    whole, parts = one["align-1"][0][0], one["align-2"][0]
    assert all(part < whole - 0.1 for part in parts)


def metrics(folder: Path, name: str) -> tuple[dict, list[float]]:
    """R.json and the losses of R.csv."""
    rows = csv.DictReader((folder / "checkpoint" / f"{name}.csv").open())
    content = json.loads((folder / "checkpoint" / f"{name}.json").read_text())
    return content, [float(row["loss"]) for row in rows]


STAGES = {  # name: script and flags
    "align": ("task_align.py",),
    "avqa": (
        *("task_avqa.py", "--init", "none", "--lora_dropout", 0, "--test_batch", 8),
        *("--test_snr_db", 12, "--question_only", "false"),
    ),
}


@pytest.mark.slow
def test_both_scripts_run_alike_in_one_and_in_two_processes(tmp_path, one_process):
    """Without noise and dropout: the same losses step by step, the same held-out figures, each clip
    encoded once by one of the processes, files written by one of them."""
    for task, (script, *flags) in STAGES.items():
        flags += [*places(script, tmp_path), "--mini_clips", 16, 5, 7, "--steps", 4, "--batch", 4]
        flags += ["--channel", "none", "--validate_every", 2, "--workers", 1]
        runs = []
        for run, name in ((by_two, f"{task}-2"), (here, f"{task}-1")):
            done = run(script, "--name", name, *flags)
            assert done.stdout.count("look at:") == 1 and "left out" not in done.stdout
            assert ("encoding" in done.stderr) == (run is by_two)
            runs.append(metrics(tmp_path, name))
        (found, losses), (wanted, wanted_losses) = runs
        assert len(losses) == 4
        assert losses == pytest.approx(wanted_losses, rel=1e-3)
        assert found.get("accuracy") == wanted.get("accuracy")
        losses = [[loss for _, loss in run["validation_loss"]] for run in (found, wanted)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 2
        for key in ("retrieval", "held_out_loss"):
            assert found.get(key, {}) == pytest.approx(wanted.get(key, {}), rel=1e-3)
        assert {*found} == {*wanted} and ("accuracy" in found) == (task == "avqa")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2 * 2 * 28


@pytest.mark.parametrize(
    "script, flag", [("task_align.py", "batch"), ("task_avqa.py", "test_batch")]
)
def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path, monkeypatch, script, flag):
    """One line that says what must divide what."""
    alike = SimpleNamespace(num_processes=2, is_main_process=True, device=torch.device("cpu"))
    monkeypatch.setattr("utils.training.processes.Accelerator", lambda **options: alike)
    done = here(script, *places(script, tmp_path), f"--{flag}", 7, ok=False)
    refused(done, f"--{flag} 7: must be a multiple of 2 processes")


def test_noise_is_another_in_each_process():
    """Noise repeats with its seed, and no two seeds or processes draw the same."""

    def draw(seed, processes, index):
        alike = SimpleNamespace(num_processes=processes, process_index=index, device="cpu")
        return tuple(torch.randn(4, generator=noise_source(seed, alike)).tolist())

    for processes in (1, 2, 4):
        drawn = [draw(seed, processes, i) for seed in range(5) for i in range(processes)]
        assert len(set(drawn)) == len(drawn)
        assert drawn[0] == draw(0, processes, 0)
