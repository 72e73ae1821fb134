"""The mini world is what it says: true annotations, real media, splits that share nothing."""

import json
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import av
import numpy as np
import pytest
from filelock import FileLock

from tests.helpers.disks import change, small_disk, unfinished
from tests.helpers.scripts import LIMIT, ROOT, until
from utils.data.datasets import (
    QUESTION_TYPES,
    parse_question,
    read_music_avqa,
    read_valor,
    without_media,
)
from utils.mini import sounds as mini_sounds
from utils.mini.scenes import (
    AMBIENCES,
    DURATION,
    INSTRUMENTS,
    UNSEEN_PAIRS,
    draw_scene,
    has_unseen_pair,
)
from utils.mini.sounds import AROUND, SAMPLE_RATE, performer_sound, render_sound
from utils.mini.sprites import FPS, RISE, WIDTH, looks, render_frames
from utils.mini.text import caption, questions
from utils.mini.world import music_avqa_rows, prepare, scenes, write_video


def test_same_seed_same_clip():
    """A clip is decided by seed, split and index alone."""
    a, b = draw_scene(0, "train", 5), draw_scene(0, "train", 5)
    assert a == b
    assert np.array_equal(render_sound(a), render_sound(b))
    assert np.array_equal(render_frames(a), render_frames(b))
    assert draw_scene(1, "train", 5) != a


def test_unseen_pairs_are_in_the_test_split_alone():
    """Training and validation never show some pairs of instruments together; the test does."""
    for split in ("train", "val"):
        assert not any(has_unseen_pair(draw_scene(0, split, i)) for i in range(300))
    shown = [draw_scene(0, "test", i) for i in range(300)]
    share = np.mean([has_unseen_pair(s) for s in shown])
    assert 0.1 < share < 0.5
    for pair in UNSEEN_PAIRS:
        assert any(pair <= {p.instrument for p in s.on_stage} for s in shown)


