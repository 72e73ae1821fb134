"""The paper's figures with error bars: temperatures, SNR, token lengths and ablations.

    python benchmarks/sweeps.py                              everything
    python benchmarks/sweeps.py --only snr --channels awgn rayleigh rician
    python benchmarks/sweeps.py --preset paper

Each experiment is a list of runs of task_align.py and task_avqa.py, the same clips and seeds on
every side (benchmarks/experiments.py). Several run at a time; finished ones are skipped, so an
interrupted sweep goes on where it stopped. Leaves the runs in checkpoint/sweeps/PRESET/, numbers
in imgs/results.json, figures beside it, and the page imgs/README.md that shows them.
"""

PRESET = "mini"  # "mini" (embedded world, any machine) or "paper"; edit here, or say --preset

import os  # noqa: E402
import sys  # noqa: E402
from dataclasses import dataclass, field, replace  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Config:
    """What is swept in the mini preset, where fine-tuning is shorter than task_avqa.py's."""

    preset: str = "mini"
    only: list[str] = field(  # experiments
        default_factory=lambda: ["temperatures", "snr", "lengths", "ablations"]
    )
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])  # of weights, batches and noise
    jobs: int = 0  # runs at a time; 0: one a core, or one on an accelerator

    align_steps: int = 300  # paper preset: 500
    steps: int = 120  # of fine-tuning; paper preset: 300
    batch: int = 32  # questions; paper preset: 8
    validations: int = 8  # on the way, in the temperature sweep

    # What is swept
    temperatures: list[float] = field(default_factory=lambda: [0.03, 0.07, 0.13])
    temperature: float = 0.07  # of the other experiments
    channels: list[str] = field(default_factory=lambda: ["awgn", "rayleigh"])
    snr_db: list[float] = field(  # dB, tested
        default_factory=lambda: [-12.0, -6.0, 0.0, 6.0, 12.0, 18.0]
    )
    snr_range: list[float] = field(default_factory=lambda: [-12.0, 18.0])  # dB, trained over
    lengths: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32])  # of either modality
    compressions: list[str] = field(default_factory=lambda: ["sliding_window", "uniform"])

    # Folders
    data: str = "datasets/mini"  # holds VALOR and MUSIC-AVQA
    align_clips: list[int] = field(  # of the mini world: train, val, test
        default_factory=lambda: [1600, 128, 160]
    )
    avqa_clips: list[int] = field(default_factory=lambda: [1200, 96, 256])
    cache: str = "datasets/cache"
    out: str = "checkpoint"
    figures: str = "imgs"


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


def main(config: Config, align=None) -> dict:
    """Run the experiments, draw their figures, and write the results, which it returns.

    `align` holds stage 1's hyperparameters in place of task_align.py's preset.
    """
    import json
    import time

    from benchmarks.experiments import EXPERIMENTS
    from benchmarks.experiments.page import write_page
    from benchmarks.experiments.plan import Plan
    from utils.files import check_writable, write_whole
    from utils.runs import jobs_at_a_time, run_all, unique
    from utils.training.log import finished

    check(config, list(EXPERIMENTS))
    plan = Plan(config, *stages(config, align))
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
        for figure in EXPERIMENTS[name].draw(plan, metrics, results, figures):
            print(figure)
        cost = {"command": command(name, plan, align), "runs": len(part), "ran": ran}
        cost |= {"minutes": (time.time() - began) / 60, "jobs": jobs_at_a_time(config.jobs)}
        if ran or name not in results["cost"]:  # else it stands as it was measured
            results["cost"][name] = cost
        write_whole(figures / "results.json", json.dumps(results, indent=1) + "\n")
        began = time.time()
    sections = [EXPERIMENTS[n].page(results) for n in EXPERIMENTS if n in results["cost"]]
    print(write_page(figures / "README.md", results, sections))
    return results


