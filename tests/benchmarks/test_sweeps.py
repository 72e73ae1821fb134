"""The sweeps as a user runs them, on a very small mini world: all experiments, once."""

import csv
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import sweeps
from benchmarks.experiments import EXPERIMENTS, ablations, claims, lengths, snr
from benchmarks.experiments.plan import Plan
from tests.helpers.scripts import ROOT, apart, here, refused
from utils.report.avqa import read_answers
from utils.report.statistics import crossed, interval
from utils.runs import unique

SMALL = ("--align_steps", 4, "--steps", 4, "--batch", 8, "--validations", 2, "--tokens", 4,
         "--length_steps", 4, "--length_batch", 8, "--few", 5,
         "--align_clips", 24, 8, 12, "--avqa_clips", 24, 8, 12, "--lengths", 2, 4, 8,
         "--snr_db", -6, 12, "--channels", "awgn",
         "--compressions", "sliding_window", "--baselines", "uniform")  # fmt: skip
LENGTHS = "avqa-lengths-compression"  # what runs of one model for all lengths are called


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


def planned(preset: str, **changes) -> Plan:
    config = replace(sweeps.PRESETS[preset], **changes)
    return Plan(config, *sweeps.stages(config))


def label(**changes) -> str:
    """The name of a run of stage 2, without its seed."""
    (run,) = planned("mini", seeds=[1], tokens=4).answering(**changes)
    return run.name.split("/")[-1].removesuffix("-seed1")


def answers(folder, name: str, snr: str) -> tuple[list[str], np.ndarray]:
    """The clips, and which answers are right (seeds, questions)."""
    stem = folder / "checkpoint/sweeps/mini"
    found = [read_answers(stem / f"{name}-seed{seed}.answers.csv") for seed in (1, 2)]
    return found[0][0], np.stack([right[snr] for _, right in found]).astype(float)


@pytest.mark.slow
def test_every_figure_is_drawn(folder, swept):
    """The published names among them; each as PNG and PDF, and named at the end."""
    names = ("Temp", "000", "003", "007", "013", "snr", "token_length", "ablations")
    for name in (*names, "token_length_differences", "claims"):
        for suffix in ("png", "pdf"):
            assert (folder / f"imgs/{name}.{suffix}").stat().st_size > 3000
        assert f"imgs/{name}.png" in swept.stdout
    for name in ("tsne.html", "tsne.csv", "token_length.csv", "README.md"):
        assert f"imgs/{name}" in swept.stdout


@pytest.mark.slow
def test_runs_are_counted_and_forecast(folder, swept, results):
    """How many are left stands first, how long they take once some have ended."""
    counts = re.findall(r"(\d+) runs, (\d+) of them left(: about \d+ minutes)?", swept.stdout)
    every, left, about = zip(*counts, strict=True)
    assert set(every) == {str(len(runs_of(folder)))} == {left[0]}
    assert not about[0] and all(about[1:-1]) and left[-1] == "0"


@pytest.mark.slow
def test_results_have_the_published_form(results):
    """DESIGN's keys: seeds, the four models' curves over SNR, the pooled gain, the curves over
    token length and the ratio of steps; and the commit."""
    assert results["seeds"] == [1, 2] and results["commit"]
    assert results["snr_sweep"]["snr_db"] == [-6, 12]
    for name in ("aligned", "unaligned", "no_channel", "question_only"):
        curve = results["snr_sweep"][name]
        assert len(curve["mean"]) == len(curve["ci95"]) == 2
        assert all(0 <= m <= 1 for m in curve["mean"])
    assert results["alignment_gain"].keys() == {"points", "ci95", "seeds"}
    assert results["token_length_sweep"].keys() == {"sliding_window", "uniform"}
    for found in results["token_length_sweep"].values():
        for modality in ("visual", "audio"):
            assert found[modality]["lengths"] == [2, 4, 8]
            assert len(found[modality]["loss"]) == len(found[modality]["accuracy"]) == 3
    log_ratio = results["alignment_log_steps"]
    assert results["alignment_steps_ratio"] == pytest.approx(math.exp(log_ratio["mean"]))
    assert len(log_ratio["values"]) == 2
    assert results["temperatures"].keys() == {"none", "0.03", "0.07", "0.13"}
    none = results["temperatures"]["none"]
    assert none["gain"]["mean"] == 0 and none["log_steps"]["values"] == [0, 0]
    assert results["cost"].keys() == EXPERIMENTS.keys()
    assert all(cost["commit"] for cost in results["cost"].values())


