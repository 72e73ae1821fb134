"""The multi-user studies: what a drop holds, and that what is reported is what was allocated."""

from dataclasses import replace

import numpy as np
import pytest

import task_avqa
import task_network
from modules.network.allocation import allocate
from modules.network.baselines import equal_split
from modules.network.links import FINE, LOST_DB
from modules.network.loss_surface import fit_loss_surface
from utils.network import experiments
from utils.network.study import KINDS, Study, arrives, check, judged, spent

SMALL = dict(lengths=[1, 4, 16], bits_levels=[1, 4], reference_length=4, users=4, few=2, drops=3)


def surface(levels, lost):
    """Through losses that fall with the length and from the first level to the last."""
    best, points = (16, levels[-1]), []
    pairs = [(n, at) for n in (1, 4, 16) for at in levels] + [(1, lost)]
    for pair in pairs:
        for sent in ((pair, best), (best, pair)):
            loss = 0.4
            for (n, at), scale in zip(sent, (0.6, 0.4), strict=True):
                arrived = 0 if at == lost else (1 + levels.index(at)) / len(levels)
                loss += scale * (1 - arrived * (1 - 0.5 / n))
            points.append({**dict(zip(KINDS, sent, strict=True)), "loss": loss})
    return fit_loss_surface(points, KINDS)


SURFACES = {"analog": surface([-12.0, 0.0, 12.0], LOST_DB), "digital": surface([1, 4], 0)}


def study(**changes) -> Study:
    config = replace(task_network.PRESETS["mini"], **{**SMALL, **changes})
    return Study(config, task_avqa.PRESETS["mini"], 128, SURFACES)


def test_a_drop_is_in_si_units():
    """dBm become W, ms of computing s, and scenes share the loss; power is each handset's own."""
    problem = study(users=6, user_power_dbm=10).drop(0, "analog")
    assert problem.user_power == pytest.approx([0.01] * 6) and not problem.shares_power
    assert study(power_dbm=20).drop(0, "analog").power == pytest.approx(0.1)
    assert problem.importance == pytest.approx([1 / 3] * 6) and problem.kind.tolist() == [0, 1] * 3
    assert (problem.encode > 1e-3).all() and (problem.encode < 1).all()
    assert 0 < problem.foundation < problem.foundation_fixed
    assert problem.floor == SURFACES["analog"].floor


def test_links_hold_the_measured_losses():
    """At measured lengths and levels those of the surface; far below the lowest SNR and in silence
    what nothing costs."""
    s = study()
    analog, digital = s.link("analog"), s.link("digital")
    assert analog.lengths.tolist() == [0, 1, 4, 16]
    assert digital.lengths.tolist() == [0, 1, 1, 4, 4, 16, 16]
    assert digital.bits.tolist() == [0, 1, 4, 1, 4, 1, 4]
    for i, kind in enumerate(KINDS):
        of = SURFACES["analog"].excess[kind]
        at = [int(np.argmin(abs(FINE - db))) for db in (-12, 0, 12)]
        assert analog.excess[i, 1:, at].T == pytest.approx(of[:, 1:])
        assert analog.excess[i, :, 0] == pytest.approx([of[0, 0]] * 4)
        assert analog.excess[i, 1, np.argmin(abs(FINE + 24))] == pytest.approx(of[0, 0])
        of = SURFACES["digital"].excess[kind]
        assert digital.excess[i] == pytest.approx([of[0, 0], *of[:, 1:].ravel()])
    assert digital.lengths[s.reference(digital)] == 4 and digital.bits[s.reference(digital)] == 4


def test_drops_repeat_and_differ():
    """The same seed is the same drop on both links whatever is compared; another one is another.
    Fades that are not known are not in the gains."""
    s = study()
    a, b = s.drop(1, "analog"), study(weight=0.9).drop(1, "digital")
    assert (a.gain == b.gain).all() and (a.gain != s.drop(2, "analog").gain).any()
    mean = s.drop(1, s.link("analog", coherence=0.01)).gain
    still = study(fading="none").drop(1, "analog").gain
    assert mean == pytest.approx(still) and (mean != a.gain).all()


