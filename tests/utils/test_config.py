"""Hyperparameters that no run can use are refused before any work is done."""

import json
import sys
import threading
from dataclasses import fields, replace

import pytest

import task_align
import task_avqa
from utils.config import LEAST, POSITIVE, check, plain, run


@pytest.mark.parametrize("script", [task_align, task_avqa])
@pytest.mark.parametrize("preset", ["mini", "paper"])
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
        ("lr", float("nan")),
        ("temperature", -0.1),
        ("clip", -1.0),
        ("snr_db", float("nan")),
        ("snr_db", float("-inf")),
        ("snr_range", [0.0, float("nan")]),
        ("audio_tokens", 0),
        ("mini_clips", [10, 0, 5]),
        ("dtype", "float99"),
        ("dtype", "nn"),
    ],
)
def test_unusable_values_are_named(field, value):
    """The line says which field, what it is, and what it must be."""
    with pytest.raises(ValueError, match=f"--{field} .*: (must be|unknown)"):
        check(replace(task_align.PRESETS["mini"], **{field: value}))


def test_without_noise_is_a_number():
    """An SNR of +inf dB is a channel without noise."""
    check(replace(task_align.PRESETS["mini"], snr_db=float("inf")))


def test_rules_are_of_fields_that_exist():
    """A rule for a field that was renamed would protect nothing."""
    known = {f.name for script in (task_align, task_avqa) for f in fields(script.Config)}
    assert {*LEAST, *POSITIVE} <= known


def test_plain_is_what_json_keeps():
    """Lists, numbers and None stay as they are."""
    found = plain(task_avqa.PRESETS["paper"])
    assert found["question_snr_db"] is None and found["lora_targets"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize("script", [task_align, task_avqa])
@pytest.mark.parametrize(
    "flags, says",
    [
        (["--snr_db", "nan"], "--snr_db nan: must be a number"),
        (["--snr_db=-inf"], "--snr_db -inf: must be a number"),
        (["--snr_db", "-inf"], "--snr_db"),
        (["--snr_range", "nan", "5"], "--snr_range nan: must be a number"),
        (["--visual_tokens", "0"], "--visual_tokens 0: must be 1 or more"),
        (["--audio-tokens", "0"], "--audio_tokens 0: must be 1 or more"),
        (["--batch", "0"], "--batch 0: must be 1 or more"),
    ],
)
def test_scripts_refuse_them_in_one_line(monkeypatch, capsys, tmp_path, script, flags, says):
    """Said as a flag, such a number ends the script before it writes anything."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back afterwards
    monkeypatch.setattr(sys, "argv", ["task.py", "--out", str(tmp_path / "out"), *flags])
    with pytest.raises(SystemExit) as stop:
        run(script.main, script.PRESETS, script.PRESET, script.__doc__)
    assert stop.value.code in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("task.py: ") and says in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_infinity_is_valid_json():
    """A noiseless run's configuration is JSON that every reader takes, and compares with itself."""
    found = plain(replace(task_align.PRESETS["mini"], snr_db=float("inf")))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert float(found["snr_db"]) == float("inf")