@pytest.mark.slow
def test_numbers_are_those_of_the_runs(folder, results):
    """A mean over seeds is the mean of what the runs wrote, of the right runs."""
    metrics = {p.stem: json.loads(p.read_text()) for p in runs_of(folder)}

    def mean(name, *keys):
        values = [metrics[f"{name}-seed{seed}"] for seed in (1, 2)]
        for key in keys:
            values = [value[key] for value in values]
        return pytest.approx(sum(values) / 2)

    found = results["snr_sweep"]
    assert found["unaligned"]["mean"][0] == mean("avqa-unaligned", "accuracy_by_snr", "-6")
    assert found["no_channel"]["mean"][1] == mean("avqa-channel-none", "accuracy", "overall")
    assert found["aligned"]["mean"][1] == mean("avqa", "accuracy", "overall")
    clean = results["question_sweep"]["clean"]
    assert clean["mean"][0] == mean("avqa-question_snr_db-inf", "accuracy_by_snr", "-6")
    by_length = results["token_length_sweep"]["uniform"]["audio"]
    run, pair = f"{LENGTHS}-uniform", "4x2"  # visual by audio tokens
    assert by_length["accuracy"][0] == mean(run, "by_lengths", pair, "accuracy")
    assert by_length["loss"][0] == mean(run, "by_lengths", pair, "validation_loss")
    ablated = results["ablations"]["one-way contrastive loss"]
    key = "audio_to_text_r1"
    assert ablated[key]["mean"] == mean("align-one_way-True", "retrieval", key)
    features = results["temperatures"]["0.03"]["features"]["gap_audio"]
    assert features["mean"] == mean("align-temperature-0.03", "features", "after", "gap_audio")


@pytest.mark.slow
def test_differences_are_paired_by_seed_and_by_clip(folder, results):
    """The gain at an SNR and over all of them, and of a compression over another at all lengths,
    are those of the questions' outcomes, seed by seed."""
    gaps = []
    for i, level in enumerate(("-6", "12")):
        clips, aligned = answers(folder, "avqa", level)
        _, unaligned = answers(folder, "avqa-unaligned", level)
        gaps.append(aligned - unaligned)
        found = results["alignment_gains"]["awgn"]["by_snr"][i]
        assert found == pytest.approx(crossed(gaps[-1], clips))
    pooled = crossed(np.mean(gaps, axis=0), clips)
    assert results["alignment_gains"]["awgn"]["pooled"] == pytest.approx(pooled)
    assert results["alignment_gain"]["points"] == pytest.approx(100 * pooled["mean"])
    assert results["alignment_gain"]["ci95"] == pytest.approx(100 * pooled["ci95"])

    each = []
    for how in ("sliding_window", "uniform"):
        pairs = ("2x4", "4x4", "8x4", "4x2", "4x4", "4x8")
        right = [answers(folder, f"{LENGTHS}-{how}", pair)[1] for pair in pairs]
        each.append(np.mean(right, axis=0))
    found = results["compression_gains"]["sliding_window less uniform"]
    assert found == pytest.approx(crossed(each[0] - each[1], clips))


@pytest.mark.slow
def test_the_loss_falls_are_paired_by_seed(results, folder):
    """From the shortest to the longest, and between neighbours, of which it is the sum."""
    found = results["token_length_falls"]["sliding_window"]["visual"]
    metrics = {p.stem: json.loads(p.read_text()) for p in runs_of(folder)}
    by_lengths = [metrics[f"{LENGTHS}-sliding_window-seed{seed}"]["by_lengths"] for seed in (1, 2)]
    ends = [[of[pair]["validation_loss"] for pair in ("2x4", "8x4")] for of in by_lengths]
    mean, width = interval([short - long for short, long in ends])
    assert (found["whole"]["mean"], found["whole"]["ci95"]) == pytest.approx((mean, width))
    parts = [part["mean"] for part in found["neighbours"]]
    assert len(parts) == 2 and sum(parts) == pytest.approx(mean)


