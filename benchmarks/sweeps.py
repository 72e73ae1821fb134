"""The paper's figures with error bars: temperatures, SNR, token lengths and ablations.

    python benchmarks/sweeps.py                              everything
    python benchmarks/sweeps.py --only snr --channels awgn rayleigh rician
    python benchmarks/sweeps.py --preset paper

Each experiment is a list of runs of task_align.py and task_avqa.py, the same clips and seeds on
every side (benchmarks/experiments/). Several run at a time; finished ones are skipped, so an
interrupted sweep goes on where it stopped. Leaves the runs in checkpoint/sweeps/PRESET/, numbers
in imgs/results.json, figures beside it, and the page imgs/README.md that shows them.
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
from benchmarks.experiments import EXPERIMENTS  # noqa: E402
from benchmarks.experiments.page import write_page  # noqa: E402
from benchmarks.experiments.plan import Plan  # noqa: E402
from modules.channel import CHANNELS, TrainingSNR  # noqa: E402
from modules.token_compression import COMPRESSIONS  # noqa: E402
from utils.config import plain, run_script, values  # noqa: E402
from utils.data.datasets import read_music_avqa, read_valor  # noqa: E402
from utils.data.encoding import load_clips  # noqa: E402
from utils.data.models import build_system  # noqa: E402
from utils.files import check_writable, write_whole  # noqa: E402
from utils.runs import jobs_at_a_time, run_all, unique  # noqa: E402
from utils.training.identity import PLACES, finished, same_run  # noqa: E402
from utils.training.processes import start  # noqa: E402

PRESET = "mini"  # "mini" (embedded world, any machine) or "paper"; edit here, or say --preset


@dataclass
class Config:
    """What is swept in the mini preset, where fine-tuning is shorter than task_avqa.py's."""

    preset: str = "mini"  # mini or paper
    only: list[str] = values("temperatures", "snr", "lengths", "ablations")  # experiments
    seeds: list[int] = values(1, 2, 3)  # of weights, batches and noise
    jobs: int = 0  # runs at a time; 0: one a core, or one on an accelerator

    align_steps: int = 300  # paper preset: 500
    steps: int = 120  # of fine-tuning; paper preset: 300
    batch: int = 32  # questions; paper preset: 8
    validations: int = 8  # on the way, in the temperature sweep

    # What is swept
    temperatures: list[float] = values(0.03, 0.07, 0.13)  # tau of InfoNCE
    temperature: float = 0.07  # of the other experiments
    channels: list[str] = values("awgn", "rayleigh")  # of the SNR sweep
    snr_db: list[float] = values(-12.0, -6.0, 0.0, 6.0, 12.0, 18.0)  # dB, tested
    snr_range: list[float] = values(-12.0, 18.0)  # dB, trained over
    lengths: list[int] = values(2, 4, 8, 16, 32)  # of either modality
    compressions: list[str] = values("sliding_window", "uniform")  # of the length sweep

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
        steps=300,
        batch=8,
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
    began = time.time()
    fill_caches([run.config for part in runs.values() for run in part])
    for name, part in runs.items():
        ran = sum(finished(run.config) is None for run in part)
        metrics = run_all(part, config.jobs, name)
        results |= EXPERIMENTS[name].results(plan, metrics)
        cost = {"command": command(name, config), "runs": len(part), "ran": ran}
        cost |= {"minutes": (time.time() - began) / 60, "jobs": jobs_at_a_time(config.jobs)}
        if ran or name not in results["cost"]:  # else it stands as it was measured
            results["cost"][name] = cost
        write_whole(figures / "results.json", json.dumps(results, indent=1) + "\n")
        for figure in EXPERIMENTS[name].draw(plan, metrics, results, figures):
            print(figure)
        began = time.time()
    sections = [EXPERIMENTS[n].page(results) for n in EXPERIMENTS if n in results["cost"]]
    print(write_page(figures / "README.md", results, sections))
    return results


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
    names = {"only": EXPERIMENTS, "compressions": COMPRESSIONS, "channels": CHANNELS}
    for flag, known in names.items():
        for name in getattr(config, flag):
            if name not in known:
                raise ValueError(f"--{flag} {name}: unknown, choose from {', '.join(known)}")
    if len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"--seeds {config.seeds}: name each once, a repeated seed is no sample")
    for flag in ("lengths", "steps", "align_steps", "validations"):
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
    TrainingSNR(0.0, config.snr_range)


def stages(config: Config) -> tuple[task_align.Config, task_avqa.Config]:
    """Both stages' hyperparameters, from which runs differ in what is swept."""
    root = Path(config.data)
    places = {"cache": config.cache, "out": config.out, "figures": "none"}
    align = replace(
        task_align.PRESETS[config.preset],
        data=str(root / "VALOR"),
        mini_clips=config.align_clips,
        steps=config.align_steps,
        **places,
    )
    avqa = replace(
        task_avqa.PRESETS[config.preset],
        data=str(root / "MUSIC-AVQA"),
        mini_clips=config.avqa_clips,
        steps=config.steps,
        batch=config.batch,
        validate_every=config.steps,
        test_snr_db=[],
        question_only=False,
        **places,
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
    about = {k: getattr(config, k) for k in ("preset", "seeds", "align_steps", "steps", "batch")}
    about |= {"temperature": config.temperature, "align_snr_db": plan.align_config.snr_db}
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
