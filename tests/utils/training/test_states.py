"""A run that is stopped goes on as if it had not been, whatever stopped it and whenever."""

import os
import signal
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from tests.helpers.disks import small_disk
from utils.checkpoints import CheckpointError
from utils.config import Stopped
from utils.data.clips import ShuffledBatches
from utils.data.features import loading
from utils.training.log import NotFinite, RunLog
from utils.training.states import Training

STEPS, EVERY = 12, 4
CLIPS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


class Killed(BaseException):
    """The process ends here, with nothing saved or cleaned up."""


def config(**changes):
    fields = dict(
        steps=STEPS, accumulate=1, save_every=EVERY, keep=2, resume=False, clip=0.5, lr=0.1
    )
    return SimpleNamespace(**{**fields, **changes})


def train(folder, event=lambda where, step: None, **changes):
    """A training as a process of its own would do it: what it held ends with it."""
    log = RunLog(folder / "run", every=5)
    try:
        return train_with(log, event, **changes)
    finally:
        log.lock.close()


def train_with(log, event, **changes):
    """A small training with all that a run draws from: shuffled batches, dropout, channel noise,
    validation on the way. `event` is told where it is; what is left: weights, rows, validation."""
    c, every = config(**changes), changes.get("accumulate", 1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=every)
    torch.manual_seed(0)
    system = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 6), torch.nn.Linear(6, 6)
    )
    system[3].requires_grad_(False)  # a frozen part
    training = Training(log, c, {"config": vars(c)}, accelerator)
    sampler = ShuffledBatches(len(CLIPS), 3, STEPS * every, seed=1, skip=training.read)
    loader = DataLoader(CLIPS, batch_sampler=sampler, **loading(0))
    model, optimizer, loader = accelerator.prepare(
        system,
        torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=c.lr),
        loader,
    )
    schedule = CosineAnnealingLR(optimizer.optimizer, STEPS)
    noise = torch.Generator().manual_seed(3)
    training.prepare(model, optimizer, schedule, noise)
    for number, batch in training.batches(loader, "training"):
        step = number // every + 1
        event("before", step)
        with accelerator.accumulate(model):
            sent = batch + 0.1 * torch.randn(batch.shape, generator=noise)
            values = {"loss": (model(sent) - batch).square().mean() * event_factor(event, step)}
            accelerator.backward(values["loss"])
            if accelerator.sync_gradients:
                values["gradient"] = training.clip_gradient()
            optimizer.step()
            optimizer.zero_grad()
        log.add(step, values, [f"clip-{step}"])
        event("after", step)
        if accelerator.sync_gradients:
            schedule.step()
            if step % 3 == 0:
                list(DataLoader(CLIPS, batch_size=4))  # which draws from torch's own numbers
                training.validation.append((step, model[0].weight.sum().item()))
            training.done(step)
    log.read()
    training.finish()
    weights = {k: v.clone() for k, v in system.state_dict().items()}
    return weights, log.rows, training.validation


def event_factor(event, step):
    return event("loss", step) or 1.0


def same(a, b):
    assert a[1] == b[1] and a[2] == b[2]
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def states(folder):
    return sorted(path.name for path in (folder / "run.resume").glob("*"))


