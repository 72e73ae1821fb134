"""A run that is stopped goes on as if it had not been, whatever stopped it and whenever."""

import json
import math
import os
import shutil
import signal
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

import task_align
from tests.helpers.disks import small_disk
from utils.checkpoints import CheckpointError
from utils.config import Stopped
from utils.data.clips import Clips
from utils.data.datasets import AnnotationFile
from utils.training.log import NotFinite
from utils.training.run import Run

STEPS, RUNS = 12, count(1)
NUMBERS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


class Killed(BaseException):
    """The process ends here, with nothing saved or cleaned up."""


class Rows(list):
    """Names and numbers of clips, held in memory."""

    kept = True

    @property
    def rows(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(video_id=name) for name, _ in self]


@dataclass
class Stack:
    """Puts numbers into a batch, in place of what pads texts."""

    packed: int = 1

    def __call__(self, items) -> SimpleNamespace:
        numbers = torch.stack([numbers for _, numbers in items])
        return SimpleNamespace(numbers=numbers, rows=Rows(items).rows)


class Model(torch.nn.Module):
    """Takes the place of a stage: one trained part, one frozen, dropout between them."""

    lora = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trained = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 6)
        )
        self.frozen = torch.nn.Linear(6, 6).requires_grad_(False)
        torch.manual_seed(next(RUNS))  # dropout must not depend on what was drawn before

    @property
    def system(self) -> "Model":
        return self

    @property
    def transceivers(self) -> dict[str, torch.nn.Module]:
        return {"trained": self.trained}

    def forward(self, batch, noise: torch.Generator) -> torch.Tensor:
        x = batch.numbers
        sent = x + 0.1 * torch.randn(x.shape, generator=noise)
        return (self.frozen(self.trained(sent)) - x).square().mean()


def train(
    folder: Path,
    event=lambda where, step, batch=None: None,
    files: dict | None = None,
    left_out: dict | None = None,
    **changes,
):
    """A training as a process of its own would do it: what it held ends with it. `event` is told
    where it is, and may give a factor for the loss; what is left: weights, rows, validation."""
    AcceleratorState._reset_state(reset_partial_state=True)
    fields = dict(batch=3, steps=STEPS, save_every=4, validate_every=3, clip=0.5, lr=0.1)
    fields |= dict(name="run", out=str(folder), figures="none", workers=0, **changes)
    run = Run("align", task_align.Config(**fields), "run")
    if run.finished:
        return run.finished
    run.log.every = 5
    rows = Rows((f"clip-{i}", numbers) for i, numbers in enumerate(NUMBERS))
    splits = {"train": rows, "val": Rows(rows[:8]), "test": Rows(rows[:8])}
    clips = Clips(splits, files or {}, {}, left_out or {})
    try:
        model, loaders = run.prepare(Model(), clips, Stack(), 4)
        batches = run.batches(loaders["train"], "training")
        try:
            for step, batch in batches:
                event("before", step)
                loss = model(batch, run.noise) * (event("loss", step, batch) or 1.0)
                run.step(step, {"loss": loss}, batch)
                event("after", step)
                if run.validates(step):  # which draws from torch's own numbers, not the noise's
                    list(torch.utils.data.DataLoader(NUMBERS, batch_size=4))
                    run.validated(step, sum(model(b, run.noise).item() for b in loaders["val"]))
        finally:
            batches.close()
        event("trained", STEPS)
        run.save()
        event("saved", STEPS)
        run.finish({}, None)
    finally:
        run.log.lock.release()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    return weights, run.log.rows, run.validation


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, on_the_cpu):
    """What trainings of one and of two batches a step end with, undisturbed."""
    return {n: train(tmp_path_factory.mktemp("whole"), accumulate=n) for n in (1, 2)}


def same(a, b):
    assert a[1] == b[1] and a[2] == b[2]
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run.resume").glob("*"))


def at(where: str, step: int, do):
    """An event that does something at one place, told the batch."""

    def event(here, now, batch=None):
        return do(batch) if (here, now) == (where, step) else None

    return event


