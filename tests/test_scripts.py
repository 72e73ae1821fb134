"""The task scripts as a user runs them, on a very small mini world; most in this process, which has
imported what they need, some in one of their own."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.disks import change, small_disk, unfinished
from tests.helpers.scripts import ROOT, apart, here, places, refused, until
from utils.network.page import decisive, tables

TYPES = 9
ALIGN = ("--steps", 6, "--batch", 8, "--validate_every", 3, "--workers", 0)
ANSWER = ("--steps", 4, "--batch", 8, "--test_snr_db", -6, 12, "inf", "--workers", 1)


@pytest.fixture(scope="module")
def folder(mini_world):
    return mini_world


@pytest.fixture(scope="module")
def aligned(folder):
    return here("task_align.py", *places("task_align.py", folder), *ALIGN)


@pytest.fixture(scope="module")
def again(folder, aligned):
    flags = (*ALIGN, "--figures", "none", "--name", "again")
    return apart("task_align.py", *places("task_align.py", folder), *flags)


@pytest.fixture(scope="module")
def start(folder, aligned):
    """Where the other scripts start: flags of a run from stage 1's checkpoint."""
    return ("--init", folder / "checkpoint/align-mini-tau0.07.pth")


@pytest.fixture(scope="module")
def answered(folder, start):
    return here("task_avqa.py", *places("task_avqa.py", folder), *start, *ANSWER)


def align(folder: Path, *flags, ok: bool = True):
    """Stage 1 as `aligned`, but for `flags`, and without figures."""
    common = (*places("task_align.py", folder), *ALIGN, "--figures", "none")
    return here("task_align.py", *common, *flags, ok=ok)


def losses(folder: Path) -> str:
    return (folder / "checkpoint/align-mini-tau0.07.csv").read_text()


def test_stage_1_leaves_what_it_promises(folder, aligned):
    """Checkpoint, metrics, a row a step, TensorBoard events and figures, named at the end."""
    stem = folder / "checkpoint/align-mini-tau0.07"
    content = torch.load(f"{stem}.pth", weights_only=True)
    parts = {"img_tx", "audio_tx", "text_receiver", "img_receiver", "audio_receiver"}
    assert parts <= content.keys() and "lora" not in content
    assert not any(key.startswith("encoder.") for part in parts for key in content[part])
    metrics = json.loads(Path(f"{stem}.json").read_text())
    assert metrics["task"] == "align" and metrics["steps"] == 6
    assert metrics["retrieval"].keys() == {
        "audio_to_text_r1",
        "visual_to_text_r1",
        "chance_r1",
        "n",
    }
    assert metrics["retrieval"]["n"] == 12
    assert metrics["config"]["temperature"] == 0.07
    assert len(list(csv.DictReader(open(f"{stem}.csv")))) == 6
    assert list(stem.glob("events.*"))
    assert len(metrics["figures"]) == 3 and metrics["figures"][2].endswith("-tsne.html")
    shares = metrics["tsne"]["own_caption_nearest"]
    assert metrics["tsne"]["clips"] == 12
    assert shares.keys() == {"before alignment", "after alignment"}
    assert all(0 <= share[kind] <= 1 for share in shares.values() for kind in ("visual", "audio"))
    assert "t-SNE of 12 of them: own caption nearest: picture" in aligned.stdout
    for figure in metrics["figures"]:
        assert Path(figure).stat().st_size > 10_000
        assert figure in aligned.stdout


