"""Sweeps run what is missing, in order, and lose nothing."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.helpers.fake_stage import Config, main
from tests.helpers.scripts import LIMIT, ROOT, until
from utils.machine import cores
from utils.runs import Run, RunsFailed, run_all, unique
from utils.training.identity import finished

STAGE = "tests.helpers.fake_stage"


def make(folder, name, after="", **changes):
    changes |= {"init": f"{folder}/{after}.pth"} if after else {}
    return Run(STAGE, Config(name, str(folder), **changes), after)


@pytest.mark.slow
def test_runs_follow_what_they_start_from_and_are_not_repeated(tmp_path):
    """Each runs once, after the one it starts from, on its share of the cores, its output in its
    log; a second call runs nothing but what changed, and what starts from that."""
    runs = [
        make(tmp_path, "part/end", after="part/start"),
        make(tmp_path, "part/start"),
        make(tmp_path, "alone"),
    ]
    first = run_all(runs, jobs=2)
    assert first.keys() == {"part/end", "part/start", "alone"}
    assert first["part/end"]["when"] > first["part/start"]["when"]
    assert all(m["cores"] == max(1, len(cores()) // 2) for m in first.values())
    assert all(m["process"] != os.getpid() for m in first.values())
    assert (tmp_path / "part/end.log").read_text() == "says part/end\n"
    assert run_all(runs, jobs=2) == first
    runs[1] = make(tmp_path, "part/start", seed=5)
    again = run_all(runs, jobs=1)
    assert again["alone"] == first["alone"]
    assert again["part/start"]["when"] > first["part/end"]["when"]
    assert again["part/end"]["when"] > again["part/start"]["when"]


def test_a_failed_run_stops_what_needs_it_and_nothing_else(tmp_path):
    """The others end and keep their results; the message names run, reason and log."""
    runs = [
        make(tmp_path, "bad", fails=True),
        make(tmp_path, "needs-bad", after="bad"),
        make(tmp_path, "good"),
    ]
    with pytest.raises(RunsFailed, match="2 of 3 runs failed; bad: .*told to fail.*bad.log"):
        run_all(runs, jobs=1)
    assert "Traceback" in (tmp_path / "bad.log").read_text()
    assert finished(runs[2].config) and not (tmp_path / "needs-bad.json").exists()


def test_runs_of_one_name_must_agree(tmp_path):
    """Experiments may share a run; two runs of one name would overwrite one another."""
    run = make(tmp_path, "a")
    assert unique([run, make(tmp_path, "a")]) == [run]
    with pytest.raises(ValueError, match="run a: asked for twice"):
        unique([run, make(tmp_path, "a", seed=2)])
    with pytest.raises(ValueError, match="run b: starts from c"):
        unique([run, make(tmp_path, "b", after="c")])


def test_finished_means_the_same_run(tmp_path, monkeypatch):
    """Other hyperparameters, another start, other code, lost weights or damaged metrics are not
    finished; other places to work in change nothing."""
    start, run = make(tmp_path, "start"), make(tmp_path, "end", after="start")
    main(start.config)
    main(run.config)
    assert finished(run.config)
    assert finished(replace(run.config, workers=7))
    assert not finished(replace(run.config, seed=9))
    weights = (tmp_path / "start.pth").read_bytes()
    (tmp_path / "start.pth").write_bytes(b"another")
    assert not finished(run.config)
    assert not finished(start.config)
    (tmp_path / "start.pth").write_bytes(weights)
    assert finished(run.config) and finished(start.config)
    monkeypatch.setattr("utils.training.identity.code_of", lambda config: "another")
    assert not finished(start.config)
    monkeypatch.undo()
    (tmp_path / "start.pth").unlink()
    assert not finished(start.config)
    for damage in ("", "[]", "{}", '{"config": {}}'):
        (tmp_path / "start.json").write_text(damage)
        assert not finished(start.config)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_runs_on_after_an_interrupt(tmp_path, number):
    """Interrupted or told to end while a run is under way, a sweep leaves no process behind."""
    script, log = tmp_path / "sweep.py", tmp_path / "long.log"
    script.write_text(
        "from tests.utils.test_runs import make\n"
        "from utils.runs import run_all\n"
        "if __name__ == '__main__':\n"
        f"    run_all([make({str(tmp_path)!r}, 'long', waits=True)], jobs=1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,  # which every process that it starts holds open to its end
        start_new_session=True,
    )
    try:
        until(lambda: log.exists() and log.read_text() == "says long\n", process)
        process.send_signal(number)
        process.communicate(timeout=LIMIT)  # to the end of the last of them
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode and not (tmp_path / "long.json").exists()