def test_splits_and_data_sets_share_no_clip():
    """No scene is drawn for two splits, two data sets, or for pretraining and a task."""
    seeds = [
        s.seed
        for dataset in ("VALOR", "MUSIC-AVQA", "pretraining")
        for split in ("train", "val", "test")
        for s in scenes(dataset, split, 20, 0).values()
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_sprite_moves_only_while_it_plays():
    """A silent performer's third of the picture stands still; a sounding one's moves, but neither
    before its part has begun nor in its rest."""
    seen = Counter()
    for i in range(40):
        scene = draw_scene(0, "train", i)
        frames = render_frames(scene).astype(int)
        for p in scene.on_stage:
            third = {"left": 0, "middle": 1, "right": 2}[p.position] * WIDTH // 3
            # The middle of the third, where no neighbour's instrument reaches.
            part = frames[:, :, third + 16 : third + 26]
            motion = np.abs(np.diff(part, axis=0)).sum(axis=(1, 2, 3))
            moving = np.flatnonzero(motion) / FPS  # s, of the frame before
            allowed = [(a - 1 / FPS, b) for a, b in p.plays]
            assert all(any(a <= t <= b for a, b in allowed) for t in moving)
            assert bool(len(moving)) == p.sounding
            seen[p.sounding, p.rests] += 1
    assert min(seen[True, True], seen[True, False], seen[False, False]) > 5


def test_one_frame_tells_who_plays():
    """A player stands while it plays and sits before and in a rest: its head is higher."""
    checked = 0
    for i in range(30):
        scene = draw_scene(0, "train", i)
        frames = render_frames(scene)
        for p, look in zip(scene.on_stage, looks(scene), strict=True):
            head = int(look["x"]), int(look["y"] - (1 + RISE) * look["scale"])
            for begin, end in p.plays:
                at = int((begin + end) / 2 * FPS)
                assert tuple(frames[at, head[1], head[0]]) == look["skin"]
                checked += 1
            if p.rests:
                at = int((p.plays[0][1] + 0.25) * FPS)
                assert tuple(frames[at, head[1], head[0]]) != look["skin"]
    assert checked > 30


def test_levels_starts_and_rests_are_heard():
    """A part is silent before its start and in its rest, and parts differ by the levels that
    questions ask of."""
    rested = 0
    for scene in (draw_scene(0, "train", i) for i in range(30)):
        for p in scene.sounding:
            sound = performer_sound(scene, p)
            assert not sound[: int(p.start * SAMPLE_RATE)].any()
            playing = np.concatenate(
                [sound[int(a * SAMPLE_RATE) : int(b * SAMPLE_RATE)] for a, b in p.plays]
            )
            assert np.sqrt(np.mean(playing**2)) == pytest.approx(1, 0.1)
            for (_, end), (begin, _) in pairwise(p.plays):
                rest = slice(int((end + 0.04) * SAMPLE_RATE), int(begin * SAMPLE_RATE))
                assert not sound[rest].any()
                rested += 1
        levels = sorted(p.level for p in scene.sounding)
        assert len(levels) < 2 or np.diff(levels).min() > 3  # dB
    assert rested > 10


@pytest.mark.parametrize("ambience", AMBIENCES)
def test_ambiences_are_heard(ambience):
    """What is around the music is heard in its own band, and leaves silence where there is none."""
    t = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    around = AROUND[ambience](np.random.default_rng(0), t)
    power = np.abs(np.fft.rfft(around)) ** 2
    centre = (power * np.fft.rfftfreq(len(t), 1 / SAMPLE_RATE)).sum() / max(power.sum(), 1e-9)
    low, high = {
        "birdsong": (4000, 7000),
        "wind": (0, 300),
        "rain": (3500, 7900),
        "chirping": (6500, 7300),
        "silence": (0, 1),
    }[ambience]
    assert low <= centre <= high


def test_instruments_differ_by_more_than_pitch():
    """Mean spectra of any two instruments differ clearly, over many clips of each."""
    spectra = defaultdict(list)
    for i in range(120):
        scene = draw_scene(0, "train", i)
        for p in scene.sounding:
            sound = performer_sound(scene, p)[-16000:]
            power = np.abs(np.fft.rfft(sound)) ** 2
            bands = np.log([b.mean() + 1e-9 for b in np.array_split(power[50:4000], 24)])
            spectra[p.instrument].append(bands - bands.mean())
    assert set(spectra) == set(INSTRUMENTS)
    means = {k: np.mean(v, axis=0) for k, v in spectra.items()}
    for a in INSTRUMENTS:
        for b in INSTRUMENTS:
            assert a == b or np.abs(means[a] - means[b]).max() > 1


def test_captions_name_everybody_and_are_mostly_distinct():
    """A caption names each instrument that is seen or heard, and its place."""
    captions = []
    for i in range(256):
        scene = draw_scene(0, "test", i)
        text = caption(scene, np.random.default_rng(i))
        for p in scene.on_stage:
            assert f"{p.position} {p.instrument.replace('_', ' ')}" in text
        assert scene.tempo in text
        captions.append(text)
    assert len(set(captions)) > 240


def test_answers_are_true():
    """Answers to questions of each kind agree with the scene, worked out here by other means."""
    checked = Counter()
    for i in range(300):
        scene = draw_scene(0, "train", i)
        on = {p.position: p for p in scene.on_stage}
        named = {p.instrument: p for p in scene.sounding}
        for row in questions(scene, np.random.default_rng(i)):
            q, v, a = row["question_content"], json.loads(row["templ_values"]), row["anser"]
            if q == "What does the <LR> player hold?":
                assert on[v[0]].instrument == a
            elif q == "On which side is the <Object>?":
                assert on[a].instrument == v[0]
            elif q == "How many different instruments can you hear?":
                assert ["zero", "one", "two", "three"].index(a) == len(named)
            elif q == "Does the <Object> sound louder than the <Object>?":
                assert (named[v[0]].level > named[v[1]].level) == (a == "yes")
            elif q == "Where is the player that enters <FL>?":
                starts = [p.start for p in scene.on_stage if p.sounding]
                assert on[a].start == (min(starts) if v[0] == "first" else max(starts))
            elif q == "On which side is the <LL> player?":
                levels = [p.level for p in scene.on_stage if p.sounding]
                assert on[a].level == (max(levels) if v[0] == "loudest" else min(levels))
            elif q == "Is every sound made by somebody on the stage?":
                assert (scene.off_stage is None) == (a == "yes")
            elif q == "Which instrument on the stage enters <BA> the <Object>?":
                later = named[a].start > named[v[1]].start
                assert later == (v[0] == "after")
            elif q == "Does the <Object> start before the <Object>?":
                assert (named[v[0]].start < named[v[1]].start) == (a == "yes")
            elif q == "Which instrument on the stage takes a rest?":
                assert [p.instrument for p in on.values() if len(p.plays) == 2] == [a]
            elif q == "Does the <LR> player take a rest?":
                assert (len(on[v[0]].plays) == 2) == (a == "yes")
            else:
                continue
            checked[q] += 1
    assert len(checked) == 11 and min(checked.values()) > 20


def test_questions_are_balanced_and_of_all_types():
    """Within a template no answer is much more frequent than another; all nine types occur."""
    rows = music_avqa_rows(scenes("MUSIC-AVQA", "train", 300, 0), 6)
    parsed = [parse_question(row, "row") for row in rows]
    assert {q.type for q in parsed} == set(QUESTION_TYPES)
    placeholders = {t for row in rows for t in ("<Object>", "<LR>", "<LRer>", "<FL>", "<TH>",
                    "<LL>", "<BA>") if t in row["question_content"]}  # fmt: skip
    assert len(placeholders) == 7
    answers = defaultdict(Counter)
    for q in parsed:
        answers[q.template][q.answer] += 1
    for counts in answers.values():
        assert max(counts.values()) <= 1.1 * min(counts.values()) + 3
    assert any("_" in q.answer for q in parsed)


def test_a_clip_is_h264_and_aac(tmp_path):
    """Clips are real video files of the scene's length."""
    write_video(tmp_path / "clip.mp4", draw_scene(0, "train", 0))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.duration / av.time_base == pytest.approx(DURATION, abs=0.15)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_prepare_writes_the_published_layout_and_refuses_another_world(tmp_path):
    """Annotations and media stand where the data sets' readers look; a second call redoes
    nothing; other sizes in the same folder are refused."""
    for dataset, read in (("VALOR", read_valor), ("MUSIC-AVQA", read_music_avqa)):
        root = prepare(tmp_path, dataset, (4, 2, 2), workers=1)
        for split, count in (("train", 4), ("val", 2), ("test", 2)):
            rows, file = read(root, split)
            names = [row.video_id for row in rows]
            assert not without_media(root, names) and count == len(set(names))
            assert file.rows == len(rows)
        before = {p: p.stat().st_mtime_ns for p in root.rglob("*.mp4")}
        prepare(tmp_path, dataset, (4, 2, 2), workers=1)
        assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*.mp4")}
        with pytest.raises(ValueError, match="another seed or size"):
            prepare(tmp_path, dataset, (5, 2, 2), workers=1)


def contents(folder) -> dict:
    """Everything in a folder, with when it was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("own", ["annotations/desc_train.json", "videos/x.mp4", "notes.txt"])
@pytest.mark.parametrize("dataset", ["VALOR", "MUSIC-AVQA"])
def test_a_folder_of_ones_own_is_left_alone(tmp_path, dataset, own):
    """Whatever lies in a folder that the mini world did not make: it is refused in a line that says
    what to do, before anything is written."""
    path = tmp_path / dataset / own
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{dataset}: holds data .* add --preset paper") as error:
        prepare(tmp_path, dataset, (4, 2, 2), workers=1)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before and path.read_text() == "mine"


def test_a_folder_of_another_name_is_refused(tmp_path):
    """There is no mini world of that name; nothing is made."""
    with pytest.raises(ValueError, match="films: .* named VALOR or MUSIC-AVQA"):
        prepare(tmp_path, "films", (4, 2, 2), workers=1)
    assert not list(tmp_path.iterdir())


def test_the_marker_is_written_first(tmp_path, monkeypatch):
    """An empty folder is taken, and is the mini world's before anything else stands in it."""
    (tmp_path / "VALOR").mkdir()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("utils.mini.world.scenes", stop)
        prepare(tmp_path, "VALOR", (1, 1, 1), workers=0)
    assert [path.name for path in (tmp_path / "VALOR").iterdir() if path.is_file()] == [
        "world.json"
    ]
    assert len(read_valor(prepare(tmp_path, "VALOR", (1, 1, 1), workers=0), "val")[0]) == 1


def test_a_second_first_run_waits(tmp_path):
    """While one process writes a world, another neither writes nor judges what lies there."""
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / ".VALOR.lock"):
            second = pool.submit(prepare, tmp_path, "VALOR", (1, 1, 1), workers=0)
            (tmp_path / "VALOR").mkdir()
            (tmp_path / "VALOR/.world.json.1.partial").touch()  # the first one's, half written
            with pytest.raises(TimeoutError):
                second.result(timeout=0.5)
            (tmp_path / "VALOR/.world.json.1.partial").unlink()
        assert second.result(timeout=LIMIT) == tmp_path / "VALOR"