def test_stage_2_leaves_what_it_promises(folder, answered):
    """LoRA in the checkpoint, accuracies by type and SNR beside baselines, figures."""
    stem = folder / "checkpoint/avqa-mini"
    content = torch.load(f"{stem}.pth", weights_only=True)
    assert content["lora"] and all("lora" in key for key in content["lora"])
    assert all("q_proj" in key or "v_proj" in key for key in content["lora"])
    metrics = json.loads(Path(f"{stem}.json").read_text())
    assert len(metrics["accuracy"]["by_type"]) == TYPES
    assert metrics["accuracy_by_snr"].keys() == {"-6", "12", "inf"}
    assert metrics["accuracy_by_snr"]["12"] == metrics["accuracy"]["overall"]
    assert set(metrics["baselines"]) == {"majority", "question_only"}
    assert metrics["questions"]["test"]["without_media"] == 0
    assert metrics["annotations"]["test"]["rows"] == metrics["questions"]["test"]["total"]
    for figure in metrics["figures"]:
        assert Path(figure).stat().st_size > 10_000
    assert "question_only" in answered.stdout


def test_stage_2_starts_where_stage_1_ended_and_trains_exactly_its_parts(folder, answered):
    """Projections, receivers and LoRA move from stage 1's weights; nothing else is saved."""
    before = torch.load(folder / "checkpoint/align-mini-tau0.07.pth", weights_only=True)
    after = torch.load(folder / "checkpoint/avqa-mini.pth", weights_only=True)
    assert after.keys() - before.keys() == {"lora"}
    for part in before.keys() - {"about"}:
        assert before[part].keys() == after[part].keys()
        for key, value in before[part].items():
            moved = (value - after[part][key]).abs().max()
            assert 0 < moved < 0.5, (part, key)


def test_a_second_run_repeats_the_first_from_the_cache(folder, again):
    """Same seed, same losses to the last digit, in a process of its own as in one that ran other
    things before; no clip is encoded again."""
    assert (folder / "checkpoint/again.csv").read_text() == losses(folder)
    assert "encoding" not in again.stderr and "writing videos" not in again.stderr


def test_a_finished_run_is_not_repeated(folder, again, answered, start):
    """Asked to go on, it says so, whoever had run it."""
    runs = {"task_align.py": (*ALIGN, "--name", "again"), "task_avqa.py": (*start, *ANSWER)}
    for script, same in runs.items():
        done = here(script, *places(script, folder), *same, "--resume", "true")
        assert "finished before" in done.stdout and "look at" not in done.stdout


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("task_avqa.py", ("--init", "nowhere.pth"), "python task_align.py --preset mini"),
        ("task_align.py", ("--preset", "paper", "--data", "nowhere"), "models/vivit-b-16x2"),
        ("task_align.py", ("--snr_range", 5, -5), "snr_range"),
        ("task_align.py", ("--batch", 1), "--batch 1: must be 2 or more"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, name, flags, says):
    """One line that names what is wrong, status 1 or 2, no traceback, before data is made (what
    `check` refuses: tests/utils/test_config.py)."""
    refused(here(name, *places(name, tmp_path), *flags, ok=False), says)
    assert not (tmp_path / "mini").exists()


def test_one_clip_to_train_on(tmp_path):
    """Has nothing to be told apart from."""
    flags = (*places("task_align.py", tmp_path), *ALIGN, "--mini_clips", 1, 1, 1)
    refused(here("task_align.py", *flags, ok=False), "one clip to train on", bars=True)


@pytest.mark.slow
def test_stage_2_with_one_modality_over_a_range_of_snr(folder, start):
    """Flags with hyphens or underscores, negative numbers, noise in place of the sound, and a
    question that arrives without noise; no figure is drawn where none is wanted."""
    flags = ("--steps", 2, "--batch", 8, "--question_only", "false", "--test_snr_db", -6)
    flags += ("--modalities", "visual", "--snr-range", -6, 12, "--question-snr-db", "inf")
    flags += ("--name", "part/robust", *start, "--figures", "none")
    done = apart("task_avqa.py", *places("task_avqa.py", folder), *flags)
    metrics = json.loads((folder / "checkpoint/part/robust.json").read_text())
    assert metrics["config"]["modalities"] == ["visual"]
    assert metrics["config"]["snr_range"] == [-6, 12]
    assert metrics["config"]["question_snr_db"] == "Infinity"
    assert metrics["accuracy_by_snr"].keys() == {"-6", "12"}
    assert metrics["figures"] == [] and set(metrics["baselines"]) == {"majority"}
    assert "robust.json" in done.stdout and not (ROOT / "none").exists()