@pytest.mark.slow
def test_sides_differ_in_nothing_else(folder, results):
    """Runs that are compared have the same seed, clips, schedule and hyperparameters, but for what
    is compared."""
    config = {p.stem: json.loads(p.read_text())["config"] for p in runs_of(folder)}

    def differ(a, b):
        one, other = (config[f"{name}-seed1"] for name in (a, b))
        return {k for k in one if one[k] != other[k]} - {"name"}

    assert differ("avqa", "avqa-unaligned") == {"init"}
    assert differ("avqa", "avqa-question_snr_db-inf") == {"question_snr_db"}
    extra = {"validate_every", "test_snr_db"}  # more is looked at in the run as it stands
    assert differ("avqa", "avqa-lora_rank-0") - extra == {"lora_rank"}
    assert differ("avqa", "avqa-modalities-visual") == {"modalities"}
    assert differ("avqa", label(compression="sliding_window")) - extra == {"compression", "init"}
    one, other = (f"{LENGTHS}-{how}" for how in ("sliding_window", "uniform"))
    assert differ(one, other) == {"compression", "init"}
    assert differ("align", "align-compression-uniform") == {"compression"}
    assert differ("align", "align-temperature-0.13") == {"temperature"}
    assert differ("align", "align-one_way-True") == {"one_way"}
    init = config[f"{LENGTHS}-uniform-seed1"]["init"]
    assert init.endswith("align-compression-uniform-seed1.pth")


@pytest.mark.slow
def test_lengths_are_saved_for_others_to_fit(folder, results):
    """A row a model and pair of lengths: these, validation loss, and channel uses of a clip."""
    rows = list(csv.DictReader(open(folder / "imgs/token_length.csv")))
    # Two seeds; (4, 4), and 2 or 8 of either modality with 4 of the other; two compressions
    assert len(rows) == 2 * (1 + 4) * 2
    for row in rows:
        tokens = 3 + int(row["visual_tokens"]) + int(row["audio_tokens"])
        assert int(row["channel_uses"]) == 64 * tokens
        assert float(row["validation_loss"]) > 0 and 0 <= float(row["accuracy"]) <= 1
        assert row["snr_db"] == "12.0"
    losses = {
        float(row["validation_loss"])
        for row in rows
        if (row["compression"], row["visual_tokens"], row["audio_tokens"]) == ("uniform", "2", "4")
    }
    curve = results["token_length_sweep"]["uniform"]["visual"]["loss"]
    assert curve[0] == pytest.approx(sum(losses) / 2)


@pytest.mark.slow
def test_the_page_shows_what_was_found(folder, results):
    """Each figure with its command; every claim with its verdict; no number that the results do
    not hold."""
    shown = (folder / "imgs/README.md").read_text()
    for picture in re.findall(r'\]\(([^)]+png)\)|src="([^"]+)"', shown):
        assert (folder / "imgs" / "".join(picture)).is_file()
    for name, experiment in results["cost"].items():
        assert experiment["command"].startswith(f"python benchmarks/sweeps.py --only {name}")
        assert "--steps 4" in experiment["command"] and experiment["command"] in shown
        assert 0 < experiment["ran"] <= experiment["runs"] and experiment["minutes"] > 0
    assert len(results["claims"]) >= 7
    for claim in results["claims"]:
        (row,) = [line for line in shown.splitlines() if line.startswith(f"| {claim['claim']} |")]
        assert f"**{claim['verdict']}**" in row and "python benchmarks/sweeps.py" in row
    gain = results["alignment_gain"]
    assert f"{gain['points']:+.1f} ± {gain['ci95']:.1f} points of accuracy" in shown
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
    """Where experiments agree a run is made once, and no two of one name differ; one model a seed
    serves all token lengths, and one alignment all SNRs."""
    plan = planned("mini")
    parts = {name: unique(experiment.runs(plan)) for name, experiment in EXPERIMENTS.items()}
    every = unique([run for part in parts.values() for run in part])
    assert len(every) < sum(map(len, parts.values()))
    c = plan.config
    # By compression one alignment and one model for all lengths
    sides = len(c.seeds) * len(c.compressions) + c.few * len(c.baselines)
    assert len(parts["lengths"]) == sides * (1 + 1)
    starts = {run.after for run in every if run.script == "task_avqa"}
    from_one = [run for run in every if run.after.endswith("/align-seed11")]
    assert len(from_one) >= 7 and len(starts) < len(every) / 2
    assert {run.config.data for run in every} == {"datasets/mini/VALOR", "datasets/mini/MUSIC-AVQA"}
    few = {run.config.seed for run in every if "one_way" in run.name}
    assert few == set(plan.config.seeds[: plan.config.few])


