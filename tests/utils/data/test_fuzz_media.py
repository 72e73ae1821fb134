"""Fuzzing: whatever the bytes or the JSON, one clip or one line is the price, and never a crash."""

import io
import json
import time
import warnings
import zlib
from functools import partial

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.bad_media import mutant, tone, write_video
from utils.data.datasets import (
    DataError,
    fill_template,
    frames_path,
    parse_question,
    read_music_avqa,
    read_valor,
    wav_path,
)
from utils.data.extraction import extract_clip
from utils.data.isolated import in_processes
from utils.data.media import MediaError, read_frames

MUTANTS = 500  # of each kind


def with_checksums(png: bytes) -> bytes:
    """A PNG whose checksums are right again, so that damage gets past them."""
    data, at = bytearray(png), 8
    while (end := at + 8 + int.from_bytes(data[at : at + 4])) + 4 <= len(data):
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(data)


def test_any_video_costs_itself_alone(tmp_path):
    """Of 500 mutated videos each is extracted or fails in a line; what is written is whole, no
    decoder crashes and none takes 10 s."""
    kinds = {".mp4": ("libx264", "aac"), ".mov": ("mpeg4", "aac"), ".mkv": ("libx264", "libopus")}
    kinds[".avi"] = ("mjpeg", "pcm_s16le")
    sources = {}
    for suffix, codecs in kinds.items():
        pixels = "yuvj420p" if suffix == ".avi" else "yuv420p"
        path = tmp_path / f"source{suffix}"
        write_video(path, range(6), tone(0.4, 16000), codecs=codecs, pixels=pixels, size=(32, 32))
        sources[suffix] = path.read_bytes()
    clips, out = [], tmp_path / "out"
    for seed in range(MUTANTS):
        suffix = list(sources)[seed % len(sources)]
        clips.append(tmp_path / f"{seed}{suffix}")
        clips[-1].write_bytes(mutant(list(sources.values()), seed))
    extract = partial(extract_clip, out=out, frames=4, size=16)
    found = dict(in_processes(extract, clips, workers=2, seconds=10))
    assert set(found) == set(clips)
    whole = 0
    for clip, problems in found.items():
        assert all(len(p.splitlines()) == 1 for p in problems), problems
        assert not any("crashed" in p or "longer than" in p for p in problems), problems
        wav, folder = out / "ast_audio" / f"{clip.stem}.wav", out / "vivit_frames" / clip.stem
        assert not wav.exists() or soundfile.info(wav).frames
        assert not folder.exists() or read_frames(folder).shape == (4, 16, 16, 3)
        assert (wav.exists() and folder.exists()) == (not problems)
        whole += not problems
    assert MUTANTS / 4 < whole < MUTANTS  # some are damaged, some are not
    assert {p.name for p in out.iterdir()} == {"ast_audio", "vivit_frames", "sources"}


def wavs():
    sound = np.random.default_rng(0).normal(scale=0.1, size=(1600, 2))
    for subtype in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "FLAC"):
        file, kind = io.BytesIO(), "FLAC" if subtype == "FLAC" else "WAV"
        soundfile.write(file, sound, 16000, None if kind == subtype else subtype, format=kind)
        yield file.getvalue()


def images():
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 4), dtype=np.uint8)
    grey, rgb = noise[..., 0], Image.fromarray(noise[..., :3])
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    pictures = [rgb, Image.fromarray(noise), Image.fromarray(grey), deep, rgb.quantize(4)]
    for picture, kind in [*((p, "PNG") for p in pictures), (rgb, "JPEG")]:
        file = io.BytesIO()
        picture.save(file, kind)
        yield file.getvalue()


@pytest.mark.parametrize("kind", ["audio", "visual"])
def test_any_extracted_file_is_read_or_named(tmp_path, readers, kind):
    """Each of 500 mutated wavs and images gives finite inputs, or a line that names it, in 10 s of
    processor time."""
    sources = list(wavs() if kind == "audio" else images())
    path = tmp_path / ("x.wav" if kind == "audio" else "frame_1.png")
    good = 0
    for seed in range(MUTANTS):
        content = mutant(sources, seed)
        path.write_bytes(with_checksums(content) if content[1:4] == b"PNG" else content)
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # no picture of gigabytes is begun
                inputs, _ = readers[kind](path if kind == "audio" else tmp_path)
            assert inputs.isfinite().all(), seed
            good += 1
        except MediaError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1, seed
        assert time.process_time() - start < 10, seed
    assert MUTANTS / 20 < good < MUTANTS


text = st.text(st.characters(), max_size=12)  # with half characters
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
templates = text | st.lists(st.sampled_from(["<FL>", "<Object>", "Is it", "？"])).map(" ".join)
types = st.sampled_from(['["Audio", "Counting"]', '["Visual", "Location"]'])
fields = {
    "video_id": text | st.sampled_from(["..", "/x", "00000093"]),
    "type": types | json_values.map(json.dumps),
    "question_content": templates,
    "templ_values": st.lists(text, max_size=2).map(json.dumps) | json_values.map(json.dumps),
    "anser": text,
}
rows = st.fixed_dictionaries(
    {name: values | json_values for name, values in fields.items()},
    optional={"question_deleted": json_values, "desc": text | json_values},
)
fuzz = partial(settings, derandomize=True, deadline=None, database=None)
shared_folder = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def check(row):
    """What was read can be written, and its clip lies in the data set's folders."""
    for value in vars(row).values():
        assert value.encode() is not None
    for of in (frames_path, wav_path):
        path = of("root", row.video_id)
        assert path.parent == of("root", "x").parent and path.name not in ("", "..")
        assert not path.exists()  # asking is no error


@fuzz(max_examples=300)
@given(templates | json_values, st.lists(text, max_size=3) | json_values)
def test_any_template(content, values):
    """A template is filled with text or refused."""
    try:
        assert isinstance(fill_template(content, values), str)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


@fuzz(max_examples=300, suppress_health_check=shared_folder)
@given(rows)
def test_any_question(row):
    """A row is a question or refused in a line."""
    try:
        check(parse_question(row, "here"))
    except DataError as error:
        assert str(error).startswith("here") and len(str(error).splitlines()) == 1


@fuzz(max_examples=300, suppress_health_check=shared_folder)
@given(
    st.one_of(st.lists(rows, max_size=3), json_values).map(json.dumps).map(str.encode) | st.binary()
)
def test_any_annotation_file(tmp_path, content):
    """Any bytes are a list of rows or refused in a line that names the file."""
    (tmp_path / "annotations").mkdir(exist_ok=True)
    for read, name in ((read_valor, "desc_val.json"), (read_music_avqa, "avqa-val.json")):
        (tmp_path / "annotations" / name).write_bytes(content)
        try:
            for row in read(tmp_path, "val")[0]:
                check(row)
        except DataError as error:
            assert name in str(error) and len(str(error).splitlines()) == 1