def test_a_whole_world_on_a_disk_that_is_read_only(tmp_path):
    """It is used as it is, without a write."""
    with small_disk(tmp_path / "disk", "16m") as disk:
        prepare(disk, "VALOR", (2, 1, 1), workers=0)
        before = contents(disk)
        change(disk, "ro")
        assert prepare(disk, "VALOR", (2, 1, 1), workers=0) == disk / "VALOR"
        assert contents(disk) == before


def test_what_an_earlier_version_extracted_is_made_anew(tmp_path):
    """The mini world owns its folder: sound and frames of an earlier version, whose marker has no
    version of the extraction and which have no records, are replaced; videos stay."""
    root = prepare(tmp_path, "VALOR", (2, 1, 1), workers=1)
    marker = json.loads((root / "world.json").read_text())
    del marker["extraction"]
    (root / "world.json").write_text(json.dumps(marker))
    shutil.rmtree(root / "extraction" / "sources")
    wavs = {path: path.read_bytes() for path in (root / "extraction" / "ast_audio").iterdir()}
    for path in wavs:
        path.write_bytes(b"old")
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.mp4")}
    prepare(tmp_path, "VALOR", (2, 1, 1), workers=1)
    assert len(wavs) == 4 and {path: path.read_bytes() for path in wavs} == wavs
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*.mp4")}


