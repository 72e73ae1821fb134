"""What README and docs claim and code can check: numbers, figures, files, commands, examples."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import task_align
import task_avqa
import task_network
from benchmarks import efficiency, gpu, real_language_model, seeds, shapes, sweeps, videos
from benchmarks.experiments import EXPERIMENTS
from benchmarks.experiments.page import write_page
from modules import channel
from modules.network import allocation
from tests.helpers.network import analog, digital, problem
from tests.helpers.scripts import here
from utils.config import comments
from utils.network.page import decisive, tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def found(path: str) -> dict:
    return json.loads((ROOT / path).read_text())


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def measured(path: str):
    """Skips a test of numbers that are not there: none are shown until they are measured."""
    return pytest.mark.skipif(not (ROOT / path).exists(), reason=f"{path} is not measured yet")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_and_figures_exist(path):
    """Each picture, page, heading and file that a page links or names by its path is in the
    repository."""
    text = path.read_text()
    for link, heading in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text):
        headings = re.findall(
            r"^#+ (.+)$", (path.parent / link if link else path).read_text(), re.M
        )
        anchors = [re.sub(r"[^\w -]", "", said.lower()).replace(" ", "-") for said in headings]
        assert heading in anchors, (link, heading)
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    local = [link for link in links if not link.startswith("http")]
    for link in local:
        assert (path.parent / link).exists(), link
    for name in re.findall(
        r"`((?:modules|utils|tests|benchmarks|docs)/[\w./-]+\.(?:py|md|json))`", text
    ):
        assert (ROOT / name).is_file(), name


def test_the_readme_is_short():
    """A newcomer reads it in a few minutes."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_scripts_stay_short():
    """A task script is what a reader opens first."""
    for name, most in (("task_align.py", 170), ("task_avqa.py", 190), ("task_network.py", 190)):
        assert len((ROOT / name).read_text().splitlines()) <= most, name


def test_the_walk_is_short():
    """A clip's path from mp4 to answer passes at most 12 files."""
    named = re.findall(r"`([\w/]+\.py)`", page("walk"))
    assert len(named) == len(set(named)) == 12


def test_shape_table_is_the_one_that_the_code_gives():
    """The table of tensor shapes, both stages and presets, is what `benchmarks.shapes` traces, and
    that of channel uses what it counts."""
    assert shapes.table() in page("shapes") and shapes.uses() in page("shapes")


def test_paper_presets_hold_the_published_values():
    """The paper's hyperparameters stand in the published presets, those of its recipe in the
    comments of both scripts, and its sizes in the paper presets as well."""
    align, avqa = task_align.PRESETS["published"], task_avqa.PRESETS["published"]
    assert (align.batch, align.steps, align.lr, align.lr_min) == (32, 500, 1e-4, 1e-6)
    assert (align.snr_db, align.temperature, align.seed) == (10, 0.07, 3407)
    assert (align.visual_tokens, align.audio_tokens, align.caption_tokens) == (128, 128, 256)
    assert (avqa.batch, avqa.steps, avqa.lr, avqa.snr_db, avqa.seed) == (8, 300, 1e-4, 12, 1111)
    assert (avqa.lora_rank, avqa.lora_alpha, avqa.lora_dropout) == (4, 16, 0.1)
    assert avqa.lora_targets == ["q_proj", "v_proj"]
    assert align.receiver_width == avqa.receiver_width == 1024
    assert align.contrast == "special" and align.caption_weight == 0 and avqa.packed == 1
    for stage, script in ((align, task_align), (avqa, task_avqa)):
        assert stage.receiver == stage.text_receiver == "mlp"
        assert stage.compression == "sliding_window" and stage.warm_up == stage.clip == 0
        ours, said = script.PRESETS["paper"], comments(script.Config)
        for size in ("visual_tokens", "audio_tokens", "receiver_width", "batch", "snr_db", "seed"):
            assert getattr(ours, size) == getattr(stage, size), size
        for name, value in vars(stage).items():
            named = re.search(r"paper: ([\w.+-]+)", said[name])
            if named and isinstance(value, (int, float)) and not isinstance(value, bool):
                assert float(named[1]) == value, name


def test_beside_other_work_a_run_keeps_a_fifth_of_its_speed():
    """On two cores, beside four busy loops."""
    beside = found("benchmarks/efficiency.json")["contended"]
    for step in (beside, beside["stage1"]):
        assert step["contended_steps_per_s"] >= 0.2 * step["alone_steps_per_s"]


