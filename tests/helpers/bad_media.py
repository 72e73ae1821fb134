"""Broken and odd media, made here: videos as people have them, the extracted form that the encoders
read, and mutants of any file. Shared by tests; not a test itself."""

import ctypes
import os
import random
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from utils.data.datasets import frames_path, wav_path
from utils.data.extraction import extract_clip
from utils.data.sources import SCRATCH

FPS, STEP, TONE = 12, 20, 440  # frame i is grey of level STEP * i; the sound is a tone of 440 Hz
SHELL = ["a b", "it's", 'say "hi"', "a;touch X", "$(touch X)", "`touch X`", "-rf", "日本 é", "%d"]
BAD_MEDIA = {  # of `write_frames` and `write_sounds`, and how the reason begins
    "visual": {
        "corrupt": "corrupt/frame_0001.png: not a readable image",
        "cut": "cut/frame_0001.png: not a readable image",
        "bomb": "bomb/frame_0001.png: not a readable image",
        "no frames": "no frames: holds no frame_*.png",
        "nowhere": "nowhere: cannot be listed",
    },
    "audio": {
        "short": "short.wav: shorter than 25 ms",
        "no samples": "no samples.wav: holds no samples",
        "not a number": "not a number.wav: holds samples that are not finite",
        "too large": "too large.wav: holds samples that are not finite or far too large",
        "corrupt": "corrupt.wav: not a readable wav",
        "empty": "empty.wav: not a readable wav",
        "1 Hz": "1 Hz.wav: has a sample rate of 1 Hz",
        "1073741824 Hz": "1073741824 Hz.wav: has a sample rate of 1073741824 Hz",
        "nowhere": "nowhere.wav: not a readable wav",
    },
}


def grey(i: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), STEP * i, np.uint8)