@pytest.fixture(autouse=True)
def fresh_accelerator(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def killer(where, at):
    def event(here, step):
        if (here, step) == (where, at):
            raise Killed

    return event


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("at", [1, 4, 5, 9, 12])
def test_killed_anywhere_it_ends_the_same(tmp_path, where, at, accumulate):
    """Weights, loss rows and validation are those of a run that was not killed, to the last bit;
    also where it is killed again as it goes on."""
    whole = train(tmp_path / "whole", accumulate=accumulate)
    folder = tmp_path / "killed"
    for event in (killer(where, at), killer(where, min(at + 2, STEPS))):
        with pytest.raises(Killed):
            train(folder, event, accumulate=accumulate, resume=True)
    same(train(folder, accumulate=accumulate, resume=True), whole)
    assert states(folder) == [] and not (folder / "run.resume").exists()


def test_a_finished_training_is_not_repeated(tmp_path):
    """Killed between its last step and its results, a run has nothing left to train."""
    whole = train(tmp_path / "whole")
    folder, seen = tmp_path / "killed", []
    with pytest.raises(Killed):
        train(folder, killer_at_end())
    same(train(folder, lambda *where: seen.append(where), resume=True), whole)
    assert seen == []


def killer_at_end():
    """Kills in what follows the last saved state: the closing of the log."""
    original = Training.finish

    def finish(self):
        Training.finish = original
        raise Killed

    Training.finish = finish
    return lambda where, step: None


@pytest.mark.parametrize("damage", ["half", "empty", "noise", "partial"])
def test_a_damaged_state_is_passed_over(tmp_path, damage):
    """A state that a full disk or a crash of the machine left damaged: the one before serves."""
    whole, folder = train(tmp_path / "whole"), tmp_path / "killed"
    with pytest.raises(Killed):
        train(folder, killer("before", 10))
    assert states(folder) == ["step-00000004.pt", "step-00000008.pt"]
    newest = folder / "run.resume/step-00000008.pt"
    content = newest.read_bytes()
    if damage == "partial":
        newest.rename(newest.with_name(".step-00000008.pt.77.partial"))
    else:
        left = {"half": content[: len(content) // 2], "empty": b"", "noise": os.urandom(999)}
        newest.write_bytes(left[damage])
    same(train(folder, resume=True), whole)
    assert states(folder) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, number):
    """Told to stop, a run ends its step, saves it, and says how to go on; status as shells have
    it. Afterwards signals act as before."""
    whole, folder = train(tmp_path / "whole"), tmp_path / "told"
    before = signal.getsignal(number)

    def event(where, step):
        if (where, step) == ("before", 6):
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="after step 6; go on by --resume") as stop:
        train(folder, event)
    assert stop.value.status == 128 + number
    assert states(folder) == ["step-00000004.pt", "step-00000006.pt"]
    assert signal.getsignal(number) is before
    same(train(folder, resume=True), whole)


def test_a_second_signal_acts_at_once(tmp_path):
    """Who asks twice does not want to wait for the step."""

    def event(where, step):
        if (where, step) == ("before", 6):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, event)


def test_without_resume_a_run_starts_anew(tmp_path):
    """States of an earlier run are of no use then, and removed."""
    with pytest.raises(Killed):
        train(tmp_path, killer("before", 10))
    with pytest.raises(Killed):
        train(tmp_path, killer("before", 2))
    assert states(tmp_path) == []


def test_only_the_last_states_are_kept(tmp_path):
    """`keep` of them, so that a long run does not fill the disk."""
    with pytest.raises(Killed):
        train(tmp_path, killer("before", 12), save_every=2, keep=3)
    assert states(tmp_path) == [f"step-{step:08d}.pt" for step in (6, 8, 10)]


def test_states_of_another_run_are_refused(tmp_path):
    """What differs is named; nothing is lost by it. Where things lie may differ."""
    with pytest.raises(Killed):
        train(tmp_path, killer("before", 6))
    with pytest.raises(CheckpointError, match="differs in lr.*without --resume"):
        train(tmp_path, resume=True, lr=0.2)
    assert states(tmp_path) == ["step-00000004.pt"]
    train(tmp_path, resume=True, save_every=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, value):
    """The message names the step, its clips and the last good state, which holds no bad weight."""

    def event(where, step):
        return value if (where, step) == ("loss", 7) else None

    with pytest.raises(NotFinite, match="step 7: loss is .*clip-7.*step-00000004.pt"):
        train(tmp_path, event)
    assert states(tmp_path) == ["step-00000004.pt"]
    state = torch.load(tmp_path / "run.resume/step-00000004.pt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())


def test_one_run_a_name(tmp_path):
    """A second run of a name that is under way is refused, and may start when that has ended."""
    log = RunLog(tmp_path / "run")
    with pytest.raises(ValueError, match="another run of this name"):
        RunLog(tmp_path / "run")
    RunLog(tmp_path / "other")
    log.lock.close()
    RunLog(tmp_path / "run")


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as folder:
        yield folder


def test_a_full_disk_loses_no_state(disk):
    """The run ends by naming the file; what was saved before stands and goes on elsewhere."""
    full = disk / "filler"

    def event(where, step):
        if (where, step) == ("before", 6):
            with open(full, "wb", buffering=0) as file:
                for _ in count():
                    try:
                        file.write(bytes(512))
                    except OSError:
                        break

    with pytest.raises(OSError, match="No space left") as error:
        train(disk, event)
    assert "step-00000008.pt" in str(error.value.filename)
    assert states(disk) == ["step-00000004.pt"]
    full.unlink()
    train(disk, resume=True)
