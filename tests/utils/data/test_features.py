"""The feature cache: tokens are what the encoder says of a clip now, and are computed once."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ASTConfig, ASTModel, VivitConfig, VivitModel

import task_align
from modules.token_transmitter import TokenTransmitter
from tests.helpers.tiny import (
    PATCHES,
    RATE,
    WINDOW,
    save_models,
    tiny_ast,
    tiny_vivit,
    write_clip,
)
from utils.data.datasets import frames_path, read_valor, wav_path
from utils.data.features import (
    Reader,
    cache_folder,
    cache_tokens,
    check_space,
    clip_bytes,
    media_stamp,
    missing,
    model_fingerprint,
    read_tokens,
    unreadable,
)
from utils.data.models import load_ast, load_vivit
from utils.files import write_whole

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "annotations"
CLIPS = {"0001": 0.3, "0002": 0.48, "0003": 1.3, "0004": 0.7}  # seconds: 1, 1, 3 and 2 windows
KINDS = pytest.mark.parametrize("kind", ["visual", "audio"])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models in the published layout."""
    return save_models(tmp_path_factory.mktemp("models"))


class Cache:
    """A data set, its two encoders and their cache; counts the clips' rows that are encoded."""

    def __init__(self, tmp_path, models):
        self.root, self.models, self.folder = tmp_path / "data", models, tmp_path / "cache"
        for seed, (name, seconds) in enumerate(CLIPS.items()):
            write_clip(self.root, name, seconds, seed)
        vivit, processor = load_vivit(models / "visual")
        ast, extractor = load_ast(models / "audio")
        self.tx = {
            "visual": TokenTransmitter(vivit, 1, 12, 4),
            "audio": TokenTransmitter(ast, 2, 12, 4),
        }
        self.readers = {
            "visual": Reader(processor, vivit.config, "visual"),
            "audio": Reader(extractor, ast.config, "audio"),
        }
        self.encoded = 0
        for tx in self.tx.values():
            tx.encoder.register_forward_pre_hook(self.count)

    def count(self, _, args):
        self.encoded += len(args[0])

    def media(self, kind, name):
        return (wav_path if kind == "audio" else frames_path)(self.root, name)

    def fill(self, kind, names=CLIPS, batch=32, workers=0):
        """Fill the cache; returns the bad clips and how many rows were encoded for it."""
        before = self.encoded
        todo, bad = missing(self.readers[kind], self.folder, self.root, list(names))
        bad |= cache_tokens(
            {self.folder: self.tx[kind]},
            self.readers[kind],
            todo,
            torch.device("cpu"),
            batch=batch,
            workers=workers,
        )
        return bad, self.encoded - before

    def file(self, name):
        return self.folder / f"{name}.safetensors"

    def tokens(self, kind, name):
        return read_tokens(self.file(name), media_stamp(self.media(kind, name)))

    def direct(self, kind, name):
        """What the encoder says of a clip, without the cache."""
        inputs = self.readers[kind](self.media(kind, name))
        return self.tx[kind].encode(inputs, [len(inputs)])[0].clone()


@pytest.fixture
def cache(tmp_path, models):
    return Cache(tmp_path, models)


def close(found, wanted):
    """Equal but for half precision."""
    torch.testing.assert_close(found.float(), wanted.float(), rtol=2e-3, atol=2e-3)


@KINDS
def test_cached_tokens_are_those_of_the_encoder(cache, kind):
    """Every clip's tokens are on disk in half precision, as encoding it directly gives them."""
    bad, rows = cache.fill(kind)
    assert bad == {} and rows == (4 if kind == "visual" else 1 + 1 + 3 + 2)
    assert sorted(os.listdir(cache.folder)) == [f"{name}.safetensors" for name in CLIPS]
    found = {name: cache.tokens(kind, name) for name in CLIPS}
    for name, tokens in found.items():
        assert tokens.shape == ((1 if kind == "visual" else 2) + 4, 16)
        assert tokens.dtype == torch.float16
        close(tokens, cache.direct(kind, name))
    assert (found["0001"] - found["0002"]).abs().max() > 0.01, "clips must differ"


@KINDS
@pytest.mark.parametrize("batch", [1, 3])
def test_batches_do_not_matter(cache, kind, batch):
    """Clips encoded one by one or a few at a time give the tokens of one large batch."""
    cache.fill(kind)
    whole = {name: cache.tokens(kind, name) for name in CLIPS}
    shutil.rmtree(cache.folder)
    cache.fill(kind, batch=batch)
    for name in CLIPS:
        close(cache.tokens(kind, name), whole[name])


@KINDS
def test_second_call_encodes_nothing(cache, kind):
    """What is cached is not computed again, and only what is new is added."""
    assert cache.fill(kind, ["0001", "0003"])[1] > 0
    assert cache.fill(kind, ["0001", "0003"]) == ({}, 0)
    assert cache.fill(kind)[1] == (2 if kind == "visual" else 1 + 2)
    assert cache.fill(kind) == ({}, 0)


