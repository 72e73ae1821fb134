"""The feature cache: tokens are what the encoder says of a clip now, and are computed once."""

import os
import pickle
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    VivitConfig,
    VivitImageProcessor,
    VivitModel,
)

from modules.token_transmitter import TokenTransmitter
from utils.datasets import frames_path, wav_path
from utils.feature_cache import (
    Reader,
    cache_folder,
    cache_tokens,
    media_stamp,
    model_fingerprint,
    read_tokens,
)
from utils.pretrained import load_ast, load_vivit

RATE, WINDOW = 16_000, 48  # Hz, frames of 10 ms that the encoder reads at once
CLIPS = {"0001": 0.3, "0002": 0.48, "0003": 1.3, "0004": 0.7}  # seconds: 1, 1, 3 and 2 windows
SIZES = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    initializer_range=0.2,
)
KINDS = pytest.mark.parametrize("kind", ["visual", "audio"])


def write_clip(root, name, seconds, seed):
    """A few frames and a sound, as the preprocessing writes them."""
    rng = np.random.default_rng(seed)
    folder, wav = frames_path(root, name), wav_path(root, name)
    folder.mkdir(parents=True, exist_ok=True)
    wav.parent.mkdir(parents=True, exist_ok=True)
    for i in range(3 + seed % 3):
        frame = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(frame).save(folder / f"frame_{i + 1:04}.png")
    soundfile.write(wav, rng.normal(scale=0.1, size=round(seconds * RATE)), RATE)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models in the published layout."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = VivitConfig(image_size=32, num_frames=4, tubelet_size=[2, 16, 16], **SIZES)
    VivitModel(config, add_pooling_layer=False).save_pretrained(root / "visual")
    side = {"height": 32, "width": 32}
    VivitImageProcessor(size=side, crop_size=side).save_pretrained(root / "visual")
    ASTModel(ASTConfig(num_mel_bins=32, max_length=WINDOW, **SIZES)).save_pretrained(root / "audio")
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=WINDOW)
    extractor.save_pretrained(root / "audio")
    return root


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

    def fill(self, kind, names=CLIPS, batch=32):
        """Fill the cache; returns the bad clips and how many rows were encoded for it."""
        before = self.encoded
        bad = cache_tokens(
            self.tx[kind],
            self.readers[kind],
            self.folder,
            self.root,
            list(names),
            torch.device("cpu"),
            batch=batch,
            workers=0,
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
    """Another sound or frame under the same name, of the same size too, is noticed."""
    cache.fill(kind)
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


def test_key_of_the_folder(cache):
    """Each thing that shapes the tokens gives another folder; the projection does not."""
    fingerprint = model_fingerprint(cache.models / "visual")

    def folder(fingerprint=fingerprint, frames=4, kind="visual", hidden=12, length=4, how=None):
        encoder, special = cache.tx[kind].encoder, cache.tx[kind].special
        tx = TokenTransmitter(encoder, special, hidden, length, how or "sliding_window")
        return cache_folder(cache.folder, fingerprint, tx, frames)

    folders = [
        folder(),
        folder(fingerprint=model_fingerprint(cache.models / "audio")),
        folder(frames=8),
        folder(length=5),
        folder(how="uniform"),
        folder(kind="audio"),
    ]
    assert len(set(folders)) == len(folders)
    assert folder() == folder(hidden=20) == folders[0] and folders[0].parent == cache.folder


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
