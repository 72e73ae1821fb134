"""A run's clips: encoded before training and cached, or encoded in every step, to the same end."""

import gc
import json
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from safetensors import safe_open

import task_align
import task_avqa
from modules.system import Alignment, System
from modules.token_transmitter import TokenTransmitter
from tests.helpers.tiny import RATE, tiny_qwen2, write_clip
from utils.data.clips import ClipMedia, ClipTokens, Collate, in_order
from utils.data.datasets import AnnotationFile, Caption, DataError, Question
from utils.data.encoding import load_clips
from utils.data.features import SHARDS, Files, Job, media_stamp, read_tokens, store
from utils.data.models import build_system
from utils.files import write_whole
from utils.training.processes import start

CLIPS = {"0001": 0.3, "0002": 0.48, "0003": 1.3, "0004": 0.7}  # seconds: 1, 1, 3 and 2 windows
ALL = 4 + (1 + 1 + 3 + 2)  # rows that the encoders read of them
SPECIAL = {"visual": 1, "audio": 2}
WAYS = pytest.mark.parametrize("cached", [True, False])


def captions(*names):
    return [Caption(name, f"clip {name[-1]} sounds") for name in names]


def questions(*names):
    said = {"0001": "one", "0002": "two", "0003": "more than ten", "0004": "no"}
    return [
        Question(name, "Audio Counting", "How many?", f"How many in {name[-1]}?", said[name])
        for name in names
    ]


class Run:
    """A data set, and what a run on tiny encoders does with it; counts the rows encoded."""

    def __init__(self, folder, models, encoders, readers):
        self.root, self.encoders, self.readers = folder / "DATA", encoders, readers
        self.encoded = self.most = 0  # in all, and in a call
        for seed, (name, seconds) in enumerate(CLIPS.items()):
            write_clip(self.root, name, seconds, seed)
        self.options = dict(
            preset="paper",  # no mini world is made
            data=str(self.root),
            visual_encoder=str(models / "visual"),
            audio_encoder=str(models / "audio"),
            cache=str(folder / "cache"),
            figures="none",
            workers=0,
            encode_batch=3,
            visual_tokens=4,
            audio_tokens=4,
            channel="none",
            compression="sliding_window",
            receiver_width=32,
        )
        self.accelerator = start(self.config())
        self.hooks = [
            model.register_forward_pre_hook(lambda _, args: self.count(len(args[0])))
            for model, _ in encoders.values()
        ]

    def count(self, rows):
        self.encoded += rows
        self.most = max(self.most, rows)

    def config(self, stage=task_align, **options):
        trained = {"text_receiver": "residual"}  # as all receivers
        return replace(stage.PRESETS["mini"], **{**trained, **self.options, **options})

    def load(self, train, val=None, test=None, also=(), system=None, **options):
        """The clips of a run, and how many rows were encoded for them."""
        config = self.config(**options)
        splits = {"train": train, "val": train if val is None else val, "test": test or train}

        def read(root, split):
            assert root == self.root
            return splits[split], AnnotationFile(split, "hash", len(splits[split]))

        if system is None:
            encoders = {kind: (model, SPECIAL[kind]) for kind, (model, _) in self.encoders.items()}
            system = System(config, encoders, tiny_qwen2())
        before = self.encoded
        clips = load_clips(config, read, system, self.readers, self.accelerator, also)
        return clips, self.encoded - before

    def media(self, kind, name):
        return self.readers[kind].path(self.root, name)

    def damage(self, kind, name):
        path = self.media(kind, name)
        (path if kind == "audio" else path / "frame_0001.png").write_bytes(b"noise" * 100)

    def files(self):
        """The cache's files, with the times at which they were written."""
        return {path: path.stat().st_mtime_ns for path in Path(self.options["cache"]).rglob("*.*")}

    def check(self, clips, names=CLIPS):
        """That the cache holds what the encoders say of clips one by one, in half precision."""
        for kind, (model, reader) in self.encoders.items():
            tx = TokenTransmitter(model, SPECIAL[kind], 12, 4)
            for name in names:
                path = self.media(kind, name)
                inputs, windows = reader(path)
                wanted, layout = tx.encode(inputs, windows and [windows])
                file = clips["train"].folders[kind] / f"{name}.safetensors"
                found, kept = read_tokens(file, media_stamp(path))
                assert torch.equal(kept.places, layout.places[0]) and kept.attention is None
                assert found.shape == (SPECIAL[kind] + 4, 16) and found.dtype == torch.float16
                torch.testing.assert_close(found.float(), wanted[0], rtol=2e-3, atol=2e-3)


