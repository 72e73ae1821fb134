"""Odd media: sound and picture come out where they were put, as they are to be shown, or the clip
is named."""

from dataclasses import replace

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from benchmarks.odd_media import (
    FRAMES,
    MATRICES,
    RATE,
    SIZE,
    UPRIGHT,
    Case,
    faults,
    run,
    write_case,
)
from tests.helpers.bad_media import tone, write_video
from utils.data.extraction import extract_clip
from utils.data.media import read_frames, read_image
from utils.data.sources import read_record, targets
from utils.mini.scenes import draw_scene
from utils.mini.world import write_video as write_mini_clip

PLAIN = Case(".mp4", "libx264", "aac", fps=25, rate=48000)
MKV = replace(PLAIN, container=".mkv")


def extract(path, out):
    """The problems and the notes of a clip."""
    problems = extract_clip(path, out, frames=FRAMES, size=SIZE)
    return problems, read_record(path, out)["notes"]


def check(case, folder):
    """Make and extract the file of a case: what is wrong with it, and what is noted of it."""
    path = folder / f"x{case.container}"
    write_case(case, path, 0)
    problems, notes = extract(path, folder / "out")
    sound, frames = targets(path, folder / "out")
    return problems + faults(case, read_frames(frames), soundfile.read(sound)[0], 0), notes


@pytest.mark.slow
def test_a_share_of_the_odd_media(tmp_path):
    """Of a seeded share of the files of benchmarks/odd_media.py none is silently wrong."""
    found = run(14, seed=1, workers=1, folder=tmp_path)
    silent = {name: file for name, file in found.items() if file["result"] == "silent"}
    assert len(found) == 14 and not silent


@pytest.mark.slow
def test_all_odd_media(tmp_path):
    """Of 200 files, made as the committed counts were, none is silently wrong."""
    found = run(200, seed=0, workers=1, folder=tmp_path)
    silent = {name: file for name, file in found.items() if file["result"] == "silent"}
    assert len(found) == 200 and not silent


@pytest.mark.parametrize(
    "case, note",
    [
        (replace(PLAIN, offset=2), "sound for 4.0"),
        (replace(MKV, offset=2), "sound for 4.0"),
        (replace(MKV, offset=-2), "picture for 4.0"),
        (replace(PLAIN, gap="sound"), "sound for 3.0"),
        (replace(MKV, gap="sound"), "sound for 3.0"),
        (replace(MKV, gap="picture"), "picture for 3.2"),
        (replace(PLAIN, container=".flv", offset=3.5), "sound for 4.0"),
        (replace(PLAIN, container=".mpg", video="mpeg2video", audio="mp2", offset=3.5), "sound"),
    ],
    ids=lambda value: str(value)[:12] if isinstance(value, str) else value.container,
)
def test_sound_and_picture_keep_one_time_line(tmp_path, case, note):
    """A late or early sound and gaps stay where they were, and a clip that lacks more than a tenth
    of its sound or picture says so."""
    wrong, notes = check(case, tmp_path)
    assert wrong == [] and any(text.startswith(note) for text in notes), notes


def test_both_streams_fill_the_clip(tmp_path):
    """A plain clip has no notes, and its sound is as long as its picture to the sample: nothing is
    left of the encoder's padding."""
    assert check(PLAIN, tmp_path) == ([], [])
    assert soundfile.info(tmp_path / "out/ast_audio/x.wav").frames == 4 * RATE


def test_the_mini_world_has_no_padding(tmp_path):
    """A clip of the mini world, whose mp4 declares 49,024 samples for 3 s, gives 48,000."""
    path = tmp_path / "x.mp4"
    write_mini_clip(path, draw_scene(0, "train", 0))
    with av.open(str(path)) as container:
        assert container.streams.audio[0].duration == 49_024
    assert extract(path, tmp_path / "out") == ([], [])
    assert soundfile.info(tmp_path / "out/ast_audio/x.wav").frames == 48_000


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_all_display_matrices(tmp_path, matrix):
    """Each of the eight ways in which a picture can lie is shown upright."""
    assert len(MATRICES) == 8 and UPRIGHT in MATRICES
    assert check(replace(PLAIN, matrix=matrix), tmp_path) == ([], [])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_frames(tmp_path, orientation):
    """A user's frame that EXIF says to turn is read upright."""
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0], upright[0, 5], upright[3, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # What EXIF 2.3 says of the stored picture's first row and first column.
    lies = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1], 8: upright.swapaxes(0, 1)[:, ::-1],
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(lies[orientation])).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), upright)


@pytest.mark.parametrize("tracks", ["silent sound first", "thumbnail first", "small film too"])
def test_the_default_stream_is_read_and_others_are_named(tmp_path, tracks):
    """Of several tracks the default one is read, a still before the film is none, and the notes
    name what was not read."""
    kind = "audio" if "sound" in tracks else "video"
    for case in (replace(PLAIN, tracks=tracks), replace(MKV, tracks=tracks)):
        read = 2 if kind == "audio" else 1
        assert check(case, tmp_path) == ([], [f"{kind} stream {read} is read, not 0"])


def test_sound_that_cancels_out_is_named(tmp_path):
    """Two channels in opposite phase give a silent wav, which is noted."""
    path = tmp_path / "x.mov"
    sound = np.sin(np.arange(16000) / 5)
    bad = np.stack([sound, -sound], axis=1)
    write_video(path, sound=bad, codecs=("libx264", "pcm_s16le"))
    assert extract(path, tmp_path / "out") == ([], ["its sound is silent"])


@pytest.mark.parametrize("colour, video", [("HD untagged", "mpeg4"), ("bt709", "libx264")])
def test_colours(tmp_path, colour, video):
    """Untagged video is bt709 from 720 lines on, and tags are believed."""
    assert check(replace(PLAIN, video=video, colour=colour), tmp_path) == ([], [])


def test_hdr_is_named(tmp_path):
    """A film with the PQ curve is extracted and named."""
    wrong, notes = check(replace(PLAIN, colour="HDR"), tmp_path)
    assert not wrong and notes == ["is HDR (PQ) and not tone-mapped: its colours are pale"]


def test_a_damaged_time_fills_no_disk(tmp_path):
    """One frame 10,000 s after the others leaves the sound as it is and the clip named; the file
    would otherwise give hours of silence."""
    path, damaged = tmp_path / "x.mkv", "the times of its picture span 10000 s: damaged"
    write_video(path, [*range(12), 12 * 10_000], tone(1, 16000), codecs=("libx264", "pcm_s16le"))
    problems, notes = extract(path, tmp_path / "out")
    assert problems == [] and notes[0] == damaged
    assert soundfile.info(tmp_path / "out/ast_audio/x.wav").frames == 16000
    write_video(path, [*range(12), 12 * 10_000])
    problems, _ = extract(path, tmp_path / "out")
    assert problems == ["its times span 10000 s: damaged"]
