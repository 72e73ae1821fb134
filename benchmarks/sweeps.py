"""The paper's claims, each decided by one pooled test, and its figures: temperatures, SNR, token
lengths and ablations.

    python benchmarks/sweeps.py                              everything
    python benchmarks/sweeps.py --only snr --channels awgn rayleigh rician
    python benchmarks/sweeps.py --preset paper

Each experiment is a list of runs of task_align.py and task_avqa.py, the same clips and seeds on
every side (benchmarks/experiments/). Several run at a time; finished ones are skipped, so an
interrupted sweep goes on where it stopped. Leaves the runs in checkpoint/sweeps/PRESET/, numbers
in imgs/results.json, figures beside it, and the page imgs/README.md: the table of claims, the
figures and their numbers.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import task_align  # noqa: E402
import task_avqa  # noqa: E402
from benchmarks.experiments import EXPERIMENTS, claims  # noqa: E402
from benchmarks.experiments.page import write_page  # noqa: E402
from benchmarks.experiments.plan import Plan  # noqa: E402
from benchmarks.measure import commit  # noqa: E402
from modules.channel import CHANNELS  # noqa: E402
from modules.token_compression import COMPRESSIONS  # noqa: E402
from utils.config import plain, run_script, values  # noqa: E402
from utils.data.datasets import read_music_avqa, read_valor  # noqa: E402
from utils.data.encoding import load_clips  # noqa: E402
from utils.data.models import build_system  # noqa: E402
from utils.files import check_writable, write_whole  # noqa: E402
from utils.runs import Run, jobs_at_a_time, run_all, unique  # noqa: E402
from utils.training.identity import PLACES, finished, same_run  # noqa: E402
from utils.training.processes import start  # noqa: E402

PRESET = "mini"  # "mini" (embedded world, any machine) or "paper"; edit here, or say --preset


@dataclass
class Config:
    """What is swept in the mini preset, in the paper's budget of 2,400 questions a run except for
    token lengths. Choices are made with seeds 1 to 3 by validation loss, and the default seeds were
    used for none."""

    preset: str = "mini"  # mini or paper
    only: list[str] = values("temperatures", "snr", "lengths", "ablations")  # experiments
    seeds: list[int] = values(*range(11, 21))  # of weights, batches and noise
    few: int = 3  # of the seeds, for ablations, other temperatures and baselines
    jobs: int = 0  # runs at a time; 0: one a core, or one on an accelerator

    align_steps: int = 200  # paper preset: 500
    steps: int = 300  # of fine-tuning; paper: 300
    batch: int = 8  # questions; paper: 8
    lr: float = 3e-3  # of fine-tuning, peak; paper: 1e-4
    length_steps: int = 500  # where one model serves all token lengths; paper preset: 300
    length_batch: int = 32  # questions there; paper preset: 8
    length_lr: float = 1e-3  # peak, there; paper preset: 1e-4
    tokens: int = 16  # of each modality, where its length is not swept; paper: 128
    validations: int = 8  # on the way, where steps or SNRs are compared

    # What is swept
    temperatures: list[float] = values(0.03, 0.07, 0.13)  # tau of InfoNCE
    temperature: float = 0.07  # of the other experiments
    channels: list[str] = values("awgn", "rayleigh")  # of the SNR sweep; the first decides
    snr_db: list[float] = values(-12.0, -6.0, 0.0, 6.0, 12.0, 18.0)  # dB, tested
    lengths: list[int] = values(1, 4, 16, 64)  # of either modality
    compressions: list[str] = values("grid", "sliding_window", "uniform")  # compared
    baselines: list[str] = values("attention", "merge")  # beside them

    # Folders
    data: str = "datasets/mini"  # holds VALOR and MUSIC-AVQA
    align_clips: list[int] = values(1600, 128, 160)  # of the mini world: train, val, test
    avqa_clips: list[int] = values(1200, 96, 256)  # of the mini world: train, val, test
    cache: str = "datasets/cache"  # encoder tokens, computed once
    out: str = "checkpoint"  # folder of the runs
    figures: str = "imgs"  # folder of figures and numbers


PRESETS = {
    "mini": Config(),
    "paper": Config(
        preset="paper",
        align_steps=500,
        lr=1e-4,
        length_steps=300,
        length_batch=8,
        length_lr=1e-4,
        tokens=128,
        lengths=[2, 4, 8, 16, 32, 64, 128],
        data="datasets",
        figures="imgs/paper",
    ),
}


def main(config: Config) -> dict:
    """Run the experiments, draw their figures, and write the results, which it returns."""
    check(config)
    plan = Plan(config, *stages(config))
    figures = Path(config.figures)
    results = earlier_results(figures / "results.json", plan)
    check_writable(figures, "--figures")
    runs = {name: unique(EXPERIMENTS[name].runs(plan)) for name in config.only}
    every = unique([run for part in runs.values() for run in part])
    known = {run.name: found for run in every if (found := finished(run.config))}
    print(forecast(every, known, config.jobs), flush=True)
    fill_caches([run.config for run in every])
    results["commit"] = commit()  # of the code that runs, whatever is edited meanwhile
    for name, part in runs.items():
        began, ran = time.time(), sum(run.name not in known for run in part)
        metrics = run_all(part, config.jobs, name)
        known |= metrics
        print(forecast(every, known, config.jobs), flush=True)
        results |= EXPERIMENTS[name].results(plan, metrics)
        cost = {"command": command(name, config), "commit": results["commit"]}
        cost |= {"runs": len(part), "ran": ran, "minutes": (time.time() - began) / 60}
        cost |= {"jobs": jobs_at_a_time(config.jobs)}
        if ran or name not in results["cost"]:  # else it stands as it was measured
            results["cost"][name] = cost
        results["claims"] = claims.results(results)
        write_whole(figures / "results.json", json.dumps(results, indent=1) + "\n")
        for figure in EXPERIMENTS[name].draw(plan, metrics, results, figures):
            print(figure)
    for figure in claims.draw(results, figures):
        print(figure)
    print(write_page(figures / "README.md", results, *sections(results)))
    return results


def sections(results: dict) -> tuple[str, list[str]]:
    """The parts of the page: the claims; each experiment's section, and all appendices last."""
    shown = [EXPERIMENTS[name] for name in EXPERIMENTS if name in results["cost"]]
    appendices = [part.appendix(results) for part in shown if hasattr(part, "appendix")]
    heads = ["\n## Appendix: each SNR, each length\n"] if appendices else []
    return claims.page(results), [*(part.page(results) for part in shown), *heads, *appendices]