def test_the_default_sweep_is_the_papers_budget_on_fresh_seeds():
    """Ten seeds that no choice was made with, 2,400 questions a run, the published SNRs."""
    config = sweeps.PRESETS["mini"]
    assert len(config.seeds) == 10 and not {1, 2, 3} & set(config.seeds)
    assert config.steps * config.batch == 2400 and config.lengths == [1, 4, 16, 64]
    plan = planned("mini")
    (pairs,) = {tuple(run.config.test_lengths) for run in lengths.answering(plan, "grid")}
    assert pairs == ("1x16", "4x16", "16x16", "64x16", "16x1", "16x4", "16x64")
    aligned = plan.answering()[0].config
    assert (aligned.visual_tokens, aligned.audio_tokens) == (16, 16)
    assert aligned.test_snr_db == [-12, -6, 0, 6, 12, 18]


def test_a_change_reaches_the_stages_that_it_concerns():
    """Stage 1 is trained with what has weights, with the compression and with its own losses; not
    with lengths, channels or what stage 2 alone has. What changes nothing is no other run."""
    plan = planned("mini", seeds=[1])
    names = {
        "align-seed1": {"visual_tokens": 4, "channel": "rayleigh", "lora_rank": 0},
        "align-compression-uniform-seed1": {"compression": "uniform", "audio_tokens": 4},
        "align-contrastive_weight-0.0-seed1": {"contrastive_weight": 0.0, "lora_rank": 0},
    }
    for name, changes in names.items():
        (first, second) = plan.both(**changes)
        assert first.name == second.after == f"sweeps/mini/{name}"
        own = {k: v for k, v in changes.items() if hasattr(second.config, k)}
        assert {k: getattr(second.config, k) for k in own} == own
    stands = plan.avqa_config
    assert plan.both(channel=stands.channel, visual_tokens=stands.visual_tokens) == plan.both()
    assert plan.answering(aligned=False)[0].config.init == "none"


def test_the_published_recipe_is_among_the_ablations():
    """As a whole and part by part, by the flags that the parts have."""
    parts = dict(ablations.ABLATIONS)
    recipe = parts.pop("published recipe")
    assert recipe == {
        "contrast": "special",
        "caption_weight": 0.0,
        "receiver": "mlp",
        "text_receiver": "mlp",
        "compression": "sliding_window",
    }
    assert all(len(changes) == 1 for changes in parts.values())
    assert all({k: v} in parts.values() for k, v in recipe.items())


def test_paper_preset_plans_the_published_lengths():
    """2 to 128 tokens, on the paper's own schedule and models."""
    plan = planned("paper")
    runs = lengths.runs(plan)
    assert {run.config.preset for run in runs} == {"paper"}
    swept = {n for run in runs if run.script == "task_avqa" for n in run.config.token_lengths}
    assert {min(swept), max(swept)} == {2, 128}
    assert plan.avqa_config.data == "datasets/MUSIC-AVQA" and plan.avqa_config.batch == 8
    assert {run.config.channel for run in snr.runs(plan)} == {"awgn", "rayleigh", "none"}
    assert plan.align_config.steps == 500 and plan.avqa_config.steps == 300
    assert plan.avqa_config.lr == 1e-4


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