def corner(_: int, width: int, height: int) -> np.ndarray:
    """White at the top left, black elsewhere."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = 255
    return picture


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """(samples, channels) at half of full scale; the first channel alone sounds."""
    sound = np.zeros((round(seconds * rate), channels))
    sound[:, 0] = 0.5 * np.sin(2 * np.pi * TONE * np.arange(len(sound)) / rate)
    return sound


def write_video(
    path: Path,
    times=range(12),
    sound: np.ndarray | None = None,
    rate: int = 16000,
    size: tuple[int, int] = (64, 48),
    picture=grey,
    rotation: int = 0,
    codecs: tuple[str, str] = ("libx264", "aac"),
    pixels: str = "yuv420p",
) -> Path:
    """Frames on show from `times` (in 1 / FPS s) and the samples of `sound` (samples, channels)."""
    with av.open(str(path.absolute()), "w") as container:
        if times:
            video = container.add_stream(codecs[0], rate=FPS)
            video.width, video.height, video.pix_fmt = *size, pixels
            if rotation:
                video.set_display_rotation(rotation)
        if sound is not None:
            layout = "mono" if sound.shape[1] == 1 else "stereo"
            audio = container.add_stream(codecs[1], rate=rate, layout=layout)
            samples = (sound * 32767).round().astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(samples, "s16", layout)
            frame.rate, frame.pts = rate, 0
            resampler = av.AudioResampler(audio.codec_context.format.name, layout, rate)
            for block in [*resampler.resample(frame), *resampler.resample(None), None]:
                container.mux(audio.encode(block))
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(i, *size))
            frame.pts, frame.time_base = time, Fraction(1, FPS)
            container.mux(video.encode(frame))
        if times:
            container.mux(video.encode(None))
    return path


def write_good_videos(folder: Path) -> None:
    folder.mkdir()
    write_video(folder / "one.mp4", sound=tone(1, 16000))
    write_video(folder / "two.mkv", range(7), sound=tone(0.6, 16000))


def write_odd_videos(folder: Path) -> None:
    """Videos that can be read though they are unusual."""
    sound, pcm = tone(1, 16000), ("libx264", "pcm_s16le")
    write_video(folder / "one frame.mp4", range(1), sound)
    write_video(folder / "variable rate.mp4", [0, 1, 2, 3, 12, 13, 14, 15], sound)
    write_video(folder / "rotated.mp4", sound=sound, picture=corner, rotation=90)
    write_video(folder / "odd size.mp4", sound=sound, size=(63, 47), pixels="yuv444p")
    write_video(folder / "8 kHz.mp4", sound=tone(1, 8000), rate=8000)
    write_video(folder / "stereo.mp4", sound=tone(1, 44100, 2), rate=44100)
    write_video(folder / "silent.mov", sound=0 * sound, codecs=pcm)
    write_video(folder / "short sound.mov", sound=sound[:100], codecs=pcm)
    content = (folder / "one.mp4").read_bytes()
    for name in SHELL:
        (folder / f"{name}.mp4").write_bytes(content)


def write_bad_videos(folder: Path) -> None:
    content = (folder / "one.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "zeros.mp4").write_bytes(bytes(4096))
    (folder / "cut.mp4").write_bytes(content[: len(content) * 2 // 3])
    (folder / "text.mp4").write_text("This is not a video.\n" * 99)
    (folder / "playlist.mp4").write_text("ffconcat version 1.0\nfile one.mp4\n")
    (folder / "$(touch X) bad.mp4").write_text("nothing")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "pipe.mp4")
    write_video(folder / "mute.mp4")
    write_video(folder / "blind.mp4", (), tone(1, 16000))
    slow = write_video(folder / "1 Hz.avi", sound=tone(1, 16000), codecs=("mpeg4", "pcm_s16le"))
    content = bytearray(slow.read_bytes())
    rate = content.rindex(b"strf") + 12  # in the header of the sound, the last of both streams
    assert content[rate : rate + 4] == (16000).to_bytes(4, "little")
    content[rate : rate + 4] = (1).to_bytes(4, "little")
    slow.write_bytes(content)


def save_frames(root: Path, name: str, images: list, names: list[str] | None = None) -> Path:
    folder = frames_path(root, name)
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(folder / (names[i] if names else f"frame_{i + 1:04}.png"))
    return folder


def write_frames(root: Path) -> None:
    """Frames folders: `plain` and what must equal it, other odd ones, and bad ones."""
    level, size = 100, (24, 20)
    plain = Image.new("RGB", size, (level,) * 3)
    deep = Image.fromarray(np.full(size[::-1], level * 257, np.uint16))
    for name, image in {
        "plain": plain,
        "grey": Image.new("L", size, level),
        "rgba": Image.new("RGBA", size, (level,) * 3 + (255,)),
        "16 bit": deep,
        **dict.fromkeys(SHELL, plain),
    }.items():
        save_frames(root, name, [image] * 2)
    others = save_frames(root, "others", [plain] * 2)
    (others / "notes.txt").write_text("not a frame")
    (others / "frame_.png").touch()
    (others / "old").mkdir()
    steps = [Image.new("RGB", size, (i,) * 3) for i in (0, 100, 200)]
    save_frames(root, "in order", steps)
    save_frames(root, "1, 2, 10", steps, ["frame_1.png", "frame_2.png", "frame_10.png"])
    low = np.zeros((3, 24, 3), np.uint8)
    low[:, 12:] = 255
    save_frames(root, "3 pixels high", [Image.fromarray(low)])
    (save_frames(root, "corrupt", [plain]) / "frame_0001.png").write_bytes(b"noise" * 99)
    cut = save_frames(root, "cut", [Image.effect_noise((64, 64), 90)]) / "frame_0001.png"
    cut.write_bytes(cut.read_bytes()[:900])
    (save_frames(root, "no frames", []) / "notes.txt").touch()
    bomb = save_frames(root, "bomb", [Image.new("1", (10_000, 10_000))])
    assert (bomb / "frame_0001.png").stat().st_size < 100_000


def write_sounds(root: Path) -> None:
    """Sounds: `plain` and what must equal it, other odd ones, and bad ones."""
    sound = np.random.default_rng(0).normal(scale=0.1, size=(16000, 1)).round(4)
    wav_path(root, "x").parent.mkdir(parents=True)

    def save(name, samples=sound, rate=16000, subtype="PCM_16"):
        soundfile.write(wav_path(root, name), samples, rate, subtype=subtype)
        return wav_path(root, name)

    for name in ("plain", *SHELL):
        save(name)
    save("24 bit", subtype="PCM_24")
    save("float", subtype="FLOAT")
    save("stereo", np.hstack([1.5 * sound, 0.5 * sound]), subtype="FLOAT")
    save("8 kHz", tone(1, 8000), 8000)
    save("44.1 kHz", tone(1, 44100, 2), 44100)
    save("silent", 0 * sound)
    save("short", sound[:399])
    save("no samples", sound[:0])
    save("not a number", np.where(np.arange(16000) == 999, np.nan, sound[:, 0]), subtype="FLOAT")
    save("too large", 1e30 * sound, subtype="FLOAT")
    wav_path(root, "corrupt").write_bytes(b"noise" * 99)
    wav_path(root, "empty").touch()
    for rate in (1, 1 << 30):
        content = bytearray(save(f"{rate} Hz").read_bytes())
        content[24:28] = rate.to_bytes(4, "little")
        wav_path(root, f"{rate} Hz").write_bytes(content)


def crash_on_bad(path: Path, out: Path, **settings) -> list[str]:
    """extract_clip, but a clip named bad kills its process half way."""
    if path.stem == "bad":
        (out / f"{SCRATCH}bad").mkdir(parents=True, exist_ok=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    return extract_clip(path, out, **settings)


def hang_on_bad(path: Path, out: Path, **settings) -> list[str]:
    """extract_clip, but a clip named bad never comes to an end, in code that no signal handler of
    Python and no other thread can interrupt."""
    if path.stem == "bad":
        (out / f"{SCRATCH}bad").mkdir(parents=True, exist_ok=True)
        # The C library's pause, with the interpreter locked: Python runs nothing any more.
        while True:
            ctypes.PyDLL(None).pause()
    return extract_clip(path, out, **settings)


def mutant(sources: list[bytes], seed: int) -> bytes:
    """One of the sources with bytes flipped, cut off, spliced in or zeroed, often near its ends."""
    rng = random.Random(seed)
    data, other = bytearray(sources[seed % len(sources)]), rng.choice(sources)

    def place() -> int:
        ends = [
            range(len(data)),
            range(min(64, len(data))),
            range(max(0, len(data) - 999), len(data)),
        ]
        return rng.choice(rng.choice(ends))

    match rng.choice(["flip", "flip", "edges", "cut", "splice", "zeros"]):
        case "flip":
            for _ in range(rng.choice([1, 2, 8, 1 + len(data) // 50])):
                data[place()] = rng.randrange(256)
        case "edges":
            for _ in range(rng.choice([1, 3, 8])):
                data[place()] = rng.choice([0, 127, 128, 255])
        case "cut":
            del data[place() :]
        case "splice":
            start, length = rng.randrange(len(other)), rng.randrange(1, 2000)
            at = place()
            data[at : at + rng.choice([0, length])] = other[start : start + length]
        case "zeros":
            at, length = place(), rng.randrange(1, 500)
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)
