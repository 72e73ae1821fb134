"""Odd media files, made and extracted: `python benchmarks/odd_media.py` (200 files).

Makes small videos that combine containers, codecs, rates, offsets, gaps, display matrices, tracks,
colours and damage at random, extracts them as any folder of videos, and compares what comes out
with what was put in. The picture is a grid of 5 x 5 cells: coloured corners tell how it lies, the
nine cells in the middle the number of the frame. The sound is noise, of which each stretch is found
again by correlation. A file is right if its pictures are of their time (to a frame or 50 ms), lie
as they should and have their colours, and if its sound lies where it was put (to 50 ms), with
silence around it; a damaged one may also be named. All others are silent errors. Writes
benchmarks/odd_media.json and prints the counts by kind.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import av  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
from av.stream import Disposition  # noqa: E402
from av.video.reformatter import ColorRange  # noqa: E402
from scipy.signal import resample_poly  # noqa: E402

from benchmarks.measure import commit  # noqa: E402
from utils.data.media import read_frames  # noqa: E402
from utils.files import write_whole  # noqa: E402
from utils.raw_video_preprocess import preprocess  # noqa: E402

SECONDS, FRAMES, SIZE, RATE = 4, 16, 80, 16000  # of a clip; of what is extracted
UNTOLD = (".ts", ".m2ts", ".mpg", ".vob", ".ogv")  # that declare no length
PADDING = 0.1  # s, of two frames of the longest of these codecs
GAP = (1.5, 2.5)  # s after a stream's start
# Suffix: video codecs, sound codecs, and what else the container can hold.
CONTAINERS = {
    ".mp4": ("libx264 libx265 mpeg4", "aac libmp3lame ac3 libopus",
             "offset gap matrix tracks tags"),
    ".m4v": ("libx264 mpeg4", "aac ac3", "offset gap matrix tracks tags"),
    ".mov": ("libx264 mjpeg prores_ks", "aac pcm_s16le alac", "offset gap matrix tracks tags"),
    ".3gp": ("h263 mpeg4 libx264", "aac", "offset gap matrix"),
    ".mkv": ("libx264 libvpx-vp9 mpeg4 ffv1 mpeg2video", "aac libopus flac ac3 mp2 pcm_s24le",
             "offset gap tracks tags"),
    ".webm": ("libvpx libvpx-vp9", "libopus", "offset gap tracks"),
    ".avi": ("mpeg4 mjpeg libx264", "pcm_s16le libmp3lame ac3", ""),
    ".flv": ("libx264 flv", "aac libmp3lame", "offset gap"),
    ".ts": ("libx264 mpeg2video", "aac mp2 ac3 libmp3lame", "offset gap tags"),
    ".m2ts": ("libx264 mpeg2video", "ac3", "offset gap"),
    ".mpg": ("mpeg1video mpeg2video", "mp2", "offset"),
    ".vob": ("mpeg2video", "ac3 mp2", "offset"),
    ".wmv": ("wmv2", "wmav2", "offset gap"),
    ".ogv": ("libvpx", "libopus flac", ""),
}  # fmt: skip
TAGGED = ("libx264", "libx265")  # that write what their colours are
QUICK = {
    "libx264": {"preset": "veryfast", "threads": "1"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
MATRICES = [
    (a, b, c, d) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) for d in (-1, 0, 1)
    if abs(a * d - b * c) == 1 and abs(a) + abs(b) == 1 and abs(c) + abs(d) == 1
]  # fmt: skip
RESULTS = ("right", "named", "silent")
UPRIGHT = (1, 0, 0, 1)
CORNERS = {
    (0, 0): (190, 60, 60), (0, 4): (60, 190, 60), (4, 0): (60, 60, 190), (4, 4): (190, 190, 60),
}  # fmt: skip
COLOURS = {  # matrix coefficients to encode with and to tag (ITU-T H.273), full range
    "untagged": (5, None, False),
    "HD untagged": (1, None, False),
    "bt601": (5, 5, False),
    "bt709": (1, 1, False),
    "full range": (5, 5, True),
    "HDR": (9, 9, False),
}


@dataclass(frozen=True)
class Case:
    """One file; `offset` is by how much the sound begins after the picture, in s."""

    container: str
    video: str
    audio: str
    fps: int
    rate: int
    layout: str = "mono"
    offset: float = 0
    gap: str = "none"
    matrix: tuple[int, ...] = UPRIGHT
    tracks: str = "plain"
    colour: str = "untagged"
    damage: str = "none"


def draw_case(draw: random.Random, container: str) -> Case:
    """A file of this container, usual in most ways and odd in some."""
    videos, audios, can = (text.split() for text in CONTAINERS[container])
    video, audio = draw.choice(videos), draw.choice(audios)

    def odd(what: str, usual, *others):
        return draw.choice(others) if what in can and draw.random() < 0.4 else usual

    tags = "tags" if video in TAGGED else "none"
    gap = odd("gap", "none", "sound", "picture")
    if audio.startswith("pcm") and container == ".mov":
        gap = "none"  # mov stores how long a sample of it is, and no times
    return Case(
        container,
        video,
        audio,
        fps=25 if video.startswith("mpeg") and video != "mpeg4" else draw.choice([10, 15, 25, 30]),
        rate=48000 if audio == "libopus" else draw.choice([44100, 48000]),
        layout=draw.choice(["mono", "stereo"]),
        offset=odd("offset", 0, 0.3, 1, 2, 3.5, -0.3, -1),
        gap=gap,
        matrix=odd("matrix", UPRIGHT, *MATRICES),
        tracks=odd("tracks", "plain", "silent sound first", "thumbnail first", "small film too"),
        colour=odd(tags, draw.choice(["untagged"] * 5 + ["HD untagged"]), *list(COLOURS)[2:])
        if video != "h263"
        else "untagged",
        damage=draw.choice(["none"] * 9 + ["cut", "noise", "zeros"]),
    )


def cells(index: int) -> np.ndarray:
    """The colours of frame `index`, as it is to be shown: (5, 5, 3)."""
    colours = np.full((5, 5, 3), 128)
    for place, colour in CORNERS.items():
        colours[place] = colour
    bits = [(index ^ index >> 1) >> i & 1 for i in range(8)]  # Gray code
    colours[1:4, 1:4] = 16 + 224 * np.reshape([*bits, sum(bits) % 2], (3, 3, 1))
    return colours


def index_of(picture: np.ndarray) -> int | None:
    """The frame that a picture (side, side, 3) shows; None if it cannot be read."""
    side = len(picture) // 5
    grid = picture.reshape(5, side, 5, side, 3)[
        :, side // 4 : -side // 4, :, side // 4 : -side // 4
    ]
    middle = grid.mean(axis=(1, 3, 4))[1:4, 1:4].ravel()
    bits = (middle > 128).astype(int)
    if bits[:8].sum() % 2 != bits[8] or np.abs(middle - 128).min() < 40:
        return None
    return int(sum((bits[i:8].sum() % 2) << i for i in range(8)))


def places(height: int, width: int, matrix: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of the cell that each pixel must hold so that a display matrix shows
    the grid upright: a place (x, y) from the middle is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    x, y = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in (width, height)))
    return tuple(((place + 1) * 2.5).astype(int) for place in (b * x + d * y, a * x + c * y))


def noise(seed: int) -> np.ndarray:
    """SECONDS of noise below 3 kHz at 48 kHz, in [-1, 1]."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=48000 * SECONDS))
    spectrum[3000 * SECONDS :] = 0
    sound = np.fft.irfft(spectrum)
    return 0.8 * sound / np.abs(sound).max()