def test_tokens_are_read_into_memory(cache):
    """Tokens that were read do not hang on the file: a data set of many clips is not as many
    mapped files, of which a process may have only so many."""
    cache.fill("audio", ["0001"])
    tokens, file = cache.tokens("audio", "0001"), cache.file("0001")
    kept, size = tokens.clone(), file.stat().st_size
    with open(file, "r+b") as opened:
        opened.write(b"\xff" * size)
    assert torch.equal(tokens, kept)


@KINDS
def test_a_clip_asked_for_twice_is_encoded_once(cache, kind):
    """A clip with many questions is listed many times but computed once."""
    assert cache.fill(kind, ["0001", "0002", "0001", "0001"]) == ({}, 2)


@KINDS
def test_changed_media_are_encoded_again(cache, kind):
    """Another sound or frame under the same name, of the same size too, is noticed, and its clip
    alone is encoded again, into the same folder."""
    cache.fill(kind)
    written = {name: cache.file(name).stat().st_mtime_ns for name in CLIPS}
    before = cache.tokens(kind, "0002")
    changed = cache.media(kind, "0002")
    changed = changed if kind == "audio" else changed / "frame_0002.png"
    stamp, size = changed.stat().st_mtime_ns, changed.stat().st_size
    if kind == "audio":
        soundfile.write(changed, soundfile.read(changed)[0][::-1], RATE)
        assert changed.stat().st_size == size
    else:
        Image.effect_noise((24, 20), 90).convert("RGB").save(changed)
    os.utime(changed, ns=(stamp + 1, stamp + 1))
    assert cache.tokens(kind, "0002") is None, "stale tokens were read"
    bad, rows = cache.fill(kind)
    assert bad == {} and rows == 1
    rewritten = {n for n, time in written.items() if cache.file(n).stat().st_mtime_ns != time}
    assert rewritten == {"0002"}
    close(cache.tokens(kind, "0002"), cache.direct(kind, "0002"))
    assert (cache.tokens(kind, "0002") - before).abs().max() > 0.01


