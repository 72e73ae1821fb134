"""The cache's files: named by all that shapes them, read whole or not at all, and their size."""

import os
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ASTConfig, ASTModel, VivitConfig, VivitModel

import task_align
from modules.token_compression import Layout
from modules.token_transmitter import Encoded, TokenTransmitter
from tests.helpers.tiny import PATCHES, RATE, tiny_ast, tiny_vivit, write_clip
from utils.data.datasets import read_valor
from utils.data.features import (
    cache_folder,
    check_space,
    clip_bytes,
    media_stamp,
    missing,
    packed,
    read_tokens,
)
from utils.data.models import model_fingerprint
from utils.files import write_whole

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "annotations"
KINDS = pytest.mark.parametrize("kind", ["visual", "audio"])


def clip(tokens, attention=None):
    """Tokens of a clip of which the first is special, in a row."""
    return Encoded(tokens, Layout(torch.arange(1.0, len(tokens))[:, None], attention))


@pytest.fixture
def model(models, kind, tmp_path):
    """A copy of a tiny encoder's folder, which a test may change."""
    return shutil.copytree(models / kind, tmp_path / "model")


@KINDS
def test_key_of_the_folder(model, encoders, monkeypatch, tmp_path, kind):
    """Each thing that shapes the tokens gives another folder: a byte of the encoder's weights, its
    configuration and its processor's, frames, compression, length, and the cache's version. What
    does not shape them gives the same: the projection, and where the model lies."""
    encoder, special = encoders[kind][0], 1 if kind == "visual" else 2

    def folder(frames=4, hidden=12, length=4, how="sliding_window"):
        tx = TokenTransmitter(encoder, special, hidden, length, how)
        return cache_folder(tmp_path / "cache", model_fingerprint(model), tx, frames)

    first = folder()
    folders = [first, folder(frames=8), folder(length=5), folder(how="uniform")]
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        before = (model / name).read_bytes()
        content = bytearray(before)
        place = len(content) - 1 if name.endswith("safetensors") else content.index(b":") + 1
        content[place] ^= ord(" ") ^ ord("\t")  # a byte of a weight, or white space in JSON
        (model / name).write_bytes(content)
        folders.append(folder())
        (model / name).write_bytes(before)
    with monkeypatch.context() as patch:
        patch.setattr("utils.data.features.VERSION", 0)
        folders.append(folder())
    assert len(set(folders)) == len(folders) == 8
    assert first.parent == tmp_path / "cache" and type(encoder).__name__ in first.name
    model = model.rename(tmp_path / "moved")
    assert folder() == folder(hidden=20) == first


@KINDS
def test_fingerprint_follows_the_model(models, model, kind):
    """A copy of a model, or the note of its origin, is no other model; a file more is one."""
    fingerprint = model_fingerprint(models / kind)
    (model / "revision.json").write_text('{"commit": "1234"}')
    assert model_fingerprint(model) == fingerprint
    (model / "more.json").write_text("{}")
    assert model_fingerprint(model) != fingerprint


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
def test_stamp_follows_the_media(readers, tmp_path, kind):
    """Another sound or frame under the same name, of the same size too, another time of the file,
    and a frame more or less, are each another state of a clip."""
    write_clip(tmp_path, "0001", 0.3, 0)
    path = readers[kind].path(tmp_path, "0001")
    file = path if kind == "audio" else path / "frame_0002.png"
    stamps, times = [media_stamp(path)], file.stat().st_mtime_ns
    assert media_stamp(path) == stamps[0]
    os.utime(file, ns=(times, times + 1))
    stamps.append(media_stamp(path))
    if kind == "audio":
        size = file.stat().st_size
        soundfile.write(file, soundfile.read(file)[0][::-1], RATE)
        assert file.stat().st_size == size
    else:
        Image.effect_noise((24, 20), 90).convert("RGB").save(file)
    os.utime(file, ns=(times, times + 2))
    stamps.append(media_stamp(path))
    if kind == "visual":
        shutil.copy2(file, path / "frame_0099.png")
        stamps.append(media_stamp(path))
        file.unlink()
        stamps.append(media_stamp(path))
    assert len(set(stamps)) == len(stamps)