def write_case(case: Case, path: Path, seed: int) -> None:
    """Write the file of a case, damaged as it asks."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4v" else None) as container:
        packets = []
        if case.tracks == "silent sound first":
            packets.append(encoded_sound(container, case, np.zeros(48000 * SECONDS)))
        if case.tracks in ("thumbnail first", "small film too"):
            times = range(1 if case.tracks == "thumbnail first" else case.fps * SECONDS)
            packets.append(encoded_picture(container, case, times, 2, 255))
        packets.append(encoded_picture(container, case, frame_indices(case)))
        container.streams[-1].disposition = Disposition.default
        packets.append(encoded_sound(container, case, noise(seed)))
        container.streams[-1].disposition = Disposition.default
        for stream in packets:
            for packet in stream:
                container.mux(packet)
    if case.matrix != UPRIGHT:
        turn_in_file(path, case.matrix)
    path.write_bytes(damaged(path.read_bytes(), case.damage, seed))


def begins(case: Case) -> tuple[float, float]:
    """When picture and sound begin, in s."""
    return max(0, -case.offset), max(0, case.offset)


def frame_indices(case: Case) -> list[int]:
    indices = range(case.fps * SECONDS)
    return [i for i in indices if case.gap != "picture" or not GAP[0] <= i / case.fps < GAP[1]]


def encoded_picture(container, case: Case, indices, part: int = 1, show: int | None = None):
    """Yield the packets of a new video stream, 1 / `part` of the usual size, that shows its frames'
    numbers, or one number."""
    coefficients, tag, full = COLOURS[case.colour]
    if case.video in ("mjpeg", "libvpx"):
        coefficients = 5  # by definition, whatever the size
    stream = container.add_stream(case.video, rate=case.fps, options=QUICK.get(case.video, {}))
    stream.width, stream.height = (176, 720) if case.colour.startswith("HD") else (176, 144)
    stream.width, stream.height = stream.width // part, stream.height // part
    formats = {"ffv1": "yuv444p", "prores_ks": "yuv422p10le", "mjpeg": "yuvj420p"}
    stream.pix_fmt = formats.get(case.video, "yuv420p")
    if case.colour == "HDR" and case.video == "libx265":
        stream.pix_fmt = "yuv420p10le"
    stream.bit_rate = 2_000_000
    context, full = stream.codec_context, full or case.video == "mjpeg"
    if tag is not None:
        context.colorspace, context.color_range = tag, 2 if full else 1
        if case.colour == "HDR":
            context.color_trc, context.color_primaries = 16, 9
    start = begins(case)[0]
    where = places(stream.height, stream.width, case.matrix)

    def packets():
        for i in indices:
            shown = i if show is None else show
            frame = av.VideoFrame.from_ndarray(cells(shown)[where].astype(np.uint8)).reformat(
                format=stream.pix_fmt,
                dst_colorspace=coefficients,
                dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            )
            frame.pts, frame.time_base = round((start + i / case.fps) * 30_000), Fraction(1, 30_000)
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return packets()


def encoded_sound(container, case: Case, sound: np.ndarray):
    """Yield the packets of a new audio stream, less those of a gap; the right channel of two has
    half the level."""
    stream = container.add_stream(case.audio, rate=case.rate, layout=case.layout)
    stream.bit_rate = 128_000
    sound = resample_poly(sound, 160, 48000 * 160 // case.rate) if case.rate != 48000 else sound
    levels = [1] if case.layout == "mono" else [1, 0.5]
    samples = (np.outer(sound, levels) * 32767).round().astype(np.int16).reshape(1, -1)
    whole = av.AudioFrame.from_ndarray(samples, "s16", case.layout)
    start = begins(case)[1]
    whole.rate, whole.pts = case.rate, round(start * case.rate)
    resampler = av.AudioResampler(
        stream.format.name, case.layout, case.rate, stream.frame_size or 1024
    )

    def packets():
        for frame in [*resampler.resample(whole), *resampler.resample(None), None]:
            for packet in stream.encode(frame):
                begin = float(packet.pts * packet.time_base) - start
                end = begin + float((packet.duration or 0) * packet.time_base)
                if case.gap != "sound" or begin < GAP[0] or end > GAP[1]:
                    yield packet

    return packets()


def damaged(content: bytes, how: str, seed: int) -> bytes:
    """Cut off at 60 %, or with a stretch in the middle of noise (2 % of its bytes) or zeros."""
    data, draw = bytearray(content), random.Random(seed)
    start, end = len(data) * 2 // 5, len(data) * 3 // 5
    if how == "cut":
        del data[end:]
    elif how == "noise":
        for at in draw.sample(range(start, end), (end - start) // 50):
            data[at] = draw.randrange(256)
    elif how == "zeros":
        data[start:end] = bytes(end - start)
    return bytes(data)


def turn_in_file(path: Path, matrix: tuple[int, ...]) -> None:
    """Write a display matrix into the headers of an mp4's video tracks."""
    data, at = bytearray(path.read_bytes()), 0
    while (at := data.find(b"tkhd", at + 1)) >= 0:
        place = at + 44  # after version, times, track, duration, layer and volume
        if any(data[place + 36 : place + 44]):  # it has a width and a height
            a, b, c, d = (value << 16 for value in matrix)
            for i, value in enumerate((a, b, 0, c, d, 0, 0, 0, 1 << 30)):
                data[place + 4 * i : place + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def faults(case: Case, pictures: np.ndarray, sound: np.ndarray, seed: int) -> list[str]:
    """What of the extracted pictures (frames, SIZE, SIZE, 3) and sound (samples) is not as it was
    put in."""
    (film, heard), found = begins(case), []
    start, end = min(film, heard), max(film, heard) + SECONDS
    last = start + len(sound) / RATE
    if case.damage == "cut" and case.container in UNTOLD:
        end = last if last < end - SECONDS / 4 else end  # the file is whole, only shorter
    longer = PADDING + (1 / case.fps if case.container == ".avi" else 0)  # avi counts whole frames
    if end - 0.05 < last < end + longer:  # not all encoders declare what they add to the sound
        end = last
    times = [film + i / case.fps for i in frame_indices(case)]
    early, wrong = max(1 / case.fps, 0.05), 0  # s by which a picture may be off
    for i, picture in enumerate(pictures):
        centre = start + (i + 0.5) / len(pictures) * (end - start)
        index = index_of(picture)
        time = None if index is None else film + index / case.fps
        if time not in times:
            wrong += 1
            continue
        place = times.index(time)
        first = -np.inf if place == 0 else time
        last = times[place + 1] if place + 1 < len(times) else np.inf
        wrong += not first - early <= centre <= last + early
    if wrong:
        found.append(f"{wrong} pictures")
    if case.colour != "HDR":
        grid = pictures.reshape(-1, 5, SIZE // 5, 5, SIZE // 5, 3)[:, :, 4:-4, :, 4:-4]
        seen = grid.mean(axis=(0, 2, 4))
        off = max(np.abs(seen[place] - colour).max() for place, colour in CORNERS.items())
        if off > 15:
            found.append(f"colours {off:.0f} off")
    return found + sound_faults(case, sound, heard - start, end - start, seed)


def sound_faults(case: Case, sound: np.ndarray, begin: float, seconds: float, seed: int):
    put = resample_poly(noise(seed), 1, 3)
    expected = np.zeros(round(seconds * RATE))
    edges = []  # s at which a gap begins and ends, to a packet
    if case.gap == "sound":
        put[int(GAP[0] * RATE) : int(GAP[1] * RATE)] = 0
        edges = [begin + edge for edge in GAP]
    part = expected[round(begin * RATE) :][: len(put)]
    part[:] = put[: len(part)]
    found = []
    if abs(len(sound) - len(expected)) > 0.01 * RATE:
        found.append(f"{len(sound) / RATE:.2f} s of sound, not {seconds:.2f}")
    width, reach, bad = RATE // 5, RATE // 5, 0
    sound = np.pad(sound, (reach, len(expected) + 2 * reach))
    for at in range(0, len(expected) - width + 1, width):
        if any(at / RATE - 0.1 < edge < (at + width) / RATE + 0.1 for edge in edges):
            continue
        piece, around = expected[at : at + width], sound[at : at + width + 2 * reach]
        share = np.count_nonzero(piece) / width
        if share == 0:
            inner = around[reach + RATE // 20 : -reach - RATE // 20]
            bad += np.sqrt(np.mean(inner**2)) > 0.01
        elif share > 0.99:
            match = np.correlate(around, piece)
            lag = int(np.argmax(match)) - reach
            level = match.max() / np.sum(piece**2)
            bad += abs(lag) > RATE // 20 or not 0.4 < level < 1.1
    if bad:
        found.append(f"{bad} stretches of sound")
    return found


def run(count: int, seed: int, workers: int, folder: Path) -> dict:
    """Make and extract `count` files; returns each one's case and what became of it."""
    videos, out = folder / "videos", folder / "out"
    videos.mkdir()
    cases = {}
    for i in range(count):
        draw = random.Random(f"{seed} {i}")
        case = draw_case(draw, list(CONTAINERS)[i % len(CONTAINERS)])
        path = videos / f"{i:04d}{case.container}"
        write_case(case, path, i)
        cases[path] = case
    summary = preprocess(videos, out, frames=FRAMES, size=SIZE, workers=workers, quiet=True)
    found = {}
    for i, (path, case) in enumerate(cases.items()):
        named = [s[path.name] for s in (summary.failed, summary.notes) if path.name in s]
        try:
            sound = soundfile.read(out / "ast_audio" / f"{path.stem}.wav")[0]
            pictures = read_frames(out / "vivit_frames" / path.stem)
            wrong = faults(case, pictures, sound, i)
        except (OSError, ValueError, soundfile.LibsndfileError):
            wrong = ["not extracted"]
        good = "right" if not wrong else "named" if case.damage != "none" and named else "silent"
        found[path.name] = {"case": asdict(case), "wrong": wrong, "named": named, "result": good}
    return found


def counts(found: dict, kind: str) -> dict[str, Counter]:
    """What became of the files by what they have of a kind: container, damage and so on."""
    table: dict[str, Counter] = {}
    for file in found.values():
        table.setdefault(str(file["case"][kind]), Counter())[file["result"]] += 1
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Extract odd media files and compare.")
    parser.add_argument("--files", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what they are (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="clips at a time (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(args.files, args.seed, args.workers, Path(folder))
    for kind in ("container", "video", "audio", "offset", "gap", "tracks", "colour", "damage"):
        print(f"\n{kind:20} right named silent")
        for value, count in counts(found, kind).items():
            print(f"{value:20} {count['right']:5} {count['named']:5} {count['silent']:6}")
    for name, file in found.items():
        if file["result"] == "silent":
            print(f"\n{name}: {file['wrong']}, said {file['named']}, {file['case']}")
    total = Counter(file["result"] for file in found.values())
    hangs = sum("took longer" in text for file in found.values() for text in file["named"])
    result = {"files": len(found), **{r: total[r] for r in RESULTS}, "hangs": hangs}
    result["commit"] = commit()
    print(f"\n{result}")
    write_whole(ROOT / "benchmarks" / "odd_media.json", json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