def test_frames_added_or_lost_are_noticed(cache):
    """One frame more or less is another clip."""
    cache.fill("visual")
    (frames_path(cache.root, "0001") / "frame_0003.png").unlink()
    shutil.copy2(
        frames_path(cache.root, "0002") / "frame_0001.png",
        frames_path(cache.root, "0002") / "frame_0099.png",
    )
    assert cache.fill("visual") == ({}, 2)


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "no media named"])
def test_damaged_cache_file_is_made_again(cache, damage):
    """A broken file is no reason to stop: its clip is encoded again."""
    cache.fill("audio")
    file = cache.file("0003")
    content, tokens = file.read_bytes(), cache.tokens("audio", "0003").clone()
    if damage == "no media named":
        save_file({"tokens": tokens + 1}, file)
    else:
        broken = {"empty": b"", "truncated": content[: len(content) // 2], "garbage": 99 * b"\xff"}
        file.write_bytes(broken[damage])
    assert cache.tokens("audio", "0003") is None
    assert cache.fill("audio") == ({}, 3)
    assert torch.equal(cache.tokens("audio", "0003"), tokens)


@KINDS
def test_bad_clips_are_listed_and_skipped(cache, kind):
    """Clips without media, or with damaged ones, are named in one line; the others are kept."""
    write_clip(cache.root, "0005", 0.01, 5)  # shorter than AST's 25 ms
    media = {name: cache.media(kind, name) for name in CLIPS}
    if kind == "audio":
        media["0001"].write_bytes(b"noise" * 100)
        media["0002"].unlink()
        expected = ["0001", "0002", "0005"]
    else:
        (media["0001"] / "frame_0001.png").write_bytes(b"noise" * 100)
        shutil.rmtree(media["0002"])
        expected = ["0001", "0002"]
    bad, _ = cache.fill(kind, [*CLIPS, "0005", "nowhere"], batch=2)
    assert sorted(bad) == [*expected, "nowhere"]
    for name, reason in bad.items():
        assert str(cache.media(kind, name)) in reason and "\n" not in reason, reason
        assert not cache.file(name).exists()
    for name in ("0003", "0004"):
        close(cache.tokens(kind, name), cache.direct(kind, name))
    assert sorted(cache.fill(kind, [*CLIPS, "nowhere"])[0]) == sorted(
        {*expected, "nowhere"} - {"0005"}
    )


def test_only_bad_clips(cache):
    """A batch without one good clip leaves nothing to encode."""
    bad, rows = cache.fill("audio", ["nowhere", "neither"])
    assert set(bad) == {"nowhere", "neither"} and rows == 0


@pytest.mark.parametrize("samples", [0, 1, 239, 240, 241, 300, 399, 400, 401])
def test_sound_a_little_longer_than_its_windows(cache, samples):
    """What is left after the last whole window may be too short to read, which is no error."""
    rng = np.random.default_rng(0)
    sound = rng.normal(scale=0.1, size=WINDOW * RATE // 100 + samples)
    soundfile.write(wav_path(cache.root, "0001"), sound, RATE)
    bad, rows = cache.fill("audio", ["0001"])
    assert bad == {} and rows == (2 if samples >= 400 else 1)


def test_interrupted_caching_goes_on(cache):
    """Clips that were done before an interruption are not done again."""
    rows = []

    def stop(_, args):
        rows.append(len(args[0]))
        if len(rows) == 3:
            raise KeyboardInterrupt

    hook = cache.tx["visual"].encoder.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        cache.fill("visual", batch=1)
    hook.remove()
    assert cache.fill("visual") == ({}, 2)


@KINDS
def test_key_of_the_folder(cache, monkeypatch, tmp_path, kind):
    """Each thing that shapes the tokens gives another folder: a byte of the encoder's weights, its
    configuration and its processor's, frames, compression, length, and the cache's version. What
    does not shape them gives the same: the projection, where the model lies, the clips."""
    model = tmp_path / "model"
    shutil.copytree(cache.models / kind, model)

    def folder(frames=4, hidden=12, length=4, how="sliding_window"):
        encoder, special = cache.tx[kind].encoder, cache.tx[kind].special
        tx = TokenTransmitter(encoder, special, hidden, length, how)
        return cache_folder(cache.folder, model_fingerprint(model), tx, frames)

    first = folder()
    folders = [first, folder(frames=8), folder(length=5), folder(how="uniform")]
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        content = bytearray((model / name).read_bytes())
        place = len(content) - 1 if name.endswith("safetensors") else content.index(b":") + 1
        content[place] ^= ord(" ") ^ ord("\t")  # a byte of a weight, or white space in JSON
        before = (model / name).read_bytes()
        (model / name).write_bytes(content)
        folders.append(folder())
        (model / name).write_bytes(before)
    with monkeypatch.context() as patch:
        patch.setattr("utils.data.features.VERSION", 0)
        folders.append(folder())
    assert len(set(folders)) == len(folders) == 8
    assert first.parent == cache.folder and type(cache.tx[kind].encoder).__name__ in first.name
    shutil.rmtree(cache.root)
    model = model.rename(tmp_path / "moved")
    assert folder() == folder(hidden=20) == first


@KINDS
def test_fingerprint_follows_the_model(models, tmp_path, kind):
    """Another weight or setting is another model; a copy, or the note of its origin, is not."""
    copy = tmp_path / "copy"
    shutil.copytree(models / kind, copy)
    fingerprint = model_fingerprint(models / kind)
    assert model_fingerprint(copy) == fingerprint
    (copy / "revision.json").write_text('{"commit": "1234"}')
    assert model_fingerprint(copy) == fingerprint
    seen = {fingerprint}
    for name in ("config.json", "preprocessor_config.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace("}", ', "x": 1}', 1))
        seen.add(model_fingerprint(copy))
        (copy / name).write_text(text)
    assert model_fingerprint(copy) == fingerprint
    load = load_vivit if kind == "visual" else load_ast
    model, _ = load(copy)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    model.save_pretrained(copy)
    seen.add(model_fingerprint(copy))
    assert len(seen) == 4


def test_fingerprint_reads_all_weights(tmp_path):
    """A change in the middle of a large file of weights is noticed, not only at its ends."""
    (tmp_path / "config.json").write_text("{}")
    weights = torch.zeros(5, 1 << 18)  # 5 MiB
    seen = set()
    for row in range(5):
        changed = weights.clone()
        changed[row, 100] = 1
        save_file({"weight": changed}, tmp_path / "model.safetensors")
        seen.add(model_fingerprint(tmp_path))
    assert len(seen) == 5


def test_missing_model_is_named(tmp_path):
    """A folder without a model is named in one line."""
    with pytest.raises(FileNotFoundError) as error:
        model_fingerprint(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(error.value) and "\n" not in str(error.value)


@KINDS
def test_reader_goes_to_workers(cache, kind):
    """What reads the media can be sent to the processes that decode."""
    read = pickle.loads(pickle.dumps(cache.readers[kind]))
    path = cache.media(kind, "0003")
    assert torch.equal(read(path), cache.readers[kind](path))


@KINDS
def test_only_missing_clips_are_jobs(cache, kind):
    """What is cached is no job, nor is a clip without media, which is named with the reason."""
    cache.fill(kind, ["0001"])
    todo, bad = missing(
        cache.readers[kind], cache.folder, cache.root, ["0002", "0001", "nowhere", "0002"]
    )
    assert [job.video_id for job in todo] == ["0002"] and todo[0].path == cache.media(kind, "0002")
    assert todo[0].stamp == media_stamp(cache.media(kind, "0002"))
    assert set(bad) == {"nowhere"} and "\n" not in bad["nowhere"]


@KINDS
def test_unreadable_clips_are_those_that_cannot_be_encoded(cache, kind):
    """A run without a cache checks its clips beforehand and finds those that caching would find."""
    media = cache.media(kind, "0003")
    (media if kind == "audio" else media / "frame_0001.png").write_bytes(b"noise" * 100)
    names = [*CLIPS, "nowhere"]
    found = unreadable(cache.readers[kind], cache.root, names, batch=2, workers=0)
    assert set(found) == {"0003", "nowhere"} == set(cache.fill(kind, names)[0])
    assert all("\n" not in reason for reason in found.values())


@KINDS
def test_workers_change_nothing(cache, kind):
    """Clips that are read in processes beside give the same files, bit by bit."""
    cache.media(kind, "0004").rename(cache.root / "lost")
    bad, _ = cache.fill(kind, batch=2)
    files = {path.name: path.read_bytes() for path in cache.folder.iterdir()}
    shutil.rmtree(cache.folder)
    assert cache.fill(kind, batch=2, workers=2)[0] == bad and set(bad) == {"0004"}
    assert {path.name: path.read_bytes() for path in cache.folder.iterdir()} == files


@pytest.mark.parametrize("batch", [1, 2, 32])
@pytest.mark.parametrize("failing", [1, 3, 4])
def test_full_disk_ends_caching_and_keeps_what_is_done(cache, monkeypatch, batch, failing):
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
            cache.fill("visual", batch=batch)
    assert written == list(CLIPS)[: failing - 1]
    assert sorted(os.listdir(cache.folder)) == [cache.file(name).name for name in written]
    for name in written:
        close(cache.tokens("visual", name), cache.direct("visual", name))
    assert cache.fill("visual") == ({}, len(CLIPS) - len(written))


@KINDS
@pytest.mark.parametrize("how", ["sliding_window", "uniform"])
@pytest.mark.parametrize("length", [PATCHES // 2, PATCHES, 100 * PATCHES])
def test_size_of_the_cache_is_known_beforehand(cache, monkeypatch, kind, how, length):
    """What a clip is said to take is what its file takes, of fewer and of more tokens than asked
    for; files are of several blocks, so that this says something."""
    width = 1000
    make, special = (tiny_vivit, 1) if kind == "visual" else (tiny_ast, 2)
    cache.tx[kind] = TokenTransmitter(make(hidden_size=width), special, 12, length, how)
    names = ["0001", "0002"]  # of one window
    cache.fill(kind, names)
    blocks = [512 * cache.file(name).stat().st_blocks for name in names]
    assert sum(blocks) == pytest.approx(len(names) * clip_bytes(cache.tx[kind]), rel=0.05)
    assert blocks[0] >= 2 * width * (special + min(length, PATCHES)) > 2 * 4096


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="published annotations not here")
def test_cache_of_the_published_data_fits(tmp_path):
    """All clips of VALOR-32K by the paper's encoders take 129 and 130 tokens of width 768 each,
    and less than 15 GB together."""
    (tmp_path / "annotations").symlink_to(PUBLISHED / "VALOR")
    config = task_align.PRESETS["paper"]
    rows = [row for split in ("train", "val", "test") for row in read_valor(tmp_path, split)[0]]
    clips = len({row.video_id for row in rows})
    assert clips > 30_000
    with torch.device("meta"):
        vivit = VivitModel(VivitConfig(num_hidden_layers=1), add_pooling_layer=False)
        ast = ASTModel(ASTConfig(num_hidden_layers=1))
        img_tx = TokenTransmitter(vivit, 1, 1536, config.visual_tokens, config.compression)
        audio_tx = TokenTransmitter(ast, 2, 1536, config.audio_tokens, config.compression)
    sizes = clip_bytes(img_tx), clip_bytes(audio_tx)
    for size, tokens in zip(sizes, (129, 130), strict=True):
        assert 0 <= size - 2 * 768 * tokens < 2 * 4096
    assert 12e9 < clips * sum(sizes) < 15e9


def test_cache_that_does_not_fit_is_refused(tmp_path):
    """A disk too small for the cache is named before anything is encoded, with what to do."""
    folder = tmp_path / "new" / "cache"
    free = shutil.disk_usage(tmp_path).free
    assert str(folder) in check_space(folder, 1_230_000_000) and folder.is_dir()
    assert "1.23 GB" in check_space(folder, 1_230_000_000)
    with pytest.raises(OSError, match="--cache") as error:
        check_space(folder, 2 * free)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