def temperatures(align) -> dict:
    """The temperature sweep alone, with the hyperparameters that task_align.py was given."""
    preset, taus = PRESETS[align.preset], align.temperatures
    if align.figures == "none" or align.name:
        raise ValueError("--temperatures draws figures and names runs: no --figures none or --name")
    print(f"seeds {', '.join(map(str, preset.seeds))}; more by benchmarks/sweeps.py --seeds")
    config = replace(
        preset,
        only=["temperatures"],
        temperatures=taus,
        temperature=align.temperature if align.temperature in taus else taus[0],
        align_steps=align.steps,
        data=str(Path(align.data).parent),
        cache=align.cache,
        out=align.out,
        figures=preset.figures if align.figures == "imgs" else align.figures,
    )
    return main(config, align)


def command(experiment: str, plan, align) -> str:
    """The command that makes an experiment as it was made: what differs from the preset."""
    import task_align
    from utils.config import plain
    from utils.training.log import PLACES

    given, preset = plan.config, PRESETS[plan.config.preset]
    words = ["python benchmarks/sweeps.py", "--only", experiment]
    if align is not None:
        given, preset = align, task_align.PRESETS[align.preset]
        words = ["python task_align.py"]
    elif experiment == "temperatures" and given == replace(preset, only=given.only):
        words = ["python task_align.py", "--temperatures", *map(str, given.temperatures)]
    if given.preset != "mini":
        words += ["--preset", given.preset]
    for name, value in plain(given).items():
        if value != plain(preset)[name] and name not in (*PLACES, "only", "jobs", "data"):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(words)


def check(config: Config, experiments: list[str]) -> None:
    """ValueError, in one line, for what would fail after hours."""
    from modules.channel import Channel, TrainingSNR
    from modules.token_compression import COMPRESSIONS

    for flag, known in (("only", experiments), ("compressions", list(COMPRESSIONS))):
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
    for kind in config.channels:
        Channel(kind)
    TrainingSNR(0.0, config.snr_range)


def stages(config: Config, align=None) -> tuple:
    """Both stages' hyperparameters, from which runs differ in what is swept."""
    import task_align
    import task_avqa

    root = Path(config.data)
    places = {"cache": config.cache, "out": config.out, "figures": "none"}
    own = {"data": str(root / "VALOR"), "mini_clips": config.align_clips}
    align = align or replace(task_align.PRESETS[config.preset], steps=config.align_steps, **own)
    align = replace(align, temperatures=[], **places)
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
    same = ("visual_encoder", "audio_encoder", "foundation_model", "receiver_width", "dtype")
    same += ("compression", "visual_tokens", "audio_tokens", "channel", "workers", "encode_batch")
    return align, replace(avqa, **{k: getattr(align, k) for k in same})


def fill_caches(configs: list) -> None:
    """Encode every clip once, for all compressions and lengths that the runs ask for."""
    from utils.data.datasets import read_music_avqa, read_splits, read_valor
    from utils.data.encoding import encode_clips
    from utils.mini.world import prepare_mini
    from utils.system import build_system
    from utils.training.processes import start

    for data in dict.fromkeys(c.data for c in configs):
        asked = [c for c in configs if c.data == data]
        config, root = asked[0], Path(data)
        accelerator = start(config)
        prepare_mini(config, accelerator)
        read = read_valor if hasattr(config, "caption_tokens") else read_music_avqa
        ways = [(c.visual_tokens, c.audio_tokens, c.compression) for c in asked]
        encode_clips(
            build_system(config),
            config,
            root,
            read_splits(read, root)[0],
            accelerator,
            also=list(dict.fromkeys(ways)),
        )


def earlier_results(path: Path, plan) -> dict:
    """What earlier sweeps of the same seeds and hyperparameters found, to be added to.

    Raises:
        ValueError: where others stand, of which a part alone would be replaced.
    """
    import json

    from utils.config import plain
    from utils.training.log import PLACES

    config = plan.config
    about = {k: getattr(config, k) for k in ("preset", "seeds", "align_steps", "steps", "batch")}
    about |= {"temperature": config.temperature, "align_snr_db": plan.align_config.snr_db}
    for name, stage in (("align", plan.align_config), ("avqa", plan.avqa_config)):
        fields = {k: v for k, v in plain(stage).items() if k not in PLACES}
        about[name] = fields | {"data": Path(stage.data).name, "temperature": None}
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
    from utils.config import run

    run(main, PRESETS, PRESET, __doc__)
