"""The sweeps as a user runs them, on a very small mini world: all experiments, once."""

import csv
import json
import re
import shutil
from dataclasses import replace

import pytest

from benchmarks import sweeps
from benchmarks.experiments import EXPERIMENTS, ablations, lengths, page, snr
from benchmarks.experiments.plan import Plan
from tests.helpers.scripts import ROOT, apart, here, refused
from utils.runs import unique

SMALL = ("--align_steps", 4, "--steps", 4, "--batch", 8, "--validations", 2,
         "--align_clips", 24, 8, 12, "--avqa_clips", 24, 8, 12,
         "--lengths", 4, 8, "--snr_db", -6, 12, "--channels", "awgn")  # fmt: skip


def sweep(folder, *flags, run=here, **options):
    """A small sweep of the mini world beside `folder`, into it."""
    places = ("--data", folder.parent / "mini", "--cache", folder.parent / "cache")
    places += ("--out", folder / "checkpoint", "--figures", folder / "imgs")
    return run("benchmarks/sweeps.py", *places, *SMALL, *flags, **options)


@pytest.fixture(scope="module")
def folder(mini_world):
    return mini_world / "sweeps"


@pytest.fixture(scope="module")
def swept(folder):
    return sweep(folder, "--seeds", 1, 2)


@pytest.fixture(scope="module")
def results(folder, swept):
    return json.loads((folder / "imgs/results.json").read_text())


def runs_of(folder):
    return sorted((folder / "checkpoint/sweeps/mini").glob("*-seed*.json"))


@pytest.mark.slow
def test_every_figure_is_drawn(folder, swept):
    """The published names among them; each as PNG and PDF, and named at the end."""
    names = ("Temp", "000", "003", "007", "013", "snr", "token_length", "ablations")
    for name in names:
        for suffix in ("png", "pdf"):
            assert (folder / f"imgs/{name}.{suffix}").stat().st_size > 3000
        assert f"imgs/{name}.png" in swept.stdout
    for name in ("tsne.html", "tsne.csv", "token_length.csv", "README.md"):
        assert f"imgs/{name}" in swept.stdout


@pytest.mark.slow
def test_results_have_the_published_form(results):
    """Seeds, the four models' curves over SNR, and the ratio of steps, as others read them."""
    assert results["seeds"] == [1, 2]
    assert results["snr_sweep"]["snr_db"] == [-6, 12]
    for name in ("aligned", "unaligned", "no_channel", "question_only"):
        curve = results["snr_sweep"][name]
        assert len(curve["mean"]) == len(curve["ci95"]) == 2
        assert all(0 <= m <= 1 for m in curve["mean"])
    ratio = results["alignment_steps_ratio"]
    assert ratio is None or 0 < ratio <= 1
    ratios = results["temperatures"]["0.07"]["steps_ratio"]
    assert len(ratios) == 2 and (ratio is None) == (None in ratios)
    assert results["temperatures"].keys() == {"none", "0.03", "0.07", "0.13"}
    assert results["temperatures"]["none"]["gain"]["mean"] == [0]
    assert results["temperatures"]["none"]["steps_ratio"] == [1, 1]
    assert results["ablations"].keys() == ablations.PARTS.keys()
    assert results["cost"].keys() == EXPERIMENTS.keys()


@pytest.mark.slow
def test_numbers_are_those_of_the_runs(folder, results):
    """A mean over seeds is the mean of what the runs wrote, of the right runs."""
    metrics = {p.stem: json.loads(p.read_text()) for p in runs_of(folder)}

    def mean(label, *keys):
        values = [metrics[f"{label}-seed{seed}"] for seed in (1, 2)]
        for key in keys:
            values = [value[key] for value in values]
        return pytest.approx(sum(values) / 2)

    found = results["snr_sweeps"]["awgn-range"]
    assert found["aligned"]["mean"][0] == mean("avqa-aligned-awgn-range", "accuracy_by_snr", "-6")
    assert found["no_channel"]["mean"][1] == mean("avqa-no-channel", "accuracy", "overall")
    assert results["snr_sweep"]["aligned"]["mean"][1] == mean("avqa-tau0.07", "accuracy", "overall")
    by_length = results["token_length_sweep"]["uniform"]["audio"]["accuracy"]
    assert by_length["mean"][0] == mean("avqa-uniform-v8-a4", "accuracy", "overall")
    ablated = results["ablations"]["one-way contrastive loss"]
    assert ablated["audio_to_text_r1"]["mean"] == mean(
        "align-one-way-contrastive-loss", "retrieval", "audio_to_text_r1"
    )
    features = results["temperatures"]["0.03"]["features"]
    assert features["gap_audio"]["mean"] == mean("align-tau0.03", "features", "after", "gap_audio")


