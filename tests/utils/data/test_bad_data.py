"""Bad data: each broken or odd input ends as expected, and costs the good ones nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.helpers import bad_media
from tests.helpers.bad_media import BAD_MEDIA, SHELL, STEP, TONE
from tests.helpers.tiny import save_models
from utils import raw_video_preprocess
from utils.data.datasets import (
    DataError,
    frames_path,
    parse_question,
    read_music_avqa,
    read_valor,
    wav_path,
    without_media,
)
from utils.data.features import Reader, unreadable
from utils.data.media import MediaError, even_indices, read_frames, read_wav
from utils.data.models import load_ast, load_vivit
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
    ran = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120)
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
    head, *lines = runs["all"][0].splitlines()
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
    assert {p.name for p in out.iterdir()} == {"ast_audio", "vivit_frames", "extraction.json"}
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


def test_silent_and_short_sounds_are_kept(out):
    """Silence stays silent, and 100 samples stay 100."""
    silent, _ = soundfile.read(out / "ast_audio" / "silent.wav")
    assert len(silent) == 16000 and not silent.any()
    assert len(soundfile.read(out / "ast_audio" / "short sound.wav")[0]) == 100


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
    """The extracted form: its root, and a reader of each kind."""
    root, models = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("models")
    bad_media.write_frames(root)
    bad_media.write_sounds(root)
    save_models(models)
    vivit, processor = load_vivit(models / "visual")
    ast, extractor = load_ast(models / "audio")
    readers = {
        "visual": Reader(processor, vivit.config, "visual"),
        "audio": Reader(extractor, ast.config, "audio"),
    }
    return root, readers


@pytest.mark.parametrize("kind", ["visual", "audio"])
def test_bad_media_are_named_in_a_line(extracted, kind):
    """Of all extracted clips exactly the bad ones are listed, with file and reason."""
    root, readers = extracted
    there = wav_path(root, "x").parent if kind == "audio" else frames_path(root, "x").parent
    names = [p.stem if kind == "audio" else p.name for p in there.iterdir()] + ["nowhere"]
    found = unreadable(readers[kind], root, names, batch=5, workers=0, quiet=True)
    assert set(found) == set(BAD_MEDIA[kind])
    for name, reason in BAD_MEDIA[kind].items():
        assert f"{there}/{reason}" in found[name] and "\n" not in found[name], found[name]


@pytest.mark.parametrize("name", ["grey", "rgba", "16 bit", "others", *SHELL])
def test_any_picture_has_its_brightness(extracted, name):
    """Grey, transparent and 16-bit frames, and a folder with other files in it, read as plain."""
    root, readers = extracted
    plain, odd = (readers["visual"](frames_path(root, n)) for n in ("plain", name))
    assert (odd - plain).abs().max() <= 2 * 2 / 255 + 1e-6  # a level of the processor's -3 to 1


def test_frames_are_in_the_order_of_their_numbers(extracted):
    """Frames 1, 2 and 10 come in this order."""
    root, readers = extracted
    numbered, plain = (readers["visual"](frames_path(root, n)) for n in ("1, 2, 10", "in order"))
    assert torch.equal(numbered, plain) and len(numbered.unique()) == 3


def test_a_low_picture_is_not_turned(extracted):
    """A picture 3 pixels high is not taken for one with its colours first."""
    root, readers = extracted
    frames = readers["visual"](frames_path(root, "3 pixels high"))  # (1, frames, 3, 32, 32)
    assert (frames[..., 0] < frames[..., -1]).all() and frames.shape[2:] == (3, 32, 32)


@pytest.mark.parametrize("name", ["24 bit", "float", "stereo", *SHELL])
def test_any_sound_has_its_samples(extracted, name):
    """Deeper samples, the mean of two channels and any name give the sound of the 16-bit file."""
    root, readers = extracted
    plain, odd = (wav_path(root, n) for n in ("plain", name))
    assert np.abs(read_wav(plain) - read_wav(odd)).max() <= 1 / 32768
    torch.testing.assert_close(readers["audio"](plain), readers["audio"](odd), atol=0.01, rtol=0.01)


@pytest.mark.parametrize("name, peak", [("8 kHz", 0.5), ("44.1 kHz", 0.25)])
def test_any_rate_is_converted(extracted, name, peak):
    """Other rates become 16 kHz: length, pitch and loudness stay."""
    sound = read_wav(wav_path(extracted[0], name))
    assert len(sound) == 16000 and np.abs(np.fft.rfft(sound)).argmax() == TONE
    assert abs(np.abs(sound[2000:-2000]).max() - peak) < 0.01


def test_silence_is_finite(extracted):
    """A silent clip gives finite inputs, the same at all times."""
    silent = extracted[1]["audio"](wav_path(extracted[0], "silent"))
    assert silent.isfinite().all() and silent[0].std(dim=0).max() < 1e-6


def test_a_header_that_promises_terabytes(tmp_path):
    """A sound is as long as the file, or refused in a line, whatever length its header says."""
    path = tmp_path / "x.wav"
    soundfile.write(path, np.zeros(4000), 16000, format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] |= 15  # with the next four bytes the number of samples
    path.write_bytes(content)
    try:
        assert len(read_wav(path)) == 4000
    except MediaError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1


ROW = {
    "video_id": "00000093",
    "question_id": 12,
    "type": '["Audio-Visual", "Location"]',
    "question_content": "Where is the <FL> sounding <Object>?",
    "templ_values": '["first", "cello"]',
    "question_deleted": 0,
    "anser": "left",
}
NO_NAMES = ["", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\0b", "a\nb", "日" * 67]


def write_rows(root, name, rows):
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / name).write_text(json.dumps(rows))


def refused(read, root, *parts):
    with pytest.raises(DataError) as error:
        read(root, "val")
    message = str(error.value)
    assert len(message.splitlines()) == 1 and len(message) < 600
    assert all(part in message for part in (str(root), "row 1", *parts)), message


@pytest.mark.parametrize("name", [*NO_NAMES, 93, None, ["x"], {"x": 1}, True, "\ud800"])
def test_a_video_id_stays_within_its_folder(tmp_path, name):
    """An id that is no file's name is refused with file, row and field, in both data sets."""
    write_rows(tmp_path, "avqa-val.json", [ROW, {**ROW, "video_id": name}])
    refused(read_music_avqa, tmp_path, "video_id")
    rows = [{"video_id": "x", "desc": "y"}, {"video_id": name, "desc": "y"}]
    write_rows(tmp_path, "desc_val.json", rows)
    refused(read_valor, tmp_path, "video_id")