@pytest.fixture
def run(tmp_path, models, encoders, readers, one_process):
    run = Run(tmp_path, models, encoders, readers)
    yield run
    for hook in run.hooks:
        hook.remove()


def learned(run, stage, rows, cache):
    """The clips, and loss and gradients of a step of a stage on all of them, in order."""
    config = run.config(stage, cache=cache)
    if stage is task_align:
        system, processors = build_system(config)
        model = Alignment(system, config)
    else:
        model, processors = task_avqa.build_model(replace(config, lora_dropout=0.0))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name or ".correction.2." in name:
            # These start at zero and would hide the gradients of what is before them.
            torch.nn.init.normal_(weight, std=0.1)
    clips, _ = run.load(rows, system=model.system, cache=cache)
    collate = Collate(processors.tokenizer)
    (batch,) = in_order(clips["train"], collate, len(clips["train"]))
    loss = model.train()(batch.to(torch.device("cpu")), None)
    loss = loss[0]["loss"] if stage is task_align else loss
    loss.backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
    return clips["train"], loss.item(), grads


@pytest.mark.parametrize("stage, make", [(task_align, captions), (task_avqa, questions)])
def test_both_ways_train_alike(run, stage, make):
    """From the cache or by encoding at every step: the same loss and gradients, but for the half
    precision that the cache keeps."""
    rows = make("0003", "0001", "0004", "0002", "0003")
    clips, loss, grads = learned(run, stage, rows, run.options["cache"])
    before = run.files()
    media, wanted, wanted_grads = learned(run, stage, rows, "none")
    assert isinstance(clips, ClipTokens) and isinstance(media, ClipMedia)
    assert len(before) == 2 * len(CLIPS) and run.files() == before
    assert loss == pytest.approx(wanted, rel=1e-3)
    assert grads.keys() == wanted_grads.keys() and len(grads) >= 16
    for name, grad in grads.items():
        scale = wanted_grads[name].abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(grad, wanted_grads[name], rtol=0.02, atol=5e-3 * scale)


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_cached_tokens_are_those_of_the_encoder(run, batch):
    """Every clip's tokens are on disk in half precision, as encoding it alone gives them, whether
    clips are encoded one by one, a few at a time or all at once."""
    clips, encoded = run.load(captions(*CLIPS), encode_batch=batch)
    assert encoded == ALL and len(run.files()) == 2 * len(CLIPS)
    assert run.most <= batch  # windows count: a sound of 20 minutes is read in parts
    run.check(clips)
    first, second, *_ = clips["train"]
    assert min((a - b).abs().max() for a, b in zip(first[:2], second[:2], strict=True)) > 0.01


@WAYS
@pytest.mark.parametrize("batch", [1, 2])
def test_bad_clips_are_listed_and_left_out(run, capsys, cached, batch):
    """Clips of which a medium is damaged, too short or missing are named with the reason, and none
    of their rows is read; the others stay in order, their tokens as they are without bad ones, and
    are counted. A batch of bad clips alone leaves nothing to encode."""
    bad = {"0005": "audio", "0006": "visual", "0007": "audio", "0008": "visual", "0009": "audio"}
    for seed, name in enumerate(bad):
        write_clip(run.root, name, 0.01 if name == "0005" else 0.3, seed)  # AST needs 25 ms
    run.damage("visual", "0006")
    run.damage("audio", "0007")
    shutil.rmtree(run.media("visual", "0008"))
    run.media("audio", "0009").unlink()
    clips, _ = run.load(
        captions("0001", "0005", "0006", "0007", "0003", "0005"),
        val=captions("0008", "0002"),
        test=captions("0009", "0004", "0006"),
        encode_batch=batch,
        **({} if cached else {"cache": "none"}),
    )
    kept = {"train": ["0001", "0003"], "val": ["0002"], "test": ["0004"]}
    assert {split: [row.video_id for row in part.rows] for split, part in clips.items()} == kept
    assert all(len(part) == len([*in_order(part, list, 1)]) for part in clips.values())
    assert clips.total == {"train": 6, "val": 2, "test": 3}
    assert {split: file.rows for split, file in clips.files.items()} == clips.total
    said = capsys.readouterr().out.splitlines()
    assert "5 clips left out:" in said and list(clips.left_out) == sorted(bad)
    for name, reason in clips.left_out.items():
        assert str(run.media(bad[name], name)) in reason and "\n" not in reason
        assert said.count(f"  {name}: {reason}") == 1
    if cached:
        run.check(clips)
        folders = clips["train"].folders
        assert not any(
            (folders[kind] / f"{name}.safetensors").exists() for name, kind in bad.items()
        )