def forecast(runs: list[Run], known: dict[str, dict], jobs: int) -> str:
    """How many runs are left, and about how long they take: as long on average as those whose
    metrics are known, by stage."""
    left = [run.script for run in runs if run.name not in known]
    said = f"{len(runs)} runs, {len(left)} of them left"
    ended: dict[str, list[float]] = {}
    for run in runs:
        if run.name in known:
            ended.setdefault(run.script, []).append(known[run.name]["seconds"])
    if not left or not set(left) <= ended.keys():
        return said
    seconds = sum(sum(ended[script]) / len(ended[script]) for script in left)
    at_a_time = jobs_at_a_time(jobs)
    return f"{said}: about {seconds / at_a_time / 60:.0f} minutes, {at_a_time} at a time"


def command(experiment: str, config: Config) -> str:
    """The command that makes an experiment as it was made: what differs from the preset."""
    words = ["python benchmarks/sweeps.py", "--only", experiment]
    if config.preset != "mini":
        words += ["--preset", config.preset]
    preset = plain(PRESETS[config.preset])
    for name, value in plain(config).items():
        if value != preset[name] and name not in (*PLACES, "only", "jobs", "data"):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(words)


def check(config: Config) -> None:
    """ValueError, in one line, for what would fail after hours."""
    names = {"only": EXPERIMENTS, "channels": CHANNELS}
    names |= {"compressions": COMPRESSIONS, "baselines": COMPRESSIONS}
    for flag, known in names.items():
        for name in getattr(config, flag):
            if name not in known:
                raise ValueError(f"--{flag} {name}: unknown, choose from {', '.join(known)}")
    if len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"--seeds {config.seeds}: name each once, a repeated seed is no sample")
    counts = ("lengths", "tokens", "steps", "align_steps", "length_steps", "length_batch")
    for flag in (*counts, "validations", "few"):
        value = getattr(config, flag)
        if (min(value) if isinstance(value, list) else value) < 1:
            raise ValueError(f"--{flag} {value}: must be 1 or more")
    taus = [config.temperature, *config.temperatures]
    if min(taus) <= 0 or len({round(100 * tau) for tau in taus} - {0}) < len(set(taus)):
        raise ValueError(
            f"--temperatures {config.temperatures}: must be above 0 and differ in hundredths, "
            "by which figures are named"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("sweeps start their own processes (--jobs): run them without a launcher")


def stages(config: Config) -> tuple[task_align.Config, task_avqa.Config]:
    """Both stages' hyperparameters, from which runs differ in what is swept."""
    root = Path(config.data)
    same = {"cache": config.cache, "out": config.out, "figures": "none"}
    same |= {"visual_tokens": config.tokens, "audio_tokens": config.tokens}
    align = replace(
        task_align.PRESETS[config.preset],
        data=str(root / "VALOR"),
        mini_clips=config.align_clips,
        steps=config.align_steps,
        temperature=config.temperature,
        threads=task_avqa.PRESETS[config.preset].threads,  # others train beside it
        **same,
    )
    avqa = replace(
        task_avqa.PRESETS[config.preset],
        data=str(root / "MUSIC-AVQA"),
        mini_clips=config.avqa_clips,
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        validate_every=config.steps,
        test_snr_db=[],
        question_only=False,
        **same,
    )
    return align, avqa


def fill_caches(configs: list) -> None:
    """Encode every clip once, for all compressions and lengths that the runs ask for."""
    for data in dict.fromkeys(c.data for c in configs):
        asked = [c for c in configs if c.data == data]
        config = asked[0]
        accelerator = start(config)
        read = read_valor if isinstance(config, task_align.Config) else read_music_avqa
        ways = [(c.visual_tokens, c.audio_tokens, c.compression) for c in asked]
        system, processors = build_system(config)
        also = list(dict.fromkeys(ways))
        load_clips(config, read, system, processors.readers, accelerator, also)


def earlier_results(path: Path, plan) -> dict:
    """What earlier sweeps of the same seeds and hyperparameters found, to be added to.

    Raises:
        ValueError: where others stand, of which a part alone would be replaced.
    """
    config = plan.config
    kept = ("preset", "seeds", "few", "align_steps", "steps", "batch", "tokens", "temperature")
    kept += ("length_steps", "length_batch", "length_lr")
    about = {k: getattr(config, k) for k in kept} | {"align_snr_db": plan.align_config.snr_db}
    for name, stage in (("align", plan.align_config), ("avqa", plan.avqa_config)):
        about[name] = same_run(plain(stage)) | {"data": Path(stage.data).name, "temperature": None}
    try:
        found = json.loads(path.read_text())
        same = all(found[k] == v for k, v in about.items())
    except FileNotFoundError:
        return {**about, "cost": {}}
    except (ValueError, KeyError, TypeError):
        same = False
    if same:
        return found
    if len(config.only) < len(Config().only):
        raise ValueError(
            f"{path}: holds a sweep of other seeds or settings; name another --figures folder"
        )
    return {**about, "cost": {}}


if __name__ == "__main__":
    run_script(main, PRESETS, PRESET, __doc__)
