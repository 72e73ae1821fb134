"""A run's clips: encoded before training and cached, or encoded in every step, to the same end."""

import gc
import shutil
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import task_align
from benchmarks import steps
from tests.helpers.tiny import save_models, write_clip
from utils.data.clips import ClipMedia, ClipTokens, Collate, in_order
from utils.data.datasets import Caption, DataError, Question, frames_path, wav_path
from utils.data.encoding import encode_clips
from utils.system import build_system
from utils.training.processes import start

CLIPS = {"0001": 0.3, "0002": 0.48, "0003": 1.3, "0004": 0.7}  # seconds: 1, 1, 3 and 2 windows
WAYS = pytest.mark.parametrize("cached", [True, False])


def captions(*names):
    return [Caption(name, f"clip {name[-1]} sounds") for name in names]


def questions(*names):
    said = {"0001": "one", "0002": "two", "0003": "more than ten", "0004": "no"}
    return [
        Question(name, "Audio Counting", "How many?", f"How many in {name[-1]}?", said[name])
        for name in names
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@dataclass
class Run:
    """A data set, what a run is configured to do with it, and its one process."""

    root: Path
    config: Any
    accelerator: Accelerator

    def cached(self, yes):
        return self.config if yes else replace(self.config, cache="none")

    def encode(self, rows, cached=True):
        """A new system, its splits, and how many rows were encoded for them."""
        system, encoded = build_system(self.cached(cached)), []
        for tx in (system.img_tx, system.audio_tx):
            tx.encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
        clips, _ = encode_clips(system, self.cached(cached), self.root, rows, self.accelerator)
        return system, clips, sum(encoded)

    def files(self):
        """The cache's files, with the times at which they were written."""
        return {path: path.stat().st_mtime_ns for path in Path(self.config.cache).rglob("*.*")}


@pytest.fixture
def run(tmp_path, models, monkeypatch):
    root = tmp_path / "DATA"
    for seed, (name, seconds) in enumerate(CLIPS.items()):
        write_clip(root, name, seconds, seed)
    config = replace(
        task_align.PRESETS["mini"],
        data=str(root),
        visual_encoder=str(models / "visual"),
        audio_encoder=str(models / "audio"),
        cache=str(tmp_path / "cache"),
        workers=0,
        encode_batch=3,
        visual_tokens=4,
        audio_tokens=4,
        channel="none",
        receiver_width=32,
    )
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)  # which other tests may have set
    return Run(root, config, start(config))


def damage(root, kind, name):
    media = wav_path(root, name) if kind == "audio" else frames_path(root, name) / "frame_0001.png"
    media.write_bytes(b"noise" * 100)


def learned(system, clips, step):
    """Loss and gradients of a step on all rows, in order."""
    if step is steps.answer:
        torch.manual_seed(0)
        system.foundation.add_lora(4, 16, 0.0, ["q_proj", "v_proj"])
        for name, weight in system.named_parameters():
            if "lora_B" in name:  # which starts at zero and would hide the gradient of lora_A
                torch.nn.init.normal_(weight, std=0.1)
    system.train()
    (batch,) = in_order(clips, Collate(system.tokenizer), len(clips))
    loss = step(system, batch.to(torch.device("cpu")), None)
    loss.backward()
    return loss.item(), {k: p.grad for k, p in system.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("step, make", [(steps.align, captions), (steps.answer, questions)])
def test_both_ways_train_alike(run, step, make):
    """From the cache or by encoding at every step: the same loss and gradients, but for the half
    precision that the cache keeps."""
    rows = {"train": make("0003", "0001", "0004", "0002", "0003")}
    system, clips, encoded = run.encode(rows)
    assert isinstance(clips["train"], ClipTokens) and encoded == 4 + (1 + 1 + 3 + 2)
    loss, grads = learned(system, clips["train"], step)
    before = run.files()
    system, clips, encoded = run.encode(rows, cached=False)
    assert isinstance(clips["train"], ClipMedia) and encoded == 0 and run.files() == before
    wanted, wanted_grads = learned(system, clips["train"], step)
    assert loss == pytest.approx(wanted, rel=1e-3)
    assert grads.keys() == wanted_grads.keys() and len(grads) >= 16
    for name, grad in grads.items():
        scale = wanted_grads[name].abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(grad, wanted_grads[name], rtol=0.02, atol=5e-3 * scale)


@WAYS
@pytest.mark.parametrize("kind", ["visual", "audio"])
def test_damaged_clips_are_listed_and_left_out(run, capsys, cached, kind):
    """A clip of which either medium is damaged is named with the reason, and none of its rows is
    read; the others stay in order."""
    damage(run.root, kind, "0002")
    rows = {"train": captions("0001", "0002", "0003", "0002"), "test": captions("0002", "0004")}
    _, clips, _ = run.encode(rows, cached)
    assert [row.video_id for row in clips["train"].rows] == ["0001", "0003"]
    assert [row.video_id for row in clips["test"].rows] == ["0004"]
    assert all(len(part) == len([*in_order(part, list, 1)]) for part in clips.values())
    said = capsys.readouterr().out
    assert "1 clips left out:" in said
    (line,) = [line for line in said.splitlines() if line.startswith("  0002: ")]
    assert str(run.root) in line and said.count("0002: ") == 1


@WAYS
def test_split_without_a_good_clip_is_refused(run, cached):
    """A split of which nothing is left ends the run in one line that names it."""
    damage(run.root, "audio", "0002")
    rows = {"train": captions("0001"), "val": captions("0002"), "test": captions("0003")}
    with pytest.raises(DataError) as error:
        run.encode(rows, cached)
    assert all(part in str(error.value) for part in (str(run.root), "val"))
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="test"):
        run.encode({"train": captions("0001"), "test": []}, cached)


