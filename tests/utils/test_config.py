"""Hyperparameters that no run can use are refused before any work is done."""

import json
import math
import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace

import pytest
import torch

import task_align
import task_avqa
from tests.helpers.scripts import here, refused
from utils.config import CHOICES, COUNTS, NOT_NEGATIVE, POSITIVE, check, of_plain, plain, run_script

STAGES = (task_align, task_avqa)


@pytest.mark.parametrize("script", STAGES)
@pytest.mark.parametrize("preset", ["mini", "paper", "published"])
def test_presets_are_usable(script, preset):
    """No rule refuses what the project itself sets."""
    check(script.PRESETS[preset])


@pytest.mark.parametrize(
    "field, value",
    [
        ("batch", 0),
        ("steps", -1),
        ("caption_tokens", 0),
        ("visual_tokens", 0),
        ("save_every", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("temperature", -0.1),
        ("clip", -1.0),
        ("workers", -1),
        ("snr_db", math.nan),
        ("snr_db", -math.inf),
        ("snr_range", [0.0, math.nan]),
        ("audio_tokens", 0),
        ("mini_clips", [10, 0, 5]),
        ("channel", "tin-can"),
        ("compression", "zip"),
        ("receiver", "ear"),
        ("dtype", "float99"),
        ("dtype", "nn"),
        ("warm_up", -1),
        ("seed", -1),
        ("seed", 20261127120000),
    ],
)
def test_unusable_values_are_named(field, value):
    """The line says which field, what it is, and what it must be."""
    with pytest.raises(ValueError, match=f"--{field} .*: (must be|unknown)"):
        check(replace(task_align.PRESETS["mini"], **{field: value}))


def test_no_more_tokens_are_tested_than_are_sent():
    """They would be those of fewer, under another name."""
    config = task_avqa.PRESETS["mini"]
    check(replace(config, test_lengths=["16x4"], visual_tokens=16, audio_tokens=16))
    with pytest.raises(ValueError, match="--test_lengths 16x32: the run has 16 audio tokens"):
        check(replace(config, test_lengths=["16x32"], visual_tokens=16, audio_tokens=16))


@pytest.mark.parametrize("modalities", [["visaul"], ["visual", "none"], ["audio", "text"], []])
def test_modalities_are_checked_before_models_load(modalities):
    """An unknown one, none beside another, or not even none."""
    with pytest.raises(ValueError, match="modalities .*: choose from visual, audio, or none alone"):
        check(replace(task_avqa.PRESETS["mini"], modalities=modalities))


def test_without_noise_is_a_number():
    """An SNR of +inf dB is a channel without noise."""
    check(replace(task_align.PRESETS["mini"], snr_db=math.inf))


def test_rules_are_of_fields_that_exist():
    """A rule for a field that was renamed would protect nothing."""
    known = {f.name for script in STAGES for f in fields(script.Config)}
    assert {*COUNTS, *NOT_NEGATIVE, *POSITIVE, *CHOICES} <= known


def test_plain_is_what_json_keeps():
    """Lists, numbers and None stay as they are; a noiseless run's configuration is JSON that every
    reader takes, and compares with itself."""
    found = plain(replace(task_avqa.PRESETS["published"], snr_db=math.inf))
    assert found["question_snr_db"] is None and found["lora_targets"] == ["q_proj", "v_proj"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert float(found["snr_db"]) == math.inf


MISTAKES = {  # with status 2 if they are no configuration at all, else 1
    "--preset huge": (2, "--preset huge: unknown, choose from mini, paper"),
    "--temprature 1": (2, "--temprature: no such field; see --help"),
    "--steps many": (2, "--steps"),
    "--snr_db -inf": (2, "--snr_db"),
    "--snr_db=-inf": (1, "--snr_db -inf: must be a number"),
    "--audio-tokens 0": (1, "--audio_tokens 0: must be 1 or more"),
    "--channel tin-can": (1, "--channel tin-can: unknown, choose from awgn, "),
}


@pytest.mark.parametrize("script", ["task_align.py", "task_avqa.py"])
@pytest.mark.parametrize("flags", MISTAKES)
def test_scripts_refuse_them_in_one_line(tmp_path, script, flags):
    """Said as a flag, what cannot be used ends the script before it writes anything."""
    status, says = MISTAKES[flags]
    done = here(script, "--out", tmp_path / "out", *flags.split(), ok=False)
    refused(done, says, status=status)
    assert not list(tmp_path.iterdir())


SHORT = {  # of memory, or of a file: what a script is told, and what it says
    RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"): (
        *("a process that makes or reads media was killed", "--workers", "--encode_batch"),
    ),
    BrokenProcessPool("A process was terminated abruptly"): (
        *("a process that makes or reads media was killed", "--workers"),
    ),
    OSError(
        "Caught OSError in DataLoader worker process 0.\nOriginal Traceback:\nOSError: a.mp4: gone"
    ): ("a.mp4: gone",),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. GPU 0 has\n8 GiB"): (
        *("CUDA out of memory; run again with a smaller", "--batch", "--encode_batch"),
    ),
}


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
def test_what_ends_a_run_midway_is_one_line(monkeypatch, capsys, error):
    """Lack of memory names the flags that need less, a loader's process the file."""

    def main(_config):
        raise error

    monkeypatch.setattr(sys, "argv", ["task_align.py"])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back afterwards
    with pytest.raises(SystemExit, match="1"):
        run_script(main, task_align.PRESETS, "mini", "")
    said = capsys.readouterr().err
    begins, *flags = SHORT[error]
    assert said.startswith(f"task_align.py: {begins}") and said.count("\n") == 1
    assert all(flag in said for flag in flags)


@pytest.mark.parametrize("script", STAGES)
def test_a_recorded_config_comes_back(script):
    """What a checkpoint records gives the config of its run, infinite numbers and lists included; a
    field of another version is left out or is its preset's."""
    config = replace(script.PRESETS["paper"], snr_db=math.inf, snr_range=[-3.0, math.inf], seed=5)
    recorded = plain(config) | {"gone": 1}
    assert of_plain(script.PRESETS, recorded) == config
    del recorded["lr"], recorded["visual_tokens"]
    assert of_plain(script.PRESETS, recorded) == config
