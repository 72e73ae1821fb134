"""The multi-user studies: what a drop holds, and that what is reported is what was allocated."""

from dataclasses import replace

import numpy as np
import pytest

import task_avqa
import task_network
from modules.network.allocation import allocate
from modules.network.baselines import equal_split
from modules.network.cell import rate
from modules.network.loss_curve import LossCurve
from utils.network.experiments import (
    against_baselines,
    against_exhaustive,
    over_budgets,
    over_links,
    points,
    seconds_of,
)
from utils.network.study import KINDS, Study, check, fit_sweep, spent

CURVE = LossCurve(0.3, {"visual": 0.05, "audio": 0.02}, {"visual": 0.8, "audio": 1.2}, 0.9)


def study(**changes) -> Study:
    config = replace(task_network.PRESETS["mini"], **changes)
    return Study(config, task_avqa.PRESETS["mini"], 128, CURVE)


def test_a_drop_is_in_si_units():
    """dBm become W, ms of computing s, and scenes share the loss."""
    problem = study(users=6, power_dbm=20, user_power_dbm=10).drop(0)
    assert problem.power == pytest.approx(0.1) and problem.user_power == pytest.approx([0.01] * 6)
    assert problem.token_bits == 128 * study().config.bits
    assert problem.special.tolist() == [1, 2] * 3
    assert (problem.encode > 1e-3).all() and (problem.encode < 1).all()
    lengths = np.array([4.0, 8.0] * 3)
    assert problem.loss(lengths) == pytest.approx(float(CURVE({"visual": 4, "audio": 8})))
    assert 0 < problem.foundation < problem.foundation_fixed


def test_drops_repeat_and_differ():
    """The same seed is the same drop whatever is compared; another one is another."""
    a, b, c = study().drop(1), study(weight=0.9).drop(1), study().drop(2)
    assert (a.gain == b.gain).all() and (a.gain != c.gain).any()


def test_where_the_time_goes():
    """Encoding, uplink and reading add up to the latency, which is the slowest user's."""
    s = study()
    problem = s.drop(3)
    found = allocate(problem)
    parts = spent(s, problem, found)
    sum_of = parts["encode_s"] + parts["uplink_s"] + parts["foundation_s"]
    assert sum_of == pytest.approx(parts["latency_s"])
    rates = rate(found.bandwidth, found.power, problem.gain, problem.noise_density)
    seconds = problem.bits(found.lengths) / rates
    assert parts["encode_s"] + parts["uplink_s"] == pytest.approx((problem.encode + seconds).max())
    compute = s.encode_flops(problem.users) * s.config.joules_per_flop
    assert parts["energy_j_per_user"] == pytest.approx((seconds * found.power + compute).mean())
    objective = problem.weight * parts["latency_s"] + (1 - problem.weight) * parts["loss"]
    assert found.objective == pytest.approx(objective)


def test_a_random_split_is_of_its_drop():
    """Another one for another drop, the same for the same."""
    s = study()
    a, b, c = (s.methods["random"](s.drop(seed)) for seed in (0, 0, 1))
    assert (a.bandwidth == b.bandwidth).all() and (a.bandwidth != c.bandwidth).all()


def test_comparisons_are_of_the_same_drops():
    """Gains over every baseline, none negative, with interval; histories never rise."""
    found = against_baselines(study(users=4), drops=4)
    assert set(found["vs_baselines"]) == {"equal split", "proportional", "fixed length", "random"}
    for row in found["vs_baselines"].values():
        assert row["mean_gain"] > 0 and row["ci95"] > 0 and row["better_in"] == 1
    assert all((np.diff(history) < 0).all() for history in found["histories"])
    assert against_exhaustive(study(lengths=[1, 8, 32]), 3)["within_1_percent"] == 3


def test_more_budget_is_no_worse():
    """The curves over bandwidth and power have a point for each budget and never rise."""
    found = over_budgets(study(users=2), drops=2)
    for name in ("bandwidth", "power"):
        assert len(found[name]["values"]) == len(found[name]["joint"]["mean"]) > 4
        assert (np.diff(found[name]["joint"]["mean"]) <= 1e-6).all()