def kill(folder: Path, where: str, step: int, **changes) -> None:
    def die(_):
        raise Killed

    with pytest.raises(Killed):
        train(folder, at(where, step, die), **changes)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("step", [1, 4, 5, 9, 12])
def test_killed_anywhere_it_ends_the_same(tmp_path, whole, where, step, accumulate):
    """Weights, loss rows and validation are those of a run that was not killed, to the last bit;
    also where it is killed again as it goes on."""
    for last in (step, min(step + 2, STEPS)):
        kill(tmp_path, where, last, accumulate=accumulate, resume=True)
    same(train(tmp_path, accumulate=accumulate, resume=True), whole[accumulate])
    assert states(tmp_path) == [] and not (tmp_path / "run.resume").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_logged_of_a_step(whole, accumulate):
    """Each step has a row, and every third a validation, however many batches a step has."""
    _, rows, validation = whole[accumulate]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [step for step, _ in validation] == [3, 6, 9, 12]


def test_the_gradient_is_cut(tmp_path):
    """At `clip`, unless that is 0; what is logged is its norm before."""
    free, cut = (train(tmp_path / f"{clip}", clip=clip) for clip in (0.0, 1e-4))
    assert cut[1][0] == free[1][0] and free[1][0]["gradient"] > 1e-3
    assert not torch.equal(cut[0]["trained.0.weight"], free[0]["trained.0.weight"])


@pytest.mark.parametrize("where", ["trained", "saved"])
def test_a_finished_training_is_not_repeated(tmp_path, whole, where):
    """Killed between its last step and its results, a run has nothing left to train; with its
    results written it has nothing left to do, and gives them back."""
    kill(tmp_path, where, STEPS, save_every=5)
    assert states(tmp_path) == ["step-00000010.pt", "step-00000012.pt"]
    seen = []

    def event(*at):
        seen.append(at)

    same(train(tmp_path, event, resume=True), whole[1])
    metrics = train(tmp_path, event, resume=True)
    assert seen == [("trained", STEPS), ("saved", STEPS)]
    losses = [row["loss"] for row in whole[1][1]]
    wanted = {"first": sum(losses[:10]) / 10, "last": sum(losses[-10:]) / 10}
    assert metrics["steps"] == STEPS and metrics["loss"] == pytest.approx(wanted)
    assert metrics["seconds"] > 0 and metrics["peak_rss_mb"] > 10


