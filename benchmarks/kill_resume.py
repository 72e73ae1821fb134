"""Kills both stages at random moments and lets them go on: `python benchmarks/kill_resume.py`.

A run of each stage is killed (SIGKILL) again and again, each time at a random moment between its
first import and its last file, then continued by the same command with --resume true. At the end,
weights and loss rows must be those of a run that was never killed, to the last bit. Writes
benchmarks/kill_resume.json and prints the counts.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import commit  # noqa: E402
from utils.checkpoints import load_checkpoint  # noqa: E402
from utils.files import write_whole  # noqa: E402

FOLDER = "checkpoint/kill_resume"
SCRIPTS = {"stage1": "task_align.py", "stage2": "task_avqa.py"}


def start(stage: str, name: str) -> subprocess.Popen:
    """The stage's mini preset under a name, from where it stopped."""
    command = [sys.executable, SCRIPTS[stage], "--name", name, "--out", FOLDER, "--figures", "none"]
    command += ["--resume", "true"]
    if stage == "stage2":
        command += ["--init", f"{FOLDER}/stage1.pth", "--question_only", "false"]
        command += ["--test_snr_db", "12"]
    says = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **says)


def finish(process: subprocess.Popen, name: str) -> None:
    """Wait for the end; RuntimeError with its last line if it failed."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name}: {errors.strip().splitlines()[-1]}")


def kill_and_resume(stage: str, kills: int, seconds: float, draw: random.Random) -> dict:
    """Kill a run `kills` times, each after a part of the `seconds` that a whole run takes."""
    name, killed, stateful = f"{stage}-killed", 0, 0
    metrics = ROOT / FOLDER / f"{name}.json"
    while killed < kills:
        process = start(stage, name)
        try:
            process.wait(draw.uniform(0, seconds / 2))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
            process.communicate()
            states = sorted(path.stem for path in (ROOT / FOLDER / f"{name}.resume").glob("s*.pt"))
            stateful += bool(states)
            print(f"{stage}: killed {killed} of {kills}, {(states or ['no state yet'])[-1]}")
            continue
        finish(process, name)  # it came to its end: compared, and begun anew
        if not same(stage, name):
            break
        metrics.unlink()
    finish(start(stage, name), name)
    # A start that could not go on would have ended the benchmark.
    found = {"kills": killed, "resumed": killed, "from_a_state": stateful}
    return {**found, "identical": same(stage, name)}


def same(stage: str, name: str) -> bool:
    """Whether weights and loss rows are those of the run that was not killed."""
    whole, killed = (load_checkpoint(ROOT / FOLDER / f"{n}.pth") for n in (stage, name))
    weights = all(
        (whole[part][key] == killed[part][key]).all()
        for part in whole.keys() - {"about"}
        for key in whole[part]
    )
    rows = [(ROOT / FOLDER / f"{n}.csv").read_bytes() for n in (stage, name)]
    return bool(weights) and whole.keys() == killed.keys() and rows[0] == rows[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    found, draw = {}, random.Random(arguments.seed)
    for stage in SCRIPTS:
        began = time.time()
        finish(start(stage, stage), stage)
        seconds = time.time() - began
        found[stage] = kill_and_resume(stage, arguments.kills, seconds, draw)
        metrics = json.loads((ROOT / FOLDER / f"{stage}.json").read_text())
        found[stage]["saving_share"] = metrics["saving_seconds"] / metrics["seconds"]
        print(f"{stage}: {found[stage]}")
    path = ROOT / "benchmarks" / "kill_resume.json"
    found["commit"] = commit()
    write_whole(path, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