def test_a_world_of_an_earlier_version_is_made_anew(tmp_path):
    """Clips and texts of an earlier version, whose marker has no such version, are replaced;
    what else somebody put into the folder stays."""
    root = prepare(tmp_path, "VALOR", (2, 1, 1), workers=1)
    marker = json.loads((root / "world.json").read_text())
    (root / "world.json").write_text(json.dumps({k: marker[k] for k in ("seed", "clips")}))
    texts = {path: path.read_bytes() for path in (root / "annotations").iterdir()}
    for path in [*texts, *(root / "videos").iterdir()]:
        path.write_bytes(b"old")
    (root / "notes.txt").write_text("mine")
    prepare(tmp_path, "VALOR", (2, 1, 1), workers=1)
    assert {path: path.read_bytes() for path in texts} == texts
    assert min(path.stat().st_size for path in (root / "videos").iterdir()) > 1000
    assert (root / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("hz", [98.0, 440.0, 3000.0])
def test_harmonics_are_the_sines_they_stand_for(hz):
    """The recurrence gives each sine of a wavering pitch closely, up to the Nyquist bound."""
    t = np.arange(8000) / mini_sounds.SAMPLE_RATE
    phase = hz * t + 0.01 * np.sin(2 * np.pi * 5 * t)
    found = list(mini_sounds._sines(phase, hz, 24))
    assert len(found) == min(24, int(0.45 * mini_sounds.SAMPLE_RATE / hz))
    for k, sine in enumerate(found, start=1):
        np.testing.assert_allclose(sine, np.sin(2 * np.pi * k * phase), atol=1e-9)


def test_a_full_disk_loses_no_clip(tmp_path):
    """The video that did not fit is named and leaves nothing; the world is finished from there once
    there is room."""
    with small_disk(tmp_path / "disk", "200k") as disk:  # videos take some 40 KB each
        with pytest.raises(OSError, match="No space left") as error:
            prepare(disk, "VALOR", [4, 2, 2], workers=0)
        videos = disk / "VALOR" / "videos"
        assert str(error.value.filename).startswith(f"{videos}/mini-") and not unfinished(disk)
        before = {path: path.stat().st_mtime_ns for path in videos.iterdir()}
        assert 0 < len(before) < 8
        change(disk, "size=16m")
        prepare(disk, "VALOR", [4, 2, 2], workers=0)
        after = {path: path.stat().st_mtime_ns for path in videos.iterdir()}
        assert len(after) == 8 and before.items() <= after.items()


def test_nothing_outlives_a_killed_run(tmp_path):
    """Processes that render end with the one that started them, which had no time to end them."""
    code = (
        "from pathlib import Path\nfrom utils.mini.world import *\nif __name__ == '__main__':\n"
        f"    write_videos(Path({str(tmp_path)!r}), scenes('VALOR', 'train', 400, 0), 2, 'writing')"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as run:
        until(lambda: list(tmp_path.glob("*.mp4")), run)
        run.kill()
        run.communicate(timeout=LIMIT)  # to the end of the last of them
    assert len(list(tmp_path.glob("*.mp4"))) < 400
