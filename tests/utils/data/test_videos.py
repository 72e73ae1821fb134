"""Clips straight from their videos: what an extraction would have given, and no fault of one clip
costs another."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import task_align
from benchmarks.odd_media import Case, write_case
from modules.system import System
from tests.helpers.bad_media import write_bad_videos, write_good_videos
from tests.helpers.tiny import tiny_qwen2
from utils.data import encoding
from utils.data.clips import ClipMedia
from utils.data.datasets import AnnotationFile, Caption, DataError
from utils.data.encoding import load_clips
from utils.data.extraction import extract_clip
from utils.data.media import MediaError, clip_frames, clip_sound, read_frames, read_wav
from utils.training.processes import start

PLAIN = Case(".mp4", "libx264", "aac", fps=25, rate=48000)
ODD = {
    "plain": PLAIN,
    "sound begins late": replace(PLAIN, container=".mkv", offset=2),
    "picture begins late": replace(PLAIN, container=".mkv", offset=-2),
    "gap": replace(PLAIN, container=".mkv", gap="sound"),
}


@pytest.mark.parametrize("name", ODD)
def test_frames_and_sound_are_those_of_an_extraction(tmp_path, name):
    """To the last bit, by time and in silence, in pictures that have gaps or begin late too."""
    path = tmp_path / f"x{ODD[name].container}"
    write_case(ODD[name], path, 0)
    assert extract_clip(path, tmp_path / "out", frames=8, size=32) == []
    frames = read_frames(tmp_path / "out/vivit_frames/x")
    assert np.array_equal(clip_frames(path, 8, 32), frames)
    assert len(np.unique(frames.reshape(8, -1), axis=0)) > 4
    sound = read_wav(tmp_path / "out/ast_audio/x.wav")
    assert np.array_equal(clip_sound(path), sound) and np.abs(sound).max() > 0.05
    other = read_wav(tmp_path / "out/ast_audio/x.wav", 22_050)
    assert np.array_equal(clip_sound(path, 22_050), other)


def test_no_sound_no_picture_or_no_video_is_named(tmp_path):
    """In one line, with the file, what is wrong and what to do."""
    write_good_videos(tmp_path / "videos")
    write_bad_videos(tmp_path / "videos")
    seen = 0
    for path in sorted((tmp_path / "videos").iterdir()):
        for read in (clip_sound, lambda path: clip_frames(path, 4, 32)):
            try:
                read(path)
            except MediaError as error:
                seen += 1
                assert str(error).startswith(f"{path}: ") and "replace or remove" in str(error)
                assert "\n" not in str(error)
    assert seen > 6


class Videos:
    """A data set of videos and of their extraction, and what a run on tiny encoders makes of it."""

    def __init__(self, folder, models, encoders, readers):
        self.root, self.encoders, self.readers = folder / "DATA", encoders, readers
        self.root.mkdir()
        write_good_videos(self.root / "videos")
        self.names = sorted(path.stem for path in (self.root / "videos").iterdir())
        for path in (self.root / "videos").iterdir():
            extract_clip(path, self.root / "extraction", frames=4, size=32)
        self.options = dict(
            preset="paper",
            data=str(self.root),
            visual_encoder=str(models / "visual"),
            audio_encoder=str(models / "audio"),
            cache=str(folder / "cache"),
            figures="none",
            workers=1,
            encode_batch=3,
            visual_tokens=4,
            audio_tokens=4,
            receiver_width=32,
        )
        self.accelerator = start(replace(task_align.PRESETS["mini"], **self.options))

    def load(self, *names, **options):
        """The clips of a run, and the cache's files with the times of their writing."""
        config = replace(task_align.PRESETS["mini"], **{**self.options, **options})
        rows = [Caption(name, f"this is {name}") for name in names or self.names]
        encoders = {k: (self.encoders[k][0], n) for k, n in (("visual", 1), ("audio", 2))}
        readers = {k: replace(reader, media=config.media) for k, reader in self.readers.items()}
        clips = load_clips(
            config,
            lambda *_: (rows, AnnotationFile("", "", len(rows))),
            System(config, encoders, tiny_qwen2()),
            readers,
            self.accelerator,
        )
        files = Path(self.options["cache"]).rglob("*.*")
        return clips, {path: path.stat().st_mtime_ns for path in files if path.is_file()}


@pytest.fixture
def videos(tmp_path, models, encoders, readers, one_process):
    return Videos(tmp_path, models, encoders, readers)


@pytest.mark.parametrize("shard", [1, 2])
def test_the_tokens_are_those_of_an_extraction(videos, shard):
    """Of every clip, to the tolerance of half precision, in a folder of their own; a second run
    decodes nothing, and a replaced video is encoded again."""
    wanted, before = videos.load()
    clips, files = videos.load(media="videos", cache_shard=shard)
    assert not clips.left_out and len(clips["train"]) == len(videos.names) >= 2
    for straight, extracted in zip(clips["train"], wanted["train"], strict=True):
        for a, b in zip(straight[:2], extracted[:2], strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
            assert b.abs().max() > 0.1
    assert before.items() < files.items()
    assert videos.load(media="videos", cache_shard=shard)[1] == files
    video = next((videos.root / "videos").iterdir())
    os.utime(video, (1, 1))
    changed = videos.load(media="videos", cache_shard=shard)[1]
    again = {path for path, when in changed.items() if files.get(path) != when}
    assert len(again) == 2


def test_without_a_cache_videos_are_read_at_every_step(videos):
    """The batch holds what the encoders would read of an extraction."""
    read = []
    for media in ("videos", "extraction"):
        clips, files = videos.load(media=media, cache="none")
        assert isinstance(clips["train"], ClipMedia) and not files
        read.append([clips["train"][i] for i in range(len(videos.names))])
    for straight, extracted in zip(*read, strict=True):
        assert torch.equal(straight[0], extracted[0])
        assert torch.equal(straight[1][0], extracted[1][0])


def dies(processor, config, path):
    """Reads no clip whose name says so."""
    if "crash" in path.stem:
        os._exit(1)
    if "hang" in path.stem:
        time.sleep(100)
    return torch.ones(1, 4, 3, 32, 32), None


def test_a_clip_that_ends_its_process_costs_itself_alone(videos, monkeypatch):
    """A crash, a hang, a damaged and a missing video are listed with their reason, and the others
    are encoded."""
    folder = videos.root / "videos"
    (folder / "noise.mp4").write_bytes(b"noise" * 100)
    clips, _ = videos.load(*videos.names, "noise", "gone", media="videos")
    assert set(clips.left_out) == {"noise", "gone"}
    assert clips.left_out["gone"] == f"{folder / 'gone.mp4'}: no such video"
    monkeypatch.setattr(encoding, "CLIP_SECONDS", 3)
    visual = replace(videos.readers["visual"], media="videos", read=dies)
    paths = [folder / f"{name}.mp4" for name in ("crash", "a", "hang", "b")]
    found = dict(encoding.read_ahead(visual, paths, 2))
    assert found[0] == f"{paths[0]}: the decoder crashed on it or ran out of memory"
    assert found[2] == f"{paths[2]}: took longer than 3 s"
    assert found[1][0].shape == found[3][0].shape == (1, 4, 3, 32, 32)


def test_a_folder_without_videos_is_refused(videos):
    """In one line that names it and says what to do."""
    with pytest.raises(DataError, match="videos: none of the 1 annotated clips is there") as error:
        videos.load("nothing", media="videos")
    assert "--media videos" in str(error.value) and "\n" not in str(error.value)