def test_table_of_speed_is_that_last_measured():
    """Every row of it is what the benchmark left."""
    lines = page("speed").splitlines()
    assert all(
        line in lines
        for line in efficiency.tables(found("benchmarks/efficiency.json")).splitlines()
    )


def test_table_of_a_gpu_is_that_last_measured():
    """docs/paper_preset.md shows what benchmarks/gpu.json holds."""
    lines = gpu.tables(found("benchmarks/gpu.json")).splitlines()
    said = page("paper_preset").splitlines()
    assert all(line in said for line in lines if line)


@measured("benchmarks/videos.json")
def test_table_of_videos_is_that_last_measured():
    """docs/paper_preset.md shows what benchmarks/videos.json holds."""
    lines = page("paper_preset").splitlines()
    assert all(line in lines for line in videos.table(found("benchmarks/videos.json")).splitlines())


@measured("benchmarks/seeds.json")
def test_table_of_seeds_is_that_last_measured():
    """Every row of it is what the benchmark left."""
    lines = page("results").splitlines()
    assert all(line in lines for line in seeds.tables(found("benchmarks/seeds.json")).splitlines())


def test_table_of_the_recipe_is_what_the_benchmark_trains_by():
    """Each hyperparameter in which it differs from the published one, with its value now."""
    table = real_language_model.recipe_table(real_language_model.Config())
    assert table in page("real_language_model")


@measured("benchmarks/real_language_model.json")
def test_tables_of_the_real_language_model_are_those_last_measured():
    """Every row of them is what the benchmark left, by the recipe that the page names."""
    results, said = found("benchmarks/real_language_model.json"), page("real_language_model")
    assert real_language_model.tables(results) in said
    longer = found("benchmarks/real_language_model_long.json")
    assert real_language_model.answers_tables(longer).rstrip() in said
    ours = real_language_model.recipes(real_language_model.Config())["recipe"]
    assert [*results["recipes"]["recipe"].values()] == [*ours]


@measured("imgs/results.json")
def test_the_page_of_results_is_that_of_the_committed_numbers(tmp_path):
    """imgs/README.md is what the sweeps write of imgs/results.json, with every figure in place."""
    results = found("imgs/results.json")
    assert results["cost"].keys() == EXPERIMENTS.keys()
    write_page(tmp_path / "page.md", results, *sweeps.sections(results))
    shown = (ROOT / "imgs/README.md").read_text()
    assert (tmp_path / "page.md").read_text() == shown
    claims = shown.split("## Claims")[1].split("\n## ")[0]
    said = page("results").splitlines()
    assert all(line in said for line in claims.splitlines() if line.startswith("|"))
    for picture in re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', shown):
        assert (ROOT / "imgs" / "".join(picture)).is_file(), picture


@measured("imgs/results.json")
def test_a_single_sweep_adds_to_the_committed_results():
    """`make figures` and a single experiment go on from what is committed: same seeds, schedule and
    hyperparameters as the preset's."""
    config = sweeps.PRESETS["mini"]
    plan = sweeps.Plan(config, *sweeps.stages(config))
    assert sweeps.earlier_results(ROOT / "imgs/results.json", plan)["cost"]


def test_kills_are_those_last_measured():
    """What the page on robustness says of kills is what benchmarks/kill_resume.py left."""
    stages = found("benchmarks/kill_resume.json")
    for stage in (stages["stage1"], stages["stage2"]):
        assert stage["kills"] == stage["resumed"] == 20 and stage["identical"]
        assert percent(stage["saving_share"], 1) == "0.2 %"
    assert "All 40 times" in page("robustness") and "Saving took 0.2 %" in page("robustness")


def test_odd_media_are_those_last_counted():
    """What the page on robustness says of odd media is what benchmarks/odd_media.py left: no file
    silently wrong, none that hung."""
    counted = found("benchmarks/odd_media.json")
    assert counted["files"] == 200 and counted["silent"] == counted["hangs"] == 0
    said = " ".join(page("robustness").split())
    assert f"Of the 200, {counted['right']} came out right and {counted['named']} damaged" in said


