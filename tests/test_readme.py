"""The README's claims that code can check."""

import json
import re
from pathlib import Path

import numpy as np

import task_align
import task_avqa
import task_network
from benchmarks import efficiency, shapes, sweeps
from benchmarks.experiments import EXPERIMENTS
from benchmarks.experiments.page import write_page
from modules.network import baselines as allocation_baselines
from modules.network.allocation import allocate
from modules.network.loss_curve import LossCurve
from utils.network.study import Study

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_shape_table_is_the_one_that_the_code_gives():
    """The table of tensor shapes, both stages and presets, is what `benchmarks.shapes` traces."""
    assert shapes.table() in README


def test_every_figure_exists():
    """Each picture that the README shows is in the repository."""
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture


def test_paper_presets_hold_the_published_values():
    """DESIGN's hyperparameters of the paper stand in the paper presets."""
    align, avqa = task_align.PRESETS["paper"], task_avqa.PRESETS["paper"]
    assert (align.batch, align.steps, align.lr, align.lr_min) == (32, 500, 1e-4, 1e-6)
    assert (align.snr_db, align.temperature, align.seed) == (10, 0.07, 3407)
    assert (align.visual_tokens, align.audio_tokens, align.caption_tokens) == (128, 128, 256)
    assert (avqa.batch, avqa.steps, avqa.lr, avqa.snr_db, avqa.seed) == (8, 300, 1e-4, 12, 1111)
    assert (avqa.lora_rank, avqa.lora_alpha, avqa.lora_dropout) == (4, 16, 0.1)
    assert avqa.lora_targets == ["q_proj", "v_proj"]
    assert align.receiver_width == avqa.receiver_width == 1024


def test_scripts_stay_short():
    """A task script is what a reader opens first."""
    for name in ("task_align.py", "task_avqa.py", "task_network.py"):
        assert len((ROOT / name).read_text().splitlines()) < 270


def test_speed_tables_are_those_last_measured():
    """Every figure of the README's section on speed is what the benchmark left."""
    result = json.loads((ROOT / "benchmarks" / "efficiency.json").read_text())
    lines = (ROOT / "README.md").read_text().splitlines()
    for line in efficiency.tables(result).splitlines():
        assert line in lines


def test_the_page_of_results_is_that_of_the_committed_numbers(tmp_path):
    """imgs/README.md is what the sweeps write of imgs/results.json, with every figure in place."""
    results = json.loads((ROOT / "imgs/results.json").read_text())
    assert results["cost"].keys() == EXPERIMENTS.keys()
    sections = [experiment.page(results) for experiment in EXPERIMENTS.values()]
    write_page(tmp_path / "page.md", results, sections)
    page = (ROOT / "imgs/README.md").read_text()
    assert (tmp_path / "page.md").read_text() == page
    for picture in re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', page):
        assert (ROOT / "imgs" / "".join(picture)).is_file(), picture


def test_commands_of_the_page_are_those_of_the_presets():
    """A plain command of the page makes what stands there: seeds and schedule are the preset's."""
    results = json.loads((ROOT / "imgs/results.json").read_text())
    preset = sweeps.PRESETS[results["preset"]]
    for field in ("seeds", "align_steps", "steps", "batch", "temperature"):
        assert results[field] == getattr(preset, field), field


def test_kills_are_those_last_measured():
    """What the README says of kills is what benchmarks/kill_resume.py left."""
    found = json.loads((ROOT / "benchmarks/kill_resume.json").read_text())
    assert found.keys() == {"stage1", "stage2"}
    for stage in found.values():
        assert stage["kills"] == stage["resumed"] == 20 and stage["identical"]
        assert stage["saving_share"] < 0.05 and f"{stage['saving_share']:.1%}" == "0.2%"


def test_network_table_is_that_last_measured():
    """What the README says of the allocation is what task_network.py left, within its criteria."""
    found = json.loads((ROOT / "checkpoint/network-mini.json").read_text())
    optimum = found["vs_exhaustive"]
    assert optimum["instances"] == 100 and optimum["within_1_percent"] >= 95
    assert f"{optimum['within_1_percent']} of 100 random networks" in README
    assert f"worst gap {optimum['worst_gap']:.3%}".replace("%", " %") in README
    assert found["seconds_1000_users"] < 10
    assert f"| 1,000 users | {found['seconds_1000_users']:.1f} s |" in README
    for row in found["vs_baselines"].values():
        assert row["mean_gain"] > row["ci95"] > 0
        assert f"{100 * row['mean_gain']:.1f} ± {100 * row['ci95']:.1f} %" in README
    fits = found["loss_curves"]
    assert f"explains {fits['measured']['r2']:.0%} of".replace("%", " %") in README
    assert f"its fit explains {fits['sweep']['r2']:.0%}".replace("%", " %") in README


def test_ones_own_allocation_as_the_readme_says():
    """The function of the section on many users works and is feasible."""
    code = re.search(r"```python\n(def favour_the_weak.*?)```", README, re.S)[1]
    names = vars(allocation_baselines) | {"np": np}
    exec(code, names)
    curve = LossCurve(0.3, {"visual": 0.04, "audio": 0.02}, {"visual": 0.9, "audio": 1.0}, 0.7)
    study = Study(task_network.PRESETS["mini"], task_avqa.PRESETS["mini"], 128, curve)
    problem = study.drop(0)
    found = names["favour_the_weak"](problem)
    shares = found.lengths, found.bandwidth, found.power
    checked = allocation_baselines.given(problem, *shares)
    assert checked.objective == found.objective >= allocate(problem).objective