@pytest.mark.parametrize("damage", ["half", "empty", "noise", "partial"])
def test_a_damaged_state_is_passed_over(tmp_path, whole, damage):
    """A state that a full disk or a crash of the machine left damaged: the one before serves."""
    kill(tmp_path, "before", 10)
    assert states(tmp_path) == ["step-00000004.pt", "step-00000008.pt"]
    newest = tmp_path / "run.resume/step-00000008.pt"
    content = newest.read_bytes()
    if damage == "partial":
        newest.rename(newest.with_name(".step-00000008.pt.77.partial"))
    else:
        left = {"half": content[: len(content) // 2], "empty": b"", "noise": os.urandom(999)}
        newest.write_bytes(left[damage])
    same(train(tmp_path, resume=True), whole[1])
    assert states(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, whole, number):
    """Told to stop, a run ends its step, saves it, and says how to go on; status as shells have
    it. Afterwards signals act as before."""
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="after step 6; go on by --resume") as stop:
        train(tmp_path, at("before", 6, lambda _: signal.raise_signal(number)))
    assert stop.value.status == 128 + number
    assert states(tmp_path) == ["step-00000004.pt", "step-00000006.pt"]
    assert signal.getsignal(number) is before
    same(train(tmp_path, resume=True), whole[1])


def test_a_second_signal_acts_at_once(tmp_path):
    """Who asks twice does not want to wait for the step."""
    # Each is handled before raise_signal returns, so that the two cannot become one.
    twice = at("before", 6, lambda _: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, twice)
    assert states(tmp_path) == ["step-00000004.pt"]


def test_accelerates_settings_do_not_change_a_run(tmp_path, whole, monkeypatch):
    """How many batches a step has is this project's hyperparameter, whatever a shell that starts
    other things by Accelerate has set."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    for n in whole:
        same(train(tmp_path / str(n), accumulate=n), whole[n])


def test_without_resume_a_run_starts_anew(tmp_path):
    """States of an earlier run are of no use then, and removed."""
    kill(tmp_path, "before", 10)
    kill(tmp_path, "before", 2)
    assert states(tmp_path) == []


def test_only_the_last_states_are_kept(tmp_path):
    """`keep` of them, so that a long run does not fill the disk."""
    kill(tmp_path, "before", 12, save_every=2, keep=3)
    assert states(tmp_path) == [f"step-{step:08d}.pt" for step in (6, 8, 10)]


def test_states_of_another_run_are_refused(tmp_path):
    """What differs is named; nothing is lost by it. Where things lie may differ."""
    kill(tmp_path, "before", 6)
    with pytest.raises(CheckpointError, match="differs in lr.*without --resume"):
        train(tmp_path, resume=True, lr=0.2)
    assert states(tmp_path) == ["step-00000004.pt"]
    train(tmp_path, resume=True, save_every=3)


def test_states_of_other_data_are_refused(tmp_path):
    """Captions that were removed, and a clip that was lost or found; the same data go on."""
    data = {
        "files": {"train": AnnotationFile("desc_train.json", "ab", 20)},
        "left_out": {"clip-x": "not extracted"},
    }
    kill(tmp_path, "before", 6, **data)
    for part, other in (
        ("annotations", {"files": {"train": AnnotationFile("desc_train.json", "cd", 19)}}),
        ("left_out", {"left_out": {}}),
    ):
        with pytest.raises(CheckpointError, match=f"differs in {part};.*without --resume"):
            train(tmp_path, resume=True, **{**data, **other})
    assert states(tmp_path) == ["step-00000004.pt"]
    kill(tmp_path, "before", 7, resume=True, **data)
    assert states(tmp_path) == ["step-00000004.pt"], "it went on"


def test_states_of_other_code_are_refused(tmp_path, monkeypatch):
    """What two versions of the code trained together is of neither."""
    kill(tmp_path, "before", 6)
    monkeypatch.setattr("utils.training.run.code_of", lambda config: "another")
    with pytest.raises(CheckpointError, match="differs in code"):
        train(tmp_path, resume=True)


def test_a_run_is_of_the_code_that_it_started_with(tmp_path, monkeypatch):
    """Whoever edits the code while it trains has not trained with that."""
    code = ["as it was"]
    monkeypatch.setattr("utils.training.run.code_of", lambda config: code[-1])
    train(tmp_path, at("before", 6, lambda _: code.append("edited")))
    assert json.loads((tmp_path / "run.json").read_text())["code"] == "as it was"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, value):
    """The message names the step, its clips and the last good state, which holds no bad weight."""
    clips = []

    def spoil(batch):
        clips.extend(row.video_id for row in batch.rows)
        return value

    with pytest.raises(NotFinite, match="step 7: loss is .*step-00000004.pt") as error:
        train(tmp_path, at("loss", 7, spoil))
    assert len(clips) == 3 and f"of clips {', '.join(clips)};" in str(error.value)
    assert states(tmp_path) == ["step-00000004.pt"]
    state = torch.load(tmp_path / "run.resume/step-00000004.pt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    assert state["model"].keys() == {f"trained.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}


def test_one_run_a_name(tmp_path):
    """A second run of a name that is under way is refused, and may start when that has ended."""

    def others(_):
        with pytest.raises(ValueError, match="another run of this name"):
            train(tmp_path)
        train(tmp_path / "other")

    train(tmp_path, at("before", 6, others))
    train(tmp_path)


def test_a_full_disk_loses_no_state(tmp_path):
    """The run ends by naming the file; what was saved before stands and goes on elsewhere."""
    with small_disk(tmp_path / "disk", "256k") as disk:
        filler = disk / "filler"
        fill = at("before", 6, lambda _: filler.write_bytes(bytes(shutil.disk_usage(disk).free)))
        with pytest.raises(OSError, match="No space left") as error:
            train(disk, fill)
        assert "step-00000008.pt" in str(error.value.filename)
        assert states(disk) == ["step-00000004.pt"]
        filler.unlink()
        train(disk, resume=True)
