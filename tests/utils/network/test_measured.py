"""What is asked of models, with answers of which the truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest

import task_avqa
import task_network
from modules.network.loss_surface import fit_loss_surface
from tests.helpers.asked import CLIPS, EACH, fake_ask
from utils.network import experiments, measured, page, plots
from utils.network.study import KINDS, LINKS, Study

SMALL = dict(
    users=4, few=3, drops=4, instances=5, many_users=4, lengths=[1, 4, 16], user_counts=[2, 4],
    surface_lengths=[1, 4, 16], snr_levels=[-12.0, 0.0, 12.0], bits_levels=[0.25, 1.0, 4.0],
    reference_length=4, weights=[0.2, 0.8], link_snr_db=[-12.0, 0.0, 12.0],
)  # fmt: skip


@pytest.fixture(scope="module")
def made():
    """A study of the surfaces that are measured of such answers, what answers, and the points."""
    config = replace(task_network.PRESETS["mini"], **SMALL)
    ask = fake_ask(2)
    points = json.loads(json.dumps(measured.surface_points(config, ask)))
    surfaces = {link: fit_loss_surface(of, KINDS) for link, of in points.items()}
    return Study(config, task_avqa.PRESETS["mini"], 128, surfaces), ask, points


def test_predictions_come_true(made):
    """Where losses of both users add up, surfaces explain all of them, and predicted losses of
    other drops are those that are measured, but for what lies between measured points."""
    study, ask, _ = made
    assert all(of.r2 > 0.999 for of in study.surfaces.values())
    for link in LINKS:
        of = measured.agreement(study, {link: ask[0][link]["val"]}, range(100, 109))[link]
        assert len(of["points"]) == 18 and of["r2"] > 0.97
        assert of["slope"] == pytest.approx(1, abs=0.15) and abs(of["offset"]) < 0.05


def test_methods_are_compared_at_the_same_latency(made):
    """Within each deadline; more time answers more; the joint allocation is not below the equal
    split, and takes no longer for the same accuracy."""
    study, ask, _ = made
    found = measured.by_deadline(study, ask, 4, 1)
    for of in found.values():
        assert of["accuracy"].keys() == study.methods.keys()
        for name, seconds in of["median_latency_s"].items():
            assert all(s <= d * (1 + 1e-9) for s, d in zip(seconds, of["deadlines_s"], strict=True))
            assert name == "joint" or of["accuracy_at_equal_latency"][name]["ci95"] >= 0
        joint = of["accuracy"]["joint"]
        assert joint[-1] >= joint[0]
        assert of["accuracy_at_equal_latency"]["equal split"]["mean"] >= -0.01
        ratio = of["latency_at_equal_accuracy"]["equal split"]
        assert ratio["low"] <= ratio["ratio"] <= 1.01


def test_the_ratio_of_latencies():
    """A method that is as accurate in half of the time takes half; one that never is, takes none
    that can be told."""
    clips, deadlines = np.repeat(np.arange(20), 5), [0.02, 0.04, 0.08]
    share = np.arange(100) / 100
    right = np.array([[share < a] * 2 for a in (0.3, 0.5, 0.7)], float)
    sooner = np.array([[share < a] * 2 for a in (0.5, 0.7, 0.9)], float)
    assert measured.latency_ratio(deadlines, right, right, clips)["ratio"] == pytest.approx(1)
    assert measured.latency_ratio(deadlines, sooner, right, clips)["ratio"] == pytest.approx(0.5)
    assert measured.latency_ratio(deadlines, right, sooner * 0 + 1, clips)["ratio"] is None


def test_messages_fit_into_the_channel_uses(made):
    """None needs more bits than the best code carries; at each SNR the best of those that fit is
    chosen, so that the envelope is above each kind and never falls."""
    study, ask, _ = made
    found = measured.over_messages(study, ask[0], {"0": "a drum"})
    kinds = {m["kind"] for m in found["messages"]}
    assert kinds == {"quantised tokens", "learned codebook", "digital special tokens alone",
                     "caption as text"}  # fmt: skip
    whole = [m for m in found["messages"] if m["kind"] == "quantised tokens"]
    assert {m["bits"] for m in whole} == {*range(1, 9)}
    uses = found["channel_uses"] / 2  # of each user, but for a special token
    for m in whole:
        assert m["needs"] == pytest.approx(
            (m["tokens"] + 2) * (128 * m["bits"] + 16) / uses, rel=0.2
        )
        assert m["needs"] < 948 / 1024 * 6 + 1e-9
    envelope = np.array(found["curves"]["digital envelope"])
    assert (np.diff(envelope) >= 0).all()
    assert all((envelope >= np.array(found["curves"][k])).all() for k in kinds)
    assert found["questions"] == CLIPS * EACH


@pytest.mark.slow
def test_tables_and_figures_of_a_whole_study(made, tmp_path):
    """Every figure is drawn, and the page has a row for each method, variable and message."""
    study, ask, points = made
    found = {k: compute() for k, compute in experiments.parts(study).items()}
    found["measured"] = {k: compute() for k, compute in measured.parts(study, ask).items()}
    found |= {"loss_points": points, "surfaces": {k: vars(v) for k, v in study.surfaces.items()}}
    found["seconds_after_training"] = 60.0
    found = json.loads(json.dumps(found, default=np.ndarray.tolist), parse_constant=str)
    assert len(plots.draw(found, str(tmp_path / "network"))) == 11
    shown = "\n".join([*page.decisive(found), *page.tables(found)])
    assert all(f"| {name} |" in shown for name in study.methods)
    assert "| bandwidth and length | digital | own |" in shown and "| learned codebook |" in shown