def test_where_the_time_goes():
    """Encoding, uplink and reading add up to the latency, which is the slowest user's; energy is
    that of sending and of encoding; silent users are counted as an outage."""
    s = study()
    for link in ("analog", "digital"):
        problem = s.drop(3, link)
        found = allocate(problem)
        parts = spent(s, problem, found)
        sum_of = parts["encode_s"] + parts["uplink_s"] + parts["foundation_s"]
        assert sum_of == pytest.approx(parts["latency_s"])
        computed = s.encode_flops(problem.users) * s.config.joules_per_flop * (found.option > 0)
        assert parts["energy_j_per_user"] == pytest.approx((found.energy + computed).mean())
        lost = problem.importance * found.loss
        assert parts["loss"] == pytest.approx(problem.floor + lost.sum())
        assert parts["outage"] == (found.option == 0).mean()
    silent = allocate(replace(problem, weight=1.0))
    assert spent(s, problem, silent)["outage"] == 1


def test_what_arrives_is_what_was_allocated():
    """Lengths and SNRs, or bits, in pairs of camera and microphone; silence arrives as nothing."""
    s = study()
    problem = s.drop(0, "analog")
    found = equal_split(problem)
    lengths, levels = arrives(problem, found)
    assert lengths.shape == levels.shape == (2, 2)
    sends = found.option > 0
    snr = problem.gain * found.power / problem.noise_density / np.where(sends, found.bandwidth, 1)
    assert levels.ravel()[sends] == pytest.approx(10 * np.log10(snr[sends]))
    problem = s.drop(0, "digital")
    found = allocate(problem)
    lengths, levels = arrives(problem, found)
    assert levels.ravel().tolist() == problem.link.bits[found.option].tolist()
    nobody = allocate(replace(problem, weight=1.0))
    assert (arrives(problem, nobody)[0] == 1).all() and (arrives(problem, nobody)[1] == 0).all()


def test_what_arrives_over_unknown_fades_is_what_was_expected():
    """Where fades are not known, what arrives of a message fades, or is lost, from time to time:
    on average as much is lost as the allocation was told."""
    s = study()
    for link in ("analog", "digital"):
        of = s.link(link, coherence=0.02)
        problem = s.drop(1, of)
        found = allocate(problem)
        _, levels = arrives(problem, found, times=4000)
        known = replace(of, coherence=np.inf)
        # Each time's loss, read from the tables of fades that are known.
        if link == "analog":
            sent = (problem.kind, found.option, 1.0)
            lost = [known.loss(*sent, 10 ** (each.ravel() / 10)) for each in np.split(levels, 4000)]
        else:
            heard = levels.reshape(4000, -1) > 0
            told = known.excess[problem.kind, found.option], known.excess[problem.kind, 0]
            lost = np.where(heard, *told)
        sends = found.option > 0
        assert np.mean(lost, axis=0)[sends].sum() == pytest.approx(found.loss[sends].sum(), rel=0.1)


def test_methods_know_gains_but_for_an_error():
    """With an error of gains every method decides by what it sees, and is judged by the truth."""
    exact, s = study(), study(gain_error_db=4.0)
    problem = s.drop(1, "digital")
    for name, method in s.methods.items():
        seen = method(problem)
        assert seen.bandwidth.sum() <= problem.bandwidth * (1 + 1e-6)
        if name == "joint":
            assert not np.array_equal(seen.bandwidth, exact.methods[name](problem).bandwidth)


def test_what_was_misjudged_is_judged_by_the_truth():
    """Without an error nothing changes; where gains are 20 dB less than was thought, digital
    messages do not arrive, and analog ones lose more."""
    s = study()
    for link in ("analog", "digital"):
        true = s.drop(1, link)
        found = s.guessed(allocate, 0.0, true)
        assert found.loss == pytest.approx(allocate(true).loss)
        found = allocate(replace(true, gain=100 * true.gain))
        after, sends = judged(true, found), found.option > 0
        assert (after.loss[sends] > found.loss[sends] - 1e-12).all() and sends.any()
        if link == "digital":
            assert after.loss == pytest.approx(true.link.excess[true.kind, 0])


