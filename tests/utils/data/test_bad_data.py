"""Bad data: each broken or odd input ends as expected, and costs the good ones nothing."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from tests.helpers import bad_media
from tests.helpers.bad_media import BAD_MEDIA, SHELL, STEP, TONE
from tests.helpers.limit import LIMIT
from utils import raw_video_preprocess
from utils.data.datasets import frames_path, wav_path
from utils.data.encoding import unreadable_clips
from utils.data.media import even_indices, read_frames, read_wav
from utils.raw_video_preprocess import preprocess

FRAMES = 8
BAD_VIDEOS = {  # how the reason begins
    "empty.mp4": "cannot be decoded (",
    "zeros.mp4": "cannot be decoded (",
    "cut.mp4": "cannot be decoded (",
    "text.mp4": "cannot be decoded (",
    "$(touch X) bad.mp4": "cannot be decoded (",
    "playlist.mp4": "is not in a video format",
    "pipe.mp4": "is not a file",
    "gone.mp4": "is not a file",
    "mute.mp4": "no audio stream",
    "blind.mp4": "no video stream",
    "1 Hz.avi": "has a sample rate of 1 Hz",
}
KEPT = {"mute": "vivit_frames", "blind": "ast_audio", "1 Hz": "vivit_frames"}  # of bad videos


def preprocess_all(work, videos):
    """Run the command in the folder `work`; returns what it printed and the extraction folder."""
    command = [sys.executable, raw_video_preprocess.__file__, videos, "out"]
    command += ["--frames", str(FRAMES), "--size", "16", "--workers", "2"]
    ran = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=LIMIT)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
    return ran.stdout, work / "out"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The good videos alone, and the whole corpus: what was printed, and where it is."""
    found = {}
    for kind in ("good", "all"):
        work = tmp_path_factory.mktemp(kind)
        folder = work / "my videos; touch X"
        bad_media.write_good_videos(folder)
        if kind == "all":
            bad_media.write_odd_videos(folder)
            bad_media.write_bad_videos(folder)
        found[kind] = preprocess_all(work, folder.name)
    return found


@pytest.fixture(scope="module")
def out(runs):
    return runs["all"][1]


def levels(out, name):
    return read_frames(out / "vivit_frames" / name).mean(axis=(1, 2, 3)) / STEP


def content(out, names):
    paths = [*(out / "ast_audio").iterdir(), *(out / "vivit_frames").glob("*/*")]
    return {
        path.relative_to(out): path.read_bytes()
        for path in paths
        if (path.parent.name if path.suffix == ".png" else path.stem) in names
    }


def test_every_bad_video_is_listed_with_its_reason(runs, out):
    """The summary names each bad file once, in a line, and no other."""
    head, *lines = runs["all"][0].split("\n5 with notes:")[0].splitlines()
    done = 2 + 8 + len(SHELL)
    assert head == f"{done} done, 0 already finished, {len(BAD_VIDEOS)} incomplete"
    assert len(lines) == len(BAD_VIDEOS)
    for name, reason in BAD_VIDEOS.items():
        assert any(line.startswith(f"  {name!r}: {reason}") for line in lines), (name, lines)


def test_bad_videos_change_nothing_for_the_good(runs):
    """Good clips come out byte for byte as in a run of their own."""
    alone, among = (content(runs[kind][1], ("one", "two")) for kind in ("good", "all"))
    assert len(alone) == 2 * (FRAMES + 1) and alone == among


def test_nothing_half_done_is_left(out):
    """Every folder of frames is whole, a bad clip leaves what it has, and no name was run."""
    made = {"ast_audio", "vivit_frames", "sources", "extraction.json"}
    assert {p.name for p in out.iterdir()} == made
    for folder in (out / "vivit_frames").iterdir():
        assert len(list(folder.iterdir())) == FRAMES
    for name in BAD_VIDEOS:
        kept = {p.parts[0] for p in content(out, [Path(name).stem])}
        assert kept == {k for k in [KEPT.get(Path(name).stem)] if k}, name
    assert len(list(out.parent.iterdir())) == 2, "a name reached a shell"


@pytest.mark.parametrize("name", SHELL)
def test_names_mean_nothing(out, name):
    """A clip of any name is extracted as the same clip of a plain name."""
    same = [content(out, [n]).values() for n in ("one", name)]
    assert len(same[0]) == FRAMES + 1 and sorted(same[0]) == sorted(same[1])


def test_odd_pictures_come_out_right(out):
    """One frame is repeated, frames are spread by time, odd sizes and rotation are as shown."""
    assert np.ptp(levels(out, "one frame")) == 0 and levels(out, "one frame")[0] < 0.3
    times = [0, 1, 2, 3, 12, 13, 14, 15]
    centres = (np.arange(FRAMES) + 0.5) * 16 / FRAMES
    expected = np.searchsorted(times, centres, side="right") - 1
    assert np.abs(levels(out, "variable rate") - expected).max() < 0.3
    assert np.abs(levels(out, "odd size") - even_indices(12, FRAMES)).max() < 0.3
    frame = read_frames(out / "vivit_frames" / "rotated")[0]
    quarters = frame.reshape(2, 8, 2, 8, 3).mean(axis=(1, 3, 4)) > 128
    assert quarters.tolist() == [[False, False], [True, False]]  # white was at the top left