@pytest.mark.slow
def test_sides_differ_in_nothing_else(folder, results):
    """Runs that are compared have the same seed, clips, schedule and hyperparameters, but for what
    is compared."""
    config = {p.stem: json.loads(p.read_text())["config"] for p in runs_of(folder)}

    def differ(a, b):
        return {k for k in config[a] if config[a][k] != config[b][k]} - {"name"}

    for seed in (1, 2):
        full = f"avqa-tau0.07-seed{seed}"
        assert differ(full, f"avqa-unaligned-seed{seed}") == {"init"}
        ranged = (f"avqa-{side}-awgn-range-seed{seed}" for side in ("aligned", "unaligned"))
        assert differ(*ranged) == {"init"}
        extra = {"validate_every", "test_snr_db"}  # more is looked at in the full run
        assert differ(full, f"avqa-no-lora-seed{seed}") - extra == {"lora_rank"}
        assert differ(full, f"avqa-visual-only-seed{seed}") - extra == {"modalities"}
        assert differ(full, f"avqa-uniform-v4-a8-seed{seed}") - extra == {
            "compression",
            "visual_tokens",
        }
        assert differ(f"align-tau0.03-seed{seed}", f"align-tau0.13-seed{seed}") == {"temperature"}


@pytest.mark.slow
def test_lengths_are_saved_for_others_to_fit(folder, results):
    """A row a run: lengths, validation loss and channel uses of both modalities."""
    rows = list(csv.DictReader(open(folder / "imgs/token_length.csv")))
    assert len(rows) == 2 * (3 + 3)  # seeds, lengths (8, 8), (4, 8) and (8, 4), two compressions
    for row in rows:
        tokens = 3 + int(row["visual_tokens"]) + int(row["audio_tokens"])
        assert int(row["channel_uses"]) == 64 * tokens
        assert float(row["validation_loss"]) > 0 and 0 <= float(row["accuracy"]) <= 1
    losses = {
        float(row["validation_loss"])
        for row in rows
        if (row["compression"], row["visual_tokens"], row["audio_tokens"]) == ("uniform", "4", "8")
    }
    curve = results["token_length_sweep"]["uniform"]["visual"]["validation_loss"]
    assert curve["mean"][0] == pytest.approx(sum(losses) / 2)


@pytest.mark.slow
def test_the_page_shows_what_was_found(folder, results):
    """Each figure with its command; no number that the results do not hold."""
    shown = (folder / "imgs/README.md").read_text()
    for picture in re.findall(r'\]\(([^)]+png)\)|src="([^"]+)"', shown):
        assert (folder / "imgs" / "".join(picture)).is_file()
    for name, experiment in results["cost"].items():
        assert experiment["command"].startswith(f"python benchmarks/sweeps.py --only {name}")
        assert "--steps 4" in experiment["command"] and experiment["command"] in shown
        assert 0 < experiment["ran"] <= experiment["runs"] and experiment["minutes"] > 0
    assert f"{100 * results['snr_sweep']['aligned']['mean'][0]:.1f} ±" in shown
    for published in ("13.7 %", "71.5 %", "80.9 %"):
        assert published in shown


@pytest.mark.slow
def test_a_second_sweep_runs_nothing_and_finds_the_same(folder, results):
    """Finished runs are skipped, also those of a single experiment; what stands is kept."""
    written = {path: path.stat().st_mtime_ns for path in runs_of(folder)}
    sweep(folder, "--seeds", 1, 2, "--only", "snr")
    assert {path: path.stat().st_mtime_ns for path in runs_of(folder)} == written
    again = json.loads((folder / "imgs/results.json").read_text())
    assert again == results


def test_experiments_share_runs():
    """Where experiments agree a run is made once, and no two of one name differ."""
    plan = Plan(sweeps.PRESETS["mini"], *sweeps.stages(sweeps.PRESETS["mini"]))
    parts = {name: unique(experiment.runs(plan)) for name, experiment in EXPERIMENTS.items()}
    every = unique([run for part in parts.values() for run in part])
    assert len(every) < sum(map(len, parts.values()))
    seeds = len(plan.config.seeds)
    # temperatures and none; 12 models in the SNR sweep beside the two that stand; lengths of two
    # modalities and compressions; ablations
    answered = [run for run in every if run.script == "task_avqa"]
    assert len(answered) == seeds * (4 + 12 + 17 + 6)
    assert {run.config.data for run in every} == {"datasets/mini/VALOR", "datasets/mini/MUSIC-AVQA"}