@WAYS
def test_split_without_a_good_clip_is_refused(run, cached):
    """A split of which nothing is left ends the run in one line that names it."""
    run.damage("audio", "0002")
    options = {} if cached else {"cache": "none"}
    one, other = captions("0001"), captions("0003")
    for split, rows in {"damaged": captions("0002"), "empty": []}.items():
        with pytest.raises(DataError, match="the val split") as error:
            run.load(one, val=rows, test=other, **options)
        assert str(run.root) in str(error.value) and "\n" not in str(error.value), split


def test_encoders_are_released_after_caching(run):
    """Once every clip is cached nothing holds the encoders; without a cache they are kept."""
    system, _ = build_system(run.config())
    encoders = [weakref.ref(tx.encoder) for tx in system.transmitters.values()]
    run.load(captions(*CLIPS), system=system)
    gc.collect()
    assert [encoder() for encoder in encoders] == [None, None]
    assert not [name for name, _ in system.named_parameters() if ".encoder." in name]
    system, _ = build_system(run.config())
    run.load(captions(*CLIPS), system=system, cache="none")
    assert all(tx.encoder is not None for tx in system.transmitters.values())


def test_second_run_encodes_nothing(run):
    """Clips that one run, split or row has cached are not encoded for another, nor written
    again."""
    shown = captions("0001", "0002", "0001")
    assert run.load(shown, test=captions("0002", "0003"))[1] == 3 + (1 + 1 + 3)
    before = run.files()
    assert len(before) == 2 * 3
    assert run.load(questions("0003", "0001"))[1] == 0 and run.files() == before
    assert run.load(captions("0001", "0004"))[1] == 1 + 2 and len(run.files()) == 2 * 4


def test_changed_media_are_encoded_again(run):
    """Another sound of the same size and times of a frame, frames added or lost: such clips alone
    are encoded again, into the same folder."""
    clips, _ = run.load(captions(*CLIPS))
    before = run.files()
    sound, frames = run.media("audio", "0002"), run.media("visual", "0001")
    time = sound.stat().st_mtime_ns
    soundfile.write(sound, soundfile.read(sound)[0][::-1], RATE)
    os.utime(sound, ns=(time + 1, time + 1))
    (frames / "frame_0003.png").unlink()
    shutil.copy2(frames / "frame_0001.png", run.media("visual", "0003") / "frame_0099.png")
    clips, encoded = run.load(captions(*CLIPS))
    assert encoded == 1 + 2 and run.files().keys() == before.keys()
    again = {path for path, time in run.files().items() if time != before[path]}
    folders = clips["train"].folders
    wanted = {"0002": "audio", "0001": "visual", "0003": "visual"}
    assert again == {folders[k] / f"{name}.safetensors" for name, k in wanted.items()}
    run.check(clips)


def test_damaged_cache_file_is_made_again(run):
    """A broken file is no reason to stop: its clip is encoded again, to the same file."""
    clips, _ = run.load(captions(*CLIPS))
    file = clips["train"].folders["audio"] / "0003.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert run.load(captions(*CLIPS))[1] == 3 and file.read_bytes() == content


@pytest.mark.parametrize("shard, files", [(1, 2 * len(CLIPS)), (100, 3)])
def test_interrupted_caching_goes_on(run, shard, files):
    """Clips that were done before Ctrl-C are not done again, though their shard was not full."""
    rows = []

    def stop(_, args):
        rows.append(len(args[0]))
        if len(rows) == 3:
            raise KeyboardInterrupt

    hook = run.encoders["visual"][0].register_forward_pre_hook(stop, prepend=True)
    with pytest.raises(KeyboardInterrupt):
        run.load(captions(*CLIPS), encode_batch=1, cache_shard=shard)
    hook.remove()
    clips, encoded = run.load(captions(*CLIPS), cache_shard=shard)
    assert encoded == ALL - 2 and len(run.files()) == files
    alone, _ = run.load(captions(*CLIPS), cache=f"{run.root.parent}/alone")
    assert same_tokens(clips["train"], alone["train"])