@pytest.mark.parametrize("name, peak", [("8 kHz", 0.5), ("stereo", 0.25), ("one frame", 0.5)])
def test_odd_sounds_are_converted(out, name, peak):
    """Any rate becomes 16 kHz and stereo its mean: length, pitch and loudness stay."""
    sound, rate = soundfile.read(out / "ast_audio" / f"{name}.wav")
    assert rate == 16000 and sound.ndim == 1 and abs(len(sound) - 16000) < 2500  # AAC pads
    middle = sound[4000:12000]
    assert abs(np.abs(np.fft.rfft(middle)).argmax() * 2 - TONE) <= 2
    assert abs(np.abs(middle).max() - peak) < 0.05


def test_silent_and_short_sounds_are_kept(runs, out):
    """Silence stays silent, 100 samples stay 100 with silence up to the film's end, and both are
    named."""
    silent, _ = soundfile.read(out / "ast_audio" / "silent.wav")
    assert len(silent) == 16000 and not silent.any()
    short, _ = soundfile.read(out / "ast_audio" / "short sound.wav")
    assert len(short) == 16000 and short[1:100].all() and not short[100:].any()
    assert "\n  'silent.mov': its sound is silent\n" in runs["all"][0]
    assert "\n  'short sound.mov': sound for 0.01 of 1.00 s\n" in runs["all"][0]


def test_a_crash_leaves_nothing_and_comes_back_as_one_line(tmp_path, monkeypatch):
    """A decoder that crashes costs its clip alone, also when that is the only one left to do, and
    what it had begun is removed."""
    monkeypatch.setattr(raw_video_preprocess, "extract_clip", bad_media.crash_on_bad)
    bad_media.write_good_videos(tmp_path / "videos")
    (tmp_path / "videos" / "bad.mp4").touch()
    for done, skipped in ((2, 0), (0, 2)):
        summary = preprocess(tmp_path / "videos", tmp_path / "out", 2, size=8, quiet=True)
        assert (summary.done, summary.skipped) == (done, skipped)
        assert list(summary.failed) == ["bad.mp4"] and "crashed" in summary.failed["bad.mp4"]
        assert not list((tmp_path / "out").glob(".*"))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """The root of the extracted form."""
    root = tmp_path_factory.mktemp("data")
    bad_media.write_frames(root)
    bad_media.write_sounds(root)
    return root


def test_bad_media_are_named_in_a_line(extracted, readers):
    """Of all extracted clips exactly the bad ones are listed, with file and reason."""
    config = SimpleNamespace(encode_batch=5, workers=0)
    quiet = SimpleNamespace(is_main_process=False)
    for kind, reasons in BAD_MEDIA.items():
        there = readers[kind].path(extracted, "x").parent
        names = [p.stem if kind == "audio" else p.name for p in there.iterdir()] + ["nowhere"]
        found = unreadable_clips(config, {kind: readers[kind]}, extracted, names, quiet)
        assert set(found) == set(reasons)
        for name, reason in reasons.items():
            assert f"{there}/{reason}" in found[name] and "\n" not in found[name], found[name]


@pytest.mark.parametrize("name", ["grey", "rgba", "16 bit", "others", *SHELL])
def test_any_picture_has_its_brightness(extracted, readers, name):
    """Grey, transparent and 16-bit frames, and a folder with other files in it, read as plain."""
    plain, odd = (readers["visual"](frames_path(extracted, n))[0] for n in ("plain", name))
    assert (odd - plain).abs().max() <= 2 * 2 / 255 + 1e-6  # a level of the processor's -3 to 1


def test_frames_keep_their_order_and_sides(extracted, readers):
    """Frames 1, 2 and 10 come in this order, and a picture 3 pixels high is not taken for one with
    its colours first."""
    read = readers["visual"]
    numbered, plain = (read(frames_path(extracted, n))[0] for n in ("1, 2, 10", "in order"))
    assert torch.equal(numbered, plain) and len(numbered.unique()) == 3
    low, _ = read(frames_path(extracted, "3 pixels high"))  # (1, frames, 3, 32, 32)
    assert (low[..., 0] < low[..., -1]).all() and low.shape[2:] == (3, 32, 32)


@pytest.mark.parametrize("name", ["24 bit", "float", "stereo", *SHELL])
def test_any_sound_has_its_samples(extracted, readers, name):
    """Deeper samples, the mean of two channels and any name give the sound of the 16-bit file."""
    plain, odd = (wav_path(extracted, n) for n in ("plain", name))
    assert np.abs(read_wav(plain) - read_wav(odd)).max() <= 1 / 32768
    torch.testing.assert_close(
        readers["audio"](plain)[0], readers["audio"](odd)[0], atol=0.01, rtol=0.01
    )


def test_silence_is_finite(extracted, readers):
    """A silent clip gives finite inputs, the same at all times."""
    silent, _ = readers["audio"](wav_path(extracted, "silent"))
    assert silent.isfinite().all() and silent[0].std(dim=0).max() < 1e-6
