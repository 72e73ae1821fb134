"""Hyperparameters that no run can use are refused before any work is done."""

from dataclasses import fields, replace

import pytest

import task_align
import task_avqa
from utils.config import LEAST, POSITIVE, check, plain


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