@pytest.mark.parametrize("batch, failing", [(1, 1), (1, 4), (2, 3), (32, 4)])
def test_full_disk_ends_caching_and_keeps_what_is_done(run, monkeypatch, batch, failing):
    """A write that fails, beside the encoding or after it, is raised though another one might not
    fail; earlier clips stay whole, later ones are not begun."""
    tried, written = [], []

    def full(path, content):
        tried.append(path)
        if len(tried) == failing:
            raise OSError(28, "No space left on device")
        written.append(path.stem)
        write_whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("utils.data.features.write_whole", full)
        with pytest.raises(OSError, match="No space left"):
            run.load(captions(*CLIPS), encode_batch=batch)
    assert written == list(CLIPS)[: failing - 1]
    assert sorted(path.name for path in run.files()) == [f"{name}.safetensors" for name in written]
    clips, encoded = run.load(captions(*CLIPS))
    assert encoded == ALL - len(written)
    run.check(clips)


def shards(run):
    """The clips of each shard of sound, in the order in which they were written."""
    files = sorted(Path(run.options["cache"]).rglob("AST*/*"), key=lambda p: p.stat().st_mtime_ns)
    found = []
    for path in files:
        with safe_open(path, "pt") as file:
            found.append([name for name, _ in json.loads(file.metadata()["clips"])])
    return found


def same_tokens(a, b):
    """Whether two loaded splits hold the same, to the last bit."""
    return all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) and x[3].keys() == y[3].keys()
        and all(torch.equal(x[3][k].places, y[3][k].places) for k in x[3])
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


def test_clips_share_files(run, monkeypatch):
    """In shards lie the same tokens as in a file a clip, whether held in memory or read as asked
    for; a second run of any size of shards encodes nothing, and adds what is new."""
    alone, _ = run.load(captions(*CLIPS), cache=f"{run.root.parent}/alone")
    clips, encoded = run.load(captions("0001", "0002", "0003"), cache_shard=2, encode_batch=1)
    assert encoded == 3 + (1 + 1 + 3) and shards(run) == [["0001", "0002"], ["0003"]]
    assert run.load(captions("0001", "0003"), cache_shard=3)[1] == 0
    clips, encoded = run.load(captions(*CLIPS), cache_shard=3)
    assert encoded == 1 + 2 and shards(run)[2:] == [["0004"]]
    assert same_tokens(clips["train"], alone["train"])
    monkeypatch.setattr("utils.data.clips.IN_MEMORY", 0)
    clips, _ = run.load(captions(*CLIPS), cache_shard=3)
    assert not clips["train"].kept and same_tokens(clips["train"], alone["train"])


def test_the_newest_shard_of_a_clip_counts(run):
    """A changed clip is encoded again into another shard, whose tokens are read from then on; so
    too where the old media come back."""
    clips, _ = run.load(captions(*CLIPS), cache_shard=4)
    before = clips["train"][2][1]
    sound = run.media("audio", "0003")
    content, times = sound.read_bytes(), sound.stat()
    soundfile.write(sound, soundfile.read(sound)[0][::-1], RATE)
    clips, encoded = run.load(captions(*CLIPS), cache_shard=4)
    assert encoded == 3 and not torch.equal(clips["train"][2][1], before)
    sound.write_bytes(content)
    os.utime(sound, ns=(times.st_atime_ns, times.st_mtime_ns))
    clips, encoded = run.load(captions(*CLIPS), cache_shard=4)
    assert encoded == 3 and torch.equal(clips["train"][2][1], before)
    assert run.load(captions(*CLIPS), cache_shard=4)[1] == 0
    assert shards(run)[1:] == [["0003"], ["0003"]]


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_damaged_shard_is_made_again(run, share):
    """One that is cut off anywhere, or emptied, costs its own clips."""
    run.load(captions("0001", "0002"), cache_shard=2)
    clips, _ = run.load(captions(*CLIPS), cache_shard=2)
    path = clips["train"].stores[1].path("0003")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    clips, encoded = run.load(captions(*CLIPS), cache_shard=2)
    assert encoded == 3 + 2
    alone, _ = run.load(captions(*CLIPS), cache=f"{run.root.parent}/alone")
    assert same_tokens(clips["train"], alone["train"])