@pytest.mark.parametrize("name", [*SHELL, "..a", "-_.", "日" * 66])
def test_an_odd_video_id_is_a_name(tmp_path, name):
    """Any other id is kept as it is and names a file in the folder of its kind."""
    assert parse_question({**ROW, "video_id": name}, "here").video_id == name
    wav_path(tmp_path, name).parent.mkdir(parents=True)
    wav_path(tmp_path, name).touch()
    frames_path(tmp_path, name).mkdir(parents=True)
    assert without_media(tmp_path, [name, "x"]).keys() == {"x"}


DEEP = "[" * 100_000
UNFIT = ('["first"]', "Where is it?")  # fewer or more values than places


@pytest.mark.parametrize(
    "field, value",
    [
        ("type", ["Audio", "Counting"]),
        ("type", '{"Audio": 0, "Counting": 1}'),
        ("type", '"Audio Counting"'),
        ("type", '[["Audio"], "Counting"]'),
        ("type", DEEP),
        ("type", '["Audio", "Counting", "Counting"]'),
        ("templ_values", ["first", "cello"]),
        ("templ_values", '"ab"'),
        ("templ_values", '{"a": 1, "b": 2}'),
        ("templ_values", "[1, 2]"),
        ("templ_values", '["first", null]'),
        ("templ_values", '["first"]'),
        ("templ_values", '["first", "\\ud800"]'),
        ("templ_values", DEEP),
        ("question_content", ["Where is <FL> <Object>?"]),
        ("question_content", "Where is it?"),
        ("question_deleted", float("inf")),
        ("question_deleted", [1]),
        ("question_deleted", "9" * 5000),
        ("anser", 2),
        ("anser", None),
        ("anser", "\udc80"),
    ],
)
def test_a_bad_question_names_its_field(tmp_path, field, value):
    """Wrong nesting, numbers for text and half characters are refused, never guessed at."""
    write_rows(tmp_path, "avqa-val.json", [ROW, {**ROW, field: value}])
    refused(read_music_avqa, tmp_path, "placeholders" if value in UNFIT else field)


@pytest.mark.parametrize("row", [["x", "y"], "x", None, 5, {"video_id": "x"}])
def test_a_row_that_is_none_is_refused(tmp_path, row):
    """A list, a text or a number in place of a row, and a row without its field."""
    write_rows(tmp_path, "desc_val.json", [{"video_id": "x", "desc": "y"}, row])
    refused(read_valor, tmp_path, "has no field")
    write_rows(tmp_path, "desc_val.json", [{"video_id": "x", "desc": "y"}, {**ROW, "desc": 5}])
    refused(read_valor, tmp_path, "desc")


def test_an_id_may_come_twice(tmp_path):
    """A clip with two captions, or two questions of one id, keeps both."""
    write_rows(tmp_path, "desc_val.json", [{"video_id": "x", "desc": d} for d in "ab"])
    assert [c.text for c in read_valor(tmp_path, "val")[0]] == ["a", "b"]
    write_rows(tmp_path, "avqa-val.json", [ROW, ROW])
    assert len(read_music_avqa(tmp_path, "val")[0]) == 2