def test_tokens_are_read_into_memory(tmp_path):
    """Tokens that were read do not hang on the file: a data set of many clips is not as many
    mapped files, of which a process may have only so many."""
    file, wanted = tmp_path / "x.safetensors", torch.arange(24.0).reshape(6, 4)
    file.write_bytes(packed(clip(wanted, torch.arange(5.0)), "stamp"))
    tokens, layout = read_tokens(file, "stamp")
    with open(file, "r+b") as opened:
        opened.write(b"\xff" * file.stat().st_size)
    assert tokens.dtype == torch.float16 and torch.equal(tokens, wanted.half())
    assert layout.places[:, 0].tolist() == [1, 2, 3, 4, 5] and layout.attention.tolist() == [
        *range(5)
    ]
    file.write_bytes(packed(clip(wanted), "stamp"))
    assert read_tokens(file, "stamp").layout.attention is None


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "no media named", "absent"])
def test_damaged_file_holds_no_tokens(tmp_path, damage):
    """A file that is broken, made of other media or says of none, or not there, is no error."""
    file, tokens = tmp_path / "x.safetensors", torch.ones(6, 4)
    content = packed(clip(tokens), "stamp")
    if damage == "no media named":
        save_file({"tokens": tokens.half()}, file)
    elif damage != "absent":
        broken = {"empty": b"", "truncated": content[: len(content) // 2], "garbage": 99 * b"\xff"}
        file.write_bytes(broken[damage])
    assert read_tokens(file, "stamp") is None
    file.write_bytes(content)
    assert read_tokens(file, "stamp") is not None and read_tokens(file, "other") is None


@KINDS
def test_only_missing_clips_are_jobs(readers, tmp_path, kind):
    """What is cached is no job, nor is a clip without media, which is named with the reason."""
    for seed, name in enumerate(("0001", "0002")):
        write_clip(tmp_path, name, 0.3, seed)
    paths = {name: readers[kind].path(tmp_path, name) for name in ("0001", "0002")}
    cached = packed(clip(torch.ones(6, 4)), media_stamp(paths["0001"]))
    (tmp_path / "0001.safetensors").write_bytes(cached)
    names = ["0002", "0001", "nowhere", "0002"]
    (job,), bad = missing(readers[kind], tmp_path, tmp_path, names)
    assert job == ("0002", paths["0002"], media_stamp(paths["0002"]))
    assert set(bad) == {"nowhere"} and "\n" not in bad["nowhere"]


@KINDS
@pytest.mark.parametrize(
    "length, how",
    [
        *(
            (PATCHES // 2, "sliding_window"),
            (PATCHES, "uniform"),
            (100 * PATCHES, "sliding_window"),
        ),
        (PATCHES // 2, "attention"),
    ],
)
def test_size_of_the_cache_is_known_beforehand(readers, tmp_path, kind, length, how):
    """What a clip is said to take is what its file takes, of fewer and of more tokens than its
    patches; files are of several blocks, so that this says something."""
    width = 1000
    make, special = (tiny_vivit, 1) if kind == "visual" else (tiny_ast, 2)
    tx = TokenTransmitter(make(hidden_size=width), special, 12, length, how)
    write_clip(tmp_path, "0001", 0.3, 0)  # of one window
    inputs, windows = readers[kind](readers[kind].path(tmp_path, "0001"))
    tokens, layout = tx.encode(inputs, windows and [windows])
    file = tmp_path / "file"
    one = Encoded(tokens[0], layout.each(lambda part: part[0]))
    write_whole(file, packed(one, 16 * "f"))
    blocks = 512 * file.stat().st_blocks
    assert blocks == pytest.approx(clip_bytes(tx), rel=0.05)
    assert blocks >= 2 * width * (special + length) > 2 * 4096


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
    said = check_space(folder, 1_230_000_000)
    assert str(folder) in said and "1.23 GB" in said and folder.is_dir()
    with pytest.raises(OSError, match="--cache") as error:
        check_space(folder, 2 * free)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
