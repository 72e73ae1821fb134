"""The log of a run: a row a step, whatever is accumulated, and one process that writes."""

import csv
import json
import threading

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.disks import small_disk
from utils.config import quieten
from utils.training.log import RunLog, read_features


def losses(step, part):
    """Another value at each step and batch, as of a device's computation."""
    loss = torch.tensor(step + part / 8, dtype=torch.float64, requires_grad=True)
    return {"loss": 2 * loss, "reconstruction": (loss / 4).to(torch.bfloat16)}


def logged(log, steps, accumulate):
    """Log so many steps; how many rows were read after each batch."""
    seen = []
    for number in range(steps * accumulate):
        log.add(number // accumulate + 1, losses(number // accumulate + 1, number % accumulate))
        seen.append(len(log.rows))
    return seen


@pytest.mark.parametrize("every", [1, 3, 7, 20, 1000])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_a_row_a_step(tmp_path, every, accumulate):
    """However many batches a step accumulates and however often they are read, each step has one
    row, with the mean of its batches' losses."""
    log, steps = RunLog(tmp_path / "run", every=every), 20
    seen = logged(log, steps, accumulate)
    assert max(seen) == (steps - 1) // every * every, "values are read `every` steps at once"
    assert len(set(seen)) == 1 + (steps - 1) // every
    log.read()
    assert [row["step"] for row in log.rows] == list(range(1, steps + 1))
    middle = (accumulate - 1) / 2 / 8
    for row in log.rows:
        assert row["loss"] == pytest.approx(2 * (row["step"] + middle), rel=1e-6)
        assert row["reconstruction"] == pytest.approx((row["step"] + middle) / 4, rel=1e-2)
    log.read()
    assert len(log.rows) == steps, "reading again adds nothing"
    assert log.ends(span=5) == pytest.approx({"first": 2 * (3 + middle), "last": 2 * (18 + middle)})


def test_what_a_run_leaves(tmp_path):
    """R.csv and the TensorBoard events hold every step, R.json the metrics; then the name is free
    for another run."""
    log = RunLog(tmp_path / "runs" / "align-0.07", every=8)
    logged(log, 21, 2)
    metrics = {"task": "align", "loss": log.ends()}
    log.write_metrics(metrics)
    log.finish()
    log.close()
    folder = tmp_path / "runs"
    assert {path.name for path in folder.iterdir()} == {
        "align-0.07", "align-0.07.csv", "align-0.07.json"
    }  # fmt: skip
    rows = list(csv.DictReader((folder / "align-0.07.csv").open()))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == log.rows and len(rows) == 21
    assert json.loads((folder / "align-0.07.json").read_text()) == metrics
    events = EventAccumulator(str(folder / "align-0.07")).Reload()
    for key in ("loss", "reconstruction"):
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert found == [(row["step"], pytest.approx(row[key])) for row in log.rows]
    RunLog(folder / "align-0.07")


def test_what_others_are_writing_stays(tmp_path):
    """A new log removes what a killed run of its name left half written, and nothing of a run whose
    name only begins so, or that its name would match as a pattern."""
    mine = [tmp_path / f".a[1]{suffix}.7.partial" for suffix in (".pth", ".answers.csv")]
    others = [tmp_path / f".{name}.7.partial" for name in ("a[1].b.pth", "a1.pth", "a.json")]
    for path in (*mine, *others):
        path.touch()
    RunLog(tmp_path / "a[1]")
    assert not any(path.exists() for path in mine) and all(path.exists() for path in others)


def test_other_processes_write_nothing(tmp_path):
    """A process that does not write leaves no file or folder and keeps no losses waiting."""
    log = RunLog(tmp_path / "runs" / "x", every=3, writes=False)
    assert set(logged(log, 10, 2)) == {0}
    assert len(log.waiting) <= 2 * 3
    log.read()
    assert log.waiting == log.rows == [] and list(tmp_path.iterdir()) == []


def test_losses_are_kept_without_their_graph(tmp_path):
    """What waits to be read does not hold a step's activations in memory."""
    log = RunLog(tmp_path / "run")
    log.add(1, losses(1, 0))
    assert not any(value.requires_grad for _, row, _ in log.waiting for value in row.values())


def test_features_are_kept_with_their_clips(tmp_path):
    """Figures are drawn from what a run saved: each set by modality, in the clips' order."""
    rows = torch.arange(6.0).reshape(3, 2)
    sets = {"before": {"visual": rows, "text": -rows}, "after": {"visual": 2 * rows, "text": rows}}
    log, ids = RunLog(tmp_path / "run"), ["-a", "ü", "0003"]
    log.save_features(sets, ids)
    found, names = read_features(log.path(".features.safetensors"))
    assert names == ids and found.keys() == sets.keys()
    for name, features in sets.items():
        for modality, values in features.items():
            assert torch.equal(found[name][modality], values)


def test_a_full_disk_ends_the_log_without_a_traceback(tmp_path, monkeypatch):
    """TensorBoard's events are written in a thread: what fails there is raised by the log, naming
    the run's folder, and told by no thread; other errors of threads are told."""
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    quieten()
    with small_disk(tmp_path / "disk", "16k") as disk:
        log = RunLog(disk / "run", every=1)
        (disk / "filler").write_bytes(bytes(12 << 10))
        with pytest.raises(OSError, match="No space left") as error:
            logged(log, 2000, 1)
        assert error.value.filename == str(disk / "run")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert [e.exc_type for e in told] == [ZeroDivisionError]