def test_a_full_disk_at_the_end_of_training(folder, aligned, tmp_path):
    """The last state fits on the disk, the checkpoint beside it does not: its name and the reason
    are the last line, nothing half written is left, and the run ends from that state once there is
    room, with the losses of a run that was not stopped."""
    with small_disk(tmp_path / "disk", "4m") as disk:  # a state takes 3.5 MB, a checkpoint 1.2
        flags = ("--name", "full", "--out", disk)
        done = align(folder, *flags, ok=False)
        refused(done, f"{disk}/full.pth: No space left on device", "run again", bars=True)
        assert not unfinished(disk)
        assert {path.name for path in disk.iterdir()} == {"full", "full.resume"}
        assert [path.name for path in (disk / "full.resume").iterdir()] == ["step-00000006.pt"]
        change(disk, "size=16m")
        done = align(folder, *flags, "--resume", "true")
        assert "going on after step 6" in done.stdout
        assert (disk / "full.csv").read_text() == losses(folder)


def test_a_full_disk_while_the_cache_is_filled(folder, aligned, tmp_path):
    """The file that did not fit is named, nothing half written is left, and the same command
    encodes the rest once there is room."""
    with small_disk(tmp_path / "disk", "1m,nr_inodes=40") as disk:  # room, but not for 88 files
        flags = ("--name", "cached", "--cache", disk, "--encode_batch", 8)
        done = align(folder, *flags, ok=False)
        wrong = (f"{disk}/VALOR/VivitModel-", ".safetensors: No space left on device")
        refused(done, *wrong, bars=True)
        kept = {path: path.stat().st_mtime_ns for path in disk.rglob("*.safetensors")}
        assert 30 < len(kept) < 40 and not unfinished(disk)
        change(disk, "nr_inodes=1k")
        align(folder, *flags)
        files = {path: path.stat().st_mtime_ns for path in disk.rglob("*.safetensors")}
        assert len(files) == 2 * 44 and kept.items() <= files.items()


def test_folders_that_cannot_be_written(folder, aligned, tmp_path):
    """A folder of checkpoints or figures that is read-only is named before anything is trained or
    encoded."""
    with small_disk(tmp_path / "disk", "64k") as disk:
        change(disk, "ro")
        for flag in ("--out", "--figures"):
            done = align(folder, flag, disk, ok=False)
            refused(done, f"{disk}: no file can be written there (Read-only", f"folder by {flag}")