@pytest.mark.slow
def test_every_experiment_tells_what_it_promises():
    """Of both links: gaps to the bound, ratios with intervals and quantiles for every method, and a
    point for each budget, count, weight, coherence and error."""
    s = study(instances=5, many_users=6, user_counts=[2, 4], weights=[0.2, 0.8])
    found = {
        "bound": experiments.against_bound(s, 2, 1, 6),
        "baselines": experiments.against_baselines(s, 3),
        "variables": experiments.variables(s, 2),
        "budgets": experiments.over_budgets(s, 2, ("joint",)),
        "users": experiments.over_users(s, 2, ("joint", "equal split")),
        "weights": experiments.over_weights(s, 2, ("joint",)),
        "fades": experiments.over_fades(s, 2, (np.inf, 0.01)),
        "knowledge": experiments.over_knowledge(s, 2, (0.0, 3.0)),
    }
    assert experiments.seconds_of(s, 10, 1)["slowest"] > 0
    for link in ("analog", "digital"):
        assert 0 <= found["bound"][link]["worst_gap"] < 0.03
        ratios = found["baselines"][link]["ratios"]
        assert set(ratios) == set(s.methods) - {"joint"}
        for row in ratios.values():
            assert row["ci95"][0] <= row["median_ratio"] <= row["ci95"][1] < 1.02
        medians = found["baselines"][link]["spent"]["joint"]
        assert medians["latency_s"]["p10"] <= medians["latency_s"]["p50"]
        assert list(found["variables"][link]["own"]) == [
            "bandwidth", "length", "bandwidth and length"
        ]  # fmt: skip
        assert "water-filling and length" in found["variables"][link]["shared"]
        budgets = found["budgets"][link]["bandwidth"]["joint"]
        left = np.array([row["changeable"]["p50"] for row in budgets])
        assert (left[1:] <= left[:-1] * 1.006).all()  # but for the gap that the search leaves
        fades = found["fades"][link]
        assert fades[1]["loss"]["p50"] >= fades[0]["loss"]["p10"]
        assert len(found["weights"][link]["joint"]) == 2
        counts = found["users"][link]
        assert len(counts["spent"]["joint"]) == len(counts["ratio"]) == 2
        assert all(row["median_ratio"] < 1.006 for row in counts["ratio"])
        error = found["knowledge"][link]["error"]
        known = [spent(s, p, allocate(p))["loss"] for p in (s.drop(d, link) for d in range(2))]
        assert error[0]["loss"]["p90"] == pytest.approx(max(known)) and len(error) == 2


def test_a_random_split_is_of_its_drop():
    """Another one for another drop, the same for the same."""
    s = study()
    a, b, c = (s.methods["random"](s.drop(seed, "analog")) for seed in (0, 0, 1))
    assert (a.bandwidth == b.bandwidth).all() and (a.bandwidth != c.bandwidth).any()


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
        ({"reference_bits": 5}, "--reference_bits 5"),
        ({"bits_levels": [4, 9]}, "--bits_levels 9: choose from 0.25, 0.5, 0.75, 1, 1.5, 2"),
        ({"bits_levels": [0.3, 4]}, "--bits_levels 0.3"),
        ({"channel": "quantised"}, "--channel quantised"),
        ({"snr_levels": [3.0, 1.0]}, "--snr_levels"),
        ({"snr_levels": [-90.0, 1.0]}, "--snr_levels -90"),
        ({"deadlines": []}, "--deadlines"),
        ({"seeds": []}, "--seeds"),
        ({"outage": 0.0}, "--outage 0"),
        ({"device_flops": 0.0}, "--device_flops"),
        ({"fading": "fog"}, "fading 'fog'"),
        ({"scenario": "moon"}, "scenario 'moon'"),
        ({"channel": "fog"}, "--channel fog: unknown, choose from awgn, "),
        ({"deadline": 0.0}, "deadline 0"),
        ({"fair": True, "power_dbm": 10.0}, "fair: is for handsets"),
        ({"out": "/dev/null/x"}, "/dev/null/x: no file can be written"),
        ({"cache": "none"}, "--cache none"),
        ({"noise_dbm_per_hz": float("nan")}, "--noise_dbm_per_hz nan: must be a number"),
    ],
)
def test_bad_settings_end_before_training(wrong, says):
    """In one line that names the field."""
    config = replace(task_network.PRESETS["mini"], figures="none", **wrong)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        check(config, task_avqa.PRESETS["mini"])
    assert "\n" not in str(error.value)


def test_presets_are_usable():
    """No check refuses what the project itself sets."""
    for preset in task_network.PRESETS.values():
        check(replace(preset, figures="none"), task_avqa.PRESETS["mini"])
    assert KINDS == ("visual", "audio")