@measured("checkpoint/network-mini.json")
def test_numbers_of_the_network_page_are_those_last_measured():
    """Each table and the sentence that comes first are what task_network.py left, and within the
    study's criteria: gaps to the bound, seconds, agreement of predicted and measured losses."""
    study = found("checkpoint/network-mini.json")
    assert "\n".join([*decisive(study), "", *tables(study)]) in page("network")
    for link in study["vs_lower_bound"].values():
        for row in (link, link["many"]):
            assert row["mean_gap"] <= 0.01 and row["worst_gap"] <= 0.05
        assert link["instances"] == 100 and link["many"]["instances"] == 20
    assert study["seconds_1000_users"]["slowest"] < 10 and study["seconds_after_training"] < 1200
    assert len(study["figures"]) == 11 and all((ROOT / path).is_file() for path in study["figures"])
    assert all(of["r2"] >= 0.8 for of in study["measured"]["agreement"].values())


def test_parameters_of_the_network_page_are_those_of_the_script():
    """The table says what is simulated."""
    c, said = task_network.PRESETS["mini"], page("network")
    for row in (
        f"| bandwidth of all users | {c.bandwidth / 1e3:g} kHz for {c.users} |",
        f"| weight of a second against a nat | {c.weight:g} |",
        f"| power of a handset | {c.user_power_dbm:g} dBm |",
        f"| carrier | {c.carrier_ghz:g} GHz |",
        f"| users indoors | {100 * c.indoors:g} % |",
        f"| distances | 35 to {c.radius:g} m |",
        f"| noise | −{-c.noise_dbm_per_hz:g} dBm/Hz, noise figure {c.noise_figure_db:g} dB |",
        f"| fading | {c.fading.capitalize()}, one fade a drop |",
        f"10 and {c.server_flops / 1e9:g} GFLOP/s",
    ):
        assert row in said, row
    assert c.device_flops == 1e10


@pytest.mark.parametrize("script", ["task_align.py", "task_avqa.py", "task_network.py"])
def test_help_says_what_each_flag_means(script):
    """`--help` shows the docstring's lines as they are, and the comment beside each field."""
    done = here(script, "--help")
    assert f"\n    python {script}" in done.stdout
    said = " ".join(done.stdout.split())
    assert "folder of figures, or none" in said and "one of awgn, rayleigh, rician, none" in said


@pytest.mark.parametrize(
    "script", [task_align, task_avqa, task_network, sweeps, real_language_model]
)
def test_every_hyperparameter_is_explained(script):
    """A field without a comment would be a flag without help."""
    assert comments(script.Config).keys() == {f.name for f in fields(script.Config)}


def example(name: str) -> str:
    """The example of docs/extending.md that defines `name`."""
    return re.search(rf"```python\n(def {name}.*?)```", page("extending"), re.S)[1]


def test_ones_own_channel(monkeypatch):
    """The example's gain has a mean power of 1, and is a channel by its name."""
    monkeypatch.setattr(channel, "CHANNELS", dict(channel.CHANNELS))
    exec(example("shadowed"), vars(channel))
    noise = torch.Generator().manual_seed(0)

    def draw():
        return torch.randn(200_000, dtype=torch.complex64, generator=noise)

    power = channel.CHANNELS["shadowed"](draw, 0.0).abs().square()
    assert power.mean().item() == pytest.approx(1, abs=0.02)
    sent = torch.randn(64, 4, 32, generator=noise)
    received = channel.Channel("shadowed")(sent, 30.0, generator=noise)
    assert 0 < (received - sent).square().mean() < 0.2


def network_example(name: str) -> dict:
    """The example of docs/network.md that defines `name`, run where allocations are made."""
    code = re.search(rf"```python\n(def {name}.*?)```", page("network"), re.S)[1]
    names = vars(allocation) | {"np": np, "replace": replace}
    exec(code, names)
    return names


def test_ones_own_allocation():
    """The example's allocation is feasible and not below the joint one's bound."""
    for link in (analog(), digital()):
        asked = problem(link)
        own = network_example("favour_the_weak")["favour_the_weak"](asked)
        checked = allocation.given(asked, own.option, own.bandwidth, own.power, own.seconds)
        assert checked.objective == own.objective >= allocation.allocate(asked).bound


def test_ones_own_objective():
    """By the example's objective at least as many users are served as by the sum of losses, and
    what it tells is their share."""
    asked, limit = problem(analog(), weight=0.0, deadline=0.02, bandwidth=3e5), 0.2
    own = network_example("unserved")["unserved"](asked, limit)
    found, usual = allocation.allocate(own), allocation.allocate(asked)
    assert (found.loss > 0).mean() <= (usual.loss > limit).mean()
    assert found.bound <= found.objective == pytest.approx((found.loss > 0).mean())