def test_a_lost_shard_is_named(run, monkeypatch):
    """One that goes while a run is under way ends it in a line."""
    monkeypatch.setattr("utils.data.clips.IN_MEMORY", 0)
    clips, _ = run.load(captions(*CLIPS), cache_shard=4)
    path = clips["train"].stores[1].path("0003")
    path.unlink()
    with pytest.raises(OSError, match="unreadable; remove it, run again") as error:
        clips["train"][2]
    assert str(path) in str(error.value)


def test_two_writers_of_shards_lose_nothing(run):
    """Two runs that fill one cache at the same time, with the same clips among theirs, each find
    all of their own; nobody's shard replaces another's."""
    clips, _ = run.load(captions(*CLIPS), cache=f"{run.root.parent}/alone")
    jobs = [Job(name, run.media("audio", name), name) for name in CLIPS]
    tokens = {name: Files(clips["train"].folders["audio"]).read(name) for name in CLIPS}
    folder = Path(run.options["cache"]) / f"AST{SHARDS}"
    folder.mkdir(parents=True)
    first, second = store(folder, 2), store(folder, 3)
    for i in (0, 1, 2, 3):
        first.add(jobs[i], tokens[jobs[i].video_id])
        second.add(jobs[i], tokens[jobs[i].video_id])
    first.flush()
    second.flush()
    assert len(list(folder.iterdir())) == 4
    found = store(folder)
    for job in jobs:
        assert found.holds(job.video_id, job.stamp) and not found.holds(job.video_id, "other")
        assert torch.equal(found.read(job.video_id).tokens, tokens[job.video_id].tokens)


def test_workers_change_nothing(run):
    """Clips that are read in processes beside give the same files, bit by bit."""
    run.damage("visual", "0004")
    found = []
    for workers in (0, 2):
        options = {"cache": f"{run.root.parent}/{workers}", "workers": workers, "encode_batch": 2}
        clips, _ = run.load(captions(*CLIPS), **options)
        files = {p.name: p.read_bytes() for p in Path(options["cache"]).rglob("*.safetensors")}
        found.append((clips.left_out, files))
    assert found[0] == found[1] and set(found[0][0]) == {"0004"}


def test_several_compressions_cost_one_encoding(run):
    """A sweep over compressions and lengths encodes each clip once; each of them then finds in the
    cache, to the last bit, what it would have written by itself."""
    rows, together = captions(*CLIPS), run.options["cache"]
    ways = [(4, 4, "sliding_window"), (2, 4, "uniform"), (1, 3, "sliding_window")]
    ways += [(2, 2, "attention"), (2, 5, "grid")]
    assert run.load(rows, also=ways)[1] == ALL
    assert len(run.files()) == 2 * len(ways) * len(CLIPS)
    for visual, audio, how in ways:
        way = {"visual_tokens": visual, "audio_tokens": audio, "compression": how}
        clips, encoded = run.load(rows, **way)
        alone, encoded_alone = run.load(rows, **way, cache=f"{together}-{visual}-{audio}-{how}")
        assert (encoded, encoded_alone) == (0, ALL)
        for a, b in zip(clips["train"], alone["train"], strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
            assert len(a[0]) == 1 + visual and len(a[1]) == 2 + audio
            for kind, length in (("visual", visual), ("audio", audio)):
                (places, attention), (own, own_attention) = a[3][kind], b[3][kind]
                assert torch.equal(places, own) and len(places) == length
                assert (attention is None) == (how != "attention")
                assert attention is None or torch.equal(attention, own_attention)


def test_space_is_checked_before_anything_is_encoded(run, monkeypatch, capsys):
    """What the cache will take is said, and refused at once where the disk is too small; a cache
    that is full already needs no space."""
    rows, free = captions(*CLIPS), 2 * len(CLIPS) * 4096
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free - 1))
    with pytest.raises(OSError, match="--cache"):
        run.load(rows)
    assert run.files() == {} and run.encoded == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert run.load(rows)[1] == ALL
    assert "the cache grows by 0.00 GB" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert run.load(rows)[1] == 0
    assert "the cache grows" not in capsys.readouterr().out