def test_paper_preset_plans_the_published_lengths():
    """2 to 128 tokens, on the paper's own schedule and models."""
    config = sweeps.PRESETS["paper"]
    plan = Plan(config, *sweeps.stages(config))
    runs = lengths.runs(plan)
    assert {run.config.preset for run in runs} == {"paper"}
    swept = {run.config.visual_tokens for run in runs}
    assert {min(swept), max(swept)} == {2, 128}
    assert plan.avqa_config.data == "datasets/MUSIC-AVQA" and plan.avqa_config.batch == 8
    assert {run.config.channel for run in snr.runs(plan)} == {"awgn", "rayleigh", "none"}
    assert plan.align_config.steps == 500 and plan.avqa_config.steps == 300


def test_commands_name_what_differs_from_the_preset():
    """A section's command makes what the section shows; the plain one stands for the preset."""
    config = replace(sweeps.PRESETS["mini"], only=["temperatures", "snr"])
    plain = "python benchmarks/sweeps.py --only"
    assert sweeps.command("temperatures", config) == f"{plain} temperatures"
    config = replace(config, temperatures=[0.05, 0.2])
    said = f"{plain} temperatures --temperatures 0.05 0.2"
    assert sweeps.command("temperatures", config) == said
    config = replace(sweeps.PRESETS["paper"], seeds=[4, 5], channels=["rician"], out="elsewhere")
    said = f"{plain} snr --preset paper --seeds 4 5 --channels rician"
    assert sweeps.command("snr", config) == said


def rising(*points):
    return {"values": [list(point) for point in points]}


def test_curves_are_judged_between_all_points():
    """A slow fall is a fall, though no step of it is; noise is not."""
    slow = [(0.60 - 0.005 * i + e, 0.61 - 0.005 * i, 0.59 - 0.005 * i) for i, e in
            enumerate((0.0, 0.004, -0.003, 0.004, 0.0))]  # fmt: skip
    assert (0, 4) in page.falls(rising(*slow))
    assert page.falls(rising(*slow[::-1])) == []
    noise = rising((0.3, 0.35, 0.33), (0.34, 0.31, 0.33), (0.29, 0.36, 0.34))
    assert page.falls(noise) == page.differs(noise) == []


@pytest.mark.slow
def test_one_seed_is_enough_to_draw(folder, swept):
    """Without intervals, and settling nothing."""
    flags = ("--seeds", 1, "--only", "ablations", "temperatures")
    done = sweep(folder, *flags, ok=False)  # it would replace a part of what stands
    refused(done, "name another --figures folder")
    sweep(folder, *flags, "--figures", folder / "one")
    found = json.loads((folder / "one/results.json").read_text())
    assert found["seeds"] == [1] and "snr_sweep" not in found
    assert found["ablations"]["no LoRA"]["accuracy"]["ci95"] is None
    assert found["ablations"]["no LoRA"]["gain"]["verdict"] == ["undecided"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--only", "snrs"), "--only snrs: unknown"),
        (("--snr_range", 3), "snr_range"),
        (("--compressions", "zip"), "zip"),
        (("--temperatures", 0.07, 0.074), "--temperatures"),
        (("--validations", 0), "--validations"),
        (("--seeds", 1, 1), "--seeds [1, 1]"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, flags, says):
    """What is wrong is named; nothing is run."""
    refused(sweep(tmp_path / "sweeps", *flags, ok=False), says)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ones_own_compression_enters_the_sweep_by_name(tmp_path, folder, swept):
    """The worked example of docs/extending.md, word for word, in a copy of the code."""
    copy = tmp_path / "copy"
    for part in ("modules", "utils", "benchmarks", "checkpoint/mini"):
        shutil.copytree(ROOT / part, copy / part)
    for script in ROOT.glob("task_*.py"):
        shutil.copy(script, copy)
    guide = (ROOT / "docs/extending.md").read_text()
    example = re.search(r"```python\n(def max_pool.*?)```", guide, re.DOTALL)[1]
    with open(copy / "modules/token_compression.py", "a") as file:
        file.write("\n\n" + example)
    flags = ("--only", "lengths", "--seeds", 1, "--compressions", "sliding_window", "max_pool")
    places = ("--figures", tmp_path / "imgs", "--out", tmp_path / "checkpoint")
    sweep(folder, *flags, *places, run=apart, root=copy)
    found = json.loads((tmp_path / "imgs/results.json").read_text())["token_length_sweep"]
    assert len(found["max_pool"]["visual"]["accuracy"]["mean"]) == 2
    assert found["gain"].keys() == {"max_pool"}
    assert "max pool" in (tmp_path / "imgs/README.md").read_text()