def test_two_runs_of_one_name(folder, aligned):
    """The second is refused in a line; the first goes on as if it had been alone."""
    flags = (*places("task_align.py", folder), *ALIGN, "--figures", "none", "--name", "twice")
    first = subprocess.Popen(
        [sys.executable, "task_align.py", *map(str, flags)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(lambda: list((folder / "checkpoint/twice").glob("events.*")), first)
        first.send_signal(signal.SIGSTOP)  # the second comes while the first is under way
        done = here("task_align.py", *flags, ok=False)
        refused(done, "checkpoint/twice: another run of this name is under way", "--name")
        first.send_signal(signal.SIGCONT)
        _, said = first.communicate()
        assert first.returncode == 0, said
    finally:
        first.kill()
        first.wait()
    assert (folder / "checkpoint/twice.csv").read_text() == losses(folder)


def test_a_channel_without_noise_and_the_smallest_batch(folder, aligned):
    """Stage 1 trains and tests at +inf dB, two clips at a time."""
    align(folder, "--steps", 2, "--batch", 2, "--snr_db", "inf", "--name", "clear")
    rows = list(csv.DictReader(open(folder / "checkpoint/clear.csv")))
    assert len(rows) == 2 and all(0 < float(row["loss"]) < 100 for row in rows)


NETWORK = (
    *("--users", 4, "--steps", 2, "--seeds", 5, 6, "--lengths", 1, 2, 4),
    *("--reference_length", 2, "--reference_bits", 3, "--link_length", 4),
    *("--surface_lengths", 1, 4, "--snr_levels", -9, 9, "--bits_levels", 0.25, 3),
    *("--drops", 3, "--instances", 2, "--many_users", 6, "--few", 2, "--user_counts", 2, 4),
    *("--weights", 0.1, 0.9, "--link_snr_db", -9, 18, "--deadlines", 0.02, 0.08),
)


@pytest.fixture(scope="module")
def network(folder, start):
    return here("task_network.py", *places("task_network.py", folder), *NETWORK, *start)


@pytest.mark.slow
def test_the_network_study_leaves_what_it_promises(folder, network):
    """Metrics in DESIGN's form for both links, every figure, and a summary; stage 2 was trained
    along, once for each link and seed."""
    metrics = json.loads((folder / "checkpoint/network-mini.json").read_text())
    assert metrics["task"] == "network"
    for link in ("analog", "digital"):
        bound = metrics["vs_lower_bound"][link]
        assert bound["instances"] == 2 and bound["users"] == 4 and bound["many"]["users"] == 6
        assert 0 <= bound["mean_gap"] <= bound["worst_gap"] < 0.05
        baselines = metrics["vs_baselines"][link]
        assert all(row["median_gain"] > -0.01 for row in baselines["ratios"].values())
        assert {"joint", "equal split"} < baselines["spent"].keys()
        assert set(metrics["variables"][link]) == {"own", "shared"}
        measured = metrics["measured"]["by_deadline"][link]
        for name, curve in measured["accuracy"].items():
            assert len(curve) == 2 and all(0 <= a <= 1 for a in curve)
            assert name == "joint" or "ci95" in measured["accuracy_at_equal_latency"][name]
        assert len(metrics["measured"]["agreement"][link]["points"]) == 6
    assert metrics["seconds_1000_users"]["slowest"] > 0
    shown = "\n".join([*decisive(metrics), *tables(metrics)])
    assert all(name in shown for name in ("greedy", "bandwidth and power", "learned codebook"))
    curves = metrics["measured"]["over_messages"]["curves"]
    kinds = {"quantised tokens", "learned codebook", "caption as text", "digital envelope"}
    assert kinds < curves.keys() and "analog tokens" in curves
    assert len(metrics["figures"]) == 11
    for figure in metrics["figures"]:
        assert Path(figure).stat().st_size > 10_000 and Path(figure).with_suffix(".pdf").is_file()
        assert figure in network.stdout
    assert "1,000 users" in network.stdout and "above the lower bound" in network.stdout
    for link in ("analog", "digital"):
        for seed in (5, 6):
            run = f"checkpoint/network-mini-{link}-{seed}.json"
            trained = json.loads((folder / run).read_text())
            assert trained["config"]["token_lengths"] == [1, 2, 4] and trained["steps"] == 2
            assert (trained["config"]["channel"] == "quantised") == (link == "digital")


@pytest.mark.slow
def test_the_network_study_trains_and_asks_once(folder, network, start):
    """With other budgets it goes on from the trained model, and what was asked before is not asked
    again; a bad one ends in a line before it."""
    path = folder / "checkpoint/network-mini-digital-5.pth"
    asked = folder / "checkpoint/network-mini-asked"
    before = path.stat().st_mtime_ns
    kept = {p.name: p.stat().st_mtime_ns for p in asked.iterdir()}
    assert len(kept) > 40
    flags = (*places("task_network.py", folder), *NETWORK, *start, "--figures", "none")
    done = here("task_network.py", *flags)
    assert done.stdout.count("as it stood") == 13
    done = here("task_network.py", *flags, "--weight", "0.3")
    assert "as it stood" not in done.stdout and path.stat().st_mtime_ns == before
    assert {p.name: p.stat().st_mtime_ns for p in asked.iterdir()} == kept
    refused(here("task_network.py", *flags, "--user_power_dbm", "nan", ok=False), "user_power_dbm")