def test_answers_are_asked_at_what_was_allocated():
    """Lengths and SNRs of all drops' scenes reach the model, in pairs of camera and microphone."""
    s, asked = study(users=4), []

    def answer(lengths, snr_db):
        asked.append((lengths, snr_db))
        return np.array([0.5, 1.0])

    found = points(s, answer, 3, [(equal_split, None, {}), (equal_split, 2, {"weight": 0.9})])
    (lengths, snr_db), (fewer, _) = asked
    assert lengths.shape == snr_db.shape == (6, 2) and fewer.shape == (3, 2)
    first = equal_split(s.drop(0))
    assert lengths[:2].ravel().tolist() == first.lengths.tolist()
    assert found["accuracy"]["mean"] == [0.75, 0.75] and len(found["latency_s"]["ci95"]) == 2


def test_links_are_compared_in_as_many_channel_uses():
    """A digital link sends as many tokens as fit, special ones included, or does not take part."""

    class Link:
        def __init__(self, uses):
            self.each = uses

        def tokens_within(self, uses, hidden):
            return uses // self.each

    asked = []

    def answer(lengths, snr_db, link):
        asked.append((lengths.tolist(), snr_db.tolist(), link))
        return np.array([0.5, 1.0])

    links = {"half": Link(128), "too long": Link(128 * 20)}
    found = over_links(study(), answer, [0.0, 6.0], links, length=8)
    assert found["channel_uses"] == (9 + 10) * 64 and set(found["curves"]) == {"analog", "half"}
    assert found["tokens"]["half"] == [4 - 1, 5 - 2]
    assert asked[0] == ([[8, 8]], [[0.0, 0.0]], None) and asked[2][0] == [[3, 3]]


def test_a_thousand_users_are_timed():
    """Their seconds and iterations are told."""
    found = seconds_of(study(), 20)
    assert found["seconds_1000_users"] > 0 and found["iterations_1000_users"] >= 1


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"users": 0}, "0 users: must be even"),
        ({"users": 3}, "3 users"),
        ({"user_counts": [2, 5]}, "5 users"),
        ({"drops": 0}, "--drops 0"),
        ({"bandwidth": -1.0}, "bandwidth -1"),
        ({"weights": [0.5, 2.0]}, "weight 2"),
        ({"lengths": []}, "--reference_length"),
        ({"reference_length": 5}, "--reference_length 5"),
        ({"device_flops": 0.0}, "--device_flops"),
        ({"fading": "fog"}, "fading 'fog'"),
        ({"channel": "fog"}, "--channel fog: unknown, choose from awgn, "),
        ({"deadline": 0.0}, "deadline 0"),
        ({"out": "/dev/null/x"}, "/dev/null/x: no file can be written"),
        ({"cache": "none"}, "--cache none"),
        ({"noise_dbm_per_hz": float("nan")}, "--noise_dbm_per_hz nan: must be a number"),
        ({"curve": "guess"}, "--curve guess"),
        ({"curve": "sweep", "sweep": "nowhere.csv"}, "nowhere.csv: no sweep"),
        ({"sweep": "README.md"}, "README.md: not a sweep"),
    ],
)
def test_bad_settings_end_before_training(wrong, says):
    """In one line that names the field."""
    config = replace(task_network.PRESETS["mini"], figures="none", **wrong)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        check(config, task_avqa.PRESETS["mini"])
    assert "\n" not in str(error.value)


def test_the_sweep_is_fitted_too(tmp_path):
    """A sweep over token lengths gives a curve through the runs of its first compression alone, and
    how well it explains them."""
    lines = ["compression,visual_tokens,audio_tokens,seed,validation_loss"]
    for length in (1, 4, 16, 64):
        for pair in {(length, 16), (16, length)}:
            loss = 0.4 + 0.3 * pair[0] ** -0.5 + 0.1 * pair[1] ** -0.5
            lines += [f"grid,{pair[0]},{pair[1]},{seed},{loss}" for seed in (1, 2)]
            lines.append(f"uniform,{pair[0]},{pair[1]},1,9.0")
    (tmp_path / "token_length.csv").write_text("\n".join(lines))
    curve = fit_sweep(tmp_path / "token_length.csv")
    assert curve.r2 > 0.99 and 0.3 < curve.floor < 0.5 and min(curve.fall.values()) > 0


def test_presets_are_usable():
    """No check refuses what the project itself sets."""
    for preset in task_network.PRESETS.values():
        check(replace(preset, figures="none"), task_avqa.PRESETS["mini"])
    assert KINDS == ("visual", "audio")