def test_encoders_are_released_after_caching(run):
    """Once every clip is cached nothing holds the encoders; without a cache they are kept."""
    rows = {"train": captions(*CLIPS)}
    system = build_system(run.config)
    encoders = [weakref.ref(tx.encoder) for tx in (system.img_tx, system.audio_tx)]
    encode_clips(system, run.config, run.root, rows, run.accelerator)
    gc.collect()
    assert [encoder() for encoder in encoders] == [None, None]
    assert not [name for name, _ in system.named_parameters() if ".encoder." in name]
    system, _, _ = run.encode(rows, cached=False)
    assert system.img_tx.encoder is not None and system.audio_tx.encoder is not None


def test_second_run_encodes_nothing(run):
    """Clips that one run or split has cached are not encoded by another, nor written again."""
    rows = {"train": captions("0001", "0002", "0001"), "test": captions("0002", "0003")}
    assert run.encode(rows)[2] == 3 + (1 + 1 + 3)
    before = run.files()
    assert len(before) == 2 * 3
    assert run.encode({"train": questions("0003", "0001")})[2] == 0
    assert run.files() == before
    assert run.encode({"train": captions("0001", "0004")})[2] == 1 + 2
    assert len(run.files()) == 2 * 4


def test_several_compressions_cost_one_encoding(run):
    """A sweep over compressions and lengths encodes each clip once; each of them then finds in the
    cache, to the last bit, what it would have written by itself."""
    rows = {"train": captions(*CLIPS)}
    ways = [(4, 4, "sliding_window"), (2, 4, "uniform"), (1, 3, "sliding_window")]
    system = build_system(run.config)
    encoded = []
    for tx in (system.img_tx, system.audio_tx):
        tx.encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    encode_clips(system, run.config, run.root, rows, run.accelerator, also=ways)
    assert sum(encoded) == 4 + 7
    assert len(run.files()) == 2 * 3 * len(CLIPS)
    together = run.config.cache
    for visual, audio, how in ways:
        changes = {"visual_tokens": visual, "audio_tokens": audio, "compression": how}
        run.config = replace(run.config, cache=together, **changes)
        _, clips, count = run.encode(rows)
        assert count == 0
        run.config = replace(run.config, cache=f"{together}-{visual}-{audio}")
        _, alone, count = run.encode(rows)
        assert count == 4 + 7
        for a, b in zip(clips["train"], alone["train"], strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
            assert len(a[0]) == 1 + visual and len(a[1]) == 2 + audio


def test_space_is_checked_before_anything_is_encoded(run, monkeypatch, capsys):
    """What the cache will take is said, and refused at once where the disk is too small; a cache
    that is full already needs no space."""
    rows, free = {"train": captions(*CLIPS)}, 2 * len(CLIPS) * 4096
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free - 1))
    with pytest.raises(OSError, match="--cache"):
        run.encode(rows)
    assert run.files() == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert run.encode(rows)[2] == 4 + 7
    assert "the cache grows by 0.00 GB" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert run.encode(rows)[2] == 0
    assert "the cache grows" not in capsys.readouterr().out