def found(gain: float, log_steps: float, width: float = 0.02) -> dict:
    """Results of a sweep of two experiments: the gain by alignment, and the log of its steps."""
    return {
        "cost": {name: {"command": f"python sweep {name}"} for name in ("temperatures", "snr")},
        "alignment_gains": {"awgn": {"pooled": {"mean": gain, "ci95": width}}},
        "alignment_log_steps": {"mean": log_steps, "ci95": width},
        "question_claims": {
            "noise": {"mean": 0.1, "ci95": 0.02},
            "media": {"mean": 0.0, "ci95": 0.05},
            "detect": {"mean": -0.01, "ci95": 0.005},
        },
    }


@pytest.mark.parametrize(
    ("gain", "log_steps", "verdicts"),
    [
        (0.05, math.log(0.6), ("holds", "holds")),
        (-0.05, math.log(1.5), ("does not hold", "does not hold")),
        (0.0, 0.0, ("undecided", "does not hold")),  # 1 point, but no 5 % of the steps, may be
    ],
)
def test_claims_are_decided(gain, log_steps, verdicts):
    """Each by the side of 0 on which its interval lies, fewer steps being a ratio below 1; what a
    sweep did not measure is not among them."""
    rows = {row["claim"]: row["verdict"] for row in claims.results(found(gain, log_steps))}
    names = ("Cross-modal alignment raises accuracy", "It needs fewer steps")
    assert tuple(rows[name] for name in names) == verdicts
    assert rows["Noise on picture and sound costs accuracy"] == "holds"
    assert rows["Tokens help even at the lowest SNR"] == "undecided"
    assert rows["A question by detect is at most 2 points worse than a clean one"] == "holds"
    assert not any("tokens lower the loss" in name for name in rows)


def test_the_table_of_claims_says_what_was_measured():
    """Claim, source, measured value with its interval, verdict and command in one row."""
    lines = claims.page(found(0.0512, math.log(0.5))).splitlines()
    (row,) = [line for line in lines if line.startswith("| Cross-modal alignment")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert "arXiv 2505.07841" in cells[1]
    assert cells[2].endswith("+5.1 ± 2.0 points of accuracy")
    assert cells[3:] == ["**holds**", "`python sweep snr`"]
    (row,) = [line for line in lines if line.startswith("| It needs fewer steps")]
    assert "50 (49 to 51) %" in row


@pytest.mark.slow
def test_one_seed_is_enough_to_draw(folder, swept):
    """Without intervals, and settling nothing."""
    flags = ("--seeds", 1, "--only", "ablations", "temperatures")
    done = sweep(folder, *flags, ok=False)  # it would replace a part of what stands
    refused(done, "name another --figures folder")
    sweep(folder, *flags, "--figures", folder / "one")
    one = json.loads((folder / "one/results.json").read_text())
    assert one["seeds"] == [1] and "snr_sweep" not in one
    assert one["ablations"]["no LoRA"]["accuracy"]["ci95"] is None
    assert one["ablations"]["no LoRA"]["gain"]["ci95"] is None
    assert {claim["verdict"] for claim in one["claims"]} == {"undecided"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--only", "snrs"), "--only snrs: unknown"),
        (("--few", 0), "--few 0"),
        (("--baselines", "zap"), "zap"),
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
    flags = ("--only", "lengths", "--seeds", 1)
    flags += ("--compressions", "sliding_window", "--baselines", "max_pool")
    places = ("--figures", tmp_path / "imgs", "--out", tmp_path / "checkpoint")
    sweep(folder, *flags, *places, run=apart, root=copy)
    own = json.loads((tmp_path / "imgs/results.json").read_text())
    assert len(own["token_length_sweep"]["max_pool"]["visual"]["accuracy"]) == 3
    assert own["compression_gains"].keys() == {"max_pool less sliding_window"}
    assert own["commit"] == "unknown"  # a copy of the files alone
    assert "max pool less sliding window" in (tmp_path / "imgs/README.md").read_text()
